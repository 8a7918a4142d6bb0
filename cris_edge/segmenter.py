"""Segmenter: segment images by prompt."""

from __future__ import annotations

import logging
import os
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial, wraps
from time import perf_counter
from typing import Any, Literal, ParamSpec, TypeAlias, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from cris_edge.backends.base import Array, Backend, BackendOptions, usable_cache
from cris_edge.backends.features import ImageFeatures, TextFeatures
from cris_edge.backends.graphs import Engine, EngineInfo
from cris_edge.bundle import Bundle, default_model
from cris_edge.bundle.manifest import long_precision
from cris_edge.bundle.presence import presence_of
from cris_edge.errors import BundleError, InputError, OptionError, PromptError, RuntimeFailure
from cris_edge.image import ImageSource, load_image, postprocess, preprocess
from cris_edge.result import Segmentation

Prompt: TypeAlias = "str | TextFeatures"
Runtime: TypeAlias = Literal["auto", "openvino", "onnxruntime", "qnn"] | str  # other packages may register more
Device: TypeAlias = Literal["CPU", "GPU", "NPU", "AUTO"] | str  # each runtime has its own names
Precision: TypeAlias = Literal["auto", "float32", "bfloat16", "float16", "fp32", "fp16"]
Hint: TypeAlias = Literal["latency", "throughput"]
T = TypeVar("T")
P = ParamSpec("P")

# Prompts whose features are cached. One of CRIS-R50 takes 230 kB.
_CACHED_PROMPTS = 32

logger = logging.getLogger(__name__)


