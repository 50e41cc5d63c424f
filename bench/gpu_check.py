"""Everything that has to be known about the GPU backends, from one command.

    python bench/gpu_check.py --output results
    TRITON_INTERPRET=1 python bench/gpu_check.py --dry-run

Needs torch and triton alone, and less than ten minutes on a fresh machine: --budget seconds in all,
and for each step as many as `programme` says (--seconds NAME=SECONDS ...). --steps picks some of:

    device             clocks, rates of copies and matrix products, an empty kernel, q copied to out
    correctness        every backend over the whole case table in three dtypes, gradients included,
                       float32 also with tf32 products (twice-eager rule of stal_kernels.testing)
    tiles              other tiles for the Triton kernels (bench/tune_triton.py), timed
    cuda               the CUDA kernels: tiny calls, compute-sanitizer, the case table, then times
                       beside Triton and SDPA; later steps take them only if all of it passed
    cuda graph         capture, with gradients, and replay on other values
    step batching      examples/step_batching.py captured, while rows join and leave
    determinism        bit-identical repeats
    torch.compile
    compute-sanitizer
    times              against the formula and SDPA, with regions and without
    rivals             against other people's kernels (bench/rivals.py), a case a step
    profile            what Nsight Compute counts
    machine code       code that is known to be wrong
    host time          of calls without a synchronisation
    rest               the times of the other shapes

What costs most if it is wrong, or is most likely to change what comes next, is first. Each step
has a process of its own, so that an error on a GPU, a crash or a kernel that never ends spoils one
step: it is stopped when its time is up, and the others still run. Each row is on disk as soon as it
is known, and SIGTERM leaves a report that says what was not run. A backend that is missing is a
row with its reason, and so is a rival that cannot run. The exit code is 0 only if every check
passed; on a signal 128 and its number. --dry-run walks the same steps on the CPU at small sizes;
what only a GPU can do is then named, not done.

Times: each function is captured in a CUDA graph and replayed with the second-level cache flushed
before every replay, all functions of a case in turn.
"""

import argparse
import contextlib
import json
import math
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing import connection
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch

# The checkout itself is what is checked, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import gpu_capture
import gpu_correctness
import gpu_cuda
import gpu_device
import gpu_nvidia_tools
import gpu_times
import gpu_triton
from gpu_work import Work, case_of, nvidia_smi
from rivals import first_line
from timing import machine

from stal_kernels import backends
from stal_kernels.testing import quicken_interpreter

_NOT_GPU = ("reference", "cpu")
# A backend with steps of its own: other steps are about it only once all of those have passed.
_OWN_STEPS = gpu_cuda.BACKEND
_TABLES = ("steps", "checks", "times", "host", "floors", "tiles", "profile")
# Seconds that must be left for another step to begin.
_LEAST = 3.0


class Step(NamedTuple):
    """A step of the programme.

    seconds: it is stopped after so many.
    share: "each": once for every backend; "all": once; "none": once, even without a backend;
        the name of a backend: once, for that one.
    """

    name: str
    seconds: float
    run: Callable[[Work], None]
    share: str = "each"

    @property
    def group(self) -> str:
        return self.name.partition(":")[0]


