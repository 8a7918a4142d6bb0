"""Fake quantizers against ONNX's own operators, and their gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from cris_edge.errors import CheckpointError
from quantization.quantizers import FakeQuantizer, activation_quantizer, place


def onnx_numbers(x: np.ndarray, scale: np.ndarray, zero: np.ndarray, low: int, high: int) -> np.ndarray:
    """QuantizeLinear and DequantizeLinear, as ONNX defines them."""
    return (np.clip(np.rint(x / scale) + zero, low, high) - zero) * scale


@pytest.mark.parametrize(("low", "high"), [(0, 255), (-128, 127), (-64, 63)])
def test_equals_onnx(low: int, high: int) -> None:
    x = torch.randn(4, 5, 3) * 3
    scale, zero = torch.tensor([0.01, 0.02, 0.03, 0.1, 0.5]), torch.zeros(5, dtype=torch.int32)
    quantizer = FakeQuantizer(scale, zero, low, high, 1, weight=True)
    expected = onnx_numbers(x.numpy(), scale.numpy()[:, None], 0, low, high)
    with torch.no_grad():
        assert np.abs(quantizer(x).numpy() - expected).max() < 1e-6
    quantizer.scale.requires_grad_(True)
    assert np.abs(quantizer(x).detach().numpy() - expected).max() < 1e-5


def test_a_disabled_quantizer_is_the_identity() -> None:
    quantizer = activation_quantizer(-1, 1)
    quantizer.enabled = False
    x = torch.randn(8)
    assert quantizer(x) is x


def test_zero_is_exact_and_ranges_hold() -> None:
    for low, high in ((-0.3, 2.7), (0.5, 2.0), (-4.0, -1.0), (0.0, 0.0)):
        quantizer = activation_quantizer(low, high)
        with torch.no_grad():
            found = quantizer(torch.tensor([0.0, low, high]))
        assert float(found[0]) == 0
        assert torch.allclose(found[1:], torch.tensor([low, high]), atol=float(quantizer.scale.detach()))


def test_gradients_pass_inside_the_range_and_move_the_scale() -> None:
    quantizer = FakeQuantizer(torch.tensor(0.1), torch.tensor(0), 0, 255, None, weight=False)
    x = torch.tensor([-5.0, 0.52, 3.0, 100.0], requires_grad=True)
    quantizer(x).sum().backward()
    assert torch.equal(x.grad != 0, torch.tensor([False, True, True, False]))
    assert quantizer.scale.grad is not None
    # 100 is cut off at 25.5: a larger scale lets more of it through.
    assert float(quantizer.scale.grad) > 0


def test_fitting_the_scale_reduces_the_error() -> None:
    torch.manual_seed(0)
    x = torch.randn(1000)
    quantizer = FakeQuantizer(torch.tensor(0.2), torch.tensor(0), -128, 127, None, weight=False)
    optimizer = torch.optim.Adam([quantizer.scale], lr=2e-3)
    first = float(((quantizer(x) - x) ** 2).mean().detach())
    for _ in range(100):
        optimizer.zero_grad()
        ((quantizer(x) - x) ** 2).mean().backward()
        optimizer.step()
    assert float(((quantizer(x) - x) ** 2).mean().detach()) < 0.5 * first


def test_a_damaged_description_is_refused() -> None:
    for entry in ({"places": ["post_hooks./relu/0__0.0"], "kind": "surprise"}, {"kind": "multiplier", "shape": [1]}):
        with pytest.raises(CheckpointError, match="cannot be placed"):
            place(nn.Sequential(nn.ReLU()), [entry])
