"""`stal generate-batch`, killed: every row is in one index once, whenever that happens."""

import hashlib
import multiprocessing
import os
import random
import signal
import sys
import tarfile
import time

import pytest

from stal.__main__ import main
from stal.shards.index import read_index

pytestmark = [
    pytest.mark.needs("pyarrow", "webdataset"),
    pytest.mark.skipif(os.name == "nt", reason="needs signals and forks"),
]

COUNT, SHARD = 18, 4
# Children of a server that has imported what the command does: each begins within a moment.
HEAVY = ["stal.__main__", "stal.pipeline", "stal.batch", "stal.shards.run", "pyarrow.parquet"]
HEAVY += ["diffusers.models.autoencoders.autoencoder_kl", "webdataset", "tqdm"]


@pytest.fixture
def start(tmp_path, monkeypatch):
    """start(format): a process with the command, whose rows are of the bundled model's world."""
    lines = [f"a {colour} circle" for colour in ("red", "green", "blue") * COUNT][:COUNT]
    lines[7] = "a purple elephant"
    (tmp_path / "p.txt").write_text("\n".join(lines))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(HEAVY)

    def begin(format):
        monkeypatch.setattr(
            sys,
            "argv",
            [
                *("stal", "generate-batch", "--prompts", str(tmp_path / "p.txt")),
                *("--output", str(tmp_path / "out"), "--format", format, "--steps", "1"),
                *("--width", "32", "--height", "32", "--shard-size", str(SHARD)),
                *("--max-rows", "2", "--quiet"),
            ],
        )
        process = context.Process(target=main)
        process.start()
        return process

    return begin


def names(folder):
    """Everything in a folder, by which it is seen that a run goes on.

    `os.walk` passes over a folder that the run renames meanwhile; `rglob` raises.
    """
    walk = os.walk(folder)
    return {os.path.join(at, name) for at, folders, files in walk for name in folders + files}


def wait_for_more(process, folder, more):
    """Until a run has made so many more files, or ended."""
    before, end = names(folder), time.monotonic() + 120
    while process.is_alive() and len(names(folder) - before) < more:
        assert time.monotonic() < end
        time.sleep(0.005)


def check(folder, format):
    """Whatever has an index is whole; the rows that do."""
    rows = []
    for path in sorted(folder.glob("shard-*.parquet")):
        found = read_index(path)
        number = int(path.stem.removeprefix("shard-"))
        wanted = range(number * SHARD, min(number * SHARD + SHARD, COUNT))
        assert [each.row for each in found] == [*wanted]
        drawn = [each for each in found if each.error is None]
        assert [each.row for each in found if each not in drawn] == [7] * (7 in wanted)
        if format == "png":
            data = {each.file: (folder / each.file).read_bytes() for each in drawn}
            assert len(list(path.with_suffix("").iterdir())) == len(drawn)
        else:
            with tarfile.open(path.with_suffix(".tar")) as tar:
                members = [each for each in tar.getnames() if each.endswith(".png")]
                data = {name: tar.extractfile(name).read() for name in members}
            assert sorted(members) == [each.file for each in drawn]
        for each in drawn:
            assert hashlib.sha256(data[each.file]).hexdigest() == each.sha256
        rows += [each.row for each in found]
    return rows


@pytest.mark.parametrize("format", ["png", "webdataset"])
def test_nothing_is_lost_or_twice_after_kills_at_random_moments(start, tmp_path, format):
    chance = random.Random(format)
    folder, kills = tmp_path / "out", 0
    while True:
        process = start(format)
        # The last runs are not killed, however slow the machine is.
        if kills < 5:
            wait_for_more(process, folder, chance.randint(1, 12))
            time.sleep(chance.random() / 50)
            process.kill()
        process.join()
        rows = check(folder, format)
        if process.exitcode != -signal.SIGKILL:
            if kills < 2:  # it was done before it was killed: a shard more to draw
                next(folder.glob("shard-*.parquet")).unlink()
                continue
            break
        kills += 1
    assert process.exitcode == 3  # of the row that no picture can be drawn of
    assert kills >= 2
    assert rows == [*range(COUNT)]
    assert not [path for path in folder.iterdir() if path.name.startswith(".shard")]


def test_a_run_that_is_asked_to_terminate_keeps_what_it_has(start, tmp_path):
    folder = tmp_path / "out"
    process = start("png")
    while not list(folder.glob("shard-*.parquet")):
        assert process.is_alive()
        time.sleep(0.005)
    process.terminate()
    process.join()
    # A machine that is busy may see the request after the last picture.
    assert process.exitcode in (143, 3)
    if process.exitcode == 3:
        assert check(folder, "png") == [*range(COUNT)]
        return
    journals = list(folder.glob(".shard-*/rows.jsonl"))
    kept = sum(len(path.read_bytes().splitlines()) for path in journals)
    done = len(check(folder, "png"))
    assert done + kept < COUNT
    pictures = {path.name: path.stat().st_mtime_ns for path in folder.rglob("*.png")}
    assert len(pictures) >= done + kept - 1
    process = start("png")
    process.join()
    assert process.exitcode == 3
    assert check(folder, "png") == [*range(COUNT)]
    after = {path.name: path.stat().st_mtime_ns for path in folder.rglob("*.png")}
    assert {name: after[name] for name in pictures} == pictures
