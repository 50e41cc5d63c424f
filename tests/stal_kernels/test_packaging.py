"""What pip builds and installs, with and without a compiler, with and without CUDA's."""

import os
import shutil
import struct
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
    """A copy of the tracked and new files, so that no build touches the checkout, and of what was
    compiled of them before."""
    folder = tmp_path_factory.mktemp("source")
    ignored = shutil.ignore_patterns(
        *(".*", "__pycache__", "lib.*", "bdist.*", "dist", "results", "*.egg-info"),
        *("*.so", "*.dylib"),
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


# What concerns the other library leaves this one out, which takes its time.
WITHOUT_CUDA = {"CUDA_HOME": "none"}
HAS_NVCC = shutil.which("nvcc") is not None


def build(
    python: Path, source: Path, output: Path, environment: dict[str, str] | None = None
) -> tuple[Path, str]:
    command = (python, "-m", "build", "--wheel", "--no-isolation", "--outdir", output, source)
    log = run(*command, environment={**WITHOUT_CUDA, **(environment or {})})
    (wheel,) = output.glob("*.whl")
    return wheel, log


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def compiler_that_writes(path: Path, name: str) -> Path:
    """A compiler whose every output is its own name; `<path>.log` lists them."""
    find = 'while [ "$1" != -o ]; do shift; done'
    return program(path, f'{find}\necho {name} > "$2"\necho "$2" >> "{path}.log"')


def compiler_that_reads(path: Path) -> Path:
    """A compiler that only looks whether all that a source includes is there."""
    real = shutil.which("c++")
    other = 'while [ "$1" != -o ]; do shift; done\necho linked > "$2"'
    return program(path, f'case " $* " in *" -c "*) exec {real} -E "$@";; esac\n{other}')


def gpu_code(library: bytes) -> list[tuple[int, int]]:
    """Kind (1: PTX, 2: machine code) and architecture of what a library holds for GPUs."""
    found, at = [], 0
    while (at := library.find(struct.pack("<IHH", 0xBA55ED50, 1, 16), at)) >= 0:
        (size,) = struct.unpack_from("<Q", library, at + 8)
        entry, end = at + 16, at + 16 + size
        while entry < end:
            kind, _, header, payload = struct.unpack_from("<HHIQ", library, entry)
            found.append((kind, struct.unpack_from("<I", library, entry + 28)[0]))
            entry += header + payload
        at = end
    return found


@pytest.fixture(scope="module")
def wheel(source, builder, tmp_path_factory) -> Path:
    """With all that can be built here; unpacked beside it in `installed`."""
    folder = tmp_path_factory.mktemp("wheel")
    built, _ = build(builder, source, folder, {"CUDA_HOME": ""})
    with zipfile.ZipFile(built) as archive:
        archive.extractall(folder / "installed")
    return built


def test_wheel_holds_the_libraries_and_serves_every_python(wheel, source, tmp_path):
    assert wheel.name.startswith("stal-")
    assert "-py3-none-" in wheel.name
    assert not wheel.name.endswith("-any.whl")
    names = names_in(wheel)
    libraries = [Path(name) for name in names if name.endswith((".so", ".dylib"))]
    assert {library.parent.name for library in libraries} == {"stal_kernels"}
    assert {library.stem for library in libraries} >= {"libstal_kernels"}
    assert {"stal/__init__.py", "stal_kernels/__init__.py", "stal_kernels/py.typed"} <= names
    assert "stal_kernels/backends/triton/tiles.json" in names
    assets = {p.relative_to(source) for p in (source / "stal" / "assets").rglob("*") if p.is_file()}
    assert {str(p) for p in assets} <= names
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"stal", "stal_kernels"}
    # An unpacked wheel works beside the torch of this environment.
    installed = wheel.parent / "installed"
    environment = {"PYTHONPATH": str(installed)}
    code = "import stal_kernels; print(stal_kernels.__file__, stal_kernels.why_not('cpu'))"
    said = run(sys.executable, "-c", code, cwd=tmp_path, environment=environment)
    assert str(installed) in said
    assert said.strip().endswith("[]")


@pytest.mark.skipif(not HAS_NVCC, reason="needs nvcc on the PATH")
def test_wheel_holds_the_cuda_library_which_loads_without_a_gpu(wheel, tmp_path):
    installed = wheel.parent / "installed"
    library = installed / "stal_kernels" / "libstal_kernels_cuda.so"
    code = gpu_code(library.read_bytes())
    assert {kind for kind, _ in code} == {2}
    assert [architecture for _, architecture in code].count(90) >= 5  # a head_dim each
    assert library.stat().st_size <= 5 * 2**20
    needed = run("ldd", library)
    assert "libcuda.so" not in needed
    assert "libcudart.so" not in needed
    loads = "from stal_kernels.backends import cuda; print(repr(cuda._library().missing()))"
    environment = {"PYTHONPATH": str(installed)}
    said = run(sys.executable, "-c", loads, cwd=tmp_path, environment=environment).strip()
    assert said == "''" or "NVIDIA driver" in said


