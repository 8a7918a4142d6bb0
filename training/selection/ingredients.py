"""What each ingredient of the training brings: the same short run without it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from training.model.selector import Selector, SelectorSizes
from training.selection.examples import Sampler
from training.selection.pools import MIX
from training.selection.selector_training import Evaluate, SelectorOptions, SelectorTraining

COLUMNS = ("human", "flickr", "layouts", "position", "colour", "size", "auroc", "swaps")
"""Metrics of the table."""


@dataclass(frozen=True, kw_only=True)
class Ingredient:
    """A part of the training that can be left out.

    Attributes:
        name: what is left out; "nothing" for the full training.
        without: pools that are left out; the others keep their proportions.
        sampler: options of the sampler that differ.
        sources: data sets whose photos are left out.
        contrast: whether the loss among candidates of one class is used.
        prepare: changes a fresh selector.
    """

    name: str
    without: tuple[str, ...] = ()
    sampler: Mapping[str, float] = dataclasses.field(default_factory=dict)
    sources: tuple[str, ...] = ()
    contrast: bool = True
    prepare: Callable[[Selector], None] | None = None


def _forget_vectors(selector: Selector) -> None:
    selector.table.vectors.normal_(0.0, float(selector.table.vectors.std()), generator=torch.Generator().manual_seed(0))


def _forget_meanings(selector: Selector) -> None:
    selector.table.classes.zero_()
    selector.table.colours.zero_()


INGREDIENTS = (
    Ingredient(name="nothing"),
    Ingredient(name="layouts", without=("layouts",)),
    Ingredient(name="RefCOCO sentences on photos", without=("refcoco",)),
    Ingredient(name="Flickr30k phrases", without=("flickr",)),
    Ingredient(name="template sentences", without=("templates", "swapped")),
    Ingredient(name="negatives", without=("absent", "swapped")),
    Ingredient(name="contrast within a class", contrast=False),
    Ingredient(name="mosaics", sampler={"mosaics": 0.0}),
    Ingredient(name="hidden words", sampler={"blanks": 0.0}),
    Ingredient(name="word vectors (random ones instead)", prepare=_forget_vectors),
    Ingredient(name="what words are known to name (classes, colours)", prepare=_forget_meanings),
    Ingredient(name="sources for research only (ade20k, flickr8k, dogs)", sources=("ade20k", "flickr8k", "dogs")),
)
"""The rows of the table; "hidden words" are those replaced at random in human sentences."""


def measure_ingredients(
    make_selector: Callable[[SelectorSizes], Selector],
    make_sampler: Callable[[Mapping[str, float], Mapping[str, float], Sequence[str]], Sampler],
    folder: Path,
    *,
    steps: int,
    evaluate: Evaluate,
    ingredients: Sequence[Ingredient] = INGREDIENTS,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Train once without each ingredient, for the same number of steps, and return a row of metrics for each.

    Runs that are complete in ``folder`` are read, not repeated.

    Args:
        make_selector: returns a fresh selector that knows its words.
        make_sampler: returns a sampler for a mix of pools, its other options, and the sources to leave out.
        folder: a folder per ingredient is made in it.
        steps: of each run.
        evaluate: metrics of a selector in eval mode.
        ingredients: rows of the table.
        seed: of initial weights.
    """
    rows = []
    for number, one in enumerate(ingredients):
        torch.manual_seed(seed)
        selector = make_selector(SelectorSizes())
        if one.prepare is not None:
            with torch.no_grad():
                one.prepare(selector)
        mix = {name: share for name, share in MIX.items() if name not in one.without}
        defaults = SelectorOptions()
        options = SelectorOptions(
            steps=steps, evaluate_every=steps, contrast=defaults.contrast if one.contrast else 0.0
        )
        run = SelectorTraining(
            selector, make_sampler(mix, one.sampler, one.sources), options, folder / f"{number:02d}", evaluate=evaluate
        )
        metrics = run.run() or dict(evaluate(run.averaged()))
        rows.append({"without": one.name, "steps": steps, "seconds": round(run.seconds, 1), **metrics})
    return rows


def ingredients_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as a Markdown table, in percent, with the difference to the full training."""
    full = rows[0]
    lines = [f"| without | {' | '.join(COLUMNS)} |", f"|---|{'---|' * len(COLUMNS)}"]
    for row in rows:
        cells = []
        for name in COLUMNS:
            value, difference = 100 * row[name], 100 * (row[name] - full[name])
            cells.append(f"{value:.1f}" if row is full else f"{value:.1f} ({difference:+.1f})")
        lines.append(f"| {row['without']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
