"""bench/gpu_check.py without a GPU: its steps end as they should, and nothing known is lost."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from stal_kernels.backends.triton.tiles import rows
from stal_kernels.testing import Case, Example, example, results

ROOT = Path(__file__).parents[2]
BENCH = ROOT / "bench"

# Steps that go wrong in every way, between such that do not.
PLANTED = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, {bench!r})
import gpu_check
from gpu_check import Report, Step, run_all

def good(work):
    work.check("sum", "none", lambda: str(1 + 1))

def wrong(work):
    def run():
        raise AssertionError("1 is not 2\\nand a page more")
    work.check("difference", "none", run)

def broken(work):
    work.row("times", case="before", _seconds=None)
    raise RuntimeError("spoiled")

def dies(work):
    work.row("times", case="before death", _seconds=None)
    os._exit(3)

def killed(work):
    os.kill(os.getpid(), 11)

def hangs(work):
    work.row("times", case="before the hang", _seconds=None)
    work.doing("kernel that never ends")
    Path({child!r}).write_text(str(os.getpid()))
    time.sleep(600)

STEPS = [Step(f.__name__, s, f, "none") for f, s in (
    (good, 900), (wrong, 900), (broken, 900), (dies, 900), (killed, 900), (hangs, {seconds}),
    (good, 900),
)]
if __name__ == "__main__":
    report = Report(Path({output!r}), {{}}, dry_run=True)
    sys.exit(run_all(STEPS, (), report, {budget}, "cpu"))
"""


@pytest.fixture(autouse=True)
def bench_on_path(monkeypatch):
    for folder in (BENCH, ROOT / "examples"):
        monkeypatch.syspath_prepend(str(folder))


def planted(tmp_path, *, seconds, budget=3600):
    script, child = tmp_path / "planted.py", tmp_path / "child"
    fields = {"bench": str(BENCH), "output": str(tmp_path), "child": str(child)}
    script.write_text(PLANTED.format(**fields, seconds=seconds, budget=budget))
    return [sys.executable, str(script)], child


def environment(**changed):
    return {**os.environ, "OMP_NUM_THREADS": "1", **changed}


def read(folder):
    """The JSON of a report that is valid; the Markdown beside it has each of its steps."""
    record = json.loads((folder / "gpu_check.json").read_text())
    text = (folder / "gpu_check.md").read_text()
    assert all(f"| {row['step']} |" in text for row in record["steps"])
    assert not list(folder.glob(".*.part"))
    return record


def ended(pid):
    """Whether a process is gone, or a zombie that nobody has asked for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):  # The latter if it goes while it is read.
        return True


def wait_for(condition, process=None, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.05)


def wait_for_hang(tmp_path, child, process):
    """Until the last step has begun to hang and both files of the report tell what it had."""

    def written():
        files = [tmp_path / f"gpu_check.{suffix}" for suffix in ("json", "md")]
        return all(f.exists() and "before the hang" in f.read_text() for f in files)

    wait_for(lambda: child.exists() and child.read_text() and written(), process)


def test_step_that_goes_wrong_spoils_no_other(tmp_path):
    command, child = planted(tmp_path, seconds=10)
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert done.returncode == 1, done.stderr
    record = read(tmp_path)
    assert record["end"] == "complete"
    steps = [(row["step"], row["result"]) for row in record["steps"]]
    failing = [(name, "FAILED") for name in ("broken", "dies", "killed", "hangs")]
    assert steps == [("good", "ok"), ("wrong", "ok"), *failing, ("good", "ok")]
    details = {row["step"]: row["detail"] for row in record["steps"]}
    assert details["broken"] == "RuntimeError: spoiled"
    assert details["dies"] == "its process ended with code 3 at its start"
    assert details["killed"] == "its process ended with signal SIGSEGV at its start"
    assert details["hangs"] == "took longer than its 10 s at kernel that never ends"
    assert [row["result"] for row in record["checks"]] == ["ok", "FAILED", "ok"]
    assert record["checks"][1]["detail"] == "AssertionError: 1 is not 2"
    assert [row["case"] for row in record["times"]] == [
        "before",
        "before death",
        "before the hang",
    ]
    assert ended(int(child.read_text()))


def test_steps_without_time_are_named(tmp_path):
    command, _ = planted(tmp_path, seconds=60, budget=1)
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    record = read(tmp_path)
    assert {(row["result"], row["detail"]) for row in record["steps"]} == {
        ("not run", "time used up")
    }


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_leaves_a_report_and_no_process(tmp_path, number):
    command, child = planted(tmp_path, seconds=600)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment()) as process:
        wait_for_hang(tmp_path, child, process)
        # What is known is on disk before the end.
        assert read(tmp_path)["end"] == "running"
        process.send_signal(number)
        process.communicate(timeout=600)
    assert process.returncode == 128 + number
    record = read(tmp_path)
    assert record["end"] == f"stopped by {number.name}"
    assert [row["case"] for row in record["times"]][-1] == "before the hang"
    *_, hangs, last = record["steps"]
    assert hangs["detail"] == f"stopped by {number.name} at kernel that never ends"
    assert (last["result"], last["detail"]) == ("not run", f"stopped by {number.name}")
    wait_for(lambda: ended(int(child.read_text())))


def test_killed_programme_leaves_a_report_and_no_process(tmp_path):
    command, child = planted(tmp_path, seconds=600)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment()) as process:
        wait_for_hang(tmp_path, child, process)
        process.kill()
    record = read(tmp_path)
    assert record["end"] == "running"
    assert [row["case"] for row in record["times"]][-1] == "before the hang"
    wait_for(lambda: ended(int(child.read_text())))


OWN = """
import sys
from pathlib import Path
sys.path.insert(0, {bench!r})
from gpu_check import Report, Step, run_all

