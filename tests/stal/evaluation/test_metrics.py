"""What counts as found, placed, bound, swapped and extra, and how sure a share is."""

import math
import random
from dataclasses import replace

import numpy as np
import pytest

from stal.evaluation.metrics import Detection, difference, estimate, judge
from stal.evaluation.prompt_files import parsed
from stal.prompts import parse
from stal.shapes.cases import draw_cases

LEFT, RIGHT = (0.1, 0.4, 0.3, 0.6), (0.7, 0.4, 0.9, 0.6)
TOP, BOTTOM = (0.4, 0.1, 0.6, 0.3), (0.4, 0.7, 0.6, 0.9)


def seen(text: str, box=LEFT, score: float = 0.9) -> Detection:
    *attributes, noun = text.split()
    return Detection(noun, tuple(attributes), box, score)


def verdict(prompt: str, *detections: Detection, boxes=None):
    case = parsed(prompt)
    boxes = [None] * len(case.objects) if boxes is None else boxes
    return judge(detections, case.objects, case.relations, boxes)


def test_a_right_picture_is_correct():
    v = verdict(
        "a red circle to the left of a blue square",
        seen("blue square", RIGHT),
        seen("red circle", LEFT),
        boxes=[LEFT, RIGHT],
    )
    assert v.correct
    assert (v.objects, v.found, v.nouns, v.boxed, v.placed) == (2, 2, 2, 2, 2)
    assert (v.attributed, v.attributed_nouns, v.bound, v.swapped, v.extra) == (2, 2, 2, 0, 0)
    assert (v.relations, v.relations_seen, v.relations_hold) == (1, 1, 1)


def test_exchanged_colours_are_two_swaps_and_nothing_extra():
    v = verdict("a red circle and a blue square", seen("blue circle"), seen("red square"))
    assert (v.found, v.nouns, v.bound, v.swapped, v.extra) == (0, 2, 0, 2, 0)
    assert not v.correct


def test_a_colour_of_no_other_object_is_no_swap():
    v = verdict("a red circle and a blue square", seen("green circle"), seen("blue square"))
    assert (v.found, v.attributed_nouns, v.bound, v.swapped) == (1, 2, 1, 0)


def test_what_is_missing_is_not_bound_and_its_relation_not_seen():
    v = verdict("a red circle above a blue square", seen("red circle"))
    assert (v.attributed, v.attributed_nouns, v.bound) == (2, 1, 1)
    assert (v.relations, v.relations_seen, v.relations_hold) == (1, 0, 0)


@pytest.mark.parametrize(
    ("wording", "first", "second", "holds"),
    [
        ("to the left of", LEFT, RIGHT, True),
        ("to the left of", RIGHT, LEFT, False),
        ("to the left of", LEFT, LEFT, False),
        ("to the right of", RIGHT, LEFT, True),
        ("above", TOP, BOTTOM, True),
        ("above", BOTTOM, TOP, False),
        ("below", BOTTOM, TOP, True),
        ("on", TOP, BOTTOM, True),
    ],
)
def test_relations_compare_centres(wording, first, second, holds):
    v = verdict(f"a circle {wording} a square", seen("circle", first), seen("square", second))
    assert (v.relations, v.relations_hold, v.correct) == (1, int(holds), holds)


def test_relations_that_centres_do_not_decide_are_not_counted():
    v = verdict("a circle next to a square", seen("circle", TOP), seen("square", BOTTOM))
    assert (v.relations, v.correct) == (0, True)


def test_of_several_the_nearest_to_its_box_is_the_object_and_others_are_extra():
    far, near = seen("red circle", RIGHT), seen("red circle", LEFT, score=0.5)
    v = verdict("a red circle", far, near, boxes=[LEFT])
    assert (v.placed, v.extra, v.correct) == (1, 1, False)
    assert verdict("a red circle", far, near).extra == 1


def test_an_object_without_a_box_is_not_in_the_wrong_place():
    v = verdict("a circle and a square", seen("circle"), seen("square", RIGHT), boxes=[None, LEFT])
    assert (v.boxed, v.placed) == (1, 0)


def test_what_says_more_chooses_first():
    v = verdict("a circle and a red circle", seen("red circle"), seen("blue circle"))
    assert (v.found, v.correct) == (2, True)


def test_an_uncounted_plural_takes_all():
    assert parse("several brown birds").objects[0].count != (1, 1)
    for number in (1, 3):
        v = verdict("several brown birds", *[seen("brown birds")] * number)
        assert (v.found, v.extra, v.correct) == (1, 0, True)
    assert verdict("several brown birds").found == 0


def test_counted_objects_must_be_as_many():
    assert verdict("two circles", *[seen("circle")] * 2).correct
    assert verdict("two circles", seen("circle")).found == 1
    assert verdict("two circles", *[seen("circle")] * 3).extra == 1


