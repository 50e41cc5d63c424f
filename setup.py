"""Builds the native libraries of stal_kernels; everything else is in pyproject.toml.

They are plain C++17 and CUDA bound with apache-tvm-ffi: they know neither Python's nor torch's
ABI, so one wheel (py3-none-<platform>) serves every version of both. CXX chooses the compiler;
nvcc is that of CUDA_HOME, of the PATH or of NVIDIA's wheels, and CUDA_HOME=none leaves CUDA out.
What cannot be built is left out and its reason kept; without both the package is pure Python.
"""

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
SOURCES = ROOT / "csrc" / "cpu"
CUDA_SOURCES = ROOT / "csrc" / "cuda"
SUFFIXES = (".h", ".cpp", ".cu")
CACHES = ("ccache", "sccache")
READ_BY_COMPILERS = (
    *("CPATH", "CPLUS_INCLUDE_PATH"),
    *("NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS", "NVCC_CCBIN"),
)
MACOS = sys.platform == "darwin"

# GCC warns about the undefined registers inside its own intrinsics, clang about tvm_ffi's macros.
CXXFLAGS = (
    "-std=c++17 -O3 -fPIC -fvisibility=hidden -ffp-contract=fast -fno-math-errno -Wall -Wextra "
    "-Wno-uninitialized -Wno-maybe-uninitialized -Wno-unused-parameter -Wno-unknown-warning-option "
    "-Wno-psabi"
)
# A level is csrc/cpu/level_<name>.cpp: the same kernels for another instruction set, or for a model
# of one in plain arithmetic, which runs anywhere.
LEVELS = {"portable": "", "avx512_bf16_model": "-O2", "amx_model": "-O2"}
if platform.machine() in ("x86_64", "AMD64"):
    LEVELS["avx2"] = "-mavx2 -mfma -mf16c"
    LEVELS["avx512"] = "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c"
    # These two refer to the level avx512, which comes first.
    LEVELS["avx512_bf16"] = LEVELS["avx512"] + " -mavx512bf16"
    LEVELS["amx"] = LEVELS["avx512_bf16"] + " -mamx-tile -mamx-bf16"
elif platform.machine() in ("aarch64", "arm64"):
    LEVELS["neon"] = ""  # every such CPU has it


# Instructions of wgmma are in sm_90a alone: no other GPU could run a translation of them.
NVCCFLAGS = (
    "-std=c++17 -O3 -gencode arch=compute_90a,code=sm_90a --compiler-options "
    "-fPIC,-fvisibility=hidden,-Wall,-Wextra,-Wno-unused-parameter"
)


class BuildError(Exception):
    """Why a native library cannot be built here, in one line."""


def find_compiler() -> list[str]:
    candidates = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    for candidate in candidates:
        command = shlex.split(candidate)
        if command and shutil.which(command[0]):
            return command
    raise BuildError(f"no C++ compiler was found (tried {', '.join(candidates)}; set CXX)")


def find_nvcc() -> list[str]:
    """CUDA_HOME's, the one on the PATH, or that of NVIDIA's wheels beside this Python."""
    home = os.environ.get("CUDA_HOME")
    if home:
        candidates = [str(Path(home, "bin", "nvcc"))]
    else:
        wheels = importlib.util.find_spec("nvidia")
        folders = wheels.submodule_search_locations or [] if wheels else []
        found = [str(nvcc) for folder in folders for nvcc in Path(folder).glob("cu*/bin/nvcc")]
        candidates = ["nvcc", *found]
    for candidate in candidates:
        if nvcc := shutil.which(candidate):
            return [nvcc]
    where = f"in CUDA_HOME ({home})" if home else "in CUDA_HOME, on the PATH or in NVIDIA's wheels"
    raise BuildError(f"no nvcc was found {where}")


def run(command: list[str]) -> None:
    print("stal_kernels:", shlex.join(command))
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    sys.stderr.write(result.stderr)
    if result.returncode:
        lines = result.stderr.splitlines()
        errors = [line for line in lines if "error" in line or "fatal" in line]
        message = (errors or lines or ["no message"])[0]
        raise BuildError(f"{command[0]} failed: {message}")


