"""The HTTP service, asked through its ASGI interface."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cris_edge import Segmenter
from cris_edge.image.coco import decode_rle
from cris_edge.serve.limits import Limits

pytest.importorskip("starlette", reason="the service needs the extra serve")
pytest.importorskip("onnxruntime", reason="the service is tested in ONNX Runtime")
pytest.importorskip("onnx", reason="the bundle of the tests is built with onnx")
httpx = pytest.importorskip("httpx")
Image = pytest.importorskip("PIL.Image")

from cris_edge.serve.app import Service  # noqa: E402

RED = (255, 0, 0)


def encoded(kind: str = "PNG", size: tuple[int, int] = (64, 48)) -> bytes:
    """An image with a red rectangle on white."""
    image = Image.new("RGB", size, "white")
    image.paste(RED, (8, 8, size[0] // 2, size[1] // 2))
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


class Client:
    """A client of one service in this process, whose lifespan has begun."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.app = service.app()

    def run(self, talk: Callable[[Any], Any]) -> Any:
        async def main() -> Any:
            async with self.app.router.lifespan_context(self.app):
                transport = httpx.ASGITransport(self.app)
                async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                    return await talk(client)

        return asyncio.run(main())

    def post(self, path: str, **options: Any) -> Any:
        return self.run(lambda client: client.post(path, **options))

    def get(self, path: str, **options: Any) -> Any:
        return self.run(lambda client: client.get(path, **options))


@pytest.fixture
def make(tiny: Path) -> Iterator[Callable[..., Client]]:
    def build(**options: Any) -> Client:
        limits = Limits(**options.pop("limits", {}))
        return Client(Service(Segmenter(tiny, runtime="onnxruntime"), limits, **options))

    yield build


def ask(client: Client, **fields: Any) -> Any:
    data = {"prompt": ["red"], **fields}
    return client.post("/v1/segment", files={"image": ("a.png", encoded())}, data=data)


def test_a_form_is_answered_as_the_sdk_answers(make: Callable[..., Client], tiny: Path) -> None:
    response = ask(make(), prompt=["red", "white"])
    assert response.status_code == 200
    with Segmenter(tiny, runtime="onnxruntime") as segmenter:
        expected = segmenter(encoded(), ["red", "white"])
    results = response.json()["results"]
    assert [result["prompt"] for result in results] == ["red", "white"]
    for result, one in zip(results, expected, strict=True):
        assert np.array_equal(decode_rle(result["mask"]), one.mask)
        assert result["score"] == pytest.approx(one.score)


def test_json_with_base64_is_the_same(make: Callable[..., Client]) -> None:
    body = {"image": base64.b64encode(encoded()).decode(), "prompts": ["red"]}
    response = make().post("/v1/segment", json=body)
    form = ask(make())
    assert response.json()["results"][0]["mask"] == form.json()["results"][0]["mask"]


@pytest.mark.parametrize("mask_format", ["polygons", "png", "rgba"])
def test_masks_come_in_each_format(make: Callable[..., Client], mask_format: str) -> None:
    exact = decode_rle(ask(make()).json()["results"][0]["mask"])
    assert exact.any()
    mask = ask(make(), format=mask_format).json()["results"][0]["mask"]
    if mask_format == "polygons":
        import cv2

        rings = [np.array(polygon, np.int32).reshape(-1, 2) for polygon in mask]
        assert np.array_equal(cv2.fillPoly(np.zeros(exact.shape, np.uint8), rings, 1).astype(bool), exact)
        return
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(mask))))
    inside = pixels if mask_format == "png" else pixels[:, :, 3]
    assert np.array_equal(inside == 255, exact)
    if mask_format == "rgba":
        assert (pixels[exact][:, :3] == np.asarray(Image.open(io.BytesIO(encoded())))[exact]).all()


