"""The ASGI application: routes, limits, authorization, and errors as problem+json (RFC 9457)."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar

from cris_edge import __version__
from cris_edge.backends.features import ImageFeatures
from cris_edge.errors import CrisEdgeError, ImageError, InputError, OptionError, PromptError, RuntimeMissingError
from cris_edge.image.header import read_header
from cris_edge.segmenter import Segmenter
from cris_edge.serve.kept_images import KeptImages
from cris_edge.serve.limits import Limits
from cris_edge.serve.monitoring import Monitoring
from cris_edge.serve.openapi import document as openapi
from cris_edge.serve.replies import check_format, reply
from cris_edge.serve.workers import DrainingError, QueueFullError, Workers

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

T = TypeVar("T")

_PAGE = Path(__file__).parent / "page"
LOOPBACK = ("localhost", "127.0.0.1", "[::1]", "::1")
_OPTIONS = ("threshold", "min_presence")
_SECURITY = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}

logger = logging.getLogger("cris_edge.serve")


class Problem(Exception):
    """A request that is answered with an error status."""

    def __init__(self, status: HTTPStatus, detail: str) -> None:
        super().__init__(detail)
        self.status = status


@dataclass(frozen=True)
class _Question:
    """What a request asks about an image."""

    prompts: list[str]
    mask_format: str
    threshold: float | None
    min_presence: float | None


class Service:
    """The service around one `Segmenter`.

    Args:
        segmenter: Closed by the service when it shuts down.
        limits: What is accepted.
        token: Where given, requests to ``/v1`` and ``/metrics`` need ``Authorization: Bearer <token>``.
        origins: Web origins that may call the service from a browser (CORS); none by default.
        hosts: Names in the ``Host`` header that are answered, against DNS rebinding; "*" for any.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        limits: Limits | None = None,
        *,
        token: str | None = None,
        origins: Sequence[str] = (),
        hosts: Sequence[str] = LOOPBACK,
    ) -> None:
        self._segmenter = segmenter
        self._limits = limits or Limits()
        self._token = token
        self._origins, self._hosts = list(origins), list(hosts)
        self._workers = Workers(segmenter.info.parallel, self._limits.queue)
        self._images = KeptImages(self._limits.cache_bytes, self._limits.cache_seconds)
        self._monitoring = Monitoring()

    def app(self) -> Starlette:
        """The ASGI application.

        Raises:
            RuntimeMissingError: Starlette or python-multipart is not installed.
        """
        try:
            import python_multipart  # noqa: F401 - Starlette reads forms with it
            from starlette.applications import Starlette
            from starlette.middleware import Middleware
            from starlette.middleware.cors import CORSMiddleware
            from starlette.middleware.trustedhost import TrustedHostMiddleware
            from starlette.routing import Mount, Route
            from starlette.staticfiles import StaticFiles
        except ModuleNotFoundError as error:
            raise RuntimeMissingError(
                f'The service needs {error.name}; install it with pip install "cris-edge[serve]".'
            ) from error

        def route(path: str, method: str, handler: Callable[[Request], Awaitable[Response]], *, public: bool) -> Route:
            return Route(path, self._guarded(path, handler, public), methods=[method])

        middleware = [Middleware(TrustedHostMiddleware, allowed_hosts=self._hosts)]
        if self._origins:
            middleware.append(
                Middleware(
                    CORSMiddleware,
                    allow_origins=self._origins,
                    allow_methods=["GET", "POST", "DELETE"],
                    allow_headers=["Authorization", "Content-Type"],
                )
            )
        return Starlette(
            routes=[
                route("/v1/segment", "POST", self._segment, public=False),
                route("/v1/images", "POST", self._add_image, public=False),
                route("/v1/images/{id}", "DELETE", self._remove_image, public=False),
                route("/v1/images/{id}/segment", "POST", self._segment_kept, public=False),
                route("/v1/models", "GET", self._models, public=False),
                route("/metrics", "GET", self._metrics, public=False),
                route("/healthz", "GET", self._healthy, public=True),
                route("/readyz", "GET", self._ready, public=True),
                route("/openapi.json", "GET", self._openapi, public=True),
                route("/", "GET", self._page, public=True),
                route("/docs", "GET", self._docs, public=True),
                Mount("/page", StaticFiles(directory=_PAGE)),
            ],
            middleware=middleware,
            lifespan=self._lifespan,
        )

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(self._workers.close)  # what was accepted is answered
        self._images.clear()
        self._segmenter.close()

    # Routes.

    async def _segment(self, request: Request) -> Response:
        data, fields = await self._image_and_fields(request)
        question = self._question(fields)
        self._check_image(data)

        def call() -> list[dict[str, Any]]:
            return self._answer(self._segmenter.encode_image(data), question)

        return _json({"model": self._name, "results": await self._run(request, call)})

    async def _add_image(self, request: Request) -> Response:
        data, _ = await self._image_and_fields(request)
        self._check_image(data)
        features = await self._run(request, lambda: self._segmenter.encode_image(data))
        name = self._images.add(features)
        height, width = features.image.shape[:2]
        kept = {"id": name, "width": width, "height": height, "expires_in": self._images.seconds}
        return _json(kept, HTTPStatus.CREATED, {"Location": f"/v1/images/{name}"})

    async def _segment_kept(self, request: Request) -> Response:
        question = self._question(_parse(await self._body(request)))
        features = self._images.get(request.path_params["id"])
        if features is None:
            raise Problem(HTTPStatus.NOT_FOUND, "There is no image with this id (any more); send it again.")
        results = await self._run(request, lambda: self._answer(features, question))
        return _json({"model": self._name, "results": results})

    async def _remove_image(self, request: Request) -> Response:
        from starlette.responses import Response

        if not self._images.remove(request.path_params["id"]):
            raise Problem(HTTPStatus.NOT_FOUND, "There is no image with this id (any more).")
        return Response(status_code=HTTPStatus.NO_CONTENT)

    async def _models(self, _: Request) -> Response:
        manifest = self._segmenter.bundle.manifest
        model = {
            "name": manifest.name,
            "digest": self._segmenter.bundle.digest,
            "input_size": manifest.input_size,
            "threshold": manifest.threshold,
            "running": self._segmenter.info.to_dict(),
        }
        return _json({"models": [model]})

    async def _metrics(self, _: Request) -> Response:
        from starlette.responses import Response

        self._monitoring.pending.set(self._workers.pending)
        self._monitoring.images.set(len(self._images))
        self._monitoring.image_bytes.set(self._images.size)
        text, media_type = self._monitoring.text()
        return Response(text, media_type=media_type)

    async def _healthy(self, _: Request) -> Response:
        return _json({"status": "alive", "version": __version__})

    async def _ready(self, _: Request) -> Response:
        if self._workers.closed:
            raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, "The service is shutting down.")
        if self._workers.pending >= self._limits.queue:
            raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, "The queue is full.")
        return _json({"status": "ready", "pending": self._workers.pending})

    async def _openapi(self, _: Request) -> Response:
        return _json(openapi(self._limits, secured=self._token is not None))

    async def _page(self, _: Request) -> Response:
        return _file("index.html")

    async def _docs(self, _: Request) -> Response:
        return _file("docs.html")

    # Requests.

    @property
    def _name(self) -> str:
        return self._segmenter.bundle.manifest.name

    def _guarded(
        self, path: str, handler: Callable[[Request], Awaitable[Response]], public: bool
    ) -> Callable[[Request], Awaitable[Response]]:
        """The handler with authorization, errors as problems, a metric and a line in the log."""

        async def guarded(request: Request) -> Response:
            start = perf_counter()
            try:
                if not public:
                    self._authorize(request)
                response = await handler(request)
            except Exception as error:
                response = _problem(error)
            seconds = perf_counter() - start
            response.headers.update(_SECURITY)
            self._monitoring.request(path, response.status_code, seconds)
            line = {"route": path, "status": response.status_code, "seconds": round(seconds, 4)}
            logger.info("%s", json.dumps({**line, "bytes": int(request.headers.get("content-length", 0) or 0)}))
            return response

        return guarded

    def _authorize(self, request: Request) -> None:
        if self._token is None:
            return
        given = request.headers.get("authorization", "").encode()
        if not hmac.compare_digest(given, f"Bearer {self._token}".encode()):
            raise Problem(HTTPStatus.UNAUTHORIZED, "The request needs the header Authorization: Bearer <token>.")

    async def _run(self, request: Request, call: Callable[[], T]) -> T:
        """Run a call on a worker; where the client goes away before, the call is taken out of the queue."""
        work = asyncio.ensure_future(self._workers.run(call))
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise Problem(HTTPStatus.REQUEST_TIMEOUT, "The client went away.")  # nobody reads it
            return work.result()
        finally:
            for task in (work, gone):
                if not task.done():
                    task.cancel()
                    with suppress(asyncio.CancelledError):
                        await task

    def _answer(self, features: ImageFeatures, question: _Question) -> list[dict[str, Any]]:
        """Runs on a worker."""
        results = self._segmenter.predict(
            features, question.prompts, threshold=question.threshold, min_presence=question.min_presence
        )
        for result in results:
            self._monitoring.prediction(result.timings)
        return [reply(result, question.mask_format) for result in results]

    async def _body(self, request: Request) -> bytes:
        limit = self._limits.body_bytes
        message = f"The request has more than {limit:,} bytes; send a smaller image."
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > limit:
            raise Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message)
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message)
        return bytes(body)

    async def _image_and_fields(self, request: Request) -> tuple[bytes, dict[str, Any]]:
        """The encoded image of a multipart or JSON request, and its other fields."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        body = await self._body(request)
        if kind == "application/json":
            fields = _parse(body)
            encoded = fields.pop("image", None)
            if not isinstance(encoded, str):
                raise InputError('The field "image" is missing; expected an image file in base64.')
            try:
                return base64.b64decode(encoded, validate=True), fields
            except (binascii.Error, ValueError) as error:
                raise InputError(f'The field "image" is not base64: {error}.') from error
        if kind == "multipart/form-data":
            return await self._form(request, body)
        raise Problem(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            f"The content type is {kind or 'missing'}; expected multipart/form-data or application/json.",
        )

    async def _form(self, request: Request, body: bytes) -> tuple[bytes, dict[str, Any]]:
        from starlette.datastructures import UploadFile
        from starlette.formparsers import MultiPartException, MultiPartParser

        async def stream() -> AsyncGenerator[bytes, None]:
            yield body

        try:
            parser = MultiPartParser(
                request.headers,
                stream(),
                max_files=1,
                max_fields=self._limits.prompts + 8,
            )
            form = await parser.parse()
        except MultiPartException as error:
            raise InputError(f"The form cannot be read: {error.message}.") from error
        try:
            image = form.get("image")
            if not isinstance(image, UploadFile):
                raise InputError('The form has no file "image".')
            data = await image.read()
        finally:
            await form.close()
        fields: dict[str, Any] = {"prompts": [text for text in form.getlist("prompt") if isinstance(text, str)]}
        fields |= {name: form[name] for name in (*_OPTIONS, "format") if name in form}
        return data, fields

    def _question(self, fields: Mapping[str, Any]) -> _Question:
        unknown = set(fields) - {"prompts", "prompt", "format", *_OPTIONS}
        if unknown:
            raise OptionError(f"Unknown field {sorted(unknown)[0]!r}; expected prompts, format, {', '.join(_OPTIONS)}.")
        prompts = fields.get("prompts", fields.get("prompt"))
        prompts = [prompts] if isinstance(prompts, str) else prompts
        if not isinstance(prompts, list) or not prompts or not all(isinstance(prompt, str) for prompt in prompts):
            raise PromptError("The request has no prompt; expected a list of texts.")
        if len(prompts) > self._limits.prompts:
            raise PromptError(f"The request has {len(prompts)} prompts, and at most {self._limits.prompts} are taken.")
        options = {name: _number(name, fields[name]) for name in _OPTIONS if fields.get(name) is not None}
        return _Question(
            prompts, check_format(fields.get("format", "rle")), **{name: options.get(name) for name in _OPTIONS}
        )

    def _check_image(self, data: bytes) -> None:
        """Refuse what is not an image or has too many pixels, before anything is decoded."""
        header = read_header(data)
        if header is None:
            raise Problem(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                "The file is not an image of a known format (JPEG, PNG, WebP, GIF, BMP, TIFF, …).",
            )
        if header.width * header.height > self._limits.pixels:
            raise Problem(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"The image has {header.width} x {header.height} pixels, and at most {self._limits.pixels:,} are "
                "taken; send a smaller one.",
            )


async def _disconnected(request: Request) -> None:
    """Returns when the client has gone. The body has been read, so nothing else comes from it."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _parse(body: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InputError(f"The request is not JSON: {error}.") from error
    if not isinstance(fields, dict):
        raise InputError(f"The request is a JSON {type(fields).__name__}; expected an object.")
    return fields


