"""`stal plot`, `stal fit-schedule`, and `stal generate --weights FILE`."""

import json

import numpy as np
import pytest
from PIL import Image

from stal import picture
from stal.model.model import bundled_model
from stal.weights.files import WeightSchedule

TWO = "a red circle to the left of a blue square"
ONE = {"objects": [{"phrase": "a cat"}]}
CLIP = bundled_model() / "clip"


def succeed(run, *arguments):
    code, out, err = run(*arguments)
    assert (code, err) == (0, ""), err
    return out


def draw(run, model, *arguments):
    return succeed(run, "generate", TWO, "--model", model, "--quiet", *arguments)


@pytest.fixture
def schedule(tmp_path):
    path = tmp_path / "schedule.json"
    WeightSchedule({1: (1.0,), 2: (2.0, 0.0)}).save(path)
    return path


def test_generate_draws_with_a_schedule_and_again_without_it(run, sd_folder, schedule):
    draw(run, sd_folder, "--steps", 3, "--weights", schedule, "--output", "one.png")
    record = picture.read_record("one.png")
    assert record["weights"] == [[2, 2], [1, 1], [0, 0]]
    schedule.unlink()
    again = ("--from", "one.png", "--model", sd_folder, "--output", "two.png", "--quiet")
    succeed(run, "generate", *again)
    assert np.array_equal(np.asarray(Image.open("one.png")), np.asarray(Image.open("two.png")))


def test_generate_takes_the_weights_of_another_picture(run, sd_folder):
    draw(run, sd_folder, "--steps", 3, "--weights", "1,2", "--json", "one.json")
    draw(run, sd_folder, "--steps", 3, "--weights", "one.json", "--output", "two.png")
    assert picture.read_record("two.png")["weights"] == [[1, 2]] * 3
    arguments = ("--steps", 5, "--weights", "one.json", "--output", "two.png")
    code, _, err = run("generate", TWO, "--model", sd_folder, "--quiet", *arguments)
    assert code == 1
    assert "weights of 5 steps, got 3: take as many, or ask for them to be resampled" in err
    draw(run, sd_folder, *arguments, "--resample")
    assert picture.read_record("two.png")["weights"] == [[1, 2]] * 5


def test_fit_schedule_writes_what_generate_reads(run, sd_folder, tmp_path):
    (tmp_path / "prompts.txt").write_text(f"{TWO}\n\na green star\na pink ring above a red cross\n")
    common = ("--model", sd_folder, "--clip", CLIP, "--prompts", "prompts.txt", "--steps", 3)
    arguments = ("--batch", 2, "--knots", 2, "--epochs", 2, "--lr", 0.2, "--quiet")
    assert succeed(run, "fit-schedule", *common, *arguments) == "schedule.json\n"
    record = json.loads((tmp_path / "schedule.json").read_text())
    assert set(record["knots"]) == {"1", "2"}
    assert record["prompts"] == "3 of prompts.txt"
    assert record["steps"] == 3
    assert len(record["losses"]) == 2
    assert all(values != [1.9 - 1.5 / int(n), 0] for n, values in record["knots"].items())
    draw(run, sd_folder, "--steps", 3, "--weights", "schedule.json", "--output", "one.png")
    # A finished run is not run again: the file beside the output has all its epochs.
    before = (tmp_path / "schedule.json").read_bytes()
    succeed(run, "fit-schedule", *common, *arguments)
    assert (tmp_path / "schedule.json").read_bytes() == before


def test_fit_schedule_needs_objects(run, sd_folder, tmp_path):
    (tmp_path / "prompts.txt").write_text("an empty scene\n")
    code, _, err = run(
        "fit-schedule", "--model", sd_folder, "--clip", CLIP, "--prompts", "prompts.txt"
    )
    assert code == 1
    assert "prompts must name objects to place" in err
    (tmp_path / "prompts.txt").write_text("\n")
    code, _, err = run("fit-schedule", "--prompts", "prompts.txt")
    assert code == 1
    assert "prompts must hold one a line, got none in" in err


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_plot_draws_schedules_pictures_and_runs(run, sd_folder, schedule, tmp_path, kind):
    options = ("--optimize", "trajectory", "--epochs", 2, "--clip", CLIP)
    draw(run, sd_folder, "--steps", 3, "--json", "one.json", *options)
    starts = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
    for source in (schedule, "one.json", "stal.png"):
        output = tmp_path / f"weights.{kind}"
        assert succeed(run, "plot", source, "--output", output) == f"{output}\n"
        assert output.read_bytes().startswith(starts[kind])
        output.unlink()


def test_plot_draws_what_its_font_or_its_syntax_does_not_know(run, tmp_path, recwarn):
    layout = {"objects": [{"phrase": "a 円 $x_{ \x1b"}]}
    record = {"weights": [[1], [0]], "prompt": "$\\frac 円\n", "layout": layout}
    (tmp_path / "odd.json").write_text(json.dumps(record))
    assert succeed(run, "plot", "odd.json") == "weights.png\n"
    assert [str(each.message) for each in recwarn] == []


@pytest.mark.parametrize(
    ("record", "output", "message"),
    [
        ({}, "w.png", "must hold weights with their layout"),
        ({"knots": {"1": [1.0]}}, "w.png", "must have version 1"),
        ({"weights": [[1.0, 2.0]], "prompt": "a", "layout": {"objects": []}}, "w.png", "layout"),
        ({"weights": [[10**400]], "prompt": "a", "layout": ONE}, "w.png", "must hold weights"),
        (
            {"weights": [[1]], "prompt": "a", "layout": ONE, "optimize": {"trace": [{}]}},
            "w.png",
            "h",
        ),
        ({"prompts": [], "weights": [], "trace": [], "layouts": []}, "w.png", "got none"),
        (
            {"weights": [[1]], "prompt": "a", "layout": {"objects": [{"phrase": "a"}] * 300}},
            "w.png",
            "must hold weights",
        ),
        (
            {
                "prompts": ["a"] * 60,
                "weights": [[[1]]] * 60,
                "trace": [[]] * 60,
                "layouts": [ONE] * 60,
            },
            "w.png",
            "at most 50 prompts",
        ),
        ({"version": 1, "knots": {"1": [10**400]}}, "w.png", 'must hold "knots"'),
        ({}, "w.gif", "output must be a .png, .svg or .pdf, got w.gif"),
        ({}, "none/w.png", "output must be in an existing folder"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_plot_refuses_other_files(run, tmp_path, record, output, message):
    (tmp_path / "other.json").write_text(json.dumps(record))
    code, _, err = run("plot", "other.json", "--output", output)
    assert code == 1
    assert message in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("plot", "kept.json", "--output", "kept.json"), "source"),
        (("fit-schedule", "--prompts", "kept.json", "--output", "./kept.json"), "prompts"),
    ],
    ids=["plot", "fit-schedule"],
)
def test_what_is_read_is_not_replaced(run, tmp_path, arguments, name):
    (tmp_path / "kept.json").write_text(TWO)
    code, _, err = run(*arguments)
    assert code != 0
    assert f"output must be another file than {name}" in err
    assert (tmp_path / "kept.json").read_text() == TWO
