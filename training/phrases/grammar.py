"""Sentences about one object of a scene, in the ways people type them."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from training.phrases.edits import misspell
from training.phrases.facts import Fact, facts
from training.phrases.things import Scene, Thing

TYPOS = 0.04
"""Share of sentences with a typing mistake."""
_OPENINGS = ("", "", "", "", "", "", "", "the ", "the ", "the ", "a ", "click on the ", "find the ", "that ")
_ROUGH = {
    "side": 4.0,
    "corner": 2.0,
    "ordinal": 2.0,
    "clothing": 4.0,
    "colour": 3.0,
    "size": 1.5,
    "depth": 1.5,
    "middle": 1.5,
}


@dataclass(frozen=True)
class Sentence:
    """A sentence and the kinds of facts it states; no kinds when it only names the object's category."""

    text: str
    kinds: tuple[str, ...]


class Describer:
    """Makes sentences that are true of exactly one thing of a scene.

    Args:
        names: category -> nouns for it, each with a weight; a category that is missing is called by its own name.
        general: noun -> categories it covers ("animal", "vehicle"); used where only one thing of the scene fits.
    """

    def __init__(
        self, names: Mapping[str, Mapping[str, float]], general: Mapping[str, frozenset[str]] | None = None
    ) -> None:
        self._names = {category: (list(nouns), list(nouns.values())) for category, nouns in names.items() if nouns}
        self._general: dict[str, list[str]] = {}
        self._covers = dict(general or {})
        for noun, categories in self._covers.items():
            for category in categories:
                self._general.setdefault(category, []).append(noun)

    def noun(self, thing: Thing, rng: random.Random) -> str:
        """Return a noun for a thing: one that people used for it, or one of its category."""
        if thing.names and rng.random() < 0.6:
            return rng.choice(thing.names)
        nouns, weights = self._names.get(thing.category, ([thing.category], [1.0]))
        return rng.choices(nouns, weights)[0]

    def describe(
        self, scene: Scene, index: int, rng: random.Random, *, kinds: Sequence[str] | None = None, typos: float = TYPOS
    ) -> Sentence | None:
        """Make one sentence that is true of thing ``index`` alone.

        Args:
            scene: the photo's objects.
            index: of the thing; it must be sure.
            rng: chooses among what is true.
            kinds: only state facts of these kinds, and at least one.
            typos: probability of a typing mistake.

        Returns:
            The sentence, or None when nothing that is known tells the thing from the others.
        """
        thing = scene.things[index]
        if not thing.sure:
            return None
        rivals = [i for i, other in enumerate(scene.things) if other.category == thing.category]
        known = facts(scene, index, rivals, lambda mark: self.noun(mark, rng))
        if kinds is not None:
            known = [fact for fact in known if fact.kind in kinds]
        chosen = self._choose(scene, thing, index, rivals, known, rng, must=kinds is not None)
        if chosen is None:
            return None
        text = self._nameless(scene, index, rivals, chosen, rng) or self._phrase(
            self._called(scene, index, rng), chosen, rng
        )
        text = rng.choice(_OPENINGS) + text if not text.startswith(("the ", "in ", "on ")) else text
        if rng.random() < typos:
            text = misspell(text, rng)
        return Sentence(text, tuple(fact.kind for fact in chosen))

    def _choose(
        self,
        scene: Scene,
        thing: Thing,
        index: int,
        rivals: Sequence[int],
        known: list[Fact],
        rng: random.Random,
        must: bool,
    ) -> list[Fact] | None:
        """Choose up to three facts that leave only the thing itself."""
        left = frozenset(rivals)
        if len(rivals) == 1 and not scene.complete(thing.category):
            return None  # another of its kind may be there, and nothing is known about it
        chosen: list[Fact] = []
        pool = list(known)
        wanted = rng.choices((0, 1, 2), (5, 4, 1))[0] if len(rivals) == 1 else rng.choices((1, 2), (4, 1))[0]
        if must:
            wanted = max(1, wanted)
        while pool and len(chosen) < 3 and (left != {index} or len(chosen) < wanted):
            if left != {index}:  # prefer what helps
                useful = [fact for fact in pool if left & fact.fits < left]
                if not useful:
                    return None
                decisive = [fact for fact in useful if left & fact.fits == {index}]
                options = decisive if decisive and rng.random() < 0.8 else useful
            else:
                options = pool
            fact = rng.choices(options, [_ROUGH.get(one.kind, 0.7) for one in options])[0]
            chosen.append(fact)
            left &= fact.fits
            taken = (
                {"side", "corner", "middle", "ordinal"}
                if fact.kind in ("side", "corner", "middle", "ordinal")
                else {fact.kind}
            )
            pool = [one for one in pool if one.kind not in taken]
        if left != {index} or (must and not chosen):
            return None
        return chosen

    def _called(self, scene: Scene, index: int, rng: random.Random) -> str:
        """Return a noun for the thing; a general one ("animal") where nothing else in the scene fits it."""
        thing = scene.things[index]
        if thing.category in self._general and rng.random() < 0.1:
            noun = rng.choice(self._general[thing.category])
            if all(other.category not in self._covers[noun] for i, other in enumerate(scene.things) if i != index):
                return noun
        return self.noun(thing, rng)

    def _nameless(
        self, scene: Scene, index: int, rivals: Sequence[int], chosen: Sequence[Fact], rng: random.Random
    ) -> str | None:
        """Return "far left" or "red shirt" where no noun is needed: the thing is one of the photo's main kind."""
        if len(chosen) != 1 or not chosen[0].alone or len(rivals) < 2 or rng.random() > 0.35:
            return None
        if chosen[0].kind != "clothing":
            mine = sum(scene.things[i].area for i in rivals)
            counts: dict[str, float] = {}
            for thing in scene.things:
                if thing.category != scene.things[index].category:
                    counts[thing.category] = counts.get(thing.category, 0.0) + thing.area
            if any(area > 0.6 * mine for area in counts.values()):
                return None
        return rng.choice(chosen[0].alone)

    @staticmethod
    def _phrase(noun: str, chosen: Sequence[Fact], rng: random.Random) -> str:
        """Put facts before and after the noun."""
        before: list[str] = []
        after: list[str] = []
        for fact in chosen:
            if fact.before and (not fact.after or rng.random() < 0.5) and len(before) < 2:
                word = rng.choice(fact.before)
                before.insert(0, word) if fact.kind != "colour" else before.append(word)
            else:
                after.append(rng.choice(fact.after or fact.before))
        rng.shuffle(after)
        return " ".join([*before, noun, *after])
