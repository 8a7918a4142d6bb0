"""How much of each of twelve colour names a pixel has."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cris_edge.image import MEAN, STD

COLOURS = (
    *("black", "white", "gray", "red", "orange", "yellow"),
    *("green", "blue", "purple", "pink", "brown", "beige"),
)


class ColourNames(nn.Module):
    """Colour names of pixels: two 1x1 convolutions and a softmax, fitted to named colours (`fit`)."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.hidden = nn.Conv2d(3, width, 1)
        self.output = nn.Conv2d(width, len(COLOURS), 1)

    def forward(self, image: Tensor) -> Tensor:
        """Image (B, 3, H, W), normalized as the network's input -> (B, 12, H, W), the names' shares of each pixel."""
        logits = self.output(F.relu(self.hidden(image)))
        # A softmax over channels, which ONNX Runtime computes slowly.
        shares: Tensor = (logits - logits.amax(1, keepdim=True)).exp()
        return shares / shares.sum(1, keepdim=True)


def named_colours() -> tuple[Tensor, Tensor]:
    """Colours that people named, RGB (N, 3) in [0, 1], and the index (N,) of the name in `COLOURS`.

    They are those of matplotlib's tables (the XKCD colour survey and CSS) whose name ends in one of the twelve.
    """
    from matplotlib.colors import CSS4_COLORS, XKCD_COLORS, to_rgb

    values, labels = [], []
    for name, value in (*XKCD_COLORS.items(), *CSS4_COLORS.items()):
        words = name.removeprefix("xkcd:").replace("grey", "gray").replace("tan", "beige")
        index = next((i for i, colour in enumerate(COLOURS) if words.endswith(colour)), None)
        if index is not None:
            values.append(to_rgb(value))
            labels.append(index)
    return torch.tensor(values), torch.tensor(labels)


def fit(steps: int = 1500, noise: float = 0.05, seed: int = 0) -> ColourNames:
    """Fit the names to `named_colours`, every name weighing the same; takes seconds.

    Args:
        steps: Of Adam, over all colours each.
        noise: Deviation of the noise added to the colours, of values in [0, 1]: it makes the names' borders soft.
        seed: Of noise and initialization; PyTorch's own generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        values, labels = named_colours()
        weights = 1 / torch.bincount(labels, minlength=len(COLOURS)).clamp(min=1).float()
        names = ColourNames()
        optimizer = torch.optim.Adam(names.parameters(), 0.02)
        mean, std = torch.tensor(MEAN), torch.tensor(STD)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            noisy = (values + noise * torch.randn_like(values)).clamp(0, 1)
            pixels = ((noisy - mean) / std)[:, :, None, None]
            logits = names.output(F.relu(names.hidden(pixels)))[:, :, 0, 0]
            loss = F.cross_entropy(logits, labels, weights)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return names.eval().requires_grad_(False)
