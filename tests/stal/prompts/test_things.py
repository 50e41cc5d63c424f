"""The table of everyday things."""

import pytest

from stal.prompts.things import NOUNS, RESTS_ON, thing_of, things, worn_at


def test_the_table_has_every_noun_once_with_a_size_and_a_setting():
    rows = [line for line in NOUNS.read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
    assert len(things()) == len(rows) - 1 > 80
    for thing in things().values():
        assert min(thing.width, thing.height) > 0 <= thing.over_ground
        assert thing.settings
        assert thing.rests_on in RESTS_ON


@pytest.mark.parametrize(
    ("noun", "known"),
    [
        ("cup", "cup"),
        ("cups", "cup"),
        ("polar bear", "bear"),
        ("Dog", "dog"),
        ("wizards", "man"),
        ("finch", "bird"),
        ("gizmo", None),
    ],
)
def test_a_noun_is_found_by_its_last_words(noun, known):
    found = thing_of(noun)
    assert (found and found.noun) == known


def test_a_compound_is_found_by_the_phrase():
    assert thing_of("clock", "an old grandfather clock").noun == "grandfather clock"
    assert thing_of("clock", "a red clock").noun == "clock"


def test_parts_do_not_change_the_size():
    assert thing_of("woman", "a woman with a huge smile") == thing_of("woman")
    assert thing_of("woman", "a tiny woman with large eyes") == thing_of("woman", "a tiny woman")


@pytest.mark.parametrize(
    ("noun", "share"), [("top hat", 0.08), ("boots", 0.95), ("glasses", 0.1), ("car", None)]
)
def test_things_are_worn_at_a_height(noun, share):
    assert worn_at(noun) == share


def test_adjectives_change_the_size():
    cup, tiny, huge = (thing_of("cup", f"a {each}cup") for each in ("", "tiny ", "huge "))
    assert tiny.extent < cup.extent < huge.extent
    assert thing_of("cup", "a tiny, red cup") == tiny
    assert tiny.width / tiny.height == pytest.approx(cup.width / cup.height)
