"""Training steps of the real loop run in every form, and failures are reported."""

from __future__ import annotations

import pytest

from benchmarks.steps import FORMS, measure, to_text
from cris_edge.errors import RuntimeFailure

SMALL = {"input_size": 128, "image_resolution": 128, "batch_size": 2, "workers": 0}


def test_every_form_takes_steps_on_the_same_batch() -> None:
    forms = tuple(form for form in FORMS if "compiled" not in form)  # needs a compiler of C++ on a CPU
    found = measure("nano-scenes", forms=forms, changes=SMALL, device_name="cpu", threads=1, runs=1, seconds=0)
    assert not found["failures"]
    assert [row["form"] for row in found["rows"]] == list(forms)
    for row in found["rows"]:
        assert row["images"] == 2 and row["sentences"] == 8 and row["input_size"] == 128
        assert row["seconds"]["median"] > 0 and (row["peak_memory"] is None or row["peak_memory"] > 2e8)
    assert [row["precision"] for row in found["rows"]] == ["float32", "bfloat16", "bfloat16"]
    last = to_text(found, markdown=True).split("checkpointed")[1]
    assert [cell.strip() for cell in last.split("|")[1:4]] == ["cpu", "128", "2 x 4"]


def test_failures_are_reported() -> None:
    with pytest.raises(RuntimeFailure, match=r"plain: .*--accumulation 4"):
        measure("nano-scenes", forms=("plain",), changes={**SMALL, "accumulation": 4}, threads=1)
