"""Scores of the parser on small labelled sets whose result can be counted by hand."""

import json
import random
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stal.evaluation import parsing as layout
from stal.evaluation.parsing import (
    Labelled,
    in_cone,
    interval,
    lies,
    load_folds,
    matches,
    placed,
    placers,
    read_captions,
    read_counting,
    read_gpt,
    read_nsr1k,
    realism,
    resembles,
    score,
    score_counting,
    states,
)
from stal.layout import Layout
from stal.prompts import Object, parse

GPT = """\
Objects: silver bed, couch
Relation: silver bed left of couch
Sentence: The silver bed is left of the couch.

Objects: dog, cat, zebra
Relation: dog above cat, cat right of dog
Sentence: A dog is above a cat.
"""


@pytest.fixture
def gpt(tmp_path: Path) -> Path:
    path = tmp_path / "gpt.txt"
    path.write_text(GPT)
    return path


def test_gpt_blocks_are_read(gpt: Path) -> None:
    assert read_gpt(gpt) == [
        Labelled(
            "The silver bed is left of the couch.",
            ("silver bed", "couch"),
            (("silver bed", "left of", "couch"),),
            kind="2 objects",
        ),
        Labelled(
            "A dog is above a cat.",
            ("dog", "cat", "zebra"),
            (("dog", "above", "cat"), ("cat", "right of", "dog")),
            kind="3 objects",
        ),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Objects: a, b\nSentence: a b\n", "blocks of Objects, Relation and Sentence"),
        ("Objects: a\nRelation: a astride b\nSentence: a\n", "got 'a astride b'"),
    ],
)
def test_other_blocks_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "gpt.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_gpt(path)


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
    scores = score(read_nsr1k(path), loosely=True)
    assert (scores["template"].relations_found, scores["natural"].relations_found) == (1, 0)


@pytest.mark.parametrize("text", ["[1]", "{}", '[{"prompt": "a"}]', "[", "null"])
def test_other_json_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "nsr1k.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"nsr1k.json must be"):
        read_nsr1k(path)


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


def test_captions_of_other_forms_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "captions.txt"
    path.write_text(
        "The hot dog is at the left side of the bed.\nA day out\na cat on side of a pig\n"
    )
    assert [case.relations for case in read_captions(path)] == [
        (("hot dog", "left of", "bed"),),
        (("cat", "next to", "pig"),),
    ]


@pytest.mark.parametrize(
    ("name", "phrase", "noun", "same"),
    [
        ("silver bed", "a silver bed", "bed", True),
        ("silver bed", "a bed", "bed", False),
        ("bed", "a silver bed", "bed", True),
        ("tv", "an old television", "television", True),
        ("teddy bear", "a bear", "bear", False),
    ],
)
def test_match_needs_noun_and_attributes(name: str, phrase: str, noun: str, same: bool) -> None:
    assert matches(name, Object(phrase, noun)) == same


def test_resemblance_takes_every_object_of_the_closest_noun() -> None:
    things = parse("a dog, a doll and a dog").objects
    assert resembles("dog", things) == [0, 2]
    assert resembles("zebra", things) == []


@pytest.mark.parametrize(
    ("text", "i", "predicate", "j", "stated"),
    [
        ("a dog left of a cat", 0, "left of", 1, True),
        ("a dog left of a cat", 1, "right of", 0, True),
        ("a dog left of a cat", 1, "left of", 0, False),
        ("a dog left of a cat", 0, "above", 1, False),
        ("a dog left of a cat", 0, "next to", 1, True),
        ("A dog is left of a cat. The cat is left of a cow.", 0, "left of", 2, True),
        ("a dog between a cat and a cow", 1, "left of", 0, True),
        ("a dog between a cat and a cow", 1, "left of", 2, True),
        ("a dog on a cow", 0, "above", 1, True),
        ("a dog behind a cow", 1, "in front of", 0, True),
    ],
)
def test_statement_counts_with_what_follows_from_it(
    text: str, i: int, predicate: str, j: int, stated: bool
) -> None:
    assert states(parse(text), i, predicate, j) == stated


def test_placed_relations_are_seen_from_centres() -> None:
    left, right, low = (0.0, 0.4, 0.2, 0.6), (0.8, 0.3, 1.0, 0.5), (0.0, 0.8, 0.2, 1.0)
    assert lies(left, "left of", right)
    assert not lies(right, "left of", left)
    assert lies(left, "above", low)
    assert lies(left, "next to", right)
    assert not lies(left, "next to", low)