def simple_judge(detections, layout):
    """What a picture of the shapes world has of a layout, where every object has one colour:
    objects found, found in place, whether every relation holds, and what is no object."""
    left, matched, placed = list(detections), [], 0
    for item in layout.objects:
        _, colour, shape = item.phrase.split()
        x0, y0, x1, y1 = item.box
        middle = ((x0 + x1) / 2, (y0 + y1) / 2)
        same = [d for d in left if (d.noun, d.attributes) == (shape, (colour,))]
        best = min(same, key=lambda d: math.dist(d.centre, middle), default=None)
        matched.append(best)
        if best is not None:
            left.remove(best)
            placed += x0 <= best.centre[0] <= x1 and y0 <= best.centre[1] <= y1
    hold = all(
        matched[i] is not None and matched[j] is not None and holds(matched[i], name, matched[j])
        for i, name, j in layout.relations
    )
    return sum(d is not None for d in matched), placed, hold, len(left)


def holds(a, predicate, b):
    dx, dy = a.centre[0] - b.centre[0], a.centre[1] - b.centre[1]
    return {"left of": dx < 0, "right of": dx > 0, "above": dy < 0, "below": dy > 0}[predicate]


def test_agrees_with_a_simple_judge_of_the_shapes_world():
    rng = random.Random(0)
    differences = set()
    for count in (1, 2, 3, 4):
        for case in draw_cases(40, objects=count, seed=9):
            objects = parse(case.prompt).objects
            found = []
            for item in case.objects * 2:
                _, colour, shape = item.phrase.split()
                if rng.random() < 0.2:
                    colour = rng.choice(("red", "blue", "green"))
                if rng.random() < 0.1:
                    shape = rng.choice(("circle", "ring", "blob"))
                x, y, size = rng.uniform(0, 0.9), rng.uniform(0, 0.9), 0.1
                box = item.box if rng.random() < 0.7 else (x, y, x + size, y + size)
                if rng.random() < 0.65:
                    found.append(Detection(shape, (colour,), box, 0.9))
            right, placed, hold, extra = simple_judge(found, case)
            ours = judge(found, objects, case.relations, [o.box for o in case.objects])
            assert (ours.found, ours.placed, ours.objects) == (right, placed, count)
            assert (ours.relations_hold == ours.relations) == hold
            # A wrong colour is extra there, an object of another colour here.
            assert ours.extra + ours.nouns - ours.found == extra
            assert ours.correct == (right == count and hold and not extra)
            differences.add((ours.correct, ours.nouns > ours.found, ours.extra > 0))
    assert len(differences) >= 5


# Intervals


def coins(n: int, p: float, *, seed: int = 0) -> np.ndarray:
    heads = np.random.default_rng(seed).random(n) < p
    return np.stack([heads, np.ones(n)], axis=1)


def test_interval_of_independent_prompts_is_the_normal_one():
    found = estimate(coins(900, 0.3))
    error = 1.96 * math.sqrt(found.value * (1 - found.value) / 900)
    assert found.low == pytest.approx(found.value - error, abs=0.003)
    assert found.high == pytest.approx(found.value + error, abs=0.003)


def test_more_seeds_that_agree_make_nothing_surer():
    one, three = estimate(coins(50, 0.4)), estimate(3 * coins(50, 0.4))
    assert (three.low, three.high) == pytest.approx((one.low, one.high))


@pytest.mark.parametrize(("heads", "low", "high"), [(0, 0.0, 0.3085), (10, 0.6915, 1.0)])
def test_where_all_prompts_agree_the_interval_is_exact(heads, low, high):
    counts = np.array([[heads / 10, 1.0]] * 10)
    found = estimate(counts)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)


def test_a_mean_that_never_varies_has_no_width():
    found = estimate(np.array([[0.0, 1.0]] * 10), percent=False)
    assert (found.value, found.low, found.high) == (0, 0, 0)


def test_nothing_counted_is_nan():
    assert math.isnan(estimate(np.zeros((4, 2))).value)
    assert math.isnan(difference(np.zeros((4, 2)), np.ones((4, 2))).value)


def test_prompts_that_count_nothing_are_left_out_of_the_ratio():
    counts = np.array([[1.0, 2.0], [0.0, 0.0], [1.0, 2.0]])
    assert estimate(counts).value == 0.5


def test_pairs_make_a_difference_surer():
    base = coins(300, 0.5)
    better = base.copy()
    better[np.flatnonzero(base[:, 0] == 0)[:15], 0] = 1
    paired = difference(better, base)
    assert paired.value == pytest.approx(0.05)
    assert 0.02 < paired.low < paired.value < paired.high < 0.08
    alone = difference(coins(300, 0.55, seed=1), base)
    assert alone.high - alone.low > 2 * (paired.high - paired.low)


def test_a_difference_needs_the_same_prompts():
    with pytest.raises(ValueError, match="other must be of 4 prompts, got 3"):
        difference(np.ones((4, 2)), np.ones((3, 2)))


def test_correct_needs_everything():
    right = verdict("a circle", seen("circle"))
    assert right.correct
    for change in ({"found": 0}, {"extra": 1}, {"relations": 1}):
        assert not replace(right, **change).correct
