"""What all tests share: which library they test, and how workers share the cores."""

import importlib
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def _prefer_installed() -> None:
    """`python -m pytest` puts the checkout first on the path, whose native library is not built."""
    elsewhere = [path for path in sys.path if Path(path).resolve() != ROOT]
    if any((Path(path) / "stal_kernels").is_dir() for path in elsewhere):
        sys.path[:] = elsewhere


def _share_cores() -> None:
    """Workers of pytest-xdist, and what they start, have their part of the threads."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers > 1:
        # OpenMP reads it when torch is imported, which no worker has done yet.
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))


_prefer_installed()
_share_cores()


def pytest_addoption(parser: pytest.Parser) -> None:
    text = "how long each harness of tests/fuzz draws examples; 0: a few, the same every time"
    parser.addoption("--fuzz-seconds", type=float, default=0, metavar="SECONDS", help=text)
    text = "random calls that test_sanitizers.py makes of each level, 200 unless told; "
    text += "test_cuda_emulator.py makes a tenth of each head_dim"
    parser.addoption("--fuzz-cases", type=int, default=200, metavar="CASES", help=text)
    text = "compile all forms of the Triton kernels, not the tightest; draw all pictures of a page"
    parser.addoption("--every-variant", action="store_true", help=text)
    text = "fail where an optional package is not installed, instead of skipping"
    parser.addoption("--all-packages", action="store_true", help=text)
    text = "folder of a ComfyUI, with which the tests of its nodes run"
    parser.addoption("--comfyui", type=Path, metavar="PATH", help=text)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips a test without the packages that its mark `needs` names."""
    for mark in item.iter_markers("needs"):
        for package in mark.args:
            try:
                importlib.import_module(package)
            except ImportError as error:
                message = f'needs {package}, which `pip install ".[integrations]"` brings: {error}'
                missing = pytest.fail if item.config.getoption("--all-packages") else pytest.skip
                missing(message)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests first, then those of the kernels, so that no worker is left alone with one."""
    kernels = ROOT / "tests" / "stal_kernels"
    items.sort(key=lambda item: ("slow" not in item.keywords, kernels not in item.path.parents))
