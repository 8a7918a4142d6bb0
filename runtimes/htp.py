"""Compiles quantized graphs for Qualcomm's HTP, all of a graph or none of it, and names what the HTP does not take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
from onnx import helper

from cris_edge.backends import qnn
from cris_edge.errors import ExportError
from runtimes.socs import Soc

LISTED = 5  # nodes in a message


class Compiler:
    """The HTP's compiler, which comes with its emulator.

    Args:
        soc: The chip to compile for.

    Raises:
        RuntimeMissingError: The provider is not installed.
        ExportError: It has no compiler here.
    """

    def __init__(self, soc: Soc) -> None:
        self.soc = soc
        self._ort, self._package = qnn.load()
        found = qnn.devices(self._ort)
        if not found:
            raise ExportError(
                "Qualcomm's provider finds no device to compile with here; export on x86-64 (Linux or Windows)."
            )
        self._device = found.get(qnn.EMULATOR) or found[qnn.NPU]

    @property
    def version(self) -> str:
        """Of the package that carries the compiler."""
        return str(self._package.__version__)

    def compile(self, source: Path, target: Path) -> None:
        """Write the binary of the quantized graph `source` as an ONNX file of one node, `target`.

        Raises:
            ExportError: The HTP does not take an operator, or the whole graph.
        """
        settings = self._settings(record=False)
        settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        settings.add_session_config_entry("ep.context_enable", "1")
        settings.add_session_config_entry("ep.context_embed_mode", "1")
        settings.add_session_config_entry("ep.context_file_path", str(target))
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._ort.InferenceSession(str(source), settings)
        except Exception as error:  # exceptions of ONNX Runtime have no base of their own
            left = self.left(source)
            if left:
                raise ExportError(refusal(source.stem, left)) from error
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            raise ExportError(
                f"The HTP's compiler cannot compile {source.stem} for {self.soc.name}: {reason}."
            ) from error
        _copy_metadata(source, target, self.soc)

    def left(self, source: Path) -> list[str]:
        """Operator and name of every node of a graph that would be left to the CPU."""
        try:
            session = self._ort.InferenceSession(str(source), self._settings(record=True))
        except Exception as error:  # the same
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            raise ExportError(f"The HTP's compiler cannot take {source.stem} apart: {reason}.") from error
        return list(qnn.left_to_cpu(session))

    def _settings(self, *, record: bool) -> Any:
        settings = self._ort.SessionOptions()
        settings.log_severity_level = 4
        settings.intra_op_num_threads = settings.inter_op_num_threads = 1
        settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1" if record else "0")
        given = {**qnn.SETTINGS, **self.soc.settings, "backend_path": self._package.get_qnn_htp_path()}
        settings.add_provider_for_devices([self._device], given)
        return settings


def refusal(graph: str, left: list[str]) -> str:
    """The sentence about the nodes that the HTP does not take."""
    more = f" and {len(left) - LISTED} more" if len(left) > LISTED else ""
    return (
        f"The HTP does not take {', '.join(left[:LISTED])}{more} of the graph {graph}; "
        "each would be left to the CPU: express it in operators that the HTP has."
    )


def _copy_metadata(source: Path, target: Path, soc: Soc) -> None:
    """Say in the compiled file what the provider does not: the bits of the source, and the chip."""
    model = onnx.load(target)
    given = {entry.key: entry.value for entry in onnx.load(source, load_external_data=False).metadata_props}
    helper.set_model_props(model, {**given, "soc": soc.name, "htp_arch": f"v{soc.arch}"})
    model.graph.name = source.stem
    target.write_bytes(model.SerializeToString())
