"""How Hypothesis makes a layout, and a small network."""

import pytest
import torch
from hypothesis import strategies as st

from stal.layout import Box, Layout, PlacedObject
from stal.layout.network import Config, Network
from stal.prompts import PREDICATES


def boxes_() -> st.SearchStrategy[Box]:
    edges = st.tuples(st.floats(0, 1), st.floats(0, 1)).filter(lambda e: e[0] != e[1])
    return st.builds(
        lambda x, y: (min(x), min(y), max(x), max(y)),
        edges,
        edges,
    )


@st.composite
def layouts(draw_: st.DrawFn) -> Layout:
    text = st.text(st.characters(), max_size=12)  # lone surrogates too
    placed = st.builds(
        PlacedObject, text, text, boxes_(), st.floats(allow_nan=False, allow_infinity=False)
    )
    objects = draw_(st.lists(placed, max_size=5))
    relations: list[tuple[int, str, int]] = []
    if objects:
        index = st.integers(0, len(objects) - 1)
        relations = draw_(
            st.lists(st.tuples(index, st.sampled_from(PREDICATES), index), max_size=4)
        )
    aspect = draw_(st.floats(1e-3, 1e3))
    return Layout(draw_(text), tuple(objects), tuple(relations), aspect)


st.register_type_strategy(Layout, layouts())


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Network(
        Config(
            buckets=64, embedding=4, width=8, layers=1, heads=2, components=3, staged=1, members=2
        )
    ).eval()
