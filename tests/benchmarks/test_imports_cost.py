from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from benchmarks.imports import BASE, STATEMENTS, main, measure
from cris_edge.benchmark.spread import Spread


def test_what_takes_longer_is_found_to_take_longer() -> None:
    found = measure(("pass", "import time; time.sleep(0.3)"), runs=2)
    quick, slow = (Spread.of(found[statement]).smallest for statement in found)
    assert slow > 0.3 > 0
    assert slow > quick


def test_command(tmp_path: Path) -> None:
    output = tmp_path / "imports.json"
    result = CliRunner().invoke(main, ["--runs", "1", "--output", str(output)])
    assert result.exit_code == 0, result.output
    statements = json.loads(output.read_text())["statements"]
    assert list(statements) == list(STATEMENTS)
    assert statements[BASE]["against_base"]["ratio"] == 1
    assert "import cris_edge" in result.stdout
