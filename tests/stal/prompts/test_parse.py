"""The prompt parser: constructions one by one, then text that nobody meant as a prompt."""

import dataclasses
import re
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stal.prompts import PREDICATES, Description, Object, Relation, article, parse
from stal.prompts.parser import noun_of


def phrases(text: str) -> list[str]:
    return [found.phrase for found in parse(text).objects]


def statements(text: str) -> list[str]:
    """Relations by noun, e.g. "circle left of square"."""
    found = parse(text)
    nouns = [thing.noun for thing in found.objects]
    return [f"{nouns[r.subject]} {r.predicate} {nouns[r.object]}" for r in found.relations]


# One entry a construction and sentence: text, phrases in order, relations in order.
CASES = {
    "noun": ("a circle", ["a circle"], []),
    "noun, no article": ("red circle", ["a red circle"], []),
    "attributes": ("a large shiny red circle", ["a large shiny red circle"], []),
    "attributes joined": (
        "a red and white striped cat next to a blue dog",
        ["a red and white striped cat", "a blue dog"],
        ["cat next to dog"],
    ),
    "attributes joined, three": (
        "the red, white and blue kite",
        ["a red, white and blue kite"],
        [],
    ),
    "attributes joined by comma": ("a large, green star", ["a large, green star"], []),
    "attribute after the noun": (
        "a circle that is red above a square which is light blue",
        ["a red circle", "a square"],
        ["circle above square"],
    ),
    "attribute after the noun, an": ("a ball that is orange", ["an orange ball"], []),
    "shared noun": ("a red and a blue circle", ["a red circle", "a blue circle"], []),
    "noun replaced by one": ("a red circle and a blue one", ["a red circle", "a blue circle"], []),
    "possessive": ("her red hat and his shoes", ["a red hat", "shoes"], []),
    "owner": ("the cat's toy", ["a cat", "a toy"], []),
    "owner of a part": (
        "The dog was perched atop the elephant's back.",
        ["a dog", "an elephant"],
        ["dog above elephant"],
    ),
    "owners of two things": (
        "The cat's bowl is left of the dog's bowl.",
        ["a cat", "a bowl", "a dog", "a bowl"],
        ["bowl left of bowl"],
    ),
    "compound": (
        "a traffic light beside a red teddy bear",
        ["a traffic light", "a red teddy bear"],
        ["traffic light next to teddy bear"],
    ),
    "compound plural": ("two hot dogs", ["a hot dog", "a hot dog"], []),
    "orange is a thing": ("an orange and an orange cross", ["an orange", "an orange cross"], []),
    "portion": ("a slice of pizza", ["a slice of pizza"], []),
    "portion, counted thing": ("a bunch of ripe bananas", ["a bunch of ripe bananas"], []),
    "content": ("a glass of water", ["a glass of water"], []),
    "count": ("two red circles", ["a red circle", "a red circle"], []),
    "count in digits": ("3 stars", ["a star"] * 3, []),
    "count, mixed": ("one dog and three cats", ["a dog", "a cat", "a cat", "a cat"], []),
    "count, in s": ("two crosses", ["a cross", "a cross"], []),
    "pair": ("a pair of dogs", ["a dog", "a dog"], []),
    "couple": ("a couple of red stars", ["a red star", "a red star"], []),
    "pair is one thing": ("a pair of scissors", ["a pair of scissors"], []),
    "dozen": ("a dozen roses", ["a rose"] * 12, []),
    "crowd": ("500 dogs", ["500 dogs"], []),
    "uncounted plural": ("several birds and green apples", ["several birds", "green apples"], []),
    "uncounted plural, definite": ("the green apples", ["green apples"], []),
    "and": ("a green triangle and a yellow star", ["a green triangle", "a yellow star"], []),
    "commas": ("a dog, a cat, and a bird", ["a dog", "a cat", "a bird"], []),
    "with": ("a red ring with a blue star", ["a red ring", "a blue star"], []),
    "with, counted": (
        "a ring, with two stars and a cross",
        ["a ring", "a star", "a star", "a cross"],
        [],
    ),
    "twins": ("a red star and a red star", ["a red star", "a red star"], []),
    "twins, no article": ("red star and red star", ["a red star", "a red star"], []),
    "chain by which": (
        "a circle is above a square, which is left of a ring",
        ["a circle", "a square", "a ring"],
        ["circle above square", "square left of ring"],
    ),
    "chain by that": (
        "a dog below a cat that is right of a bird",
        ["a dog", "a cat", "a bird"],
        ["dog below cat", "cat right of bird"],
    ),
    "clause inside": (
        "a circle that is above a square is left of a ring",
        ["a circle", "a square", "a ring"],
        ["circle above square", "circle left of ring"],
    ),
    "nearest noun in a caption": (
        "a circle above a square left of a ring",
        ["a circle", "a square", "a ring"],
        ["circle above square", "square left of ring"],
    ),
    "two statements about one thing": (
        "The chair is to the right of the toilet and below the table.",
        ["a chair", "a toilet", "a table"],
        ["chair right of toilet", "chair below table"],
    ),
    "joined subjects": (
        "A cat and a dog are left of a horse.",
        ["a cat", "a dog", "a horse"],
        ["cat left of horse", "dog left of horse"],
    ),
    "joined objects": (
        "a photo of a red circle above a blue square and a green ring",
        ["a red circle", "a blue square", "a green ring"],
        ["circle above square", "circle above ring"],
    ),
    "joined objects, both": (
        "The cow stood to the left of both the bear and the dog.",
        ["a cow", "a bear", "a dog"],
        ["cow left of bear", "cow left of dog"],
    ),
    "counted objects": (
        "two circles above a square",
        ["a circle", "a circle", "a square"],
        ["circle above square", "circle above square"],
    ),
    "joined objects in a sentence": (
        "The bottle is placed above the yellow fork and knife.",
        ["a bottle", "a yellow fork", "a knife"],
        ["bottle above fork", "bottle above knife"],
    ),
    "two clauses": (
        "a dog left of a cat and a bird above a horse",
        ["a dog", "a cat", "a bird", "a horse"],
        ["dog left of cat", "bird above horse"],
    ),
    "while": (
        "The cat is below the horse, while the bird is right of the dog.",
        ["a cat", "a horse", "a bird", "a dog"],
        ["cat below horse", "bird right of dog"],
    ),
    "inverted": ("To the left of the dog is a cat.", ["a dog", "a cat"], ["cat left of dog"]),
    "inverted, second clause": (
        "A dog is left of a cat, and above the cat is a bird.",
        ["a dog", "a cat", "a bird"],
        ["dog left of cat", "bird above cat"],
    ),
    "inverted, possessive": (
        "A woman stands in the park. To her right is a bench.",
        ["a woman", "a bench"],
        ["bench right of woman"],
    ),
    "inverted, list": (
        "Above the square sits a circle and a star.",
        ["a square", "a circle", "a star"],
        ["circle above square", "star above square"],
    ),
    "inverted, comma": (
        "Below the shelf, a vase was carefully placed.",
        ["a shelf", "a vase"],
        ["vase below shelf"],
    ),
    "with above it": ("a star with a ring above it", ["a star", "a ring"], ["ring above star"]),
    "with, twice": (
        "a star with a ring above it and a cross below it",
        ["a star", "a ring", "a cross"],
        ["ring above star", "cross below star"],
    ),
    "with, statement goes on": (
        "a dog with a cat above it is left of a horse",
        ["a dog", "a cat", "a horse"],
        ["cat above dog", "dog left of horse"],
    ),
    "with, statement of its own": (
        "A man smiles, with the apple above the cake and to the right of the dog.",
        ["a man", "an apple", "a cake", "a dog"],
        ["apple above cake", "apple right of dog"],
    ),
    "with to its left": (
        "The pizza lay on the ground, with a carrot to its left.",
        ["a pizza", "a carrot"],
        ["carrot left of pizza"],
    ),
    "with to the left": ("a dog with a cat to the left", ["a dog", "a cat"], ["cat left of dog"]),
    "with to the left and right": (
        "The table is flanked by a couch to the right and a chair to the left.",
        ["a table", "a couch", "a chair"],
        [
            "table between couch",
            "table between chair",
            "couch right of table",
            "chair left of table",
            "chair left of couch",
        ],
    ),
    "with above": ("a couch with a clock above", ["a couch", "a clock"], ["clock above couch"]),
    "at their feet": ("A man with a bird at his feet.", ["a man", "a bird"], ["bird below man"]),
    "to the owner's left": ("a dog to the man's left", ["a dog", "a man"], ["dog left of man"]),
    "left and right": (
        "a circle on the left and a square on the right",
        ["a circle", "a square"],
        ["circle left of square"],
    ),
    "left, middle, right": (
        "a ring in the middle, a star on the right and a cross on the left",
        ["a ring", "a star", "a cross"],
        ["cross left of ring", "ring left of star"],
    ),
    "left and right in a sentence": (
        "The dog is on the left, and the cat is on the right.",
        ["a dog", "a cat"],
        ["dog left of cat"],
    ),
    "top and bottom": (
        "a dog at the top, a cat at the bottom",
        ["a dog", "a cat"],
        ["dog above cat"],
    ),
    "corners": (
        "a dog in the top left corner and a cat in the bottom right corner",
        ["a dog", "a cat"],
        ["dog left of cat", "dog above cat"],
    ),
    "sides first": (
        "On the left is a dog, on the right a cat.",
        ["a dog", "a cat"],
        ["dog left of cat"],
    ),
    "sides of the picture": (
        "a dog on the left of the picture and a cat on the right side of the image",
        ["a dog", "a cat"],
        ["dog left of cat"],
    ),
    "a side alone": ("a red circle on the left", ["a red circle"], []),
    "diagonal": (
        "a star to the upper left of a ring",
        ["a star", "a ring"],
        ["star left of ring", "star above ring"],
    ),
    "each other": (
        "a dog and a cat next to each other",
        ["a dog", "a cat"],
        ["dog next to cat"],
    ),
    "are next to each other": (
        "A dog and a cat are next to each other.",
        ["a dog", "a cat"],
        ["dog next to cat"],
    ),
    "side by side": (
        "The zebra and sheep are standing side by side.",
        ["a zebra", "a sheep"],
        ["zebra next to sheep"],
    ),
    "between": (
        "a dog between a cat and a bird",
        ["a dog", "a cat", "a bird"],
        ["dog between cat", "dog between bird"],
    ),
    "between, with sides": (
        "The man stands between a chair to the left and a lamp to the right.",
        ["a man", "a chair", "a lamp"],
        [
            "man between chair",
            "man between lamp",
            "chair left of man",
            "lamp right of man",
            "chair left of lamp",
        ],
    ),
    "there are": ("There are two dogs and a cat.", ["a dog", "a dog", "a cat"], []),
    "there is": (
        "There is a red circle above a blue square.",
        ["a red circle", "a blue square"],
        ["circle above square"],
    ),
    "mentioned again": (
        "A red circle and a blue square. The circle is left of the square.",
        ["a red circle", "a blue square"],
        ["circle left of square"],
    ),
    "mentioned again, after a comma": (
        "a dog above a cat, the cat is left of a bird",
        ["a dog", "a cat", "a bird"],
        ["dog above cat", "cat left of bird"],
    ),
    "mentioned again, by colour": (
        "A red ball and a blue ball. The blue ball is above the red one.",
        ["a red ball", "a blue ball"],
        ["ball above ball"],
    ),
    "mentioned again, by its last word": (
        "a tennis racket and a dog; the racket is left of the dog",
        ["a tennis racket", "a dog"],
        ["tennis racket left of dog"],
    ),
    "mentioned again, all": (
        "two red circles; the circles are above a star",
        ["a red circle", "a red circle", "a star"],
        ["circle above star", "circle above star"],
    ),
    "mentioned again, no article": (
        "red circle left of blue square. red circle above green ring",
        ["a red circle", "a blue square", "a green ring"],
        ["circle left of square", "circle above ring"],
    ),
    "two of one kind": (
        "a red ball above a blue ball",
        ["a red ball", "a blue ball"],
        ["ball above ball"],
    ),
    "pronoun in a later clause": (
        "The book is to the right of the bear, while the scissors rest beneath it.",
        ["a book", "a bear", "scissors"],
        ["book right of bear", "scissors below bear"],
    ),
    "pronoun": (
        "A black cat. It sits to the left of a dog.",
        ["a black cat", "a dog"],
        ["cat left of dog"],
    ),
    "pronoun of a person": (
        "A man holds a cup. Above him is a lamp, and below it is a bowl.",
        ["a man", "a cup", "a lamp", "a bowl"],
        ["cup held by man", "lamp above man", "bowl below lamp"],
    ),
    "background": ("a star on a white background", ["a star"], []),
    "background, pronoun": (
        "A picture of a star with a ring above it against a plain backdrop",
        ["a star", "a ring"],
        ["ring above star"],
    ),
    "background, bare colour": ("two stars on black", ["a star", "a star"], []),
    "background, comma": ("red star, plain gray background", ["a red star"], []),
    "picture": ("a picture of a dog", ["a dog"], []),
    "photo with": ("a photo with a dog and a cat", ["a dog", "a cat"], []),
    "painting that is a thing": (
        "a painting on the left of a girl",
        ["a painting", "a girl"],
        ["painting left of girl"],
    ),
    "empty scene": ("an empty white scene", [], []),
    "empty background": ("an empty background", [], []),
    "nothing": ("nothing", [], []),
    "light alone and in a compound": (
        "a dog in the light under a traffic light",
        ["a dog", "a traffic light"],
        ["dog below traffic light"],
    ),
    "scenery": ("a cow in a field under the sky", ["a cow"], []),
    "scenery, statement goes on": (
        "The plane flew in the sky to the right of the train.",
        ["a plane", "a train"],
        ["plane right of train"],
    ),
    "hand": (
        "The man held a cup in his left hand.",
        ["a man", "a cup"],
        ["cup held by man"],
    ),
    "none": ("0 dogs and no cats, two birds", ["a bird", "a bird"], []),
    "negation": ("a man without a hat and no dog", ["a man"], []),
    "on a thing": ("a cat on a chair", ["a cat", "a chair"], ["cat on chair"]),
    "verb after the noun": (
        "The silver skis were propped up above the surfboard, ready for a day of adventure.",
        ["silver skis", "a surfboard"],
        ["skis above surfboard"],
    ),
    "unknown participle": (
        "A zeppelin moored above a wizzing gizmo",
        ["a zeppelin", "a wizzing gizmo"],
        ["zeppelin above gizmo"],
    ),
    "unknown words": (
        "two blorbs left of a frobnitz",
        ["a blorb", "a blorb", "a frobnitz"],
        ["blorb left of frobnitz", "blorb left of frobnitz"],
    ),
    "other script": (
        "a 红色 circle above une étoile 🐱",
        ["a 红色 circle", "an une étoile"],
        ["circle above étoile"],
    ),
}


