"""Spatial-temporal attention for text-to-image diffusion models (arXiv 2304.03869)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stal.drawing import Result
    from stal.layout import Layout
    from stal.pipeline import Pipeline
    from stal.settings import Settings

__version__ = "0.1.0"
__all__ = ["Layout", "Pipeline", "Result", "Settings", "__version__"]

_HOMES = {
    "Layout": "stal.layout",
    "Pipeline": "stal.pipeline",
    "Result": "stal.drawing",
    "Settings": "stal.settings",
}


def __getattr__(name: str) -> Any:
    # torch takes a second to import: `stal --help` must not wait for it.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
