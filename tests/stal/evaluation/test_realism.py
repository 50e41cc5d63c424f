"""Real boxes under the predictors of folds that did not see them."""

import json
import random
from pathlib import Path

import pytest

from stal.evaluation.labelled import read_spatial
from stal.evaluation.placing import load_folds, placed, placers
from stal.evaluation.realism import realism_of
from stal.layout import Layout
from stal.prompts import parse


def test_realism_compares_with_a_gaussian(tmp_path: Path) -> None:
    from stal.training.layout import FOLDS, LayoutRecipe, train

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
        recipe = LayoutRecipe(steps=1, batch=2, composed=0, fold=fold)
        train(folds / str(fold), recipe, nsr1k=[path], quiet=True)
    found = realism_of([path], folds)
    assert found.boxes == 20
    assert found.gain.value == pytest.approx(found.gaussian.value - found.nll.value, abs=1e-5)
    assert found.gain.low <= found.gain.value <= found.gain.high
    assert 0 < found.overlap.value < 1
    assert found.cost.value > 0
    assert found.projected.value != pytest.approx(found.nll.value)
    shared = found.overlap.value - found.constant.value
    assert found.overlap_gain.value == pytest.approx(shared, abs=1e-5)

    cases = read_spatial(path)
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
