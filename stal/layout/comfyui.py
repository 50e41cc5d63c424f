"""ComfyUI's bounding boxes and areas.

    [{"x": 10, "y": 20, "width": 80, "height": 60, "label": str, "score": number}, ...]
    [{"x": ..., "metadata": {"type": "obj" | "text", "text": str, "desc": str}}, ...]
    {"width": 1024, "height": 1024, "editor_state": [boxes]}    the node Create Bounding Boxes
    {"text": str, "area": ["percentage", height, width, y, x]}  an area, or in cells of 8 pixels

Boxes are in pixels of a canvas, which is the caller's, or which the data name as the node does, or
as "dims" or "canvas". A list of lists is of frames, of which a layout can be one.
`stal.layout.workflow` finds them in a workflow.

Sources: comfyanonymous/ComfyUI, comfy_api/latest/_io.py (BoundingBox, BoundingBoxes),
comfy_extras/nodes_bounding_boxes.py, and nodes.py (ConditioningSetArea).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from stal import budget
from stal.checked_json import number, short
from stal.layout.answers import PHRASE_KEYS, Canvas, Found, box_of
from stal.layout.box_prompts import said_of
from stal.layout.coverage import Box, check_box
from stal.layout.layout import check_phrase

_SIDES = ("x", "y", "width", "height")
_LISTS = ("editor_state", "input_bboxes", "bboxes", "boxes")
# What nodes call an object, the best description first.
_NAMES = ("desc", "description", "prompt", "text", "label", *PHRASE_KEYS)
_PERCENTAGE = "percentage"
_CELL = 8  # pixels along a cell of an area


def is_comfyui(data: Any, *, of_file: bool) -> bool:
    """Whether JSON, or what it holds, is one of those above; it need not be without a fault.

    Args:
        data: the JSON.
        of_file: whether it may be a language model's answer too, which has a usual canvas.
    """
    if _boxes_key(data) is not None:
        return True
    boxes = _flat(data)
    if boxes is None:
        return False
    nested = not isinstance(data, Mapping) and not isinstance(data[0], Mapping)
    return nested or not of_file or not any(map(_is_answers, boxes))


def read_comfyui(
    data: Any, *, canvas: Canvas | None, where: str = ""
) -> tuple[Found, float | None]:
    """What such data hold.

    Args:
        data: the JSON, see `is_comfyui`.
        canvas: (width, height) in pixels, for data that do not name their own.
        where: what errors write before a place.

    Returns:
        Phrases with their boxes, and the aspect (width / height) where a canvas is known.

    Raises:
        ValueError: no canvas, another than the data name, or a box that has no words or breaks
            its rule; the message names the place.
    """
    key = _boxes_key(data)
    if key is not None:
        canvas = one_canvas(named_canvas(data), canvas)
        data, where = data[key], f"{where}{key}"
    else:
        where = f"{where}boxes"
    boxes = _of_one_frame(data, where)
    if len(boxes) > budget.MOST_OBJECTS:
        raise ValueError(f"{where} must be at most {budget.MOST_OBJECTS}, got {len(boxes)}")
    found = []
    for index, box in enumerate(boxes):
        place = f"{where}[{index}]"
        if not isinstance(box, Mapping):
            raise ValueError(f"{place} must be a box, got {short(box)}")
        found.append((_words(box, place), box_in_pixels(box, canvas, place)))
    return found, None if canvas is None else canvas[0] / canvas[1]


def is_box_in_pixels(value: Any) -> bool:
    """Whether it is an object with a box that `box_in_pixels` reads."""
    return isinstance(value, Mapping) and ("area" in value or all(key in value for key in _SIDES))


def box_in_pixels(value: Mapping[str, Any], canvas: Canvas | None, where: str) -> Box:
    """The box of {"x", "y", "width", "height"}, or of {"area"}. Errors are those above."""
    area = value.get("area")
    if area is None:
        missing = [key for key in _SIDES if key not in value]
        if missing:
            raise ValueError(f'{where} must have "{missing[0]}", got {short(dict(value))}')
        return _of_sides([value[key] for key in _SIDES], canvas, where)
    if not isinstance(area, list | tuple) or len(area) != 4 + (_PERCENTAGE in area[:1]):
        raise ValueError(
            f'{where}.area must be [height, width, y, x], or the same after "{_PERCENTAGE}",'
            f" got {short(area)}"
        )
    height, width, y, x = (number(each, f"{where}.area") for each in area[-4:])
    if area[0] == _PERCENTAGE:
        return fractions_of([x, y, width, height], f"{where}.area")
    return _of_sides([_CELL * each for each in (x, y, width, height)], canvas, f"{where}.area")


def _of_sides(sides: list[Any], canvas: Canvas | None, where: str) -> Box:
    corner = [number(each, where) for each in sides]
    if not all(map(math.isfinite, corner)):
        raise ValueError(f"{where} must be of finite numbers, got {short(corner)}")
    if canvas is None:
        raise ValueError(
            f"{where} must lie in a canvas that is named, as it is in pixels: give"
            ' canvas=(width, height), --canvas 1024x768, or {"width": 1024, "height": 768, "boxes":'
            " [...]}"
        )
    if max(corner) <= 1 < max(canvas):
        raise ValueError(
            f"{where} must be in pixels of {canvas[0]:g} x {canvas[1]:g}, got fractions {corner}:"
            " name the canvas 1x1 if that is meant"
        )
    return box_of(corner, canvas, where)


def fractions_of(corner: list[float], where: str) -> Box:
    """The box of (x, y, width, height) in fractions of the canvas."""
    x, y, width, height = corner
    # Hundredths of the node's widgets add up to 1 but for rounding.
    x1, y1 = (1.0 if 1 < edge < 1 + 1e-6 else edge for edge in (x + width, y + height))
    return check_box((x, y, x1, y1), where)


def _boxes_key(data: Any) -> str | None:
    """Under which key an object has its boxes; None if these are no such data."""
    if not isinstance(data, Mapping):
        return None
    with_boxes = [key for key in _LISTS if _flat(data.get(key)) is not None]
    # Nobody else calls anything so.
    named = [key for key in _LISTS[:2] if key in data]
    return next(iter(with_boxes + named), None)


def _flat(data: Any) -> list[Any] | None:
    """One box, those of a list, or those of all frames; None if it is none of these."""
    if is_box_in_pixels(data):
        return [data]
    if not isinstance(data, list | tuple) or not data:
        return None
    if is_box_in_pixels(data[0]):
        return list(data)
    if not all(isinstance(frame, list | tuple) for frame in data):
        return None
    boxes = [box for frame in data for box in frame]
    # Pairs of a phrase and a box are no frames.
    all_objects = all(isinstance(box, Mapping) for box in boxes)
    return boxes if all_objects and any(map(is_box_in_pixels, boxes)) else None


def _of_one_frame(data: Any, where: str) -> list[Any]:
    boxes = _flat(data)
    if boxes is None:
        raise ValueError(
            f'{where} must have a box like {{"x": 0, "y": 0, "width": 64, "height": 64}}, got'
            f" {short(data)}"
        )
    if isinstance(data, Mapping) or isinstance(data[0], Mapping):
        return boxes
    frames = [frame for frame in data if frame]
    if any(frame != frames[0] for frame in frames):
        raise ValueError(f"{where} must be of one frame, got {len(frames)} that differ: give one")
    return list(frames[0])


def _is_answers(box: Any) -> bool:
    """Whether a language model may have written it, with one of the names that they write."""
    if not isinstance(box, Mapping) or any(key in box for key in ("metadata", "score", "area")):
        return False
    return any(key in box for key in PHRASE_KEYS if key != "label")


def _words(box: Mapping[str, Any], where: str) -> str:
    metadata = box.get("metadata")
    for part in (metadata if isinstance(metadata, Mapping) else {}, box):
        if part.get("type") == "text":
            phrase = said_of(part.get("desc"), part.get("text"), where)
            if phrase:
                return check_phrase(phrase, where)
        for key in _NAMES:
            if isinstance(part.get(key), str) and part[key].strip():
                return check_phrase(" ".join(part[key].split()), where)
    raise ValueError(
        f'{where} must say what is in it, as "label", "text", "prompt", or "desc" in its'
        f' "metadata", got {short(dict(box))}'
    )


def named_canvas(data: Mapping[str, Any]) -> Canvas | None:
    """The canvas (width, height) that an object names, if it does."""
    named = data.get("dims", data.get("canvas"))
    if isinstance(named, Mapping):
        data, named = named, None
    pairs = [(data.get(f"{part}width"), data.get(f"{part}height")) for part in ("", "canvas_")]
    if isinstance(named, list | tuple) and len(named) == 2:
        pairs = [(named[0], named[1])]
    for width, height in pairs:
        # A link to another node says nothing.
        if any(side is None or isinstance(side, list | tuple) for side in (width, height)):
            continue
        sides = number(width, "width"), number(height, "height")
        if not all(math.isfinite(side) and side > 0 for side in sides):
            raise ValueError(f"width and height must be positive, got {short(sides)}")
        return sides
    return None


def one_canvas(own: Canvas | None, given: Canvas | None) -> Canvas | None:
    """The one that is known. Raises ValueError where two are and they differ."""
    if own is not None and given is not None and own != given:
        raise ValueError(
            f"canvas must be the one that is named, {own[0]:g} x {own[1]:g}, got {given[0]:g} x"
            f" {given[1]:g}"
        )
    return own or given