def good(work):
    for backend in work.backends:
        work.check("own", backend, lambda: "fine")

def own(work):
    def run():
        assert {right}, "wrong"
        return "fine"
    work.check("own", *work.backends, run)

STEPS = [Step("early", 60, good), Step("cuda: tiny", 60, own, "cuda"),
         Step("cuda: times", 60, good, "cuda"), Step("late", 60, good)]
if __name__ == "__main__":
    report = Report(Path({output!r}), {{}}, dry_run=True)
    run_all(STEPS, {ready!r}, report, 500, "cpu")
"""


@pytest.mark.parametrize("right", [True, False])
def test_backend_with_steps_of_its_own_joins_others_once_they_passed(tmp_path, right):
    script = tmp_path / "planted.py"
    fields = {"bench": str(BENCH), "output": str(tmp_path), "right": right}
    script.write_text(OWN.format(**fields, ready=("triton", "cuda")))
    subprocess.run([sys.executable, str(script)], check=True, env=environment())
    steps = [(row["step"], row["backend"]) for row in read(tmp_path)["steps"]]
    late = [("late", "triton"), *[("late", "cuda")] * right]
    assert steps == [("early", "triton"), ("cuda: tiny", "cuda"), ("cuda: times", "cuda"), *late]


def test_steps_of_a_backend_that_is_missing_tell_its_reason(tmp_path):
    script = tmp_path / "planted.py"
    fields = {"bench": str(BENCH), "output": str(tmp_path), "right": True}
    script.write_text(OWN.format(**fields, ready=("triton",)))
    subprocess.run([sys.executable, str(script)], check=True, env=environment())
    rows = [(r["backend"], r["result"], r["detail"]) for r in read(tmp_path)["steps"]]
    missing = ("cuda", "not run", cuda_is_missing())
    assert rows == [("triton", "ok", ""), missing, missing, ("triton", "ok", "")]


# ---- the programme ----


def cuda_is_missing():
    """The reason, as the checkout in which gpu_check.py lies tells it."""
    code = "import gpu_check, gpu_cuda; print('; '.join(gpu_cuda.against()))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=BENCH,
        capture_output=True,
        text=True,
        check=True,
        env=environment(),
    )
    assert done.stdout.strip()
    return done.stdout.strip()


def run(*arguments, **changed):
    command = [sys.executable, str(BENCH / "gpu_check.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment(**changed))


def test_programme_is_that_of_the_help():
    import gpu_check

    for dry_run in (False, True):
        steps = gpu_check.programme(dry_run)
        groups = list(dict.fromkeys(step.group for step in steps))
        text = gpu_check.__doc__ or ""
        places = [text.index(f"\n    {group}") for group in groups]
        assert places == sorted(places)
        assert len({step.name for step in steps}) == len(steps)


def test_every_shape_is_timed_once():
    import gpu_times
    from gpu_work import SHAPES

    names = [name for name, _ in gpu_times.timed_cases(list(SHAPES))]
    assert len(set(names)) == len(names)
    assert {name.split()[0] for name in names} == SHAPES.keys()
    assert {*gpu_times.COMPILED_FORMULA} <= {*names}
    assert {"sd15-64x64 p8 global+layout", "large-d64 p4 bands"} <= {*names}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "device", "nothing"], "steps must be among device, .*, got nothing"),
        (["--seconds", "nothing=3"], "steps must be among device, .*, got nothing"),
        (["--seconds", "device"], "--seconds must be NAME=SECONDS, got device"),
        (["--seconds", "device=0"], "--seconds must be positive, got device=0"),
        (["--backends", "cpu"], "--backends must be among cuda, triton, got cpu"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_wrong_option_is_named(arguments, message, monkeypatch, capsys):
    import re

    import gpu_check

    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--dry-run", *arguments])
    with pytest.raises(SystemExit) as stop:
        gpu_check.main()
    assert stop.value.code == 2
    assert re.search(message, capsys.readouterr().err)


def test_without_a_gpu_the_programme_is_refused(tmp_path):
    done = run("--output", tmp_path / "none", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    assert "no GPU" in done.stderr
    assert not (tmp_path / "none").exists()


def test_missing_backend_is_a_row_with_its_reason(tmp_path):
    environment = {"TRITON_INTERPRET": "0", "CUDA_VISIBLE_DEVICES": ""}
    done = run("--dry-run", "--steps", "host time", "--output", tmp_path, **environment)
    assert done.returncode == 1, done.stdout + done.stderr
    record = read(tmp_path)
    assert [row["result"] for row in record["checks"]] == ["MISSING"]
    assert "triton is missing" in record["checks"][0]["detail"]
    assert [row["result"] for row in record["steps"]] == ["not run"]


@pytest.mark.slow
def test_dry_run_walks_every_step(tmp_path):
    done = run("--dry-run", "--budget", 3600, "--output", tmp_path, TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout + done.stderr
    import gpu_check

    record = read(tmp_path)
    assert record["end"] == "complete"
    assert [row["step"] for row in record["steps"]] == [
        step.name for step in gpu_check.programme(True)
    ]
    assert {row["result"] for row in record["steps"] if row["backend"] != "cuda"} == {"ok"}
    own = [row for row in record["steps"] if row["backend"] == "cuda"]
    assert [row["step"] for row in own][:2] == ["cuda: tiny", "cuda: compute-sanitizer"]
    assert {(row["result"], row["detail"]) for row in own} == {("not run", cuda_is_missing())}
    results = {row["check"]: row["result"] for row in record["checks"]}
    walked = {"correctness float32", "determinism", "torch.compile", "step batching", "host time"}
    assert {results[name] for name in walked} == {"ok"}
    assert {results[name] for name in ("cuda graph", "profile", "machine code")} == {"not run"}
    times = {(row["case"], row["pass"], row["backend"]): row for row in record["times"]}
    for name in (
        "tiny p1",
        "tiny p2",
        "tiny p2 disjoint",
        "tiny p2 bands",
        "tiny p2 global+layout",
    ):
        for pass_name in ("forward", "dq+dweight"):
            for backend in ("eager", "loop", "one SDPA", "triton"):
                assert times[name, pass_name, backend]["_seconds"]["median"] > 0
    # Compared with the formula before it is timed.
    assert times["tiny p2 global+layout", "forward", "flex"]["_seconds"]["median"] > 0
    for rival in ("varlen", "FA3", "loop cuDNN"):
        row = times["tiny p2 global+layout", "forward", rival]
        assert row["note"]
        assert row["_seconds"] is None
    assert [row["in table"] for row in record["tiles"]].count("yes") == 2
    assert {row["what"] for row in record["floors"]} >= {"q -> out, tiny"}


@pytest.mark.slow
def test_dry_run_that_is_stopped_keeps_what_it_has(tmp_path):
    command = [sys.executable, str(BENCH / "gpu_check.py"), "--dry-run", "--output", str(tmp_path)]
    asked = ["device", "tiles", "step batching", "determinism", "times", "rest"]
    command += ["--budget", "3600", "--seconds", "step batching=0.3", "--steps", *asked]
    path = tmp_path / "gpu_check.json"

    def begun():
        return path.exists() and "determinism" in path.read_text()

    with subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(TRITON_INTERPRET="1"),
    ) as process:
        wait_for(begun, process, 900)
        process.terminate()
        process.communicate(timeout=600)
    assert process.returncode == 128 + signal.SIGTERM
    record = read(tmp_path)
    assert record["end"] == "stopped by SIGTERM"
    steps = {row["step"]: row for row in record["steps"]}
    assert list(steps) == asked
    assert steps["device"]["result"] == "ok"
    assert steps["tiles"]["result"] == "ok"
    assert record["tiles"]
    assert steps["step batching"]["result"] == "FAILED"
    assert "took longer than its 0.3 s" in steps["step batching"]["detail"]
    assert "determinism" in {row["check"] for row in record["checks"]}
    assert steps["rest"] == {**steps["rest"], "result": "not run", "detail": "stopped by SIGTERM"}


# ---- its parts ----


def by_sequences(q, k, v, begin_q, begin_k, most_q, most_k):
    """What varlen_attn and FlashAttention compute."""
    outs = []
    for i in range(len(begin_q) - 1):
        rows, keys = slice(*begin_q[i : i + 2]), slice(*begin_k[i : i + 2])
        assert rows.stop - rows.start <= most_q
        assert keys.stop - keys.start == most_k
        parts = [x.transpose(0, 1)[None] for x in (q[rows], k[keys], v[keys])]
        outs.append(F.scaled_dot_product_attention(*parts)[0].transpose(0, 1))
    return torch.cat(outs)


@pytest.mark.parametrize("region", [None, "bands", "boxes"])
def test_packed_sequences_are_the_formula(region):
    import rivals

    e = example(Case(batch=2, seqlen_q=30, seqlen_k=7, prompts=3, region=region), torch.float32)
    out = rivals.packed(by_sequences, e)()
    torch.testing.assert_close(out, results(e, "plain")["out"])
    assert rivals.Reference(e).error_used(out) < 1


@pytest.mark.slow
@pytest.mark.parametrize("region", [None, "boxes"])
def test_flex_is_the_formula(region, pytestconfig):
    if not pytestconfig.getoption("--every-variant"):
        pytest.skip("compiled with --every-variant; the dry run has it too")
    import rivals

    e = example(Case(batch=2, seqlen_q=30, seqlen_k=7, prompts=3, region=region), torch.float32)
    assert rivals.Reference(e).error_used(rivals.flex(e)()) < 1


def test_rival_that_cannot_run_or_is_wrong_says_why():
    import rivals

    e = example(Case(seqlen_q=30, seqlen_k=7), torch.float32)
    right = results(e, "plain")["out"]

    def missing(e):
        raise ImportError("no such package\nand a page more")

    tried = []
    made = {
        "right": lambda e: lambda: right,
        "missing": missing,
        "wrong": lambda e: lambda: right + 1e-3,
        "nan": lambda e: lambda: right * torch.nan,
    }
    found, reasons = rivals.prepared(made, e, rivals.Reference(e), tried.append)
    assert list(found) == ["right"]
    assert reasons["missing"] == "ImportError: no such package"
    assert reasons["wrong"].endswith("times the error that is allowed")
    assert reasons["nan"].startswith("wrong: inf times")
    assert tried == list(made)


def test_reference_is_the_first_head():
    import rivals

    case = Case(batch=2, heads=3, seqlen_q=20, seqlen_k=7, prompts=3, region="blobs")
    e = example(case, torch.float32)
    reference, all_heads = rivals.Reference(e), results(e, "plain")
    for name in ("out", "dq"):
        assert reference.error_used(all_heads[name], name) <= 1
        assert reference.error_used(all_heads[name].flip(1), name) > 1


@pytest.mark.parametrize("prompts", [2, 4])
@pytest.mark.parametrize("region", ["none", "disjoint", "bands", "layout"])
def test_large_example_has_the_regions_of_its_case(region, prompts):
    from gpu_work import large_example
    from regions import with_regions

    ((_, case),) = with_regions(Case(batch=2, seqlen_q=64), prompts, [region])
    made, like = large_example(case, torch.float32, "cpu"), example(case, torch.float32)
    for name in ("q", "k", "v", "weight", "dout"):
        assert getattr(made, name).shape == getattr(like, name).shape
    if region == "none":
        assert made.region is None
    else:
        assert torch.equal(made.region, like.region)


def test_tiles_of_the_check_begin_with_the_tables():
    from gpu_triton import TILED, candidate_tiles, tile_row
    from gpu_work import case_of

    for kernel, *rest in TILED:
        _, case = case_of(*rest)
        first, *others = candidate_tiles(kernel, case, 9)
        row = tile_row(kernel, case, 9)
        assert first in row.tiles
        assert first not in others
        assert len(set(others)) == len(others)
    _, case = case_of("large-d64", 4, "none")
    tried = [(t.block_q, t.warps, t.registers) for t in candidate_tiles("forward", case, 9)]
    assert {(128, 8, 128), (128, 8, 168)} <= set(tried)


def test_search_reaches_two_changes():
    import tune_triton

    tile = rows()[0].tiles[0]
    once, twice = (list(tune_triton.neighbours(tile, changes)) for changes in (1, 2))
    assert once[0] == twice[0] == tile
    assert len(set(twice)) == len(twice)
    assert set(once) < set(twice)
    moved = tile._replace(block_q=128, warps=8, registers=128)
    assert moved in twice
    assert moved not in once

    def changed(other):
        fields = {n for n in tile._fields if getattr(tile, n) != getattr(other, n)}
        return len(fields - {"warps"}) + (fields == {"warps"})

    assert max(map(changed, twice)) == 2


def test_search_that_has_no_time_replaces_nothing():
    import tune_triton

    (row,) = (row for row in rows() if row[:4] == ("forward", 9, "half", False))

    class Never:
        def submit(self, *arguments):
            from concurrent.futures import Future

            return Future()

    compiler = tune_triton.Compiler(Never(), until=time.monotonic())
    tile, worth = tune_triton.tune(compiler, row, 64, rounds=2, device="cpu")
    assert tile == tune_triton.starting_tile(row, 64)
    assert not worth


RAW = """==PROF== Connected to process 7
"ID","Kernel Name","gpu__time_duration.sum","launch__registers_per_thread","other__metric"
"","","us","register/thread","%"
"0","forward","12.5","128","3"
==PROF== Disconnected
"""


def test_counters_of_the_profiler_are_read():
    from gpu_nvidia_tools import profiled

    assert profiled(RAW) == {
        "gpu__time_duration.sum": ("us", "12.5"),
        "launch__registers_per_thread": ("register/thread", "128"),
    }
    assert profiled("==ERROR== no permission") == {}


def test_tiny_calls_of_the_cuda_kernels_are_compared_with_plain_torch(monkeypatch):
    import gpu_cuda

    cases = [gpu_cuda.replace(case, head_dim=40) for case in gpu_cuda.TINY]
    assert any(case.ragged and case.planned for case in cases)
    for case in cases:
        assert 0 <= gpu_cuda.share_used(case, torch.float16, "cpu", "cpu") <= 1
    original = Example.run
    monkeypatch.setattr(Example, "run", lambda e, backend: 1.01 * original(e, backend))
    assert all(gpu_cuda.share_used(c, torch.float16, "cpu", "cpu") > 1 for c in cases)


def test_times_that_fail_are_a_row_and_the_next_are_run():
    import gpu_work

    sent = []
    work = gpu_work.Work(
        ("triton",),
        "cpu",
        True,
        {},
        100.0,
        time.monotonic() + 100,
        SimpleNamespace(send=sent.append),
    )

    def breaks(work, name):
        if name == "memory":
            raise torch.cuda.OutOfMemoryError("too large")
        raise RuntimeError("launch failed")

    for name in ("memory", "launch"):
        gpu_work.guarded(work, f"times of {name}", breaks, name)
    assert [table for table, _ in sent] == ["checks", "checks"]
    assert [row["result"] for _, row in sent] == ["not run", "FAILED"]
    assert sent[1][1]["detail"] == "RuntimeError: launch failed"