def _number(name: str, value: object) -> float:
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        with suppress(ValueError):
            return float(value)
    raise OptionError(f"{name} is {value!r}, expected a number in [0, 1].")


def _json(
    document: object, status: HTTPStatus = HTTPStatus.OK, headers: Mapping[str, str] | None = None, kind: str = "json"
) -> Response:
    from starlette.responses import Response

    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    return Response(text, int(status), dict(headers or {}), media_type=f"application/{kind}")


def _file(name: str) -> Response:
    from starlette.responses import FileResponse

    return FileResponse(_PAGE / name)


def _problem(error: Exception) -> Response:
    """An error as problem+json, with the sentence that the SDK has for it."""
    headers: dict[str, str] = {}
    if isinstance(error, Problem):
        status = error.status
    elif isinstance(error, QueueFullError):
        status, headers = HTTPStatus.TOO_MANY_REQUESTS, {"Retry-After": "1"}
    elif isinstance(error, DrainingError):
        status, headers = HTTPStatus.SERVICE_UNAVAILABLE, {"Retry-After": "5"}
    elif isinstance(error, (ImageError, InputError)):
        status = HTTPStatus.UNPROCESSABLE_ENTITY
    else:
        status = HTTPStatus.INTERNAL_SERVER_ERROR
        logger.error("%s", json.dumps({"error": repr(error)}), exc_info=error)
    if status is HTTPStatus.UNAUTHORIZED:
        headers = {"WWW-Authenticate": "Bearer"}
    known = isinstance(error, (Problem, CrisEdgeError))
    detail = str(error) if known else "The service failed; its log says why."
    document = {"type": "about:blank", "title": status.phrase, "status": int(status), "detail": detail}
    return _json(document, status, headers, kind="problem+json")
