"""Regional prompts as the nodes hand them on: where each one is, and what it says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from stal.layout import Layout, PlacedObject
from stal.layout.formats import as_layout
from stal.prompts import article, noun_of
from stal.settings import check_text

# ComfyUI's CONDITIONING of one text: a tensor with what belongs to it.
Conditioning: TypeAlias = "tuple[Tensor, dict[str, Any]]"

MOST_REGIONS = 255


@dataclass(frozen=True)
class Regions:
    """What one picture attends to.

    layout: where its objects are.
    local: the encoded phrase of each object.
    reference: the encoded prompt that the rule "guidance" moves away from.
    """

    layout: Layout
    local: tuple[Conditioning, ...]
    reference: Conditioning


def layout_of_boxes(
    boxes: Any, *, prompt: str, width: int, height: int, phrases: Sequence[str] = ()
) -> Layout:
    """The layout of ComfyUI's bounding boxes.

    Args:
        boxes: one or more {"x", "y", "width", "height"} in pixels, or, without phrases, the
            canvas's JSON, as `stal.layout.comfyui` reads them.
        prompt: of the whole picture.
        width, height: of the canvas in pixels.
        phrases: what is in each box; if there are none, what the boxes say themselves.

    Raises:
        ValueError: a box that breaks its rule, or as many phrases as there are no boxes.
    """
    if phrases:
        single = isinstance(boxes, dict)
        each = [boxes] if single else list(boxes)
        if each and isinstance(each[0], list):
            frames = [frame for frame in each if frame]
            if any(frame != frames[0] for frame in frames):
                raise ValueError(f"boxes must be of one frame, got {len(frames)} that differ")
            each = frames[0] if frames else []
        if not all(isinstance(box, dict) for box in each):
            raise ValueError("boxes must each be an object with x, y, width and height")
        _check_count(phrases, len(each), "boxes")
        pairs = zip(each, phrases, strict=True)
        boxes = [{**box, "label": phrase, "metadata": {}} for box, phrase in pairs]
    return as_layout(
        boxes,
        prompt=prompt,
        aspect=width / height,
        noun_of=noun_of,
        article=article,
        canvas=(width, height),
    )


def layout_of_masks(masks: Tensor, *, prompt: str, phrases: Sequence[str]) -> Layout:
    """The layout of ComfyUI's masks (masks, height, width), one a phrase.

    Raises:
        ValueError: masks that are empty or not one a phrase.
    """
    _check_count(phrases, len(masks), "masks")
    height, width = masks.shape[-2:]
    stack = {"phrases": list(phrases), "masks": masks}
    return as_layout(stack, prompt=prompt, aspect=width / height, noun_of=noun_of, article=article)


def boxes_of(layout: Layout, *, width: int, height: int) -> list[dict[str, Any]]:
    """ComfyUI's bounding boxes of a layout, on a canvas of so many pixels."""
    return [_box_of(placed, width, height) for placed in layout.objects]


def _box_of(placed: PlacedObject, width: int, height: int) -> dict[str, Any]:
    x0, y0, x1, y1 = placed.box
    left, top = round(x0 * width), round(y0 * height)
    right, bottom = max(round(x1 * width), left + 1), max(round(y1 * height), top + 1)
    return {
        "x": left,
        "y": top,
        "width": right - left,
        "height": bottom - top,
        "label": placed.phrase,
        "score": placed.score,
        "metadata": {"type": "obj", "text": "", "desc": placed.phrase, "palette": []},
    }


def lines_of(text: str) -> list[str]:
    """The phrases of a text, one a line; empty lines at its end are none.

    Raises:
        ValueError: a line before the last phrase that says nothing.
    """
    lines = [line.strip() for line in text.rstrip().splitlines()]
    for number, line in enumerate(lines, 1):
        if not line:
            raise ValueError(
                f"phrases must say what is in each region, one a line, got an empty line {number}"
            )
    return lines


def regions_of(clip: Any, layout: Layout, phrases: Sequence[str], reference: str) -> Regions:
    """A layout with its phrases encoded.

    Args:
        clip: ComfyUI's CLIP.
        layout: where the objects are.
        phrases: said instead of the layout's own; none for those.
        reference: the text that the rule "guidance" moves away from.

    Raises:
        ValueError: no object, too many, a phrase that says nothing, or as many phrases as there are
            no objects.
    """
    if not layout.objects:
        raise ValueError(
            "layout must have an object, got none: name what is in the picture, or give boxes"
        )
    if len(layout.objects) > MOST_REGIONS:
        raise ValueError(
            f"layout must have at most {MOST_REGIONS} objects, got {len(layout.objects)}"
        )
    if phrases:
        _check_count(phrases, len(layout.objects), "objects of the layout")
        objects = (replace(o, phrase=p) for o, p in zip(layout.objects, phrases, strict=True))
        layout = replace(layout, objects=tuple(objects))
    for index, placed in enumerate(layout.objects):
        check_text(f"objects[{index}].phrase of the layout", placed.phrase)
        if not placed.phrase.strip():
            raise ValueError(f"objects[{index}].phrase must say what is there, got an empty one")
    check_text("reference", reference)
    known: dict[str, Conditioning] = {}
    for text in (*(placed.phrase for placed in layout.objects), reference):
        if text not in known:
            known[text] = _encode(clip, text)
    local = tuple(known[placed.phrase] for placed in layout.objects)
    return Regions(layout, local, known[reference])


@torch.no_grad()
def _encode(clip: Any, text: str) -> Conditioning:
    found = clip.encode_from_tokens_scheduled(clip.tokenize(text))
    if len(found) != 1:
        raise ValueError(
            f"clip must encode a text once, got {len(found)} times, as its hooks are scheduled:"
            " give it without them"
        )
    embeds, options = found[0]
    return embeds, dict(options)


def _check_count(phrases: Sequence[str], count: int, of: str) -> None:
    if len(phrases) != count:
        raise ValueError(
            f"phrases must be one a line for each of the {count} {of}, got {len(phrases)}"
        )
