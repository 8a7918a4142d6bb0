"""Prompts for a query, as people type them: long, short, and sometimes with a typo."""

from __future__ import annotations

from random import Random

from training.scenes.meaning import Noun, Query
from training.scenes.scene import COLOURS

MAX_WORDS = 13
KIND_WORDS: dict[str, tuple[str, ...]] = {  # the first is the most common
    "mug": ("mug", "cup", "coffee mug"),
    "pillow": ("pillow", "cushion"),
    "shoe": ("shoe", "sneaker"),
    "clock": ("clock", "alarm clock"),
    "hat": ("hat",),
    "lamp": ("lamp", "table lamp"),
    "box": ("box", "open box"),
    "ball": ("ball",),
}
PATTERN_WORDS = {
    "striped": ("striped", "striped", "stripy"),
    "dotted": ("dotted", "spotted", "polka dot"),
    "plain": ("plain", "solid"),
}
PATTERN_TAILS = {
    "striped": ("with stripes", "with the stripes"),
    "dotted": ("with dots", "with spots", "with polka dots"),
    "plain": ("without a pattern", "in one color"),
}
SIZE_WORDS = {"small": ("small", "little", "small"), "large": ("large", "big", "big")}
BARE = ("one", "thing", "object")
SIDE_TAILS: dict[str, tuple[str, ...]] = {
    "left": ("on the left", "on left", "to the left", "on the left side", "at left", "far left", "left side"),
    "right": ("on the right", "on right", "to the right", "on the right side", "at right", "far right", "right side"),
    "top": ("at the top", "on top", "at top", "higher up"),
    "bottom": ("at the bottom", "on the bottom", "at bottom", "lower down"),
    "middle": ("in the middle", "in the center", "in middle", "center"),
    "front": ("in front", "closest to us", "nearest to the camera", "in the front", "in the foreground"),
    "back": ("in the back", "farthest away", "at the back", "in the background", "farthest from us"),
}
SIDE_HEADS: dict[str, tuple[str, ...]] = {
    "left": ("left", "left", "leftmost", "far left"),
    "right": ("right", "right", "rightmost", "far right"),
    "top": ("top", "upper", "topmost"),
    "bottom": ("bottom", "lower", "lowest"),
    "middle": ("middle", "center"),
    "front": ("front", "closest", "nearest"),
    "back": ("back", "farthest"),
}
ORDINALS = ("first", "second", "third", "fourth", "fifth")
SUPERLATIVE_WORDS = {
    "largest": ("largest", "biggest", "biggest"),
    "smallest": ("smallest", "tiniest", "littlest"),
    "tallest": ("tallest",),
}
RELATION_WORDS: dict[str, tuple[str, ...]] = {
    "left of": ("left of", "to the left of", "on the left of", "on the left side of"),
    "right of": ("right of", "to the right of", "on the right of", "on the right side of"),
    "behind": ("behind", "right behind", "in back of", "that is behind"),
    "in front of": ("in front of", "right in front of", "just in front of", "that is in front of"),
    "closest to": ("closest to", "nearest to", "nearest", "close to", "that is closest to"),
    "next to": ("next to", "beside", "by", "near", "right next to"),
    "between": ("between", "in between", "that is between"),
}
_PROTECTED_TYPOS = frozenset((*COLOURS, "violet", "right", "bottom", "front"))


def _kind(kind: str | None, rng: Random) -> str:
    if kind is None:
        return rng.choice(BARE)
    words = KIND_WORDS.get(kind, (kind,))
    return words[0] if rng.random() < 0.7 else rng.choice(words)


def _colour(colour: str, rng: Random) -> str:
    return "violet" if colour == "purple" and rng.random() < 0.12 else colour


def noun_words(noun: Noun, rng: Random) -> str:
    """Return a noun phrase without an article: "striped blue mug", "red one", "mug with dots"."""
    front, tail = [], ""
    if noun.size is not None:
        front.append(rng.choice(SIZE_WORDS[noun.size]))
    if noun.pattern is not None:
        if noun.size is None and rng.random() < 0.22:
            tail = " " + rng.choice(PATTERN_TAILS[noun.pattern])
        else:
            front.append(rng.choice(PATTERN_WORDS[noun.pattern]))
    if noun.colour is not None:
        front.insert(len(front) if rng.random() < 0.8 else 0, _colour(noun.colour, rng))
    head = _kind(noun.kind, rng)
    if noun.kind is not None and noun.colour is not None and len(front) == 1 and not tail and rng.random() < 0.04:
        return f"{head} that is {front[0]}"
    return " ".join([*front, head]) + tail


