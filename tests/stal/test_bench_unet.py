"""bench/bench_unet.py: the ways that it compares, and the table that it writes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stal_kernels import blended_attention_ragged, why_not
from stal_kernels.testing import Case, example

BENCH = Path(__file__).parents[2] / "bench"
WAYS = ["cpu", "reference", "SDPA loop"]

pytestmark = pytest.mark.skipif(bool(why_not("cpu")), reason="measures the cpu backend")


@pytest.fixture
def bench_unet(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    import bench_unet

    return bench_unet


@pytest.mark.parametrize("region", [None, "blobs"])
def test_loop_is_the_operator(bench_unet, region):
    e = example(
        Case(batch=3, seqlen_q=9, seqlen_k=5, head_dim=8, ragged=True, region=region), torch.float64
    )
    indices = e.prompt_ids, e.offsets
    expected = blended_attention_ragged(
        *e.floats(), *indices, region=e.region, scale=0.3, backend="reference"
    )
    out = bench_unet.loop(*e.floats(), *indices, region=e.region, scale=0.3)
    torch.testing.assert_close(out, expected)


def test_way_that_draws_something_else_is_not_timed(bench_unet, monkeypatch):
    def half(*tensors, **options):
        return bench_unet.loop(*tensors, **options) / 2

    monkeypatch.setitem(bench_unet.WAYS, "half", half)
    monkeypatch.setattr(bench_unet, "interleave", lambda *_, **__: pytest.fail("it was timed"))
    with pytest.raises(AssertionError, match="half"):
        bench_unet.measure("bundled", rounds=1, steps=1)


def test_table_has_a_row_for_each_way(tmp_path):
    path = tmp_path / "unet.json"
    arguments = ("--models", "bundled", "--rounds", "1", "--steps", "1", "--output", path)
    done = subprocess.run(
        [sys.executable, str(BENCH / "bench_unet.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(path.read_text())["rows"]
    assert [(row["what"], row["op"]) for row in rows] == [("bundled picture", op) for op in WAYS]
    cpu = rows[0]["seconds"]["median"]
    for row in rows:
        assert row["cpu is faster"] == f"{row['seconds']['median'] / cpu:.2f}x"
    assert path.with_suffix(".md").read_text().count("bundled picture") == 3
