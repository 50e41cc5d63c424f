"""Steps of gpu_check.py that time calls: beside plain torch, beside rivals, on the host."""

import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from bench_blended_attention import PASSES, eager, loop, one_sdpa, ours, present, ratio, rival
from cost_model import predicted_ms
from cost_model import work as work_of
from gpu_work import (
    DTYPE_OF_TIMES,
    FIRST,
    SHAPES,
    TINY,
    Work,
    case_of,
    finish,
    guarded,
    half,
    large_example,
)
from regions import with_regions
from rivals import COMPILED, READY, Reference, prepared
from timing import Timing

from stal_kernels import plan
from stal_kernels.backends.triton import direct
from stal_kernels.testing import Case, Example, example

# After the name of a backend that is given a plan of the regions.
PLANNED = ", plan"


# Timed with more numbers of prompts; the others with 1 and 4.
DETAILED = ("sd15-64x64",)


# The formula is compiled anew for every shape, which takes half a minute.
COMPILED_FORMULA = ("sd15-64x64 p1", "sd15-64x64 p4")


# A step each. Without regions the keys and values of all prompts are needed everywhere.
RIVALS = (
    ("large-d64", 4, "layout"),
    ("sd15-64x64", 4, "layout"),
    ("large-d64", 4, "none"),
    ("sd15-64x64", 4, "none"),
    ("large-d64", 1, "none"),
    ("large-d128", 4, "layout"),
)


TINY_RIVALS = (("tiny", 2, "layout"),)


def times(work: Work) -> None:
    """The shapes that say most; one row a function."""
    _times(work, ("tiny",) if work.dry_run else FIRST)


def rest(work: Work) -> None:
    """The other shapes, until the time is used up."""
    _times(work, () if work.dry_run else [label for label in SHAPES if label not in FIRST])


def _times(work: Work, labels: Sequence[str]) -> None:
    for name, case in timed_cases(labels):
        if work.left() < min(5.0, 0.1 * work.seconds):
            work.not_run("times", f"{name} and later: time used up")
            return
        guarded(work, f"times of {name}", _time_case, name, case)


def timed_cases(labels: Sequence[str]) -> Iterator[tuple[str, Case]]:
    every = ("none", "disjoint", "bands", "layout")
    asked: list[tuple[str, int, tuple[str, ...]]] = [
        (n, count, every) for n in labels for count in (1, 2 if n == "tiny" else 4)
    ]
    asked += [(n, count, ("none", "layout")) for n in labels if n in DETAILED for count in (2, 8)]
    for label, prompts, regions in asked:
        shape = TINY if label == "tiny" else SHAPES[label]
        for suffix, case in with_regions(shape, prompts, regions):
            yield f"{label} {suffix}", case


def _time_case(work: Work, name: str, case: Case) -> None:
    work.doing(f"times of {name}")
    e = large_example(case, work.dtype, work.device)
    reference = Reference(e)
    scores = case.batch * case.heads * case.seqlen_q * case.seqlen_k * case.prompts
    for pass_name in ("forward", "dq+dweight"):
        wanted = PASSES[pass_name][1]
        functions = {
            "loop": rival(loop, e, wanted),
            "one SDPA": rival(one_sdpa, e, wanted),
            **checked(work, e, reference, wanted),
        }
        # Its scores in memory: beyond some GB they tell nothing.
        if scores * work.dtype.itemsize < 4e9:
            functions = {"eager": rival(eager, e, wanted), **functions}
        if name in COMPILED_FORMULA and pass_name == "forward":
            torch.compiler.reset()
            functions["compiled"] = rival(torch.compile(eager, dynamic=False), e, wanted)
        work.doing(f"{pass_name} of {name}")
        found = work.timed(functions)
        time_rows(work, name, case, pass_name, found, list(found))


def checked(
    work: Work, e: Example, reference: Reference, wanted: str
) -> dict[str, Callable[[], object]]:
    """Our backends by name, whose first result has been compared with plain PyTorch's.

    With regions each comes again with a plan of them.
    """
    functions = {}
    examples = {"": e} if e.region is None else {"": e, PLANNED: replace(e, plan=plan(e.region))}
    for backend, (mark, each) in itertools.product(work.backends, examples.items()):
        name = f"{backend}{mark}"
        function = functions[name] = ours(backend, each, wanted)
        made: Any = function()
        used = reference.error_used(made[0], "dq") if wanted else reference.error_used(made)
        assert used <= 1, f"{name} makes {used:.2f} times the error that is allowed"
    return functions


