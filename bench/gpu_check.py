"""Everything that has to be known about the GPU backends, from one command.

    python bench/gpu_check.py --output results
    TRITON_INTERPRET=1 python bench/gpu_check.py --dry-run

Needs torch and triton alone, and less than ten minutes on a fresh machine. In order: facts about
the device; correctness of every backend over the whole case table in three dtypes, gradients
included, float32 also with tf32 products (the twice-eager rule of stal_kernels.testing); machine
code that is known to be wrong; bit-identical repeats; torch.compile; capture in a CUDA graph, with
gradients and of examples/step_batching.py while rows join and leave; compute-sanitizer; times. A
backend that is missing is a row with its reason. The exit code is 0 only if every check passed. A
failed check keeps no later one from running, and what is known so far is on disk after each.
--dry-run walks the same steps on the CPU at small sizes; what only a GPU can do is then named, not
done.

Times: each function is captured in a CUDA graph and replayed with the second-level cache flushed
before every replay, all functions of a case in turn. Host time is that of calls without a
synchronisation.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

# The checkout itself is what is checked, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench_blended_attention import PASSES, eager, loop, one_sdpa, ours, ratio, rival
from cost_model import predicted_ms, work
from step_batching import StepBatch, random_requests
from timing import captured, gpu_times, interleave, machine

from stal_kernels import backends, blended_attention, blended_attention_ragged
from stal_kernels.backends.triton.compile import KERNELS, Variant, compile_variant
from stal_kernels.testing import CASES, Case, Example, assert_within_twice_plain, example, results

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
# A dtype and what torch.set_float32_matmul_precision allows its products to be.
NUMBERS = {name: (dtype, "highest") for name, dtype in DTYPES.items()}
NUMBERS["tf32"] = (torch.float32, "high")
_NOT_GPU = ("reference", "cpu")

# In the order in which they are timed.
SHAPES = {
    "sd15-64x64": Case(batch=2, heads=8, seqlen_q=4096, head_dim=40),
    "sdxl-64x64": Case(batch=2, heads=10, seqlen_q=4096, head_dim=64),
    # q of four times the second-level cache: the case that the peak rates are judged on.
    "large-d64": Case(batch=64, heads=8, seqlen_q=4096, head_dim=64),
    "sd15-32x32": Case(batch=2, heads=8, seqlen_q=1024, head_dim=80),
    "sd15-16x16": Case(batch=2, heads=8, seqlen_q=256, head_dim=160),
    "sdxl-32x32": Case(batch=2, heads=20, seqlen_q=1024, head_dim=64),
    "d128-k256": Case(batch=2, heads=16, seqlen_q=4096, seqlen_k=256, head_dim=128),
    "large-d40": Case(batch=80, heads=8, seqlen_q=4096, head_dim=40),
    "large-d128": Case(batch=32, heads=8, seqlen_q=4096, head_dim=128),
    "sd15-8x8": Case(batch=2, heads=8, seqlen_q=64, head_dim=160),
    "d128-k512": Case(batch=2, heads=12, seqlen_q=4096, seqlen_k=512, head_dim=128),
    "video": Case(batch=2, heads=12, seqlen_q=32760, seqlen_k=512, head_dim=128),
}
TINY = {"tiny": Case(heads=1, seqlen_q=33, head_dim=40)}
# The formula is compiled anew for every shape, which takes half a minute.
COMPILED = ("sd15-64x64",)
# Timed with every number of prompts; the others with 1 and 4.
DETAILED = ("sd15-64x64",)
DTYPE_OF_TIMES = "bfloat16"


class Report:
    """Check rows and time rows; written to disk as they come."""

    def __init__(self, output: Path, *, dry_run: bool) -> None:
        self.output, self.dry_run = output, dry_run
        self.start = time.monotonic()
        self.facts: dict[str, Any] = {}
        self.checks: list[dict[str, str]] = []
        self.times: list[dict[str, Any]] = []
        self.host: list[dict[str, str]] = []

    def check(self, name: str, backend: str, run: Callable[[], str]) -> None:
        """Runs one check; its result is what `run` returns, or the error that it raises."""
        start = time.monotonic()
        try:
            result, detail = "ok", run()
        except Exception as error:  # A check that breaks must not hide the ones after it.
            result = "FAILED"
            lines = str(error).strip().splitlines() or [""]
            detail = f"{type(error).__name__}: {lines[0][:300]}"
            traceback.print_exc()
        self.row(name, backend, result, detail, time.monotonic() - start)

    def row(self, name: str, backend: str, result: str, detail: str, seconds: float = 0.0) -> None:
        print(f"{result:8} {name} {backend}: {detail} ({seconds:.0f} s)", flush=True)
        self.checks.append({"check": name, "backend": backend, "result": result, "detail": detail})
        self.write()

    def left(self, budget_s: float) -> float:
        return budget_s - (time.monotonic() - self.start)

    @property
    def failed(self) -> bool:
        return any(row["result"] not in ("ok", "not run") for row in self.checks)

    def write(self) -> None:
        record = {
            "machine": self.facts,
            "dry run": self.dry_run,
            "seconds": round(time.monotonic() - self.start, 1),
            "checks": self.checks,
            "times": self.times,
            "host": self.host,
        }
        self.output.mkdir(parents=True, exist_ok=True)
        path = self.output / "gpu_check.json"
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        (self.output / "gpu_check.md").write_text(self._markdown() + "\n", encoding="utf-8")

    def _markdown(self) -> str:
        parts = ["\n".join(f"* {name}: {value}" for name, value in self.facts.items())]
        parts += [_table(rows) for rows in (self.checks, self.times, self.host) if rows]
        return "\n\n".join(parts)


def _table(rows: list[dict[str, Any]]) -> str:
    columns = [c for c in dict.fromkeys(k for r in rows for k in r) if not c.startswith("_")]
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    lines += [f"| {' | '.join(str(row.get(c, '')) for c in columns)} |" for row in rows]
    return "\n".join(lines)


def facts(device: str) -> dict[str, Any]:
    found: dict[str, Any] = {**machine(), "gpu": "none"}
    try:
        import triton

        found["triton"] = triton.__version__
    except ImportError:
        found["triton"] = "not installed"
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "gpu": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory GB": round(properties.total_memory / 1e9, 1),
            "L2 MB": round(properties.L2_cache_size / 1e6, 1),
            "cuda": torch.version.cuda,
            "clocks": _nvidia_smi("clocks.sm,clocks.mem,clocks.max.sm,driver_version"),
            "copy GB/s": round(_copy_rate() / 1e9),
            "gemm TFLOP/s": round(_gemm_rate() / 1e12),
        }
    return found


def _nvidia_smi(query: str) -> str:
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        return f"unknown ({error})"


def _copy_rate() -> float:
    """Bytes read and written a second by an elementwise kernel over 2 GiB.

    In a CUDA graph a plain copy is left to the driver, whose way need not be the fastest.
    """
    source = torch.zeros(2**29, device="cuda")
    target = torch.empty_like(source)
    seconds = gpu_times({"copy": lambda: torch.neg(source, out=target)})["copy"].median
    return 2 * source.numel() * source.itemsize / seconds


def _gemm_rate() -> float:
    """FLOP/s of a square bfloat16 product."""
    n = 8192
    a = torch.randn(n, n, device="cuda", dtype=torch.bfloat16)
    return 2 * n**3 / gpu_times({"gemm": lambda: a @ a})["gemm"].median


def _check_part(backend: str, numbers: str, device: str, indices: list[int]) -> list[str]:
    """Runs in a worker: the failures among some cases of the table."""
    failures = []
    dtype, precision = NUMBERS[numbers]
    torch.set_float32_matmul_precision(precision)
    for index in indices:
        try:
            draws = 3 if device == "cuda" else 1
            plain = "plain tf32" if numbers == "tf32" else "plain"
            assert_within_twice_plain(
                CASES[index], backend, dtype, draws=draws, device=device, plain=plain
            )
        except Exception as error:  # Each failing case is reported by name.
            lines = str(error).strip().splitlines() or [""]
            failures.append(f"{CASES[index]!r}: {type(error).__name__} {lines[0][:200]}")
    return failures


def correctness(backend: str, numbers: str, device: str, indices: list[int], workers: int) -> str:
    """Cases over several processes, since compiling kernels takes most of the time."""
    failures = []
    if workers == 1:
        failures = _check_part(backend, numbers, device, indices)
    else:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            parts = [indices[i::workers] for i in range(workers)]
            futures = [pool.submit(_check_part, backend, numbers, device, part) for part in parts]
            for future in as_completed(futures):
                failures += future.result()
    if failures:
        raise AssertionError(f"{len(failures)} of {len(indices)} cases: {'; '.join(failures)}")
    return f"{len(indices)} cases, forward and all gradients"


def isolated(check: Callable[..., str], *arguments: Any) -> str:
    """Runs a check in a process of its own, since an error on a GPU spoils all later calls."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(check, *arguments).result()


