"""`stal generate`: what it writes, and how it fails."""

import errno
import json
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stal import picture
from stal.layout import Layout, place, render
from stal.model.model import bundled_model
from stal.prompts import parse

TWO = "a red circle to the left of a blue square"


@pytest.fixture
def generate(run_lines, sd_folder):
    """`stal generate` with the tiny model and few steps; must succeed."""

    def call(*arguments):
        code, out, err = run_lines("generate", *arguments, "--model", sd_folder, "--quiet")
        assert (code, err) == (0, [])
        return out

    return call


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_generate_writes_the_picture_of_the_pipeline(generate, pipe):
    assert generate(TWO, "--steps", 2, "--seed", 4) == ["stal.png"]
    expected = pipe(TWO, steps=2, seed=4)
    assert np.array_equal(pixels("stal.png"), np.asarray(expected.images[0]))
    record = picture.read_record("stal.png")
    assert {**record, "model": ""} == {**expected.settings, "model": ""}
    assert os.listdir() == ["stal.png"]


def test_every_option_reaches_the_pipeline(generate, pipe):
    layout = place(parse(TWO), seed=3)
    layout.save("boxes.json")
    generate(
        *(TWO, "--output", "out.png", "--attention", "spatial", "--rule", "guidance"),
        *("--reference", "an empty scene", "--weights", "1,0.5", "--layout", "boxes.json"),
        *("--seed", 9, "--negative-prompt", "a ring", "--sampler", "ddim", "--eta", 0.5),
        *("--steps", 2, "--guidance-scale", 3.5, "--height", 12, "--width", 20),
    )
    expected = pipe(
        TWO,
        attention="spatial",
        reference="an empty scene",
        weights=[1, 0.5],
        layout=layout,
        seed=9,
        negative_prompt="a ring",
        sampler="ddim",
        eta=0.5,
        steps=2,
        guidance_scale=3.5,
        height=12,
        width=20,
    )
    assert np.array_equal(pixels("out.png"), np.asarray(expected.images[0]))


def test_json_holds_the_settings_of_all_pictures(generate):
    generate(TWO, "--steps", 2, "--num-images", 2, "--json", "settings.json")
    settings = json.loads(Path("settings.json").read_text())
    assert settings["seeds"] == [0, 1]
    assert settings["prompt"] == TWO
    assert np.shape(settings["weights"]) == (2, 2)


def test_each_of_several_pictures_can_be_drawn_again(generate):
    out = generate(TWO, "--steps", 2, "--seed", 5, "--num-images", 2, "--output", "a.png")
    assert out == ["a-0.png", "a-1.png"]
    assert generate("--from", "a-1.png", "--output", "again.png") == ["again.png"]
    assert np.abs(pixels("again.png").astype(int) - pixels("a-1.png")).max() <= 2
    assert np.abs(pixels("again.png").astype(int) - pixels("a-0.png")).max() > 30


def test_from_gives_the_same_picture(generate):
    options = ("--steps", 2, "--weights", "1.5,0.25", "--sampler", "euler-ancestral", "--width", 20)
    generate(TWO, *options, "--dtype", "bfloat16", "--seed", 3)
    assert generate("--from", "stal.png", "--output", "again.png") == ["again.png"]
    assert Path("again.png").read_bytes() == Path("stal.png").read_bytes()


@pytest.mark.parametrize(
    "override",
    [
        ("--seed", 8),
        ("--seed", 8, "--num-images", 2),
        ("--steps", 3),
        ("--attention", "spatial"),
        ("--rule", "convex"),
        ("--reference", "an empty scene"),
        ("--reference", "unconditional"),
        ("--background", 0.0),
        ("--guidance-scale", 2.0),
        ("--attention", "plain"),
    ],
    ids=str,
)
def test_options_override_those_of_from(generate, override):
    """As if the option had been given in the first place."""
    generate(TWO, "--steps", 2, "--output", "first.png")
    again = generate("--from", "first.png", *override, "--output", "again.png")
    steps = () if "--steps" in override else ("--steps", 2)
    direct = generate(TWO, *steps, *override, "--output", "direct.png")
    for one, other in zip(again, direct, strict=True):
        assert Path(one).read_bytes() == Path(other).read_bytes()


