"""Blended attention against what one would write without it.

    python bench/bench_blended_attention.py [--dtype bfloat16] [--threads 2] [--cases sd15]
                                            [--matmul-precision medium]
    python bench/bench_blended_attention.py --min-keys 120 --regions none layout [--cpu-time]
    python bench/bench_blended_attention.py --overhead [--output FILE]

For every case and pass, the correctness of each backend comes first (the twice-eager rule on the
same sizes with at most 512 rows), then the times, interleaved in this process:

    eager      the formula as batched matrix products and a softmax
    compiled   eager through torch.compile
    loop       one scaled_dot_product_attention a prompt, blended
    one SDPA   a single plain prompt: what attention costs without the method
    <backend>  this library

Rivals know no regions: with them only the loop and one SDPA are timed again. regions.py tells what
the names of regions mean; "layout" is what users have. --cpu-time counts what
the calling thread takes of its core, for a machine that others use too. --overhead prints
what the smallest call costs, and the parts of it that are this library's own. --output adds to a
file, so that a table can be measured in parts (--cases).

Passes: forward; "dq+dweight", forward and the gradients that the weight optimiser needs; "all",
forward and every gradient. GFLOP/s counts the products that the formula needs (4, 10 and 14
head_dim a query, key and existing prompt). The share is of a 1024 x 1024 matrix product in the
same dtype.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from regions import REGIONS, with_regions
from timing import Table, Timing, cpu_details, interleave
from torch import Tensor

from stal_kernels import backends, blended_attention, blended_attention_ragged, plan, why_not
from stal_kernels.backends import names
from stal_kernels.checks import check_dense
from stal_kernels.testing import Case, Example, assert_within_twice_plain, example

SHAPES = {
    "sd15-64x64": Case(heads=8, seqlen_q=4096, head_dim=40),
    "sd15-32x32": Case(heads=8, seqlen_q=1024, head_dim=80),
    "sd15-16x16": Case(heads=8, seqlen_q=256, head_dim=160),
    "sd15-8x8": Case(heads=8, seqlen_q=64, head_dim=160),
    "sdxl-64x64": Case(heads=10, seqlen_q=4096, head_dim=64),
    # Levels of Stable Diffusion 1.5 on pictures of 1024 and 2048 pixels a side.
    "d80-64x64": Case(heads=8, seqlen_q=4096, head_dim=80),
    "d160-64x64": Case(heads=8, seqlen_q=4096, head_dim=160),
    "sdxl-32x32": Case(heads=20, seqlen_q=1024, head_dim=64),
    "pixart-alpha-32x32": Case(heads=16, seqlen_q=1024, seqlen_k=120, head_dim=72),
    "pixart-32x32": Case(heads=16, seqlen_q=1024, seqlen_k=300, head_dim=72),
    "sana-32x32": Case(heads=20, seqlen_q=1024, seqlen_k=300, head_dim=112),
    "kolors-64x64": Case(heads=10, seqlen_q=4096, seqlen_k=256, head_dim=64),
    "hunyuan-dit-32x32": Case(heads=16, seqlen_q=1024, seqlen_k=333, head_dim=88),
    # Video. wan-4096 and ltx2-1024 have fewer heads than the models: more only take longer.
    "ltx-128-keys": Case(heads=32, seqlen_q=1024, seqlen_k=128, head_dim=64),
    "ltx-256-keys": Case(heads=32, seqlen_q=1024, seqlen_k=256, head_dim=64),
    "wan-1024": Case(heads=12, seqlen_q=1024, seqlen_k=512, head_dim=128),
    "wan-4096": Case(heads=4, seqlen_q=4096, seqlen_k=512, head_dim=128),
    "ltx2-1024": Case(heads=8, seqlen_q=1024, seqlen_k=1024, head_dim=128),
}
PASSES = {"forward": (4, ""), "dq+dweight": (10, "qw"), "all": (14, "qkvw")}


def cases(
    pattern: str,
    prompts: list[int],
    *,
    min_keys: int = 0,
    regions: Iterable[str] = tuple(REGIONS),
) -> Iterator[tuple[str, Case]]:
    """The labels and cases that have `pattern` in their label and at least so many keys."""
    for name, shape in SHAPES.items():
        for p in prompts if shape.seqlen_k >= min_keys else ():
            for label, case in with_regions(shape, p, regions):
                if pattern in f"{name} {label}":
                    yield f"{name} {label}", case


def eager(q: Tensor, k: Tensor, v: Tensor, weight: Tensor) -> Tensor:
    scores = q.unsqueeze(1) @ k.mT * q.shape[-1] ** -0.5
    return (scores.softmax(-1) @ v * weight[:, :, None, :, None]).sum(1)


def loop(q: Tensor, k: Tensor, v: Tensor, weight: Tensor) -> Tensor:
    out = torch.zeros_like(q)
    for p in range(k.shape[1]):
        out = (
            out + F.scaled_dot_product_attention(q, k[:, p], v[:, p]) * weight[:, p, None, :, None]
        )
    return out


def one_sdpa(q: Tensor, k: Tensor, v: Tensor, weight: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k[:, 0], v[:, 0])


def rival(function: Callable[..., Tensor], e: Example, wanted: str) -> Callable[[], object]:
    """A rival has no regions: absent prompts get weight 0."""
    q, k, v, weight = (x.detach() for x in e.floats())
    if e.region is not None:
        weight = weight * e.region
    tensors = {"q": q, "k": k, "v": v, "w": weight.to(q.dtype)}
    if function is one_sdpa:
        wanted = wanted.replace("w", "")
    return with_gradients(lambda: function(*tensors.values()), tensors, e.dout, wanted)


def ours(backend: str, e: Example, wanted: str, *, planned: bool = False) -> Callable[[], object]:
    """planned: with a plan of the region that was made before, as `stal` draws."""
    q, k, v, weight = (x.detach() for x in e.floats())
    tensors = {"q": q, "k": k, "v": v, "w": weight}
    made = plan(e.region) if planned and e.region is not None else e.plan
    call = Example(q, k, v, weight, e.dout, None, None, e.region, None, made, None)
    return with_gradients(lambda: call.run(backend), tensors, e.dout, wanted)


def with_gradients(
    run: Callable[[], Tensor], tensors: dict[str, Tensor], dout: Tensor, wanted: str
) -> Callable[[], object]:
    if not wanted:
        return run
    inputs = [tensors[name].requires_grad_() for name in wanted]
    return lambda: torch.autograd.grad(run(), inputs, dout)


def matmul_rate(dtype: torch.dtype, clock: Callable[[], float]) -> float:
    """FLOP/s of a matrix product that fits the caches."""
    a = torch.randn(1024, 1024).to(dtype)
    a @ a
    return 2 * 1024**3 / interleave({"mm": lambda: a @ a}, clock=clock)["mm"].median


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument(
        "--matmul-precision",
        default="highest",
        choices=("highest", "medium"),
        help="what float32 products may round to, torch.set_float32_matmul_precision",
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cases", default="", help="only cases with this in their name")
    parser.add_argument("--min-keys", type=int, default=0, help="only cases with as many keys")
    parser.add_argument(
        "--regions",
        nargs="+",
        default=list(REGIONS),
        choices=list(REGIONS),
    )
    parser.add_argument("--prompts", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--passes", nargs="+", default=list(PASSES), choices=list(PASSES))
    parser.add_argument(
        "--backends", nargs="+", default=["cpu"], choices=names(), metavar="BACKEND"
    )
    parser.add_argument("--compiled", action="store_true", help="time torch.compile: it is slow")
    parser.add_argument(
        "--planned", action="store_true", help="also with a plan of regions, made before"
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--budget", type=float, default=3, help="seconds a row, after 5 rounds")
    parser.add_argument("--cpu-time", action="store_true", help="of one thread, not wall time")
    parser.add_argument("--output", type=Path, help="adds the rows to this JSON, and to an .md")
    parser.add_argument("--overhead", action="store_true", help="microseconds of the smallest call")
    arguments = parser.parse_args()
    if arguments.overhead:
        return overhead(arguments.rounds, arguments.output)
    chosen = list(
        cases(
            arguments.cases,
            arguments.prompts,
            min_keys=arguments.min_keys,
            regions=arguments.regions,
        )
    )
    if not chosen:
        parser.error(f"--cases must be part of a name such as {', '.join(SHAPES)}")
    if arguments.cpu_time and arguments.threads != 1:
        parser.error(f"--threads must be 1 with --cpu-time, got {arguments.threads}")
    for backend in arguments.backends:
        if reasons := why_not(backend):
            parser.error("; ".join(reasons))
    torch.set_num_threads(arguments.threads)
    torch.set_float32_matmul_precision(arguments.matmul_precision)
    dtype = getattr(torch, arguments.dtype)
    # float32 at medium precision runs the products of bfloat16, so their correctness is at stake.
    checked = dtype if arguments.matmul_precision == "highest" else torch.bfloat16

    clock = time.thread_time if arguments.cpu_time else time.perf_counter
    peak = matmul_rate(dtype, clock)
    table = Table(
        {
            "case": 30,
            "pass": 10,
            "backend": 10,
            "ms median (p20-p80)": 22,
            "x eager": 8,
            "x compiled": 10,
            "x loop": 8,
            "x one SDPA": 10,
            "GFLOP/s": 8,
            "of mm": 6,
        },
        dtype=arguments.dtype,
        **{"matmul precision": arguments.matmul_precision},
        clock="CPU time of the thread" if arguments.cpu_time else "wall",
        mm=f"{peak / 1e9:.0f} GFLOP/s",
    )
    command = (
        "python bench/bench_blended_attention.py --output ... --cases ... "
        f"--dtype {arguments.dtype} --threads {arguments.threads} "
        f"--matmul-precision {arguments.matmul_precision}"
    )
    if arguments.cpu_time:
        command += " --cpu-time"
    details = {
        "command": command,
        **cpu_details(),
    }
    for label, case in chosen:
        small = Case(**{**vars(case), "seqlen_q": min(case.seqlen_q, 512)})
        for backend in arguments.backends:
            assert_within_twice_plain(small, backend, checked, draws=1)
        add_rows(table, label, case, dtype, peak, clock, arguments)
        if arguments.output:
            key = ("case", "pass", "backend")
            table.merge(
                arguments.output, key, lambda row: row["backend"].split()[0] in names(), **details
            )
    return 0


def add_rows(
    table: Table,
    label: str,
    case: Case,
    dtype: torch.dtype,
    peak: float,
    clock: Callable[[], float],
    arguments: argparse.Namespace,
) -> None:
    """Times all passes of a case; `peak` is the FLOP/s of a matrix product."""
    e = example(case, dtype)
    pairs = case.batch * case.heads * case.seqlen_q * case.seqlen_k * case.head_dim
    for name in arguments.passes:
        factor, wanted = PASSES[name]
        functions = {"loop": rival(loop, e, wanted), "one SDPA": rival(one_sdpa, e, wanted)}
        if case.region is None:
            functions["eager"] = rival(eager, e, wanted)
            if arguments.compiled:
                torch.compiler.reset()
                functions["compiled"] = rival(torch.compile(eager), e, wanted)
        for backend in arguments.backends:
            functions[backend] = ours(backend, e, wanted)
            if arguments.planned and e.region is not None:
                functions[f"{backend} plan"] = ours(backend, e, wanted, planned=True)
        times = interleave(
            functions, rounds=arguments.rounds, budget_s=arguments.budget, clock=clock
        )
        for backend, timing in times.items():
            flops = factor * pairs * (1 if backend == "one SDPA" else present(case))
            ratios = {
                f"x {other}": ratio(times[other], timing) if other in times else ""
                for other in ("eager", "compiled", "loop", "one SDPA")
            }
            table.add(
                {
                    "case": label,
                    "pass": name,
                    "backend": backend,
                    "ms median (p20-p80)": str(timing),
                    **ratios,
                    "GFLOP/s": f"{flops / timing.median / 1e9:.0f}",
                    "of mm": f"{flops / timing.median / peak:.0%}",
                },
                seconds=timing,
                flops=flops,
                sizes=vars(case),
            )


def present(case: Case) -> float:
    """How many prompts exist at a row, on average."""
    small = Case(**{**vars(case), "batch": 1, "heads": 1, "seqlen_k": 1, "head_dim": 8})
    region = example(small, torch.float32).region
    return case.prompts if region is None else region.sum().item() / case.seqlen_q


def overhead(rounds: int, output: Path | None) -> int:
    """Microseconds of the smallest call, 8 x 8 with one prompt, in one thread."""
    torch.set_num_threads(1)
    e = example(Case(heads=1, seqlen_q=8, seqlen_k=8, head_dim=8, prompts=1), torch.float32)
    q, k, v, weight = (x.detach() for x in e.floats())
    region = torch.ones_like(weight, dtype=torch.bool)
    table = k[0], v[0], weight[0]
    prompt_ids, offsets = (torch.tensor(x, dtype=torch.int32) for x in ([0], [0, 1]))
    inputs = backends.Inputs(q, k, v, weight, None, None, None, None, None, 1.0)
    choice, out = backends.choose(inputs, "auto"), torch.empty_like(q)
    q_grad, (k0, v0) = q.clone().requires_grad_(), (k[:, 0], v[:, 0])
    functions: dict[str, Callable[[], object]] = {
        "SDPA": lambda: F.scaled_dot_product_attention(q, k0, v0),
        "ours": lambda: blended_attention(q, k, v, weight),
        "  checks": lambda: check_dense(q, k, v, weight, None, None, None, "auto"),
        "  choice": lambda: backends.choose(inputs, "auto"),
        "  allocation": lambda: torch.empty_like(q),
        "  call of the library": lambda: choice.backend.forward(inputs, choice.level, out),
        "ours, region": lambda: blended_attention(q, k, v, weight, region=region),
        "ours, ragged": lambda: blended_attention_ragged(q, *table, prompt_ids, offsets),
        "SDPA, gradient recorded": lambda: F.scaled_dot_product_attention(q_grad, k0, v0),
        "ours, gradient recorded": lambda: blended_attention(q_grad, k, v, weight),
    }
    command = "python bench/bench_blended_attention.py --overhead"
    report = Table({"call": 24, "us median (p20-p80)": 24}, command=command)
    # Short samples and many: most of them meet no interruption.
    times = interleave(functions, rounds=50 * rounds, sample_s=2e-4)
    for name, t in times.items():
        text = f"{t.median * 1e6:.1f} ({t.p20 * 1e6:.1f}-{t.p80 * 1e6:.1f})"
        report.add({"call": name, "us median (p20-p80)": text}, seconds=t)
    parts = sum(t.median for name, t in times.items() if name.startswith("  "))
    report.add({"call": "sum of the four parts", "us median (p20-p80)": f"{parts * 1e6:.1f}"})
    if output:
        report.merge(output, ("call",), lambda row: True, **cpu_details())
    return 0


def ratio(other: Timing, timing: Timing) -> str:
    """How many times faster than the other."""
    return f"{other.median / timing.median:.2f}"


if __name__ == "__main__":
    sys.exit(main())
