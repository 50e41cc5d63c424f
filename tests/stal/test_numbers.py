"""Numbers of numpy and torch are as good as Python's wherever one is asked for."""

import json

import numpy as np
import pytest
import torch

import stal
from stal.layout import Layout, PlacedObject, draw, hard_masks, place, sketch
from stal.layout.predictor import bundled
from stal.model.model import bundled_model
from stal.noise import ImageNoise
from stal.optimize import Options
from stal.prompts import parse
from stal.schedule import schedule_from_config
from stal.settings import Defaults, Settings, complete
from stal.weights.files import WeightSchedule, load_weights


def completed(**given):
    return complete(Settings(**given), Defaults(), sample_size=8, unit=8)


NUMBERS = {
    "steps": (5, np.int64(5), np.array(5), torch.tensor(5)),
    "guidance_scale": (2.5, np.float32(2.5), np.float16(2.5), torch.tensor(2.5)),
    "num_images": (3, np.uint8(3), np.int32(3)),
    "height": (128, np.int16(128), torch.tensor(128)),
    "width": (64, np.uint64(64)),
    "eta": (0.5, np.float64(0.5), np.array(0.5)),
    "background": (1, np.int8(1)),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_settings_take_numbers_of_every_kind(name):
    more = {"reference": "an empty scene"} if name == "background" else {}
    plain, *others = [completed(**{name: value}, **more) for value in NUMBERS[name]]
    for other in others:
        assert other == plain
        assert type(getattr(other, name)) is type(getattr(plain, name))
        json.dumps(getattr(other, name))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": True}, "steps must be a positive integer, got True"),
        ({"steps": np.True_}, "steps must be a positive integer, got True"),
        ({"steps": np.float32(5)}, "steps must be a positive integer, got 5.0"),
        ({"steps": np.array([5])}, "steps must be a positive integer, got array"),
        ({"guidance_scale": True}, "guidance_scale must be a finite number, got True"),
        ({"guidance_scale": np.float32("nan")}, "guidance_scale must be a finite number, got nan"),
        ({"eta": torch.tensor(float("inf"))}, "eta must be a finite number, got inf"),
        ({"eta": "0.5"}, "eta must be a finite number, got '0.5'"),
        ({"num_images": 10**9}, "num_images must be at most 1000, got 1000000000"),
        ({"height": 10**9 * 8}, "height and width must be at most 33554432 pixels together"),
    ],
)
def test_settings_refuse_what_is_none(given, message):
    with pytest.raises(ValueError, match=message):
        completed(**given)


@pytest.mark.parametrize("seed", [np.int64(3), np.array(3), torch.tensor(3), np.uint64(3)])
def test_seeds_are_integers_of_every_kind(seed):
    assert ImageNoise(1, 2, seed, None).seeds == [3, 4]
    assert ImageNoise(1, 2, np.array([3, 5]), None).seeds == [3, 5]
    assert ImageNoise(1, 2, [seed, torch.tensor(5)], None).seeds == [3, 5]


@pytest.mark.parametrize("seed", [np.float32(3), np.array(3.0), "3"])
def test_seeds_are_no_fractions(seed):
    with pytest.raises(ValueError, match="seed must be an integer"):
        ImageNoise(1, 1, seed, None)


def test_a_schedule_takes_steps_of_every_kind():
    plain = schedule_from_config({}, 5, sampler="ddim")
    for steps in (np.int64(5), torch.tensor(5)):
        assert schedule_from_config({}, steps, sampler="ddim").timesteps == plain.timesteps


def test_options_take_numbers_of_every_kind():
    assert Options(epochs=np.int64(3), lr=np.float64(0.005), margin=torch.tensor(0.5)) == Options(
        margin=0.5
    )
    for given in ({"epochs": True}, {"lr": float("nan")}, {"lr": np.float32("inf")}, {"lr": "1"}):
        with pytest.raises(ValueError, match=r"(epochs|lr) must be a"):
            Options(**given)


def test_knots_of_numpy_are_written_and_read_back(tmp_path):
    schedule = WeightSchedule({np.int64(2): np.float32([1, 0.5]), 3: torch.tensor([1.0])})
    assert schedule == WeightSchedule({2: (1.0, 0.5), 3: (1.0,)})
    schedule.save(tmp_path / "a.json")
    assert WeightSchedule.load(tmp_path / "a.json") == schedule


@pytest.mark.parametrize(
    "knots",
    [
        *('{"2": [true]}', '{"2": ["1"]}', '{"2": [1e400]}', '{"02": [1]}', '{"x": [1]}'),
        *('{"2": 5}', "5", '{"0": [1]}', '{"2": []}'),
        '{"2": [' + "9" * 600 + "]}",
        '{"' + "9" * 5000 + '": [1]}',
    ],
    ids=range(11),
)
def test_other_knots_are_refused(tmp_path, knots):
    (tmp_path / "a.json").write_text(f'{{"version": 1, "knots": {knots}}}')
    for read in (WeightSchedule.load, load_weights):
        with pytest.raises(ValueError, match=r"a\.json must hold") as caught:
            read(tmp_path / "a.json")
        assert len(str(caught.value)) < 400


