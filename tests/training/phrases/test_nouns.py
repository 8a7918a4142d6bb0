"""Nouns are learned from what people said of known objects, and from WordNet."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cris_edge.errors import DataError
from training.phrases.edits import words
from training.phrases.nouns import Lexicon, build_lexicon, heads
from training.phrases.wordnet import WordNet, singulars

INDEX = """  1 licence
animal n 1 2 @ ~ 1 1 00000001
dog n 1 2 @ ~ 1 1 00000002
domestic_dog n 1 1 @ 1 1 00000002
puppy n 1 1 @ 1 1 00000003
cat n 1 1 @ 1 1 00000004
sofa n 1 1 @ 1 1 00000005
couch n 1 1 @ 1 1 00000005
"""
DATA = """  1 licence
00000001 03 n 01 animal 0 002 ~ 00000002 n 0000 ~ 00000004 n 0000 | a living thing
00000002 05 n 02 dog 0 domestic_dog 0 002 @ 00000001 n 0000 ~ 00000003 n 0000 | it barks
00000003 05 n 01 puppy 0 001 @ 00000002 n 0000 | a young dog
00000004 05 n 01 cat 0 001 @ 00000001 n 0000 | it purrs
00000005 06 n 02 sofa 0 couch 0 000 | a seat
"""


@pytest.fixture
def wordnet(tmp_path: Path) -> WordNet:
    (tmp_path / "index.noun").write_text(INDEX)
    (tmp_path / "data.noun").write_text(DATA)
    return WordNet(tmp_path)


@pytest.fixture
def lexicon(wordnet: WordNet) -> Lexicon:
    used = ["the sofa"] * 20 + ["left couch"] * 30 + ["dog"] * 9 + ["puppies on the left"] * 3 + ["an animal"] * 40
    observed = [("green shirt", "person")] * 3 + [("man on left", "person")] * 5 + [("big pooch", "dog")] * 2
    return build_lexicon(wordnet, ["person", "dog", "cat", "couch"], observed, used)


def test_the_database_is_read(wordnet: WordNet, tmp_path: Path) -> None:
    (dog,) = wordnet.senses("dogs")
    assert wordnet.lemmas(dog) == ["dog", "domestic dog"]
    assert [distance for _, distance in wordnet.below(dog)] == [0, 1]
    assert wordnet.above(dog) == {"00000001", "00000002"}
    with pytest.raises(DataError, match="wordnet-base"):
        WordNet(tmp_path / "nowhere")


def test_plurals_are_looked_up_as_singulars() -> None:
    assert singulars("puppies")[0] == "puppy" and singulars("men") == ["man"] and singulars("glass") == []


@pytest.mark.parametrize(
    ("sentence", "head"),
    [
        ("left guy", "guy"),
        ("man in the red shirt", "man"),
        ("brown teddy bear on the left", "teddy bear"),
        ("guy blue shirt", "guy"),
        ("a slice of pizza", "pizza"),
        ("car parked behind bus", "car"),
        ("far left", None),
    ],
)
def test_the_head_noun_is_found(sentence: str, head: str | None) -> None:
    found = heads(words(sentence))
    assert (found[0] if found else None) == head


def test_words_mean_what_people_meant_by_them(lexicon: Lexicon) -> None:
    assert lexicon.category("the green shirt") == "person"
    assert lexicon.category("old man") == "person"
    assert lexicon.category("pooch") == "dog", "seen twice"
    assert lexicon.category("puppies on the left") == "dog", "from WordNet"
    assert lexicon.category("something else") is None


def test_names_are_synonyms_that_people_use(lexicon: Lexicon) -> None:
    assert set(lexicon.names["couch"]) == {"couch", "sofa"}
    assert set(lexicon.names["dog"]) == {"dog"}, "a puppy is a dog, but not every dog is a puppy"
    assert lexicon.general == {"animal": frozenset({"dog", "cat"})}


def test_a_lexicon_is_the_same_in_every_process(tmp_path: Path) -> None:
    (tmp_path / "index.noun").write_text(INDEX)
    (tmp_path / "data.noun").write_text(DATA)
    program = (
        "import sys; from pathlib import Path; from training.phrases.nouns import build_lexicon\n"
        "from training.phrases.wordnet import WordNet\n"
        "used = ['sofa', 'couch', 'animal', 'dog'] * 40\n"
        "lexicon = build_lexicon(WordNet(Path(sys.argv[1])), ['couch', 'dog', 'cat'], [], used)\n"
        "print([list(nouns) for nouns in lexicon.names.values()], list(lexicon.kinds), list(lexicon.general))"
    )
    root = Path(__file__).resolve().parents[3]
    printed = {
        subprocess.run(
            [sys.executable, "-c", program, str(tmp_path)],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(root)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(printed) == 1
