"""The CUDA kernels on a CPU: their sources, unchanged, in an emulator of Hopper's instructions.

csrc/test/cuda says what it models. Here its programs are built and run: each instruction against
the manual, the forward kernel on random cases against double precision, and mistakes, planted in a
small kernel and in the real one, each of which must be caught.

`pytest` draws the same 20 cases of each head_dim every time. 2000 of each take a processor an hour:

    nice pytest tests/stal_kernels/test_cuda_emulator.py -k double_precision --fuzz-cases 20000
"""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "csrc"
EMULATOR = ("cuda/fiber", "cuda/shared_memory", "cuda/block", "cuda/product")
DRIVER = (*EMULATOR, "case", "exact", "tensors", "cuda/forward", "cuda/forward_driver")
FLAGS = "-std=c++17 -Wall -Wextra -Werror -Wno-unknown-pragmas"

INSTRUCTIONS = (
    *("rounding", "functions", "shuffles", "barriers", "registers", "shared_memory"),
    *("stmatrix", "copies", "mbarriers", "scores", "values", "product_rules"),
)
HEAD_DIMS = (40, 64, 80, 128, 160)

# What must be said of each mistake in csrc/test/cuda/bugs.cpp, in whatever order lanes run.
BUGS = {
    "no_proxy_fence": "no fence.proxy.async and barrier between the write",
    "wrong_parity": "has not been waited for|no fence.proxy.async|uninitialised|not published|"
    "deadlock; .* wait for mbarrier",
    "wrong_leading_offset": "wrong numbers",
    "wrong_stride_offset": "wrong numbers|a wgmma of warp 1 may still read",
    "scores_read_before_wait": "wrong numbers",
    "values_read_before_wait": "wrong numbers|was written before wgmma.wait_group",
    "no_product_fence": "no wgmma.fence since the registers",
    "no_product_commit": "wrong numbers|finished with a wgmma",
    "factor_changed_before_wait": "a register of the first factor of lane",
    "swizzle_off_by_one": "wrong numbers",
    "lane_skips_shuffle": "lane 77 .*divergent: it is at bar.sync of its warp .* at shuffle|"
    "divergent: it is at shuffle .* at bar.sync",
    "copy_groups_off_by_one": "has not been waited for|no fence.proxy.async",
    "barrier_count_too_high": "deadlock; lanes 0-127 wait for mbarrier .* lacks 1 of 5 arrivals",
    "barrier_count_too_low": "no fence.proxy.async and barrier|has not been waited for|"
    "not published|uninitialised|deadlock; .* wait for mbarrier",
    "barriers_used_before_made": "there is no mbarrier|not published: .* mbarrier.init",
    "two_warps_write_one_stage": "two writers: no barrier between",
    "stage_reused_early": "written too early|has not been waited for|no fence.proxy.async|"
    "two writers|deadlock; .* wait for mbarrier",
    "stage_left_early": "written too early|not published",
    "stage_never_left": "deadlock; .* lanes 128-255 wait for mbarrier",
    "no_warpgroup_barrier_before_store": "written too early: a wgmma of warp",
    "no_warp_barrier_before_load": "not published: no barrier between|uninitialised",
    "copy_out_of_bounds": "cp.async: out of bounds: 16 bytes",
    "copy_misaligned": "cp.async: misaligned: 16 bytes",
    "store_out_of_bounds": "store: out of bounds: 4 bytes at shared address",
    "factors_never_written": "load: uninitialised",
    "q_partly_written": "wrong numbers",
    "out_written_twice": "global store: two writers",
    "other_barrier_in_half_a_warp": "divergent: it is at bar.sync",
}