def machine_code(capability: int, workers: int) -> str:
    """Looks for code that is known to be wrong (`compile.undefined_registers`).

    Runs of the case table need not show it: what a register holds by chance decides.
    """
    variants = [
        Variant(kernel, capability, head_dim, 77, dtype, region, ragged)
        for kernel in KERNELS
        for head_dim in (40, 64, 72, 80, 128, 160)
        for dtype in ("float16", "bfloat16")
        for region, ragged in ((False, False), (True, False), (False, True))
    ]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        found = list(pool.map(compile_variant, variants))
    wrong = [repr(v) for v, code in zip(variants, found, strict=True) if code.undefined]
    assert not wrong, f"{len(wrong)} of {len(variants)} read what nothing wrote: {', '.join(wrong)}"
    return f"{len(variants)} kernels, none reads a register that nothing wrote"


def determinism(backend: str, device: str, repeats: int) -> str:
    dtype = torch.float32 if device == "cpu" else torch.float16
    for case in (
        Case(batch=4, heads=2, seqlen_q=65, prompts=3, ragged=True),
        Case(batch=2, heads=2, seqlen_q=130, prompts=4, region="blobs"),
    ):
        e = example(case, dtype, device)
        first = results(e, backend)
        for _ in range(repeats):
            again = results(e, backend)
            different = [name for name in first if not torch.equal(first[name], again[name])]
            assert not different, f"{case!r}: {', '.join(different)} changed from call to call"
    return f"{repeats} repeats bit-identical, gradients too"


