"""Prompts that match nothing in a scene, or several objects: the generalized task."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

from training.scenes.describing import Reference, describe
from training.scenes.meaning import MAYBE, NO, YES, Noun, Query, fits
from training.scenes.prompts import MAX_WORDS, phrase, phrase_several
from training.scenes.scene import COLOURS, PATTERNS, Scene, SceneObject
from training.scenes.shapes import KINDS

NEGATIVES = 1 / 3
"""Share of the prompts of a generalized scene that match nothing."""
SEVERAL = 1 / 8
"""Share of the prompts that match several objects, where the scene has a group to describe."""

_SWAPS = {"colour": 45, "kind": 35, "pattern": 12, "both": 8}


@dataclass(frozen=True)
class Prompt:
    """A prompt and the objects it matches.

    Attributes:
        text: Lower case.
        indices: The objects in ascending order; empty where nothing matches.
        family: A key of `training.scenes.describing.FAMILIES`, "nothing" or "several".
    """

    text: str
    indices: tuple[int, ...]
    family: str


def generalize(scene: Scene, references: list[Reference], rng: Random) -> list[Prompt]:
    """Replace some of a scene's prompts by ones that match nothing or several objects.

    A prompt that matches nothing is one of `references` with an attribute of its target swapped, so that no object of
    the scene fits; everything else in it stays true.
    """
    prompts = []
    for reference in references:
        draw = rng.random()
        made = None
        if draw < NEGATIVES:
            made = absent(scene, reference, rng)
        elif draw < NEGATIVES + SEVERAL:
            made = several(scene, rng)
        prompts.append(made or Prompt(reference.prompt, (reference.index,), reference.family))
    return prompts


def absent(scene: Scene, reference: Reference, rng: Random, attempts: int = 40) -> Prompt | None:
    """Return a prompt that matches nothing in `scene`, made from one that matches, or None."""
    target = scene.objects[reference.index]
    for _ in range(attempts):
        noun = _swapped(reference.query.noun, target, rng)
        # Relations keep their anchors. Hidden objects count too, so that no visible sliver makes the prompt true.
        if any(fits(noun, thing) != NO for thing in scene.objects):
            continue
        text = phrase(replace(reference.query, noun=noun), reference.family, rng, typos=0.0)
        if len(text.split()) <= MAX_WORDS:
            return Prompt(text, (), "nothing")
    return None


def absent_prompt(scene: Scene, rng: Random) -> str | None:
    """Return a prompt that matches nothing in `scene`, or None where none was found."""
    references = describe(scene, rng, count=1)
    prompt = absent(scene, references[0], rng) if references else None
    return prompt.text if prompt else None


def _swapped(noun: Noun, target: SceneObject, rng: Random) -> Noun:
    swap = rng.choices([*_SWAPS], [*_SWAPS.values()])[0]
    # The size of an absent object has no meaning.
    full = Noun(noun.kind or target.kind, noun.colour, noun.pattern)
    if swap == "pattern":
        other = rng.choice([pattern for pattern in PATTERNS if pattern != target.pattern])
        return replace(full, pattern=other, colour=full.colour or target.colour)
    if swap in ("kind", "both"):
        full = replace(full, kind=rng.choice([kind for kind in KINDS if kind != target.kind]))
    if swap in ("colour", "both"):
        full = replace(full, colour=rng.choice([colour for colour in COLOURS if colour != target.colour]))
    return full


def several(scene: Scene, rng: Random) -> Prompt | None:
    """Return a prompt for all objects of one kind, or of one kind and colour; None where there is no such group.

    A group has at least two objects, all of them clearly visible, and the scene has no borderline ones.
    """
    nouns = {Noun(o.kind) for o in scene.objects} | {Noun(o.kind, o.colour) for o in scene.objects}
    groups: list[tuple[Noun, list[SceneObject]]] = []
    for noun in sorted(nouns, key=lambda noun: (str(noun.kind), str(noun.colour))):
        states = [(thing, fits(noun, thing)) for thing in scene.objects if thing.visible]
        group = [thing for thing, state in states if state == YES]
        if len(group) >= 2 and all(thing.clear for thing in group) and all(state != MAYBE for _, state in states):
            groups.append((noun, group))
    if not groups:
        return None
    noun, group = rng.choice(groups)
    indices = tuple(sorted(thing.index for thing in group))
    return Prompt(phrase_several(Query(noun), len(group), rng), indices, "several")
