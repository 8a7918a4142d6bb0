"""ONNX Runtime: each graph as one ``.onnx`` file."""

from __future__ import annotations

import onnx

from runtimes import onnx_graph
from runtimes.targets.target import BackendTarget, Job, Lowered, register


@register
class OnnxTarget(BackendTarget):
    """ONNX files, which OpenVINO can read too."""

    name = "onnxruntime"
    distribution = "onnxruntime"
    default = True

    def lower(self, name: str, job: Job) -> Lowered:
        """Write ``onnx/NAME.onnx``."""
        return lower_to_onnx(job.trace(name, "onnxruntime"), job)


def lower_to_onnx(graph: onnx.ModelProto, job: Job) -> Lowered:
    """Write a graph to ``onnx/`` in the bundle; weights that float16 holds exactly are stored so, but in float32."""
    lowered = Lowered(job.folder / "onnx" / f"{graph.graph.name}.onnx", onnx_graph.spec(graph))
    if job.precision != "float32":
        stored = onnx.ModelProto()
        stored.CopyFrom(graph)
        onnx_graph.store_as_float16(stored)
        graph = stored
    onnx_graph.write(graph, lowered.path)
    return lowered