def cuda_graph(backend: str, device: str) -> str:
    """Captures forward and backward, replays on other values, compares with a direct call."""
    case = Case(batch=4, heads=2, seqlen_q=65, prompts=3, ragged=True)
    e = example(case, torch.float16, device)
    assert e.prompt_ids is not None
    assert e.offsets is not None
    prompt_ids, offsets = e.prompt_ids, e.offsets
    kept: dict[str, torch.Tensor] = {}

    def call() -> None:
        # Without validate=True: it would read the indices on the host, which capture forbids.
        out = blended_attention_ragged(
            e.q,
            e.k,
            e.v,
            e.weight,
            prompt_ids,
            offsets,
            key_lengths=e.key_lengths,
            backend=backend,
        )
        grads = torch.autograd.grad(out, e.floats(), e.dout)
        kept.update(zip(("out", "dq", "dk", "dv", "dweight"), (out, *grads), strict=True))

    graph = captured(call)
    with torch.no_grad():
        for x in e.floats():
            x.mul_(0.5)
    graph.replay()
    torch.cuda.synchronize()
    direct = results(e, backend)
    different = [name for name in direct if not torch.equal(direct[name], kept[name])]
    assert not different, f"{', '.join(different)} differ between replay and call"
    return "forward and all gradients captured and replayed on new values"