@pytest.mark.parametrize(("text", "expected", "relations"), list(CASES.values()), ids=list(CASES))
def test_sentence_gives_objects_and_relations(
    text: str, expected: list[str], relations: list[str]
) -> None:
    assert phrases(text) == expected
    assert statements(text) == relations


WORDINGS = {
    "left of": (
        "left of | to the left of | on the left of | on the left side of | at the left side of"
        " | on the left hand side of | on the left-hand side of | to the far left of"
    ),
    "right of": (
        "right of | to the right of | on the right of | on the right side of"
        " | at the right side of | on the right-hand side of | to the immediate right of"
    ),
    "above": (
        "above | over | on top of | on the top of | atop | higher than | directly above"
        " | perched atop | hovering over | at the top of"
    ),
    "below": (
        "below | under | underneath | beneath | lower than | on the bottom of | right below"
        " | lying under"
    ),
    "next to": (
        "next to | beside | near | close to | adjacent to | alongside | on the side of"
        " | on side of | right next to | side by side with"
    ),
}


@pytest.mark.parametrize(
    ("predicate", "wording"),
    [(predicate, wording) for predicate, line in WORDINGS.items() for wording in line.split(" | ")],
)
def test_wording_gives_predicate(predicate: str, wording: str) -> None:
    for text in (
        f"a red circle {wording} a blue square",
        f"The red circle is {wording} the blue square.",
        f"red circle {wording} blue square on a black background",
    ):
        assert phrases(text) == ["a red circle", "a blue square"]
        assert statements(text) == [f"circle {predicate} square"]


