"""An ONNX graph becomes OpenVINO's own format: topology in ``.xml``, weights in ``.bin``."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import onnx

from cris_edge.backends import ov
from cris_edge.errors import ExportError


def write(model: onnx.ModelProto, path: Path, *, float16: bool = False) -> None:
    """Write `model` to `path` (``.xml``) and, beside it, its weights (``.bin``).

    `float16` stores the weights in half the bytes; OpenVINO computes from them as from float32. It is off unless
    asked for: OpenVINO's own default would round a model without being told to.

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
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1].rstrip(".")
        raise ExportError(f"OpenVINO could not convert {name}: {reason}.") from error