def _short(query: Query, rng: Random) -> str:
    """Return a terse prompt: "red one left", "bottom left", "left mug"."""
    noun = query.noun
    if query.test == "":
        words = [_colour(noun.colour, rng)] if noun.colour else []
        words = ([rng.choice(PATTERN_WORDS[noun.pattern])] if noun.pattern else []) + words
        words = ([rng.choice(SIZE_WORDS[noun.size])] if noun.size else []) + words
        if noun.kind or not words:
            words.append(_kind(noun.kind, rng))
        return " ".join(words)
    body = noun_words(noun, rng)
    if noun == Noun():
        return query.test if rng.random() < 0.6 else f"{query.test} {body}"
    if noun.kind is None and rng.random() < 0.4:
        body = body.removesuffix(" one").removesuffix(" thing").removesuffix(" object")
    return f"{body} {query.test}" if rng.random() < 0.5 else f"{query.test} {body}"


def _place(query: Query, body: str, rng: Random) -> str:
    if query.test in SIDE_TAILS:
        if rng.random() < 0.36:
            return f"{rng.choice(SIDE_HEADS[query.test])} {body}"
        return f"{body} {rng.choice(SIDE_TAILS[query.test])}"
    corner = query.test
    forms = (
        f"{body} at the {corner}",
        f"{body} in the {corner}",
        f"{body} {corner}",
        f"{corner} {body}",
        f"{body} in the {corner} corner",
        f"{body} on the {corner}",
    )
    return rng.choice(forms)


def _rank(query: Query, body: str, rng: Random) -> str:
    forms: tuple[str, ...]
    if query.rank == 1:
        word = "leftmost" if query.side == "left" else "rightmost"
        forms = (f"{word} {body}", f"{body} farthest {query.side}", f"first {body} from the {query.side}")
    else:
        n, s = ORDINALS[query.rank - 1], query.side
        forms = (f"{n} {body} from the {s}", f"{n} {body} from {s}", f"{body} {n} from the {s}")
        forms = (*forms[:2], *forms)
    return rng.choice(forms)


def _relation(query: Query, body: str, rng: Random) -> str:
    anchors = [noun_words(a, rng) for a in query.anchors]
    article = "the " if rng.random() < 0.8 else ""
    if query.test == "between":
        rng.shuffle(anchors)
        return f"{body} {rng.choice(RELATION_WORDS['between'])} {article}{anchors[0]} and {article}{anchors[1]}"
    return f"{body} {rng.choice(RELATION_WORDS[query.test])} {article}{anchors[0]}"


NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five"}


def phrase_several(query: Query, count: int, rng: Random) -> str:
    """Write a prompt for all objects of a kind: "all the red mugs", "the two hats", "both books".

    Args:
        query: Describes them; its noun has a kind.
        count: Number of objects, at least 2.
        rng: Chooses among paraphrases.
    """
    *front, head = noun_words(query.noun, rng).split()
    body = " ".join([*front, plural(head)])
    forms = [f"all the {body}", f"all {body}", f"all of the {body}", f"the {body}", body, f"every {query.noun.kind}"]
    if query.noun.colour:
        forms[-1] = f"every {query.noun.colour} {query.noun.kind}"
    if count in NUMBERS:
        forms += [f"the {NUMBERS[count]} {body}", f"{NUMBERS[count]} {body}"]
    if count == 2:
        forms += [f"both {body}", f"both of the {body}"]
    return rng.choice(forms)


def plural(noun: str) -> str:
    """Return the plural of a kind's name: "boxes", "umbrellas"."""
    return f"{noun}es" if noun.endswith(("x", "s", "ch", "sh")) else f"{noun}s"


def _typo(prompt: str, rng: Random, kept: frozenset[str]) -> str:
    """Swap two adjacent letters inside one longer word, but not in words of colour, kind or side."""
    words = prompt.split()
    long = [i for i, w in enumerate(words) if len(w) >= 5 and w not in kept]
    if not long:
        return prompt
    i = rng.choice(long)
    k = rng.randint(1, len(words[i]) - 3)
    w = words[i]
    words[i] = w[:k] + w[k + 1] + w[k] + w[k + 2 :]
    return " ".join(words)


def phrase(query: Query, family: str, rng: Random, kinds: frozenset[str] = frozenset(), typos: float = 0.02) -> str:
    """Write a prompt for a query.

    Args:
        query: The meaning.
        family: "short" for the tersest form; any other name for the usual forms.
        rng: Chooses among paraphrases.
        kinds: Words that must not get a typo, besides colours and sides.
        typos: Share of prompts with a typo.

    Returns:
        The prompt, lower case; it may exceed `MAX_WORDS`, which the caller checks.
    """
    if family == "short":
        prompt = _short(query, rng)
    else:
        body = noun_words(query.noun, rng)
        if query.test == "":
            prompt = body
        elif query.test == "rank":
            prompt = _rank(query, body, rng)
        elif query.test in SUPERLATIVE_WORDS:
            prompt = f"{rng.choice(SUPERLATIVE_WORDS[query.test])} {body}"
        elif query.test in RELATION_WORDS:
            prompt = _relation(query, body, rng)
        else:
            prompt = _place(query, body, rng)
        if rng.random() < 0.42:
            prompt = "the " + prompt
    if rng.random() < typos:
        words = {w for options in KIND_WORDS.values() for o in options for w in o.split()}
        prompt = _typo(prompt, rng, _PROTECTED_TYPOS | words | kinds)
    return prompt
