"""The world of coloured shapes: scenes, captions, the detector, prompts with their layouts."""

import random
import re
from collections import Counter

import pytest
import torch
import torch.nn.functional as F

from stal.evaluation.metrics import Detection, judge
from stal.prompts import parse
from stal.shapes.captions import WORDINGS, caption, relation_between, words
from stal.shapes.cases import draw_cases
from stal.shapes.detector import UNKNOWN, DetectedShape, background_of, detect
from stal.shapes.scenes import (
    BACKGROUND_NAMES,
    BACKGROUNDS,
    COLOUR_NAMES,
    COLOURS,
    MAX_OBJECTS,
    SHAPES,
    Scenes,
    combination,
    draw_scenes,
    render,
)

FIELDS = Scenes.__dataclass_fields__


def equal(a: Scenes, b: Scenes) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in FIELDS)


def objects_of(scenes: Scenes, i: int) -> list[int]:
    return list(range(int(scenes.count[i])))


def one_object(shape="circle", colour="red", *, background="white", radius=0.3) -> Scenes:
    """A scene with one object in the middle."""
    rest = [0] * (MAX_OBJECTS - 1)
    return Scenes(
        count=torch.tensor([1]),
        colour=torch.tensor([[COLOUR_NAMES.index(colour), *rest]]),
        shape=torch.tensor([[SHAPES.index(shape), *rest]]),
        x=torch.full((1, MAX_OBJECTS), 0.5),
        y=torch.full((1, MAX_OBJECTS), 0.5),
        radius=torch.full((1, MAX_OBJECTS), radius),
        angle=torch.zeros(1, MAX_OBJECTS),
        background=torch.tensor([BACKGROUND_NAMES.index(background)]),
    )


# Scenes


def test_the_same_seed_gives_the_same_scenes_for_any_number_of_threads():
    before = torch.get_num_threads()
    drawn = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        drawn.append(draw_scenes(500, seed=3))
    torch.set_num_threads(before)
    assert equal(*drawn)
    assert not equal(drawn[0], draw_scenes(500, seed=4))


def test_drawing_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    render(draw_scenes(10, seed=0), seed=1)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("held_out", [False, True])
def test_objects_lie_on_the_canvas_and_apart(held_out):
    scenes = draw_scenes(3000, seed=1, held_out=held_out)
    exists = torch.arange(MAX_OBJECTS) < scenes.count[:, None]
    low = torch.minimum(scenes.x, scenes.y) - scenes.radius
    high = torch.maximum(scenes.x, scenes.y) + scenes.radius
    assert low[exists].min() >= -1e-6
    assert high[exists].max() <= 1 + 1e-6
    for i in range(MAX_OBJECTS):
        for j in range(i):
            distance = torch.hypot(scenes.x[:, i] - scenes.x[:, j], scenes.y[:, i] - scenes.y[:, j])
            apart = distance - scenes.radius[:, i] - scenes.radius[:, j]
            assert apart[exists[:, i]].min() > 0.019


def kinds(scenes: Scenes, i: int) -> tuple[str, ...]:
    return tuple(sorted(scenes.phrase(i, k) for k in objects_of(scenes, i)))


def test_held_out_combinations_are_never_in_training_draws():
    training = draw_scenes(4000, seed=2)
    test = draw_scenes(2000, seed=3, held_out=True)
    several = test.count > 1
    assert bool((combination(test)[several] == 0).all())
    assert bool((combination(training)[training.count > 1] != 0).all())
    seen = {kinds(training, i) for i in range(len(training)) if training.count[i] > 1}
    unseen = {kinds(test, i) for i in range(len(test)) if several[i]}
    assert seen.isdisjoint(unseen)
    # For every number of objects from two up.
    assert {int(c) for c in test.count[several]} == {2, 3, 4}
    # Everything that a combination is made of was seen.
    assert {kind for combo in unseen for kind in combo} <= {
        kind for combo in seen for kind in combo
    }


def test_a_combination_does_not_depend_on_order_or_absent_objects():
    scenes = draw_scenes(200, seed=5, counts=(3,))
    order = torch.tensor([2, 0, 1, 3])
    moved = Scenes(
        **{
            name: value[:, order] if value.ndim == 2 else value
            for name, value in ((name, getattr(scenes, name)) for name in FIELDS)
        }
    )
    moved.colour[:, 3] = 7 - moved.colour[:, 3]
    assert torch.equal(combination(scenes), combination(moved))
    shares = torch.bincount(combination(draw_scenes(4000, seed=5, counts=(0, 1))))
    assert len(shares) == 8


