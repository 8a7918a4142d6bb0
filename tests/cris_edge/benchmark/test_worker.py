from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from cris_edge.benchmark.worker import Worker, numbered, peak_memory, start
from cris_edge.errors import RuntimeFailure

PROBE = "tests.cris_edge.subjects:Probe"


def test_output_of_a_runtime_does_not_disturb_answers() -> None:
    with Worker(PROBE, {"name": "ü", "numbers": [1, 2]}, "a probe") as worker:
        assert worker.info == {"name": "ü", "numbers": [1, 2]}
        assert worker.ask("add", first=2, second=3) == 5
        with pytest.raises(RuntimeFailure, match="this question has no answer"):
            worker.ask("fail")
        assert worker.ask("add", first=1, second=1) == 2  # an error does not end it


def test_a_crash_is_reported_with_the_last_line_of_output() -> None:
    with Worker(PROBE, {}, "a probe") as worker:
        message = r"The process that measured a probe ended early with status 7.* last line of output: it hurts"
        with pytest.raises(RuntimeFailure, match=message):
            worker.ask("crash")
        with pytest.raises(RuntimeFailure, match="ended early with status 7"):
            worker.ask("add", first=1, second=1)


def test_a_subject_that_cannot_be_created() -> None:
    with pytest.raises(RuntimeFailure, match="this subject cannot be created"):
        Worker(PROBE, {"refuse": True}, "a probe")


def test_peak_memory_is_the_process_own() -> None:
    ours = np.ones(400 << 17)  # 400 MB, of this process alone
    with Worker(PROBE, {}, "a probe") as worker:
        before = worker.ask("peak")
        if before is None:
            pytest.skip("this system does not report peak memory")
        assert before < 200e6
        after = worker.ask("peak", megabytes=100)
        assert 90e6 < after - before < 160e6
        assert worker.ask("peak") == after  # a peak stays
    mine = peak_memory()
    assert mine is not None
    assert mine > ours.nbytes


def test_numbered_prompts_differ() -> None:
    prompts = numbered("the red one")
    assert len({next(prompts) for _ in range(100)}) == 100


def test_a_start_without_a_mask(tmp_path: Path) -> None:
    with pytest.raises(RuntimeFailure, match="There is no bundle"):
        start(str(tmp_path / "absent"), {}, "photo.png", "red")


def test_a_start_that_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cris_edge.benchmark.worker._START", "import os; os.abort()")
    with pytest.raises(RuntimeFailure, match=r"The process that was started ended early with status -?\d+"):
        start("model", {}, "photo.png", "red")


def test_the_child_has_the_parents_import_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A file in the user's folder must not replace a module."""
    (tmp_path / "json.py").write_text("raise SystemExit('the wrong json')")
    root = str(Path(__file__).resolve().parents[3])
    monkeypatch.setattr(sys, "path", [root, *(entry for entry in sys.path if entry)])
    monkeypatch.chdir(tmp_path)
    with Worker(PROBE, {}, "a probe") as worker:
        assert worker.ask("add", first=1, second=2) == 3
