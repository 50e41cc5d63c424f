"""`python -m stal_kernels`: the table that a bug report needs."""

import os
import platform
import sys
from importlib import metadata
from pathlib import Path

import torch

import stal_kernels
from stal_kernels import backends


def main() -> None:
    """Prints versions, processor and GPU, and what keeps each backend from running."""
    rows = [
        ("stal_kernels", stal_kernels.__version__),
        ("python", f"{platform.python_version()} on {platform.platform()}"),
        ("torch", torch.__version__),
        ("apache-tvm-ffi", _version("apache-tvm-ffi")),
        ("triton version", _version("triton")),
        ("processor", f"{_cpu_model()}, {os.cpu_count()} cores"),
        ("instructions", " ".join(_cpu_flags()) or "unknown"),
        ("threads", f"{torch.get_num_threads()}"),
        ("gpu", torch.cuda.get_device_name() if torch.cuda.is_available() else "none"),
        (backends.VARIABLE, _variable()),
    ]
    rows += [(name, _state(name)) for name in backends.names()]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:{width}}  {value}")


def _state(backend: str) -> str:
    proven = "" if backends.is_proven(backend) else " (not run on a GPU yet: auto leaves it out)"
    return ("; ".join(backends.why_not(backend)) or "available") + proven


def _variable() -> str:
    value = os.environ.get(backends.VARIABLE, "")
    if value in ("", "auto", *backends.names()):
        return value or "not set"
    return f"{value!r}, which is no backend: every call with backend='auto' raises"


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


def _cpuinfo(key: str) -> str:
    if not sys.platform.startswith("linux"):
        return ""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""


def _cpu_model() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpu_flags() -> list[str]:
    """The vector instructions, out of everything that the CPU reports."""
    prefixes = ("sse4", "avx", "fma", "f16c", "amx", "asimd", "sve", "bf16", "fphp")
    flags = _cpuinfo("flags") or _cpuinfo("Features")
    return [flag for flag in flags.split() if flag.startswith(prefixes)]


if __name__ == "__main__":
    main()
