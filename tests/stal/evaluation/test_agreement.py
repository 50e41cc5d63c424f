"""What counts as the labelled object, and as the labelled relation."""

import pytest

from stal.evaluation.agreement import in_cone, lies, matches, resembles, states
from stal.prompts import Object, parse


@pytest.mark.parametrize(
    ("name", "phrase", "noun", "same"),
    [
        ("silver bed", "a silver bed", "bed", True),
        ("silver bed", "a bed", "bed", False),
        ("bed", "a silver bed", "bed", True),
        ("tv", "an old television", "television", True),
        ("teddy bear", "a bear", "bear", False),
    ],
)
def test_match_needs_noun_and_attributes(name: str, phrase: str, noun: str, same: bool) -> None:
    assert matches(name, Object(phrase, noun)) == same


def test_resemblance_takes_every_object_of_the_closest_noun() -> None:
    things = parse("a dog, a doll and a dog").objects
    assert resembles("dog", things) == [0, 2]
    assert resembles("zebra", things) == []


@pytest.mark.parametrize(
    ("text", "i", "predicate", "j", "stated"),
    [
        ("a dog left of a cat", 0, "left of", 1, True),
        ("a dog left of a cat", 1, "right of", 0, True),
        ("a dog left of a cat", 1, "left of", 0, False),
        ("a dog left of a cat", 0, "above", 1, False),
        ("a dog left of a cat", 0, "next to", 1, True),
        ("A dog is left of a cat. The cat is left of a cow.", 0, "left of", 2, True),
        ("a dog between a cat and a cow", 1, "left of", 0, True),
        ("a dog between a cat and a cow", 1, "left of", 2, True),
        ("a dog on a cow", 0, "above", 1, True),
        ("a dog behind a cow", 1, "in front of", 0, True),
    ],
)
def test_statement_counts_with_what_follows_from_it(
    text: str, i: int, predicate: str, j: int, stated: bool
) -> None:
    assert states(parse(text), i, predicate, j) == stated


def test_placed_relations_are_seen_from_centres() -> None:
    left, right, low = (0.0, 0.4, 0.2, 0.6), (0.8, 0.3, 1.0, 0.5), (0.0, 0.8, 0.2, 1.0)
    assert lies(left, "left of", right)
    assert not lies(right, "left of", left)
    assert lies(left, "above", low)
    assert lies(left, "next to", right)
    assert not lies(left, "next to", low)


def test_cones_are_45_degrees_wide() -> None:
    here, right, diagonal = (0.0, 0.0, 0.2, 0.2), (0.5, 0.4, 0.7, 0.6), (0.4, 0.5, 0.6, 0.7)
    assert in_cone(right, "right of", here)
    assert not in_cone(diagonal, "right of", here)
    assert in_cone(diagonal, "below", here)
    assert in_cone(here, "next to", right)
    assert not in_cone(here, "left of", here)
