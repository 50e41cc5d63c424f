"""The layout predictor's training: its data, what it learns, resuming."""

import json

import pytest
import torch
from safetensors.torch import load_file

from stal.layout import Layout, PlacedObject
from stal.layout.network import Config
from stal.layout.predictor import WEIGHTS, LayoutPredictor
from stal.training import layout as layout_training
from stal.training.composed import compose
from stal.training.layout import LayoutRecipe, train
from stal.training.layout_data import read_coco, read_nsr1k, shapes

SPATIAL = [
    {
        "image_id": 10 + i,
        "prompt": "a dog to the left of a car",
        "obj1": ["dog", [0.1, 0.4, 0.2, 0.2]],
        "obj2": ["car", [0.5, 0.3, 0.4, 0.4]],
        "relation": "left",
        "type": "template",
    }
    for i in range(6)
]
COCO = {
    "images": [{"id": 7, "width": 200, "height": 100}],
    "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "car"}],
    "annotations": [
        {"image_id": 7, "category_id": 1, "bbox": [20, 40, 40, 20], "iscrowd": 0},
        {"image_id": 7, "category_id": 2, "bbox": [100, 30, 80, 40], "iscrowd": 0},
    ],
}


@pytest.fixture
def nsr1k(tmp_path):
    path = tmp_path / "nsr1k.json"
    path.write_text(json.dumps(SPATIAL))
    return path


def test_nsr1k_captions_become_examples(nsr1k):
    example = read_nsr1k(nsr1k)[0]
    assert [noun for _, noun in example.phrases] == ["dog", "car"]
    assert example.relations == ((0, "left of", 1),)
    assert example.boxes[0] == pytest.approx((0.1, 0.4, 0.3, 0.6))
    assert example.image == 10


@pytest.mark.parametrize("captioned", [True, False])
def test_coco_becomes_examples(tmp_path, captioned):
    boxes, texts = tmp_path / "instances.json", tmp_path / "captions.json"
    boxes.write_text(json.dumps(COCO))
    caption = {"image_id": 7, "caption": "A dog sits next to a car."}
    texts.write_text(json.dumps({"annotations": [caption]}))
    (example,) = read_coco(boxes, texts if captioned else None)
    assert {noun for _, noun in example.phrases} == {"dog", "car"}
    assert example.aspect == 2.0
    dog = [noun for _, noun in example.phrases].index("dog")
    assert example.boxes[dog] == pytest.approx((0.1, 0.4, 0.3, 0.6))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[{]", "line 1, column 3"),
        ("{}", "must be a list of captions"),
        ('[{"prompt": "a dog"}]', "item 0 must be a caption"),
        (json.dumps([{**SPATIAL[0], "obj1": ["dog", [0, 0, 0, 1]]}]), r"item 0 must have a box"),
        (json.dumps([{**SPATIAL[0], "obj1": ["dog", [0, 0, 2, 1]]}]), r"item 0 must have a box"),
    ],
)
def test_bad_annotations_are_refused(tmp_path, text, message):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_nsr1k(path)


def test_coco_without_boxes_is_refused(tmp_path):
    path = tmp_path / "instances.json"
    path.write_text(json.dumps({**COCO, "annotations": []}))
    with pytest.raises(ValueError, match="must have boxes, got none"):
        read_coco(path, None)


@pytest.mark.parametrize("scenes", [compose, shapes], ids=["everyday", "shapes"])
def test_composed_scenes_say_what_is_true(scenes):
    for example in scenes(40, seed=0):
        objects = tuple(PlacedObject("", "", box) for box in example.boxes)
        assert Layout("", objects, example.relations, example.aspect).violated == ()
    assert scenes(5, seed=1) == scenes(5, seed=1)


def test_composed_scenes_are_various():
    examples = compose(200, seed=0)
    assert {name for each in examples for _, name, _ in each.relations} > {
        "on",
        "held by",
        "worn by",
        "behind",
        "left of",
    }
    assert len({each.scene for each in examples}) > 20


def test_training_learns_and_loads(nsr1k, tmp_path):
    whole, short = (LayoutRecipe(steps=n, batch=8, composed=0) for n in (40, 1))
    scores = train(tmp_path / "out", whole, nsr1k=[nsr1k], quiet=True)
    first = train(tmp_path / "one", short, nsr1k=[nsr1k], quiet=True)
    assert scores["nll"] < first["nll"] - 1
    predictor = LayoutPredictor.load(tmp_path / "out")
    assert float(predictor.metadata["nll"]) == scores["nll"]


