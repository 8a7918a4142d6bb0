"""Qualcomm's HTP: graphs in integers throughout, compiled for one chip.

The bundle receives ``qnn/NAME.onnx``, which any Qualcomm NPU can compile for itself, and ``qnn/CHIP/NAME.onnx``,
compiled for one chip. The provider's emulator runs the latter, so what is shipped is what is checked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import click
import numpy as np
from onnx import helper

from cris_edge.backends import qnn, registry
from cris_edge.backends.base import BackendOptions
from cris_edge.bundle.manifest import GRAPHS
from cris_edge.errors import ExportError, OptionError
from cris_edge.image import THRESHOLD
from cris_edge.metrics import logits_agreement
from runtimes import onnx_graph, socs
from runtimes.htp_calibration import OnCpu, Pair, calibration_pairs, choose_bits, in_float
from runtimes.htp_compiler import Compiler
from runtimes.network import Array, Network, Tensors, of_modules
from runtimes.parity import CHAIN, largest_difference
from runtimes.probes import Probes
from runtimes.targets.target import Job, Lowered, Target, register

BUDGET = 120.0  # seconds of emulation after the first pair; a large network takes minutes for one
SLACK = 4.0  # times what integers cost on the CPU: the HTP rounds elsewhere, and an early difference grows

# Where the steps around the graphs are computed; the same for every bundle.
SPLIT = {
    "npu": list(GRAPHS),
    "cpu": ["letterbox", "tokenizer", "sigmoid and resizing of the mask"],
}


@register
class HtpTarget(Target):
    """Binaries for the chip that ``--soc`` names.

    Float and quantized checkpoints are both taken; fake quantizers are disabled and ranges calibrated again.
    """

    name = qnn.NAME
    distribution = "onnxruntime-qnn"
    options = (click.Option(["--soc"], metavar="NAME", help="Chip to compile for (runtime qnn): its part number."),)

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__(settings)
        self.form = None
        if settings.get("soc") is None:
            raise OptionError(
                f"The runtime {self.name} is compiled for one chip; name it with --soc: {', '.join(socs.SOCS)}."
            )
        self._soc = socs.find(settings["soc"])
        self._chosen: dict[str, str] = {}
        self._pairs: list[Pair] = []
        self._float_logits: list[Array] = []

    def require(self) -> None:
        """Load the compiler; raises `RuntimeMissingError` without the provider, `ExportError` without a compiler."""
        self._compiler = Compiler(self._soc)

    def stored(self, precision: str) -> str:
        """Weights are int8, whatever the other runtimes store."""
        return "int8"

    def prepare(self, job: Job) -> None:
        """Compute calibration pairs in float32."""
        job.detail(f"calibrate {self.name}")
        self._network, golden = of_modules(job.model.modules), job.probes.golden()
        with in_float(job.model.modules):
            self._pairs = calibration_pairs(self._network, job.source, job.model.architecture)
            self._float_logits = [_run(self._network, golden, pair)[-1] for pair in golden.pairs]

    def lower(self, name: str, job: Job) -> Lowered:
        """Write ``qnn/NAME.onnx`` in integers and ``qnn/CHIP/NAME.onnx`` compiled."""
        module = job.model.modules[GRAPHS.index(name)]
        path = job.folder / self.name / f"{name}.onnx"
        with in_float(job.model.modules):
            job.detail(f"quantize {name}")
            graph = onnx_graph.trace(name, module, job.examples[name], module.output_names)
            spec = onnx_graph.spec(graph)
            self._chosen[name], quantized = choose_bits(name, graph, self._network, self._pairs, THRESHOLD)
        helper.set_model_props(quantized, {qnn.ACTIVATIONS: self._chosen[name]})
        onnx_graph.write(quantized, path)
        job.detail(f"compile {name}")
        compiled = path.parent / self._soc.name / path.name
        self._compiler.compile(path, compiled)
        return Lowered(compiled, spec)

    @contextmanager
    def running(self, job: Job, precision: str | None) -> Iterator[tuple[Network, str]]:
        """Simulate the integers on the CPU; the emulator would take seconds for each pair."""
        yield self._simulated(job), f"{self._precision}, simulated on the CPU"

    def golden_logits(self, job: Job) -> Array:
        """Return what the graphs in integers give on the CPU."""
        golden, network = job.probes.golden(), self._simulated(job)
        return np.concatenate([_run(network, golden, pair)[-1] for pair in golden.pairs])

    def check(self, job: Job) -> list[dict[str, Any]]:
        """Run the golden pairs through the compiled graphs, and compare them with the same integers on the CPU.

        Two machines that round integers at different places differ by single steps, and later by more: the measure is
        what quantization itself costs, as in `runtimes.quantized`.
        """
        job.detail(f"emulate {self.name}")
        found = qnn.devices(qnn.load()[0])
        device = qnn.EMULATOR if qnn.EMULATOR in found else qnn.NPU
        backend = registry.create(self.name, BackendOptions(device=device))
        compiled = Network({name: backend.compile(*lowered) for name, lowered in self.lowered.items()})
        try:
            rows, pairs = _compare(compiled, self._simulated(job), job.probes.golden(), self._float_logits)
        finally:
            compiled.close()
            backend.close()
        chain = rows[CHAIN]
        if not chain["max_abs_diff"] <= chain["tolerance"]:
            raise ExportError(
                f"The {device} does not compute what the quantized graphs give on the CPU: logits differ by "
                f"{chain['max_abs_diff']:.3g}; {chain['tolerance']:.3g} is allowed."
            )
        common = {"runtime": self.name, "device": device, "precision": self._precision, "pairs": pairs}
        return [{**common, **row} for row in rows.values()]

    def record(self, job: Job) -> dict[str, Any]:
        """State the chip, the compiler, the bits and the files that the binaries were made from."""
        return {
            "soc": self._soc.name,
            "htp_arch": f"v{self._soc.arch}",
            "compiler": f"onnxruntime-qnn {self._compiler.version}",
            "weights": "int8",
            "activations": self._chosen,
            "sources": {name: f"{self.name}/{name}.onnx" for name in GRAPHS},
            "split": SPLIT,
        }

    @property
    def _precision(self) -> str:
        return "int8+int16" if any("int16" in bits for bits in self._chosen.values()) else "int8"

    def _simulated(self, job: Job) -> Network:
        return Network({name: OnCpu(job.folder / self.name / f"{name}.onnx") for name in GRAPHS})


def _run(network: Network, probes: Probes, pair: tuple[int, int]) -> tuple[Tensors, Tensors, Array]:
    """Return image features, text features and logits of a pair."""
    image, text = network.encode_image(probes.images[pair[0]][1]), network.encode_text(probes.prompts[pair[1]][1])
    return image, text, network.decode(image, text)


def _compare(
    compiled: Network, simulated: Network, golden: Probes, float_logits: Sequence[Array]
) -> tuple[dict[str, dict[str, Any]], int]:
    """Return the parity entry of each graph, and how many pairs the time budget allowed."""
    worst: dict[str, dict[str, Any]] = {}
    began, pairs = perf_counter(), 0
    for pair, exact in zip(golden.pairs, float_logits, strict=True):
        if pairs and perf_counter() - began > BUDGET:
            break
        theirs = _run(simulated, golden, pair)
        ours = _run(compiled, golden, pair)
        pairs += 1
        for graph, mine, reference in zip(GRAPHS, ours[:2], theirs[:2], strict=False):
            for tensor, values in reference.items():
                _keep_worst(worst, graph, tensor, mine[tensor], values)
        if perf_counter() - began <= BUDGET:
            fed = compiled.decode(*theirs[:2])  # without the encoders' differences
            _keep_worst(worst, "mask_decoder", "logits", fed, theirs[2])
        row = _keep_worst(worst, CHAIN, "logits", ours[2], theirs[2])
        cost = max(largest_difference(theirs[2], exact), float(np.abs(exact).max()) / 255)
        row["tolerance"] = max(row.get("tolerance", 0.0), SLACK * cost)
        row["mask_iou_float32"] = min(logits_agreement(ours[2], exact, THRESHOLD), row.get("mask_iou_float32", 1.0))
        level = np.log(THRESHOLD / (1 - THRESHOLD))
        row["foreground"] = max(row.get("foreground", 0.0), float((exact > level).mean()))
    return worst, pairs


def _keep_worst(
    worst: dict[str, dict[str, Any]], graph: str, tensor: str, ours: Array, theirs: Array
) -> dict[str, Any]:
    """Update and return a graph's entry, which is about the tensor that differs most relative to its values."""
    difference = largest_difference(ours, theirs)
    relative = difference / (float(np.abs(theirs).max()) or 1.0)
    row = worst.setdefault(graph, {"graph": graph, "relative_diff": -1.0})
    if not relative <= row["relative_diff"]:
        row |= {"tensor": tensor, "max_abs_diff": difference, "relative_diff": relative}
    if tensor == "logits":
        row["mask_iou"] = min(logits_agreement(ours, theirs, THRESHOLD), row.get("mask_iou", 1.0))
    return row
