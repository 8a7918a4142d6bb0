"""Sources of examples, by file or by description of scenes."""

from __future__ import annotations

from pathlib import Path

from quantization.calibration import halves
from training.data.samples import open_source


def test_messages_name_the_file_or_the_scenes(discs: Path) -> None:
    source = open_source(str(discs), by_image=True)
    assert source.label == str(discs) and source.name == discs.parent.name
    assert [half.label for half in halves(source)] == [f"{discs} (chosen on)", f"{discs} (reported)"]
    assert open_source("scenes:val:6:3").label == "scenes:val:6:3"