def step_batching(backend: str, device: str) -> str:
    """Captures the operator on the buffers of examples/step_batching.py, then replays it.

    On the CPU it is called where a GPU replays it.
    """
    dtype = torch.float32 if device == "cpu" else torch.float16
    batch = StepBatch(rows=4, entries=8, dtype=dtype, device=device, backend=backend)
    kept: dict[str, torch.Tensor] = {}

    def call() -> None:
        kept["out"] = batch.attend()

    batch.pack()
    replay = captured(call).replay if device == "cuda" else call
    waiting = random_requests()
    counts: list[int] = []
    while waiting or any(batch.requests):
        while waiting and batch.join(waiting[0]):
            del waiting[0]
        batch.pack()
        replay()
        out, direct = kept["out"], batch.attend()
        assert torch.equal(out, direct), f"step {len(counts)} differs between replay and call"
        there = [request is not None for request in batch.requests]
        drawn = out.flatten(1).any(1).tolist()
        assert drawn == there, f"step {len(counts)} must draw the rows {there}, got {drawn}"
        counts.append(batch.advance(out))
    how = "replayed" if device == "cuda" else "called"
    return f"{len(counts)} steps of {min(counts)} to {max(counts)} rows {how}, empty rows are 0"


def compiled(backend: str, device: str) -> str:
    dtype = torch.float32 if device == "cpu" else torch.float16
    e = example(Case(heads=2, seqlen_q=65, region="blobs"), dtype, device)

    def function(*tensors: torch.Tensor) -> torch.Tensor:
        return blended_attention(*tensors, region=e.region, backend=backend)

    out = torch.compile(function, fullgraph=True)(*e.floats())
    grads = torch.autograd.grad(out, e.floats(), e.dout)
    direct = results(e, backend)
    for name, actual in zip(("out", "dq", "dk", "dv", "dweight"), (out, *grads), strict=True):
        assert torch.equal(actual, direct[name]), f"{name} differs from the call without compile"
    return "fullgraph, forward and all gradients equal"


_SANITIZED = """
import torch
from stal_kernels.testing import Case, example, results
for case in (Case(batch=2, heads=2, seqlen_q=33, region="blobs"),
             Case(batch=4, heads=1, seqlen_q=17, seqlen_k=130, prompts=3, ragged=True)):
    results(example(case, torch.float16, "cuda"), "{backend}")
torch.cuda.synchronize()
"""


def sanitizer(backend: str) -> str:
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(tool).is_file():
        raise FileNotFoundError("compute-sanitizer is not on PATH nor in /usr/local/cuda/bin")
    command = [tool, "--tool", "memcheck", "--error-exitcode", "7", sys.executable, "-c"]
    # PyTorch's own pool would hide reads behind the end of a tensor.
    environment = {
        **os.environ,
        "PYTORCH_NO_CUDA_MEMORY_CACHING": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [sys.path[0], os.environ.get("PYTHONPATH")])),
    }
    done = subprocess.run(
        [*command, _SANITIZED.format(backend=backend)],
        capture_output=True,
        text=True,
        timeout=150,
        env=environment,
    )
    text = (done.stdout + done.stderr).strip()
    assert done.returncode == 0, f"exit code {done.returncode}: {text[-600:]}"
    return text.splitlines()[-1].strip("= ")


def times(report: Report, backend: str, device: str, budget_s: float) -> None:
    """One row a function; shapes in the order of SHAPES until the time is used up."""
    shapes = TINY if report.dry_run else SHAPES
    dtype_name = "float32" if report.dry_run else DTYPE_OF_TIMES
    dtype = DTYPES[dtype_name]
    for label, shape in shapes.items():
        counts = (1, 2) if report.dry_run else (1, 2, 4, 8) if label in DETAILED else (1, 4)
        for prompts in counts:
            for region in (None, "disjoint") if prompts > 1 else (None,):
                if report.left(budget_s) < 15:
                    report.row("times", backend, "not run", f"{label} and later: time used up")
                    return
                case = Case(**{**vars(shape), "prompts": prompts, "region": region})
                name = f"{label} p{prompts}" + (" disjoint" if region else "")
                try:
                    _time_case(report, backend, name, case, dtype_name, dtype, device)
                except torch.cuda.OutOfMemoryError:
                    torch.cuda.empty_cache()
                    report.row("times", backend, "not run", f"{name}: out of memory")


