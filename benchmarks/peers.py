"""Peers: the same checkpoint as others would run it, each in a process of its own, measured like an SDK worker.

Every peer does the same job: an image and a prompt in, a mask on the image out. Pre- and postprocessing are the SDK's
own code, so that ratios compare networks and not the speed of resizing an image.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from cris_edge.benchmark.worker import SegmenterSubject, numbered, peak_memory
from cris_edge.image import MEAN, STD, THRESHOLD, load_image, postprocess, preprocess
from cris_edge.result import Segmentation
from cris_edge.tokenizer import Tokenizer

Array = np.ndarray[Any, np.dtype[Any]]
Network = Callable[[Array, Array], Array]


class Peer:
    """A network in one piece: only the preprocessed image is reused from one prompt to the next.

    Args:
        network: (1, 3, S, S) and (1, L) -> (1, 1, S/4, S/4).
        input_size: S, pixels.
        word_len: L, tokens.
        image: Path of the image.
        prompt: Beginning of every prompt.
        info: Runtime, version, device, precision and threads that really run.
    """

    def __init__(
        self, network: Network, input_size: int, word_len: int, image: str, prompt: str, info: dict[str, Any]
    ) -> None:
        self._network, self._input_size, self._word_len, self.info = network, input_size, word_len, info
        self._image, self._prompt, self._prompts = load_image(image), prompt, numbered(prompt)
        self._tokenizer = Tokenizer()

    def measure(self, count: int) -> list[dict[str, float]]:
        """Seconds by stage of `count` runs, as `SegmenterSubject.measure`, after one that does not count."""
        samples = []
        for number in range(count + 1):
            prompt = next(self._prompts)
            laps = [perf_counter()]
            pixels, letterbox = preprocess(self._image, self._input_size, mean=MEAN, std=STD)
            laps.append(perf_counter())
            tokens = self._tokenizer(prompt, length=self._word_len)
            laps.append(perf_counter())
            logits = self._network(pixels, tokens)
            laps.append(perf_counter())
            probability = postprocess(logits, letterbox)
            laps.append(perf_counter())
            Segmentation(probability, self._image, prompt, threshold=THRESHOLD)
            whole = perf_counter() - laps[0]
            steps = [after - before for before, after in pairwise(laps)]
            if number:
                stages = dict(zip(("preprocess", "tokenize", "network", "postprocess"), steps, strict=True))
                samples.append({"whole": whole, "next": whole - stages["preprocess"], **stages})
        return samples

    def logits(self) -> list[float]:
        """Logits of the image and the prompt that all peers share."""
        pixels, _ = preprocess(self._image, self._input_size, mean=MEAN, std=STD)
        return _flat(self._network(pixels, self._tokenizer(self._prompt, length=self._word_len)))

    def memory(self) -> dict[str, int | None]:
        """Peak of the process and its resident memory now, bytes."""
        return {"peak": peak_memory(), "now": resident_memory()}


class BundlePeer(SegmenterSubject):
    """A bundle through the SDK, with the methods of `Peer`."""

    def __init__(self, model: str, options: dict[str, Any], image: str, prompt: str) -> None:
        super().__init__(model, options, image, prompt)
        self._prompt = prompt

    def logits(self) -> list[float]:
        """Logits of the image and the prompt that all peers share."""
        manifest = self._segmenter.bundle.manifest
        pixels, _ = preprocess(self._image, manifest.input_size, mean=manifest.mean, std=manifest.std)
        tokens = self._segmenter.bundle.tokenizer(self._prompt, length=manifest.word_len)
        return _flat(self._segmenter.logits(pixels, tokens))

    def memory(self) -> dict[str, int | None]:  # type: ignore[override]
        """Peak of the process and its resident memory now, bytes."""
        return {"peak": peak_memory(), "now": resident_memory()}


def pytorch(
    checkpoint: str, image: str, prompt: str, threads: int, *, form: str = "contiguous", precision: str = "float32"
) -> Peer:
    """PyTorch under `inference_mode`.

    Args:
        checkpoint: A CRIS checkpoint that records its input size.
        image: Path of the image.
        prompt: Beginning of every prompt.
        threads: CPU threads.
        form: "contiguous", "channels last", or "compiled".
        precision: "float32", or "bfloat16" through autocast.
    """
    import torch

    from training.checkpoint import load_model

    torch.set_num_threads(threads)
    model = load_model(checkpoint)
    architecture = model.architecture
    layout = torch.channels_last if form == "channels last" else torch.contiguous_format
    model = model.to(memory_format=layout)  # type: ignore[call-overload]
    run: Any = torch.compile(model) if form == "compiled" else model
    arithmetic: Any = nullcontext() if precision == "float32" else torch.autocast("cpu", getattr(torch, precision))

    def network(pixels: Array, tokens: Array) -> Array:
        with torch.inference_mode(), arithmetic:
            given = torch.from_numpy(pixels).to(memory_format=layout)
            logits = run(given, torch.from_numpy(tokens))
            return np.asarray(logits.float().numpy())

    info = {
        "runtime": f"PyTorch {form}" if form == "compiled" else f"PyTorch eager, {form}",
        "version": torch.__version__,
        "device": "CPU",
        "precision": precision,
        "threads": torch.get_num_threads(),
    }
    return Peer(network, architecture.input_size, architecture.word_len, image, prompt, info)


def plain(
    graph: str, runtime: str, precision: str, image: str, prompt: str, threads: int, input_size: int, word_len: int
) -> Peer:
    """A plain export, the whole network as one graph, in a runtime as the SDK configures it."""
    # Neither torch nor onnx is imported in this process, so that its memory is the runtime's.
    from cris_edge.backends import registry
    from cris_edge.backends.base import BackendOptions
    from cris_edge.bundle.manifest import GraphSpec, TensorSpec

    inputs = (
        TensorSpec("image", (1, 3, input_size, input_size), "float32"),
        TensorSpec("tokens", (1, word_len), "int64"),
    )
    outputs = (TensorSpec("logits", (1, 1, input_size // 4, input_size // 4), "float32"),)
    backend = registry.create(runtime, BackendOptions(precision=precision, threads=threads))
    compiled = backend.compile(Path(graph), GraphSpec(inputs, outputs))

    def network(pixels: Array, tokens: Array) -> Array:
        return compiled({"image": pixels, "tokens": tokens})["logits"]

    found = backend.info
    info = {"runtime": f"{runtime}, plain export"}
    info |= {name: getattr(found, name) for name in ("version", "device", "precision", "threads")}
    return Peer(network, input_size, word_len, image, prompt, info)


@dataclass
class Exporter:
    """Writes the plain graphs, in a process of its own: the exporter's memory is freed with it."""

    checkpoint: str

    @property
    def info(self) -> dict[str, Any]:
        """Nothing, which every worker's subject must state."""
        return {}

    def export(self, path: str, correlation: str) -> dict[str, int]:
        """Write the network as it is trained; returns its multiply-accumulates, input size and token length.

        Args:
            path: ONNX file.
            correlation: How the projector's last convolution, whose kernel comes from the prompt, is written:
                "convolution", or "product", the same sum as a matrix product and nine shifts. OpenVINO refuses kernels
                that are not constant.
        """
        import torch

        from runtimes import onnx_graph
        from runtimes.cost import multiply_accumulates
        from training.checkpoint import load_model

        model = load_model(self.checkpoint)
        size, length = model.architecture.input_size, model.architecture.word_len

        class Product(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.model = model

            def forward(self, image: Any, tokens: Any) -> Any:
                return _product(self.model.proj, *self.model.decode(image, tokens))

        module = Product().eval() if correlation == "product" and model.architecture.contrastive else model
        inputs = {"image": torch.zeros(1, 3, size, size), "tokens": torch.zeros(1, length, dtype=torch.int64)}
        inputs["tokens"][0, 0] = 1
        graph = onnx_graph.trace("plain", module, inputs, ["logits"])
        onnx_graph.write(graph, Path(path))
        return {"macs": multiply_accumulates(graph), "input_size": size, "word_len": length}


def _product(projector: Any, decoded: Any, text: Any) -> Any:
    """The projector as it is written, its last convolution as a matrix product and nine shifted additions."""
    import torch
    from torch.nn import functional as F

    pixels = projector.vis(decoded)  # (N, C/2, h, w)
    count, half, height, width = pixels.shape
    projected = projector.txt(text)
    kernel, logits = projected[:, :-1].reshape(count, half, 9), projected[:, -1][:, None, None]
    taps = torch.bmm(pixels.permute(0, 2, 3, 1).reshape(count, height * width, half), kernel)
    taps = F.pad(taps.reshape(count, height, width, 9), (0, 0, 1, 1, 1, 1))
    for tap in range(9):
        row, column = divmod(tap, 3)
        logits = logits + taps[:, row : row + height, column : column + width, tap]
    return logits[:, None]


def resident_memory() -> int | None:
    """Resident memory of this process, bytes; None where there is no ``/proc``."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:")), None)


def _flat(logits: Array) -> list[float]:
    return [float(value) for value in logits.ravel()]