@pytest.mark.parametrize("counts", [(0,), (1,), (3,), (2, 4)], ids=str)
def test_counts_are_those_asked_for(counts):
    scenes = draw_scenes(400, seed=1, counts=counts)
    assert len(scenes) == 400
    assert {int(c) for c in scenes.count} == set(counts)


def test_default_counts_are_the_training_mixture():
    shares = torch.bincount(draw_scenes(20000, seed=0).count, minlength=5) / 20000
    expected = torch.tensor([0.07, 0.36, 0.26, 0.18, 0.13])
    assert (shares - expected).abs().max() < 0.015


@pytest.mark.parametrize("n", [0, 1, 65])
def test_any_number_of_scenes(n):
    scenes = draw_scenes(n, seed=0)
    assert len(scenes) == n
    assert render(scenes).shape == (n, 3, 64, 64)


@pytest.mark.parametrize(
    ("n", "counts", "message"),
    [
        (-1, None, "n must not be negative, got -1"),
        (1, (), r"counts must be in 0 .. 4, got \[\]"),
        (1, (5,), r"counts must be in 0 .. 4, got \[5\]"),
        (1, (1, -1), r"counts must be in 0 .. 4, got \[1, -1\]"),
    ],
)
def test_impossible_draws_are_refused(n, counts, message):
    with pytest.raises(ValueError, match=message):
        draw_scenes(n, seed=0, counts=counts)


@pytest.mark.parametrize("shape", [s for s in SHAPES if s != "ring"])
def test_render_without_a_seed_has_exact_colours(shape):
    picture = render(one_object(shape, "green", background="beige"))[0]
    torch.testing.assert_close(picture[:, 32, 32], torch.tensor(COLOURS["green"]))
    torch.testing.assert_close(picture[:, 0, 0], torch.tensor(BACKGROUNDS["beige"]))


def test_a_ring_is_hollow():
    picture = render(one_object("ring", "green"))[0]
    torch.testing.assert_close(picture[:, 32, 32], torch.tensor(BACKGROUNDS["white"]))
    # The stroke's middle lies at 0.69 of the radius.
    stroke = picture[:, 32, 32 + round(0.69 * 0.3 * 64)]
    torch.testing.assert_close(stroke, torch.tensor(COLOURS["green"]))


def test_render_with_a_seed_moves_colours_a_little():
    scenes = draw_scenes(50, seed=0)
    exact, moved = render(scenes), render(scenes, seed=1)
    assert 0.02 < (exact - moved).abs().max() < 0.0301
    assert torch.equal(moved, render(scenes, seed=1))
    assert not torch.equal(moved, render(scenes, seed=2))
    assert moved.min() >= 0
    assert moved.max() <= 1


def test_a_picture_does_not_depend_on_its_batch():
    scenes = draw_scenes(40, seed=0)
    assert torch.equal(render(scenes)[20:30], render(scenes[20:30]))


def test_larger_pictures_show_the_same_scene():
    scenes = draw_scenes(30, seed=0)
    shrunk = F.avg_pool2d(render(scenes, size=192), 3)
    assert (shrunk - render(scenes)).abs().mean() < 0.01


def test_boxes_are_circumscribed_squares():
    scenes = one_object(radius=0.25)
    assert scenes.box(0, 0) == (0.25, 0.25, 0.75, 0.75)
    assert scenes.phrase(0, 0) == "a red circle"


# Captions


@pytest.fixture(scope="module")
def captioned() -> tuple[Scenes, list[str]]:
    scenes = draw_scenes(4000, seed=8)
    rng = random.Random(0)
    return scenes, [caption(scenes, i, rng) for i in range(len(scenes))]


STATED = re.compile(
    "|".join(sorted((w for ws in WORDINGS.values() for w in ws), key=len, reverse=True))
)
MEANING = {wording: name for name, wordings in WORDINGS.items() for wording in wordings}


def test_every_caption_is_read_back(captioned):
    scenes, texts = captioned
    relations = 0
    for i, text in enumerate(texts):
        phrases = [scenes.phrase(i, k) for k in objects_of(scenes, i)]
        if len(set(phrases)) < len(phrases):
            continue
        description = parse(text)
        named = [o.phrase for o in description.objects]
        if text.startswith("a picture with "):
            assert named, text
            assert set(named) <= set(phrases), text
            assert len(set(named)) == len(named), text
        else:
            assert sorted(named) == sorted(phrases), text
        # Every stated relation is read, and holds in the scene.
        assert [r.predicate for r in description.relations] == [
            MEANING[wording] for wording in STATED.findall(text)
        ], text
        for r in description.relations:
            subject, other = (phrases.index(named[k]) for k in (r.subject, r.object))
            assert relation_between(scenes, i, subject, other) == r.predicate, text
            relations += 1
    assert relations > 500


