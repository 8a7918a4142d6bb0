"""Images per second of networks in PyTorch: one image and one prompt to logits, in interleaved rounds."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.harness import timed
from cris_edge.benchmark.rounds import Progress
from cris_edge.benchmark.spread import Spread
from cris_edge.device.processor import physical_cores, processor_name
from training.device import choose_device
from training.model import CRIS, Architecture

RUNS = 2
"""Runs of a network in a round, after one that does not count."""


@dataclass(frozen=True)
class Speed:
    """Seconds of one image and one prompt."""

    seconds: Spread

    @property
    def fps(self) -> tuple[float, float, float]:
        """Images per second: at the median, and at the ends of its interval."""
        return 1 / self.seconds.median, 1 / self.seconds.high, 1 / self.seconds.low

    def to_dict(self) -> dict[str, Any]:
        """Both units, ready for JSON."""
        return {"images_per_second": self.fps[0], "seconds": self.seconds.to_dict()}

    def __str__(self) -> str:
        return "{:.2f} ({:.2f}-{:.2f})".format(*self.fps)


def measure(
    networks: Mapping[str, Architecture],
    lengths: Sequence[int],
    *,
    device: str = "cpu",
    threads: int | None = None,
    precision: str = "float32",
    rounds: int = 8,
    progress: Progress = lambda _: None,
) -> tuple[dict[tuple[str, int], Speed], dict[str, Any]]:
    """Time networks with random weights, in eval mode, at their input size.

    Args:
        networks: By name.
        lengths: Token lengths; each network is timed with each.
        device: ``cpu``, ``cuda``.
        threads: CPU threads; None for the number of physical cores.
        precision: ``float32``, or ``bfloat16`` through autocast.
        rounds: Rounds, each of which times every network once.
        progress: Called with a line of progress.

    Returns:
        Speeds by name and length, and what they were measured with.

    Raises:
        OptionError: The device is not available.
    """
    chosen = choose_device(device)
    autocast: Any = nullcontext
    if precision != "float32":
        autocast = lambda: torch.autocast(chosen.type, getattr(torch, precision))  # noqa: E731 - a factory of contexts
    blocks: dict[tuple[str, int], list[list[float]]] = {(name, n): [] for name in networks for n in lengths}
    with _threads(threads or physical_cores()) as used:
        models = _build(networks, chosen, progress)
        order = list(blocks)
        shuffle = random.Random(0).shuffle
        for number in range(rounds):
            shuffle(order)
            for done, (name, length) in enumerate(order):
                progress(f"round {number + 1} of {rounds}: {done + 1} of {len(order)}, {name}, {length} tokens")
                with torch.inference_mode(), autocast():
                    blocks[name, length].append(_block(models[name], length, chosen))
    speeds = {key: Speed(Spread.of(found)) for key, found in blocks.items()}
    setting = {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else processor_name(),
        "threads": used,
        "precision": precision,
        "runs": rounds * RUNS,
        "confidence": min(speed.seconds.confidence for speed in speeds.values()),
    }
    return speeds, setting


def _build(networks: Mapping[str, Architecture], device: torch.device, progress: Progress) -> dict[str, CRIS]:
    """Networks with random weights; those with the same backbone share its weights, which saves gigabytes."""
    torch.manual_seed(0)
    backbones: dict[tuple[Any, ...], torch.nn.Module] = {}
    models = {}
    for name, architecture in networks.items():
        progress(f"building {name}")
        model = CRIS(architecture).eval()
        shape = (architecture.vision_layers, architecture.vision_width, architecture.embed_dim, architecture.text_width)
        model.backbone = backbones.setdefault(shape, model.backbone)  # type: ignore[assignment]
        models[name] = model.to(device)
    return models


def _block(model: CRIS, length: int, device: torch.device) -> list[float]:
    size = model.architecture.input_size
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    tokens = torch.arange(1, length + 1, device=device)[None]  # the largest marks the end, as CLIP's do

    def run() -> None:
        model(image, tokens)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return timed(run, RUNS)


@contextmanager
def _threads(count: int) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