def test_training_resumes_to_the_same_weights(nsr1k, tmp_path, monkeypatch):
    monkeypatch.setattr(layout_training, "SAVE_EVERY", 2)
    recipe = LayoutRecipe(steps=4, batch=4, composed=4)
    train(tmp_path / "whole", recipe, nsr1k=[nsr1k], quiet=True)

    class Killed(Exception):
        pass

    loss, calls = layout_training._loss, []

    def fail_at_the_third(*arguments):
        calls.append(1)
        if len(calls) == 2 * Config().members + 1:
            raise Killed
        return loss(*arguments)

    monkeypatch.setattr(layout_training, "_loss", fail_at_the_third)
    with pytest.raises(Killed):
        train(tmp_path / "parts", recipe, nsr1k=[nsr1k], quiet=True)
    assert visible(tmp_path / "parts") == ["training.safetensors"]
    monkeypatch.setattr(layout_training, "_loss", loss)
    train(tmp_path / "parts", recipe, nsr1k=[nsr1k], quiet=True)
    whole, parts = (load_file(tmp_path / name / WEIGHTS) for name in ("whole", "parts"))
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value)
    assert visible(tmp_path / "parts") == [WEIGHTS]


def visible(folder):
    return [path.name for path in folder.iterdir() if not path.name.startswith(".")]


def test_a_finished_folder_is_not_trained_again(nsr1k, tmp_path, monkeypatch):
    recipe = LayoutRecipe(steps=2, batch=2, composed=0)
    scores = train(tmp_path / "out", recipe, nsr1k=[nsr1k], quiet=True)
    monkeypatch.setattr(layout_training, "_loss", None)
    with pytest.warns(UserWarning, match="is finished and nothing is trained: delete it to train"):
        assert train(tmp_path / "out", recipe, nsr1k=[nsr1k], quiet=True) == scores
    longer = LayoutRecipe(steps=3, batch=2, composed=0)
    with pytest.raises(ValueError, match="must be of the same run, got a finished run of other r"):
        train(tmp_path / "out", longer, nsr1k=[nsr1k], quiet=True)
    nsr1k.write_text(json.dumps(SPATIAL[:2]))
    with pytest.raises(ValueError, match="got a finished run of other pictures: delete it to"):
        train(tmp_path / "out", recipe, nsr1k=[nsr1k], quiet=True)
    (tmp_path / "out" / WEIGHTS).write_bytes(b"something else")
    with pytest.raises(ValueError, match="got a finished run of other weights"):
        train(tmp_path / "out", recipe, nsr1k=[nsr1k], quiet=True)


def test_a_checkpoint_of_other_steps_or_pictures_is_refused(nsr1k, tmp_path, monkeypatch):
    monkeypatch.setattr(layout_training, "SAVE_EVERY", 1)

    def killed(*arguments):
        raise KeyboardInterrupt

    recipe = LayoutRecipe(steps=2, batch=2, composed=0)
    with monkeypatch.context() as patch:
        patch.setattr(layout_training, "validate", killed)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "out", recipe, nsr1k=[nsr1k], quiet=True)
    with pytest.raises(ValueError, match=r"recipe steps must be 2 to go on from .*, got 3: delete"):
        train(
            *(tmp_path / "out", LayoutRecipe(steps=3, batch=2, composed=0)),
            nsr1k=[nsr1k],
            quiet=True,
        )
    nsr1k.write_text(json.dumps(SPATIAL[:2]))
    with pytest.raises(ValueError, match=r"pictures must be \w+ to go on from .*, got \w+: delete"):
        train(tmp_path / "out", recipe, nsr1k=[nsr1k], quiet=True)


def test_training_is_the_same_in_any_surroundings(nsr1k, tmp_path):
    recipe = LayoutRecipe(steps=2, batch=4, composed=0)
    train(tmp_path / "plain", recipe, nsr1k=[nsr1k], quiet=True)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"), torch.autocast("cpu"), torch.no_grad():
            train(tmp_path / "odd", recipe, nsr1k=[nsr1k], quiet=True)
    finally:
        torch.set_default_dtype(torch.float32)
    plain, odd = (load_file(tmp_path / name / WEIGHTS) for name in ("plain", "odd"))
    assert plain.keys() == odd.keys()
    assert all(torch.equal(odd[name], value) for name, value in plain.items())


def test_training_needs_pictures(tmp_path):
    with pytest.raises(ValueError, match="must be given annotated pictures"):
        train(tmp_path / "out", LayoutRecipe(), quiet=True)
    assert not (tmp_path / "out").exists()
