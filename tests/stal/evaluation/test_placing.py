"""Ways of placing, by the labelled relations that hold between the boxes."""

from pathlib import Path

import pytest

from stal.evaluation.labelled import read_gpt
from stal.evaluation.placing import placed, placers


def test_ways_of_placing_are_compared(gpt: Path) -> None:
    cases = read_gpt(gpt)
    ways = placers(None)
    counts = {name: placed(cases, placer) for name, placer in ways.items()}
    # Of the second prompt's two relations one is not stated, nor one of its objects named.
    assert counts["predictor"]["2 objects"] == (1, 1)
    assert all(count["3 objects"][1] == 2 for count in counts.values())


def test_folds_exclude_a_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="model must not be given with folds"):
        placers(tmp_path, folds=tmp_path)
