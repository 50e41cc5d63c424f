"""ComfyUI, where a folder of it is given; none of its code is in this repository."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def comfyui(request: pytest.FixtureRequest) -> Path:
    """The folder of a ComfyUI whose modules can be imported, on the CPU."""
    folder = request.config.getoption("--comfyui")
    if folder is None:
        pytest.skip("needs a ComfyUI: give its folder with --comfyui=PATH, see docs/comfyui.md")
    if not (folder / "comfy" / "model_patcher.py").is_file():
        pytest.fail(f"--comfyui must be a folder of ComfyUI, got {folder}")
    sys.path.append(str(folder))
    import comfy.cli_args

    comfy.cli_args.args.cpu = True  # read when the other modules are imported
    import comfy.sample

    return folder


@pytest.fixture(scope="session")
def models(comfyui: Path) -> Callable[[str], Any]:
    """models(name): a tiny model of `comfy_models`, made once."""
    from tests.stal.integrations import comfy_models

    made: dict[str, Any] = {}

    def get(name: str) -> Any:
        if name not in made:
            made[name] = getattr(comfy_models, name)()
        return made[name]

    return get