@pytest.mark.parametrize("weights", ["5", "[[1e400]]", '[["a"]]', "[[1], [1, 2]]", "[[{}]]", "[]"])
def test_other_weights_are_refused(tmp_path, weights):
    (tmp_path / "a.json").write_text(f'{{"weights": {weights}}}')
    with pytest.raises(ValueError, match=r"a\.json must hold \"weights\"|must be finite"):
        stal.weights.as_weights(load_weights(tmp_path / "a.json")(1, 1), steps=1, objects=1)


@pytest.mark.parametrize("kind", [np.array, torch.tensor, np.float32, np.int64])
def test_layouts_are_made_with_numbers_of_every_kind(kind):
    description = parse("a dog left of a cat")
    whole = kind if kind is not np.float32 else np.uint8
    aspect, two, three, eight = kind(2), whole(2), whole(3), whole(8)
    assert place(description, aspect=aspect, seed=three) == place(description, aspect=2, seed=3)
    predict = bundled().predict
    found = predict([description], aspect=aspect, seed=three, samples=two)
    assert found == predict([description], aspect=2, seed=3, samples=2)
    (layout, _), _ = found[0], json.loads(found[0][1].to_json())
    assert hard_masks(layout, eight, three).shape == (2, 8, 3)
    assert draw(layout, sketch(layout, side=eight), min_side=eight).size == (16, 8)


@pytest.mark.parametrize(
    "make",
    [
        lambda d: place(d, seed=1.5),
        lambda d: place(d, aspect="1"),
        lambda d: place(d, aspect=np.float32("nan")),
        lambda d: bundled().predict([d], samples=True),
        lambda d: bundled().predict([d], samples=10**9),
        lambda d: bundled().predict([d], seed=np.float32(1)),
        lambda d: hard_masks(place(d), 2.5, 3),
        lambda d: sketch(place(d), side="64"),
        lambda d: Layout("", 5),
    ],
)
def test_layouts_are_made_with_nothing_else(make):
    with pytest.raises(ValueError, match=r"(seed|aspect|samples|height|side|objects) must"):
        make(parse("a dog left of a cat"))


BOXES = {"a red circle": (0.0, 0.0, 0.5, 0.5), "a blue square": (0.5, 0.5, 1.0, 1.0)}
PROMPT = "a red circle and a blue square"


@pytest.fixture(scope="module")
def pipe():
    return stal.Pipeline.from_pretrained(bundled_model())


def prepared(pipe, layout):
    (job,) = pipe.prepare([PROMPT], Settings(steps=1), layouts=[layout]).jobs
    return job.layout


def test_a_layout_may_be_given_in_every_form(pipe, tmp_path):
    objects = tuple(PlacedObject(p, p.split()[-1], box) for p, box in BOXES.items())
    layout = Layout(PROMPT, objects)
    layout.save(tmp_path / "a.json")
    (tmp_path / "a.css").write_text(
        "red circle {left: 0; top: 0; width: 32px; height: 32px}\n"
        "blue square {left: 50%; top: 50%; width: 50%; height: 50%}"
    )
    for given in (
        layout,
        layout.to_json(),
        tmp_path / "a.json",
        str(tmp_path / "a.json"),
        tmp_path / "a.css",
        list(BOXES.items()),
        BOXES,
        [(p, np.float32(box)) for p, box in BOXES.items()],
        [[p, torch.tensor(box)] for p, box in BOXES.items()],
        objects,
    ):
        assert prepared(pipe, given) == layout
    (result,) = pipe(PROMPT, layout=list(BOXES.items()), steps=np.int64(1), seed=np.int64(3)).images
    assert result.size == (64, 64)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (
            [(0, 0, 1, 1)],
            r"layout\[0\] must be a pair \(phrase, \(x0, y0, x1, y1\)\) or .* got \(0",
        ),
        ([0.1, 0.2, 0.3, 0.4], r"layout\[0\] must be a pair"),
        ([("a cat", (0, 0, 1))], r"layout\[0\] must be \(x0, y0, x1, y1\), got"),
        ([("a cat", 5)], r"layout\[0\] must be \(x0, y0, x1, y1\), got 5"),
        ([("a cat", "0011")], r"layout\[0\] must have a box or a mask, got the text '0011'"),
        (
            [("a cat", (10, 20, 30, 40))],
            r"layout\[0\] must have its box in fractions of the canvas, .* in pixels of canvas=",
        ),
        ([("a cat", (0, 0, 1.01, 1))], r"layout\[0\] must lie inside \[0, 1\], got"),
        ([("a cat", (0.5, 0, 0.5, 1))], r"layout\[0\] must have x0 < x1"),
        ([("a cat", (0, 0, float("nan"), 1))], r"layout\[0\] must lie inside \[0, 1\]"),
        ([("", (0, 0, 1, 1))], r"layout\[0\] must be a pair"),
        (
            [("a \ud800", (0, 0, 1, 1))],
            r"objects\[0\].phrase of the layout must be a text of valid",
        ),
        (5, r"layout must be a Layout, its JSON, a path or \(phrase, box\) pairs, got 5"),
        (b"{}", "layout must be a Layout, its JSON, a path"),
        (
            "absent.json",
            "layout must be JSON or a file .* got 'absent.json': No such file",
        ),
        ("a\0b", "layout must be a file, got"),
        ("/dev/zero", "layout must be a file, got the device"),
        ("{", "layout must be valid JSON"),
    ],
)
def test_other_layouts_are_refused(pipe, layout, message):
    with pytest.raises(ValueError, match=message):
        prepared(pipe, layout)