@pytest.mark.parametrize(("mode", "scored"), [("trajectory", 2), ("online", 1)])
@pytest.mark.parametrize("more", [(), ("--recompute-blocks",)], ids=str)
def test_optimized_picture_can_be_drawn_again(generate, mode, scored, more):
    clip = bundled_model() / "clip"
    options = ("--optimize", mode, "--clip", clip, *more)
    if mode == "trajectory":
        options += ("--epochs", 2, "--lr", 0.5)
    generate(TWO, "--steps", 4, "--output", "plain.png", "--weights", "1,1")
    generate(TWO, "--steps", 4, "--output", "one.png", "--weights", "1,1", *options)
    record = picture.read_record("one.png")
    assert record["optimize"]["mode"] == mode
    assert len(record["optimize"]["trace"]) == scored
    assert not np.array_equal(record["weights"], np.ones((4, 2)))
    assert not np.array_equal(pixels("one.png"), pixels("plain.png"))
    # The same model by name: the weights that were found for it are kept.
    generate("--from", "one.png", "--output", "two.png")
    assert np.array_equal(pixels("one.png"), pixels("two.png"))


def test_another_prompt_or_layout_does_not_keep_the_old_objects(generate):
    generate(TWO, "--steps", 2, "--weights", "1,2", "--output", "first.png")
    generate("a green star", "--from", "first.png", "--output", "star.png")
    record = picture.read_record("star.png")
    assert [o["phrase"] for o in record["layout"]["objects"]] == ["a green star"]
    assert np.allclose(record["weights"], [[0.4], [0.0]])
    assert record["steps"] == 2
    place(parse("a ring, a cross and a star")).save("three.json")
    generate("--from", "first.png", "--layout", "three.json", "--output", "three.png")
    record = picture.read_record("three.png")
    assert record["prompt"] == TWO
    assert np.shape(record["weights"]) == (2, 3)


def test_compare_draws_plain_beside_ours(generate, pipe):
    generate(TWO, "--steps", 2, "--compare", "--seed", 1, "--attention", "spatial")
    plain = pipe(TWO, steps=2, seed=1, attention="plain")
    ours = pipe(TWO, steps=2, seed=1, attention="spatial")
    expected = render.compare(
        plain.images[0], ours.images[0], ours.layout, prompt=TWO, attention="spatial"
    )
    assert np.array_equal(pixels("stal.png"), np.asarray(expected))
    generate("--from", "stal.png", "--output", "ours.png")
    assert np.array_equal(pixels("ours.png"), np.asarray(ours.images[0]))


