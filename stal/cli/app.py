"""`stal app`: the page, in the browser. Heavy imports happen late."""

from __future__ import annotations

from typing import Annotated

import typer

from stal.cli.loras import LoraOption, read_loras
from stal.cli.options import DeviceOption, DType, ModelOption
from stal.cli.serve import (
    HostOption,
    KeyOption,
    MaxImagesOption,
    MaxObjectsOption,
    MaxPixelsOption,
    MaxRowsOption,
    MaxStepsOption,
    PortOption,
    QueueOption,
    What,
    Where,
    run,
)


def open_page(
    host: HostOption = "127.0.0.1",
    port: PortOption = 8000,
    api_key_file: KeyOption = None,
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="Only say where the page is.")
    ] = False,
    model: ModelOption = None,
    lora: LoraOption = None,
    dtype: DType = DType.float32,
    device: DeviceOption = "cpu",
    max_rows: MaxRowsOption = 16,
    queue: QueueOption = 64,
    max_pixels: MaxPixelsOption = None,
    max_steps: MaxStepsOption = None,
    max_objects: MaxObjectsOption = None,
    max_images: MaxImagesOption = None,
) -> None:
    """Open a page to draw with: boxes, strengths over the steps, previews; and serve the same."""
    limits = {"pixels": max_pixels, "steps": max_steps, "objects": max_objects}
    limits |= {"images": max_images, "queue": queue}
    where = Where(host, port, api_key_file)
    what = What(model, read_loras(lora), dtype, device, max_rows, limits)
    run(where, what, page=True, browser=not no_browser)
