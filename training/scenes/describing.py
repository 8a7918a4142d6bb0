"""Prompts for a scene, each matching exactly one object."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from training.scenes.meaning import CORNERS, RELATIONS, SIDES, SUPERLATIVES, Noun, Query, only, target
from training.scenes.prompts import MAX_WORDS, phrase
from training.scenes.scene import Scene, SceneObject

FAMILIES = {"attribute": 16, "place": 22, "order": 16, "relation": 34, "superlative": 9, "short": 17}
"""Kinds of prompts and how often each is tried in the mixed splits; relations fail more often than attributes."""


@dataclass(frozen=True)
class Reference:
    """A prompt for one object of a scene.

    Attributes:
        prompt: Lower case, at most 15 tokens.
        index: The object's position in `Scene.objects`.
        family: A key of `FAMILIES`.
        query: Its meaning.
    """

    prompt: str
    index: int
    family: str
    query: Query


def _noun(thing: SceneObject, rng: Random, kind: float = 0.88, colour: float = 0.45, pattern: float = 0.14) -> Noun:
    """Describe an object by a random choice of its properties."""
    k = thing.kind if rng.random() < kind else None
    # Clocks, books and shoes have white parts too: "the white one" would be ambiguous without its kind.
    c = thing.colour if rng.random() < colour and (k or thing.colour != "white") else None
    p = thing.pattern if rng.random() < (pattern if thing.pattern != "plain" else pattern / 6) else None
    s = thing.size if k and thing.size != "medium" and rng.random() < 0.1 else None
    return Noun(k, c, p, s)


def _anchor(scene: Scene, thing: SceneObject, rng: Random) -> Noun | None:
    """Describe another object unambiguously, often by as few properties as possible."""
    others = [o for o in scene.objects if o is not thing and o.clear]
    if not others:
        return None
    other = rng.choice(others)
    noun = Noun(other.kind)
    if only(noun, scene) is None or rng.random() < 0.4:
        noun = Noun(other.kind, other.colour)
    if only(noun, scene) is None and other.pattern != "plain":
        noun = Noun(other.kind, other.colour, other.pattern)
    return noun if only(noun, scene) is other else None


_TESTS: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {  # the tests of each family, and their weights
    "attribute": (("",), (1,)),
    "short": (("", *CORNERS, "left", "right", "middle"), (40, 7, 7, 7, 7, 13, 13, 8)),
    "place": ((*SIDES, *CORNERS), (14, 14, 9, 9, 14, 9, 9, 7, 7, 7, 7)),
    "order": (("rank",), (1,)),
    "superlative": (SUPERLATIVES, (3, 3, 2)),
    "relation": (RELATIONS, (17, 17, 20, 20, 12, 12, 14)),
}


def _draft(scene: Scene, thing: SceneObject, family: str, test: str, rng: Random) -> Query | None:
    """Return a query of the family about an object; it may be false or ambiguous."""
    if family == "attribute":
        return Query(_noun(thing, rng, 0.9, 0.8, 0.4))
    if family == "short":
        if not test:
            return Query(_noun(thing, rng, 0.75, 0.8, 0.25))
        if test in CORNERS and rng.random() < 0.5:
            return Query(Noun(), test)
        return Query(_noun(thing, rng, 0.7, 0.5, 0.08), test)
    if family == "place":
        return Query(_noun(thing, rng), test)
    if family == "order":
        noun = _noun(thing, rng, 0.8, 0.25, 0.08)
        return Query(noun, "rank", rng.choices((1, 2, 3, 4), (30, 40, 22, 8))[0], rng.choice(("left", "right")))
    if family == "superlative":
        return Query(_noun(thing, rng, 0.92, 0.2, 0.06), test)
    anchors = [_anchor(scene, thing, rng) for _ in range(2 if test == "between" else 1)]
    named = tuple(a for a in anchors if a is not None)
    if len(named) < len(anchors) or len(set(named)) < len(named):
        return None
    return Query(_noun(thing, rng, 0.9, 0.35, 0.1), test, anchors=named)


def describe(
    scene: Scene,
    rng: Random | int,
    split: str = "train",
    count: int = 4,
    *,
    targets: frozenset[tuple[str, str]] | None = None,
    typos: float = 0.02,
) -> list[Reference]:
    """Write prompts for a scene.

    Args:
        scene: The scene to describe.
        rng: A random number generator, or a seed for one.
        split: "relations" gives only relations; "compositions" names kind and colour in every prompt.
        count: Number of prompts to write, spread over as many objects as possible.
        targets: Pairs (kind, colour) of objects to describe; None allows all.
        typos: Share of prompts with a typo.

    Returns:
        Up to `count` references with distinct prompts; fewer where the scene does not allow more.
    """
    if isinstance(rng, int):
        rng = Random(rng)
    things = [o for o in scene.objects if o.clear and (targets is None or (o.kind, o.colour) in targets)]
    if not things:
        return []
    names = frozenset(o.kind for o in scene.objects)
    families, weights = zip(*FAMILIES.items(), strict=True)
    used = dict.fromkeys((t.index for t in things), 0)
    found: dict[str, Reference] = {}
    for _ in range(40):
        family = "relation" if split == "relations" else rng.choices(families, weights)[0]
        test = rng.choices(*_TESTS[family])[0]
        for _ in range(12):  # the same test again: relations often fail at first
            thing, other = rng.choice(things), rng.choice(things)
            if used[other.index] < used[thing.index]:
                thing = other
            query = _draft(scene, thing, family, test, rng)
            if query is None or target(query, scene) is not thing:
                continue
            if test and test not in SUPERLATIVES and rng.random() < 0.6 and only(query.noun, scene) is thing:
                continue  # the noun alone is enough: people do say more, but not that often
            if split == "compositions" and (query.noun.kind is None or query.noun.colour is None):
                query = Query(
                    Noun(thing.kind, thing.colour, query.noun.pattern, query.noun.size),
                    query.test, query.rank, query.side, query.anchors,
                )  # fmt: skip
                if target(query, scene) is not thing:
                    continue
            prompt = phrase(query, family, rng, names, typos)
            if prompt in found or len(prompt.split()) > MAX_WORDS:
                continue
            found[prompt] = Reference(prompt, thing.index, family, query)
            used[thing.index] += 1
            break
        if len(found) >= count:
            break
    return list(found.values())
