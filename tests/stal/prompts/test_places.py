"""The table of relations: every row, every form, and the relation words of known data sets."""

import pytest

from stal.prompts import PREDICATES, parse
from stal.prompts.places import VERBS, find
from stal.relations import GEOMETRY, TABLE

FORMS = [
    pytest.param(form, row.name, reverse, id=f"{row.name}: {form}")
    for row in TABLE
    for forms, reverse in ((row.forms, False), (row.reversed_forms, True))
    for form in forms.split(" | ")
    if form
]

# All 66 relations of VSR (arXiv 2205.00363), grouped by what they say.
VSR = {
    "left of": "left of | at the left side of",
    "right of": "right of | at the right side of",
    "above": "above | over | on top of",
    "below": "below | beneath | under | down | down from",
    "next to": "adjacent to | along | alongside | at | at the side of | beside | by | close to"
    " | near | next to | past | with",
    "between": "between",
    "on": "on",
    "inside": "among | in | in the middle of | inside | into | part of | within",
    "around": "around | surrounding",
    "behind": "at the back of | behind | beyond",
    "in front of": "ahead of | in front of",
    "touching": "against | at the edge of | attached to | connected to | touching",
    "far from": "across | across from | away from | far away from | far from | opposite to",
    "outside": "detached from | off | out of | outside",
    "facing": "facing | toward",
    "facing away from": "facing away from",
    "parallel to": "congruent | parallel to",
    "perpendicular to": "perpendicular to",
}
VSR_REVERSED = {
    "inside": "consists of | contains | has as a part",
    "around": "enclosed by",
}


def statements(text: str) -> list[tuple[str, str, str]]:
    found = parse(text)
    return [
        (found.objects[r.subject].noun, r.predicate, found.objects[r.object].noun)
        for r in found.relations
    ]


@pytest.mark.parametrize(("form", "name", "reverse"), FORMS)
def test_form_states_its_relation(form: str, name: str, reverse: bool) -> None:
    expected = ("cup", name, "box") if reverse else ("box", name, "cup")
    assert statements(f"a red box {form} a blue cup") == [expected]


@pytest.mark.parametrize(
    ("wording", "name", "reverse"),
    [
        pytest.param(wording, name, reverse, id=wording)
        for table, reverse in ((VSR, False), (VSR_REVERSED, True))
        for name, line in table.items()
        for wording in line.split(" | ")
    ],
)
def test_vsr_relation_is_known(wording: str, name: str, reverse: bool) -> None:
    verb = "" if wording.split()[0] in ("contains", "consists", "has") else "is "
    expected = ("dog", name, "bed") if reverse else ("bed", name, "dog")
    assert statements(f"The bed {verb}{wording} the dog.") == [expected]


@pytest.mark.parametrize(
    ("wording", "name"),
    [
        ("on the left of", "left of"),
        ("on the right of", "right of"),
        ("on the top of", "above"),
        ("on the bottom of", "below"),
        ("next to", "next to"),
        ("on side of", "next to"),
        ("near", "next to"),
        ("in front of", "in front of"),
        ("behind", "behind"),
        ("hidden by", "behind"),
    ],
)
def test_t2i_compbench_relation_is_known(wording: str, name: str) -> None:
    assert statements(f"a airplane {wording} a goat") == [("airplane", name, "goat")]


@pytest.mark.parametrize("stem", list(VERBS))
def test_verb_states_its_relation(stem: str) -> None:
    form = (
        stem
        if stem in ("held", "wore", "rode", "drove", "planting")
        else f"{stem}s".replace("ys", "ies")
    )
    form = {"touchs": "touches"}.get(form, form)
    name, reverse = VERBS[stem]
    expected = ("dog", name, "man") if reverse else ("man", name, "dog")
    assert statements(f"A man {form} a dog.") == [expected]


def test_every_relation_has_a_form_and_a_geometry() -> None:
    sides = {"left of", "right of"}
    assert tuple(GEOMETRY) == PREDICATES
    assert all(row.forms or row.name in sides for row in TABLE)


@pytest.mark.parametrize(
    ("name", "opposite"), [("left of", "right of"), ("above", "below"), ("behind", "in front of")]
)
def test_opposites_have_opposite_geometry(name: str, opposite: str) -> None:
    a, b = GEOMETRY[name], GEOMETRY[opposite]
    assert (a.dx, a.dy, a.depth) == (-b.dx, -b.dy, -b.depth)
    assert a.contact == b.contact


def test_no_form_is_in_two_rows() -> None:
    forms = [f for row in TABLE for f in f"{row.forms} | {row.reversed_forms}".split(" | ") if f]
    assert len(forms) == len(set(forms))


@pytest.mark.parametrize(
    ("text", "names", "end"),
    [
        ("on top of the table", ("above",), 3),
        ("on the far left side of it", ("left of",), 6),
        ("to the upper left of it", ("left of", "above"), 5),
        ("right next to it", ("next to",), 3),
        ("in its hand", ("inside",), 1),
    ],
)
def test_longest_words_of_place_win(text: str, names: tuple[str, ...], end: int) -> None:
    place = find(text.split(), 0)
    assert place is not None
    assert (place.names, place.end) == (names, end)


@pytest.mark.parametrize("text", ["left handed", "the top of the stairs", "a dog", "of"])
def test_other_words_are_no_place(text: str) -> None:
    assert find(text.split(), 0) is None


@pytest.mark.parametrize(
    "text",
    [
        "a dog surrounded by flowers",
        "The table is flanked by a chair to the left.",
    ],
)
def test_agents_are_no_neighbours(text: str) -> None:
    assert all(name != "next to" for _, name, _ in statements(text))


def test_by_is_beside_after_a_posture() -> None:
    assert statements("A dog is parked by a car.") == [("dog", "next to", "car")]
    assert statements("A car is driven by a dog.") == []