def test_captions_count_twins_once():
    scenes = draw_scenes(3000, seed=8, counts=(2, 3))
    rng = random.Random(0)
    for i in range(len(scenes)):
        named = [o.phrase for o in parse(caption(scenes, i, rng, partial_share=0.0)).objects]
        assert sorted(named) == sorted(scenes.phrase(i, k) for k in objects_of(scenes, i))


def test_captions_vary(captioned):
    scenes, texts = captioned
    assert set(STATED.findall(" ".join(texts))) == set(MEANING)
    several = [text for text, count in zip(texts, scenes.count, strict=True) if count > 2]
    assert len(set(several)) > 0.95 * len(several)
    partial = sum(text.startswith("a picture with ") for text in texts)
    assert 0.04 < partial / len(texts) < 0.10


def test_a_whole_description_names_every_object():
    scenes = draw_scenes(500, seed=4, counts=(2, 3, 4))
    rng = random.Random(0)
    for i in range(len(scenes)):
        text = caption(scenes, i, rng, partial_share=0.0)
        named = {o.phrase for o in parse(text).objects}
        assert named == {scenes.phrase(i, k) for k in objects_of(scenes, i)}, text


def test_a_caption_is_the_same_for_the_same_source_of_chance():
    scenes = draw_scenes(100, seed=4)
    one, two = (
        [caption(scenes, i, rng) for i in range(100)]
        for rng in (random.Random(1), random.Random(1))
    )
    assert one == two


def test_words_are_exactly_those_of_captions():
    used: set[str] = set()
    scenes = draw_scenes(6000, seed=9)
    rng = random.Random(0)
    for i in range(len(scenes)):
        used |= set(re.findall(r"\w+", caption(scenes, i, rng)))
    assert used <= set(words())
    # The rest count rare twins, or are for prompts alone.
    twins = {f"{shape}s" for shape in SHAPES} | {"crosses", "three", "four"}
    assert set(words()) - used <= twins | {"grey", "one", "is", "at", "in"}


# Detector


def blurred(images):
    row = torch.tensor([1.0, 2.0, 1.0]) / 4
    kernel = (row[:, None] * row).expand(3, 1, 3, 3)
    return F.conv2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), kernel, groups=3)


def noisy(images):
    generator = torch.Generator().manual_seed(1)
    return images + 0.04 * torch.randn(images.shape, generator=generator)


CONDITIONS = {
    "clean": lambda images: images,
    "noisy": noisy,
    "blurred": lambda images: noisy(blurred(images)),
}


def wholly_right(scenes: Scenes, detections: list[list[DetectedShape]]) -> float:
    """Share of scenes whose objects are found with colour and shape, and nothing else."""
    right = 0
    for i, found in enumerate(detections):
        wanted = Counter(scenes.phrase(i, k).split(" ", 1)[1] for k in objects_of(scenes, i))
        right += wanted == Counter(f"{d.colour} {d.shape}" for d in found)
    return right / len(scenes)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_detector_finds_everything(condition):
    scenes = draw_scenes(200, seed=77)
    found = detect(CONDITIONS[condition](render(scenes, seed=3)))
    assert wholly_right(scenes, found) >= 0.995


@pytest.mark.parametrize(
    ("size", "share"), [(48, 0.99), (96, 0.995), (128, 0.995)], ids=lambda value: str(value)
)
@pytest.mark.parametrize("condition", ["clean", "blurred"])
def test_detector_finds_everything_at_other_sizes(size, share, condition):
    scenes = draw_scenes(120, seed=78)
    found = detect(CONDITIONS[condition](render(scenes, size=size, seed=3)))
    assert wholly_right(scenes, found) >= share


@pytest.mark.parametrize("background", BACKGROUND_NAMES)
@pytest.mark.parametrize("shape", SHAPES)
def test_detector_knows_every_kind(shape, background):
    scenes = Scenes.concatenate([one_object(shape, c, background=background) for c in COLOURS])
    pictures = render(scenes)
    assert [[(d.colour, d.shape) for d in found] for found in detect(pictures)] == [
        [(colour, shape)] for colour in COLOURS
    ]
    assert {background_of(picture) for picture in pictures} == {background}