RACES = "has not been waited for|no fence.proxy.async|not published|uninitialised|written too early"
RACES += "|two writers|deadlock"
WRONG = r"out\[\d+\] must be"
# The same in the real kernel: a file of csrc/cuda, what it has, what stands there instead, and what
# must be said of it.
KERNEL_BUGS = {
    "no_proxy_fence": (
        "kernel.h",
        "    fence_proxy_async();\n    sync_warp();\n    if (lane == 0) mbarrier_arrive(",
        "    sync_warp();\n    if (lane == 0) mbarrier_arrive(",
        "no fence.proxy.async and barrier",
    ),
    "wrong_parity": ("kernel.h", "(round + wraps) & 1", "(round + wraps + 1) & 1", RACES),
    "phases_mistaken": (
        "traits.h",
        """kLap = 2 * kStages;
  static_assert(kLap % kLoaders == 0 && kLap % kConsumers == 0);
  static_assert((kConsumers - 1) * kLoaders < kLap);
""",
        "kLap = kStages;\n",
        f"{RACES}|{WRONG}",
    ),
    "wrong_leading_offset": (
        "traits.h",
        "(kKeys * kRowBytes / 16) << 16",
        "(kTileRows * kRowBytes / 16) << 16",
        WRONG,
    ),
    "scores_read_before_wait": (
        "kernel.h",
        "      wgmma_wait<0>();\n      wgmma_pin(scores);",
        "      wgmma_pin(scores);",
        f"{WRONG}|was written before wgmma.wait_group|finished with a wgmma",
    ),
    "no_product_fence": (
        "kernel.h",
        "      float product[kPart];\n      wgmma_fence();",
        "      float product[kPart];",
        "no wgmma.fence since the registers",
    ),
    "chunks_of_q_off_by_one": (
        "kernel.h",
        "+ chunk_offset<X>(r, group_chunk)",
        "+ chunk_offset<X>(r, group_chunk ^ 1)",
        WRONG,
    ),
    "lane_skips_shuffle": (
        "kernel.h",
        "rows[i] = join(rows[i], shuffle_xor(rows[i], distance));",
        "if (threadIdx.x != 77) rows[i] = join(rows[i], shuffle_xor(rows[i], distance));",
        "divergent|wait for shuffle",
    ),
    "copy_groups_off_by_one": (
        "kernel.h",
        "wait_for_all_but(walk.entries - 1 - e);",
        "wait_for_all_but(walk.entries - e);",
        RACES,
    ),
    "barrier_count_too_high": (
        "kernel.h",
        "mbarrier_init(shared + X::kTileFullAt + i * 8, 1);",
        "mbarrier_init(shared + X::kTileFullAt + i * 8, 2);",
        "deadlock; .* wait for mbarrier .* lacks 1 of 2 arrivals",
    ),
    "barrier_count_too_low": (
        "kernel.h",
        "mbarrier_init(shared + X::kSlotFullAt + i * 8, X::kLoaders);",
        "mbarrier_init(shared + X::kSlotFullAt + i * 8, X::kLoaders - 1);",
        RACES,
    ),
    "two_warps_write_one_stage": (
        "kernel.h",
        "(loader - walk.begin % X::kLoaders + X::kLoaders)",
        "(loader / 2 - walk.begin % X::kLoaders + X::kLoaders)",
        RACES,
    ),
    "stage_reused_early": (
        "kernel.h",
        "mbarrier_wait(shared + X::kTileEmptyAt + stage * 8, before / X::kStages & 1);",
        "",
        RACES,
    ),
    "slot_reused_early": (
        "kernel.h",
        "if (round > 0) mbarrier_wait(shared + X::kSlotEmptyAt + slot * 8, (round - 1) & 1);",
        "",
        RACES,
    ),
    "no_warp_barrier_before_leaving": (
        "kernel.h",
        "      sync_warp();\n      if (lane == 0) mbarrier_arrive(shared + X::kTileEmptyAt",
        "      if (lane == 0) mbarrier_arrive(shared + X::kTileEmptyAt",
        "written too early",
    ),
    "no_warpgroup_barrier_before_store": (
        "kernel.h",
        "      named_barrier(1 + warpgroup, kWarpgroup);\n",
        "",
        RACES,
    ),
    "no_warp_barrier_before_load": (
        "kernel.h",
        "    sync_warp();\n    char* out",
        "    char* out",
        "not published",
    ),
    "row_beyond_the_last": (
        "kernel.h",
        "place < p.seqlen_q ?",
        "place <= p.seqlen_q ?",
        f"out of bounds|{WRONG}|two writers",
    ),
    "key_beyond_the_last": (
        "kernel.h",
        "const bool valid = row < keys &&",
        "const bool valid = row <= keys &&",
        f"out of bounds|{WRONG}",
    ),
    "mask_off_by_one": (
        "kernel.h",
        "i < kKeys / 2; ++i) {\n      if (i / 4 * 8 + column + i % 2 >= length)",
        "i < kKeys / 2; ++i) {\n      if (i / 4 * 8 + column + i % 2 > length)",
        WRONG,
    ),
    "absent_prompt_is_added": (
        "kernel.h",
        "if (bits_of(w[row]) != kAbsent) {",
        "if (kAbsent) {",
        f"{WRONG}.*nan",
    ),
}

pytestmark = [
    pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="needs a checkout"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"),
]


def run(*command: str | Path, timeout: float | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=timeout, check=False
    )


def compile_all(folder: Path, names: tuple[str, ...], flags: str, sources: Path = SOURCES) -> None:
    """Objects of csrc/test/<name>.cpp in the folder, but for those that are there."""

    def compile_one(name: str) -> None:
        target = folder / f"{Path(name).name}.o"
        if target.exists():
            return
        source = ["-I", sources, "-c", sources / "test" / f"{name}.cpp", "-o", target]
        result = run("g++", *FLAGS.split(), *flags.split(), *source)
        assert result.returncode == 0, result.stderr

    # The longest first.
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(compile_one, reversed(names)))


