"""``python -m quantization.calibrate --checkpoint FILE --data DATA --output FILE``: quantize a CandidateNet.

Post-training quantization: the convolutions of detector and mask head in int8, their ranges calibrated on images of the
data; everything else stays in float, its matrices rounded to float16 so that they take half the space.
`quantization.finetune` is for CRIS.
"""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path
from typing import Any

import click
import torch

from cris_edge.errors import CheckpointError, CrisEdgeError
from quantization.calibration import Calibration
from quantization.deploy_network import DeployNetwork, Predictor
from quantization.hooks import wrap
from quantization.post_training import TARGETS, Scheme, quantize_module
from quantization.quantized_checkpoint import load_float, save_quantized
from training.checkpoint import sha256
from training.data.samples import Source, open_source
from training.model import CandidateArchitecture
from training.scoring import score


def quantize(
    network: DeployNetwork, source: Source, scheme: Scheme, *, images: int = 128, seed: int = 0
) -> DeployNetwork:
    """Return a quantized copy of a float CandidateNet.

    Args:
        network: In float; its matrices are rounded to float16 in place.
        source: Images and prompts to calibrate with.
        scheme: Settings of NNCF.
        images: Number of images.
        seed: Of their choice.

    Raises:
        DataError: The source has too few images.
        ExportError: NNCF cannot quantize the network.
        RuntimeMissingError: NNCF is not installed.
    """
    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            if tensor.dtype == torch.float32 and tensor.ndim > 1:
                tensor.copy_(tensor.half())
    samples = Calibration(network, source, images, seed).samples
    modules = []
    for name, module in network.graphs.items():
        layers: tuple[str, ...] = module.quantized_layers  # type: ignore[assignment]
        modules.append(quantize_module(module, samples[name], scheme, layers=layers) if layers else wrap(module))
    return DeployNetwork(network.architecture, modules).eval()


def calibrate(
    checkpoint: Path, data: str, output: Path, scheme: Scheme, *,
    images: int = 128, seed: int = 0, val: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write the quantized checkpoint `output`; returns the report stored in it.

    Args:
        checkpoint: A float CandidateNet.
        data: JSON Lines file, or ``scenes:SPLIT:LENGTH:SEED``, to calibrate with.
        output: File to write.
        scheme: Settings of NNCF.
        images: Number of images to calibrate with.
        seed: Of their choice.
        val: Labelled data on which the float and the quantized network are scored.

    Raises:
        CheckpointError: The checkpoint is not a float CandidateNet.
        DataError: The data cannot be used.
        ExportError: NNCF cannot quantize the network.
        RuntimeMissingError: NNCF is not installed.
    """
    began = time.perf_counter()
    network, recorded = load_float(checkpoint)
    if not isinstance(network.architecture, CandidateArchitecture):
        raise CheckpointError(f"{checkpoint} holds a CRIS: quantize it with `python -m quantization.finetune`.")
    labelled = None if val is None else open_source(val, by_image=True)
    report: dict[str, Any] = {"checkpoint": sha256(checkpoint), "checkpoint_path": str(checkpoint.resolve())}
    if labelled is not None:
        report["float"] = {"metrics": _score(network, labelled)}
    quantized = quantize(network, open_source(data, by_image=True), scheme, images=images, seed=seed)
    if labelled is not None:
        report["int8"] = {"metrics": _score(quantized, labelled)}
    report |= {"data": data, "images": images, "seed": seed, "scheme": scheme.to_dict()}
    report["seconds"] = round(time.perf_counter() - began, 1)
    save_quantized(output, quantized, report=report, **recorded)
    return report


def _score(network: DeployNetwork, source: Source) -> dict[str, Any]:
    found = score(Predictor(network), source)
    return {"dataset": found.dataset, "split": found.split, **found.scores.to_dict()}


@click.command(help=__doc__)
@click.option("--checkpoint", required=True, type=click.Path(path_type=Path), help="A float CandidateNet.")
@click.option("--data", required=True, metavar="DATA", help="To calibrate with: FILE.jsonl or scenes:…")
@click.option("--val", metavar="DATA", help="Labelled data to measure on: FILE.jsonl or scenes:…")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Quantized checkpoint to write.")
@click.option("--target", type=click.Choice(TARGETS), default="vnni", show_default=True, help="any: CPUs without VNNI.")
@click.option("--calibration", type=click.IntRange(1), default=128, show_default=True, help="Calibration images.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the choice of images.")
def main(checkpoint: Path, data: str, val: str | None, output: Path, target: str, calibration: int, seed: int) -> None:
    """Run the command line."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        report = calibrate(checkpoint, data, output, Scheme(target=target), images=calibration, seed=seed, val=val)
    except CrisEdgeError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    for name, entry in (("float32", report.get("float")), ("int8", report.get("int8"))):
        if entry is not None:
            click.echo(f"{name:8} mIoU {entry['metrics']['mIoU']:6.2f}")
    click.echo(f"written: {output}")


if __name__ == "__main__":
    main()
