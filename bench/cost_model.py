"""How long blended attention should take on a GPU that is not at hand.

    python bench/cost_model.py [--dtype bfloat16] [--passes forward] [--batch 4]
    python bench/cost_model.py --measured bench/results/gpu_check.json

Three things can bound a kernel that reads q once and writes out once: bytes moved, tensor-core
multiply-adds issued (those of padding included), and the exponentials of the softmax. The
prediction is a range: from perfect overlap (the largest of the three) to none (their sum).
Beside it stands what the three other ways to write the same thing would have to move:

    eager      batched products and a softmax: scores and K + 1 outputs go through memory
    loop       one fused attention a prompt, then a multiplication and an addition
    compiled   eager with its elementwise parts fused, the products still calls of their own

Tensor cores and exponentials hardly overlap in practice: their sum gives FlashAttention's published
rates within 5%. What else our kernels wait for is in kernel_model.py.

With --measured, the medians of bench/gpu_check.py stand beside the predictions.
"""

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench_blended_attention import PASSES, cases, present

from stal_kernels.testing import Case


@dataclass(frozen=True)
class Chip:
    """Published peaks of a chip.

    tensor_flops: dense, 16-bit inputs, float32 accumulation, a second.
    bandwidth: bytes of device memory a second.
    exponentials: a second; 16 a clock and multiprocessor (CUDA C++ Programming Guide, "Throughput
        of Native Arithmetic Instructions", compute capabilities 8.0 and 9.0) at the boost clock.
    l2: bytes of second-level cache.
    """

    name: str
    tensor_flops: float
    bandwidth: float
    exponentials: float
    l2: float


# NVIDIA's data sheets of the SXM boards: A100 80 GB, H100, H200.
CHIPS = (
    Chip("A100", 312e12, 2.039e12, 16 * 108 * 1.41e9, 40e6),
    Chip("H100", 989e12, 3.35e12, 16 * 132 * 1.83e9, 50e6),
    Chip("H200", 989e12, 4.8e12, 16 * 132 * 1.83e9, 50e6),
)
# Without tensor cores float32 products run at the rate of the ordinary units, as a share of the
# 16-bit tensor rate (19.5 of 312 and 67 of 989 TFLOP/s).
_FLOAT32_SHARE = {"A100": 19.5 / 312, "H100": 67 / 989, "H200": 67 / 989}
# Tensor cores take multiples of 16 along an inner axis, 8 along an outer one; tiles are split so
# that no axis is padded further.
_GRAIN = 16


@dataclass(frozen=True)
class Work:
    """What one call needs: bytes of memory traffic, useful and issued FLOP, exponentials."""

    bytes: float
    flops: float
    issued: float
    exponentials: float

    def bounds(self, chip: Chip, itemsize: int) -> dict[str, float]:
        """Seconds that each resource needs at its peak."""
        rate = chip.tensor_flops * (_FLOAT32_SHARE[chip.name] if itemsize == 4 else 1.0)
        return {
            "memory": self.bytes / chip.bandwidth,
            "products": self.issued / rate,
            "exponentials": self.exponentials / chip.exponentials,
        }


def work(case: Case, itemsize: int, wanted: str = "") -> Work:
    """The fused kernels' work.

    Args:
        case: sizes and regions.
        itemsize: bytes of an element of q, k, v.
        wanted: gradients, of "q", "k", "v", "w"; "" for the forward pass alone.
    """
    rows = case.batch * case.heads * case.seqlen_q
    pairs = rows * case.seqlen_k * present(case)
    padding = _up(case.seqlen_k) / case.seqlen_k * _up(case.head_dim) / case.head_dim
    factor = _factor(wanted)
    q_bytes = rows * case.head_dim * itemsize
    kv_bytes = 2 * case.batch * case.prompts * case.heads * case.seqlen_k * case.head_dim * itemsize
    weight_bytes = case.batch * case.prompts * case.seqlen_q * (4 + (case.region is not None))
    total = 2 * q_bytes + kv_bytes + weight_bytes
    passes = 1
    if wanted:
        # The second kernel reads q, dout, K, V and weight, and writes dq and a partial dweight a
        # head.
        total += 3 * q_bytes + kv_bytes + weight_bytes * (1 + case.heads)
        passes += 1
    if "k" in wanted or "v" in wanted:
        total += 2 * q_bytes + 2 * kv_bytes + weight_bytes
        passes += 1
    return Work(
        bytes=total,
        flops=factor * pairs * case.head_dim,
        issued=factor * pairs * case.head_dim * padding,
        exponentials=passes * rows * _up(case.seqlen_k) * present(case),
    )