def programme(dry_run: bool) -> list[Step]:
    """All steps in order.

    Their times are what none should need: together they are more than there is. A kernel that is
    new gets its steps here, beside those of the backends, which need no more than its name.
    """
    rivals = gpu_times.TINY_RIVALS if dry_run else gpu_times.RIVALS
    steps = [
        Step("device", 30, gpu_device.device, "none"),
        Step("correctness", 120, gpu_correctness.correctness),
        Step("tiles", 60, gpu_triton.tiles),
        Step("cuda: tiny", 60, gpu_cuda.correctness, _OWN_STEPS),
        Step("cuda: compute-sanitizer", 60, gpu_cuda.sanitizer, _OWN_STEPS),
        Step("cuda: case table", 60, gpu_correctness.correctness, _OWN_STEPS),
        Step("cuda: times", 60, gpu_cuda.times, _OWN_STEPS),
        Step("cuda graph", 20, gpu_capture.cuda_graph),
        Step("step batching", 20, gpu_capture.step_batching),
        Step("determinism", 25, gpu_correctness.determinism),
        Step("torch.compile", 45, gpu_capture.compiled),
        Step("compute-sanitizer", 100, gpu_nvidia_tools.sanitizer),
        Step("times", 120, gpu_times.times, "all"),
        *(
            Step(f"rivals: {case_name(*case)}", 40, partial(gpu_times.rivals, *case), "all")
            for case in rivals
        ),
        Step("profile", 45, gpu_nvidia_tools.profile),
        Step("machine code", 60, gpu_triton.machine_code),
        Step("host time", 15, gpu_times.host_time),
        Step("rest", math.inf, gpu_times.rest, "all"),
    ]
    # Triton's interpreter takes its time, and nobody waits for a CPU that others use too.
    return [s._replace(seconds=20 * s.seconds) for s in steps] if dry_run else steps


def case_name(label: str, prompts: int, region: str) -> str:
    return case_of(label, prompts, region)[0]


class Report:
    """Rows by table; written to disk as they come."""

    def __init__(self, output: Path, facts: dict[str, Any], *, dry_run: bool) -> None:
        self.output, self.facts, self.dry_run = output, facts, dry_run
        self.start = time.monotonic()
        self.end = "running"
        self.tables: dict[str, list[dict[str, Any]]] = {name: [] for name in _TABLES}

    def add(self, table: str, cells: dict[str, Any]) -> None:
        """A row of a table, or facts of the machine."""
        if table == "machine":
            self.facts |= cells
        else:
            self.tables[table].append(cells)
        print(f"{table}: {shown(cells)}", flush=True)
        self.write()

    def seconds(self) -> float:
        return time.monotonic() - self.start

    @property
    def failed(self) -> bool:
        every = self.tables["steps"] + self.tables["checks"]
        return any(row["result"] not in ("ok", "not run") for row in every)

    def write(self) -> None:
        record = {
            "machine": self.facts,
            "dry run": self.dry_run,
            "seconds": round(self.seconds(), 1),
            "end": self.end,
            **self.tables,
        }
        self.output.mkdir(parents=True, exist_ok=True)
        replace(self.output / "gpu_check.json", json.dumps(record, indent=1) + "\n")
        replace(self.output / "gpu_check.md", self._markdown() + "\n")

    def _markdown(self) -> str:
        facts = {**self.facts, "end": self.end}
        parts = ["\n".join(f"* {name}: {value}" for name, value in facts.items())]
        parts += [_table(rows) for rows in self.tables.values() if rows]
        return "\n\n".join(parts)


def shown(cells: dict[str, Any]) -> str:
    return "  ".join(f"{v}" for k, v in cells.items() if not k.startswith("_") and v != "")


def replace(path: Path, text: str) -> None:
    """Writes a file at once or not at all, whenever this process ends."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def _table(rows: list[dict[str, Any]]) -> str:
    columns = [c for c in dict.fromkeys(k for r in rows for k in r) if not c.startswith("_")]
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    lines += [f"| {' | '.join(str(row.get(c, '')) for c in columns)} |" for row in rows]
    return "\n".join(lines)


# ---- a step in a process of its own ----


class Stop:
    """The name of the signal that ended the programme, "" until then."""

    def __init__(self) -> None:
        self.name, self.number = "", 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.name, self.number = signal.Signals(number).name, number


def _serve(run: Callable[[Work], None], work: Work) -> None:
    """What a step's process does. It leads a group, so that all that it starts ends with it."""
    os.setsid()
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    try:
        if work.dry_run and os.environ.get("TRITON_INTERPRET") == "1":
            quicken_interpreter()
        run(work)
        error = ""
    except BaseException as raised:  # The report tells it.
        traceback.print_exc()
        error = f"{type(raised).__name__}: {first_line(raised, 600)}"
    work.sender.send(("end", {"error": error}))


