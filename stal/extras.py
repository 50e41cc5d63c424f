"""Packages that not everybody has, looked for before the work that needs them."""

from __future__ import annotations

import importlib.util

# Package -> the extra of this one that brings it.
_EXTRAS = {
    "fastapi": "app",
    "matplotlib": "plot",
    "open_clip": "clip",
    "prometheus_client": "app",
    "pyarrow": "batch",
    "ray": "ray",
    "scipy": "bench",
    "spacy": "spacy",
    "uvicorn": "app",
    "webdataset": "batch",
}


def check_installed(package: str, purpose: str) -> None:
    """Raises ValueError, which says how to get it, if a package is not there.

    package: one that an extra of this distribution brings.
    purpose: what it is needed for, like "the plots".
    """
    if importlib.util.find_spec(package) is None:
        fix = f"pip install 'stal[{_EXTRAS[package]}]'"
        raise ValueError(f"{package} must be installed for {purpose}: {fix}")
