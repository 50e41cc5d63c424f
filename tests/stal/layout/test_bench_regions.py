"""The boxes that bench/regions.py keeps are those of the layout predictor."""

from pathlib import Path

import pytest

BENCH = Path(__file__).parents[3] / "bench"


@pytest.fixture
def regions(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    import regions

    return regions


def test_layouts_are_the_predictors(regions):
    assert len(regions.LAYOUTS) == len(regions.OBJECTS)
    for objects, kept in enumerate(regions.LAYOUTS, start=1):
        boxes = regions.predicted(objects)
        assert len(boxes) == objects
        for box, other in zip(boxes, kept, strict=True):
            assert box == pytest.approx(other, abs=2e-3)
