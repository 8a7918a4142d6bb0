"""Nouns of WordNet: which words name a kind of thing, and what kind a word is.

Reads the database files ``index.noun`` and ``data.noun`` of WordNet 3.0 (Princeton University; Debian package
``wordnet-base``, folder ``usr/share/wordnet``). Format: https://wordnet.princeton.edu/documentation/wndb5wn
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cris_edge.errors import DataError

SENSES: dict[str, tuple[tuple[str, int], ...]] = {
    "stop sign": (("street sign", 1),),
    "potted plant": (("houseplant", 1), ("plant", 2)),
    "skis": (("ski", 1),),
    "sports ball": (("ball", 1),),
    "kite": (("kite", 3),),
    "wine glass": (("wineglass", 1),),
    "banana": (("banana", 2),),
    "broccoli": (("broccoli", 2),),
    "carrot": (("carrot", 1),),
    "hot dog": (("hot dog", 2), ("frankfurter", 1)),
    "cake": (("cake", 3),),
    "dining table": (("table", 2),),
    "toilet": (("toilet", 2),),
    "tv": (("television receiver", 1), ("monitor", 4)),
    "mouse": (("mouse", 4),),
    "remote": (("remote control", 1),),
    "keyboard": (("computer keyboard", 1),),
    "cell phone": (("cellular telephone", 1), ("telephone", 1)),
    "microwave": (("microwave", 2),),
    "toaster": (("toaster", 2),),
    "book": (("book", 1), ("book", 2)),
    "tie": (("tie", 1),),
    "cow": (("cow", 1), ("cattle", 1)),
    "handbag": (("handbag", 1), ("bag", 1)),
    "baseball bat": (("baseball bat", 1), ("bat", 5)),
    "orange": (("orange", 1),),
}
"""Senses of COCO's classes (lemma, number from 1) where the first noun sense of the name is not the one meant."""


class WordNet:
    """The nouns of WordNet.

    Args:
        folder: the folder that holds ``index.noun`` and ``data.noun``.

    Raises:
        DataError: the files are missing.
    """

    def __init__(self, folder: Path) -> None:
        self._senses: dict[str, list[str]] = {}
        self._lemmas: dict[str, list[str]] = {}
        self._below: dict[str, list[str]] = {}
        self._above: dict[str, list[str]] = {}
        try:
            index = (folder / "index.noun").read_text(encoding="utf-8")
            data = (folder / "data.noun").read_text(encoding="utf-8")
        except OSError as exc:
            raise DataError(
                f"Cannot read WordNet in {folder}: {exc.strerror}. Unpack the Debian package wordnet-base and pass its "
                "folder usr/share/wordnet."
            ) from exc
        for line in index.splitlines():
            if not line.startswith(" "):  # the licence is indented
                fields = line.split()
                self._senses[fields[0].replace("_", " ")] = fields[-int(fields[2]) :]
        for line in data.splitlines():
            if line.startswith(" "):
                continue
            fields = line.split(" | ")[0].split(" ")
            synset, words = fields[0], int(fields[3], 16)
            self._lemmas[synset] = [word.replace("_", " ").lower() for word in fields[4 : 4 + 2 * words : 2]]
            pointers = fields[5 + 2 * words :]
            for symbol, target in zip(pointers[::4], pointers[1::4], strict=False):
                if symbol in ("~", "~i"):
                    self._below.setdefault(synset, []).append(target)
                elif symbol in ("@", "@i"):
                    self._above.setdefault(synset, []).append(target)

    def senses(self, noun: str) -> list[str]:
        """Return the synsets of a noun, most frequent first; plurals in -s, -es and -ies are looked up as singulars."""
        for form in (noun, *singulars(noun)):
            if form in self._senses:
                return self._senses[form]
        return []

    def lemmas(self, synset: str) -> list[str]:
        """Return the words of a synset, lower case, with spaces."""
        return self._lemmas[synset]

    def below(self, synset: str, depth: int = 12) -> Iterator[tuple[str, int]]:
        """Yield a synset and all its hyponyms with their distance, nearest first, each once."""
        seen, level = {synset}, [synset]
        for distance in range(depth + 1):
            yield from ((one, distance) for one in level)
            level = [low for one in level for low in self._below.get(one, ())]
            level = [low for low in dict.fromkeys(level) if low not in seen]
            seen.update(level)

    def above(self, synset: str) -> set[str]:
        """Return a synset and all its hypernyms."""
        found, todo = {synset}, [synset]
        while todo:
            for high in self._above.get(todo.pop(), ()):
                if high not in found:
                    found.add(high)
                    todo.append(high)
        return found

    def category(self, name: str) -> list[str]:
        """Return the synsets that a class name of a data set stands for; empty when WordNet does not know it."""
        if name in SENSES:
            return [self.senses(lemma)[number - 1] for lemma, number in SENSES[name]]
        for noun in (name, name.rsplit(" ", 1)[-1]):
            if self.senses(noun):
                return self.senses(noun)[:1]
        return []

    def kinds(self, noun: str, categories: dict[str, set[str]], senses: int = 3) -> dict[str, float]:
        """Weigh the categories that a noun may name.

        Args:
            noun: a word or compound.
            categories: category -> every synset at or below it.
            senses: how many of the noun's senses count.

        Returns:
            Category -> weight in (0, 1]: 1 for the noun's first sense, 1/2 for its second and so on.
        """
        found: dict[str, float] = {}
        for rank, synset in enumerate(self.senses(noun)[:senses]):
            for category, members in categories.items():
                if synset in members:
                    found[category] = max(found.get(category, 0.0), 1 / (1 + rank))
        return found


def singulars(noun: str) -> list[str]:
    """Return what may be the singular of a noun, likeliest first."""
    irregular = {"men": "man", "women": "woman", "children": "child", "people": "person", "feet": "foot"}
    if noun in irregular:
        return [irregular[noun]]
    if noun.endswith("ies") and len(noun) > 4:
        return [noun[:-3] + "y", noun[:-1]]
    if noun.endswith(("ses", "xes", "ches", "shes", "oes")):
        return [noun[:-2], noun[:-1]]
    if noun.endswith("ves"):
        return [noun[:-3] + "f", noun[:-3] + "fe", noun[:-1]]
    return [noun[:-1]] if noun.endswith("s") and not noun.endswith("ss") and len(noun) > 3 else []
