"""``python -m training.vocabulary``: zero the embeddings of tokens that do not occur in the training data.

A network trained from scratch on few words still has CLIP's 49,408 token embeddings, most of them random. With zeros,
unknown words have no effect instead of a random one, and the table compresses well. Not for networks that start from
CLIP, where every row is trained.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import click
import torch
from tqdm import tqdm

from cris_edge.errors import CrisEdgeError, OptionError
from cris_edge.tokenizer import Tokenizer
from training.checkpoint import load_model, read_checkpoint, recorded, save_model
from training.data.samples import Source, open_source
from training.model import CRIS

logger = logging.getLogger("cris_edge.training")

SCENE_SIZE = 128  # pixels; prompts of synthetic scenes need the scene, and small ones are fast to draw


def seen_tokens(source: Source, word_len: int) -> set[int]:
    """Ids of the tokens in the prompts of `source`, truncated to `word_len` as in training, and 0, the padding."""
    tokenizer, seen = Tokenizer(), {0}
    for index in tqdm(range(len(source)), desc="read prompts", disable=None, unit="image"):
        sentences = source.load(index, SCENE_SIZE).sentences
        seen.update(tokenizer(sentences, length=word_len).flatten().tolist())
    return seen


@torch.no_grad()
def zero_unseen(model: CRIS, seen: set[int]) -> int:
    """Set the embeddings of tokens that are not in `seen` to zero, in place; return their number."""
    table = model.backbone.token_embedding.weight
    unseen = torch.ones(len(table), dtype=torch.bool)
    unseen[sorted(token for token in seen if token < len(table))] = False
    table[unseen] = 0.0
    return int(unseen.sum())


@click.command(help=__doc__)
@click.option("--checkpoint", type=click.Path(path_type=Path), required=True, help="A CRIS trained from scratch.")
@click.option("--data", required=True, help="Its training data: FILE.jsonl, or scenes:SPLIT:LENGTH:SEED.")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Checkpoint to write.")
@click.option("--compact", is_flag=True, help="Matrices in float16, without zero rows: a quarter of the size.")
def main(checkpoint: Path, data: str, output: Path, compact: bool) -> None:
    """Write `checkpoint` with zeros for the tokens that `data` does not contain."""
    try:
        if not output.parent.is_dir():
            raise OptionError(f"--output {output}: the folder {output.parent} does not exist; create it first.")
        model = load_model(checkpoint)
        unseen = zero_unseen(model, seen_tokens(open_source(data, by_image=True), model.architecture.word_len))
        content = read_checkpoint(checkpoint)
        kept = {key: content[key] for key in ("step", "metrics") if key in content}
        save_model(output, model, compact=compact, **recorded(content), **kept)
    except CrisEdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    logger.info("%d of %d token embeddings set to zero", unseen, model.architecture.vocab_size)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    main()