def rival_bytes(case: Case, itemsize: int) -> dict[str, float]:
    """Bytes that the forward passes of eager, loop and compiled move (all prompts everywhere)."""
    rows = case.batch * case.heads * case.seqlen_q
    q_bytes = rows * case.head_dim * itemsize
    kv_bytes = 2 * case.batch * case.prompts * case.heads * case.seqlen_k * case.head_dim * itemsize
    scores = rows * case.seqlen_k * case.prompts * itemsize
    outs = q_bytes * case.prompts
    return {
        # Expanded q is copied for the batched product; scores: product, scale, softmax, product;
        # outputs: product, times weight, sum.
        "eager": q_bytes + 2 * outs + kv_bytes + 6 * scores + 4 * outs + q_bytes,
        # A prompt: read q, write its output; multiply; add to the accumulator.
        "loop": case.prompts * (2 + 2 + 3) * q_bytes + kv_bytes,
        "compiled": q_bytes + 2 * outs + kv_bytes + 4 * scores + 2 * outs + q_bytes,
    }


def _factor(wanted: str) -> int:
    return {frozenset(names): factor for factor, names in PASSES.values()}[frozenset(wanted)]


def _up(n: int) -> int:
    return math.ceil(n / _GRAIN) * _GRAIN


def rows(dtype: str, passes: list[str], batch: int, pattern: str) -> Iterator[dict[str, str]]:
    itemsize = 4 if dtype == "float32" else 2
    for label, shape in cases(pattern, [1, 4, 8]):
        case = Case(**{**vars(shape), "batch": batch})
        for name in passes:
            need = work(case, itemsize, PASSES[name][1])
            cells = {
                "case": label,
                "pass": name,
                "MB": f"{need.bytes / 1e6:.1f}",
                "issued/useful": f"{need.issued / need.flops:.2f}",
            }
            for chip in CHIPS:
                bounds = need.bounds(chip, itemsize)
                bound = max(bounds, key=lambda key: bounds[key])
                low, high = max(bounds.values()), sum(bounds.values())
                cells[f"{chip.name} us"] = f"{low * 1e6:.1f}-{high * 1e6:.1f} {bound}"
            if name == "forward":
                for rival, moved in rival_bytes(case, itemsize).items():
                    cells[f"{rival} MB"] = f"{moved / 1e6:.0f}"
            yield cells


def predicted_ms(case: Case, dtype: str, wanted: str, gpu: str) -> tuple[float, float] | None:
    """The predicted range in milliseconds on a chip whose name is part of `gpu`, else None."""
    itemsize = 4 if dtype == "float32" else 2
    for chip in CHIPS:
        if chip.name in gpu:
            bounds = work(case, itemsize, wanted).bounds(chip, itemsize)
            return max(bounds.values()) * 1e3, sum(bounds.values()) * 1e3
    return None


def show(table: list[dict[str, str]]) -> None:
    columns = list(dict.fromkeys(key for row in table for key in row))
    widths = {c: max(len(c), *(len(row.get(c, "")) for row in table)) for c in columns}
    for row in [dict(zip(columns, columns, strict=True)), *table]:
        first, *others = columns
        line = f"{row[first]:<{widths[first]}}"
        print(line + "".join(f"  {row.get(c, ''):>{widths[c]}}" for c in others))


def main() -> None:
    """Prints the predictions, beside measurements if there are any."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--passes", nargs="+", choices=PASSES, default=list(PASSES))
    parser.add_argument("--batch", type=int, default=4, help="pictures, both halves counted")
    parser.add_argument("--cases", default="", help="only those with this in the name")
    parser.add_argument("--measured", type=Path, help="JSON of bench/gpu_check.py")
    arguments = parser.parse_args()
    if arguments.measured is not None:
        record = json.loads(arguments.measured.read_text(encoding="utf-8"))
        print(f"measured on {record['machine']['gpu']}")
        keys = ("case", "dtype", "pass", "backend", "ms median (p20-p80)", "predicted ms")
        show([{k: r[k] for k in keys} for r in record["times"] if r.get("predicted ms")])
        return
    table = list(rows(arguments.dtype, arguments.passes, arguments.batch, arguments.cases))
    if not table:
        parser.error(f"--cases must be part of a case's name, got {arguments.cases}")
    show(table)


if __name__ == "__main__":
    main()
