"""Small runs of every part of `tests.soak`."""

from __future__ import annotations

import json

import pytest

from tests import soak


@pytest.mark.parametrize(
    "arguments",
    [
        ["hostile", "--count", "60"],
        ["hostile", "--count", "30", "--kinds", "damaged-bundle", "forged-bundle"],
        ["threads", "--count", "240", "--threads", "8", "--runtimes", "onnxruntime"],
        ["kill", "--count", "2"],
        ["peers", "--count", "50"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_small_run_finds_nothing(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("onnx", "onnxruntime", "openvino", "pycocotools"):
        pytest.importorskip(name)
    monkeypatch.setattr(soak, "GROWTH", 1.0)  # memory settles only in a longer run
    assert soak.main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["part"] == arguments[0]


def test_a_crash_a_hang_and_a_foreign_error_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker dies at one case and stays at another; the run goes on behind both."""
    monkeypatch.setattr(soak, "HANG", 2.0)
    result = soak.run_hostile(["selftest"], 6, 0)
    assert result["table"]["selftest"] == {"executions": 6, "crashes": 1, "hangs": 1, "errors outside the tree": 1}
    assert [failure["number"] for failure in result["failures"]] == [2, 4, 1]
