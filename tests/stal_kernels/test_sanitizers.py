"""The C++ kernels under sanitizers, in a program without torch (csrc/test/driver.cpp).

Every tensor of it is an allocation of exactly the bytes that its strides span. It runs the case
table and random shapes, strides, regions and plans on every level that the machine has, with
std::thread in place of OpenMP, whose synchronisation ThreadSanitizer cannot see.

`pytest` makes the same few random calls every time. A hundred thousand of them, in hours:

    nice pytest -n 0 tests/stal_kernels -k "random_calls and address" --fuzz-cases 100000
"""

import os
import runpy
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from stal_kernels.backends import cpu
from stal_kernels.testing import CASES, Case, example, results

ROOT = Path(__file__).parents[2]
SANITIZERS = {"address": "address,undefined", "thread": "thread"}

pytestmark = [
    pytest.mark.slow,
    # One build for all tests of a sanitizer.
    pytest.mark.parametrize(
        "sanitizer",
        [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in SANITIZERS],
        scope="module",
    ),
    pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="needs a checkout"),
    pytest.mark.skipif(sys.platform != "linux", reason="the runtimes are looked for on Linux"),
]

# Beside the table: dimensions without an element, alone and together.
EMPTY = (
    Case(batch=0, seqlen_q=5, seqlen_k=4, head_dim=8),
    Case(seqlen_q=0, seqlen_k=4, head_dim=8),
    Case(prompts=0, seqlen_q=5, seqlen_k=4, head_dim=8),
    Case(batch=2, seqlen_q=5, seqlen_k=0, head_dim=8),
    Case(batch=2, prompts=0, seqlen_q=5, seqlen_k=0, head_dim=8, region="blobs"),
    Case(batch=0, seqlen_q=5, seqlen_k=4, head_dim=8, ragged=True),
    Case(batch=3, seqlen_q=5, seqlen_k=0, head_dim=8, ragged=True),
    Case(batch=3, seqlen_q=0, seqlen_k=4, head_dim=8, ragged=True, region="blobs"),
)


@pytest.fixture(scope="module")
def setup_script() -> dict[str, Any]:
    """The names of setup.py, which alone knows how each level is compiled."""
    stubs: dict[str, dict[str, Any]] = {
        "setuptools": {"Extension": lambda *_, **__: None, "setup": lambda **_: None},
        "setuptools.command": {},
        "setuptools.command.bdist_wheel": {"bdist_wheel": object},
        "setuptools.command.build_ext": {"build_ext": object},
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, members in stubs.items():
            stub = ModuleType(name)
            stub.__dict__.update(members)
            patch.setitem(sys.modules, name, stub)
        return runpy.run_path(str(ROOT / "setup.py"))


@pytest.fixture(scope="module")
def driver(sanitizer, setup_script, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp(sanitizer)
    sanitize = f"-fsanitize={SANITIZERS[sanitizer]}"
    compiler = setup_script["find_compiler"]()
    probe = folder / "probe.cpp"
    probe.write_text("int main() {}\n")
    linked = run([*compiler, sanitize, str(probe), "-o", str(folder / "probe")])
    if linked.returncode and ("cannot find" in linked.stderr or "No such file" in linked.stderr):
        pytest.skip(f"{shlex.join(compiler)} has no runtime for {sanitize}: {linked.stderr}")
    assert linked.returncode == 0, linked.stderr

    flags = [*setup_script["CXXFLAGS"].split(), "-O1", "-g1", "-pthread", "-I", str(ROOT / "csrc")]
    instrumented = [*flags, sanitize, "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
    kernels, program = ROOT / "csrc" / "cpu", ROOT / "csrc" / "test"
    # What cannot run here need not be compiled: with a sanitizer a level takes 20 seconds. Who may
    # touch what when does not depend on what computes a tile, so that threads need no models.
    modelled = sanitizer == "address"
    levels = {
        level: extra
        for level, extra in setup_script["LEVELS"].items()
        if level == "portable" or (modelled if level.endswith("_model") else not cpu.missing(level))
    }
    defines = [f"-DSTAL_LEVEL_{level.upper()}" for level in levels]
    jobs = [
        (kernels / f"level_{level}.cpp", [*instrumented, *extra.split(), "-O1"])
        for level, extra in levels.items()
    ]
    jobs += [
        (kernels / f"{name}.cpp", [*instrumented, *defines])
        for name in ("call_storage", "levels", "parallel")
    ]
    jobs += [
        (program / f"{name}.cpp", [*flags, "-O2"])
        for name in ("driver", "case", "exact", "tensors")
    ]

    def compile_file(job: tuple[Path, list[str]]) -> str:
        source, options = job
        target = str(folder / f"{source.stem}.o")
        result = run([*compiler, *options, "-c", str(source), "-o", target])
        assert result.returncode == 0, result.stderr
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_file, jobs))
    target = folder / "driver"
    result = run([*compiler, sanitize, "-pthread", *objects, "-o", str(target)])
    assert result.returncode == 0, result.stderr
    return target


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True)


