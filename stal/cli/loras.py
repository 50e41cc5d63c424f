"""LoRAs that a command puts on its model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated

import typer

LoraOption = Annotated[
    list[str] | None, typer.Option(help="LoRA on the model: FILE or FILE:SCALE; again for more.")
]
Loras = tuple[tuple[str, float], ...]


def read_loras(given: Sequence[str] | None) -> Loras:
    """The file and the scale of each that --lora names, for `Pipeline.from_pretrained`."""
    return tuple(map(_read, given or ()))


def _read(text: str) -> tuple[str, float]:
    file, colon, scale = text.rpartition(":")
    if colon and not os.path.exists(text):  # a colon may belong to a file's name
        with suppress(ValueError):
            return file, float(scale)
    return text, 1.0
