"""Weights in files: what is read back, what is refused, and how time is filled in."""

import json

import pytest
import torch

from stal.weights.files import WeightSchedule, knots_to_weights, load_weights


def test_knots_are_joined_by_lines():
    assert knots_to_weights(torch.tensor([2.0, 0.0]), 5, 2).T.tolist() == [[2, 1.5, 1, 0.5, 0]] * 2
    assert knots_to_weights(torch.tensor([1.5]), 3, 1).T.tolist() == [[1.5] * 3]
    assert knots_to_weights(torch.tensor([0.0, 2.0, 0.0]), 1, 1).tolist() == [[0]]


def test_schedule_serves_every_number_of_objects(tmp_path):
    schedule = WeightSchedule({1: (1.0,), 3: (2.0, 0.0)}, {"prompts": "two of them"})
    assert schedule(3, 2).tolist() == [[1, 1]] * 3
    assert schedule(3, 3).tolist() == [[2] * 3, [1] * 3, [0] * 3]
    assert schedule(1, 4).tolist() == [[2] * 4]
    assert schedule(2, 0).shape == (2, 0)
    assert WeightSchedule({2: (0.5,)})(1, 1).tolist() == [[0.5]]
    path = tmp_path / "schedule.json"
    schedule.save(path)
    assert WeightSchedule.load(path) == schedule
    assert load_weights(path)(3, 3).tolist() == schedule(3, 3).tolist()


def test_weights_of_a_prompt_are_resampled_only_if_asked(tmp_path):
    path = tmp_path / "weights.json"
    path.write_text(json.dumps({"weights": [[[2.0, 1.0], [0.0, 1.0]]]}))
    assert load_weights(path)(2, 2).tolist() == [[2, 1], [0, 1]]
    with pytest.raises(ValueError, match="weights of 3 steps, got 2: take as many, or ask"):
        load_weights(path)(3, 2)
    assert load_weights(path, resample=True)(3, 2).tolist() == [[2, 1], [1, 1], [0, 1]]
    with pytest.raises(ValueError, match="weights of 1 objects, got 2"):
        load_weights(path)(2, 1)


@pytest.mark.parametrize(
    "weights",
    [[[2.0, 1.0], [0.0, 1.0]], [[[2.0, 1.0], [0.0, 1.0]], [[1.0], [1.0]]]],
    ids=["one-picture", "prompts-of-two-and-one-objects"],
)
def test_records_of_pictures_and_of_several_prompts_are_read(tmp_path, weights):
    path = tmp_path / "weights.json"
    path.write_text(json.dumps({"weights": weights}))
    assert load_weights(path)(2, 2).tolist() == [[2, 1], [0, 1]]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({}, 'must hold "weights"'),
        ({"weights": "many"}, 'must hold "weights"'),
        ({"weights": []}, 'must hold "weights"'),
        ({"weights": [[1.0, 2.0], [3.0]]}, 'must hold "weights"'),
        ({"knots": {"1": [1.0]}}, "must have version 1, got None"),
        ({"version": 1, "knots": [1.0]}, 'must hold "knots"'),
        ({"version": 1, "knots": {"1": "123"}}, 'must hold "knots"'),
        ({"version": 1, "knots": {}}, "at least one number of objects"),
        ({"version": 1, "knots": {"0": [1.0]}}, "from 1 up, got"),
        ({"version": 1, "knots": {"1": []}}, "one or more finite numbers"),
        ({"version": 1, "knots": {"1": [float("nan")]}}, "one or more finite numbers"),
        ({"version": 1, "knots": {"two": [1.0]}}, 'must hold "knots"'),
    ],
    ids=str,
)
def test_files_of_something_else_are_refused(tmp_path, record, message):
    path = tmp_path / "other.json"
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=message) as caught:
        load_weights(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="got no such file"):
        load_weights(tmp_path / "none.json")


def test_pipeline_takes_what_a_file_gives(pipe, tmp_path):
    path = tmp_path / "schedule.json"
    WeightSchedule({1: (1.0, 0.0), 2: (3.0, 1.0)}).save(path)
    result = pipe("a red circle above a blue square", steps=3, weights=load_weights(path))
    assert result.weights.tolist() == [[3, 3], [2, 2], [1, 1]]
