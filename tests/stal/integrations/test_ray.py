"""Ray Data draws what one process draws, though a worker and a node are killed meanwhile."""

from __future__ import annotations

import errno
import os
import signal
import threading
import warnings
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stal.settings import Settings
from stal.shards.index import read_index
from stal.shards.run import Task
from stal.shards.shard import ShardFolder

pytestmark = [
    pytest.mark.needs("ray", "pyarrow"),
    pytest.mark.slow,
    pytest.mark.xdist_group("ray"),
    pytest.mark.skipif(not os.path.isdir("/proc"), reason="finds workers in /proc"),
]

SHARD = 3
STEPS = 6


@pytest.fixture(scope="module")
def cluster():
    """Three nodes in this machine; the head draws nothing."""
    from ray.cluster_utils import Cluster

    memory = 80 << 20
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        # A cluster reports that it does not report, unless `ray.init` starts it.
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_USAGE_STATS_REPORT_URL", "http://127.0.0.1:9/")
        made = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "object_store_memory": memory,
                # A node that is gone is missed after 5 s, not 15.
                "_system_config": {"health_check_period_ms": 1000},
            },
        )
        made.nodes = [made.add_node(num_cpus=1, object_store_memory=memory) for _ in range(2)]
        yield made
        made.shutdown()


@pytest.fixture(autouse=True)
def signals():
    """The handlers of signals as they were: Ray has its own."""
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def prompts(tmp_path):
    """A file of eight shards, the last one short; its row 7 cannot be drawn."""
    lines = [f"a {colour} circle" for colour in ("red", "green", "blue") * 8][: 8 * SHARD - 1]
    lines[7] = "a circle of \udcff"
    (tmp_path / "p.txt").write_bytes("\n".join(lines).encode(errors="surrogateescape"))
    return tmp_path / "p.txt"


def entries(folder):
    found = [each for path in sorted(folder.glob("shard-*.parquet")) for each in read_index(path)]
    assert [each.row for each in found] == list(range(8 * SHARD - 1))
    return found


def pixels(image):
    return np.asarray(image).astype(int)


def check(folder, pipe):
    """Every picture is there once, and the one that the pipeline draws."""
    found = entries(folder)
    assert [each.row for each in found if each.error is not None] == [7]
    names = {str(path.relative_to(folder)) for path in folder.rglob("*.png")}
    assert names == {each.file for each in found if each.file is not None}
    assert not list(folder.glob(".shard-*"))
    for each in found[:: 2 * SHARD]:
        alone = pipe(each.prompt, seed=each.row, steps=STEPS)
        assert np.abs(pixels(Image.open(folder / each.file)) - pixels(alone.images[0])).max() <= 2


def workers():
    """The processes of Ray that draw, started by the nodes above."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            title = path.read_bytes()
        except OSError:
            continue
        if title.startswith(b"ray::") and b"_Worker" in title:
            found.append(int(path.parent.name))
    return found


def test_a_worker_and_a_node_that_are_killed_lose_nothing(
    cluster, prompts, tmp_path, sd_folder, pipe
):
    from stal.integrations import ray

    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "command.json").write_text("{}")
    task = Task(ShardFolder(folder, "png"), SHARD, Settings(steps=STEPS), 0)
    drawer = ray.Drawer(task, str(sd_folder), "float32", "cpu", max_rows=2)
    killed = 0
    with ray.connected(cluster.address):
        for count, _ in enumerate(ray.draw(prompts, drawer, total=8 * SHARD - 1, workers=2), 1):
            if count == 1:
                found = workers()
                assert found
                os.kill(found[0], signal.SIGKILL)
                killed += 1
            if count == 3:
                cluster.remove_node(cluster.nodes.pop(), allow_graceful=False)
                cluster.nodes.append(cluster.add_node(num_cpus=1, object_store_memory=80 << 20))
                killed += 1
    assert killed == 2
    check(folder, pipe)


def test_the_command_goes_on_with_either_engine_after_it_was_asked_to_terminate(
    cluster, prompts, run, tmp_path, sd_folder, pipe
):
    folder = tmp_path / "out"
    command = ("generate-batch", "--prompts", prompts, "--output", "out", "--model", sd_folder)
    command += ("--steps", STEPS, "--shard-size", SHARD, "--max-rows", 2, "--quiet")
    by_ray = ("--engine", "ray", "--address", cluster.address, "--workers", 2)

    over = threading.Event()

    def terminate():
        while not over.wait(0.01):
            if list(folder.glob("shard-*.parquet")):
                os.kill(os.getpid(), signal.SIGTERM)
                return

    thread = threading.Thread(target=terminate)
    thread.start()
    code, _, err = run(*command, *by_ray)
    over.set()
    thread.join()
    again = "run the same command again, it goes on where it stopped"
    assert code == 143
    assert err.endswith(f"stal: terminated: {again}\n")  # Ray may log before
    assert 1 <= len(list(folder.glob("shard-*.parquet"))) < 8
    code, out, _ = run(*command)
    assert (code, out) == (3, "out: 22 pictures in 8 shards\n")
    check(folder, pipe)


class InProcess:
    """Of a Ray dataset what is used, with one worker, in this process."""

    def __init__(self, rows, **options):
        self.rows = rows

    def map_batches(self, worker, *, fn_constructor_args, **options):
        self.worker = worker(*fn_constructor_args)
        return self

    def iter_rows(self):
        for row in self.rows:
            found = self.worker({name: [value] for name, value in row.items()})
            yield {name: value for name, (value,) in found.items()}


@pytest.fixture
def in_process(monkeypatch):
    monkeypatch.setattr("stal.integrations.ray.connected", lambda address: nullcontext())
    monkeypatch.setattr("ray.data.from_items", InProcess)


def test_what_a_worker_refuses_is_told(in_process, prompts, run, sd_folder):
    command = ("generate-batch", "--prompts", prompts, "--output", "out", "--model", sd_folder)
    code, out, err = run(*command, "--engine", "ray", "--sampler", "best", "--quiet")
    assert (code, out) == (1, "")
    assert err.startswith("stal: sampler must be ")
    assert err.count("\n") == 1


def test_a_disk_that_is_full_where_a_worker_is_is_told(
    in_process, prompts, run, sd_folder, monkeypatch
):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device", "picture.png")

    monkeypatch.setattr("stal.shards.run.Run.draw", full)
    command = ("generate-batch", "--prompts", prompts, "--output", "out", "--model", sd_folder)
    code, out, err = run(*command, "--engine", "ray", "--quiet")
    assert (code, out) == (1, "")
    assert "picture.png: No space left on device: make room" in err
    assert err.count("\n") == 1


def test_a_cluster_that_the_command_starts_reports_to_nobody(monkeypatch):
    from ray._common.usage import usage_lib

    from stal.integrations import ray

    class Started(Exception):
        pass

    enabled = []

    def start(*arguments, **options):
        enabled.append(usage_lib.usage_stats_enabled())
        raise Started

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    monkeypatch.setattr("ray._private.node.Node", start)
    with pytest.raises(Started), ray.connected("local"):
        pass
    assert enabled == [False]
