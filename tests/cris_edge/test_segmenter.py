from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import pickle
import shutil
import sys
import threading
import warnings
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cris_edge import Segmenter
from cris_edge.backends import registry
from cris_edge.backends.base import BackendInfo, BackendOptions
from cris_edge.bundle import Bundle
from cris_edge.device.processor import usable_cores
from cris_edge.errors import (
    BundleError,
    ImageError,
    InputError,
    OptionError,
    PromptError,
    RuntimeFailure,
    RuntimeMissingError,
)
from cris_edge.image import preprocess
from cris_edge.metrics import iou
from cris_edge.result import Segmentation
from cris_edge.tokenizer import PromptWarning

HEIGHT, WIDTH = 96, 160


@pytest.fixture(scope="module")
def segmenter(tiny: Path, runtime: str) -> Iterator[Segmenter]:
    with Segmenter(tiny, runtime=runtime) as made:
        yield made


@pytest.fixture(scope="module")
def image() -> NDArray[np.uint8]:
    """Red on the left half, blue on the right."""
    from tests.cris_edge.tiny_bundle import picture

    return picture("red", "blue", HEIGHT, WIDTH)


def half(side: str) -> NDArray[np.bool_]:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[:, slice(None, WIDTH // 2) if side == "left" else slice(WIDTH // 2, None)] = True
    return mask


def test_the_prompt_selects_the_object(segmenter: Segmenter, image: NDArray[np.uint8]) -> None:
    red, blue = segmenter(image, "the red one"), segmenter(image, "something blue")
    assert isinstance(red, Segmentation)
    assert iou(red.mask, half("left")) > 0.85
    assert iou(blue.mask, half("right")) > 0.85
    assert red.score > 0.9
    assert red.prompt == "the red one"
    assert red.probability.shape == (HEIGHT, WIDTH)


def test_no_match_is_a_result(segmenter: Segmenter, image: NDArray[np.uint8]) -> None:
    result = segmenter(image, "green")
    assert result.empty
    assert result.score == 0.0
    assert result.box is None


def test_several_prompts_give_a_list_in_order(segmenter: Segmenter, image: NDArray[np.uint8]) -> None:
    results = segmenter(image, ["blue", "green", "red", "blue"])
    assert [result.prompt for result in results] == ["blue", "green", "red", "blue"]
    assert (results[0].mask == results[3].mask).all()
    assert iou(results[2].mask, half("left")) > 0.85
    assert segmenter(image, ("red",))[0].prompt == "red"


def test_features_give_the_same_result_as_the_image(segmenter: Segmenter, image: NDArray[np.uint8]) -> None:
    direct = segmenter(image, "red")
    scene, text = segmenter.encode_image(image), segmenter.encode_text("red")
    for result in (
        segmenter(scene, "red"),
        segmenter(scene, text),
        segmenter(image, text),
        segmenter(scene, [text])[0],
    ):
        assert (result.probability == direct.probability).all()
    assert (segmenter(scene, "red").image == image).all()
    with pytest.raises(ValueError, match="read-only"):
        next(iter(text.tensors.values()))[:] = 0  # they are shared
    kept = pickle.loads(pickle.dumps((scene, text)))  # an app may keep them
    assert (segmenter(*kept).mask == direct.mask).all()


def test_every_image_source_works(segmenter: Segmenter, image: NDArray[np.uint8], tmp_path: Path) -> None:
    import cv2

    path = tmp_path / "photo.png"
    cv2.imwrite(str(path), image[:, :, ::-1])
    expected = segmenter(image, "red").mask
    for source in (path, str(path), path.read_bytes()):
        assert (segmenter(source, "red").mask == expected).all()
    assert (segmenter(image[:, :, ::-1], "red", color="bgr").mask == expected).all()
    assert iou(segmenter(image[:, :, ::-1], "blue").mask, expected) > 0.95
    assert segmenter(image[:1, :1], "red").mask.shape == (1, 1)


def test_timings_are_those_of_the_call(tiny: Path, runtime: str, image: NDArray[np.uint8]) -> None:
    segmenter = Segmenter(tiny, runtime=runtime)
    every = ["load", "preprocess", "image_encoder", "tokenize", "text_encoder", "mask_decoder", "postprocess"]
    first, second = segmenter(image, ["red", "blue"])
    assert list(first.timings) == every
    assert list(second.timings) == every[3:]
    assert list(segmenter(image, "red").timings) == [*every[:3], *every[5:]]
    assert list(segmenter(segmenter.encode_image(image), "red").timings) == every[5:]
    assert all(0 <= seconds < 10 for seconds in first.timings.values())


def test_recent_prompts_are_cached(segmenter: Segmenter) -> None:
    first = segmenter.encode_text("red")
    assert segmenter.encode_text("red") is first
    for number in range(31):
        segmenter.encode_text(f"number {number}")
    assert segmenter.encode_text("red") is first
    for number in range(32):
        segmenter.encode_text(f"another {number}")
    assert segmenter.encode_text("red") is not first


def test_the_threshold_determines_the_area(segmenter: Segmenter, image: NDArray[np.uint8]) -> None:
    areas = [segmenter(image, "red", threshold=threshold).area for threshold in (0.0, 0.05, 0.35, 0.9, 1.0)]
    assert areas == sorted(areas, reverse=True)
    assert areas[0] > areas[2] > areas[4]
    assert segmenter(image, "red").threshold == 0.35
    assert segmenter(image, "red", threshold=np.float32(0.5)).threshold == 0.5


def test_former_keywords_still_work(segmenter: Segmenter, image: NDArray[np.uint8]) -> None:
    features = segmenter.encode_text(sentence="red")  # type: ignore[call-arg]
    assert features.text == features.prompt == "red"
    former: Any = {"sentences": "red"}
    assert segmenter(image, **former).prompt == segmenter.predict(image, **former).prompt == "red"
    (result,) = segmenter.stream([image], **former)
    assert result.prompt == "red"
    with pytest.raises(TypeError, match="multiple values for argument 'prompts'"):
        segmenter(image, "blue", **former)


@pytest.mark.parametrize("threshold", [-0.1, 1.01, float("nan"), "0.5", True, float("inf")])
def test_impossible_thresholds_are_refused(segmenter: Segmenter, image: NDArray[np.uint8], threshold: Any) -> None:
    with pytest.raises(OptionError, match=r"expected a number in \[0, 1\]"):
        segmenter(image, "red", threshold=threshold)


def test_bad_prompts_are_refused_before_the_image_is_read(segmenter: Segmenter) -> None:
    for sentences in ("", "  ", ["red", ""]):
        with pytest.raises(PromptError):
            segmenter("no such file", sentences)
    for sentences in ([], ()):
        with pytest.raises(PromptError, match="No prompt was given"):
            segmenter("no such file", sentences)
    for sentences in (3, None, b"red", {"red": 1}, [3], ["red", None]):
        with pytest.raises(PromptError, match="expected text"):
            segmenter("no such file", sentences)  # type: ignore[call-overload]
    with pytest.raises(ImageError):
        segmenter("no such file", "red")


def test_a_truncated_prompt_gives_a_warning(segmenter: Segmenter, image: NDArray[np.uint8]) -> None:
    with pytest.warns(PromptWarning, match="was truncated"):
        result = segmenter(image, "the red one " + "and so on " * 20)
    assert iou(result.mask, half("left")) > 0.85


def test_features_of_another_bundle_are_refused(
    segmenter: Segmenter, other: Path, runtime: str, image: NDArray[np.uint8]
) -> None:
    with Segmenter(other, runtime=runtime) as stranger:
        scene, text = stranger.encode_image(image), stranger.encode_text("red")
    with pytest.raises(InputError, match=r"image features are of another bundle .* encode again"):
        segmenter(scene, "red")
    with pytest.raises(InputError, match="text features are of another bundle"):
        segmenter(image, text)
    with pytest.raises(InputError, match="text features are of another bundle"):
        segmenter.stream([image], text)


def test_features_work_in_another_runtime(tiny: Path, image: NDArray[np.uint8]) -> None:
    for name in ("onnxruntime", "openvino"):
        pytest.importorskip(name)
    with Segmenter(tiny, runtime="onnxruntime") as one, Segmenter(tiny, runtime="openvino", precision="float32") as two:
        expected, found = one(image, "red"), two(one.encode_image(image), one.encode_text("red"))
    np.testing.assert_allclose(found.probability, expected.probability, atol=1e-5)


def test_logits_equal_the_reference(tiny: Path, runtime: str) -> None:
    with Segmenter(tiny, runtime=runtime, precision="float32") as segmenter:
        golden = segmenter.bundle.golden()
        for image, tokens, expected in zip(golden.images, golden.tokens, golden.logits, strict=True):
            found = segmenter.logits(preprocess(image, 128)[0], tokens[None])
            assert found.shape == (1, 1, 32, 32)
            np.testing.assert_allclose(found[0], expected, atol=1e-4)


def test_logits_refuse_arrays_of_other_shapes(segmenter: Segmenter) -> None:
    pixels, tokens = np.zeros((1, 3, 128, 128), np.float32), np.zeros((1, 17), np.int64)
    segmenter.logits(pixels[:, :, ::-1], tokens)  # of any strides
    with pytest.raises(InputError, match=r"pixels is float64\[1, 3, 128, 128\]; expected float32"):
        segmenter.logits(pixels.astype(np.float64), tokens)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"tokens is int64\[1, 16\]; expected int64\[1, 17\]"):
        segmenter.logits(pixels, tokens[:, 1:])
    with pytest.raises(InputError, match="tokens is list"):
        segmenter.logits(pixels, [[0] * 17])  # type: ignore[arg-type]


def test_info_describes_the_runtime_in_effect(tiny: Path, runtime: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "cris_edge"), Segmenter(tiny, runtime=runtime, threads=1) as segmenter:
        info = segmenter.info
    assert (info.runtime, info.device, info.threads, info.model) == (runtime, "CPU", 1, "tiny")
    assert info.path == tiny.resolve()
    assert info.reason == "it was requested"
    assert info.to_dict()["path"] == str(tiny.resolve())
    assert str(info) in caplog.text


def test_auto_states_its_choice(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("onnxruntime", "openvino"):
        pytest.importorskip(name)
    with Segmenter(tiny) as segmenter:
        assert segmenter.info.runtime == "openvino"
        assert "openvino" in segmenter.info.reason
    monkeypatch.setitem(sys.modules, "openvino", None)
    with Segmenter(tiny) as segmenter:
        assert segmenter.info.runtime == "onnxruntime"
        assert "openvino is not installed" in segmenter.info.reason
    with pytest.raises(RuntimeMissingError, match=r"cris-edge\[openvino\]"):
        Segmenter(tiny, runtime="openvino")


def test_unavailable_options_are_refused_immediately(tiny: Path, tmp_path: Path, runtime: str) -> None:
    with pytest.raises(BundleError, match="There is no bundle"):
        Segmenter(tmp_path / "nowhere")
    with pytest.raises(OptionError, match="no graphs for the runtime 'tensorflow'"):
        Segmenter(tiny, runtime="tensorflow")
    with pytest.raises(OptionError, match="has no device 'NPU9'"):
        Segmenter(tiny, runtime=runtime, device="NPU9")
    with pytest.raises(OptionError, match="precision 'int4' is unknown"):
        Segmenter(tiny, runtime=runtime, precision="int4")
    with pytest.raises(OptionError, match="threads=0"):
        Segmenter(tiny, runtime=runtime, threads=0)


def test_a_bundle_is_accepted(tiny: Path, runtime: str, image: NDArray[np.uint8]) -> None:
    bundle = Bundle.open(tiny)
    with Segmenter(bundle, runtime=runtime, cache_dir=None) as segmenter:
        assert segmenter.bundle is bundle
        assert segmenter.info.cache_dir is None
        assert not segmenter(image, "red").empty


def test_openvino_caches_compiled_graphs_in_the_folder(tiny: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    with Segmenter(tiny, runtime="openvino", cache_dir=tmp_path) as segmenter:
        assert segmenter.info.cache_dir == tmp_path.resolve() / "compiled" / segmenter.bundle.digest[:16]
    assert len(list(tmp_path.rglob("*.blob"))) == 3
    assert len(list((tmp_path / "verified").iterdir())) == 1


def test_without_a_cache_nothing_is_written(tiny: Path, runtime: str, tmp_path: Path, cache: Path) -> None:
    before = sorted(cache.rglob("*"))
    bundle = Path(shutil.copytree(tiny, tmp_path / "bundle"))
    with Segmenter(bundle, runtime=runtime, cache_dir=None) as segmenter:
        segmenter.encode_text("red")
    assert sorted(cache.rglob("*")) == before


def test_a_closed_segmenter_refuses_calls(tiny: Path, runtime: str, image: NDArray[np.uint8]) -> None:
    segmenter = Segmenter(tiny, runtime=runtime)
    scene, text = segmenter.encode_image(image), segmenter.encode_text("red")
    frames = segmenter.stream([image], "red")
    segmenter.close()
    segmenter.close()  # twice does no harm
    assert repr(segmenter) == "<Segmenter closed>"
    pixels, tokens = np.zeros((1, 3, 128, 128), np.float32), np.zeros((1, 17), np.int64)
    for call in (
        lambda: segmenter(image, "red"),
        lambda: segmenter(scene, text),
        lambda: segmenter.encode_image(image),
        lambda: segmenter.encode_text("red"),
        lambda: segmenter.logits(pixels, tokens),
        lambda: segmenter.stream([image], "red"),
        lambda: next(frames),
        lambda: segmenter.info,
    ):
        with pytest.raises(RuntimeFailure, match="was closed"):
            call()


def test_an_unreferenced_segmenter_is_freed(tiny: Path, runtime: str, image: NDArray[np.uint8]) -> None:
    segmenter = Segmenter(tiny, runtime=runtime)
    segmenter(image, "red")
    gone = weakref.ref(segmenter)
    del segmenter
    gc.collect()
    assert gone() is None


def test_several_threads_share_one(segmenter: Segmenter, image: NDArray[np.uint8]) -> None:
    expected = {sentence: segmenter(image, sentence).probability for sentence in ("red", "blue", "green")}
    failures: list[object] = []
    barrier = threading.Barrier(6)

    def work(offset: int) -> None:
        try:
            barrier.wait(10)
            for turn in range(15):
                sentence = ("red", "blue", "green")[(offset + turn) % 3]
                if not np.array_equal(segmenter(image, sentence).probability, expected[sentence]):
                    failures.append(sentence)
                segmenter.encode_text(f"{sentence} {turn} {offset}")  # turns the memory of sentences over meanwhile
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(offset,)) for offset in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert not failures


def test_closing_during_calls_is_safe(tiny: Path, runtime: str, image: NDArray[np.uint8]) -> None:
    segmenter = Segmenter(tiny, runtime=runtime)
    segmenter(image, "red")
    outcomes: list[object] = []
    started = threading.Event()

    def work() -> None:
        try:
            while True:
                segmenter(image, "red")
                started.set()
        except Exception as error:
            outcomes.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert started.wait(30)
    segmenter.close()
    for thread in threads:
        thread.join(60)
    assert [type(outcome) for outcome in outcomes] == [RuntimeFailure] * 3


@pytest.mark.parametrize("hint", ["latency", "throughput"])
def test_a_stream_keeps_order_and_bounds_memory(tiny: Path, runtime: str, hint: str) -> None:
    from tests.cris_edge.tiny_bundle import picture

    read = 0

    def frames() -> Iterator[NDArray[np.uint8]]:
        nonlocal read
        buffer = np.empty((HEIGHT, WIDTH, 3), np.uint8)
        while True:  # without end, as a camera
            buffer[:] = picture(("red", "grey", "blue")[read % 3], "green", HEIGHT, WIDTH)
            read += 1
            yield buffer

    with Segmenter(tiny, runtime=runtime, hint=hint) as segmenter:
        stream = segmenter.stream(frames(), ["red", "blue"])
        assert read == 0
        for number in range(12):
            red, blue = next(stream)
            assert (red.empty, blue.empty) == (number % 3 != 0, number % 3 != 2), number
            assert "text_encoder" not in red.timings
            assert read <= number + 1 + usable_cores() + 1
        stream.close()  # type: ignore[attr-defined]


def test_a_stream_with_one_prompt_gives_one_result_per_frame(segmenter: Segmenter, image: NDArray[np.uint8]) -> None:
    results = list(segmenter.stream([image, image], "red", threshold=0.5))
    assert [type(result) for result in results] == [Segmentation, Segmentation]
    assert results[0].threshold == 0.5
    assert list(segmenter.stream([], "red")) == []


def test_a_stream_reports_errors_immediately_or_in_order(segmenter: Segmenter, image: NDArray[np.uint8]) -> None:
    for frames in ("clip.mp4", Path("clip.mp4"), b"clip", 3, None):
        with pytest.raises(InputError, match="expected an iterable of images"):
            segmenter.stream(frames, "red")  # type: ignore[arg-type]
    with pytest.raises(PromptError):
        segmenter.stream([image], "")
    with pytest.raises(OptionError):
        segmenter.stream([image], "red", threshold=2)
    stream = segmenter.stream([image, None, image], "red")
    assert not next(stream).empty
    with pytest.raises(ImageError):
        next(stream)


def test_a_broken_frame_ends_a_parallel_stream_cleanly(tiny: Path, runtime: str, image: NDArray[np.uint8]) -> None:
    with Segmenter(tiny, runtime=runtime, hint="throughput") as segmenter:
        with pytest.raises(ImageError):
            list(segmenter.stream([image, image, "no such file", image, image], "red"))
        assert not segmenter(image, "red").empty
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("cris-edge")]


def test_a_given_backend_is_used_and_not_closed(tiny: Path, runtime: str, image: NDArray[np.uint8]) -> None:
    backend = registry.create(runtime, BackendOptions(threads=1))
    with Segmenter(tiny, runtime=backend) as segmenter:
        assert segmenter.info.threads == 1
        assert segmenter.info.reason == "its backend was given"
    with Segmenter(tiny, runtime=backend) as segmenter:
        assert not segmenter(image, "red").empty


class Constant:
    """A backend without any runtime: every output is one number."""

    name = "onnxruntime"
    info = BackendInfo("constant", "1", "none", "float32")

    def __init__(self, value: float) -> None:
        self.value = value

    def compile(self, path: Path, spec: Any) -> Any:
        return lambda inputs: {tensor.name: np.full(tensor.shape, self.value, np.float32) for tensor in spec.outputs}

    def close(self) -> None:
        pass


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), -1e30])
def test_infinite_and_nan_logits_find_nothing(tiny: Path, image: NDArray[np.uint8], value: float) -> None:
    result = Segmenter(tiny, runtime=Constant(value))(image, "red")
    assert result.empty
    assert result.score == 0.0


