"""What our kernels should take on an H200, from their machine code, and what they took.

    python bench/kernel_model.py [--measured bench/results/gpu_h200.json]

cost_model.py says what no kernel can beat; this says what those that were compiled will take. A
program (a block of threads) owns `rows` pixels and walks the prompts that exist there. For each:

    chain       what one warp waits for: its instructions, and each wgmma until it has ended
    shared      what the programs of a multiprocessor take of it together: tensor cores plus
                exponentials (which hardly overlap), or issue slots, or bytes of the second level
    a prompt    the larger of the two; loads that the kernel waits for come on top
    a program   a fixed time, for its address arithmetic, its block of q and its store
    a kernel    launch + waves * (a program + its prompts)

Instructions are counted in the machine code that Triton 3.6 makes for compute capability 9.0, in
the loop over prompts. The seven `Constants` are fitted to the run (least squares of the logarithms,
two figures): each is something that a kernel waits for. What is said of kernels that never ran is a
prediction.

--kernel says it of another one at head_dim 64: rows, warps, resident, instructions, wgmmas.
"""

import argparse
import functools
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from gpu_work import SHAPES
from regions import REGIONS, with_regions

from stal_kernels import plan
from stal_kernels.testing import Case, example

MEASURED = Path(__file__).parent / "results" / "gpu_h200.json"

# NVIDIA H200: the CUDA C++ Programming Guide; the boost clock under load.
_CLOCK = 1.755e9
_MULTIPROCESSORS = 132
_MULTIPLY_ADDS = 2048  # 16-bit, a clock and multiprocessor
_EXPONENTIALS = 16
_SCHEDULERS = 4
# Of the second level, a clock and multiprocessor: 6.0 TB/s, at which K and V came in that run.
_L2_BYTES = 26
# Of device memory, a clock and multiprocessor: the run's rate of a copy, 4245 GB/s.
_MEMORY_BYTES = 4245e9 / _CLOCK / _MULTIPROCESSORS


@dataclass(frozen=True)
class Constants:
    """What was fitted to the run.

    launch: seconds of a kernel in a CUDA graph beyond its programs. gap: of each further one.
    program: seconds that a program takes beside its prompts.
    instruction: clocks between two of a warp. wgmma: clocks until the next may use its result.
    absent: seconds to find that a prompt exists nowhere in a tile, where nothing else is done.
    load: seconds until a load has come that nothing hides.
    """

    launch: float = 4.7e-6
    gap: float = 2.4e-6
    program: float = 2.7e-6
    instruction: float = 2.5
    wgmma: float = 69.0
    absent: float = 0.47e-6
    load: float = 0.36e-6


@dataclass(frozen=True)
class Kernel:
    """A kernel as it was compiled.

    rows: of a program; resident: programs that a multiprocessor holds, by registers and memory.
    instructions, wgmmas: of a warp, for one prompt.
    waits: how often it waits for loads of keys, which a pipeline hides.
    finds: whether it looks at each prompt of an element to learn whether it exists.
    persistent: programs walk all tiles, the next one's q under way; K and V come from L2 once.
    """

    rows: int
    warps: int
    resident: int
    instructions: float
    wgmmas: float
    waits: int = 0
    finds: bool = False
    persistent: bool = False


