"""Compile quantized graphs for Qualcomm's HTP; fails if any node would fall back to the CPU, and names it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
from onnx import helper

from cris_edge.backends import qnn
from cris_edge.errors import ExportError, first_line
from runtimes.socs import Soc

LISTED = 5  # nodes in a message


class Compiler:
    """The HTP's compiler, which comes with its emulator.

    Args:
        soc: The chip to compile for.

    Raises:
        RuntimeMissingError: The provider is not installed.
        ExportError: It has no compiler on this machine.
    """

    def __init__(self, soc: Soc) -> None:
        self.soc = soc
        self._ort, self._package = qnn.load()
        found = qnn.devices(self._ort)
        if not found:
            raise ExportError(
                "Qualcomm's provider finds no device to compile with; export on x86-64 (Linux or Windows)."
            )
        self._device = found.get(qnn.EMULATOR) or found[qnn.NPU]

    @property
    def version(self) -> str:
        """Version of the package that carries the compiler."""
        return str(self._package.__version__)

    def compile(self, source: Path, target: Path) -> None:
        """Write the binary of the quantized graph `source` as an ONNX file of one node, `target`.

        Raises:
            ExportError: The HTP does not support an operator, or the graph as a whole.
        """
        settings = self._settings(record=False)
        settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        settings.add_session_config_entry("ep.context_enable", "1")
        settings.add_session_config_entry("ep.context_embed_mode", "1")
        settings.add_session_config_entry("ep.context_file_path", str(target))
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._ort.InferenceSession(str(source), settings)
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            left = self.left(source)
            if left:
                raise ExportError(unsupported(source.stem, left)) from error
            raise ExportError(
                f"The HTP's compiler cannot compile {source.stem} for {self.soc.name}: {first_line(error)}."
            ) from error
        _copy_metadata(source, target, self.soc)

    def left(self, source: Path) -> list[str]:
        """Return operator and name of every node that would be left to the CPU."""
        try:
            session = self._ort.InferenceSession(str(source), self._settings(record=True))
        except Exception as error:  # as above
            raise ExportError(f"The HTP's compiler cannot partition {source.stem}: {first_line(error)}.") from error
        return list(qnn.left_to_cpu(session))

    def _settings(self, *, record: bool) -> Any:
        settings = self._ort.SessionOptions()
        settings.log_severity_level = 4
        settings.intra_op_num_threads = settings.inter_op_num_threads = 1
        settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1" if record else "0")
        provider = {**qnn.SETTINGS, **self.soc.settings, "backend_path": self._package.get_qnn_htp_path()}
        settings.add_provider_for_devices([self._device], provider)
        return settings


def unsupported(graph: str, left: list[str]) -> str:
    """Return the message about nodes that the HTP does not support."""
    more = f" and {len(left) - LISTED} more" if len(left) > LISTED else ""
    return (
        f"The HTP does not support {', '.join(left[:LISTED])}{more} of the graph {graph}, "
        "which would fall back to the CPU; use operators that the HTP has."
    )


def _copy_metadata(source: Path, target: Path, soc: Soc) -> None:
    """Record what the provider does not: the source's bits, and the chip."""
    model = onnx.load(target)
    given = {entry.key: entry.value for entry in onnx.load(source, load_external_data=False).metadata_props}
    helper.set_model_props(model, {**given, "soc": soc.name, "htp_arch": f"v{soc.arch}"})
    model.graph.name = source.stem
    target.write_bytes(model.SerializeToString())