@pytest.mark.parametrize(
    "prefix", ["a photo of", "a picture of", "an image of", "a drawing of", "there is"]
)
def test_prefix_and_background_change_nothing(prefix: str) -> None:
    plain = parse("a red circle to the left of a blue square")
    dressed = parse(f"{prefix} a red circle to the left of a blue square on a white background")
    assert (dressed.objects, dressed.relations) == (plain.objects, plain.relations)


@pytest.mark.parametrize(
    ("text", "background"),
    [
        ("a red circle on a black background", "on a black background"),
        ("red circle and blue star on gray background", "on a gray background"),
        ("a red star, plain gray background", "on a plain gray background"),
        ("Against an Old Brick backdrop, a cat and a dog.", "on an old brick backdrop"),
        ("a cat in front of a blurry, dark background", "on a dark background"),
        ("a cat with grass in the background", ""),
        ("a cat in the background, on a white background", "on a white background"),
        ("a dog on a black and white background", "on a black and white background"),
        ("a dog and a background", ""),
        ("a-" * 20_000 + "background", ""),
        ("background", ""),
        ("a black cat", ""),
    ],
)
def test_background_is_what_the_text_says_of_it(text: str, background: str) -> None:
    assert parse(text).background == background


def test_object_has_noun_and_attributes() -> None:
    found = parse("two shiny red traffic lights, a dog and the old black and white tv").objects
    light = Object("a shiny red traffic light", "traffic light", ("shiny", "red"))
    assert found == (
        light,
        dataclasses.replace(light, index=1),
        Object("a dog", "dog", ()),
        Object("an old black and white tv", "tv", ("old", "black", "white")),
    )


