"""The kernels compiled for aarch64 and run under emulation, in the program without torch.

csrc/test/driver.cpp compares random calls of every level with double precision.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
FLAGS = "-std=c++17 -O2 -ffp-contract=fast -fno-math-errno -Wno-psabi -DSTAL_LEVEL_NEON"
LEVELS = ("neon", "portable", "avx512_bf16_model", "amx_model")

pytestmark = [
    pytest.mark.xdist_group("neon"),  # one build for all
    pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="needs a checkout"),
    pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"needs {COMPILER}"),
    pytest.mark.skipif(shutil.which(EMULATOR) is None, reason=f"needs {EMULATOR}"),
]


@pytest.fixture(scope="module")
def driver(tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("aarch64") / "driver"
    names = [f"cpu/level_{level}" for level in LEVELS]
    names += ["cpu/call_storage", "cpu/levels", "cpu/parallel"]
    names += ["test/driver", "test/case", "test/exact", "test/tensors"]
    objects = []
    for name in names:
        objects.append(str(target.with_name(f"{Path(name).name}.o")))
        # The level's own files say which level they are.
        flags = [f for f in FLAGS.split() if "/level_" not in name or "STAL_LEVEL" not in f]
        source = ["-I", str(ROOT / "csrc"), "-c", str(ROOT / "csrc" / f"{name}.cpp")]
        subprocess.run([COMPILER, *flags, *source, "-o", objects[-1]], check=True)
    link = [COMPILER, "-static", "-pthread", *objects, "-o", str(target)]
    subprocess.run(link, check=True)
    return target


@pytest.mark.parametrize("level", LEVELS)
def test_random_calls_on_aarch64_equal_double_precision(level, driver):
    calls = ["--seed", "0", "--cases", "100", "--callers", "2", "--level", level]
    result = subprocess.run([EMULATOR, str(driver), *calls], capture_output=True, text=True)
    assert result.returncode == 0, (result.stdout + result.stderr)[:10000]
    assert f"{level}: runs" in result.stdout
    assert "100 cases, 0 failures" in result.stdout
