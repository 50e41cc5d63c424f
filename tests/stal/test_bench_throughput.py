"""bench/bench_throughput.py: all its ways draw the same pictures, and its scheduler loses none."""

from pathlib import Path

import pytest
import torch

BENCH = Path(__file__).parents[2] / "bench"

pytestmark = pytest.mark.filterwarnings("ignore:no object was found:UserWarning")


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    import bench_throughput

    return bench_throughput


class Rows(list):
    """A table that keeps its cells."""

    def add(self, cells, **raw):
        self.append(cells | raw)


def test_each_way_draws_the_pictures_of_the_loop(bench, pipe, monkeypatch):
    requests = bench.requests_of(8, [1, 2, 4])
    expected = bench.loop(pipe, requests, 1)
    for name in ("grouped", "static", "engine"):
        bench.check(name, bench.WAYS[name](pipe, requests, 3), expected)
    with pytest.raises(AssertionError, match="swapped drew another picture of request 0"):
        bench.check("swapped", expected[::-1], expected)
    monkeypatch.setitem(bench.WAYS, "engine", lambda pipe, requests, rows: expected[::-1])
    with pytest.raises(AssertionError, match="engine drew another picture"):
        bench.rates(Rows(), pipe, requests, [3], rounds=1)


def test_rows_have_the_ratios_of_their_times(bench, pipe):
    table = Rows()
    capacity = bench.rates(table, pipe, bench.requests_of(4, [1, 2]), [2], rounds=1)
    assert [row["what"] for row in table] == list(bench.WAYS)
    loop, grouped, static, engine = table
    assert loop["steps each"] == "1,2"
    assert engine["x loop"] == f"{loop['wall_s'] / engine['wall_s']:.2f}"
    assert grouped["x static"] == f"{static['wall_s'] / grouped['wall_s']:.2f}"
    assert capacity == pytest.approx(4 / engine["wall_s"])


def test_load_waits_for_arrivals_and_sees_every_request(bench, pipe):
    table = Rows()
    bench.load(table, pipe, bench.requests_of(6, [1, 2]), 2, 100.0, [0.5])
    (row,) = table
    assert len(row["latencies_s"]) == 6
    assert 0 < float(row["s, p50"]) <= float(row["s, p99"]) <= max(row["latencies_s"]) * 1.01


def test_scheduler_serves_every_request(bench):
    table = Rows()
    bench.scheduled(table, 500, 8, [1, 3, 5], 0.0)
    (row,) = table
    assert row["requests"] == "500"
    assert row["steps"] >= 500 * 3 / 8 - 1
    assert torch.get_num_threads() == int(row["threads"])
