"""``python -m training.photo_model``: train the network for photos, from a collection of labelled photos to its scores.

The stages run in order, or one at a time with ``--stage``; each continues where it was interrupted, and what is
complete is not done again:

1. ``cache``: the detector's candidates of all photos, and of mirrored ones where sentences speak of left and right.
2. ``masks``: the box-to-mask head (`training.maskhead`).
3. ``selector``: the selector, on cached candidates.
4. ``assemble``: the network, as a checkpoint.
5. ``score``: validation, and the test set where ``--test`` names one.
6. ``ingredients``: short trainings without each ingredient; only on request.

Everything goes into the folder ``--work``. It needs the detector (`training.finder`) and the word table
(`training.wordtable`).
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import click
import torch

from cris_edge.errors import CrisEdgeError
from cris_edge.files import write_whole
from cris_edge.image import THRESHOLD
from cris_edge.tokenizer import PromptWarning, Tokenizer
from training.checkpoint import load_network, save_model
from training.data.photos import Layout, Photo, read_layouts, read_photos, training_layouts
from training.finder import load_finder
from training.maskhead import Options as MaskOptions
from training.maskhead import Trainer as MaskTrainer
from training.maskhead import load_boxmask
from training.model import CandidateNet
from training.model.nanodet import CLASSES
from training.model.selector import Selector, SelectorSizes
from training.phrases.nouns import Lexicon, build_lexicon
from training.phrases.wordnet import WordNet
from training.scoring import TorchPredictor
from training.selection.candidate_cache import build_cache, read_cache
from training.selection.examples import Pool, Sampler
from training.selection.ingredients import ingredients_table, measure_ingredients
from training.selection.mask_scores import human_box_accuracy, score_by_part, score_by_source, write_template_samples
from training.selection.photo_scenes import observations
from training.selection.pools import MIX, TUNING_MIX, Shots, gather_shots, training_pools
from training.selection.ratings import Validation, build_validation
from training.selection.selector_training import SelectorOptions, SelectorTraining
from training.wordtable import load_words

logger = logging.getLogger("cris_edge.training")

DROPOUT = 0.15
"""Of the selector: there are few human sentences about photos."""
TUNING_STEPS = 500
"""Steps after the main training, with more sentences about photos (`TUNING_MIX`)."""
TUNING_RATE = 2.5e-4
"""Largest learning rate of these steps."""
STAGES = ("cache", "masks", "selector", "assemble", "score")


@dataclass(frozen=True)
class PhotoModel:
    """The stages and what they share.

    Attributes:
        root: folder of the photo collection.
        work: folder for all that is made.
        finder: file of the detector.
        words: file of the word table.
        wordnet: folder of WordNet's database.
    """

    root: Path
    work: Path
    finder: Path
    words: Path
    wordnet: Path

    @property
    def checkpoint(self) -> Path:
        """The network."""
        return self.work / "photo_model.pt"

    @cached_property
    def photos(self) -> list[Photo]:
        """All photos, those with RefCOCO sentences first, then other COCO photos, then Flickr8k's."""
        photos = read_photos(self.root)
        return sorted(
            photos, key=lambda one: (not one.refcoco, one.coco_id is None, "flickr8k" not in one.sources, one.image)
        )

    @cached_property
    def layouts(self) -> list[Layout]:
        """All layouts."""
        return read_layouts(self.root)

    @cached_property
    def shots(self) -> Shots:
        """The photos with their cached candidates."""
        folder = self.work / "cache"
        return gather_shots(self.photos, [*read_cache(folder), *read_cache(folder, mirrored=True)])

    @cached_property
    def lexicon(self) -> Lexicon:
        """Nouns of the detector's classes, learned from training photos and layouts."""
        shots = self.shots
        train = shots.of(validation=False, mirrored=False)
        layouts = training_layouts(self.layouts, self.photos)
        observed = list(observations([shots.photos[i] for i in train], [shots.cache[i] for i in train]))
        observed += [(one.sentence, "person") for one in layouts if one.person]
        used = [sentence for i in train for one in shots.photos[i].objects for sentence in one.sentences]
        used += [one.sentence for one in layouts]
        return build_lexicon(WordNet(self.wordnet), CLASSES, observed, used)

    @cached_property
    def validation(self) -> Validation:
        """Prompts about held-out photos."""
        held_out = [one for one in self.layouts if one.validation]
        return build_validation(self.shots, held_out, self.lexicon, Tokenizer())

    @cached_property
    def pools(self) -> dict[str, Pool]:
        """Prompts to train on."""
        layouts = training_layouts(self.layouts, self.photos)
        return training_pools(self.shots, layouts, self.lexicon, Tokenizer())

    def new_selector(self, sizes: SelectorSizes) -> Selector:
        """Return an untrained selector that knows its words."""
        selector = Selector(sizes)
        load_words(self.words, selector)
        return selector

    def sampler(
        self, mix: Mapping[str, float], options: Mapping[str, float], without: Sequence[str] = (), seed: int = 0
    ) -> Sampler:
        """Return a sampler of the training pools; ``without`` names sources whose photos are left out."""
        shots = self.shots
        train = [i for i in shots.of(validation=False) if not shots.photos[i].sources & set(without)]
        blank = int(Tokenizer()("the")[0, 1])
        return Sampler(shots.bank, self.pools, dict(mix), seed=seed, photos=train, blank=blank, **dict(options))  # type: ignore[arg-type]

    def cache(self) -> None:
        """Compute the candidates of all photos."""
        finder = load_finder(self.finder)
        folder = self.work / "cache"
        build_cache(finder, self.photos, self.root, folder, progress=logger.info)
        mirrored = [one for one in self.photos if one.coco_id is not None]
        build_cache(finder, mirrored, self.root, folder, mirrored=True, progress=logger.info)

    def masks(self, minutes: float) -> None:
        """Train the box-to-mask head."""
        options = MaskOptions(minutes=minutes)
        MaskTrainer(self.root, load_finder(self.finder), options, self.work / "mask.pt").run()

    def selector(self, steps: int, seed: int) -> None:
        """Train the selector."""
        torch.manual_seed(seed)
        main = SelectorTraining(
            self.new_selector(SelectorSizes(dropout=DROPOUT)),
            self.sampler(MIX, {}, seed=seed),
            SelectorOptions(steps=steps),
            self.work / "selector",
            evaluate=self.validation.rate,
            progress=logger.info,
        )
        main.run()
        tuning = SelectorTraining(
            main.averaged(),
            self.sampler(TUNING_MIX, {}, seed=seed + 1),
            SelectorOptions(steps=TUNING_STEPS, learning_rate=TUNING_RATE, warmup=20, evaluate_every=TUNING_STEPS),
            self.work / "selector_tuned",
            evaluate=self.validation.rate,
            progress=logger.info,
        )
        tuning.run()

    def assemble(self) -> None:
        """Put the network together and save it."""
        network = CandidateNet()
        network.finder.load_state_dict(load_finder(self.finder).state_dict())
        weights = torch.load(self.work / "selector_tuned" / "selector.pt", weights_only=True)
        network.selector.load_state_dict(weights)
        network.boxmask.load_state_dict(load_boxmask(self.work / "mask.pt").state_dict())
        save_model(self.checkpoint, network.eval(), sources=sorted({s for one in self.photos for s in one.sources}))

    def score(self, test: Path | None, threshold: float) -> dict[str, Any]:
        """Score the network; write ``scores.json`` and ``scores.md``, and return the scores."""
        network = load_network(self.checkpoint)
        if not isinstance(network, CandidateNet):
            raise CrisEdgeError(f"{self.checkpoint} is not a network for photos; run the assemble stage again.")
        samples = self.work / "templates.jsonl"
        write_template_samples(self.shots, self.lexicon, self.root, samples)
        predictor = TorchPredictor(network)
        scores: dict[str, Any] = {
            "selection": self.validation.rate(network.selector),
            "human_masks": human_box_accuracy(predictor, self.photos, self.root, threshold),
            "templates": score_by_source(predictor, samples, threshold),
        }
        if test is not None:
            scores["test"] = score_by_part(predictor, test, threshold)
        write_whole(self.work / "scores.json", json.dumps(scores, indent=1))
        write_whole(self.work / "scores.md", scores_table(scores))
        return scores

    def ingredients(self, steps: int) -> str:
        """Measure what each ingredient brings; write ``ingredients.json`` and ``ingredients.md``, return the latter."""
        rows = measure_ingredients(
            self.new_selector, self.sampler, self.work / "ingredients", steps=steps, evaluate=self.validation.rate
        )
        table = ingredients_table(rows)
        write_whole(self.work / "ingredients.json", json.dumps(rows, indent=1))
        write_whole(self.work / "ingredients.md", table)
        return table


