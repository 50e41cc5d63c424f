"""The layout predictor: what it predicts, what is stored with it, what is refused."""

import math

import pytest
from safetensors.torch import save_file

from stal.layout import Layout
from stal.layout.predictor import WEIGHTS, LayoutPredictor, metadata_of, predict
from stal.prompts import parse

PROMPTS = [
    "a dog to the left of a bicycle",
    "three birds above a car",
    "a cat on a table next to a lamp",
    "a moose",
]


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


def test_mixture_refuses_a_prompt_without_objects(network):
    with pytest.raises(ValueError, match=r"descriptions\[1\] must have an object, got none"):
        LayoutPredictor(network).mixture([parse("a dog"), parse("")])


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
