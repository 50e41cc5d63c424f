"""Files of runs: what they hold, and that no other run goes on from them."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from stal.runs import differing, read_checkpoint, read_run, write_checkpoint, write_run

IDENTITY = {"version": 1, "prompts": ("a cat", "a dog"), "options": {"lr": 0.1}}


def test_values_are_compared_as_json_has_them():
    recorded = {"version": 1, "prompts": ["a cat", "a dog"], "options": {"lr": 0.1}, "more": 2}
    assert differing(recorded, IDENTITY) == []
    assert differing({**recorded, "options": {"lr": 0.2}}, IDENTITY) == ["options"]
    assert differing({}, IDENTITY) == ["version", "prompts", "options"]


def test_a_record_is_one_json_object_of_identity_and_state(tmp_path):
    path = tmp_path / "run.json"
    assert read_run(path, IDENTITY) is None
    write_run(path, IDENTITY, {"losses": [0.5]})
    expected = {
        "version": 1,
        "prompts": ["a cat", "a dog"],
        "options": {"lr": 0.1},
        "losses": [0.5],
    }
    assert read_run(path, IDENTITY) == json.loads(path.read_text()) == expected
    assert [each.name for each in tmp_path.iterdir()] == ["run.json"]


def test_a_record_of_another_run_is_refused(tmp_path):
    path = tmp_path / "run.json"
    write_run(path, IDENTITY, {})
    other = {**IDENTITY, "prompts": ("a cat",), "options": {}}
    with pytest.raises(ValueError, match=r"run.json must be of the same run, got other prompts, o"):
        read_run(path, other)
    path.write_text("[]")
    with pytest.raises(ValueError, match=r"run.json must be a JSON object, got list"):
        read_run(path, IDENTITY)


def test_a_checkpoint_is_safetensors_with_its_identity_and_step_beside(tmp_path):
    path, tensors = tmp_path / "run.safetensors", {"a": torch.arange(3.0), "b": torch.tensor(2)}
    assert read_checkpoint(path, {"seed": "0"}) is None
    write_checkpoint(path, {"seed": "0"}, 7, tensors)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"seed": "0", "step": "7"}
    found = read_checkpoint(path, {"seed": "0"})
    assert found is not None
    for read in (found[1], load_file(path)):
        assert read.keys() == tensors.keys()
        assert all(torch.equal(read[name], value) for name, value in tensors.items())
    assert found[0] == 7
    with pytest.raises(ValueError, match=r"seed must be 0 to go on from .*run.safetensors, got 1"):
        read_checkpoint(path, {"seed": "1"})
    with pytest.raises(
        ValueError, match=r"must be of the same run, got one without data: delete it"
    ):
        read_checkpoint(path, {"seed": "0", "data": "x"})


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\x10\0\0\0\0\0\0\0{}"], ids=repr)
def test_a_broken_checkpoint_is_named(tmp_path, content):
    path = tmp_path / "run.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"run\.safetensors must be a complete checkpoint, got"):
        read_checkpoint(path, {"seed": "0"})
