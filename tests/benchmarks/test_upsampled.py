"""Every form of a convolution after upsampling computes the same, to the last pixel of the border."""

from __future__ import annotations

import pytest
import torch

from benchmarks.taps import measure, to_text
from benchmarks.upsampled import FORMS, to_layout

pytest.importorskip("onnxruntime")


@pytest.mark.parametrize("form", sorted(set(FORMS) - {"plain"}))
@pytest.mark.parametrize("side", [3, 4, 8])
def test_forms_are_exact(form, side):
    torch.manual_seed(side)
    weight, bias, x = torch.randn(5, 6, 3, 3), torch.randn(5), torch.randn(2, 6, side, side)
    expected = to_layout(form, FORMS["plain"](weight, bias, side)(x))
    found = FORMS[form](weight, bias, side)(to_layout(form, x))
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


def test_forms_in_all_runtimes():
    found = measure(((16, 8, 8),), forms=("plain", "matrices", "channels-last"), threads=1, runs=2, seconds=0)
    assert not [failure for failure in found["failures"] if "bfloat16" not in failure["error"]]
    rows = [row for row in found["rows"] if row["precision"] == "float32"]
    assert {row["form"] for row in rows} == {"plain", "matrices", "channels-last"}
    macs = {row["form"]: row["macs"] for row in rows}
    assert macs["plain"] == 9 * 16 * 8 * 16 * 16
    # A quarter of the products, and two matrices: nine taps doubled across, three of them down.
    assert macs["matrices"] == macs["plain"] / 4 + 8 * 8 * 8 * (9 * 16 + 3 * 2 * 16)
    assert macs["channels-last"] == macs["matrices"]
    assert all(row["difference"] < 1e-5 for row in rows)
    assert all(row["times_faster_than_plain"]["ratio"] == 1 for row in rows if row["form"] == "plain")
    assert "16 to 8 channels, 8 to 16" in to_text(found)