def test_progress_is_shown_on_stderr_unless_quiet(run_lines, sd_folder):
    code, out, err = run_lines("generate", TWO, "--steps", 2, "--model", sd_folder)
    assert (code, out) == (0, ["stal.png"])
    assert "spatial-temporal" in "\n".join(err)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([""], "prompt must not be empty"),
        (["  "], "prompt must not be empty"),
        ([TWO, "--output", "absent/a.png"], "output must be in an existing folder"),
        ([TWO, "--output", "folder.png"], "output must be a file, got the folder"),
        ([TWO, "--output", "a.jpg"], "output must be a PNG file, got a.jpg: name it a.png"),
        ([TWO, "--output", "/dev/null"], "output must be a PNG file"),
        ([TWO, "--output", "n" * 300 + ".png"], "output must be writable"),
        ([TWO, "--output", "b.png", "--num-images", "2"], "output must be a file, got the folder"),
        ([TWO, "--json", "absent/a.json"], "json must be in an existing folder"),
        ([TWO, "--json", "folder.png"], "json must be a file, got the folder"),
        ([TWO, "--json", "stal.png"], "json must be another file than output, got stal.png"),
        ([TWO, "--layout", "absent.json"], "absent.json: No such file or directory"),
        ([TWO, "--layout", "broken.json"], "broken.json: layout must be valid JSON"),
        ([TWO, "--weights", "1,two"], "weights must be numbers like 1,0.5 or an existing file"),
        ([TWO, "--attention", "plain", "--compare"], "attention must not be plain with --compare"),
        (
            [TWO, "--attention", "plain", "--optimize", "online"],
            "attention must not be plain with --optimize",
        ),
        (["--from", "absent.png"], "absent.png must be a picture, got: No such file"),
        (["--from", "broken.json"], "broken.json must be a PNG picture, got another kind of file"),
        (["--from", "bare.png"], "bare.png must carry the settings that made it, got none"),
        (["--from", "odd.png"], "layout must be an object"),
    ],
    ids=lambda value: " ".join(value)[-60:] if isinstance(value, list) else "",
)
def test_bad_input_is_found_before_a_model_is_loaded(failure, no_model, arguments, message):
    for folder in ("folder.png", "b-1.png"):
        Path(folder).mkdir()
    Path("broken.json").write_text("{")
    Image.new("RGB", (4, 4)).save("bare.png")
    picture.save(Image.new("RGB", (4, 4)), "odd.png", {"prompt": TWO, "layout": []})
    assert failure("generate", *arguments).startswith(message)