# By pass, head_dim, seqlen_k and whether there are regions.
TODAY: dict[tuple[str, int, int, bool], Kernel] = {
    ("forward", 40, 77, False): Kernel(128, 4, 2, 933, 38),
    ("forward", 64, 77, False): Kernel(64, 4, 3, 502, 13),
    ("forward", 80, 77, False): Kernel(64, 4, 2, 572, 20),
    ("forward", 128, 77, False): Kernel(64, 4, 2, 541, 26),
    ("forward", 160, 77, False): Kernel(64, 4, 1, 623, 35),
    # Tiles of 32 keys, of which each has so many.
    ("forward", 128, 256, False): Kernel(64, 4, 2, 8 * 295, 8 * 12),
    # K, then V.
    ("forward", 40, 77, True): Kernel(64, 4, 3, 657, 19, waits=2, finds=True),
    ("forward", 64, 77, True): Kernel(64, 4, 3, 665, 22, waits=2, finds=True),
    ("pixels", 40, 77, False): Kernel(64, 4, 2, 712, 22),
    ("pixels", 64, 77, False): Kernel(64, 4, 2, 713, 21),
    ("pixels", 80, 77, False): Kernel(64, 4, 2, 751, 30),
    # Two walks over tiles of 16 keys, and of 32.
    ("pixels", 160, 77, False): Kernel(64, 4, 2, 132 + 5 * (333 + 297), 5 * 45, waits=10),
    ("pixels", 128, 256, False): Kernel(64, 4, 2, 207 + 8 * (276 + 250), 8 * 34),
    # K, V and K once more.
    ("pixels", 40, 77, True): Kernel(64, 4, 2, 826, 22, waits=3, finds=True),
    ("pixels", 64, 77, True): Kernel(64, 4, 2, 784, 21, waits=3, finds=True),
}
# Other forward kernels at head_dim 64. None of them ran; "the same, persistent" was not compiled.
TRIALS: dict[str, Kernel] = {
    "128 rows, 8 warps, 128 registers": Kernel(128, 8, 2, 506, 13),
    "masks on the last keys alone": Kernel(64, 4, 3, 417, 13),
    "the same, 128 rows, 8 warps": Kernel(128, 8, 2, 417, 13),
    "the same, persistent": Kernel(128, 8, 2, 417, 13, persistent=True),
    "prompts of a bit mask": Kernel(64, 4, 2, 479, 22),
    "keys of 4 prompts resident": Kernel(128, 8, 1, 360, 13, persistent=True),
    "keys of 5 prompts resident, a branch for regions": Kernel(128, 8, 1, 466, 13, persistent=True),
}


@functools.cache
def prompts_met(case: Case, rows: int, planned: bool = False) -> float:
    """How many prompts exist anywhere in a tile of so many rows, on average."""
    region = example(case, torch.float32).region
    if region is None:
        return float(case.prompts)
    exists = region[0]
    if planned:
        exists = exists[:, plan(region)[0][0].long()]
    tiles = math.ceil(case.seqlen_q / rows)
    padded = torch.nn.functional.pad(exists, (0, tiles * rows - case.seqlen_q))
    return float(padded.view(-1, tiles, rows).any(-1).sum().item() / tiles)


def seconds(
    kernel: Kernel, case: Case, constants: Constants, *, products: int = 2, planned: bool = False
) -> float:
    """Of one kernel, launch included.

    Args:
        products: of pixels, keys and head_dim each: 2 forward, 3 in `pixel_gradients`.
        planned: whether its tiles follow a plan of the regions.
    """
    small = replace(case, batch=1, heads=1, seqlen_k=1, head_dim=8, planned=False)
    met = prompts_met(small, kernel.rows, planned)
    keys, width = _up(case.seqlen_k), _up(case.head_dim)
    tensor = kernel.rows * keys * width * products / _MULTIPLY_ADDS
    exponentials = kernel.rows * keys / _EXPONENTIALS
    issue = kernel.instructions * kernel.warps / _SCHEDULERS
    l2 = 0 if kernel.persistent else 4 * case.seqlen_k * case.head_dim / _L2_BYTES
    chain = kernel.instructions * constants.instruction + kernel.wgmmas * constants.wgmma
    shared = kernel.resident * max(tensor + exponentials, issue, l2)
    if kernel.waits:
        chain += kernel.resident * l2
    prompt = max(chain, shared) / _CLOCK + kernel.waits * constants.load
    absent = (case.prompts - met) * constants.absent if kernel.finds else 0.0
    moved = kernel.rows * (2 * products - 2) * case.head_dim * 2
    memory = kernel.resident * moved / _MEMORY_BYTES / _CLOCK
    tiles = math.ceil(case.seqlen_q / kernel.rows) * case.heads * case.batch
    waves = math.ceil(tiles / (_MULTIPROCESSORS * kernel.resident))
    if kernel.persistent:
        # The next tile of q is under way meanwhile.
        body = constants.program + waves * max(met * prompt, memory)
    else:
        body = waves * (max(constants.program, memory) + met * prompt + absent)
    return constants.launch + body