def _former_keyword(former: str, current: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Make a method accept the former name of a keyword argument."""

    def decorate(method: Callable[P, T]) -> Callable[P, T]:
        @wraps(method)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
            if former in kwargs and current not in kwargs:
                kwargs[current] = kwargs.pop(former)
            return method(*args, **kwargs)

        return wrapper

    return decorate


class Segmenter:
    """Segments images by prompt.

    Safe to share between threads, and usable after `fork`: the child recompiles the graphs at its first call. A
    context manager; `close` frees the graphs.

    Args:
        model: A bundle's folder, or a `Bundle`; the default model if None.
        runtime: "openvino", "onnxruntime", "qnn", or a name registered by another package; "auto" chooses the best
            installed one that the bundle supports, and `info` states which and why; or a `Backend` object.
        device: Name used by the runtime: "CPU", "GPU", "NPU", "AUTO", "CUDA", …
        precision: Precision to compute in. "auto" is the device's choice: on a CPU with bfloat16 arithmetic OpenVINO
            uses it, except for int8 models. "float32" forces it; "bfloat16" and "float16" where the device has them.
        threads: CPU threads; None leaves the choice to the runtime.
        hint: "latency" for one call at a time, "throughput" for several in parallel.
        cache_dir: Where to cache compiled graphs and the record of verified files, for a faster start: a folder, "auto"
            for the platform's cache folder, None to disable.
        min_presence: In [0, 1]; a prompt whose presence is below matches nothing: its mask is empty. The bundle's
            default if None; 0 disables it.
        strict: Whether to hash every file at each start and to compile the very bytes that were hashed, without cached
            graphs. Slower, and takes more memory during the start.

    Raises:
        BundleError: The bundle is incomplete or damaged.
        OptionError: The runtime, the device or a setting is unknown or not available.
        RuntimeMissingError: The runtime is not installed.
        DeviceError: The device cannot run the model.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | Bundle | None = None,
        *,
        runtime: Runtime | Backend = "auto",
        device: Device = "CPU",
        precision: Precision = "auto",
        threads: int | None = None,
        hint: Hint = "latency",
        cache_dir: str | os.PathLike[str] | None = "auto",
        min_presence: float | None = None,
        strict: bool = False,
    ) -> None:
        self._given = {
            "model": model, "runtime": runtime, "device": device, "precision": precision, "threads": threads,
            "hint": hint, "cache_dir": cache_dir, "min_presence": min_presence, "strict": strict,
        }  # fmt: skip
        if not isinstance(model, Bundle):
            model = Bundle.open(default_model() if model is None else model, strict=strict, cache_dir=cache_dir)
        self._bundle = model
        spec = model.manifest.presence
        default = 0.0 if spec is None else spec.min_presence
        self._min_presence = default if min_presence is None else self._checked_presence(min_presence)
        cache = usable_cache(cache_dir, model.digest) if isinstance(runtime, str) else None
        options = BackendOptions(
            device=device, precision=long_precision(precision), threads=threads, hint=hint, cache_dir=cache
        )
        self._engine = Engine(self._bundle, runtime, options)
        self._prompts: OrderedDict[str, TextFeatures] = OrderedDict()
        if logger.isEnabledFor(logging.INFO):
            logger.info("%s", self.info)

    @property
    def bundle(self) -> Bundle:
        """The bundle."""
        return self._bundle

    @property
    def info(self) -> EngineInfo:
        """The runtime, version, device, precision and threads in effect, and why this runtime was chosen."""
        return self._engine.info

    @overload
    def predict(  # type: ignore[overload-overlap]  # a str is a sequence of str too; the first overload wins
        self,
        image: ImageSource | ImageFeatures,
        prompts: Prompt,
        *,
        threshold: float | None = None,
        min_presence: float | None = None,
        color: str = "rgb",
    ) -> Segmentation: ...

    @overload
    def predict(
        self,
        image: ImageSource | ImageFeatures,
        prompts: Sequence[Prompt],
        *,
        threshold: float | None = None,
        min_presence: float | None = None,
        color: str = "rgb",
    ) -> list[Segmentation]: ...

    @_former_keyword("sentences", "prompts")
    def predict(
        self,
        image: ImageSource | ImageFeatures,
        prompts: Prompt | Sequence[Prompt],
        *,
        threshold: float | None = None,
        min_presence: float | None = None,
        color: str = "rgb",
    ) -> Segmentation | list[Segmentation]:
        """Segment what each prompt describes. Calling the object itself is the same.

        With the hint "throughput", up to `info.parallel` prompts are computed in parallel.

        Args:
            image: An image source (see `cris_edge.image.load_image`), or the result of `encode_image`.
            prompts: A prompt or several, as text or as results of `encode_text`.
            threshold: In [0, 1]; the mask holds the pixels with a higher probability. The bundle's by default.
            min_presence: In [0, 1]; a prompt whose presence is below matches nothing. The Segmenter's by default.
            color: "rgb", or "bgr" for OpenCV arrays.

        Returns:
            A result for one prompt; a list in the same order for several. If nothing matches, the mask is empty and
            the score 0. `timings` holds the seconds spent in this call: shared stages count for the first prompt, and
            cached ones for none.

        Raises:
            ImageError: The image cannot be read.
            PromptError: A prompt is empty or not text.
            OptionError: The threshold is not in [0, 1], or `color` is unknown.
            InputError: Features are of another bundle.
            RuntimeFailure: The Segmenter was closed, or the runtime failed.
        """
        return self._predict(image, prompts, threshold, min_presence, color)

    def _predict(
        self,
        image: ImageSource | ImageFeatures,
        prompts: Prompt | Sequence[Prompt],
        threshold: float | None,
        min_presence: float | None,
        color: str,
        *,
        alone: bool = True,
    ) -> Segmentation | list[Segmentation]:
        """Implement `predict`; unless `alone`, other calls keep the CPU busy, and prompts run sequentially."""
        level, least = self._threshold(threshold), self._presence(min_presence)
        texts = [self._text(prompt) for prompt in _several(prompts)]  # fail on a bad prompt before encoding the image
        spent: Mapping[str, float] = {}
        if isinstance(image, ImageFeatures):
            self._require_ours(image)
            features = image
        else:
            features = self.encode_image(image, color=color)
            spent = features.timings
        calls = []
        for text, timings in texts:
            calls.append(partial(self._decode, features, text, level, least, {**spent, **timings}))
            spent = {}
        parallel = min(len(calls), self.info.parallel) if alone and len(calls) > 1 else 1
        results = list(_in_order(calls, parallel))
        return results[0] if isinstance(prompts, (str, TextFeatures)) else results

    __call__ = predict

    @overload
    def stream(  # type: ignore[overload-overlap]  # as for `predict`
        self,
        frames: Iterable[ImageSource],
        prompts: Prompt,
        *,
        threshold: float | None = None,
        min_presence: float | None = None,
        color: str = "rgb",
    ) -> Iterator[Segmentation]: ...

    @overload
    def stream(
        self,
        frames: Iterable[ImageSource],
        prompts: Sequence[Prompt],
        *,
        threshold: float | None = None,
        min_presence: float | None = None,
        color: str = "rgb",
    ) -> Iterator[list[Segmentation]]: ...

    @_former_keyword("sentences", "prompts")
    def stream(
        self,
        frames: Iterable[ImageSource],
        prompts: Prompt | Sequence[Prompt],
        *,
        threshold: float | None = None,
        min_presence: float | None = None,
        color: str = "rgb",
    ) -> Iterator[Segmentation] | Iterator[list[Segmentation]]:
        """Segment what each prompt describes in every frame.

        Prompts are encoded once. Frames are read as results are consumed, so memory stays bounded; with the hint
        "throughput", `info.parallel` frames are computed in parallel, and one more waits.

        Args:
            frames: An iterable of image sources.
            prompts: As for `predict`.
            threshold: As for `predict`.
            min_presence: As for `predict`.
            color: As for `predict`.

        Returns:
            An iterator over the results of `predict`, in the order of the frames.

        Raises:
            InputError: Raised immediately for an invalid argument, and by the iterator for an invalid frame.
        """
        self._threshold(threshold)
        self._presence(min_presence)
        if isinstance(frames, (str, bytes, os.PathLike, Mapping)) or not isinstance(frames, Iterable):
            raise InputError(
                f"frames is {type(frames).__name__}; expected an iterable of images, such as a generator that reads "
                f"them from a cv2.VideoCapture."
            )
        texts = [self._text(prompt)[0] for prompt in _several(prompts)]
        encoded: Any = texts[0] if isinstance(prompts, (str, TextFeatures)) else texts
        parallel = self.info.parallel

        def calls() -> Iterator[Callable[[], Any]]:
            for frame in frames:
                # The caller may read the next frame into the same array while this one waits.
                kept = frame.copy() if parallel > 1 and isinstance(frame, np.ndarray) else frame
                yield partial(self._predict, kept, encoded, threshold, min_presence, color, alone=parallel == 1)

        return _in_order(calls(), parallel)

    def encode_image(self, image: ImageSource, *, color: str = "rgb") -> ImageFeatures:
        """Encode an image once, to use it with several prompts. Arguments and errors are those of `predict`."""
        graphs, manifest, clock = self._engine.graphs, self._bundle.manifest, _Clock()
        rgb = load_image(image, color=color)
        clock.lap("load")
        pixels, letterbox = preprocess(rgb, manifest.input_size, mean=manifest.mean, std=manifest.std)
        clock.lap("preprocess")
        tensors = graphs.image_encoder({"image": pixels})
        clock.lap("image_encoder")
        index, seconds = getattr(image, "index", None), getattr(image, "seconds", None)
        if not isinstance(index, int):  # `str` has a method of that name
            index = seconds = None
        return ImageFeatures(self._bundle.digest, rgb, letterbox, _frozen(tensors), clock.laps, index, seconds)

    @_former_keyword("sentence", "prompt")
    def encode_text(self, prompt: str) -> TextFeatures:
        """Encode a prompt once, to use it with several images. The most recent prompts are cached anyway.

        Raises:
            PromptError: The prompt is empty or not text.
            RuntimeFailure: The Segmenter was closed, or the runtime failed.
        """
        return self._text(prompt)[0]

    def logits(self, pixels: NDArray[np.float32], tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Run the network alone.

        Args:
            pixels: (1, 3, S, S) float32, from `cris_edge.image.preprocess`.
            tokens: (1, L) int64, from `cris_edge.tokenizer.Tokenizer`.

        Returns:
            (1, 1, S/4, S/4) float32, before the sigmoid.

        Raises:
            InputError: An array has another shape or dtype.
            RuntimeFailure: The Segmenter was closed, or the runtime failed.
        """
        return self.logits_and_presence(pixels, tokens)[0]

    def logits_and_presence(
        self, pixels: NDArray[np.float32], tokens: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], float | None]:
        """Run the network alone; return the result of `logits`, and the presence in [0, 1] or None."""
        graphs, side, length = self._engine.graphs, self._bundle.manifest.input_size, self._bundle.manifest.word_len
        _require_array("pixels", pixels, (1, 3, side, side), "float32")
        _require_array("tokens", tokens, (1, length), "int64")
        image = graphs.image_encoder({"image": np.ascontiguousarray(pixels)})
        text = graphs.text_encoder({"tokens": np.ascontiguousarray(tokens)})
        outputs = graphs.mask_decoder({**image, **text})
        return outputs["logits"], presence_of(outputs, self._bundle.manifest.presence)

    def close(self) -> None:
        """Free the graphs. Running calls finish; later ones raise `RuntimeFailure`."""
        self._engine.close()
        self._prompts = OrderedDict()

    def __enter__(self) -> Segmenter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the options, by which another process opens the bundle and compiles its own graphs."""
        given = dict(self._given)
        if not isinstance(given["runtime"], str):
            raise OptionError("This Segmenter was given a backend, which cannot be pickled; give a runtime's name.")
        if self._engine.closed:
            raise RuntimeFailure("This Segmenter was closed, so it cannot be pickled; create a new one.")
        if given["model"] is not None:  # the default model may be elsewhere there
            given |= {"model": str(self._bundle.path), "strict": self._bundle.strict}
        return _reopened, (given, self._bundle.digest)

    def __repr__(self) -> str:
        return f"<Segmenter {'closed' if self._engine.closed else self.info}>"

    def _text(self, prompt: Prompt) -> tuple[TextFeatures, Mapping[str, float]]:
        """Return a prompt's features and the seconds spent on them in this call."""
        if isinstance(prompt, TextFeatures):
            self._require_ours(prompt)
            return prompt, {}
        if not isinstance(prompt, str):
            raise PromptError(f"A prompt is {type(prompt).__name__}; expected text.")
        graphs, cached = self._engine.graphs, self._prompts
        with self._engine.lock:
            if prompt in cached:
                cached.move_to_end(prompt)
                return cached[prompt], {}
        clock = _Clock()
        tokens = self._bundle.tokenizer(prompt, length=self._bundle.manifest.word_len)
        clock.lap("tokenize")
        tensors = graphs.text_encoder({"tokens": tokens})
        clock.lap("text_encoder")
        features = TextFeatures(self._bundle.digest, prompt, tokens, _frozen(tensors), clock.laps)
        with self._engine.lock:
            cached[prompt] = features
            if len(cached) > _CACHED_PROMPTS:
                cached.popitem(last=False)
        return features, features.timings

    def _decode(
        self,
        image: ImageFeatures,
        text: TextFeatures,
        threshold: float,
        min_presence: float,
        spent: Mapping[str, float],
    ) -> Segmentation:
        clock = _Clock(spent)
        outputs = self._engine.graphs.mask_decoder({**image.tensors, **text.tensors})
        clock.lap("mask_decoder")
        probability = postprocess(outputs["logits"], image.letterbox)
        presence = presence_of(outputs, self._bundle.manifest.presence)
        clock.lap("postprocess")
        return Segmentation(
            probability,
            image.image,
            text.prompt,
            threshold=threshold,
            timings=clock.laps,
            presence=presence,
            min_presence=min_presence,
            index=image.index,
            seconds=image.seconds,
        )

    def _threshold(self, given: float | None) -> float:
        if given is None:
            return self._bundle.manifest.threshold
        if isinstance(given, bool) or not isinstance(given, (int, float, np.floating)) or not 0 <= given <= 1:
            raise OptionError(f"The threshold is {given!r}; expected a number in [0, 1].")
        return float(given)

    def _presence(self, given: float | None) -> float:
        return self._min_presence if given is None else self._checked_presence(given)

    def _checked_presence(self, given: float) -> float:
        if isinstance(given, bool) or not isinstance(given, (int, float, np.floating)) or not 0 <= given <= 1:
            raise OptionError(f"min_presence is {given!r}; expected a number in [0, 1], 0 to disable it.")
        if given and self._bundle.manifest.presence is None:
            raise OptionError(
                f"min_presence is {given:g}, but the bundle {self._bundle.manifest.name} does not report presence; "
                "leave it out, or export the bundle with a presence head or a calibration."
            )
        return float(given)

    def _require_ours(self, features: ImageFeatures | TextFeatures) -> None:
        if features.bundle != self._bundle.digest:
            kind = "image" if isinstance(features, ImageFeatures) else "text"
            raise InputError(
                f"The {kind} features are of another bundle (its digest begins with {features.bundle[:12]}, that of "
                f"{self._bundle.manifest.name} with {self._bundle.digest[:12]}); encode again with this Segmenter."
            )


def _reopened(given: dict[str, Any], digest: str) -> Segmenter:
    """Open a pickled Segmenter."""
    segmenter = Segmenter(**given)
    if segmenter.bundle.digest != digest:
        found = segmenter.bundle
        segmenter.close()
        raise BundleError(
            f"{found.path} is another bundle than the one that was pickled (its digest begins with "
            f"{found.digest[:12]}, not {digest[:12]}); copy the same bundle to both."
        )
    return segmenter


class _Clock:
    """Measures the seconds of consecutive stages."""

    def __init__(self, before: Mapping[str, float] | None = None) -> None:
        self.laps = dict(before or {})
        self._last = perf_counter()

    def lap(self, stage: str) -> None:
        now = perf_counter()
        self.laps[stage] = now - self._last
        self._last = now


def _frozen(tensors: dict[str, Array]) -> dict[str, Array]:
    """Make features read-only, because calls share them."""
    for array in tensors.values():
        array.setflags(write=False)
    return tensors


def _in_order(calls: Iterable[Callable[[], T]], parallel: int) -> Iterator[T]:
    """Yield the results of calls in order; `parallel` of them run in parallel, and one more waits."""
    if parallel == 1:
        for call in calls:
            yield call()
        return
    from concurrent.futures import Future, ThreadPoolExecutor

    pending: deque[Future[T]] = deque()
    with ThreadPoolExecutor(parallel, thread_name_prefix="cris-edge") as pool:
        try:
            for call in calls:
                pending.append(pool.submit(call))
                if len(pending) > parallel:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _several(prompts: object) -> list[Any]:
    """Return one prompt or several as a list."""
    if isinstance(prompts, (str, TextFeatures)):
        return [prompts]
    if isinstance(prompts, (bytes, Mapping)) or not isinstance(prompts, Iterable):
        raise PromptError(f"The prompt is {type(prompts).__name__}; expected text, or a list of texts.")
    several = list(prompts)
    if not several:
        raise PromptError("No prompt was given; expected at least one.")
    return several


def _require_array(name: str, array: object, shape: tuple[int, ...], dtype: str) -> None:
    if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype != dtype:
        given = f"{array.dtype}{list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
        raise InputError(f"{name} is {given}; expected {dtype}{list(shape)}.")
