"""Validation of a selector on held-out photos: the right object, presence, and swaps."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from cris_edge.metrics import auroc
from cris_edge.tokenizer import Tokenizer
from training.data.photos import Layout
from training.model.nanodet import CLASSES
from training.model.selector import Selector
from training.phrases.edits import COLOURS, word_set, words
from training.phrases.grammar import Describer
from training.phrases.nouns import Lexicon
from training.selection.examples import Batch, Example, Pool, fixed_batches, make_pool
from training.selection.layout_examples import LayoutExamples, place_layouts
from training.selection.photo_scenes import PhotoScene
from training.selection.pools import Shots, absent_examples, build_scenes, human_examples, template_examples

_T = TypeVar("_T")
NEGATIVES = 500
"""Prompts that match nothing."""
SWAPS = 100
"""Pairs of prompts that differ by a side, a colour or a class, and mean different objects of one photo."""
_TEMPLATES = 300  # of each kind of fact
_FACTS = {
    "position": ("side", "corner", "middle", "ordinal"),
    "colour": ("colour", "clothing"),
    "size": ("size", "depth"),
}


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Held-out prompts, packed.

    Attributes:
        pools: name -> prompts with a target; those of undetected objects have none, and count as failures.
        negatives: prompts that match nothing, absent categories and swapped attributes.
        swaps: prompts in pairs, 2k and 2k + 1 about the same photo.
    """

    pools: dict[str, Pool]
    negatives: dict[str, Pool]
    swaps: Pool
    batches: dict[str, list[Batch]]

    def rate(self, selector: Selector) -> dict[str, float]:
        """Return accuracies, the AUROC of presence and the share of swaps that move to the right object.

        Args:
            selector: in eval mode.
        """
        metrics: dict[str, float] = {}
        presence: dict[str, np.ndarray] = {}
        for name, pool in self.pools.items():
            right, present = _answers(selector, self.batches[name])
            metrics[name] = float(right.mean()) if len(right) else 0.0
            presence[name] = present
            if name == "human":
                for kind, chosen in kinds_of_sentences(pool.sentences).items():
                    if chosen.any():
                        metrics[f"human_{kind}"] = float(right[chosen].mean())
        positives = np.concatenate(
            [presence[name] for name in ("human", "position", "colour", "size") if name in presence]
        )
        found = []
        for name in self.negatives:
            _, present = _answers(selector, self.batches[name])
            found.append(present)
            metrics[f"auroc_{name}"] = _auroc(positives, present)
        if found:
            metrics["auroc"] = _auroc(positives, np.concatenate(found))
        right, _ = _answers(selector, self.batches["swaps"])
        pairs = right[: len(right) // 2 * 2].reshape(-1, 2)
        metrics["swaps"] = float(pairs.all(1).mean()) if len(pairs) else 0.0
        return metrics


def build_validation(
    shots: Shots, layouts: Sequence[Layout], lexicon: Lexicon, tokenizer: Tokenizer, *, seed: int = 7
) -> Validation:
    """Build the validation set from the held-out photos and layouts.

    Args:
        shots: photos and candidates.
        layouts: the held-out ones.
        lexicon: nouns of categories.
        tokenizer: for the prompts.
        seed: of what is random; the set is the same every time.
    """
    rng = random.Random(seed)
    held_out = shots.of(validation=True, mirrored=False)
    describer = Describer(lexicon.names, lexicon.general)
    scenes = build_scenes(shots, held_out, lexicon)
    human = human_examples(shots, held_out, rng, refcoco=True, augment=False)
    flickr = human_examples(shots, held_out, rng, refcoco=False, augment=False)
    prompts = [(one.sentence, _class_of(one, shots)) for one in human if any(one.targets)]
    pools = {"human": make_pool(human, tokenizer), "flickr": make_pool(_some(flickr, 600, rng), tokenizer)}
    for name, facts in _FACTS.items():
        made = _described(shots, scenes, describer, rng, facts)
        pools[name] = make_pool(_some(made, _TEMPLATES, rng), tokenizer)
        prompts += [(one.sentence, _class_of(one, shots)) for one in made]
    maker = LayoutExamples(place_layouts(layouts, lexicon), shots.bank, shots.of(validation=False, mirrored=False))
    pools["layouts"] = make_pool(_some(maker.plain(rng), 500, rng), tokenizer, seen=False)
    _, swapped = template_examples(shots, scenes, describer, rng, per_photo=4)
    absent = absent_examples(shots, held_out, prompts, rng, NEGATIVES // 2)
    negatives = {
        "absent": make_pool(absent, tokenizer),
        "swapped": make_pool(_some(swapped, NEGATIVES - len(absent), rng), tokenizer),
    }
    swaps = make_pool(swap_pairs(shots, scenes, describer, rng, SWAPS), tokenizer)
    batches = {name: fixed_batches(pool, shots.bank) for name, pool in {**pools, **negatives, "swaps": swaps}.items()}
    return Validation(pools=pools, negatives=negatives, swaps=swaps, batches=batches)


def swap_pairs(
    shots: Shots, scenes: Mapping[int, PhotoScene], describer: Describer, rng: random.Random, count: int
) -> list[Example]:
    """Make pairs of prompts about one photo that differ by one word: left and right, two colours, or two classes."""
    made: dict[str, list[tuple[Example, Example]]] = {"side": [], "colour": [], "class": []}
    for index, found in scenes.items():
        things = [(i, thing) for i, thing in enumerate(found.scene.things) if thing.sure]
        groups: dict[str, list[int]] = {}
        for i, thing in enumerate(found.scene.things):
            groups.setdefault(thing.category, []).append(i)
        for a, first in things:
            for b, second in things:
                one_kind = first.category == second.category
                noun = describer.noun(first, rng) if not first.names else first.category
                if one_kind and len(groups[first.category]) == 2 and first.centre[0] < second.centre[0] - 0.15:
                    made["side"].append(_pair(shots, index, found, (a, b), (f"left {noun}", f"{noun} on the right")))
                hue = (first.upper, second.upper) if first.category == "person" else (first.colour, second.colour)
                if one_kind and a < b and len(groups[first.category]) == 2 and hue[0] and hue[1] and hue[0] != hue[1]:
                    form = "{} in {}" if first.category == "person" else "{1} {0}"
                    texts = (form.format(noun, hue[0]), form.format(noun, hue[1]))
                    made["colour"].append(_pair(shots, index, found, (a, b), texts))
                if a < b and len(groups[first.category]) == len(groups[second.category]) == 1 and not one_kind:
                    made["class"].append(_pair(shots, index, found, (a, b), (first.category, second.category)))
    chosen = [pair for pairs in made.values() for pair in _some(pairs, -(-count // len(made)), rng)]
    return [example for pair in chosen[:count] for example in pair]


def kinds_of_sentences(sentences: Sequence[str]) -> dict[str, np.ndarray]:
    """Return which sentences speak of position, of colour, of a relation or of none of these, (n,) bool each."""
    position = word_set(
        "left right top bottom middle center corner front back far upper lower second third 2nd 3rd closest"
    )
    relation = word_set("behind next near holding with between on beside under above wearing riding sitting standing")
    found = [set(words(sentence)) for sentence in sentences]
    kinds = {
        "position": np.array([bool(one & position) for one in found]),
        "colour": np.array([bool(one & set(COLOURS)) for one in found]),
        "relation": np.array([bool(one & relation) for one in found]),
    }
    kinds["class"] = ~(kinds["position"] | kinds["colour"] | kinds["relation"])
    return kinds


def _auroc(positives: np.ndarray, negatives: np.ndarray) -> float:
    labels = np.arange(len(positives) + len(negatives)) < len(positives)
    return auroc(np.concatenate([positives, negatives]), labels)


@torch.inference_mode()
def _answers(selector: Selector, batches: Sequence[Batch]) -> tuple[np.ndarray, np.ndarray]:
    """Return whether the best candidate is right, (n,) bool, and the logit of presence, (n,)."""
    right, present = [np.zeros(0, bool)], [np.zeros(0)]
    for batch in batches:
        scores, none = selector(batch.candidates, batch.tokens)
        best = scores.argmax(1, keepdim=True)
        right.append((batch.targets[:, :-1].gather(1, best)[:, 0] > 0).numpy())
        present.append((scores.logsumexp(1) - none[:, 0]).numpy())
    return np.concatenate(right), np.concatenate(present)


def _described(
    shots: Shots, scenes: Mapping[int, PhotoScene], describer: Describer, rng: random.Random, facts: Sequence[str]
) -> list[Example]:
    made = []
    for index, found in scenes.items():
        for i, thing in enumerate(found.scene.things):
            described = describer.describe(found.scene, i, rng, kinds=facts, typos=0.0) if thing.sure else None
            if described is not None:
                made.append(_example(shots, index, found, i, described.text))
    return made


def _pair(
    shots: Shots, index: int, found: PhotoScene, things: tuple[int, int], texts: tuple[str, str]
) -> tuple[Example, Example]:
    first, second = (_example(shots, index, found, thing, text) for thing, text in zip(things, texts, strict=True))
    return first, second


def _example(shots: Shots, index: int, found: PhotoScene, thing: int, sentence: str) -> Example:
    cached, start = shots.cache[index], int(shots.bank.start[index])
    targets = [0.0] * cached.detected
    targets[found.candidates[thing]] = 1.0
    return Example(
        rows=list(range(start, start + cached.detected)),
        targets=targets,
        none=0.0,
        sentence=sentence,
        aspect=cached.width / cached.height,
    )


def _class_of(example: Example, shots: Shots) -> str:
    return CLASSES[int(shots.bank.row_class[example.rows[int(np.argmax(example.targets))]])]


def _some(values: Sequence[_T], count: int, rng: random.Random) -> list[_T]:
    return rng.sample(list(values), min(count, len(values)))