def of_pass(name: str, case: Case, constants: Constants) -> float | None:
    """Seconds of a pass with today's kernels; None: they are not in TODAY."""
    regions = case.region is not None
    forward = TODAY.get(("forward", case.head_dim, case.seqlen_k, regions))
    if forward is None:
        return None
    total = seconds(forward, case, constants)
    if name == "forward":
        return total
    pixels = TODAY.get(("pixels", case.head_dim, case.seqlen_k, regions))
    if pixels is None or name != "dq+dweight":
        return None
    # Its launch follows another, and a sum over heads follows it.
    stats = 8 * case.batch * case.heads * case.prompts * case.seqlen_q
    total += seconds(pixels, case, constants, products=3) - constants.launch + 2 * constants.gap
    return total + stats / (_MEMORY_BYTES * _CLOCK * _MULTIPROCESSORS)


def _up(n: int) -> int:
    return math.ceil(n / 16) * 16


@dataclass(frozen=True)
class Row:
    """Seconds of a case and pass in a run. model: None where it makes no claim."""

    case: str
    pass_name: str
    measured: float
    model: float | None

    @property
    def ratio(self) -> float:
        assert self.model is not None
        return self.model / self.measured


def compared(record: dict[str, Any], constants: Constants) -> list[Row]:
    """The rows of backend triton in a report of gpu_check.py."""
    known = {
        f"{label} {suffix}": case
        for label, shape in SHAPES.items()
        for count in (1, 2, 4, 8)
        for suffix, case in with_regions(shape, count, list(REGIONS))
    }
    found = []
    for row in record["times"]:
        if row["backend"] != "triton" or row["_seconds"] is None:
            continue
        case, name = known[row["case"]], row["pass"]
        model = of_pass(name, case, constants)
        found.append(Row(row["case"], name, row["_seconds"]["median"], model))
    return found


# Columns of the second table: prompts, regions, whether they are planned.
_ASKED = {
    "p1": (1, "none", False),
    "p4": (4, "none", False),
    "global + 4 boxes": (5, "boxes", False),
    "the same, planned": (5, "boxes", True),
}


def predicted(kernel: Kernel, constants: Constants) -> list[float]:
    """Seconds of a forward kernel at large-d64, for each column of the second table."""
    found = []
    for prompts, region, planned in _ASKED.values():
        ((_, case),) = with_regions(SHAPES["large-d64"], prompts, [region])
        found.append(seconds(kernel, case, constants, planned=planned))
    return found


def main() -> None:
    """Prints the model beside a run, then what it says of kernels that never ran."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--measured", type=Path, default=MEASURED)
    names = ("ROWS", "WARPS", "RESIDENT", "INSTRUCTIONS", "WGMMAS")
    parser.add_argument("--kernel", nargs=5, type=int, metavar=names)
    parser.add_argument("--persistent", action="store_true", help="of --kernel")
    arguments = parser.parse_args()
    record = json.loads(arguments.measured.read_text(encoding="utf-8"))
    constants = Constants()
    rows = compared(record, constants)
    print(f"| {record['machine']['gpu']} | pass | measured us | model us | model / measured |")
    print("|---|---|---|---|---|")
    for row in rows:
        model = f"{row.model * 1e6:.1f} | {row.ratio:.2f}" if row.model else "not counted |"
        print(f"| {row.case} | {row.pass_name} | {row.measured * 1e6:.1f} | {model} |")
    claimed = [row for row in rows if row.model is not None]
    near = [row for row in claimed if 0.75 <= row.ratio <= 1.25]
    print(f"\n{len(near)} of {len(claimed)} rows are within 25%, {len(rows)} in all.\n")
    print("| large-d64, forward, predicted ms | " + " | ".join(_ASKED) + " |")
    print("|---" * (1 + len(_ASKED)) + "|")
    regions = TODAY["forward", 64, 77, True]
    plain = predicted(TODAY["forward", 64, 77, False], constants)[:2]
    table = {"today": [*plain, *predicted(regions, constants)[2:]]}
    others = dict(TRIALS)
    if arguments.kernel is not None:
        others["--kernel"] = Kernel(*arguments.kernel, persistent=arguments.persistent)
    table |= {name: predicted(kernel, constants) for name, kernel in others.items()}
    for name, times in table.items():
        print(f"| {name} | {' | '.join(f'{t * 1e3:.3f}' for t in times)} |")


if __name__ == "__main__":
    main()