def compile_once(command: list[str], includes: list[str], source: Path, target: Path) -> str:
    """Compiles `source` into `target`, unless that is what the same compiler made of the same files
    with the same options; pip builds where the sources lie, and the next `pip install .` finds it.
    """
    made_of = [shlex.join(command), source.name]
    # The compiler, what a cache calls, and what nvcc calls.
    for word in (*command, "c++", "g++"):
        if not word.startswith("-") and (found := shutil.which(word)):
            program = Path(found).resolve()
            state = program.stat()
            made_of.append(f"{program} {state.st_size} {state.st_mtime_ns}")
    made_of += [f"{name}={os.environ.get(name)}" for name in READ_BY_COMPILERS]
    # The headers of a build environment lie at another path each time.
    made_of += [importlib.metadata.version("apache-tvm-ffi")]
    digest = hashlib.sha256("\0".join(made_of).encode())
    for path in sorted(p for p in (ROOT / "csrc").rglob("*") if p.suffix in SUFFIXES):
        name = path.relative_to(ROOT).as_posix()
        if not name.startswith("csrc/test/"):
            digest.update(f"\0{name}\0".encode() + path.read_bytes())
    note = target.with_suffix(".sha256")
    if target.exists() and note.exists() and note.read_text() == digest.hexdigest():
        return str(target)
    note.unlink(missing_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    run([*command, *includes, "-c", str(source), "-o", str(target)])
    note.write_text(digest.hexdigest())
    return str(target)


def check_platform(*supported: tuple[str, str]) -> None:
    if (sys.platform, platform.machine()) not in supported:
        raise BuildError(f"{sys.platform} on {platform.machine()} is not supported")


def find_tvm_ffi() -> Path:
    """The folder of the package, which has headers and a library."""
    tvm_ffi = importlib.util.find_spec("tvm_ffi")
    if tvm_ffi is None or tvm_ffi.origin is None:
        raise BuildError("apache-tvm-ffi is not installed in the build environment")
    return Path(tvm_ffi.origin).parent


def build_cpu(target: Path, objects: Path) -> None:
    """Compiles csrc/cpu into `target`. A level that the compiler refuses is left out."""
    check_platform(("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"))
    compiler = find_compiler()
    tvm_ffi = find_tvm_ffi()
    flags = CXXFLAGS.split()
    if MACOS:
        flags += ["-arch", "arm64"]
    includes = [f"-I{ROOT / 'csrc'}", "-isystem", str(tvm_ffi / "include")]

    def compile_file(name: str, *extra: str) -> str:
        command = [*compiler, *flags, *extra]
        return compile_once(command, includes, SOURCES / f"{name}.cpp", objects / f"{name}.o")

    def compile_level(level: str) -> str | BuildError:
        try:
            return compile_file(f"level_{level}", *LEVELS[level].split())
        except BuildError as error:
            return error

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        levels = dict(zip(LEVELS, pool.map(compile_level, LEVELS), strict=True))
    if isinstance(levels.get("avx512"), BuildError):
        for level in ("avx512_bf16", "amx"):
            levels[level] = BuildError("level avx512, which it refers to, was left out")
    linked = []
    defines = []
    for level, made in levels.items():
        if isinstance(made, str):
            linked.append(made)
            defines.append(f"-DSTAL_LEVEL_{level.upper()}")
        elif level == "portable":
            raise made
        else:
            print(f"stal_kernels: level {level} is left out: {made}", file=sys.stderr)
    # OpenMP shares torch's threads; without it (macOS, clang without libomp) calls start their own.
    threads = "-pthread" if MACOS else "-fopenmp"
    try:
        linked.append(compile_file("parallel", threads))
    except BuildError as error:
        print(f"stal_kernels: OpenMP is left out: {error}", file=sys.stderr)
        threads = "-pthread"
        linked.append(compile_file("parallel", threads))
    for name in ("binding", "call_storage", "levels"):
        linked.append(compile_file(name, *defines))

    # tvm_ffi has loaded libtvm_ffi by the time that it loads this library; the run path is for
    # tools that inspect the library on its own.
    origin = "@loader_path" if MACOS else "$ORIGIN"
    link = ["-L" + str(tvm_ffi / "lib"), "-ltvm_ffi", f"-Wl,-rpath,{origin}/../tvm_ffi/lib"]
    run([*compiler, *flags, threads, "-shared", *linked, *link, "-o", str(target)])


def build_cuda(target: Path, objects: Path) -> None:
    """Compiles csrc/cuda into `target`, a file on each core.

    CUDA's runtime is linked statically, and opens the driver when it is first called: the library
    loads without a toolkit, a driver or a GPU.
    """
    check_platform(("linux", "x86_64"), ("linux", "aarch64"))
    nvcc = find_nvcc()
    compiler = find_compiler()
    tvm_ffi = find_tvm_ffi()
    if os.environ.get("CXX"):
        # The program, without a cache in front of it or flags behind.
        nvcc += ["-ccbin", next(part for part in compiler if Path(part).name not in CACHES)]
    includes = [f"-I{ROOT / 'csrc'}", "-isystem", str(tvm_ffi / "include")]

    def compile_file(source: Path) -> str:
        command = nvcc + NVCCFLAGS.split()
        if source.suffix == ".cpp":
            command = compiler + CXXFLAGS.split()
        return compile_once(command, includes, source, objects / f"cuda_{source.stem}.o")

    sources = sorted(p for p in CUDA_SOURCES.iterdir() if p.suffix in (".cu", ".cpp"))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        linked = list(pool.map(compile_file, sources))
    link = ["-L" + str(tvm_ffi / "lib"), "-ltvm_ffi", "-Xlinker", "-rpath=$ORIGIN/../tvm_ffi/lib"]
    run([*nvcc, "-shared", "-cudart", "static", *linked, *link, "-o", str(target)])


class Library(NamedTuple):
    """A library inside stal_kernels and the file that says why it is not there.

    Both names are read by stal_kernels/native.py.
    """

    name: str
    reason: str
    build: Callable[[Path, Path], None]
    without: str  # what is said then

    @property
    def file(self) -> str:
        return f"{self.name}.dylib" if MACOS else f"{self.name}.so"


LIBRARIES = {
    library.name: library
    for library in (
        Library(
            "libstal_kernels",
            "not_built.txt",
            build_cpu,
            "{bar}\nstal_kernels: the cpu backend is NOT built: {error}.\n"
            "The package works without it, slowly; `python -m stal_kernels` shows this reason."
            "\n{bar}",
        ),
        Library(
            "libstal_kernels_cuda",
            "not_built_cuda.txt",
            build_cuda,
            "stal_kernels: the cuda backend is not built: {error}",
        ),
    )
}


class BuildNative(build_ext):
    """build_ext whose extensions are plain shared libraries inside stal_kernels."""

    def get_ext_filename(self, fullname: str) -> str:
        *package, name = fullname.split(".")
        return str(Path(*package, LIBRARIES[name].file))

    def build_extension(self, ext: Extension) -> None:
        library = LIBRARIES[ext.name.rpartition(".")[2]]
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        target.with_name(library.reason).unlink(missing_ok=True)
        try:
            library.build(target.resolve(), Path(self.build_temp).resolve())
        except BuildError as error:
            target.with_name(library.reason).write_text(f"{error}\n", encoding="utf-8")
            print(library.without.format(error=error, bar="*" * 100), file=sys.stderr)

    def copy_extensions_to_source(self) -> None:
        built = Path(self.build_lib, "stal_kernels")
        for name in [x for library in LIBRARIES.values() for x in (library.file, library.reason)]:
            ROOT.joinpath("stal_kernels", name).unlink(missing_ok=True)
            if (built / name).exists():
                self.copy_file(str(built / name), str(ROOT / "stal_kernels" / name))


class Wheel(bdist_wheel):
    """Tags the wheel py3-none-<platform>, or py3-none-any when nothing native is in it."""

    def get_tag(self) -> tuple[str, str, str]:
        build = self.get_finalized_command("build_ext")
        built = Path(build.build_lib, "stal_kernels")
        if not any((built / library.file).exists() for library in LIBRARIES.values()):
            self.root_is_pure = True
            return "py3", "none", "any"
        # A universal Python builds the library for one architecture only.
        return "py3", "none", super().get_tag()[2].replace("universal2", "arm64")


setup(
    ext_modules=[
        Extension(f"stal_kernels.{name}", sources=[], optional=True) for name in LIBRARIES
    ],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": Wheel},
)
