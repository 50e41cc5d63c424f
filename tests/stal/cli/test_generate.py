"""The command line: what it writes, and how it fails."""

import errno
import json
import math
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import stal
import stal_kernels
from stal import picture
from stal.layout import place, render
from stal.pipeline import Pipeline, bundled_model
from stal.prompts import parse
from stal.training import shapes as training

TWO = "a red circle to the left of a blue square"


@pytest.fixture
def run(run):
    """run(*arguments) -> exit code, lines of stdout, lines of stderr; in tmp_path."""

    def call(*arguments):
        code, out, err = run(*arguments)
        return code, out.splitlines(), err.splitlines()

    return call


@pytest.fixture
def generate(run, sd_folder):
    """`stal generate` with the tiny model and few steps; must succeed."""

    def call(*arguments):
        code, out, err = run("generate", *arguments, "--model", sd_folder, "--quiet")
        assert (code, err) == (0, [])
        return out

    return call


@pytest.fixture
def no_model(monkeypatch):
    """Loading a model is an error of the test."""

    def load(*args, **kwargs):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(Pipeline, "from_pretrained", load)


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def in_fresh_python(*arguments, **options):
    root = Path(stal.__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root)}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, **options
    )


# What it writes


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


def test_from_gives_the_same_picture(generate, run):
    options = ("--steps", 2, "--weights", "1.5,0.25", "--sampler", "euler-ancestral", "--width", 20)
    generate(TWO, *options, "--dtype", "bfloat16", "--seed", 3)
    # The model is named in the picture.
    code, out, err = run("generate", "--from", "stal.png", "--output", "again.png", "--quiet")
    assert (code, out, err) == (0, ["again.png"], [])
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
def test_optimized_picture_can_be_drawn_again(run, generate, mode, scored, more):
    clip = bundled_model() / "clip"
    options = ("--optimize", mode, "--clip", clip, "--epochs", 2, "--lr", 0.5, *more)
    generate(TWO, "--steps", 4, "--output", "plain.png", "--weights", "1,1")
    generate(TWO, "--steps", 4, "--output", "one.png", "--weights", "1,1", *options)
    record = picture.read_record("one.png")
    assert record["optimize"]["mode"] == mode
    assert len(record["optimize"]["trace"]) == scored
    assert not np.array_equal(record["weights"], np.ones((4, 2)))
    assert not np.array_equal(pixels("one.png"), pixels("plain.png"))
    code, _, err = run("generate", "--from", "one.png", "--output", "two.png", "--quiet")
    assert (code, err) == (0, [])
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


def test_progress_is_shown_on_stderr_unless_quiet(run, sd_folder):
    code, out, err = run("generate", TWO, "--steps", 2, "--model", sd_folder)
    assert (code, out) == (0, ["stal.png"])
    assert "spatial-temporal" in "\n".join(err)


def test_warnings_are_one_line(run, sd_folder, recwarn):
    long = ", ".join(["a red circle"] * 14)
    command = ("generate", long, "--steps", 1, "--model", sd_folder, "--quiet")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        # pytest records warnings instead of showing them.
        warnings.showwarning = lambda *args: sys.stderr.write(warnings.formatwarning(*args[:4]))
        code, _, err = run(*command)
    assert code == 0
    mine = [line for line in err if "tokens" in line]
    assert len(mine) == 1
    assert mine[0].startswith("stal: the model reads 40 tokens, the end of this prompt of 57 is")


# How it fails


def failure(run, *arguments) -> str:
    """The one line that a failed command writes; it exits with 1 and leaves nothing behind."""
    before = {p: p.read_bytes() if p.is_file() else None for p in Path().rglob("*")}
    code, out, err = run(*arguments)
    assert (code, out) == (1, [])
    assert len(err) == 1
    assert before == {p: p.read_bytes() if p.is_file() else None for p in Path().rglob("*")}
    assert err[0].startswith("stal: ")
    return err[0].removeprefix("stal: ")


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
        (["--from", "broken.json"], "broken.json must be a picture, got another kind of file"),
        (["--from", "bare.png"], "bare.png must carry the settings that made it, got none"),
        (["--from", "odd.png"], "layout must be an object"),
    ],
    ids=lambda value: " ".join(value)[-60:] if isinstance(value, list) else "",
)
def test_bad_input_is_found_before_a_model_is_loaded(run, no_model, arguments, message):
    for folder in ("folder.png", "b-1.png"):
        Path(folder).mkdir()
    Path("broken.json").write_text("{")
    Image.new("RGB", (4, 4)).save("bare.png")
    picture.save(Image.new("RGB", (4, 4)), "odd.png", {"prompt": TWO, "layout": []})
    assert failure(run, "generate", *arguments).startswith(message)


