"""`stal evaluate`: what it compares, and what it refuses before anything is written."""

from collections import Counter
from pathlib import Path

import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

from stal import picture
from stal.cli import evaluate as command
from stal.evaluation import methods
from stal.evaluation.detectors import pixels
from stal.evaluation.harness import read_rows
from stal.layout import place
from stal.pipeline import Pipeline
from stal.prompts import parse


def evaluate(*arguments):
    app = typer.Typer()
    app.command()(command.evaluate)
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_the_command_compares_methods_and_resumes(sd_folder, tmp_path):
    output = tmp_path / "out"
    arguments = (
        *("--prompts", "shapes:1:1,2", "--methods", "plain,spatial", "--seeds", 1),
        *("--layouts", "given", "--model", sd_folder, "--steps", 2, "--output", output, "--quiet"),
    )
    result = evaluate(*arguments)
    assert result.exception is None
    assert result.output == f"{output / 'summary.md'}\n"
    rows = read_rows(output)
    assert Counter(row.method for row in rows) == {"plain": 2, "spatial": 2}
    assert {row.clip_global for row in rows} == {None}
    record = picture.read_record(output / rows[0].image)
    pipe = Pipeline.from_pretrained(sd_folder)
    again = pipe(record["prompt"], attention="plain", steps=2, seed=rows[0].seed)
    with Image.open(output / rows[0].image) as image:
        same = (pixels(image) - pixels(again.images[0])).abs().max()
    assert same <= 2 / 255 + 1e-6
    before = (output / "results.jsonl").read_bytes()
    assert evaluate(*arguments, "--batch", 1).exception is None
    assert (output / "results.jsonl").read_bytes() == before
    result = evaluate(*arguments, "--guidance-scale", 3)
    assert "with guidance_scale null instead of 3.0" in str(result.exception)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", ","], "methods must be different names"),
        (["--methods", "plain,plain"], "methods must be different names"),
        (["--methods", "plain,magic"], "methods must be among plain, "),
        (["--prompts", "absent"], "prompts must be a file of prompts"),
        (["--layouts", "given"], "layouts must be predicted or placed: words.txt has none"),
        (["--min-score", "0.5"], "min_score must come with the detector of a folder"),
        (["--detector", "absent"], "clip must be given with the detector of a folder"),
        (["--clip", "absent"], "clip must be a folder with a CLIP model"),
        (["--model", "absent"], "model must be an existing folder or a hub name"),
        (["--output", "words.txt"], "output must be a folder, got the file"),
        (["--output", "full"], "output must be a folder of `stal evaluate`"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_an_error_before_anything_is_written(
    sd_folder, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    Path("words.txt").write_text("a red circle\n")
    Path("full").mkdir()
    Path("full/a").write_text("")
    base = {
        "--prompts": "words.txt",
        "--methods": "plain",
        "--output": "out",
        "--model": str(sd_folder),
    }
    base.update(zip(arguments[::2], arguments[1::2], strict=True))
    result = evaluate(*(word for pair in base.items() for word in pair), "--quiet")
    assert isinstance(result.exception, ValueError)
    assert str(result.exception).startswith(message)
    assert not Path("out").exists()


def test_words_that_the_bundled_model_does_not_know_are_named_with_their_line(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("a red circle\na dog\n")
    arguments = ("--prompts", path, "--methods", "plain", "--output", tmp_path / "out")
    result = evaluate(*arguments)
    assert str(result.exception).startswith(
        f"{path}:2: prompts must use words that the model knows, got dog: use prompts of its world"
    )


def test_too_little_memory_names_the_batch(sd_folder, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("tried to allocate")

    monkeypatch.setattr(methods, "draw", full)
    output = tmp_path / "out"
    arguments = ("--prompts", "shapes:1:1", "--methods", "plain", "--output", output)
    result = evaluate(*arguments, "--model", sd_folder, "--quiet")
    assert isinstance(result.exception, MemoryError)
    assert "smaller --batch" in str(result.exception)


@pytest.mark.parametrize("source", ["predicted", "placed"])
def test_layouts_come_from_the_predictor_or_from_rules(sd_folder, tmp_path, source):
    from stal.layout.predictor import predict

    output = tmp_path / "out"
    arguments = ("--prompts", "shapes:1:2", "--methods", "plain", "--seeds", 1, "--steps", 1)
    result = evaluate(
        *arguments, "--output", output, "--layouts", source, "--model", sd_folder, "--quiet"
    )
    assert result.exception is None
    row = read_rows(output)[0]
    found = (predict if source == "predicted" else place)(parse(row.prompt))
    assert row.layout == [{"phrase": o.phrase, "box": [*o.box]} for o in found.objects]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "5000"], "steps must be an integer in [1, 1000], got 5000"),
        (["--sampler", "nope"], "sampler must be one of"),
        (["--guidance-scale", "nan"], "guidance_scale must be a finite number"),
        (["--methods", "plain,online"], "methods must not need CLIP where the model has none"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_settings_are_checked_before_the_folder_is_made(failure, sd_folder, arguments, message):
    base = {"--prompts": "shapes:1:1", "--methods": "plain", "--output": "out"}
    base |= dict(zip(arguments[::2], arguments[1::2], strict=True))
    words = [word for pair in base.items() for word in pair]
    line = failure("evaluate", *words, "--model", sd_folder, "--quiet")
    assert line.startswith(message)


def test_a_full_disk_says_that_the_run_goes_on(run_lines, sd_folder, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("stal.picture.write_atomic", full)
    words = ("--prompts", "shapes:1:1", "--methods", "plain", "--output", "out", "--steps", 1)
    code, _, err = run_lines("evaluate", *words, "--model", sd_folder, "--quiet")
    assert code == 1
    assert err == [
        "stal: No space left on device: make room and run the same command again, it goes on where"
        " it stopped"
    ]