def scores_table(scores: Mapping[str, Any]) -> str:
    """Return the scores as Markdown tables, in percent."""
    lines = ["| selection on held-out prompts | % |", "|---|---|"]
    lines += [f"| {name} | {100 * value:.1f} |" for name, value in scores["selection"].items()]
    human = scores["human_masks"]
    lines.append(f"| human, box of the mask ({human['sentences']} sentences) | {100 * human['accuracy']:.1f} |")
    lines += ["", "| template sentences, by source | sentences | mIoU | Pr@50 |", "|---|---|---|---|"]
    lines += [_row(name, one) for name, one in scores["templates"].items()]
    if "test" in scores:
        lines += ["", "| test set, by part | sentences | mIoU | Pr@50 |", "|---|---|---|---|"]
        lines += [_row(name, one) for name, one in scores["test"].items()]
    return "\n".join(lines) + "\n"


def _row(name: str, one: Mapping[str, float]) -> str:
    return f"| {name} | {one['sentences']} | {100 * one['mIoU']:.1f} | {100 * one['Pr@50']:.1f} |"


@click.command(help=(__doc__ or "").replace("``", ""))
@click.option("--photos", required=True, type=click.Path(path_type=Path), help="Folder of the photo collection.")
@click.option("--work", required=True, type=click.Path(path_type=Path), help="Folder for all that is made.")
@click.option("--finder", required=True, type=click.Path(path_type=Path), help="From `python -m training.finder`.")
@click.option("--words", required=True, type=click.Path(path_type=Path), help="From `python -m training.wordtable`.")
@click.option("--wordnet", required=True, type=click.Path(path_type=Path), help="Folder with data.noun.")
@click.option(
    "--stage", multiple=True, type=click.Choice([*STAGES, "ingredients"]), help="Only these; default: 1 to 5."
)
@click.option("--steps", default=4500, show_default=True, help="Of the selector's training.")
@click.option("--ingredient-steps", default=500, show_default=True, help="Of each training without an ingredient.")
@click.option("--mask-minutes", default=30.0, show_default=True, help="Of the mask head's training.")
@click.option("--test", type=click.Path(path_type=Path), help="Labelled data to report on, JSON Lines.")
@click.option("--threshold", default=THRESHOLD, show_default=True, help="Probability from which a pixel is inside.")
@click.option("--seed", default=0, show_default=True, help="Of all that is random.")
@click.option("--threads", default=1, show_default=True, help="Of PyTorch.")
def main(
    photos: Path,
    work: Path,
    finder: Path,
    words: Path,
    wordnet: Path,
    stage: Sequence[str],
    steps: int,
    ingredient_steps: int,
    mask_minutes: float,
    test: Path | None,
    threshold: float,
    seed: int,
    threads: int,
) -> None:
    """Read the command line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    warnings.simplefilter("ignore", PromptWarning)  # long sentences are cut, as the reference cuts them
    torch.set_num_threads(threads)
    model = PhotoModel(photos, work, finder, words, wordnet)
    try:
        work.mkdir(parents=True, exist_ok=True)
        chosen = [name for name in (*STAGES, "ingredients") if name in (stage or STAGES)]
        for name in chosen:
            logger.info("stage: %s", name)
            if name == "cache":
                model.cache()
            elif name == "masks":
                model.masks(mask_minutes)
            elif name == "selector":
                model.selector(steps, seed)
            elif name == "assemble":
                model.assemble()
            elif name == "score":
                logger.info("%s", scores_table(model.score(test, threshold)))
            else:
                logger.info("%s", model.ingredients(ingredient_steps))
    except CrisEdgeError as exc:
        click.echo(f"error: {exc}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