def _end_with(sentinel: int) -> None:
    connection.wait([sentinel])
    os.killpg(0, signal.SIGKILL)


def run_step(
    step: Step, names: tuple[str, ...], report: Report, budget_s: float, stop: Stop, device: str
) -> None:
    """Runs a step until it ends, its time is up or the programme is stopped; adds its row.

    names: of the backends that it is about.
    """
    start = time.monotonic()
    seconds = min(step.seconds, budget_s)
    context = multiprocessing.get_context("forkserver")
    receiver, sender = context.Pipe(duplex=False)
    work = Work(names, device, report.dry_run, dict(report.facts), seconds, start + seconds, sender)
    process = context.Process(target=_serve, args=(step.run, work))
    process.start()
    sender.close()
    result, detail, doing, ended = "", "", "its start", False
    while not result:
        left = start + seconds - time.monotonic()
        if stop.name:
            result, detail = "not run", f"stopped by {stop.name}"
        elif left <= 0:
            result, detail = "FAILED", f"took longer than its {seconds:.3g} s"
        elif receiver.poll(min(left, 0.2)):
            try:
                table, cells = receiver.recv()
            except (EOFError, OSError):
                process.join(5)
                code = process.exitcode
                how = (
                    f"signal {signal.Signals(-code).name}" if code and code < 0 else f"code {code}"
                )
                result, detail = "FAILED", f"its process ended with {how}"
            else:
                if table == "end":
                    ended, detail = True, cells["error"]
                    result = "FAILED" if detail else "ok"
                elif table == "doing":
                    doing = cells["text"]
                else:
                    report.add(table, cells)
    assert process.pid is not None
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # It has not got as far as leading a group, or has ended.
        process.kill()
    process.join(10)
    # What it has sent since.
    with contextlib.suppress(EOFError, OSError, pickle.UnpicklingError):
        while receiver.poll():
            table, cells = receiver.recv()
            if table == "doing":
                doing = cells["text"]
            elif table != "end":
                report.add(table, cells)
    if not ended:
        detail = f"{detail} at {doing}"
    took = f"{time.monotonic() - start:.1f}"
    report.add("steps", step_row(step, names, result, detail, took))


def step_row(
    step: Step, names: Sequence[str], result: str, detail: str, took: str = ""
) -> dict[str, str]:
    return {
        "step": step.name,
        "backend": ", ".join(names),
        "result": result,
        "seconds": took,
        "of": "the rest" if step.seconds == math.inf else f"{step.seconds:g}",
        "detail": detail,
    }


def run_all(
    steps: Sequence[Step], ready: Sequence[str], report: Report, budget_s: float, device: str
) -> int:
    """Runs the steps within the time for all; returns the exit code."""
    stop = Stop()
    # What takes longest to import, once for all steps.
    multiprocessing.get_context("forkserver").set_forkserver_preload(["torch", "triton"])
    report.write()
    for step in steps:
        if step.share == _OWN_STEPS:
            if _OWN_STEPS not in ready:
                reasons = "; ".join(gpu_cuda.against()) or "not among --backends"
                report.add("steps", step_row(step, (_OWN_STEPS,), "not run", reasons))
                continue
            about = [_OWN_STEPS]
        else:
            about = [n for n in ready if n != _OWN_STEPS or proven(n, steps, report)]
        shares = [(name,) for name in about] if step.share == "each" else [tuple(about)]
        if not about and step.share != "none":
            report.add("steps", step_row(step, (), "not run", "no GPU backend can run here"))
            continue
        for names in shares:
            left = budget_s - report.seconds()
            if stop.name:
                report.add("steps", step_row(step, names, "not run", f"stopped by {stop.name}"))
            elif left < _LEAST:
                report.add("steps", step_row(step, names, "not run", "time used up"))
            else:
                run_step(step, names, report, left, stop, device)
    if device == "cuda":
        clocks = nvidia_smi("clocks.sm,clocks.mem,temperature.gpu")
        report.facts["clocks after"] = clocks
    report.end = f"stopped by {stop.name}" if stop.name else "complete"
    report.write()
    return 128 + stop.number if stop.name else int(report.failed)


