"""Scores of the parser on small labelled sets whose result can be counted by hand."""

import json
from pathlib import Path

from stal.evaluation.labelled import Labelled, read_counting, read_gpt, read_spatial
from stal.evaluation.parsing import score, score_counting


def test_score_counts_what_is_found(gpt: Path) -> None:
    scores = score(read_gpt(gpt))
    two, three = scores["2 objects"], scores["3 objects"]
    assert (two.objects_found, two.objects, two.relations_found, two.right) == (2, 2, 1, 1)
    assert (three.objects_found, three.objects) == (2, 3)
    assert (three.relations_found, three.relations_possible, three.relations) == (1, 2, 2)
    assert (three.right, three.prompts) == (0, 1)
    assert {(kind, what) for kind, what, _ in three.failures} == {
        ("object", "zebra"),
        ("relation", "cat right of dog"),
    }


def test_score_tells_a_reversed_relation() -> None:
    case = Labelled("a dog left of a cat", ("dog", "cat"), (("cat", "left of", "dog"),))
    (total,) = score([case]).values()
    assert [kind for kind, _, _ in total.failures] == ["relation reversed"]


def test_nsr1k_is_read_and_scored(tmp_path: Path) -> None:
    item = {
        "prompt": "a dog on top of a car",
        "obj1": ["dog", [0, 0, 1, 1]],
        "obj2": ["car", [0, 0, 1, 1]],
        "relation": "top",
        "type": "template",
    }
    path = tmp_path / "nsr1k.json"
    path.write_text(json.dumps([item, {**item, "relation": "next to", "type": "natural"}]))
    scores = score(read_spatial(path), loosely=True)
    assert (scores["template"].relations_found, scores["natural"].relations_found) == (1, 0)


def test_counting_follows_the_rule_of_the_set(tmp_path: Path) -> None:
    path = tmp_path / "counting.json"
    cases = [
        ("three clocks", [["clock", 3]], "single"),
        ("three clocks and a dog", [["clock", 3], ["dog", 2]], "single"),
        ("two dogs and three cats", [["dog", 2], ["cat", 5]], "comparison"),
        ("two dogs and two cats", [["dog", 2], ["cat", 5]], "comparison"),
    ]
    items = [{"prompt": p, "num_object": n, "sub-type": t} for p, n, t in cases]
    path.write_text(json.dumps(items))
    scores = score_counting(read_counting(path))
    assert (scores["single"].right, scores["single"].prompts) == (1, 2)
    assert (scores["single"].objects_found, scores["single"].objects) == (7, 8)
    assert (scores["comparison"].right, scores["comparison"].prompts) == (1, 2)
