"""Speed of the operator beside what one would write without it, by pytest-benchmark.

    pytest bench -n 0 --benchmark-json FILE [-k forward] [--cases sd15-64x64]

Cases, passes and rivals are those of bench_blended_attention.py: a few cases, or with --cases all
that have a text in their name. Backends that run here are compared with plain PyTorch first (the
twice-eager rule), on at most 512 rows. The CPU computes float32; a GPU, if there is one, bfloat16
in CUDA graphs, with its caches as the call before left them. No time is asserted, and functions are
timed one after another: a machine that others use too is better measured by
bench_blended_attention.py, which interleaves them. Under pytest-xdist, which `-n 0` leaves out,
pytest-benchmark measures nothing.
"""

import functools

import pytest
import torch
from bench_blended_attention import PASSES, cases, eager, loop, one_sdpa, ours, rival
from timing import captured

from stal_kernels import why_not
from stal_kernels.backends import names
from stal_kernels.testing import Case, Example, assert_within_twice_plain, example

FEW = (
    "sd15-16x16 p5",
    "sd15-32x32 p1",
    "sd15-32x32 p5",
    "sd15-32x32 p5 global+layout",
    "sdxl-32x32 p5 global+layout",
)
RIVALS = {"eager": eager, "loop": loop, "one SDPA": one_sdpa}
DTYPES = {"cpu": torch.float32, "cuda": torch.bfloat16}


def backends_of(device: str) -> list[str]:
    """The fast ones that run on it, each at its best level."""
    q = torch.empty(1, 1, 1, 8, device=device)
    fast = [name for name in names() if ":" not in name and name != "reference"]
    return [name for name in fast if not why_not(name, q)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    pattern = metafunc.config.getoption("cases")
    chosen = [(n, c) for n, c in cases(pattern, [1, 5]) if pattern or n in FEW]
    values = [
        pytest.param(
            device, label, case, pass_name, name, id=f"{device}-{label}-{pass_name}-{name}"
        )
        for device in ("cpu", "cuda")[: 1 + torch.cuda.is_available()]
        for label, case in chosen
        for pass_name in PASSES
        for name in (*RIVALS, *backends_of(device))
        if name != "eager" or case.region is None  # it knows no regions
    ]
    metafunc.parametrize(("device", "label", "case", "pass_name", "name"), values)


@functools.lru_cache(1)
def example_of(case: Case, device: str) -> Example:
    return example(case, DTYPES[device], device)


@functools.cache
def check(case: Case, backend: str, device: str) -> None:
    small = Case(**{**vars(case), "seqlen_q": min(case.seqlen_q, 512)})
    assert_within_twice_plain(small, backend, DTYPES[device], device=device, draws=1)


def test_speed(benchmark, device: str, label: str, case: Case, pass_name: str, name: str) -> None:
    e, wanted = example_of(case, device), PASSES[pass_name][1]
    if name in RIVALS:
        function = rival(RIVALS[name], e, wanted)
    else:
        check(case, name, device)
        function = ours(name, e, wanted)
    if device == "cuda":
        graph = captured(function)

        def function() -> None:
            graph.replay()
            torch.cuda.synchronize()

    benchmark.group = f"{device} {label} {pass_name}"
    threads = torch.get_num_threads() if device == "cpu" else None
    benchmark.extra_info.update(vars(case), backend=name, threads=threads)
    benchmark(function)