def proven(backend: str, steps: Sequence[Step], report: Report) -> bool:
    """Whether a backend has passed all of its own steps among these."""
    own = {step.name for step in steps if step.share == backend}
    passed = {row["step"] for row in report.tables["steps"] if row["result"] == "ok"}
    failed = [
        row
        for row in report.tables["checks"]
        if row["backend"] == backend and row["result"] not in ("ok", "not run")
    ]
    return own <= passed and not failed


def facts() -> dict[str, Any]:
    """What is known without a GPU."""
    found: dict[str, Any] = {**machine(), "gpu": "none"}
    try:
        import triton

        found["triton"] = triton.__version__
    except ImportError:
        found["triton"] = "not installed"
    return found


def chosen_steps(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace, steps: list[Step]
) -> list[Step]:
    """Those of --steps, with the time that --seconds gives them."""
    groups = list(dict.fromkeys(step.group for step in steps))
    given = dict.fromkeys(arguments.steps or groups, math.nan)
    changed: dict[str, float] = {}
    for text in arguments.seconds or ():
        name, _, value = text.partition("=")
        try:
            changed[name] = float(value)
        except ValueError:
            parser.error(f"--seconds must be NAME=SECONDS, got {text}")
        if not changed[name] > 0:
            parser.error(f"--seconds must be positive, got {text}")
    if unknown := [name for name in [*given, *changed] if name not in groups]:
        parser.error(f"steps must be among {', '.join(groups)}, got {', '.join(unknown)}")
    return [
        step._replace(seconds=changed.get(step.group, step.seconds))
        for step in steps
        if step.group in given
    ]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="folder for gpu_check.json and .md")
    parser.add_argument("--dry-run", action="store_true", help="every step on the CPU, small")
    parser.add_argument("--budget", type=float, default=540.0, help="seconds for everything")
    parser.add_argument("--steps", nargs="+", metavar="NAME", help="all if absent")
    parser.add_argument("--seconds", nargs="+", metavar="NAME=SECONDS", help="most of a step")
    parser.add_argument("--backends", nargs="+", help="all that run on a GPU if absent")
    arguments = parser.parse_args()
    candidates = [n for n in backends.names() if n.split(":")[0] not in _NOT_GPU]
    usual = [n for n in candidates if n != _OWN_STEPS or not gpu_cuda.against()]
    chosen = arguments.backends or usual
    if unknown := [name for name in chosen if name not in candidates]:
        known = ", ".join(candidates) or "none"
        parser.error(f"--backends must be among {known}, got {', '.join(unknown)}")
    steps = chosen_steps(parser, arguments, programme(arguments.dry_run))
    if not arguments.dry_run and not torch.cuda.is_available():
        parser.error("no GPU: torch.cuda.is_available() is False (--dry-run needs none)")
    device = "cpu" if arguments.dry_run else "cuda"
    output = arguments.output or Path(
        tempfile.mkdtemp(prefix="gpu_check-") if arguments.dry_run else "results"
    )

    report = Report(output, facts(), dry_run=arguments.dry_run)
    for name, value in report.facts.items():
        print(f"{name}: {value}")
    ready = []
    for backend in chosen:
        if reasons := backends.why_not(backend):
            row = {"check": "available", "backend": backend, "result": "MISSING"}
            report.add("checks", {**row, "detail": "; ".join(reasons)})
        else:
            ready.append(backend)
    code = run_all(steps, ready, report, arguments.budget, device)
    print(f"written to {output}")
    return code


if __name__ == "__main__":
    sys.exit(main())