def _predict_elsewhere(segmenter: Segmenter, image: NDArray[np.uint8]) -> Segmentation:
    return segmenter(image, "red")


def test_a_segmenter_is_pickled_by_its_options(tiny: Path, runtime: str, image: NDArray[np.uint8]) -> None:
    with Segmenter(tiny, runtime=runtime, threads=1, hint="throughput", precision="float32") as segmenter:
        with pickle.loads(pickle.dumps(segmenter)) as other:
            assert other.info == segmenter.info
            assert (other(image, "red").mask == segmenter(image, "red").mask).all()
        context = multiprocessing.get_context("spawn")
        with context.Pool(1) as pool:
            found = pool.apply(_predict_elsewhere, (segmenter, image))
        assert (found.mask == segmenter(image, "red").mask).all()


def test_what_cannot_be_pickled_is_named(tiny: Path, other: Path, runtime: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="was given a backend, which cannot be pickled"):
        pickle.dumps(Segmenter(tiny, runtime=registry.create(runtime)))
    moving = Path(shutil.copytree(tiny, tmp_path / "moving"))
    segmenter = Segmenter(moving, runtime=runtime)
    kept = pickle.dumps(segmenter)
    segmenter.close()
    with pytest.raises(RuntimeFailure, match="closed, so it cannot be pickled"):
        pickle.dumps(segmenter)
    shutil.rmtree(moving)
    shutil.copytree(other, moving)
    with pytest.raises(BundleError, match="another bundle than the one that was pickled"):
        pickle.loads(kept)