def test_a_folder_that_takes_no_files_is_found_before_a_model_is_loaded(
    failure, no_model, monkeypatch
):
    def refuse(**kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    message = failure("generate", TWO)
    assert message == "output must be writable, got stal.png: Permission denied"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--height", "15"], "height must be a multiple of 2, got 15; 16 is the nearest"),
        (["--width", "0"], "width must be a positive integer, got 0"),
        (["--steps", "0"], "steps must be a positive integer, got 0"),
        (["--steps", "2000"], "steps must be an integer in [1, 1000], got 2000"),
        (["--sampler", "heun"], "sampler must be one of"),
        (["--weights", "1"], "weights must be (steps, objects) = (50, 2) or (objects,)"),
        (["--weights", "1,nan"], "weights must be finite, got nan"),
        (["--weights", "1,2", "--rule", "convex"], "weights must be in [0, 1]"),
        (["--guidance-scale", "nan"], "guidance_scale must be a finite number, got nan"),
        (["--guidance-scale", "1"], "reference must be a prompt"),
        (["--eta", "2"], "eta must lie in [0, 1], got 2.0"),
        (["--seed", str(2**64)], "seed must lie in"),
        (["--device", "nonsense"], "device must be available, got nonsense"),
        (["--optimize", "online"], "clip must be a folder with a CLIP model, got"),
        (["--optimize", "trajectory", "--lr", "-1", "--clip", "CLIP"], "lr must be a finite"),
    ],
    ids=" ".join,
)
def test_bad_settings_are_one_line(failure, sd_folder, arguments, message):
    arguments = [str(bundled_model() / "clip") if a == "CLIP" else a for a in arguments]
    line = failure("generate", TWO, "--model", sd_folder, "--quiet", *arguments)
    assert line.startswith(message)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("absent", "model must be an existing folder or a hub name owner/model, got 'absent'"),
        (".", "model must be a diffusers folder (one that holds model_index.json), got ."),
    ],
)
def test_a_model_that_is_none_is_one_line(failure, model, message):
    assert failure("generate", TWO, "--model", model) == message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_images": "two"}, "num_images must be a positive integer, got 'two'"),
        ({"num_images": math.inf}, "num_images must be a positive integer, got inf"),
        ({"steps": "many"}, "steps must be a positive integer, got 'many'"),
        ({"height": [16]}, "height must be a positive integer, got [16]"),
        ({"steps": True}, "steps must be a positive integer, got True"),
        ({"num_images": 10**9}, "num_images must be at most 1000, got 1000000000 in odd.png"),
        ({"seeds": [1, 2]}, "seeds must be one an image, got 2 of 1 images in odd.png"),
        ({"seeds": list(range(2000))}, "seeds must be a list of at most 1000 integers, got"),
        ({"height": 2**20, "width": 2**20}, "height x width must be at most 67108864 pixels"),
        ({"dtype": "int8"}, "dtype must be one of float32, bfloat16, float16, got 'int8'"),
        ({"seeds": [None]}, "seeds must be a list of at most 1000 integers, got [None]"),
        ({"seeds": {"a": 1}}, "seeds must be a list of at most 1000 integers"),
        ({"weights": {"a": 1}}, "weights must be a list, got {'a': 1} in odd.png"),
        ({"weights": [[10**400, 1]]}, "weights must be a tensor or lists of numbers"),
        ({"eta": math.nan}, "eta must be a finite number, got nan in odd.png"),
        ({"eta": 10**400}, "eta must be a finite number, got 1000"),
        ({"attention": ["plain"]}, "attention must be one of plain, spatial, spatial-temporal"),
        ({"rule": "best"}, "rule must be one of guidance, convex, got 'best' in odd.png"),
        ({"sampler": None}, "sampler must be a text, got None in odd.png: give --sampler"),
        ({"reference": 5}, "reference must be a text"),
        ({"layout": {"objects": 3}}, "objects must be a list, got 3 in odd.png"),
        ({"model": 5}, "model must be a text, got 5 in odd.png: give --model"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_picture_with_odd_settings_is_one_line(failure, pipe, no_hub, change, message):
    result = pipe(TWO, steps=1)
    settings = {**result.settings, "model": "", **change}
    picture.save(result.images[0], "odd.png", settings)
    assert failure("generate", "--from", "odd.png", "--quiet").startswith(message)


@pytest.fixture
def no_hub(monkeypatch):
    """Asking the hub is an error of the test."""

    def ask(*args, **kwargs):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("huggingface_hub.snapshot_download", ask)


def save_record(path, **changes):
    picture.save(Image.new("RGB", (4, 4)), path, {"prompt": TWO, **changes})


@pytest.mark.parametrize(
    ("model", "fix"),
    [
        ("someone/else", "give --model someone/else to use it, or --allow-download to fetch"),
        ("folder/model", "name the folder to draw with, --model folder/model if it is that"),
        ("/etc", "name the folder to draw with, --model /etc if it is that"),
        ("../x y", "name the folder to draw with, --model '../x y' if it is that"),
        ("~/model", "--model '~/model'"),
        ("https://example.org/model", "--model https://example.org/model"),
    ],
)
def test_no_model_is_opened_because_a_picture_names_it(failure, no_model, no_hub, model, fix):
    Path("folder/model").mkdir(parents=True)
    save_record("odd.png", model=model)
    line = failure("generate", "--from", "odd.png")
    assert line.startswith(f"odd.png was drawn with the model {model!r}: ")
    assert fix in line


def test_a_model_that_a_picture_names_is_fetched_if_that_is_asked_for(failure, monkeypatch):
    def ask(name, **options):
        raise OSError(f"fetched {name}")

    monkeypatch.setattr("huggingface_hub.snapshot_download", ask)
    save_record("odd.png", model="someone/else")
    line = failure("generate", "--from", "odd.png", "--allow-download")
    assert "fetched someone/else" in line
    save_record("odd.png", model="/etc")
    assert "name the folder" in failure("generate", "--from", "odd.png", "--allow-download")


def test_a_picture_of_another_method_says_that_it_is_drawn_otherwise(generate, sd_folder):
    save_record("odd.png", method="boxdiff", attention="plain", steps=1)
    with pytest.warns(UserWarning, match="was drawn by boxdiff"):
        generate("--from", "odd.png")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "3"], "epochs must come with --optimize trajectory"),
        (["--optimize", "online", "--lr", "0.1"], "lr must come with --optimize trajectory"),
        (["--clip", "clip"], "clip must come with --optimize"),
        (["--recompute-blocks"], "recompute_blocks must come with --optimize"),
        (["--canvas", "64x64"], "canvas must come with --layout"),
        (["--resample"], "resample must come with a file of --weights"),
        (["--resample", "--weights", "1,2"], "resample must come with a file of --weights"),
        (["--allow-download"], "allow_download must come with --from"),
    ],
    ids=" ".join,
)
def test_an_option_that_would_do_nothing_is_refused(failure, no_model, arguments, message):
    assert failure("generate", TWO, *arguments).startswith(message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--attention", "plain", "--rule", "convex"], "rule changes nothing with plain attention"),
        (["--attention", "plain", "--reference", "fog"], "reference changes nothing with plain"),
        (["--attention", "plain", "--layout", "two.json"], "layout changes nothing with plain"),
        (["--rule", "convex", "--reference", "fog"], "reference changes nothing with the rule"),
        (
            ["--guidance-scale", "1", "--negative-prompt", "fog", "--rule", "convex"],
            "negative_prompt changes nothing with guidance_scale 1",
        ),
        (["--layout", "other.json"], "the layout is of another prompt, 'a ring': its objects"),
        (["--layout", "two.json", "--width", "32"], "an aspect (width / height) of 1 and is"),
        (["--layout", "empty.json"], "the layout of 'a red circle to the left of a blue square'"),
    ],
    ids=" ".join,
)
def test_what_has_no_effect_is_said(generate, arguments, message):
    place(parse(TWO)).save("two.json")
    place(parse("a ring")).save("other.json")
    Layout(TWO).save("empty.json")
    with pytest.warns(UserWarning, match=re.escape(message)):
        generate(TWO, "--steps", 1, *arguments)


