"""Layouts that a person would draw, of prompts of many kinds, by the bundled predictor."""

import json
from pathlib import Path

import pytest

from stal.evaluation.sense import passes, read_sensible, sense_table
from stal.layout import Layout, PlacedObject
from stal.layout.predictor import bundled
from stal.prompts import parse

CASES = Path(__file__).with_name("sense.jsonl")


def test_the_bundled_predictor_draws_what_a_person_would():
    prompts = read_sensible(CASES)
    found = bundled().predict([parse(each.prompt) for each in prompts])
    failed = [
        (each.prompt, check)
        for each, (layout,) in zip(prompts, found, strict=True)
        for check in each.checks
        if not passes(layout, check)
    ]
    assert len(failed) <= 0.03 * sum(len(each.checks) for each in prompts), failed


LAYOUT = Layout(
    "",
    (
        PlacedObject("a dog", "dog", (0.1, 0.6, 0.3, 0.9)),
        PlacedObject("a dog", "dog", (0.7, 0.6, 0.8, 0.8)),
        PlacedObject("a table", "table", (0.0, 0.4, 0.6, 0.9)),
    ),
)


@pytest.mark.parametrize(
    ("check", "passed"),
    [
        (("obj", "dog", 2), True),
        (("obj", "dog", 3), False),
        (("no", "cat"), True),
        (("no", "dog"), False),
        (("cx", "dog", "<", 0.5), True),
        (("bottom", "dog", "<", 0.5), False),
        (("rel", "dog", "overlaps", "table"), True),
        (("rel", "dog", "right of", "table"), True),
        (("rel", "dog", "smaller", "table"), True),
        (("rel", "table", "inside", "dog"), False),
        (("rel", "cat", "near", "dog"), False),
        (("area", "cat|table", ">", 0.2), True),
    ],
)
def test_checks_see_what_they_say(check, passed):
    assert passes(LAYOUT, check) is passed


def test_the_table_counts_checks_and_prompts(tmp_path):
    path = tmp_path / "sense.jsonl"
    checks = [["obj", "dog"], ["no", "dog"]]
    path.write_text(json.dumps({"prompt": "a dog", "checks": checks}))
    table, failed = sense_table([("x", read_sensible(path))], lambda texts: [LAYOUT for _ in texts])
    assert "1/2 50.0%" in table
    assert "0/1 0.0%" in table
    assert failed == [("a dog", "no dog")]


@pytest.mark.parametrize(
    "line", ["[]", '{"prompt": "x"}', '{"prompt": "x", "checks": [["rel", "a", "on", "b"]]}']
)
def test_other_lines_are_refused(tmp_path, line):
    path = tmp_path / "sense.jsonl"
    path.write_text(line)
    with pytest.raises(ValueError, match=r"line 1 must have a prompt and checks"):
        read_sensible(path)