def time_rows(
    work: Work,
    name: str,
    case: Case,
    pass_name: str,
    found: dict[str, Timing],
    shown: Iterable[str],
    notes: dict[str, str] | None = None,
) -> None:
    """Adds the rows of some of the functions that were timed together.

    notes: why others were not, by name.
    """
    factor, wanted = PASSES[pass_name]
    pairs = case.batch * case.heads * case.seqlen_q * case.seqlen_k * case.head_dim
    dtype_name = "float32" if work.dry_run else DTYPE_OF_TIMES
    labels = {"case": name, "dtype": dtype_name, "pass": pass_name}
    predicted = predicted_ms(case, dtype_name, wanted, work.facts.get("gpu", "none"))
    moved = work_of(case, work.dtype.itemsize, wanted).bytes
    gemm, copy = (work.facts.get(fact) for fact in ("gemm TFLOP/s", "copy GB/s"))
    for function in shown:
        timing = found[function]
        flops = factor * pairs * (1 if function.startswith("one SDPA") else present(case))
        rate, bandwidth = flops / timing.median, moved / timing.median / 1e9
        is_ours = function.removesuffix(PLANNED) in work.backends
        others = ("eager", "loop", "one SDPA", *work.backends)
        work.row(
            "times",
            **labels,
            backend=function,
            **{
                "ms median (p20-p80)": str(timing),
                **{f"x {o}": ratio(found[o], timing) if o in found else "" for o in others},
                "TFLOP/s": f"{rate / 1e12:.3g}",
                "of gemm": f"{rate / 1e12 / gemm:.0%}" if gemm else "",
                # Of what the fused kernels have to move: others move more.
                "GB/s": f"{bandwidth:.3g}" if is_ours else "",
                "of copy": f"{bandwidth / copy:.0%}" if is_ours and copy else "",
                "predicted ms": _range(predicted) if is_ours else "",
                "note": "",
                "_seconds": asdict(timing),
                "_beside": {n: asdict(t) for n, t in found.items() if n not in shown},
            },
        )
    for function, note in (notes or {}).items():
        work.row("times", **labels, backend=function, note=note, _seconds=None)


def _range(bounds: tuple[float, float] | None) -> str:
    return f"{bounds[0]:.3g}-{bounds[1]:.3g}" if bounds else ""


def rivals(label: str, prompts: int, region: str, work: Work) -> None:
    """Libraries' kernels beside ours; those that are compiled first come last."""
    name, case = case_of(label, prompts, region)
    guarded(work, f"rivals: {name}", _time_rivals, name, case)


def _time_rivals(work: Work, name: str, case: Case) -> None:
    work.doing(f"rivals: {name}")
    e = large_example(case, work.dtype, work.device)
    reference = Reference(e)
    known = {
        "loop": rival(loop, e, ""),
        "one SDPA": rival(one_sdpa, e, ""),
        **checked(work, e, reference, ""),
    }
    for group in (READY, COMPILED):
        functions, reasons = prepared(
            group, e, reference, lambda rival: work.doing(f"{rival} of {name}")
        )
        work.doing(f"{', '.join(functions)} of {name}")
        found = work.timed({**known, **functions}) if functions else {}
        time_rows(work, name, case, "forward", found, functions, reasons)


def host_time(work: Work) -> None:
    """Microseconds that the calling thread spends on a call of the smallest shape."""
    for backend in work.backends:
        work.check("host time", backend, partial(_host_time, work, backend))


def _host_time(work: Work, backend: str) -> str:
    case = TINY if work.dry_run else Case(seqlen_q=64, head_dim=40, prompts=1)
    e = example(case, half(work), work.device)
    functions: dict[str, Callable[[], object]] = {
        "one SDPA": rival(one_sdpa, e, ""),
        backend: ours(backend, e, ""),
        f"{backend}, gradient recorded": lambda: e.run(backend),
    }
    calls = 3 if work.dry_run else 200
    shown = []
    for name, function in functions.items():
        function()
        samples = []
        for _ in range(5):
            finish(work)
            start = time.perf_counter()
            for _ in range(calls):
                function()
            samples.append((time.perf_counter() - start) / calls)
        micros = statistics.median(samples) * 1e6
        work.row("host", call=name, **{"host us": f"{micros:.1f}"})
        shown.append(f"{name} {micros:.1f} us")
    if backend == "triton" and work.device == "cuda":
        left = direct.left_to_triton()
        assert not left, f"launches that Triton makes: {'; '.join(left)}"
    return ", ".join(shown)