def test_second_build_compiles_what_changed(source, builder, tmp_path):
    checkout = tmp_path / "checkout"
    shutil.copytree(source, checkout)
    log = tmp_path / "c++.log"
    environment = {"CXX": str(compiler_that_writes(tmp_path / "c++", "cpu"))}

    def compiled() -> set[str]:
        log.unlink(missing_ok=True)
        build(builder, checkout, tmp_path / f"wheels{len(list(tmp_path.iterdir()))}", environment)
        return {Path(line).stem for line in log.read_text().splitlines() if line.endswith(".o")}

    everything = compiled()
    assert {"binding", "level_portable", "parallel"} <= everything
    assert compiled() == set()
    # A half-made file has no note of what it was made of; objects of another Python may lie there.
    for note in checkout.glob("build/temp*/**/parallel.sha256"):
        note.unlink()
    assert compiled() == {"parallel"}
    with (checkout / "csrc" / "cpu" / "rows.h").open("a") as header:
        header.write("\n")
    assert compiled() == everything
    environment["CXX"] += " -g"
    assert compiled() == everything


def test_package_builds_without_nvcc_and_says_so(source, builder, tmp_path):
    environment = {"CXX": str(compiler_that_writes(tmp_path / "c++", "cpu"))}
    wheel, log = build(builder, source, tmp_path / "wheels", environment)
    assert "stal_kernels: the cuda backend is not built: no nvcc was found in CUDA_HOME" in log
    assert not wheel.name.endswith("-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        reason = archive.read("stal_kernels/not_built_cuda.txt").decode()
    assert reason == "no nvcc was found in CUDA_HOME (none)\n"
    assert not any("libstal_kernels_cuda" in name for name in names_in(wheel))


def test_package_builds_with_an_nvcc_that_is_too_old_and_says_so(source, builder, tmp_path):
    said = "nvcc fatal   : Unsupported gpu architecture 'compute_90a'"
    program(tmp_path / "cuda" / "bin" / "nvcc", f'echo "{said}" >&2; exit 1')
    environment = {
        "CXX": str(compiler_that_writes(tmp_path / "c++", "cpu")),
        "CUDA_HOME": str(tmp_path / "cuda"),
    }
    wheel, log = build(builder, source, tmp_path / "wheels", environment)
    assert f"nvcc failed: {said}" in log
    with zipfile.ZipFile(wheel) as archive:
        assert said in archive.read("stal_kernels/not_built_cuda.txt").decode()
        assert archive.read("stal_kernels/libstal_kernels.so") == b"cpu\n"


@pytest.mark.parametrize("place", ["CUDA_HOME", "PATH", "wheels"])
def test_nvcc_is_found(place, source, builder, tmp_path):
    folders = {
        "CUDA_HOME": tmp_path / "home",
        "PATH": tmp_path / "path",
        "wheels": tmp_path / "site" / "nvidia" / "cu13",
    }
    # Those that come later are there too, and those that come first are not.
    for name in list(folders)[list(folders).index(place) :]:
        below = "nvcc" if name == "PATH" else "bin/nvcc"
        compiler_that_writes(folders[name] / below, name)
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("sh", "echo"):
        (tools / tool).symlink_to(shutil.which(tool) or tool)
    environment = {
        "CXX": str(compiler_that_writes(tmp_path / "c++", "cpu")),
        "CUDA_HOME": str(folders["CUDA_HOME"]) if place == "CUDA_HOME" else "",
        "PATH": f"{folders['PATH']}:{tools}",
        "PYTHONPATH": str(tmp_path / "site"),
    }
    wheel, _ = build(builder, source, tmp_path / "wheels", environment)
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read("stal_kernels/libstal_kernels_cuda.so").decode() == f"{place}\n"
    assert not any("not_built" in name for name in names_in(wheel))


def test_package_builds_without_a_compiler_and_says_so(source, builder, tmp_path):
    wheel, log = build(builder, source, tmp_path, {"CXX": "/nonexistent"})
    assert wheel.name.endswith("-py3-none-any.whl")
    assert "the cpu backend is NOT built: no C++ compiler was found" in log
    assert "the cuda backend is not built: no nvcc was found" in log
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
    assert (unpacked / "csrc" / "cuda" / "launch.cu").exists()
    assert (unpacked / "csrc" / "build.toml").exists()
    assert (unpacked / "examples" / "step_batching.py").exists()  # bench/gpu_check.py imports it
    compiler = {"CXX": str(compiler_that_reads(tmp_path / "c++"))}
    from_archive, _ = build(builder, unpacked, tmp_path / "archive", compiler)
    from_checkout, _ = build(builder, source, tmp_path / "checkout", compiler)
    assert "stal_kernels/libstal_kernels.so" in names_in(from_archive)
    assert from_archive.name == from_checkout.name
    assert names_in(from_archive) == names_in(from_checkout)


def test_editable_install_builds_the_library_in_place(source, builder, tmp_path):
    checkout = tmp_path / "checkout"
    shutil.copytree(source, checkout)
    run(
        *(builder, "-m", "pip", "install", "-q", "--no-build-isolation", "--no-deps"),
        *("--editable", checkout),
        environment={**WITHOUT_CUDA, "CXX": str(compiler_that_writes(tmp_path / "c++", "cpu"))},
    )
    built = [p.name for p in (checkout / "stal_kernels").glob("libstal_kernels.*")]
    assert len(built) == 1
    code = "import importlib.util as u; print(u.find_spec('stal_kernels').origin)"
    said = run(builder, "-c", code, cwd=tmp_path)
    assert str(checkout) in said