def test_a_prompt_without_objects_is_said_to_be_drawn_plain(generate):
    with pytest.warns(UserWarning, match="no object was found in 'red and blue'"):
        generate("red and blue", "--steps", 1)


def test_prompt_and_size_come_from_the_layout_where_none_are_given(generate):
    place(parse(TWO), aspect=16 / 9).save("wide.json")
    generate("--layout", "wide.json", "--steps", 1)
    record = picture.read_record("stal.png")
    assert record["prompt"] == TWO
    # About 16 x 16 pixels; two levels of cells of 2 pixels.
    assert (record["height"], record["width"]) == (12, 20)
    generate("--layout", "wide.json", "--steps", 1, "--height", 12, "--width", 24)
    assert pixels("stal.png").shape == (12, 24, 3)
    # A picture's own size yields to another layout.
    generate(TWO, "--steps", 1)
    generate("--from", "stal.png", "--layout", "wide.json", "--output", "wide.png")
    assert pixels("wide.png").shape == (12, 20, 3)


def test_a_layout_without_a_prompt_needs_one(failure, run_lines, no_model):
    place(parse("a cat")).save("cat.json")
    text = Path("cat.json").read_text().replace('"prompt": "a cat"', '"prompt": " "')
    Path("cat.json").write_text(text)
    line = failure("generate", "--layout", "cat.json")
    assert line == "prompt must be given: the layout has none"
    assert run_lines("generate")[0] == 2


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("old", [True, False], ids=["old picture", "no picture"])
def test_a_full_disk_leaves_no_half_written_picture(failure, monkeypatch, sd_folder, call, old):
    if old:
        Path("stal.png").write_bytes(b"old")

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    line = failure("generate", TWO, "--steps", 1, "--model", sd_folder, "--quiet")
    assert line == "stal.png: No space left on device: make room and run again"
