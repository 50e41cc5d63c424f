"""What pip builds and installs, with and without a compiler."""

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("packaging"),  # one environment for all
    pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="needs a checkout"),
]


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of the tracked and new files, so that no build touches the checkout."""
    folder = tmp_path_factory.mktemp("source")
    ignored = shutil.ignore_patterns(
        ".*", "__pycache__", "build", "dist", "results", "*.egg-info", "*.so", "*.dylib"
    )
    shutil.copytree(ROOT, folder / "stal", ignore=ignored)
    return folder / "stal"


@pytest.fixture(scope="module")
def builder(tmp_path_factory) -> Path:
    """The Python of an environment that has the build requirements and no torch."""
    folder = tmp_path_factory.mktemp("builder")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", "build", "setuptools>=77", "apache-tvm-ffi>=0.1.6")
    return python


def run(
    *command: str | Path, cwd: Path | None = None, environment: dict[str, str] | None = None
) -> str:
    # What PYTHONPATH names would be found before what is installed.
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**inherited, **(environment or {})},
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def build(
    python: Path, source: Path, output: Path, environment: dict[str, str] | None = None
) -> tuple[Path, str]:
    command = (python, "-m", "build", "--wheel", "--no-isolation", "--outdir", output, source)
    log = run(*command, environment=environment)
    (wheel,) = output.glob("*.whl")
    return wheel, log


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_wheel_holds_the_library_and_serves_every_python(source, builder, tmp_path):
    wheel, _ = build(builder, source, tmp_path)
    assert wheel.name.startswith("stal-")
    assert "-py3-none-" in wheel.name
    assert not wheel.name.endswith("-any.whl")
    names = names_in(wheel)
    (library,) = (name for name in names if name.endswith((".so", ".dylib")))
    assert Path(library).parent.name == "stal_kernels"
    assert {"stal/__init__.py", "stal_kernels/__init__.py", "stal_kernels/py.typed"} <= names
    assert "stal_kernels/backends/triton/tiles.json" in names
    assets = {p.relative_to(source) for p in (source / "stal" / "assets").rglob("*") if p.is_file()}
    assert {str(p) for p in assets} <= names
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"stal", "stal_kernels"}
    # An unpacked wheel works beside the torch of this environment.
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    environment = {"PYTHONPATH": str(tmp_path / "installed")}
    code = "import stal_kernels; print(stal_kernels.__file__, stal_kernels.why_not('cpu'))"
    said = run(sys.executable, "-c", code, cwd=tmp_path, environment=environment)
    assert str(tmp_path / "installed") in said
    assert said.strip().endswith("[]")


def test_package_builds_without_a_compiler_and_says_so(source, builder, tmp_path):
    wheel, log = build(builder, source, tmp_path, {"CXX": "/nonexistent"})
    assert wheel.name.endswith("-py3-none-any.whl")
    assert "the cpu backend is NOT built: no C++ compiler was found" in log
    assert not any(name.endswith((".so", ".dylib")) for name in names_in(wheel))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    environment = {"PYTHONPATH": str(tmp_path / "installed")}
    table = run(sys.executable, "-m", "stal_kernels", cwd=tmp_path, environment=environment)
    reason = "it was not built: no C++ compiler was found (tried /nonexistent; set CXX)"
    assert any(line.startswith("cpu ") and reason in line for line in table.splitlines())
    code = "\n".join(
        [
            "import torch, stal_kernels",
            "q, k = torch.zeros(1, 1, 2, 8), torch.zeros(1, 1, 1, 3, 8)",
            "print(stal_kernels.blended_attention(q, k, k, torch.ones(1, 1, 2)).shape)",
        ]
    )
    said = run(sys.executable, "-c", code, cwd=tmp_path, environment=environment)
    assert "runs on the slow reference backend: cpu is missing: it was not built" in said
    assert "torch.Size([1, 1, 2, 8])" in said


def test_package_builds_when_the_compiler_fails(source, builder, tmp_path):
    compiler = tmp_path / "broken"
    compiler.write_text("#!/bin/sh\necho 'broken: error: no such thing' >&2\nexit 1\n")
    compiler.chmod(0o755)
    wheel, log = build(builder, source, tmp_path, {"CXX": str(compiler)})
    assert wheel.name.endswith("-py3-none-any.whl")
    assert "NOT built" in log
    with zipfile.ZipFile(wheel) as archive:
        assert b"broken: error: no such thing" in archive.read("stal_kernels/not_built.txt")


def test_source_archive_builds_the_same_wheel(source, builder, tmp_path):
    run(builder, "-m", "build", "--sdist", "--no-isolation", "--outdir", tmp_path, source)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as content:
        # Python before 3.11.4 has no filters.
        content.extraction_filter = getattr(tarfile, "data_filter", None)
        content.extractall(tmp_path / "unpacked")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    assert (unpacked / "csrc" / "cpu" / "kernel.h").exists()
    assert (unpacked / "csrc" / "check_arguments.h").exists()
    assert (unpacked / "examples" / "step_batching.py").exists()  # bench/gpu_check.py imports it
    from_archive, _ = build(builder, unpacked, tmp_path / "archive")
    from_checkout, _ = build(builder, source, tmp_path / "checkout")
    assert from_archive.name == from_checkout.name
    assert names_in(from_archive) == names_in(from_checkout)


def test_editable_install_builds_the_library_in_place(source, builder, tmp_path):
    checkout = tmp_path / "checkout"
    shutil.copytree(source, checkout)
    run(
        *(builder, "-m", "pip", "install", "-q", "--no-build-isolation", "--no-deps"),
        *("--editable", checkout),
    )
    built = [p.name for p in (checkout / "stal_kernels").glob("libstal_kernels.*")]
    assert len(built) == 1
    code = "import importlib.util as u; print(u.find_spec('stal_kernels').origin)"
    said = run(builder, "-c", code, cwd=tmp_path)
    assert str(checkout) in said