def link(folder: Path, names: tuple[str, ...], flags: str) -> Path:
    target = folder / Path(names[-1]).name
    objects = [folder / f"{Path(name).name}.o" for name in names]
    result = run("g++", *flags.split(), "-pthread", *objects, "-o", target)
    assert result.returncode == 0, result.stderr
    return target


@pytest.fixture(scope="module")
def build(tmp_path_factory) -> Callable[..., Path]:
    """build(DRIVER, flags): the program of these sources, named as the last of them."""
    folders: dict[str, Path] = {}

    def build(names: tuple[str, ...], flags: str = "-O2") -> Path:
        folder = folders.setdefault(flags, tmp_path_factory.mktemp("emulator"))
        compile_all(folder, names, flags)
        return link(folder, names, flags)

    return build


@pytest.fixture(scope="module")
def forward_driver(build) -> Path:
    return build(DRIVER)


def check(result: subprocess.CompletedProcess[str]) -> None:
    assert result.returncode == 0, (result.stdout + result.stderr)[:10000]


# ---- the emulator ----


@pytest.mark.xdist_group("emulator")
@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_instruction_does_what_its_manual_says(name, build):
    check(run(build((*EMULATOR, "cuda/instructions")), name))


@pytest.mark.xdist_group("emulator")
def test_every_instruction_and_bug_is_run(build):
    assert run(build((*EMULATOR, "cuda/instructions"))).stdout.split() == sorted(INSTRUCTIONS)
    assert run(build((*EMULATOR, "cuda/bugs"))).stdout.split() == ["none", *BUGS]


@pytest.mark.xdist_group("emulator")
def test_kernel_without_a_bug_is_right(build):
    assert run(build((*EMULATOR, "cuda/bugs")), "none").stdout.split() == ["right"] * 8


@pytest.mark.xdist_group("emulator")
@pytest.mark.parametrize("bug", BUGS)
def test_planted_bug_is_caught(bug, build):
    said = run(build((*EMULATOR, "cuda/bugs")), bug).stdout.splitlines()
    assert len(said) == 8
    assert [line for line in said if not re.search(BUGS[bug], line)] == []


# ---- the forward kernel ----


@pytest.mark.xdist_group("emulated_forward")
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_forward_equals_double_precision(head_dim, forward_driver, pytestconfig):
    options = ["--head-dim", str(head_dim), "--seed", str(1000 * head_dim)]
    cases = pytestconfig.getoption("--fuzz-cases") // 10
    check(run(forward_driver, *options, "--cases", str(cases)))


@pytest.mark.xdist_group("emulated_forward")
@pytest.mark.parametrize("bug", KERNEL_BUGS)
def test_bug_in_the_forward_kernel_is_caught(bug, forward_driver, tmp_path):
    name, right, wrong, words = KERNEL_BUGS[bug]
    kernels = tmp_path / "cuda"
    shutil.copytree(SOURCES / "cuda", kernels)
    text = (kernels / name).read_text()
    assert text.count(right) == 1
    (kernels / name).write_text(text.replace(right, wrong))
    # The copy is found before csrc; one head_dim keeps it small.
    flags = f"-O1 -Wno-error -DSTAL_ONE_HEAD_DIM=128 -I {tmp_path}"
    for path in forward_driver.parent.glob("*.o"):
        if path.stem != "forward":
            (tmp_path / path.name).symlink_to(path)
    compile_all(tmp_path, DRIVER, flags)
    driver = link(tmp_path, DRIVER, flags)
    options = ["--head-dim", "128", "--seed", "128000", "--cases", "60", "--failures", "1"]
    result = run(driver, *options)
    assert result.returncode == 1, result.stderr
    assert re.search(words, result.stdout), result.stdout[:2000]


@pytest.mark.slow
@pytest.mark.xdist_group("emulated_forward_sanitized")
def test_forward_is_clean_under_sanitizers(build):
    sanitize = "-fsanitize=address,undefined"
    probe = run("g++", sanitize, "-x", "c++", "-", "-o", os.devnull)
    if "cannot find" in probe.stderr:
        pytest.skip(f"g++ has no runtime for {sanitize}: {probe.stderr}")
    # The head_dim whose last tile is not full.
    flags = f"-O1 -g1 {sanitize} -fno-sanitize-recover=all -fno-omit-frame-pointer"
    driver = build(DRIVER, f"{flags} -DSTAL_ONE_HEAD_DIM=40")
    options = ["--head-dim", "40", "--seed", "40000"]
    check(run(driver, *options, "--cases", "10", "--orders", "1"))
