"""Qualcomm chips that a context binary can be compiled for.

ONNX Runtime's provider accepts any name and compiles for its default if it does not know it, without an error, so names
are checked against this list.

Numbers and architectures are those that Qualcomm states in ExecuTorch (pytorch/executorch,
``backends/qualcomm/serialization/qc_schema.py``); SC8380XP, the one laptop chip, is in the tables of LiteRT
(architecture) and of Olive (``dsp_arch:v73;soc_model:60``). Marketing names are in the comments.
"""

from __future__ import annotations

from dataclasses import dataclass

from cris_edge.errors import OptionError


@dataclass(frozen=True)
class Soc:
    """A chip.

    Attributes:
        name: Part number.
        model: Qualcomm's number of the chip, for the compiler.
        arch: Version of the HTP.
        memory: Fast memory of the HTP (VTCM), MiB.
    """

    name: str
    model: int
    arch: int
    memory: int

    @property
    def settings(self) -> dict[str, str]:
        """Options of ONNX Runtime's provider."""
        return {"soc_model": str(self.model), "htp_arch": str(self.arch)}


_LISTED = (
    Soc("SM8350", 30, 68, 4),  # Snapdragon 888
    Soc("SM8450", 36, 69, 8),  # Snapdragon 8 Gen 1
    Soc("SM8475", 42, 69, 8),  # Snapdragon 8+ Gen 1
    Soc("SM8550", 43, 73, 8),  # Snapdragon 8 Gen 2
    Soc("SM8650", 57, 75, 8),  # Snapdragon 8 Gen 3
    Soc("SM8750", 69, 79, 8),  # Snapdragon 8 Elite
    Soc("SM8845", 97, 81, 8),  # Snapdragon 8 Gen 5
    Soc("SM8850", 87, 81, 8),  # Snapdragon 8 Elite Gen 5
    Soc("SC8380XP", 60, 73, 8),  # Snapdragon X Elite and X Plus
    Soc("QCM6490", 93, 68, 2),  # industrial devices
    Soc("QCS9100", 77, 73, 8),
    Soc("SA8255", 52, 73, 8),  # cars
    Soc("SA8295", 39, 68, 8),
    Soc("SSG2115P", 46, 73, 2),  # glasses and watches
    Soc("SXR2230P", 53, 69, 8),
    Soc("SXR2330P", 75, 79, 8),
)
SOCS = {soc.name: soc for soc in _LISTED}


def find(name: str) -> Soc:
    """Return the chip of that name, in any case.

    Raises:
        OptionError: The chip is unknown.
    """
    try:
        return SOCS[name.strip().upper()]
    except KeyError:
        raise OptionError(f"Unknown chip {name!r}. Available: {', '.join(SOCS)}.") from None
