"""Microseconds of the calling thread in a call of the Triton backend, without a GPU.

    python bench/bench_launch.py [--output bench/results/launch_zen3.json]

Triton compiles the kernels as for an H200 and launches them over cuda_stub.c, which runs nothing:
what is timed is everything but the driver and torch.library. "before" is Triton's way on the
current device, `kernel[grid](...)`; "after" is `launches.run`. All are timed in turn in one
process, in the time of the thread, which leaves out what other programs take of a core.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cuda_stub
import torch
from timing import Table, cpu_details, interleave

from stal_kernels import backends, checks, library
from stal_kernels.backends import Inputs
from stal_kernels.backends.triton import launches
from stal_kernels.backends.triton.launches import Launch
from stal_kernels.testing import Case, Example, example

_CAPABILITY = (9, 0)
_DEVICE = torch.device("cuda", 0)
# As the step "host time" of gpu_check.py times.
SMALLEST = Case(seqlen_q=64, head_dim=40, prompts=1)
PLANNED = Case(seqlen_q=64, head_dim=40, prompts=4, region="boxes", planned=True)


def by_triton(launch: Launch) -> None:
    with torch.cuda.device(0):
        launch.kernel[(launch.programs,)](*launch.arguments, **launch.options)


def inputs_of(e: Example) -> Inputs:
    tensors = e.prompt_ids, e.offsets, e.region, e.key_lengths
    return Inputs(e.q, e.k, e.v, e.weight, *tensors, e.plan, 0.125)


def call(e: Example, launch: Callable[[Launch], None]) -> None:
    """A forward pass from the implementation of the operator down to the launch."""
    inputs = inputs_of(e)
    # Tensors on the CPU have no other backend; the choice is kept as that of a GPU would be.
    backends.choose(inputs, "cpu")
    checks.check_inputs(inputs, values=False)
    launch(launches.forward_launch(inputs, library._empty_like(e.q), _CAPABILITY))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--output", type=Path, help="JSON file; Markdown beside it")
    arguments = parser.parse_args()
    cuda_stub.install()
    direct = partial(launches.run, device=_DEVICE)
    functions: dict[str, Callable[[], object]] = {}
    for name, case in (("", SMALLEST), (", plan", PLANNED)):
        e = example(case, torch.float16)
        inputs, out = inputs_of(e), torch.empty_like(e.q)
        launch = launches.forward_launch(inputs, out, _CAPABILITY)
        functions |= {
            f"launch{name}, before": partial(by_triton, launch),
            f"launch{name}, after": partial(direct, launch),
            f"call{name}, before": partial(call, e, by_triton),
            f"call{name}, after": partial(call, e, direct),
        }
        if not name:
            functions |= {
                "  checks": partial(checks.check_inputs, inputs, values=False),
                "  choice": partial(backends.choose, inputs, "cpu"),
                "  allocation": partial(library._empty_like, e.q),
                "  sizes and strides": partial(launches.forward_launch, inputs, out, _CAPABILITY),
            }
    for function in functions.values():
        for _ in range(2):
            function()
    found = interleave(functions, rounds=arguments.rounds, sample_s=5e-3, clock=time.thread_time)
    import triton

    settings = {"triton": triton.__version__, "rounds": arguments.rounds}
    table = Table({"what": 24, "us median (p20-p80)": 22}, **settings)
    for name, t in found.items():
        shown = f"{t.median * 1e6:.1f} ({t.p20 * 1e6:.1f}-{t.p80 * 1e6:.1f})"
        table.add({"what": name, "us median (p20-p80)": shown}, seconds=t)
    if arguments.output is not None:
        command = "python bench/bench_launch.py"
        details = {"command": command, **cpu_details()}
        table.merge(arguments.output, ("what",), lambda row: True, **details)


if __name__ == "__main__":
    main()
