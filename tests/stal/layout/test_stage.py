"""The stage: where a scene would have its things, before anything is learned or projected."""

import random

import pytest

from stal.layout.stage import box_of, parts_of, stage
from stal.prompts import parse
from stal.prompts.scene import Scene


def staged(text, **options):
    found = parse(text)
    phrases = [(each.phrase, each.noun) for each in found.objects]
    sides = [each.position for each in found.objects]
    z = stage(phrases, found.statements, found.scene, sides=sides, **options)
    return [box_of(each) for each in z]


def area(box):
    return (box[2] - box[0]) * (box[3] - box[1])


def meet(a, b):
    return min(a[2], b[2]) > max(a[0], b[0]) and min(a[3], b[3]) > max(a[1], b[1])


def test_a_kind_of_shot_sets_the_size_of_its_subject():
    shots = ("wide shot of", "", "full body shot of", "portrait of")
    areas = [area(staged(f"{shot} a knight")[0]) for shot in shots]
    assert areas == sorted(areas)
    assert areas[0] < areas[-1] / 4


@pytest.mark.parametrize(
    ("text", "small", "large"),
    [
        ("a deer between two tall trees", 0, 1),
        ("a taxi in front of a building", 0, 1),
        ("a strawberry on a cake", 0, 1),
        ("a knight in a field, a castle in the distance", 1, 0),
    ],
)
def test_sizes_are_those_of_the_world_and_of_the_distance(text, small, large):
    boxes = staged(text)
    assert area(boxes[small]) < area(boxes[large])


@pytest.mark.parametrize(
    ("text", "borne", "bearer"),
    [
        ("a bowl on a tablecloth", 0, 1),
        ("a baby in a stroller", 0, 1),
        ("a man playing a guitar", 1, 0),
        ("a dog under a table", 0, 1),
        ("an old couple on a bench", 0, 1),
    ],
)
def test_what_depends_on_a_thing_meets_it(text, borne, bearer):
    boxes = staged(text)
    assert meet(boxes[borne], boxes[bearer])


def test_surfaces_are_wider_than_what_lies_on_them():
    bowl, cup, cloth = staged("a bowl and a cup on a tablecloth")
    assert cloth[0] < min(bowl[0], cup[0]) < max(bowl[2], cup[2]) < cloth[2]


def test_what_belongs_on_a_table_is_on_it_without_a_word():
    parts = parts_of([("a lamp", "lamp"), ("a desk", "desk")], [], Scene())
    assert (parts[0].bearer, parts[0].how) == (1, "on")


def test_the_sky_is_high_and_the_ground_low():
    bird, cow, moon = staged("a bird, a cow and a moon")
    assert max(bird[3], moon[3]) < cow[3]
    assert cow[3] > 0.7


def test_figures_have_no_world():
    assert len(set(staged("a circle above a square and a star"))) == 1


@pytest.mark.parametrize(
    "text", ["a cat on a table on a cat on a table", "a dog above a dog below a dog", "twenty dogs"]
)
def test_any_description_is_set(text):
    for aspect in (1 / 64, 1.0, 64):
        for x0, y0, x1, y1 in staged(text, aspect=aspect, rng=random.Random(0)):
            assert x0 < x1
            assert y0 < y1


def test_chance_changes_a_scene_and_its_seed_keeps_it():
    text = "a man and a woman on a bench next to a tree"
    first, again, other = (staged(text, rng=random.Random(seed)) for seed in (1, 1, 2))
    assert first == again != other
