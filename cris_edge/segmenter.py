"""Segmenter: an image and a sentence in, a mask out."""

from __future__ import annotations

import logging
import os
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from time import perf_counter
from typing import Any, TypeAlias, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from cris_edge.backends.base import Array, Backend, BackendOptions, usable_cache
from cris_edge.backends.features import ImageFeatures, TextFeatures
from cris_edge.backends.graphs import Engine, EngineInfo
from cris_edge.bundle import Bundle, default_model
from cris_edge.bundle.manifest import long_precision
from cris_edge.bundle.presence import presence_of
from cris_edge.errors import InputError, OptionError, PromptError
from cris_edge.image import ImageSource, load_image, postprocess, preprocess
from cris_edge.result import Segmentation

Sentence: TypeAlias = "str | TextFeatures"
T = TypeVar("T")

# Sentences kept: a conversation's worth. One of CRIS-R50 takes 230 kB.
_SENTENCES_KEPT = 32

logger = logging.getLogger(__name__)


class Segmenter:
    """Finds what a sentence names in an image.

    Several threads may share one. It may be used after `fork`: the child compiles the graphs again at its first call.
    It is a context manager; `close` frees the graphs.

    Args:
        model: A model folder, or a `Bundle`; the embedded model by default.
        runtime: "openvino", "onnxruntime", or one that another package registered; "auto" takes the best one that is
            installed and that the model holds, and `info` says which and why; or a `Backend` object.
        device: As the runtime names it: "CPU", "GPU", "NPU", "AUTO", "CUDA", …
        precision: "auto" is the device's own choice, on a CPU with bfloat16 arithmetic OpenVINO's is that, but for int8
            models; "float32" forces it; "bfloat16", "float16" where the device has them.
        threads: Of the processor; None leaves it to the runtime.
        hint: "latency" for one call at a time, "throughput" for several at once.
        cache_dir: Where compiled graphs and the record of verified files are kept, so that the next start is faster:
            a folder, "auto" for the platform's cache folder, None for nowhere.
        min_presence: In [0, 1]; where the presence of a prompt's object is below, nothing matches: the mask is empty.
            The bundle's default if None; 0 disables it.

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
        runtime: str | Backend = "auto",
        device: str = "CPU",
        precision: str = "auto",
        threads: int | None = None,
        hint: str = "latency",
        cache_dir: str | os.PathLike[str] | None = "auto",
        min_presence: float | None = None,
    ) -> None:
        if not isinstance(model, Bundle):
            model = Bundle.open(default_model() if model is None else model, cache_dir=cache_dir)
        self._bundle = model
        spec = model.manifest.presence
        default = 0.0 if spec is None else spec.min_presence
        self._min_presence = default if min_presence is None else self._checked_presence(min_presence)
        cache = usable_cache(cache_dir, model.digest) if isinstance(runtime, str) else None
        options = BackendOptions(
            device=device, precision=long_precision(precision), threads=threads, hint=hint, cache_dir=cache
        )
        self._engine = Engine(self._bundle, runtime, options)
        self._sentences: OrderedDict[str, TextFeatures] = OrderedDict()
        if logger.isEnabledFor(logging.INFO):
            logger.info("%s", self.info)

    @property
    def bundle(self) -> Bundle:
        """The model."""
        return self._bundle

    @property
    def info(self) -> EngineInfo:
        """What really runs: runtime, version, device, precision, threads; and why this runtime."""
        return self._engine.info

    @overload
    def predict(  # type: ignore[overload-overlap]  # a str is a sequence of str too; the first overload wins
        self,
        image: ImageSource | ImageFeatures,
        sentences: Sentence,
        *,
        threshold: float | None = None,
        min_presence: float | None = None,
        color: str = "rgb",
    ) -> Segmentation: ...

    @overload
    def predict(
        self,
        image: ImageSource | ImageFeatures,
        sentences: Sequence[Sentence],
        *,
        threshold: float | None = None,
        min_presence: float | None = None,
        color: str = "rgb",
    ) -> list[Segmentation]: ...

    def predict(
        self,
        image: ImageSource | ImageFeatures,
        sentences: Sentence | Sequence[Sentence],
        *,
        threshold: float | None = None,
        min_presence: float | None = None,
        color: str = "rgb",
    ) -> Segmentation | list[Segmentation]:
        """Find what each sentence names. Calling the object itself is the same.

        With the hint "throughput", several sentences are computed at the same time, `info.parallel` of them.

        Args:
            image: An image source (see `cris_edge.image.load_image`), or what `encode_image` gave for it.
            sentences: A sentence, or several; each as text, or as what `encode_text` gave for it.
            threshold: In [0, 1]; a pixel is in the mask where its probability is above. The bundle's by default.
            min_presence: In [0, 1]; nothing matches where the presence is below. The Segmenter's by default.
            color: "rgb", or "bgr" for arrays as OpenCV has them.

        Returns:
            A result for one sentence; a list, in their order, for several. Where nothing matches, the mask is empty
            and the score 0. `timings` holds the seconds that this call spent on this result: what several sentences
            share is in the first one's, and what was computed before is in none.

        Raises:
            ImageError: The image cannot be read.
            PromptError: A sentence is empty or not text.
            OptionError: The threshold is not in [0, 1], or `color` is unknown.
            InputError: Features are of another bundle.
            RuntimeFailure: The Segmenter was closed, or the runtime failed.
        """
        return self._predict(image, sentences, threshold, min_presence, color)

    def _predict(
        self,
        image: ImageSource | ImageFeatures,
        sentences: Sentence | Sequence[Sentence],
        threshold: float | None,
        min_presence: float | None,
        color: str,
        *,
        alone: bool = True,
    ) -> Segmentation | list[Segmentation]:
        """`predict`; where it is not `alone`, other calls keep the processor busy, and its sentences take turns."""
        level, least = self._threshold(threshold), self._presence(min_presence)
        texts = [self._text(sentence) for sentence in _several(sentences)]  # first: a bad sentence costs nothing
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
        return results[0] if isinstance(sentences, (str, TextFeatures)) else results

    __call__ = predict

    def stream(
        self,
        frames: Iterable[ImageSource],
        sentences: Sentence | Sequence[Sentence],
        *,
        threshold: float | None = None,
        min_presence: float | None = None,
        color: str = "rgb",
    ) -> Iterator[Any]:
        """Find what each sentence names in every frame.

        The sentences are encoded once. Frames are taken when results are, so that memory stays bounded however many
        there are; with the hint "throughput", `info.parallel` frames are computed at the same time, and one more waits.

        Args:
            frames: Any iterable of image sources.
            sentences: As `predict` takes them.
            threshold: As `predict` takes it.
            min_presence: As `predict` takes it.
            color: As `predict` takes it.

        Returns:
            An iterator that gives for each frame, in their order, what `predict` gives.

        Raises:
            InputError: At once where an argument is wrong, at its turn where a frame is.
        """
        self._threshold(threshold)
        self._presence(min_presence)
        if isinstance(frames, (str, bytes, os.PathLike, Mapping)) or not isinstance(frames, Iterable):
            raise InputError(
                f"frames is {type(frames).__name__}; expected an iterable of images, for instance a generator that "
                f"reads them from a cv2.VideoCapture."
            )
        texts = [self._text(sentence)[0] for sentence in _several(sentences)]
        asked: Any = texts[0] if isinstance(sentences, (str, TextFeatures)) else texts
        parallel = self.info.parallel

        def calls() -> Iterator[Callable[[], Any]]:
            for frame in frames:
                # The caller may put the next frame into the same array while this one waits.
                kept = frame.copy() if parallel > 1 and isinstance(frame, np.ndarray) else frame
                yield partial(self._predict, kept, asked, threshold, min_presence, color, alone=parallel == 1)

        return _in_order(calls(), parallel)

    def encode_image(self, image: ImageSource, *, color: str = "rgb") -> ImageFeatures:
        """Pay for an image once, to ask several sentences of it. Arguments and errors are those of `predict`."""
        graphs, manifest, clock = self._engine.graphs, self._bundle.manifest, _Clock()
        rgb = load_image(image, color=color)
        clock.lap("load")
        pixels, letterbox = preprocess(rgb, manifest.input_size, mean=manifest.mean, std=manifest.std)
        clock.lap("preprocess")
        tensors = graphs.image_encoder({"image": pixels})
        clock.lap("image_encoder")
        return ImageFeatures(self._bundle.digest, rgb, letterbox, _frozen(tensors), clock.laps)

    def encode_text(self, sentence: str) -> TextFeatures:
        """Pay for a sentence once, to ask it of several images. The last few sentences are remembered anyway.

        Raises:
            PromptError: It is empty or not text.
            RuntimeFailure: The Segmenter was closed, or the runtime failed.
        """
        return self._text(sentence)[0]

    def logits(self, pixels: NDArray[np.float32], tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Run the network alone.

        Args:
            pixels: (1, 3, S, S) float32, as `cris_edge.image.preprocess` makes them.
            tokens: (1, L) int64, as `cris_edge.tokenizer.Tokenizer` makes them.

        Returns:
            (1, 1, S/4, S/4) float32, before the sigmoid.

        Raises:
            InputError: An array is of another shape or dtype.
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
        """Free the graphs. Calls that are running end as usual; a later one raises `RuntimeFailure`."""
        self._engine.close()
        self._sentences = OrderedDict()

    def __enter__(self) -> Segmenter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Segmenter {'closed' if self._engine.closed else self.info}>"

    def _text(self, sentence: Sentence) -> tuple[TextFeatures, Mapping[str, float]]:
        """A sentence's features, and the seconds that were spent on them just now."""
        if isinstance(sentence, TextFeatures):
            self._require_ours(sentence)
            return sentence, {}
        if not isinstance(sentence, str):
            raise PromptError(f"A sentence is {type(sentence).__name__}; expected text.")
        graphs, known = self._engine.graphs, self._sentences
        with self._engine.lock:
            if sentence in known:
                known.move_to_end(sentence)
                return known[sentence], {}
        clock = _Clock()
        tokens = self._bundle.tokenizer(sentence, length=self._bundle.manifest.word_len)
        clock.lap("tokenize")
        tensors = graphs.text_encoder({"tokens": tokens})
        clock.lap("text_encoder")
        features = TextFeatures(self._bundle.digest, sentence, tokens, _frozen(tensors), clock.laps)
        with self._engine.lock:
            known[sentence] = features
            if len(known) > _SENTENCES_KEPT:
                known.popitem(last=False)
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
            text.text,
            threshold=threshold,
            timings=clock.laps,
            presence=presence,
            min_presence=min_presence,
        )

    def _threshold(self, given: float | None) -> float:
        if given is None:
            return self._bundle.manifest.threshold
        if isinstance(given, bool) or not isinstance(given, (int, float, np.floating)) or not 0 <= given <= 1:
            raise OptionError(f"The threshold is {given!r}; expected a probability, a number in [0, 1].")
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


