"""Launches of Triton's kernels without Triton: as far as this process has no GPU and no stub."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from stal_kernels.backends import Inputs
from stal_kernels.backends.triton import launches

FOLDER = Path(__file__).parent


def test_launches_over_a_driver_that_runs_nothing():
    assert shutil.which(os.environ.get("CC", "cc")), "needs a C compiler"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0"]
    result = subprocess.run(
        [*command, str(FOLDER / "stubbed_launches.py")],
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": "0", "OMP_NUM_THREADS": "1"},
        cwd=FOLDER.parents[1],
    )
    assert result.returncode == 0, result.stdout + result.stderr
    (passed,) = re.findall(r"(\d+) passed", result.stdout.splitlines()[-1])
    assert int(passed) >= 24


def meta_launches(dtype, ragged, region, planned, lengths):
    def empty(*shape, dtype=dtype):
        return torch.empty(shape, dtype=dtype, device="meta")

    q, wide = empty(2, 2, 64, 16), torch.float32
    k = empty(6, 2, 9, 16) if ragged else empty(2, 3, 2, 9, 16)
    rows = (6,) if ragged else (2, 3)
    weight = empty(*rows, 64, dtype=wide)
    kinds = [empty(n, dtype=torch.int32) if ragged else None for n in (6, 3, 6)]
    exists = empty(*rows, 64, dtype=torch.bool) if region else None
    plan = (empty(2, 64, dtype=torch.int32), empty(2, 2, dtype=torch.int64), exists)
    indices = kinds[0], kinds[1], exists, kinds[2] if lengths else None
    inputs = Inputs(q, k, k, weight, *indices, plan if planned else None, 1.0)
    stats = empty(3, 2, *weight.shape, dtype=wide).unbind()
    yield launches.forward_launch(inputs, q, (9, 0))
    for dq, count in ((q, 1), (q, 3), (None, 1)):
        yield launches.pixel_launch(inputs, q, dq, stats[:count], (9, 0))
    yield from launches.prompt_launches(inputs, q, stats, k, k, (9, 0))


def test_options_stand_for_the_kernel_and_the_dtypes_of_tensors():
    kept, seen = [], {}
    forms = [(False, region, plan, False) for region, plan in ((0, 0), (1, 0), (1, 1))]
    forms += [(True, region, plan, n) for region, plan in ((0, 0), (1, 1)) for n in (False, True)]
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        for form in forms:
            for launch in meta_launches(dtype, *form):
                kept.append(launch)
                dtypes = [getattr(x, "dtype", type(x)) for x in launch.arguments]
                found = seen.setdefault(id(launch.options), (launch.kernel, dtypes))
                assert found == (launch.kernel, dtypes)
    assert len(seen) > 3 * 7 * 4
