"""Pages show what the result files hold."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from benchmarks import pages
from benchmarks.pages import README, main, page
from benchmarks.provenance import PREVIOUS, is_previous, results


def test_pages_are_written_from_the_result_files() -> None:
    result = CliRunner().invoke(main, ["--check"])
    assert result.exit_code == 0, f"{result.stderr}run python -m benchmarks.pages"


def test_every_result_file_with_tables_is_on_the_page() -> None:
    shown = {match["name"] for match in pages.BLOCK.finditer(README.read_text(encoding="utf-8"))}
    assert shown | {"family.json"} == {path.name for path, _ in results()}


def test_previous_weights_are_marked_on_the_page() -> None:
    marks = README.read_text(encoding="utf-8").count(f"**{PREVIOUS.capitalize()}**")
    assert marks == sum(is_previous(found) for _, found in results())


def test_a_changed_figure_changes_the_page(tmp_path: Path) -> None:
    for path, found in results():
        (tmp_path / path.name).write_text(json.dumps(found), encoding="utf-8")
    text = README.read_text(encoding="utf-8")
    assert page(text, tmp_path) == text
    file = tmp_path / "steps-r50.json"
    found = json.loads(file.read_text(encoding="utf-8"))
    found["rows"][0]["seconds"]["median"] = 4.0
    file.write_text(json.dumps(found), encoding="utf-8")
    assert "4000.00 ±" in page(text, tmp_path) and "4000.00 ±" not in text
