"""What a ComfyUI needs to find the nodes: one small file in its custom_nodes."""

from __future__ import annotations

import os
from pathlib import Path

from stal.files import write_atomic

FOLDER = "stal"
# Of a folder that is a ComfyUI; the last is where nodes go.
_PARTS = ("nodes.py", "comfy/model_patcher.py", "custom_nodes")
ENTRY = '''\
"""Nodes of the package stal, written by `stal comfyui`. Delete this folder to undo that."""

try:
    from comfy_api.latest import ComfyExtension  # noqa: F401
except ImportError:
    from stal.integrations.comfyui.classic import (  # noqa: F401
        NODE_CLASS_MAPPINGS,
        NODE_DISPLAY_NAME_MAPPINGS,
    )
else:
    from stal.integrations.comfyui.extension import comfy_entrypoint  # noqa: F401
'''


def install(folder: str | os.PathLike[str]) -> Path:
    """Writes custom_nodes/stal/__init__.py in a ComfyUI; again is the same as once.

    Returns:
        The folder that was written, whose removal undoes it.

    Raises:
        ValueError: no folder of ComfyUI, or files of somebody else in that place.
        OSError: it cannot be written.
    """
    root = Path(folder)
    missing = [part for part in _PARTS if not (root / part).exists()]
    if missing:
        raise ValueError(
            f"path must be a folder of ComfyUI, with {', '.join(_PARTS)}, got {root} without"
            f" {missing[0]}"
        )
    target = root / "custom_nodes" / FOLDER
    entry = target / "__init__.py"
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise ValueError(f"{target} must be free for the nodes, got something else: move it away")
    if target.is_dir():
        others = [each.name for each in target.iterdir() if each.name != "__pycache__"]
        ours = entry.is_file() and entry.read_bytes().startswith(ENTRY.splitlines()[0].encode())
        if others and (others != [entry.name] or not ours):
            raise ValueError(
                f"{target} must be free for the nodes, got a folder with"
                f" {sorted(others)[0]} from somebody else: move it away"
            )
    target.mkdir(exist_ok=True)
    write_atomic(entry, ENTRY.encode())
    return target