def test_detector_measures_place_and_size():
    scenes = draw_scenes(200, seed=5, counts=(1,))
    for i, (found,) in enumerate(detect(render(scenes))):
        x0, y0, x1, y1 = scenes.box(i, 0)
        pixel = 1 / 64
        assert x0 - pixel <= found.box[0] < found.box[2] <= x1 + pixel
        assert y0 - pixel <= found.box[1] < found.box[3] <= y1 + pixel
        # A triangle's box lies up to a quarter radius above its centre.
        radius = float(scenes.radius[i, 0])
        assert abs(found.centre[0] - float(scenes.x[i, 0])) < 0.1 * radius + pixel
        assert abs(found.centre[1] - float(scenes.y[i, 0])) < 0.3 * radius + pixel
        assert found.box[3] - found.box[1] > radius
        assert 0.72 <= found.score <= 1


def test_detector_is_deterministic_and_the_largest_comes_first():
    scenes = draw_scenes(20, seed=6, counts=(4,))
    pictures = noisy(render(scenes))
    found = detect(pictures)
    assert found == detect(pictures)
    assert found[3] == detect(pictures[3:4])[0]
    disc = Scenes.concatenate([one_object("circle", "red", radius=r) for r in (0.1, 0.2)])
    both = torch.cat(list(render(disc)), dim=2)[None]
    (large, small), *_ = detect(both)
    assert large.centre[0] > 0.5 > small.centre[0]


@pytest.mark.parametrize("background", BACKGROUND_NAMES)
def test_an_empty_picture_has_no_objects(background):
    scenes = Scenes.concatenate([one_object(background=background)] * 8)
    scenes = Scenes(**{**{n: getattr(scenes, n) for n in FIELDS}, "count": torch.zeros(8).long()})
    for condition in CONDITIONS.values():
        assert detect(condition(render(scenes, seed=2))) == [[]] * 8


def test_detector_calls_another_outline_a_blob():
    picture = render(one_object())[0]
    picture[:] = torch.tensor(BACKGROUNDS["white"])[:, None, None]
    red = torch.tensor(COLOURS["red"])[:, None, None]
    picture[:, 4:60, 4:14] = red
    picture[:, 50:60, 4:60] = red
    (found,) = detect(picture[None])[0]
    assert (found.colour, found.shape) == ("red", UNKNOWN)
    assert found.score < 0.72


def test_detector_takes_any_picture():
    generator = torch.Generator().manual_seed(0)
    assert detect(torch.zeros(0, 3, 64, 64)) == []
    for shape in ((1, 3, 1, 1), (2, 3, 20, 50), (1, 3, 64, 64)):
        assert len(detect(torch.rand(shape, generator=generator))) == shape[0]
    assert detect(render(one_object()).double())[0][0].shape == "circle"


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 64, 64), r"images must be \(n, 3, height, width\), got \(3, 64, 64\)"),
        (torch.zeros(1, 1, 64, 64), r"got \(1, 1, 64, 64\)"),
        (torch.zeros(1, 64, 64, 3), r"got \(1, 64, 64, 3\)"),
        (
            torch.zeros(1, 3, 8, 8, dtype=torch.uint8),
            r"floating point in \[0, 1\], got torch.uint8",
        ),
        (torch.full((1, 3, 8, 8), torch.nan), "got NaN or infinity"),
    ],
    ids=["rank", "channels", "channels last", "bytes", "nan"],
)
def test_detector_refuses_what_is_no_picture(images, message):
    with pytest.raises(ValueError, match=message):
        detect(images)


# Cases


@pytest.mark.parametrize("objects", [0, 1, 2, 3, 4])
def test_cases_are_prompts_with_the_layout_that_they_were_written_for(objects):
    cases = draw_cases(40, objects=objects, seed=3)
    assert len(cases) == 40
    assert cases == draw_cases(40, objects=objects, seed=3)
    assert cases != draw_cases(40, objects=objects, seed=4)
    for case in cases:
        phrases = [o.phrase for o in case.objects]
        assert len(set(phrases)) == objects
        assert [o.phrase for o in parse(case.prompt).objects] == phrases
        assert case.violated == ()
        # The picture of the true layout itself is judged right.
        seen = [Detection(o.noun, (o.phrase.split()[1],), o.box, 1.0) for o in case.objects]
        boxes = [o.box for o in case.objects]
        assert judge(seen, parse(case.prompt).objects, case.relations, boxes).correct


def test_cases_of_several_objects_are_held_out():
    seen_in_training = {kinds(s, i) for s in [draw_scenes(8000, seed=0)] for i in range(8000)}
    for case in draw_cases(100, objects=2, seed=1):
        assert tuple(sorted(o.phrase for o in case.objects)) not in seen_in_training