def test_description_keeps_the_text_and_contradictions() -> None:
    text = "  A dog left of a cat, and the cat left of the dog. "
    found = parse(text)
    assert found.text == text
    assert found.relations == (Relation(0, "left of", 1), Relation(1, "left of", 0))


def test_description_is_frozen_and_hashable() -> None:
    found = parse("a dog left of a cat")
    assert hash(found) == hash(parse("a dog left of a cat"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.text = "a cat"  # type: ignore[misc]


def test_statement_made_twice_is_kept_once() -> None:
    assert statements("A dog is left of a cat. The dog is to the left of the cat.") == [
        "dog left of cat"
    ]


@pytest.mark.parametrize("text", ["", " ", "\t\n", "\u2003\u00a0"])
def test_blank_text_names_nothing(text: str) -> None:
    assert parse(text) == Description(text)


@pytest.mark.parametrize(
    ("word", "expected"),
    [("circle", "a"), ("orange", "an"), ("unicorn", "a"), ("umbrella", "an"), ("hourglass", "an")],
)
def test_article_follows_the_sound(word: str, expected: str) -> None:
    assert article(word) == expected


@pytest.mark.parametrize(
    ("phrase", "noun"),
    [("a green car", "car"), ("two teddy bears", "teddy bear"), ("a red", "red"), ("", "")],
)
def test_noun_of_a_phrase(phrase: str, noun: str) -> None:
    assert noun_of(phrase) == noun


def check(found: Description) -> None:
    for thing in found.objects:
        assert thing.phrase.strip() == thing.phrase
        assert thing.noun
        assert thing.noun in thing.phrase
        assert all(attribute in thing.phrase for attribute in thing.attributes)
        assert 1 <= thing.count[0] <= thing.count[1]
        start, end = thing.span
        assert 0 <= start < end <= len(found.text)
        assert found.text[start:end].strip() == found.text[start:end]
    for relation in found.relations:
        assert relation.predicate in PREDICATES
        assert relation.subject != relation.object
        assert {relation.subject, relation.object} <= set(range(len(found.objects)))
        start, end = relation.span
        assert 0 <= start < end <= len(found.text)
    assert found.background == "" or found.background.startswith(("on a ", "on an "))


@given(st.text(max_size=200))
def test_any_text_gives_a_description(text: str) -> None:
    check(parse(text))


# Words that the grammar reacts to, in any order.
_VOCABULARY = re.split(
    " ",
    "a an the two 3 one ones red orange white circle squares teddy bear scissors skis dog person it"
    " its them their her is are sits lying placed with and , . ; while which that to on in at of"
    " left right top middle side corner hand of above below under next near between each other"
    " side by photo picture background scene sky pair couple dozen slice no without 's both 99999"
    " the first latter but not hair roof has --ar [ ] : 1.2 <"
    " quickly very feet from there or plus ' \" - ( ) \n"
    " isn't not nor in front behind inside surrounded row holding wearing hat its head number same"
    " as more than few background corner flanked İ ﬁ ’s",
)


@settings(max_examples=400)
@given(st.lists(st.sampled_from(_VOCABULARY), min_size=1, max_size=30))
def test_any_order_of_known_words_gives_a_description(words: list[str]) -> None:
    check(parse(" ".join(words)))


_NOUNS = ("circle", "square", "triangle", "star", "ring", "cross", "diamond")
_COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink")


@given(
    st.lists(st.tuples(st.sampled_from(_COLOURS), st.sampled_from(_NOUNS)), min_size=1, max_size=6),
    st.sampled_from(["", "a photo of ", "There are "]),
    st.sampled_from(["", " on a white background", "."]),
)
def test_listed_shapes_are_all_found(kinds: list[tuple[str, str]], before: str, after: str) -> None:
    expected = [f"{article(colour)} {colour} {noun}" for colour, noun in kinds]
    listed = ", ".join(expected[:-1]) + " and " + expected[-1] if kinds[1:] else expected[0]
    assert phrases(before + listed + after) == expected


@pytest.mark.parametrize(
    "unit",
    [
        "a dog and ",
        "a dog left of ",
        "dog's ",
        "the ",
        "(\"'",
        "ab",
        "the number of ",
        "a piece of ",
        "red, ",
        "twenty dogs ",
        "the dogs below two dogs. ",
    ],
)
def test_ten_thousand_characters_are_read(unit: str) -> None:
    check(parse(unit * (10_000 // len(unit))))


def test_import_needs_no_torch() -> None:
    code = "import sys, stal.prompts; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