def test_a_kept_image_is_asked_again_until_it_is_removed(make: Callable[..., Client]) -> None:
    async def talk(client: Any) -> None:
        kept = await client.post("/v1/images", files={"image": encoded()})
        assert kept.status_code == 201
        assert (kept.json()["width"], kept.json()["height"]) == (64, 48)
        path = kept.headers["location"]
        for prompt in ("red", "white"):
            answer = await client.post(f"{path}/segment", json={"prompts": [prompt]})
            assert answer.status_code == 200
            assert "image_encoder" not in answer.json()["results"][0]["timings"]
        metrics = (await client.get("/metrics")).text
        assert "cris_edge_kept_images 1.0" in metrics
        assert 'cris_edge_requests_total{route="/v1/images/{id}/segment",status="200"} 2.0' in metrics
        assert (await client.delete(path)).status_code == 204
        gone = await client.post(f"{path}/segment", json={"prompts": ["red"]})
        assert gone.status_code == 404
        assert (await client.delete(path)).status_code == 404

    make().run(talk)


@pytest.mark.parametrize(
    ("status", "request_"),
    [
        (415, {"content": b"x", "headers": {"content-type": "text/plain"}}),
        (415, {"files": {"image": b"not an image"}, "data": {"prompt": "red"}}),
        (413, {"files": {"image": encoded(size=(900, 900))}, "data": {"prompt": "red"}}),
        (413, {"files": {"image": encoded() + bytes(200_000)}, "data": {"prompt": "red"}}),
        (422, {"files": {"image": encoded()}, "data": {"prompt": ["a", "b", "c", "d"]}}),
        (422, {"files": {"image": encoded()}}),
        (422, {"data": {"prompt": "red"}, "files": {"other": b""}}),
        (422, {"files": {"image": encoded()}, "data": {"prompt": "red", "threshold": "2"}}),
        (422, {"files": {"image": encoded()}, "data": {"prompt": "red", "threshold": "much"}}),
        (422, {"files": {"image": encoded()}, "data": {"prompt": "red", "format": "svg"}}),
        (422, {"files": {"image": encoded()}, "data": {"prompt": ""}}),
        (422, {"files": {"image": encoded()[:60]}, "data": {"prompt": "red"}}),
        (422, {"json": {"image": "%%%", "prompts": ["red"]}}),
        (422, {"json": {"prompts": ["red"]}}),
        (422, {"json": ["red"]}),
        (422, {"json": {"image": base64.b64encode(encoded()).decode(), "prompts": ["red"], "sentences": 1}}),
        (422, {"content": b"{", "headers": {"content-type": "application/json"}}),
        (422, {"content": b"--x", "headers": {"content-type": "multipart/form-data; boundary=x"}}),
        (422, {"content": b"", "headers": {"content-type": "multipart/form-data"}}),
    ],
)
def test_bad_requests_are_problems(make: Callable[..., Client], status: int, request_: dict[str, Any]) -> None:
    client = make(limits={"body_bytes": 100_000, "pixels": 500_000, "prompts": 3})
    response = client.post("/v1/segment", **request_)
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["status"] == status
    assert len(problem["detail"]) > 20 and "Traceback" not in problem["detail"]


def test_a_body_of_unknown_length_is_cut_off_at_the_limit(make: Callable[..., Client]) -> None:
    sent = 0

    async def stream() -> Any:
        nonlocal sent
        for _ in range(1000):
            sent += 10_000
            yield bytes(10_000)

    response = make(limits={"body_bytes": 100_000}).post(
        "/v1/segment", content=stream(), headers={"content-type": "application/json"}
    )
    assert response.status_code == 413


def test_a_token_is_required_where_one_was_set(make: Callable[..., Client]) -> None:
    client = make(token="secret")
    refused = client.get("/v1/models")
    assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer"
    assert make(token="secret").get("/v1/models", headers={"Authorization": "Bearer other"}).status_code == 401
    assert make(token="secret").get("/v1/models", headers={"Authorization": "Bearer secret"}).status_code == 200
    assert make(token="secret").get("/healthz").status_code == 200


def test_other_names_in_the_host_header_are_refused(make: Callable[..., Client]) -> None:
    assert make().get("/healthz", headers={"Host": "attacker.example"}).status_code == 400


