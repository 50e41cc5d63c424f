"""LoRAs that a command puts on its model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from stal.pipeline import Pipeline

LoraOption = Annotated[
    list[str] | None, typer.Option(help="LoRA on the model: FILE or FILE:SCALE; again for more.")
]
Loras = tuple[tuple[str, float], ...]


def read_loras(given: Sequence[str] | None) -> Loras:
    """The file and the scale of each that --lora names."""
    return tuple(map(_read, given or ()))


def _read(text: str) -> tuple[str, float]:
    file, colon, scale = text.rpartition(":")
    if colon and not os.path.exists(text):  # a colon may belong to a file's name
        with suppress(ValueError):
            return file, float(scale)
    return text, 1.0


def with_loras(pipe: Pipeline, loras: Loras) -> Pipeline:
    """A pipeline with them on its model. Raises as `Pipeline.with_lora`."""
    for source, scale in loras:
        pipe = pipe.with_lora(source, scale)
    return pipe
