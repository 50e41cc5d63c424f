"""How near the cpu backend comes to what the arithmetic of this CPU allows.

    python bench/cpu_limit.py [--dtype bfloat16] [--threads 2] [--cases "64x64 p5"]

Two things bound a kernel whose tiles stay in the caches: the products of the formula and the
exponentials of the softmax. A small program (cpu_limit.cpp), compiled when this one runs with the
kernels' own vectors, measures both rates on all threads at once: products whose factors and sums
stay in registers, and the kernel's own polynomial on values in the first cache level. The limit is
the sum of both times,

    4 (forward) or 10 (dq+dweight) head_dim FLOP, 1 or 2 exponentials a query, key, existing prompt

and leaves out maxima, sums, rounding, every load and store, and all that happens once a call. Each
row measures the call, both rates and torch's own matrix product (1024 x 1024, "mm") in turn.
--output adds to a file.
"""

import argparse
import ctypes
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from bench_blended_attention import PASSES, cases, ours, present
from timing import Table, cpu_details, interleave

from stal_kernels import why_not
from stal_kernels.backends import cpu
from stal_kernels.testing import Case, assert_within_twice_plain, example

ROOT = Path(__file__).parents[1]
# The level that computes float32 where it is another, and the macros of levels of bfloat16 pairs.
_SINGLE = {"amx": "avx512", "avx512_bf16": "avx512"}
_PAIRS = {
    "amx": "-DSTAL_LEVEL_AVX512 -DSTAL_LEVEL_AMX -DSTAL_PAIRS",
    "avx512_bf16": "-DSTAL_LEVEL_AVX512 -DSTAL_LEVEL_AVX512_BF16 -DSTAL_PAIRS",
}
# Exponentials a query, key and existing prompt: the backward pass computes them again.
_EXPS = {"forward": 1, "dq+dweight": 2}
_VALUES = 4096  # 16 KiB
_ROUNDS = 20_000  # about a millisecond of either


class Rates:
    """The two measurements, on all threads at once, as functions to be timed.

    Raises:
        PermissionError: the operating system keeps the instructions of the level from this process.
    """

    def __init__(self, level: str, threads: int) -> None:
        self._level, self._library = level, _compile(level)
        self._library.FlopsARound.restype = ctypes.c_int64
        self._library.Multiply.restype = ctypes.c_bool
        self._threads = threads
        self._zeros = torch.zeros(512)
        self._values = torch.linspace(-20, 0, _VALUES)
        self.flops = _ROUNDS * self._library.FlopsARound() * threads
        self.exps = _ROUNDS // 100 * _VALUES * threads
        self.multiply()  # what is not permitted is known before anything is measured

    def multiply(self) -> None:
        zeros, rounds = ctypes.c_void_p(self._zeros.data_ptr()), ctypes.c_int64(_ROUNDS)
        if not self._library.Multiply(zeros, rounds, self._threads):
            raise PermissionError(
                f"the operating system gives no permission to use the instructions of {self._level}"
            )

    def exponentiate(self) -> None:
        x, count = ctypes.c_void_p(self._values.data_ptr()), ctypes.c_int64(_VALUES)
        self._library.Exponentiate(x, count, ctypes.c_int64(_ROUNDS // 100), self._threads)


def command(level: str) -> list[str]:
    """The compiler's command line, up to what it makes of the sources and where."""
    macros = _PAIRS.get(level, f"-DSTAL_LEVEL_{level.upper()}")
    # As setup.py.
    compiler = (
        "c++ -std=c++17 -O3 -march=native -fPIC -fvisibility=hidden -ffp-contract=fast "
        f"-fno-math-errno -fopenmp -Wno-psabi {macros}"
    )
    sources = [str(ROOT / name) for name in ("bench/cpu_limit.cpp", "csrc/cpu/parallel.cpp")]
    return [*shlex.split(compiler), "-I", str(ROOT / "csrc"), *sources]


def _compile(level: str) -> ctypes.CDLL:
    with tempfile.TemporaryDirectory() as folder:
        library = str(Path(folder, "cpu_limit.so"))
        subprocess.run([*command(level), "-shared", "-o", library], check=True)
        return ctypes.CDLL(library)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cases", default="64x64", help="only cases with this in their name")
    parser.add_argument("--prompts", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--passes", nargs="+", default=list(_EXPS), choices=list(_EXPS))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path, help="adds the rows to this JSON, and to an .md")
    arguments = parser.parse_args()
    if reasons := why_not("cpu"):
        parser.error("; ".join(reasons))
    chosen = list(cases(arguments.cases, arguments.prompts))
    if not chosen:
        parser.error(f"--cases must be part of a case's name, got {arguments.cases}")
    torch.set_num_threads(arguments.threads)
    dtype = getattr(torch, arguments.dtype)
    level = cpu._best_level()
    if dtype == torch.float32:
        level = _SINGLE.get(level, level)
    try:
        rates = Rates(level, arguments.threads)
    except PermissionError as error:
        parser.error(str(error))
    table = Table(
        {
            "case": 30,
            "pass": 10,
            "ms median (p20-p80)": 22,
            "ms products": 11,
            "ms exps": 7,
            "ms limit": 8,
            "of limit": 8,
            "GFLOP/s": 8,
            "G exps/s": 8,
            "mm GFLOP/s": 10,
        },
        dtype=arguments.dtype,
        level=level,
    )
    details = {
        "command": f"python bench/cpu_limit.py --output ... --dtype {arguments.dtype} "
        f"--threads {arguments.threads} --cases ...",
        **cpu_details(),
    }
    for label, case in chosen:
        small = Case(**{**vars(case), "seqlen_q": min(case.seqlen_q, 512)})
        assert_within_twice_plain(small, "cpu", dtype, draws=1)
        for name in arguments.passes:
            add_row(table, label, case, name, dtype, rates, arguments.rounds)
        if arguments.output:
            table.merge(arguments.output, ("case", "pass"), lambda row: True, **details)
    return 0


def add_row(
    table: Table, label: str, case: Case, name: str, dtype: torch.dtype, rates: Rates, rounds: int
) -> None:
    factor, wanted = PASSES[name]
    a = torch.randn(1024, 1024).to(dtype)
    times = interleave(
        {
            "cpu": ours("cpu", example(case, dtype), wanted),
            "products": rates.multiply,
            "exps": rates.exponentiate,
            "mm": lambda: a @ a,
        },
        rounds=rounds,
    )
    pairs = case.batch * case.heads * case.seqlen_q * case.seqlen_k * present(case)
    flops_s = rates.flops / times["products"].median
    exps_s = rates.exps / times["exps"].median
    products, exps = factor * pairs * case.head_dim / flops_s, _EXPS[name] * pairs / exps_s
    table.add(
        {
            "case": label,
            "pass": name,
            "ms median (p20-p80)": str(times["cpu"]),
            "ms products": f"{products * 1e3:.3g}",
            "ms exps": f"{exps * 1e3:.3g}",
            "ms limit": f"{(products + exps) * 1e3:.3g}",
            "of limit": f"{(products + exps) / times['cpu'].median:.0%}",
            "GFLOP/s": f"{flops_s / 1e9:.0f}",
            "G exps/s": f"{exps_s / 1e9:.1f}",
            "mm GFLOP/s": f"{2 * 1024**3 / times['mm'].median / 1e9:.0f}",
        },
        seconds=times["cpu"],
        limit_s=products + exps,
        sizes=vars(case),
    )


if __name__ == "__main__":
    sys.exit(main())