class _Clock:
    """Seconds between the ends of stages."""

    def __init__(self, before: Mapping[str, float] | None = None) -> None:
        self.laps = dict(before or {})
        self._last = perf_counter()

    def lap(self, stage: str) -> None:
        now = perf_counter()
        self.laps[stage] = now - self._last
        self._last = now


def _frozen(tensors: dict[str, Array]) -> dict[str, Array]:
    """The same, read-only: features are shared between calls."""
    for array in tensors.values():
        array.setflags(write=False)
    return tensors


def _in_order(calls: Iterable[Callable[[], T]], parallel: int) -> Iterator[T]:
    """What the calls return, in their order; `parallel` of them run at the same time, and one more waits."""
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


def _several(sentences: object) -> list[Any]:
    """The sentences as a list, one or several."""
    if isinstance(sentences, (str, TextFeatures)):
        return [sentences]
    if isinstance(sentences, (bytes, Mapping)) or not isinstance(sentences, Iterable):
        raise PromptError(f"The sentence is {type(sentences).__name__}; expected text, or a list of texts.")
    several = list(sentences)
    if not several:
        raise PromptError("No sentence was given; expected at least one.")
    return several


def _require_array(name: str, array: object, shape: tuple[int, ...], dtype: str) -> None:
    if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype != dtype:
        given = f"{array.dtype}{list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
        raise InputError(f"{name} is {given}; expected {dtype}{list(shape)}.")