def test_strict_compiles_the_bytes_that_were_hashed(
    tiny: Path, runtime: str, image: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Segmenter(tiny, runtime=runtime, precision="float32") as usual:
        expected = usual(image, "red").mask
    copied = Path(shutil.copytree(tiny, tmp_path / "bundle"))
    with Segmenter(copied, runtime=runtime, precision="float32", strict=True, cache_dir=tmp_path / "cache") as strict:
        assert (strict(image, "red").mask == expected).all()
        assert not list((tmp_path / "cache").rglob("*.blob"))
    with pytest.raises(OptionError, match="opens graphs itself"):
        Segmenter(copied, runtime=Constant(0.0), strict=True)
    original, swapped = Path.read_bytes, copied / "onnx" / "mask_decoder.onnx"

    def swap(path: Path) -> bytes:  # after all was verified
        return original(path)[:-1] + b"x" if path == swapped else original(path)

    monkeypatch.setattr(Path, "read_bytes", swap)
    with pytest.raises(BundleError, match=r"mask_decoder\.onnx was modified"):
        Segmenter(copied, runtime=runtime, strict=True)


@pytest.mark.parametrize("when", ["before", "during"])
def test_a_graph_swapped_after_verification_is_noticed(tiny: Path, other: Path, tmp_path: Path, when: str) -> None:
    copied = Path(shutil.copytree(tiny, tmp_path / "bundle"))
    graph = "onnx/mask_decoder.onnx"

    def swap() -> None:
        shutil.copyfile(other / graph, tmp_path / "new")
        os.replace(tmp_path / "new", copied / graph)

    class Swapping(Constant):
        def compile(self, path: Path, spec: Any) -> Any:
            if when == "during" and path.stem == "mask_decoder":
                swap()
            return super().compile(path, spec)

    bundle = Bundle.open(copied)
    if when == "before":
        swap()
    with pytest.raises(BundleError, match=r"mask_decoder\.onnx was modified"):
        Segmenter(bundle, runtime=Swapping(0.0))


def test_a_touched_graph_is_hashed_again(tiny: Path, runtime: str, tmp_path: Path) -> None:
    bundle = Bundle.open(shutil.copytree(tiny, tmp_path / "bundle"))
    os.utime(bundle.path / "onnx" / "mask_decoder.onnx", (1, 1))
    Segmenter(bundle, runtime=runtime).close()


def test_little_memory_gives_a_warning(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("cris_edge.backends.graphs.memory_bytes", lambda: 64 << 20)
    Segmenter(tiny, runtime=Constant(0.0))
    assert "may use 67 MB of memory, and the model may need about" in caplog.text


def _in_a_fork(function: Any) -> Any:
    """The value that a function has in a forked child, which has to end by itself within half a minute."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)

    def child() -> None:
        try:
            theirs.send(function())
        except Exception as error:
            theirs.send(error)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 advises against what is tested here
        process = context.Process(target=child)
        process.start()
    try:
        assert ours.poll(30), "the child hangs"
        value = ours.recv()
        process.join(30)
        assert process.exitcode == 0, "the child does not end"
    finally:
        process.kill()
    return value


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this platform")


@needs_fork
@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_a_fork_finds_no_worker_of_opencv(tiny: Path, runtime: str) -> None:
    """A worker that holds a lock at that moment would make the child wait for it forever."""
    import cv2

    from cris_edge.backends import graphs

    def workers() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    before = cv2.getNumThreads()
    large = np.zeros((2000, 2000, 3), np.uint8)
    with Segmenter(tiny, runtime=runtime):
        try:
            cv2.setNumThreads(1)
            none = workers()
            cv2.setNumThreads(4)
            cv2.warpAffine(large, np.eye(2, 3), (2000, 2000), flags=cv2.INTER_CUBIC)
            if workers() == none:
                pytest.skip("this OpenCV has no worker threads")
            graphs._before_fork()
            assert workers() == none
            graphs._restore_opencv()
            assert cv2.getNumThreads() == 4
            assert _in_a_fork(cv2.getNumThreads) == cv2.getNumThreads() == 4
        finally:
            cv2.setNumThreads(before)


@needs_fork
@pytest.mark.parametrize("hint", ["latency", "throughput"])
def test_a_forked_child_may_continue(tiny: Path, runtime: str, hint: str, image: NDArray[np.uint8]) -> None:
    with Segmenter(tiny, runtime=runtime, hint=hint) as segmenter:
        scene, expected = segmenter.encode_image(image), segmenter(image, ["red", "blue"])

        def work() -> list[Any]:
            results = segmenter(image, ["red", "blue"])
            streamed = [result.mask for result in segmenter.stream([image] * 3, "red")]
            return [result.mask for result in results] + [segmenter(scene, "red").mask, *streamed]

        found = _in_a_fork(work)
        assert not isinstance(found, Exception), found
        for mask, sentence in zip(found, [0, 1, 0, 0, 0, 0], strict=True):
            assert (mask == expected[sentence].mask).all()
        assert (segmenter(image, "red").mask == expected[0].mask).all()


@needs_fork
def test_a_forked_child_leaves_the_garbage_of_its_parent_alone(tiny: Path, image: NDArray[np.uint8]) -> None:
    """Freeing a session of ONNX Runtime waits for its threads, which the child does not have."""
    pytest.importorskip("onnxruntime")
    gc.disable()
    try:
        segmenter = Segmenter(tiny, runtime="onnxruntime", threads=2)
        segmenter(image, "red")
        cycle: list[Any] = [segmenter._engine.graphs]
        cycle.append(cycle)
        segmenter.close()
        del cycle
        assert _in_a_fork(lambda: gc.collect() >= 0)
    finally:
        gc.enable()
        gc.collect()


@needs_fork
def test_a_forked_child_may_close_and_create_its_own(tiny: Path, runtime: str, image: NDArray[np.uint8]) -> None:
    with Segmenter(tiny, runtime=runtime) as segmenter:
        expected = segmenter(image, "red").mask

        def work() -> Any:
            segmenter.close()
            with Segmenter(tiny, runtime=runtime) as own:
                return own(image, "red").mask

        assert (_in_a_fork(work) == expected).all()


@needs_fork
def test_a_fork_while_threads_hold_the_lock(tiny: Path, runtime: str, image: NDArray[np.uint8]) -> None:
    with Segmenter(tiny, runtime=runtime) as segmenter:
        held, release = threading.Event(), threading.Event()

        def hold() -> None:
            with segmenter._engine.lock:
                held.set()
                release.wait(60)

        thread = threading.Thread(target=hold)
        thread.start()
        try:
            assert held.wait(10)
            assert _in_a_fork(lambda: segmenter(image, "red").empty) is False
        finally:
            release.set()
            thread.join()


@needs_fork
def test_a_given_backend_does_not_survive_a_fork(tiny: Path, runtime: str, image: NDArray[np.uint8]) -> None:
    segmenter = Segmenter(tiny, runtime=registry.create(runtime))
    error = _in_a_fork(lambda: segmenter(image, "red"))
    assert isinstance(error, RuntimeFailure)
    assert "before the process forked" in str(error)
    assert not segmenter(image, "red").empty


@needs_fork
def test_a_forked_interpreter_exits(tiny: Path, runtime: str, tmp_path: Path) -> None:
    """A child of os.fork, unlike one of multiprocessing, frees everything at its end: nothing there may wait."""
    import subprocess

    code = (
        "import os, sys\nimport numpy as np\nfrom cris_edge import Segmenter\n"
        "image = np.zeros((9, 9, 3), np.uint8)\n"
        "segmenter = Segmenter(sys.argv[1], runtime=sys.argv[2])\nsegmenter(image, 'red')\n"
        "child = os.fork()\n"
        "if child == 0:\n    assert segmenter(image, 'red').empty\n    sys.exit(7)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7\n"
        "assert segmenter(image, 'red').empty\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tiny), runtime], env=environment, start_new_session=True
    )
    try:
        assert process.wait(60) == 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, 9)
            process.wait()
