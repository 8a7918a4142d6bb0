"""Which nouns people use for which category, learned from human sentences about known objects and from WordNet."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from training.phrases.edits import COLOURS, word_set, words
from training.phrases.wordnet import WordNet, singulars

_PLACES = word_set(
    "left right top bottom middle center centre corner side front back far near upper lower end edge background "
    "foreground leftmost rightmost lefthand righthand most first second third fourth fifth last 1st 2nd 3rd 4th 5th "
    "one ones closest nearest farthest furthest camera us next row half part area pic picture photo image view click"
)
_STOPS = word_set(
    "in on with at of from to by behind near beside wearing holding sitting standing that who whose which is are was "
    "has under over above below between and but not w looking being facing walking riding playing eating the's"
)
_MODIFIERS = word_set(
    "a an the this that his her its their my your big bigger biggest small smaller smallest little tiny large larger "
    "largest tall short long old young dark light bright all only whole full empty two three four five six some "
    "other another black-and-white striped plain grey tan gold silver blonde blond bald"
) | frozenset(COLOURS)
_MEASURES = word_set("piece pieces slice slices bunch pile group pair half kind bowl glass")
_RARE = 0.03  # share of a category's commonest noun below which a noun sounds odd
_PRIOR = 2.0  # human sightings that one WordNet reading of a noun is worth


@dataclass(frozen=True, kw_only=True)
class Lexicon:
    """Nouns of categories.

    Attributes:
        names: category -> nouns that are true of anything of that category, with weights.
        kinds: noun -> the category that it usually means.
        general: noun -> the categories that it covers, two or more, such as "animal".
    """

    names: Mapping[str, Mapping[str, float]]
    kinds: Mapping[str, str]
    general: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def category(self, sentence: str) -> str | None:
        """Return the category that a sentence is about, by its head noun; None where that is not known."""
        for noun in heads(words(sentence)):
            if noun in self.kinds:
                return self.kinds[noun]
        return None


def heads(found: Sequence[str]) -> list[str]:
    """Return what may be the head noun of a sentence, best first: the compound, the word, their singulars.

    The head is the last content word before the first preposition, participle or place ("guy" of "guy on the left",
    "teddy bear" of "brown teddy bear left").
    """
    run: list[str] = []
    for word in found:
        participle = word.endswith(("ing", "ed")) and len(word) > 5
        if word == "of" and run and run[-1] in _MEASURES:
            run = []
        elif word in _STOPS | _PLACES | _MODIFIERS or (participle and run):
            if run:
                break
        else:
            run.append(word)
    if not run:
        return []
    compound = " ".join(run[-2:])
    nouns = [compound, run[-1]] if len(run) > 1 else [run[-1]]
    return list(dict.fromkeys(form for noun in nouns for form in (noun, *singulars(noun))))


def build_lexicon(
    wordnet: WordNet,
    categories: Iterable[str],
    observed: Iterable[tuple[str, str]],
    used: Iterable[str],
    *,
    least: int = 3,
) -> Lexicon:
    """Learn which nouns mean which category.

    Args:
        wordnet: for words that were rarely seen.
        categories: class names.
        observed: human sentences with the category of the object that each is about.
        used: human sentences, whatever they are about; only words in these are used in sentences of ours.
        least: sightings from which a word counts as in use.
    """
    categories = list(categories)
    sightings: dict[str, Counter[str]] = defaultdict(Counter)
    for sentence, category in observed:
        for noun in heads(words(sentence))[:2]:
            sightings[noun][category] += 1
    usage: Counter[str] = Counter()
    for sentence in used:
        found = words(sentence)
        usage.update(found)
        usage.update(" ".join(pair) for pair in pairwise(found))
    members = {c: {low for one in wordnet.category(c) for low, _ in wordnet.below(one)} for c in categories}
    kinds: dict[str, str] = {}
    for noun in sorted({*sightings, *(word for word, count in usage.items() if count >= least)}):
        scores: defaultdict[str, float] = defaultdict(float, sightings.get(noun, {}))
        for category, weight in wordnet.kinds(noun, members).items():
            scores[category] += _PRIOR * weight
        if scores:
            category, score = max(scores.items(), key=lambda item: item[1])
            if score >= 1.5 and score > 0.55 * sum(scores.values()):
                kinds[noun] = category
    for category in categories:
        kinds[category] = category
    names: dict[str, dict[str, float]] = {}
    ancestors = {c: {high for one in wordnet.category(c) for high in wordnet.above(one)} for c in categories}
    covers: dict[str, set[str]] = defaultdict(set)
    for category in categories:
        own = {lemma for one in wordnet.category(category) for lemma in wordnet.lemmas(one)}
        own = {lemma for lemma in own if kinds.get(lemma) == category and not set(singulars(lemma)) & kinds.keys()}
        common = max(usage[lemma] for lemma in {category, *own})
        nouns = {lemma: usage[lemma] ** 0.5 for lemma in sorted(own) if usage[lemma] >= max(least, _RARE * common)}
        nouns[category] = max(1.0, common**0.5)
        names[category] = nouns
        for high in sorted(ancestors[category] - set(wordnet.category(category))):
            for lemma in wordnet.lemmas(high):
                if usage[lemma] >= 30 and wordnet.senses(lemma)[:1] == [high] and lemma not in kinds:
                    covers[lemma].add(category)
    general = {noun: frozenset(found) for noun, found in covers.items() if 2 <= len(found) <= 20}
    return Lexicon(names=names, kinds=kinds, general=general)
