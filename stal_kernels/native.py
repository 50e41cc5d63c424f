"""The native libraries beside this file: how one is loaded, and why one is not there."""

import sys
from pathlib import Path
from typing import Any

# What setup.py leaves in the place of a library that it could not build.
_REASONS = {
    "libstal_kernels": "not_built.txt",
    "libstal_kernels_cuda": "not_built_cuda.txt",
}


def load(package: Path, name: str) -> Any:
    """The functions of a library as attributes.

    Args:
        package: the folder of stal_kernels.
        name: "libstal_kernels" or "libstal_kernels_cuda".

    Raises:
        RuntimeError: it was not built; the message says why and what to do.
        OSError, RuntimeError: it does not load.
    """
    path = _find(package, name)
    if path is None:
        raise RuntimeError(_why_there_is_none(package, name))
    # Imported late: before torch 2.11 this import compiles an add-on.
    import tvm_ffi

    return tvm_ffi.load_module(path)


def _find(package: Path, name: str) -> Path | None:
    paths = [package / f"{name}.{suffix}" for suffix in ("so", "dylib")]
    return next((path for path in paths if path.exists()), None)


def _why_there_is_none(package: Path, name: str) -> str:
    reason = package / _REASONS[name]
    if reason.exists():
        return f"it was not built: {reason.read_text(encoding='utf-8').strip()}"
    source = package.parent
    if not (source / "setup.py").exists():
        return f"{package} has no library; install the package again"
    where = f"stal_kernels was imported from the source folder {source}, whose library is not built"
    for entry in sys.path:
        installed = Path(entry or ".") / "stal_kernels"
        if installed.resolve() != package.resolve() and _find(installed, name):
            return (
                f"{where}: go to another folder (cd) to use the installed copy in "
                f"{installed.parent}, or build it with `pip install -e .`"
            )
    return (
        f"{where}: run `pip install -e .` in it (or `python setup.py build_ext --inplace`), or "
        "`pip install .` and go to another folder (cd)"
    )