def test_other_origins_are_not_allowed_unless_named(make: Callable[..., Client]) -> None:
    origin = {"Origin": "https://app.example"}
    assert "access-control-allow-origin" not in make().get("/v1/models", headers=origin).headers
    allowed = make(origins=["https://app.example"]).get("/v1/models", headers=origin)
    assert allowed.headers["access-control-allow-origin"] == "https://app.example"


def test_the_page_and_its_files_are_served_without_other_hosts(make: Callable[..., Client]) -> None:
    page = make().get("/")
    assert page.status_code == 200 and "default-src 'self'" in page.headers["content-security-policy"]
    for name in ("app.js", "masks.js", "docs.js", "style.css", "icon.svg"):
        assert make().get(f"/page/{name}").status_code == 200
    assert "http" not in page.text.replace("HTTP", "")
    assert make().get("/docs").status_code == 200


def test_the_description_is_openapi_and_lists_the_routes(make: Callable[..., Client]) -> None:
    validator = pytest.importorskip("openapi_spec_validator")
    client = make(token="secret")
    description = client.get("/openapi.json").json()
    validator.validate(description)
    described = set(description["paths"])
    assert described == {route.path for route in client.app.routes} - {"/", "/docs", "/openapi.json", "/page"}


def test_models_are_listed(make: Callable[..., Client], tiny: Path) -> None:
    (model,) = make().get("/v1/models").json()["models"]
    assert model["running"]["runtime"] == "onnxruntime"
    assert json.loads((tiny / "manifest.json").read_text())["name"] == model["name"]


class Slow(Segmenter):
    """Waits in the image encoder until it is released."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.release, self.started, self.calls = threading.Event(), threading.Semaphore(0), 0

    def encode_image(self, image: Any, **options: Any) -> Any:
        self.calls += 1
        self.started.release()
        assert self.release.wait(20)
        return super().encode_image(image, **options)


def test_the_queue_is_bounded_and_cancelled_requests_free_their_place(tiny: Path) -> None:
    segmenter = Slow(tiny, runtime="onnxruntime", threads=1)
    client = Client(Service(segmenter, Limits(queue=2)))
    form = {"files": {"image": encoded()}, "data": {"prompt": "red"}}

    async def talk(http: Any) -> None:
        running = asyncio.create_task(http.post("/v1/segment", **form))
        assert await asyncio.to_thread(segmenter.started.acquire, timeout=20)
        waiting = asyncio.create_task(http.post("/v1/segment", **form))
        while client.service._workers.pending < 2:
            await asyncio.sleep(0.01)
        full = await http.post("/v1/segment", **form)
        assert full.status_code == 429 and full.headers["retry-after"] == "1"
        assert (await http.get("/readyz")).status_code == 503
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        while client.service._workers.pending > 1:
            await asyncio.sleep(0.01)
        segmenter.release.set()
        assert (await running).status_code == 200
        assert (await http.get("/readyz")).status_code == 200

    client.run(talk)
    assert segmenter.calls == 1  # the cancelled one never ran


def test_what_was_accepted_is_answered_at_shutdown(tiny: Path) -> None:
    segmenter = Slow(tiny, runtime="onnxruntime", threads=1)
    client = Client(Service(segmenter))

    async def main() -> Any:
        async with client.app.router.lifespan_context(client.app):
            transport = httpx.ASGITransport(client.app)
            http = httpx.AsyncClient(transport=transport, base_url="http://localhost")
            task = asyncio.create_task(http.post("/v1/segment", files={"image": encoded()}, data={"prompt": "red"}))
            assert await asyncio.to_thread(segmenter.started.acquire, timeout=20)
            asyncio.get_running_loop().call_later(0.2, segmenter.release.set)
        refused = await http.post("/v1/segment", files={"image": encoded()}, data={"prompt": "red"})
        assert refused.status_code == 503
        return await task

    assert asyncio.run(main()).status_code == 200


def test_logs_hold_no_content(make: Callable[..., Client], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "cris_edge.serve")
    ask(make(), prompt=["a private matter"])
    lines = [json.loads(record.getMessage()) for record in caplog.records if record.name == "cris_edge.serve"]
    assert lines[0]["route"] == "/v1/segment" and lines[0]["status"] == 200
    assert "private" not in caplog.text
