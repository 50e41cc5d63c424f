"""`stal train-shapes` and `stal train-layout`: what they train, and how they fail."""

import json
from pathlib import Path

import pytest

from stal.training import shapes as training

TWO = "a red circle to the left of a blue square"


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


def test_an_unknown_stage_is_one_line(failure):
    line = failure("train-shapes", "--output", "out", "--stage", "vea")
    assert line == "stages must be among vae, unet, clip, got vea"


def test_train_layout_trains(run, tmp_path):
    item = {
        "image_id": 1,
        "prompt": "a dog to the left of a car",
        "obj1": ["dog", [0.1, 0.4, 0.2, 0.2]],
        "obj2": ["car", [0.5, 0.3, 0.4, 0.4]],
    }
    (tmp_path / "a.json").write_text(json.dumps([item]))
    options = ("--nsr1k", "a.json", "--output", "model", "--quiet")
    code, out, err = run("train-layout", *options, "--steps", 1)
    assert (code, err) == (0, "")
    assert out.startswith("NLL ")
    assert run("layout", TWO, "--json", "a.json", "--model", "model")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "must be given annotated pictures"),
        (("--captions", "c.json"), "captions must come with --annotations"),
        (("--nsr1k", "none.json"), "none.json"),
        (("--nsr1k", "bad.json"), "line 1"),
    ],
)
def test_train_layout_refuses(run, tmp_path, arguments, message):
    (tmp_path / "bad.json").write_text('[{"prompt":')
    code, _, err = run("train-layout", "--output", "model", *arguments)
    assert code == 1
    assert message in err
    assert not (tmp_path / "model").exists()