def test_a_folder_that_takes_no_files_is_found_before_a_model_is_loaded(run, no_model, monkeypatch):
    def refuse(**kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    message = failure(run, "generate", TWO)
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
def test_bad_settings_are_one_line(run, sd_folder, arguments, message):
    arguments = [str(bundled_model() / "clip") if a == "CLIP" else a for a in arguments]
    line = failure(run, "generate", TWO, "--model", sd_folder, "--quiet", *arguments)
    assert line.startswith(message)


def test_inputs_that_cannot_be_read_are_one_line(run, tmp_path):
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\xfa")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    json_file = ("--json", "out.jsonl")
    for arguments, message in [
        (("layout", "--prompts", "nope", *json_file), "prompts must be a text file, got nope: No"),
        (("layout", "--prompts", "binary.txt", *json_file), "prompts must be a text file in UTF-8"),
        (("layout", " ", *json_file), "prompt must not be empty"),
        (("layout", "a cat", "--model", "nope", *json_file), "No such file"),
        (("generate", TWO, "--layout", "."), ".: Is a directory"),
        (("plot", "deep.json"), "deep.json must be JSON"),
    ]:
        assert message in failure(run, *arguments)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("absent", "model must be an existing folder or a hub name owner/model, got 'absent'"),
        (".", "model must be a diffusers folder (one that holds model_index.json), got ."),
    ],
)
def test_a_model_that_is_none_is_one_line(run, model, message):
    assert failure(run, "generate", TWO, "--model", model) == message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_images": "two"}, "num_images must be a positive integer, got 'two'"),
        ({"num_images": math.inf}, "num_images must be a positive integer, got inf"),
        ({"steps": "many"}, "steps must be a positive integer, got 'many'"),
        ({"height": [16]}, "height must be a positive integer, got [16]"),
        ({"dtype": "int8"}, "'int8' is not a valid DType"),
        ({"seeds": [None]}, "seed must be an integer or one an image, got None"),
        ({"seeds": {"a": 1}}, "seed must be an integer or one an image"),
        ({"weights": {"a": 1}}, "weights must be a tensor or lists of numbers"),
        ({"reference": 5}, "reference must be a text"),
        ({"model": 5}, "model must be an existing folder"),
    ],
    ids=str,
)
def test_a_picture_with_odd_settings_is_one_line(run, pipe, change, message):
    result = pipe(TWO, steps=1)
    picture.save(result.images[0], "odd.png", {**result.settings, **change})
    assert failure(run, "generate", "--from", "odd.png", "--quiet").startswith(message)


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("old", [True, False], ids=["old picture", "no picture"])
def test_a_full_disk_leaves_no_half_written_picture(run, monkeypatch, sd_folder, call, old):
    if old:
        Path("stal.png").write_bytes(b"old")

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    line = failure(run, "generate", TWO, "--steps", 1, "--model", sd_folder, "--quiet")
    assert line == "[Errno 28] No space left on device"


def raising(error):
    def batch(*args, **kwargs):
        raise error

    return batch


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("tried to allocate"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=["gpu", "cpu"],
)
def test_too_little_memory_is_one_line(run, monkeypatch, sd_folder, error):
    monkeypatch.setattr(Pipeline, "prepare", raising(error))
    line = failure(run, "generate", TWO, "--model", sd_folder, "--quiet")
    assert line == "cpu must have more free memory: draw a smaller picture, or fewer at once"


def test_an_error_of_several_lines_is_one(run, monkeypatch, sd_folder):
    monkeypatch.setattr(Pipeline, "prepare", raising(ValueError("first\n  second")))
    assert failure(run, "generate", TWO, "--model", sd_folder, "--quiet") == "first second"


