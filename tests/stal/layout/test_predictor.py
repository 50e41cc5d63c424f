"""The layout predictor: mixtures, their sampling, what is stored, and its training."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from stal.layout import Layout
from stal.layout.predictor import (
    EDGE_FEATURES,
    WEIGHTS,
    Config,
    LayoutPredictor,
    Mixture,
    Network,
    boxes_of,
    flip,
    metadata_of,
    normal_form,
    predict,
    tokens_of,
)
from stal.prompts import parse
from stal.training.layout import LayoutRecipe, train
from stal.training.layout_data import compose, read_coco, read_nsr1k, shapes, side_of

PROMPTS = [
    "a dog to the left of a bicycle",
    "three birds above a car",
    "a cat on a table next to a lamp",
    "a moose",
]
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
def network():
    torch.manual_seed(0)
    return Network(Config(buckets=64, embedding=4, width=8, layers=1, heads=2, components=3)).eval()


@pytest.fixture
def nsr1k(tmp_path):
    path = tmp_path / "nsr1k.json"
    path.write_text(json.dumps(SPATIAL))
    return path


def random_mixture(n=2):
    torch.manual_seed(1)
    weight = torch.randn(1, n, 3).log_softmax(-1)
    return Mixture(weight, 0.3 * torch.randn(1, n, 3, 4), torch.randn(1, n, 3, 4) - 1)


def test_mixture_equals_torch_distributions():
    m, z = random_mixture(), torch.randn(1, 2, 4)
    parts = torch.distributions.Independent(torch.distributions.Normal(m.mean, m.log_std.exp()), 1)
    family = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=m.log_weight), parts
    )
    torch.testing.assert_close(m.log_prob(z), family.log_prob(z))


def test_density_of_differences_integrates_to_one():
    step = torch.linspace(-12, 12, 241)
    grid = torch.cartesian_prod(step, step)
    index = torch.zeros(len(grid), dtype=torch.long)
    m = random_mixture()
    logs = m.log_prob_difference(index, index, index + 1, grid)
    assert float(logs.exp().sum() * 0.1**2) == pytest.approx(1.0, abs=0.01)


def test_samples_follow_the_mixture():
    m = random_mixture()
    z = m.sample(20000, torch.Generator().manual_seed(0))
    mean = (m.log_weight.exp()[..., None] * m.mean).sum(2)
    torch.testing.assert_close(z.mean(0), mean, atol=0.05, rtol=0)


def test_boxes_survive_the_normal_form():
    boxes = [(0.1, 0.2, 0.4, 0.9), (0.0, 0.0, 1.0, 1.0)]
    for found, box in zip(boxes_of(normal_form(boxes)), boxes, strict=True):
        assert found == pytest.approx(box, abs=1e-6)


def test_a_prompt_does_not_depend_on_its_batch(network):
    tokens = [
        tokens_of([("a dog", "dog")], [], aspect=1.0),
        tokens_of([("a cat", "cat"), ("a car", "car")], [(0, "left of", 1)], aspect=2.0),
    ]
    alone, both = network(tokens[:1]), network(tokens)
    torch.testing.assert_close(alone.mean[0], both.mean[0, :1])
    torch.testing.assert_close(alone.log_weight[0], both.log_weight[0, :1])


@pytest.mark.parametrize(
    "other",
    [
        tokens_of([("a cat", "cat"), ("a car", "car")], [(0, "right of", 1)], aspect=1.0),
        tokens_of([("a cat", "cat"), ("a car", "car")], [(0, "left of", 1)], aspect=2.0),
        tokens_of([("a cow", "cow"), ("a car", "car")], [(0, "left of", 1)], aspect=1.0),
    ],
    ids=["relation", "aspect", "phrase"],
)
def test_mixture_depends_on(network, other):
    tokens = tokens_of([("a cat", "cat"), ("a car", "car")], [(0, "left of", 1)], aspect=1.0)
    assert not torch.allclose(network([tokens]).mean, network([other]).mean)


def test_flip_swaps_left_and_right_alone():
    pair = [("a cat", "cat"), ("a car", "car")]
    for here, there in (("left of", "right of"), ("above", "above"), ("on", "on")):
        flipped = flip(tokens_of(pair, [(0, here, 1)], aspect=1.0))
        assert torch.equal(flipped.edges, tokens_of(pair, [(0, there, 1)], aspect=1.0).edges)


def test_an_edge_is_seen_from_both_ends():
    edges = tokens_of([("a", "a"), ("b", "b")], [(0, "inside", 1)], aspect=1.0).edges
    half = (EDGE_FEATURES - 1) // 2
    assert torch.equal(edges[0, 1, :half], edges[1, 0, half:-1])
    assert not torch.equal(edges[0, 1, :half], edges[1, 0, :half])


def test_twins_are_told_apart():
    tokens = tokens_of([("a dog", "dog")] * 3, [], aspect=1.0)
    assert tokens.twins[:, 0].tolist() == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("text", PROMPTS)
def test_predicted_relations_hold(text):
    layout = predict(parse(text), aspect=16 / 9)
    assert layout.violated == ()
    assert layout.objects
    assert all(0 < placed.score <= 1 for placed in layout.objects)


@pytest.mark.parametrize(
    ("prompt", "axis"), [("five penguins in a row", 1), ("two cups, one above the other", 0)]
)
def test_a_row_and_a_column_are_straight(prompt, axis):
    boxes = [each.box for each in predict(parse(prompt)).objects]
    middles = [box[axis] + box[axis + 2] for box in boxes]
    assert max(middles) - min(middles) < 0.02


def test_samples_differ_obey_and_are_ranked():
    (layouts,) = LayoutPredictor.load().predict([parse(PROMPTS[0])], samples=8, seed=3)
    assert len({layout.objects for layout in layouts}) == 8
    assert all(layout.violated == () for layout in layouts)
    (again,) = LayoutPredictor.load().predict([parse(PROMPTS[0])], samples=8, seed=3)
    assert again == layouts


def test_batch_equals_single_prompts():
    predictor = LayoutPredictor.load()
    together = predictor.predict([parse(text) for text in PROMPTS])
    for text, layouts in zip(PROMPTS, together, strict=True):
        alone = predictor.predict([parse(text)])
        for a, b in zip(layouts[0].objects, alone[0][0].objects, strict=True):
            assert a.box == pytest.approx(b.box, abs=1e-3)


def test_nothing_to_place_gives_an_empty_layout():
    assert predict(parse("")) == Layout("")


def test_a_crowd_is_placed():
    layout = predict(parse("twenty dogs and twenty cats"))
    assert len(layout.objects) == 40


@pytest.mark.parametrize(
    ("prompt", "low", "high"),
    [
        ("a woman wearing a hat next to a tree", 0.0, 0.3),
        ("a man with a red scarf on a bench", 0.1, 0.6),
        ("a girl with red boots", 0.6, 1.0),
        ("a dog wearing socks", 0.5, 1.0),
    ],
)
@pytest.mark.parametrize("seed", [None, 0, 1])
def test_what_is_worn_is_where_it_is_worn(prompt, low, high, seed):
    layout = predict(parse(prompt), seed=seed)
    wearer, worn = layout.objects[0].box, layout.objects[1].box
    top, height = wearer[1], wearer[3] - wearer[1]
    assert low <= ((worn[1] + worn[3]) / 2 - top) / height <= high
    assert worn[0] >= wearer[0]
    assert worn[2] <= wearer[2]
    assert layout.violated == ()


def test_a_fixed_hat_stays():
    box = (0.3, 0.6, 0.4, 0.7)
    ((layout,),) = LayoutPredictor.load().predict([parse("a man with a hat")], fixed={1: box})
    assert layout.objects[1].box == box


def test_fixed_boxes_are_kept():
    box = (0.5, 0.5, 0.7, 0.9)
    ((layout,),) = LayoutPredictor.load().predict([parse(PROMPTS[0])], fixed={0: box})
    assert layout.objects[0].box == box
    assert layout.violated == ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"aspect": 0.0}, "aspect must lie in"),
        ({"aspect": math.nan}, "aspect must lie in"),
        ({"samples": 0}, "samples must be positive, got 0"),
        ({"fixed": {5: (0, 0, 1, 1)}}, "which has 2, got 5"),
        ({"fixed": {0: (0, 0, 2, 1)}}, "must lie inside"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        LayoutPredictor.load().predict([parse(PROMPTS[0])], **arguments)


def test_weights_of_another_encoder_are_refused(network, tmp_path):
    metadata = {**metadata_of(network, {}), "encoder": "clip-vit-large"}
    save_file(network.state_dict(), tmp_path / WEIGHTS, metadata)
    with pytest.raises(ValueError, match="must be for the phrase encoder ngrams"):
        LayoutPredictor.load(tmp_path)


@pytest.mark.parametrize("data", [b"", b"x" * 100])
def test_other_files_are_refused(tmp_path, data):
    (tmp_path / WEIGHTS).write_bytes(data)
    with pytest.raises(ValueError, match="must be weights of a layout predictor"):
        LayoutPredictor.load(tmp_path)


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
        for i, name, j in example.relations:
            side = side_of(example.boxes[i], example.boxes[j])
            assert side == name or (name == "next to" and side in ("left of", "right of"))
    assert scenes(5, seed=1) == scenes(5, seed=1)


def test_training_learns_and_loads(nsr1k, tmp_path):
    whole, short = (LayoutRecipe(steps=n, batch=8, composed=0) for n in (40, 1))
    scores = train(tmp_path / "out", whole, nsr1k=[nsr1k], quiet=True)
    first = train(tmp_path / "one", short, nsr1k=[nsr1k], quiet=True)
    assert scores["nll"] < first["nll"] - 1
    predictor = LayoutPredictor.load(tmp_path / "out")
    assert float(predictor.metadata["nll"]) == scores["nll"]


def test_training_resumes_to_the_same_weights(nsr1k, tmp_path, monkeypatch):
    from stal.training import layout as layout_training

    monkeypatch.setattr(layout_training, "SAVE_EVERY", 2)
    recipe = LayoutRecipe(steps=4, batch=4, composed=4)
    train(tmp_path / "whole", recipe, nsr1k=[nsr1k], quiet=True)

    class Killed(Exception):
        pass

    loss, calls = layout_training._loss, []

    def fail_at_the_third(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise Killed
        return loss(*arguments)

    monkeypatch.setattr(layout_training, "_loss", fail_at_the_third)
    with pytest.raises(Killed):
        train(tmp_path / "parts", recipe, nsr1k=[nsr1k], quiet=True)
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["training.safetensors"]
    monkeypatch.setattr(layout_training, "_loss", loss)
    train(tmp_path / "parts", recipe, nsr1k=[nsr1k], quiet=True)
    whole, parts = (load_file(tmp_path / name / WEIGHTS) for name in ("whole", "parts"))
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value)
    assert [path.name for path in (tmp_path / "parts").iterdir()] == [WEIGHTS]


def test_training_needs_pictures(tmp_path):
    with pytest.raises(ValueError, match="must be given annotated pictures"):
        train(tmp_path / "out", LayoutRecipe(), quiet=True)
    assert not (tmp_path / "out").exists()


def test_contours_are_the_components_of_a_tenth_or_more(network):
    predictor = LayoutPredictor(network)
    description = parse("a dog to the left of a bicycle")
    contours = predictor.contours(description)
    mixture = predictor.mixture([description])
    assert len(contours) == 2
    for index, each in enumerate(contours):
        shares = mixture.log_weight[0, index].exp()
        assert [c[0] for c in each] == pytest.approx(shares[shares >= 0.1].tolist())
        best = max(each)
        k = int(shares.argmax())
        assert best[1:3] == pytest.approx(mixture.mean[0, index, k, :2].tolist())
        assert best[3:] == pytest.approx(mixture.log_std[0, index, k, :2].exp().tolist())
    assert predictor.contours(parse("")) == []