def check(driver: Path, *arguments: str) -> None:
    # Memory that nobody wrote is NaN, so that reading it changes a result.
    environment = {
        "ASAN_OPTIONS": "max_malloc_fill_size=1000000000:malloc_fill_byte=255",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    result = subprocess.run(
        [str(driver), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    assert result.returncode == 0, (result.stdout + result.stderr)[:10000]
    assert "portable: runs" in result.stdout


def case_line(case: Case, dtype: torch.dtype) -> str:
    """The case in the format of csrc/test/case.h."""
    e = example(case, dtype)
    tensors = {"q": e.q, "k": e.k, "v": e.v, "weight": e.weight, "dout": e.dout}
    tensors |= results(e, "reference")
    fields = {"name": repr(case), "dtype": str(dtype).removeprefix("torch.")}
    scale = case.head_dim**-0.5 if case.scale is None else case.scale
    fields |= {"scale": repr(scale), "batch": str(case.batch), "heads": str(case.heads)}
    fields |= {"seqlen_q": str(case.seqlen_q), "seqlen_k": str(case.seqlen_k)}
    fields |= {"head_dim": str(case.head_dim), "prompts": str(e.k.shape[0 if case.ragged else 1])}
    for name in ("prompt_ids", "offsets", "key_lengths"):
        values = getattr(e, name)
        if values is not None:
            fields[name] = ",".join(map(str, values.tolist()))
    if e.region is not None:
        tensors["region"] = e.region
        fields["present"] = "".join("01"[bit] for bit in e.region.flatten().tolist())
    for name, tensor in tensors.items():
        # batch, prompt, head, row; 0 for those that it lacks.
        strides = list(tensor.stride())
        if "weight" in name or name == "region":
            strides = [*[0] * case.ragged, *strides[:-1], 0, strides[-1]]
        elif name in ("k", "v", "dk", "dv"):
            strides = [*[0] * case.ragged, *strides[:-1]]
        else:
            strides = [strides[0], 0, *strides[1:-1]]
        fields[name] = ",".join(map(str, strides))
    return " ".join(f"{name}={value}" for name, value in fields.items())


def size(case: Case) -> int:
    """Multiply-adds of the scores."""
    pixels = case.batch * case.heads * case.seqlen_q
    return pixels * case.prompts * case.seqlen_k * case.head_dim


def test_case_table_is_clean(sanitizer, driver, tmp_path):
    table = tmp_path / "cases.txt"
    # Who may touch what when does not depend on how a number is converted.
    dtypes = (torch.bfloat16,) if sanitizer == "thread" else (torch.bfloat16, torch.float32)
    # Every case with regions is run with a plan of them too.
    cases = [case for case in CASES if not case.planned and size(case) < 7e6]
    lines = [case_line(case, dtype) for case in cases for dtype in dtypes]
    lines += [case_line(case, torch.float32) for case in EMPTY]
    table.write_text("".join(f"{line}\n" for line in lines))
    check(driver, "--table", str(table), "--callers", "2")


def test_random_calls_are_clean(sanitizer, driver, pytestconfig):
    cases = pytestconfig.getoption("--fuzz-cases")
    if sanitizer == "thread":  # which makes a call take four times as long
        cases //= 4
    check(driver, "--seed", "0", "--cases", str(cases), "--callers", "2")


def test_driver_reports_what_is_wrong(sanitizer, driver, tmp_path):
    def said(*arguments: str) -> str:
        result = run([str(driver), *arguments])
        assert result.returncode == 2
        return result.stderr.strip()

    table = tmp_path / "cases.txt"
    table.write_text("name=a seqlen=3\n")
    assert said("--table", str(table)) == "driver: a case has no field seqlen"
    assert said("--table", "/nonexistent").endswith("a file with cases, got /nonexistent")
    assert said("--level", "sse2") == "driver: --level must be one that runs here, got sse2"
    assert "--callers and --level, each with a value, got --case" in said("--case", "3")
