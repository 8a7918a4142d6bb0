"""OpenVINO: each graph in its own format, topology in ``.xml`` and weights in ``.bin``."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import click
import onnx

from cris_edge.backends import ov
from cris_edge.errors import ExportError, last_line
from runtimes import npu_rules, onnx_graph
from runtimes.targets.ort_onnx import lower_to_onnx
from runtimes.targets.target import BackendTarget, Job, Lowered, register


@register
class OpenVinoTarget(BackendTarget):
    """OpenVINO's IR, or with ``--shared-onnx`` the ONNX files of ONNX Runtime."""

    name = "openvino"
    distribution = "openvino"
    default = True
    options = (
        click.Option(["--shared-onnx"], is_flag=True, help="OpenVINO reads the files of ONNX Runtime: half the bytes."),
    )

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__(settings)
        self._shared = bool(settings.get("shared_onnx"))
        self.form = "onnxruntime" if self._shared else "openvino"

    def lower(self, name: str, job: Job) -> Lowered:
        """Write ``openvino/NAME.xml`` and ``.bin``, or the shared ``onnx/NAME.onnx``."""
        assert self.form is not None
        graph = job.trace(name, self.form)
        if self._shared:
            return lower_to_onnx(graph, job)
        lowered = Lowered(job.folder / "openvino" / f"{name}.xml", onnx_graph.spec(graph))
        if job.precision == "int8":  # what stays in float, where float16 holds it exactly
            graph = onnx.ModelProto.FromString(graph.SerializeToString())
            onnx_graph.store_as_float16(graph)
        write(graph, lowered.path, float16=job.precision == "float16")
        return lowered

    def record(self, job: Job) -> dict[str, Any]:
        """State whether OpenVINO's NPU plugin would take the graphs."""
        return npu_rules.examine({name: lowered.path for name, lowered in self.lowered.items()}, job.folder)


def write(model: onnx.ModelProto, path: Path, *, float16: bool = False) -> None:
    """Write `model` to `path` (``.xml``) and its weights beside it (``.bin``).

    `float16` stores the weights in half the bytes; OpenVINO computes with them as float32. OpenVINO's own default would
    round the weights of every model.

    Raises:
        ExportError: OpenVINO cannot read the graph.
        RuntimeMissingError: OpenVINO is not installed.
    """
    openvino = ov.load()
    name = model.graph.name
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        # Not openvino.convert_model: the same reader, but it reports its use over the network.
        lowered = ov.shared_core(openvino).read_model(BytesIO(model.SerializeToString()))
        lowered.set_friendly_name(name)
        openvino.save_model(lowered, path, compress_to_fp16=float16)
    except Exception as error:
        raise ExportError(f"OpenVINO could not convert {name}: {last_line(error)}.") from error
