"""Builds the native library of stal_kernels; everything else is in pyproject.toml.

The library is plain C++17 bound with apache-tvm-ffi: it knows neither Python's nor torch's ABI,
so one wheel (py3-none-<platform>) serves every version of both. CXX chooses the compiler.
Where it cannot be built, the package installs as pure Python and keeps the reason.
"""

import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
SOURCES = ROOT / "csrc" / "cpu"
MACOS = sys.platform == "darwin"
LIBRARY = "libstal_kernels.dylib" if MACOS else "libstal_kernels.so"
REASON = "not_built.txt"  # read by stal_kernels/backends/cpu.py

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


class BuildError(Exception):
    """Why the native library cannot be built here, in one line."""


def find_compiler() -> list[str]:
    candidates = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    for candidate in candidates:
        command = shlex.split(candidate)
        if command and shutil.which(command[0]):
            return command
    raise BuildError(f"no C++ compiler was found (tried {', '.join(candidates)}; set CXX)")


def run(command: list[str]) -> None:
    print("stal_kernels:", shlex.join(command))
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    sys.stderr.write(result.stderr)
    if result.returncode:
        errors = [line for line in result.stderr.splitlines() if "error" in line]
        message = (errors or result.stderr.splitlines() or ["no message"])[0]
        raise BuildError(f"{command[0]} failed: {message}")


def build_library(target: Path, objects: Path) -> None:
    """Compiles csrc/cpu into `target`. A level that the compiler refuses is left out."""
    supported = {("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64")}
    if (sys.platform, platform.machine()) not in supported:
        raise BuildError(f"{sys.platform} on {platform.machine()} is not supported")
    compiler = find_compiler()
    tvm_ffi = importlib.util.find_spec("tvm_ffi")
    if tvm_ffi is None or tvm_ffi.origin is None:
        raise BuildError("apache-tvm-ffi is not installed in the build environment")
    tvm_ffi_folder = Path(tvm_ffi.origin).parent
    flags = [*CXXFLAGS.split(), f"-I{ROOT / 'csrc'}", "-isystem", str(tvm_ffi_folder / "include")]
    if MACOS:
        flags += ["-arch", "arm64"]
    objects.mkdir(parents=True, exist_ok=True)

    def compile_file(source: Path, *extra: str) -> str:
        output = str(objects / f"{source.stem}.o")
        run([*compiler, *flags, *extra, "-c", str(source), "-o", output])
        return output

    linked = []
    defines = []
    for level, level_flags in LEVELS.items():
        try:
            if level in ("avx512_bf16", "amx") and "-DSTAL_LEVEL_AVX512" not in defines:
                raise BuildError("level avx512, which it refers to, was left out")
            linked.append(compile_file(SOURCES / f"level_{level}.cpp", *level_flags.split()))
            defines.append(f"-DSTAL_LEVEL_{level.upper()}")
        except BuildError as error:
            if level == "portable":
                raise
            print(f"stal_kernels: level {level} is left out: {error}", file=sys.stderr)
    # OpenMP shares torch's threads; without it (macOS, clang without libomp) calls start their own.
    threads = "-pthread" if MACOS else "-fopenmp"
    try:
        linked.append(compile_file(SOURCES / "parallel.cpp", threads))
    except BuildError as error:
        print(f"stal_kernels: OpenMP is left out: {error}", file=sys.stderr)
        threads = "-pthread"
        linked.append(compile_file(SOURCES / "parallel.cpp", threads))
    for name in ("binding", "call_storage", "levels"):
        linked.append(compile_file(SOURCES / f"{name}.cpp", *defines))

    # tvm_ffi has loaded libtvm_ffi by the time that it loads this library; the run path is for
    # tools that inspect the library on its own.
    origin = "@loader_path" if MACOS else "$ORIGIN"
    link = ["-L" + str(tvm_ffi_folder / "lib"), "-ltvm_ffi", f"-Wl,-rpath,{origin}/../tvm_ffi/lib"]
    run([*compiler, *flags, threads, "-shared", *linked, *link, "-o", str(target)])


class BuildNative(build_ext):
    """build_ext whose one extension is a plain shared library inside stal_kernels."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split(".")[:-1], LIBRARY))

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        target.with_name(REASON).unlink(missing_ok=True)
        try:
            build_library(target.resolve(), Path(self.build_temp).resolve())
        except BuildError as error:
            target.with_name(REASON).write_text(f"{error}\n", encoding="utf-8")
            bar = "*" * 100
            print(
                f"{bar}\nstal_kernels: the cpu backend is NOT built: {error}.\n"
                f"The package works without it, slowly; `python -m stal_kernels` shows this reason."
                f"\n{bar}",
                file=sys.stderr,
            )

    def copy_extensions_to_source(self) -> None:
        built = Path(self.build_lib, "stal_kernels")
        for name in (LIBRARY, REASON):
            ROOT.joinpath("stal_kernels", name).unlink(missing_ok=True)
            if (built / name).exists():
                self.copy_file(str(built / name), str(ROOT / "stal_kernels" / name))


class Wheel(bdist_wheel):
    """Tags the wheel py3-none-<platform>, or py3-none-any when nothing native is in it."""

    def get_tag(self) -> tuple[str, str, str]:
        build = self.get_finalized_command("build_ext")
        if Path(build.build_lib, "stal_kernels", REASON).exists():
            self.root_is_pure = True
            return "py3", "none", "any"
        # A universal Python builds the library for one architecture only.
        return "py3", "none", super().get_tag()[2].replace("universal2", "arm64")


setup(
    ext_modules=[Extension("stal_kernels.libstal_kernels", sources=[], optional=True)],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": Wheel},
)
