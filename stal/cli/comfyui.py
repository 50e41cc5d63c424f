"""`stal comfyui`: nodes for a ComfyUI. Heavy imports happen late."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def comfyui(
    path: Annotated[Path, typer.Argument(help="Folder of a ComfyUI, with its main.py.")],
) -> None:
    """Make the nodes known to the ComfyUI at PATH; docs/comfyui.md says what they do.

    ComfyUI must run in the Python environment in which stal is installed.
    """
    from stal.integrations.comfyui.install import install

    target = install(path)
    print(f"{target} written; start ComfyUI anew. To undo: rm -r {target}")