def test_cones_are_45_degrees_wide() -> None:
    here, right, diagonal = (0.0, 0.0, 0.2, 0.2), (0.5, 0.4, 0.7, 0.6), (0.4, 0.5, 0.6, 0.7)
    assert in_cone(right, "right of", here)
    assert not in_cone(diagonal, "right of", here)
    assert in_cone(diagonal, "below", here)
    assert in_cone(here, "next to", right)
    assert not in_cone(here, "left of", here)


def test_ways_of_placing_are_compared(gpt: Path) -> None:
    cases = read_gpt(gpt)
    ways = placers(None)
    counts = {name: placed(cases, placer) for name, placer in ways.items()}
    # Of the second prompt's two relations one is not stated, nor one of its objects named.
    assert counts["predictor"]["2 objects"] == (1, 1)
    assert all(count["3 objects"][1] == 2 for count in counts.values())


def test_realism_compares_with_a_gaussian(tmp_path: Path) -> None:
    from stal.training.layout import FOLDS, Plan, train

    path = tmp_path / "nsr1k.json"
    item = {"prompt": "a dog left of a car", "relation": "left", "type": "template"}
    rng = random.Random(0)

    def box() -> list[float]:
        return [rng.uniform(0, 0.5), rng.uniform(0, 0.5), *(rng.uniform(0.1, 0.5) for _ in "wh")]

    items = [
        {**item, "image_id": i, "obj1": ["dog", box()], "obj2": ["car", box()]} for i in range(10)
    ]
    path.write_text(json.dumps(items))
    folds = tmp_path / "folds"
    for fold in range(FOLDS):
        plan = Plan(steps=1, batch=2, composed=0, fold=fold)
        train(folds / str(fold), plan, nsr1k=[path], quiet=True)
    found = realism([path], folds)
    assert found.boxes == 20
    assert found.gain.value == pytest.approx(found.gaussian.value - found.nll.value, abs=1e-5)
    assert found.gain.low <= found.gain.value <= found.gain.high
    assert 0 < found.overlap.value < 1
    shared = found.overlap.value - found.constant.value
    assert found.overlap_gain.value == pytest.approx(shared, abs=1e-5)

    cases = read_nsr1k(path)
    ways = placers(None, folds=folds, ablation=folds)
    both = [placed(cases, ways[name]) for name in ("predictor", "no relative objective")]
    assert both[0] == both[1] == {"template": (10, 10)}
    texts, images = [parse(case.prompt) for case in cases], [case.image for case in cases]
    for case, together in zip(cases, ways["predictor"](texts, images), strict=True):
        alone = predict_fold(folds / str(case.image % FOLDS), case.prompt)
        for ours, theirs in zip(together.objects, alone.objects, strict=True):
            assert ours.box == pytest.approx(theirs.box, abs=1e-5)

    (folds / "4").rename(folds / "five")
    with pytest.raises(OSError, match="4"):
        load_folds(folds)
    (folds / "3").rename(folds / "4")
    (folds / "five").rename(folds / "3")
    with pytest.raises(ValueError, match="3 must hold out fold 3, got 4: train it with --fold 3"):
        load_folds(folds)


def predict_fold(folder: Path, prompt: str) -> Layout:
    from stal.layout.predictor import LayoutPredictor

    return LayoutPredictor.load(folder).predict([parse(prompt)])[0][0]


def test_folds_exclude_a_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="model must not be given with folds"):
        placers(tmp_path, folds=tmp_path)


def test_interval_is_exact() -> None:
    assert interval(0, 10)[0] == 0.0
    assert interval(0, 10)[1] == pytest.approx(1 - 0.025 ** (1 / 10))
    assert interval(0, 0) == (0.0, 1.0)


def test_command_prints_a_table_and_failures(gpt: Path) -> None:
    import typer

    app = typer.Typer()
    app.command()(layout.main)
    result = CliRunner().invoke(app, ["--gpt", str(gpt), "--failures", "5"])
    assert result.exit_code == 0
    assert "| gpt.txt | all | 4/5 80.0% [28.4%, 99.5%] | 2/3 66.7%" in result.output
    assert "    zebra | A dog is above a cat." in result.output
    assert CliRunner().invoke(app, []).exit_code == 2
    unknown = CliRunner().invoke(app, ["--gpt", str(gpt), "--engine", "oracle"])
    assert unknown.exit_code == 2
