"""How much a request may ask for; everything is refused with the limit in the message."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from stal.app.problems import Problem
from stal.checked_json import is_integer
from stal.layout import Layout
from stal.layout.coverage import Painted


@dataclass(frozen=True)
class Limits:
    """The most of each.

    Attributes:
        pixels: of a picture.
        steps: of a drawing.
        objects: of a layout.
        images: pictures of a request.
        queue: pictures that are accepted and not done.
        prompt_chars: of a prompt, a negative prompt and a phrase.
        body_bytes, upload_bytes: of a request, and of an uploaded file.
        kept, kept_bytes: finished drawings that the page can ask for again, and what they take.

    Raises:
        ValueError: one is no positive integer.
    """

    pixels: int = 1 << 20
    steps: int = 100
    objects: int = 16
    images: int = 4
    queue: int = 64
    prompt_chars: int = 2_000
    body_bytes: int = 1 << 20
    upload_bytes: int = 16 << 20
    kept: int = 100
    kept_bytes: int = 256 << 20

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not is_integer(value) or value < 1:
                raise ValueError(f"{field.name} must be a positive integer, got {value!r}")


def at_most(name: str, value: float, most: int, *, unit: str = "") -> None:
    """Raises Problem, which blames the field `name`, if there is more."""
    if value > most:
        rule = f"{name} must be at most {most}{unit}, got {value}"
        raise Problem(400, rule, param=name, code="limit_exceeded")


def check_size(width: int | None, height: int | None, limits: Limits) -> None:
    """None is the model's own, which fits."""
    if width is not None and height is not None and width * height > limits.pixels:
        rule = f"size must be at most {limits.pixels} pixels, got {width}x{height}"
        raise Problem(400, rule, param="size", code="limit_exceeded")


def check_text(name: str, text: str, limits: Limits) -> None:
    if len(text) > limits.prompt_chars:
        rule = f"have at most {limits.prompt_chars} characters"
        got = f"{name} must {rule}, got {len(text)}"
        raise Problem(400, got, param=name, code="limit_exceeded")


def check_layout(layout: Layout, limits: Limits) -> None:
    """Whether a layout is one to draw with."""
    check_count(layout.objects, limits)
    for index, placed in enumerate(layout.objects):
        where = f"layout.objects[{index}]"
        if not placed.phrase.strip():
            raise Problem(400, f"{where}.phrase must not be empty, got none", param="layout")
        check_text(f"{where}.phrase", placed.phrase, limits)
        shape = placed.outline
        if isinstance(shape, Painted):
            at_most(f"{where}.shape", shape.height * shape.width, 4 * limits.pixels, unit=" cells")
            if abs(layout.aspect * shape.height - shape.width) > 1:
                got = f"one of {shape.width} x {shape.height} cells"
                rule = f"{where}.shape must have the layout's aspect {layout.aspect:.4g}, got {got}"
                raise Problem(400, rule, param="layout")


def check_count(objects: Sequence[object], limits: Limits) -> None:
    at_most("objects of the layout", len(objects), limits.objects)
