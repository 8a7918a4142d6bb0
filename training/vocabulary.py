"""``python -m training.vocabulary``: forget the words that a training never showed.

A network trained from scratch on few words still carries CLIP's 49,408 token embeddings, most of them the noise they
were initialized with. Set to zero, an unknown word says nothing instead of something random, and the table compresses
to next to nothing in a wheel. Not for networks that start from CLIP, whose every row was learnt.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import click
import torch
from tqdm import tqdm

from cris_edge.errors import CrisEdgeError
from cris_edge.tokenizer import Tokenizer
from training.checkpoint import load_model, read_checkpoint, recorded, save_model
from training.data.samples import Source, open_source
from training.model import CRIS

logger = logging.getLogger("cris_edge.training")

SCENE_SIZE = 128  # pixels; drawn scenes must be drawn to be described, and small ones are soon drawn


def seen_tokens(source: Source, word_len: int) -> set[int]:
    """Ids of the tokens in the sentences of `source`, cut to `word_len` as in training; 0, the padding, included."""
    tokenizer, seen = Tokenizer(), {0}
    for index in tqdm(range(len(source)), desc="read sentences", disable=None, unit="image"):
        sentences = source.load(index, SCENE_SIZE).sentences
        seen.update(tokenizer(sentences, length=word_len).flatten().tolist())
    return seen


@torch.no_grad()
def forget_unseen(model: CRIS, seen: set[int]) -> int:
    """Set the embedding of every token not in `seen` to zero, in place; returns how many were."""
    table = model.backbone.token_embedding.weight
    unseen = torch.ones(len(table), dtype=torch.bool)
    unseen[sorted(token for token in seen if token < len(table))] = False
    table[unseen] = 0.0
    return int(unseen.sum())


@click.command(help=__doc__)
@click.option("--checkpoint", type=click.Path(path_type=Path), required=True, help="A CRIS trained from scratch.")
@click.option("--data", required=True, help="What it was trained on: FILE.jsonl, or scenes:SPLIT:LENGTH:SEED.")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="The checkpoint to write.")
@click.option("--compact", is_flag=True, help="Matrices in float16, zero rows left out: a quarter of the size.")
def main(checkpoint: Path, data: str, output: Path, compact: bool) -> None:
    """Write `output`: `checkpoint` without the words that `data` does not have."""
    try:
        model = load_model(checkpoint)
        forgotten = forget_unseen(model, seen_tokens(open_source(data, by_image=True), model.architecture.word_len))
        content = read_checkpoint(checkpoint)
        kept = {key: content[key] for key in ("step", "metrics") if key in content}
        save_model(output, model, compact=compact, **recorded(content), **kept)
    except CrisEdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    logger.info("%d of %d tokens forgotten", forgotten, model.architecture.vocab_size)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    main()
