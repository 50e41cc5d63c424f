"""What goes with what: a picture's size with its layout, settings with each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stal.checked_json import short
from stal.layout import Keyframes, Layout
from stal.prompts import looks_english
from stal.settings import Complete

# How much wider or higher a layout may be than the picture before anybody sees that it is
# stretched; sizes are multiples of a few cells and seldom fit exactly.
_STRETCH = 1.1


def fits(layout: Layout, *, height: int, width: int) -> bool:
    """Whether a layout keeps its proportions, nearly, in a picture of so many pixels."""
    stretch = layout.aspect * height / width
    return 1 / _STRETCH <= stretch <= _STRETCH


def size_of_aspect(aspect: float, *, pixels: int, multiple: int) -> tuple[int, int]:
    """Height and width, multiples of `multiple`, of about this aspect and number of pixels.

    aspect: width / height, positive; a very long side is cut short.
    """
    across = aspect >= 1
    ratio = aspect if across else 1 / aspect
    short_side = max(round((pixels / ratio) ** 0.5 / multiple), 1) * multiple
    longest = 2 * pixels / short_side
    long_side = max(round(min(short_side * ratio, longest) / multiple), 1) * multiple
    return (short_side, long_side) if across else (long_side, short_side)


def misfits(prompt: str | None, layout: Layout | Keyframes, *, given: bool) -> list[str]:
    """What of a layout will not be in the picture as one may expect, a sentence each.

    prompt: None if it is not known as a text.
    given: whether the layout is the caller's own.
    """
    found, drawn = [], "the prompt" if prompt is None else short(prompt)
    if not given and prompt is not None and not looks_english(prompt):
        found.append(
            f"{drawn} does not look like English, which alone is parsed: give the layout, of"
            " phrases that the model knows"
        )
    if not layout.objects:
        what = (
            f"the layout of {drawn} has no object" if given else f"no object was found in {drawn}"
        )
        found.append(f"{what}, so that it is drawn with plain attention")
    if given and prompt is not None and layout.prompt.split() not in ([], prompt.split()):
        found.append(
            f"the layout is of another prompt, {short(layout.prompt)}: its objects are drawn into"
            f" {drawn}"
        )
    return found


def stretched(layout: Layout, settings: Complete) -> list[str]:
    """That a layout does not keep its proportions in the picture, if it does not."""
    if settings.attention == "plain" or fits(layout, height=settings.height, width=settings.width):
        return []
    return [
        f"the layout has an aspect (width / height) of {layout.aspect:.3g} and is stretched to"
        f" {settings.width} x {settings.height} pixels: give no size, or one of that aspect"
    ]


def without_effect(given: Mapping[str, Any], settings: Complete) -> list[str]:
    """What of the given settings changes nothing beside the others, a sentence each.

    Args:
        given: the caller's own by name, those that are None are not.
        settings: all that the picture is drawn with.
    """
    names = [name for name, value in given.items() if value is not None]
    found = []
    if settings.attention == "plain":
        idle = [n for n in names if n in ("rule", "reference", "background", "layout")]
        found += [f"{name} changes nothing with plain attention" for name in idle]
    elif settings.rule == "convex" and "reference" in names:
        found.append("reference changes nothing with the rule convex, which has none")
    if settings.guidance_scale == 1 and given.get("negative_prompt"):
        found.append("negative_prompt changes nothing with guidance_scale 1")
    return found
