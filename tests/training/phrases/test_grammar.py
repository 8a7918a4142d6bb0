"""Every sentence is true of the thing it is about, and of no other."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

import pytest

from training.phrases.grammar import Describer
from training.phrases.things import Scene, Thing

Box = tuple[float, float, float, float]


def thing(category: str, box: Box, **more: object) -> Thing:
    return Thing(category=category, box=box, **more)  # type: ignore[arg-type]


CUPS = Scene(
    things=(
        thing("cup", (0.05, 0.4, 0.15, 0.6), colour="red"),
        thing("cup", (0.45, 0.4, 0.55, 0.6), colour="blue"),
        thing("cup", (0.8, 0.3, 0.98, 0.7), colour="blue"),
        thing("laptop", (0.4, 0.65, 0.7, 0.95)),
    )
)
DESCRIBER = Describer(
    {"cup": {"cup": 1.0, "mug": 1.0}, "person": {"person": 1.0}}, {"vehicle": frozenset({"car", "bus"})}
)


def sentences(scene: Scene, index: int, count: int = 300, describer: Describer = DESCRIBER) -> set[str]:
    made = (describer.describe(scene, index, random.Random(seed), typos=0.0) for seed in range(count))
    return {one.text for one in made if one is not None}


@pytest.mark.parametrize(
    ("index", "holds"),
    [
        (
            0,
            lambda text: (
                "right" not in re.sub("from (the )?right", "", text) and "blue" not in text and "big" not in text
            ),
        ),
        (1, lambda text: "red" not in text and "far" not in text and "big" not in text),
        (2, lambda text: "red" not in text and "left" not in re.sub("from (the )?left", "", text)),
    ],
    ids=["left red cup", "middle blue cup", "right blue cup"],
)
def test_a_sentence_says_nothing_that_is_false(index: int, holds: Callable[[str], bool]) -> None:
    made = sentences(CUPS, index)
    assert len(made) > 20
    assert [text for text in made if not holds(text)] == []


def test_a_colour_that_two_share_does_not_stand_alone() -> None:
    made = sentences(CUPS, 1)
    assert made and not made & {"blue cup", "the blue cup", "blue mug", "cup", "the cup"}
    assert sentences(CUPS, 0) & {"red cup", "red mug", "the red cup", "the red mug"}


def test_things_in_a_row_are_counted_from_either_side() -> None:
    made = " | ".join(sentences(CUPS, 1, 1500))
    assert "second from" in made or "2nd from" in made
    assert "third" not in made and "first" not in made


def test_an_unknown_colour_or_an_unsure_thing_stands_in_the_way() -> None:
    unknown = Scene(things=(thing("cup", (0.2, 0.2, 0.4, 0.4), colour="red"), thing("cup", (0.25, 0.25, 0.45, 0.45))))
    assert not {text for text in sentences(unknown, 0) if text.split()[-2:] == ["red", "cup"]}
    unsure = Scene(things=(thing("cup", (0.2, 0.2, 0.4, 0.4)), thing("cup", (0.22, 0.2, 0.42, 0.4), sure=False)))
    assert sentences(unsure, 0) == set() and sentences(unsure, 1) == set()


def test_nothing_is_claimed_of_a_kind_that_is_not_all_labelled() -> None:
    alone = (thing("cup", (0.2, 0.2, 0.4, 0.4), colour="red"),)
    assert sentences(Scene(things=alone), 0)
    assert sentences(Scene(things=alone, countable=frozenset({"bowl"})), 0) == set()


def test_people_are_known_by_their_clothes() -> None:
    people = Scene(
        things=(
            thing("person", (0.1, 0.1, 0.4, 0.9), upper="red", names=("man",)),
            thing("person", (0.15, 0.1, 0.45, 0.9), upper="green", lower="black"),
        )
    )
    made = sentences(people, 0)
    assert any("red" in text and "man" in text for text in made)
    assert not any("green" in text for text in made)


def test_relations_name_a_landmark_that_there_is_one_of() -> None:
    scene = Scene(
        things=(
            thing("cup", (0.1, 0.5, 0.2, 0.6)),
            thing("cup", (0.75, 0.5, 0.85, 0.6)),
            thing("laptop", (0.22, 0.45, 0.45, 0.65)),
        )
    )
    made = sentences(scene, 0, 600)
    assert any("laptop" in text for text in made)
    assert not any("laptop" in text and ("next to" in text or "near" in text) for text in sentences(scene, 1, 600))


def test_a_general_noun_is_used_only_where_one_thing_fits_it() -> None:
    car = thing("car", (0.1, 0.1, 0.4, 0.4))
    assert any("vehicle" in text for text in sentences(Scene(things=(car,)), 0, 600))
    both = Scene(things=(car, thing("bus", (0.6, 0.1, 0.9, 0.4))))
    assert not any("vehicle" in text for text in sentences(both, 0, 600))


def test_requested_kinds_are_stated() -> None:
    for seed in range(50):
        made = DESCRIBER.describe(CUPS, 0, random.Random(seed), kinds=("colour",))
        assert made is not None and made.kinds == ("colour",)
    assert DESCRIBER.describe(CUPS, 1, random.Random(0), kinds=("colour",)) is None
