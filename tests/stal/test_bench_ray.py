"""bench/bench_ray.py: both ways draw the same rows, and the start is told from the pictures."""

import json
from itertools import pairwise
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    import bench_ray

    return bench_ray


def drawn(start, each, lost=0):
    """What takes the place of commands: pictures, and seconds that the longest of them takes."""

    def seconds(commands, folder):
        most = 0
        for command in commands:
            value = dict(pairwise(command))
            rows = Path(value["--prompts"]).read_text().splitlines()
            most = max(most, len(rows) // int(value.get("--workers", 1)))
            Path(value["--output"]).mkdir()
            for row in rows[lost:]:
                assert int(value["--shard-size"]) == 4
                (Path(value["--output"]) / f"{json.loads(row)['id']}.png").touch()
        return start + most * each

    return seconds


def test_start_and_rate(bench, monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "_seconds", drawn(3.0, 0.1))
    bench.main(workers=2, pictures=8, shard=4, steps="5,10", rounds=2, output=tmp_path / "ray.json")
    rows = json.loads((tmp_path / "ray.json").read_text())["rows"]
    assert [row["what"] for row in rows] == ["processes", "ray"]
    for row in rows:
        assert (row["start, s"], row["pictures/s"], row["x processes"]) == ("3", "20", "1.000")


def test_processes_share_the_rows_of_ray(bench, monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "_seconds", drawn(0.0, 1.0))
    for way in ("processes", "ray"):
        (tmp_path / way).mkdir()
        bench.WAYS[way](tmp_path / way, 16, 2, [5, 10], 4)
    every = (tmp_path / "ray" / "prompts.jsonl").read_text().splitlines()
    shares = [(tmp_path / "processes" / f"{k}.jsonl").read_text().splitlines() for k in (0, 1)]
    assert [len(share) for share in shares] == [8, 8]
    assert sorted(shares[0] + shares[1]) == sorted(every)
    assert {json.loads(row)["steps"] for row in every} == {5, 10}


def test_lost_pictures_are_no_result(bench, monkeypatch):
    monkeypatch.setattr(bench, "_seconds", drawn(3.0, 0.1, lost=1))
    with pytest.raises(RuntimeError, match="processes must draw 8 pictures, got 6"):
        bench.main(workers=2, pictures=8, shard=4, steps="5", rounds=1, output=None)


def test_command_that_fails_is_no_result(bench, tmp_path):
    with pytest.raises(RuntimeError, match=r"sys.exit\(3\).* must end with 0, got \[3\]"):
        bench._seconds([[bench.sys.executable, "-c", "import sys; sys.exit(3)"]], tmp_path)