def test_a_fault_of_ours_keeps_its_traceback(run, monkeypatch, sd_folder):
    monkeypatch.setattr(Pipeline, "prepare", raising(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        run("generate", TWO, "--model", sd_folder, "--quiet")


def test_ctrl_c_exits_with_130_and_no_traceback(run, monkeypatch, sd_folder):
    monkeypatch.setattr(Pipeline, "prepare", raising(KeyboardInterrupt()))
    code, out, err = run("generate", TWO, "--model", sd_folder, "--quiet")
    assert (code, out, "".join(err).strip()) == (130, [], "")


@pytest.mark.parametrize(
    "arguments",
    [
        ["paint"],
        ["generate"],
        ["generate", TWO, "--colour", "red"],
        ["generate", TWO, "--attention", "temporal"],
        ["generate", TWO, "--steps", "many"],
        ["generate", TWO, "--num-images", "0"],
        ["generate", TWO, "more"],
        ["train-shapes"],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_with_2(run, no_model, arguments):
    code, out, err = run(*arguments)
    assert (code, out) == (2, [])
    assert "Usage: " in err[0]
    assert "Error: " in err[-1]


def test_train_shapes_trains_the_stages(run, monkeypatch):
    calls = []
    monkeypatch.setattr(training, "train", lambda *args, **options: calls.append((args, options)))
    assert run("train-shapes", "--output", "out", "--stage", "vae", "--stage", "clip")[0] == 0
    assert run("train-shapes", "--output", "out", "--seed", "3")[0] == 0
    # A model to go on from brings its own vae.
    assert run("train-shapes", "--output", "out", "--from", "model")[0] == 0
    assert calls == [
        ((Path("out"),), {"stages": ("vae", "clip"), "seed": 0, "start": None}),
        ((Path("out"),), {"stages": training.STAGES, "seed": 3, "start": None}),
        ((Path("out"),), {"stages": ("unet", "clip"), "seed": 0, "start": Path("model")}),
    ]


def test_an_unknown_stage_is_one_line(run):
    line = failure(run, "train-shapes", "--output", "out", "--stage", "vea")
    assert line == "stages must be among vae, unet, clip, got vea"


# In a process of its own


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--help"]], ids=" ".join)
def test_help_imports_nothing_heavy(arguments):
    code = (
        "import atexit, sys\n"
        "heavy = {'torch', 'numpy', 'PIL', 'diffusers', 'transformers', 'tqdm', 'safetensors'}\n"
        "atexit.register(lambda: print('heavy:', sorted(heavy & set(sys.modules))))\n"
        f"sys.argv = ['stal', *{arguments}]\n"
        "from stal.__main__ import main; main()"
    )
    result = in_fresh_python("-c", code)
    assert result.returncode == 0
    assert "Usage: stal" in result.stdout
    assert result.stdout.splitlines()[-1] == "heavy: []"
    assert result.stderr == ""


def test_the_module_draws_in_a_process_of_its_own(sd_folder, tmp_path):
    command = ["-m", "stal", "generate", TWO, "--steps", "2", "--model", str(sd_folder), "--quiet"]
    result = in_fresh_python(*command, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (0, "stal.png\n")
    assert picture.read_record(tmp_path / "stal.png")["prompt"] == TWO


def test_a_closed_pipe_is_quiet(sd_folder, tmp_path):
    root = Path(stal.__file__).parent.parent
    command = ["-m", "stal", "generate", TWO, "--steps", "1", "--model", str(sd_folder), "--quiet"]
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(
        [sys.executable, *command],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    os.close(writer)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "BrokenPipe" not in result.stderr
    assert (tmp_path / "stal.png").is_file()


# The package


def test_the_package_names_its_parts():
    assert stal.Pipeline is Pipeline
    assert {name: getattr(stal, name).__name__ for name in stal.__all__ if name[0] != "_"} == {
        name: name for name in stal.__all__ if name[0] != "_"
    }
    assert stal.__version__ == stal_kernels.__version__
    with pytest.raises(AttributeError, match="module 'stal' has no attribute 'Pipelines'"):
        stal.Pipelines  # noqa: B018