def _large_example(case: Case, dtype: torch.dtype, device: str) -> Example:
    """Like `example`, drawn on the device: gigabytes take seconds on the CPU."""

    def normal(*shape: int, to: torch.dtype = dtype) -> torch.Tensor:
        return torch.randn(shape, device=device, dtype=to)

    q_shape = (case.batch, case.heads, case.seqlen_q, case.head_dim)
    key_shape = (case.batch, case.prompts, case.heads, case.seqlen_k, case.head_dim)
    weight = normal(case.batch, case.prompts, case.seqlen_q, to=torch.float32)
    region = None
    if case.region == "disjoint":
        owner = torch.arange(case.seqlen_q, device=device) * case.prompts // case.seqlen_q
        every = torch.arange(case.prompts, device=device)
        region = (owner == every[:, None]).expand(weight.shape)
    q, k, v, dout = normal(*q_shape), normal(*key_shape), normal(*key_shape), normal(*q_shape)
    return Example(q, k, v, weight, dout, None, None, region, None, None, None)


def _time_case(
    report: Report,
    backend: str,
    name: str,
    case: Case,
    dtype_name: str,
    dtype: torch.dtype,
    device: str,
) -> None:
    e = _large_example(case, dtype, device)
    pairs = case.batch * case.heads * case.seqlen_q * case.seqlen_k * case.head_dim
    present = 1 if case.region else case.prompts
    for pass_name in ("forward", "dq+dweight"):
        factor, wanted = PASSES[pass_name]
        functions = {
            "loop": rival(loop, e, wanted),
            "one SDPA": rival(one_sdpa, e, wanted),
            backend: ours(backend, e, wanted),
        }
        # Its scores in memory: beyond some GB they tell nothing.
        if pairs / case.head_dim * case.prompts * dtype.itemsize < 4e9:
            functions = {"eager": rival(eager, e, wanted), **functions}
        if name.split()[0] in COMPILED and pass_name == "forward":
            functions["compiled"] = rival(torch.compile(eager), e, wanted)
        found = (gpu_times if device == "cuda" else interleave)(functions)
        predicted = predicted_ms(case, dtype_name, wanted, report.facts["gpu"])
        moved = work(case, dtype.itemsize, wanted).bytes
        for function, timing in found.items():
            flops = factor * pairs * (1 if function == "one SDPA" else present)
            rate = flops / timing.median
            gemm, copy = (report.facts.get(name) for name in ("gemm TFLOP/s", "copy GB/s"))
            bandwidth = moved / timing.median / 1e9
            is_ours = function == backend
            report.times.append(
                {
                    "case": name,
                    "dtype": dtype_name,
                    "pass": pass_name,
                    "backend": function,
                    "ms median (p20-p80)": str(timing),
                    "x eager": ratio(found["eager"], timing) if "eager" in found else "",
                    "x loop": ratio(found["loop"], timing),
                    "x one SDPA": ratio(found["one SDPA"], timing),
                    "TFLOP/s": f"{rate / 1e12:.3g}",
                    "of gemm": f"{rate / 1e12 / gemm:.0%}" if gemm else "",
                    # Of what the fused kernels have to move: others move more.
                    "GB/s": f"{bandwidth:.3g}" if is_ours else "",
                    "of copy": f"{bandwidth / copy:.0%}" if is_ours and copy else "",
                    "predicted ms": _range(predicted) if is_ours else "",
                    "_seconds": asdict(timing),
                }
            )
            row = report.times[-1]
            print("  ".join(str(v) for k, v in row.items() if not k.startswith("_")), flush=True)
    report.write()


def _range(bounds: tuple[float, float] | None) -> str:
    return f"{bounds[0]:.3g}-{bounds[1]:.3g}" if bounds else ""


def host_time(report: Report, backend: str, device: str) -> str:
    """Microseconds that the calling thread spends on a call of the smallest shape."""
    dtype = torch.float32 if device == "cpu" else torch.float16
    e = example(Case(seqlen_q=64, head_dim=40, prompts=1), dtype, device)
    rows = {
        "one SDPA": rival(one_sdpa, e, ""),
        backend: ours(backend, e, ""),
        f"{backend}, gradient recorded": lambda: e.run(backend),
    }
    calls = 3 if report.dry_run else 200
    for name, function in rows.items():
        function()
        samples = []
        for _ in range(5):
            if device == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(calls):
                function()
            samples.append((time.perf_counter() - start) / calls)
        micros = statistics.median(samples) * 1e6
        report.host.append({"call": name, "host us": f"{micros:.1f}"})
    return ", ".join(f"{row['call']} {row['host us']} us" for row in report.host)


def run_backend(report: Report, backend: str, device: str, budget_s: float) -> None:
    dry = report.dry_run
    small = [i for i, c in enumerate(CASES) if c.seqlen_q * c.prompts * c.heads <= 150]
    indices = small if dry else list(range(len(CASES)))
    workers = 1 if dry else min(14, os.cpu_count() or 1)
    for numbers in ("float32",) if dry else NUMBERS:
        report.check(
            f"correctness {numbers}",
            backend,
            partial(correctness, backend, numbers, device, indices, workers),
        )
    if backend == "triton":
        if dry:
            report.row("machine code", backend, "not run", "the interpreter has none")
        else:
            capability = 90 if torch.cuda.get_device_capability()[0] >= 9 else 80
            check = partial(machine_code, capability, workers)
            report.check("machine code", backend, check)
    repeats = 2 if dry else 100
    report.check("determinism", backend, partial(isolated, determinism, backend, device, repeats))
    report.check("torch.compile", backend, partial(isolated, compiled, backend, device))
    report.check("step batching", backend, partial(isolated, step_batching, backend, device))
    if dry:
        for name in ("cuda graph", "compute-sanitizer"):
            report.row(name, backend, "not run", "needs a GPU")
    else:
        report.check("cuda graph", backend, partial(isolated, cuda_graph, backend, device))
        report.check("compute-sanitizer", backend, lambda: sanitizer(backend))
    report.check("host time", backend, lambda: host_time(report, backend, device))

    def all_times() -> str:
        times(report, backend, device, budget_s)
        return f"{len(report.times)} rows"

    report.check("times", backend, all_times)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="folder for gpu_check.json and .md")
    parser.add_argument("--dry-run", action="store_true", help="every step on the CPU, small")
    parser.add_argument("--budget", type=float, default=520.0, help="seconds for everything")
    parser.add_argument("--backends", nargs="+", help="all that run on a GPU if absent")
    arguments = parser.parse_args()
    candidates = [n for n in backends.names() if n.split(":")[0] not in _NOT_GPU]
    chosen = arguments.backends or candidates
    if unknown := [name for name in chosen if name not in candidates]:
        known = ", ".join(candidates) or "none"
        parser.error(f"--backends must be among {known}, got {', '.join(unknown)}")
    if not arguments.dry_run and not torch.cuda.is_available():
        parser.error("no GPU: torch.cuda.is_available() is False (--dry-run needs none)")
    device = "cpu" if arguments.dry_run else "cuda"
    output = arguments.output or Path(
        tempfile.mkdtemp(prefix="gpu_check-") if arguments.dry_run else "results"
    )

    report = Report(output, dry_run=arguments.dry_run)
    report.facts = facts(device)
    for name, value in report.facts.items():
        print(f"{name}: {value}")
    # The backends share what is left evenly.
    ready = []
    for backend in chosen:
        if reasons := backends.why_not(backend):
            report.row("available", backend, "MISSING", "; ".join(reasons))
        else:
            ready.append(backend)
    if not ready:
        report.row("available", "any", "MISSING", "no GPU backend can run here")
    for i, backend in enumerate(ready):
        share = report.left(arguments.budget) / (len(ready) - i)
        spent = time.monotonic() - report.start
        run_backend(report, backend, device, spent + share)
    if device == "cuda":
        report.facts["clocks after"] = _nvidia_smi("clocks.sm,clocks.mem,temperature.gpu")
    report.write()
    print(f"written to {output}")
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
