"""Layouts from elsewhere: what language models emit, and masks painted in a picture.

    layout.json     our own format, see `stal.layout.Layout.from_json`
    layoutgpt.css   cat {width: 30px; height: 40px; left: 5px; top: 10px; }
    lmd.txt         [('a green car', [21, 281, 211, 159]), ...]
    masks.json      {"masks": "masks.png", "objects": [{..., "colour": "#ff0000"}]}

Other programs give names or phrases, and no nouns. What knows English is handed in:

    from stal.prompts import article, noun_of

    read_layout("layoutgpt.css", noun_of=noun_of, article=article)

Sources: LayoutGPT (arXiv 2305.15393), whose canvas has 64 pixels a side unless it is told
otherwise; LLM-grounded diffusion (arXiv 2305.13655), boxes [x, y, width, height] on 512 pixels.
"""

from __future__ import annotations

import ast
import json
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from stal.checked_json import check_keys, short
from stal.layout.coverage import Box, Painted
from stal.layout.layout import Layout, PlacedObject

CSS_CANVAS = 64.0
LIST_CANVAS = 512.0
_RULE = re.compile(r"^\s*(?P<name>[^{}:]+?)\s*\{(?P<body>[^{}]*)\}\s*$")
_PROPERTIES = ("left", "top", "width", "height")
_COLOUR = re.compile(r"#[0-9a-fA-F]{6}")


def read_layout(
    path: str | os.PathLike[str],
    *,
    noun_of: Callable[[str], str],
    article: Callable[[str], str],
    canvas: tuple[float, float] | None = None,
    prompt: str | None = None,
) -> Layout:
    """Reads a layout in any of the formats above, told apart by what the file begins with.

    Args:
        path: a text file.
        noun_of: from a phrase to its noun, "a green car" to "car"; `stal.prompts.noun_of`.
        article: from a word to "a" or "an"; `stal.prompts.article`.
        canvas: (width, height) in pixels that LayoutGPT and LLM-grounded diffusion were told;
            their usual ones if None. Other formats do not need it.
        prompt: for files that do not hold it.

    Returns:
        The layout, without relations if the file has none; its aspect is that of the canvas.

    Raises:
        ValueError: none of these formats, or a box outside the canvas; the message names the file
            and the place in it.
        OSError: the file cannot be read.
    """
    if canvas is not None and not all(math.isfinite(side) and side > 0 for side in canvas):
        raise ValueError(f"canvas must be positive, got {canvas}")
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        if text.lstrip().startswith("{"):
            if _has_masks(text):
                return _read_masks(text, Path(path).parent, noun_of)
            return Layout.from_json(text)
        named = re.search(r"^(?:Prompt|Caption):[ \t]*(.+)$", text, re.MULTILINE | re.IGNORECASE)
        said = prompt if prompt is not None else named[1].strip() if named else ""
        if "{" in text:
            canvas = canvas or (CSS_CANVAS, CSS_CANVAS)
            found = [(f"{article(name)} {name}", box) for name, box in _read_css(text, canvas)]
        else:
            canvas = canvas or (LIST_CANVAS, LIST_CANVAS)
            found = _read_list(text, canvas)
        if not found:
            raise ValueError("layout must have an object, got none")
        objects = (PlacedObject(phrase, noun_of(phrase), box) for phrase, box in found)
        return Layout(said, tuple(objects), (), canvas[0] / canvas[1])
    except UnicodeDecodeError:
        raise ValueError(f"{os.fspath(path)}: must be text in UTF-8, got other bytes") from None
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from None


def _read_css(text: str, canvas: tuple[float, float]) -> list[tuple[str, Box]]:
    """Names and boxes: a line an object; lines without braces are passed over ("Layout:")."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if "{" not in line and "}" not in line:
            continue
        where = f"line {number}"
        rule = _RULE.match(line)
        if rule is None:
            raise ValueError(f"{where} must be like `cat {{width: 30px; ...}}`, got {line.strip()}")
        values: dict[str, float] = {}
        for part in filter(str.strip, rule["body"].split(";")):
            name, _, value = (each.strip() for each in part.partition(":"))
            if name in values:
                raise ValueError(f"{where} must have one {name}, got two")
            try:
                values[name] = float(value.removesuffix("px"))
            except ValueError:
                raise ValueError(f"{where} must have {name} in px, got {value!r}") from None
        if sorted(values) != sorted(_PROPERTIES):
            raise ValueError(f"{where} must have {', '.join(_PROPERTIES)}, got {', '.join(values)}")
        # "cat1" and "cat 2" are cats.
        name = re.sub(r"[\s_-]*\d+$", "", rule["name"]).replace("-", " ").replace("_", " ")
        if not name:
            raise ValueError(f"{where} must name its object, got {rule['name']!r}")
        found.append((name, _box([values[each] for each in _PROPERTIES], canvas, where)))
    return found


def _read_list(text: str, canvas: tuple[float, float]) -> list[tuple[str, Box]]:
    """Phrases and boxes: the first list of pairs (phrase, [x, y, width, height]).

    What follows it is passed over.
    """
    start = text.find("[")
    if start < 0:
        raise ValueError(
            "layout must be JSON, LayoutGPT's lines `cat {width: 30px; ...}` or a list of"
            f" (phrase, [x, y, width, height]), got {text.strip()[:40]!r}"
        )
    end = _closing(text, start)
    if end is None:
        line = text.count("\n", 0, start) + 1
        raise ValueError(f"list must be closed by ], got the end of the file after line {line}")
    try:
        items = ast.literal_eval(text[start:end])
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise ValueError("list must be of pairs (phrase, [x, y, width, height])") from None
    found = []
    for index, item in enumerate(items):
        where = f"item {index}"
        try:
            phrase, corner = item
            corner = [float(value) for value in corner]
            if not isinstance(phrase, str) or not phrase.strip() or len(corner) != 4:
                raise TypeError
        except (TypeError, ValueError, OverflowError):
            raise ValueError(
                f"{where} must be (phrase, [x, y, width, height]), got {short(item)}"
            ) from None
        found.append((" ".join(phrase.split()), _box(corner, canvas, where)))
    return found


def _closing(text: str, start: int) -> int | None:
    """The end of the list that begins at `start`, brackets inside quotes not counted."""
    depth, quote, k = 0, "", start
    while k < len(text):
        char = text[k]
        if quote:
            if char == "\\":
                k += 1
            elif char == quote:
                quote = ""
        elif char in "\"'":
            quote = char
        elif char in "[]":
            depth += 1 if char == "[" else -1
            if depth == 0:
                return k + 1
        k += 1
    return None


def _box(corner: Sequence[float], canvas: tuple[float, float], where: str) -> Box:
    """Of (x, y, width, height) in pixels."""
    x, y, w, h = corner
    width, height = canvas
    box = x / width, y / height, (x + w) / width, (y + h) / height
    if not (w > 0 and h > 0):
        raise ValueError(f"{where} must have a positive width and height, got {w:g} and {h:g}")
    # Models count carelessly by a pixel or two; more is another canvas.
    if min(box) < -0.05 or max(box) > 1.05 or not all(map(math.isfinite, box)):
        raise ValueError(
            f"{where} must lie in the canvas of {width:g} x {height:g}, got"
            f" {[round(value, 6) for value in corner]}: name the canvas that was meant"
        )
    x0, y0, x1, y1 = (min(max(edge, 0.0), 1.0) for edge in box)
    return x0, y0, x1, y1


def _has_masks(text: str) -> bool:
    try:
        data = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        return False  # the reader of our own format says what is wrong
    return isinstance(data, dict) and "masks" in data


def _read_masks(text: str, folder: Path, noun_of: Callable[[str], str]) -> Layout:
    """A PNG of one colour an object, and what the colours are.

        {"masks": "masks.png", "prompt": str, "background": "#000000",
         "objects": [{"phrase": str, "noun": str, "colour": "#ff0000"}],
         "relations": [...], "aspect": number}

    "background", "noun", "relations" and "aspect" (of the picture) may be missing.
    """
    from PIL import Image

    data: dict[str, Any] = json.loads(text)
    known = ("masks", "prompt", "background", "objects", "relations", "aspect")
    for key in data:
        if key not in known:
            raise ValueError(f'layout must not have "{key}" beside "masks"')
    name = data["masks"]
    if not isinstance(name, str) or not isinstance(data.get("objects"), list):
        raise ValueError('layout must name a PNG file as "masks", and have a list of "objects"')
    background = _colour(data.get("background", "#000000"), "background")
    try:
        with Image.open(folder / name) as image:
            pixels = np.asarray(image.convert("RGB"), dtype=np.uint32)
    except (OSError, ValueError) as error:
        raise ValueError(f"masks must be a picture, got {name!r}: {error}") from None
    codes = (pixels[..., 0] << 16) | (pixels[..., 1] << 8) | pixels[..., 2]
    height, width = codes.shape
    aspect = data.get("aspect", width / height)
    if isinstance(aspect, bool) or not isinstance(aspect, int | float) or not 0 < aspect < 1e6:
        raise ValueError(f"aspect must be a positive number, got {short(aspect)}")
    if abs(aspect * height - width) > 1:
        raise ValueError(
            f"masks must have the layout's aspect {aspect:g}, got {name} of {width} x {height}"
        )
    items, colours = [], {background}
    for index, item in enumerate(data["objects"]):
        where = f"objects[{index}]"
        if not isinstance(item, dict) or not isinstance(item.get("phrase"), str):
            raise ValueError(f'{where} must have a "phrase" and a "colour", got {short(item)}')
        check_keys(item, where, ("phrase",), optional=("noun", "colour"))
        colour = _colour(item.get("colour"), f"{where}.colour")
        if colour in colours:
            raise ValueError(f"{where}.colour must be its own, got {item['colour']} again")
        if not (codes == colour).any():
            raise ValueError(f"{where}.colour must be in {name}, got no pixel of {item['colour']}")
        colours.add(colour)
        outline = Painted.from_cells(codes == colour)
        items.append((item["phrase"], item.get("noun", noun_of(item["phrase"])), outline))
    other = ~np.isin(codes, list(colours))
    if other.any():
        y, x = (int(each[0]) for each in other.nonzero())
        raise ValueError(
            f"{name} must have the colours of the objects and the background"
            f" #{background:06x} only, got #{int(codes[y, x]):06x} at ({x}, {y}): save it"
            " without smoothing"
        )
    boxes = [
        {"phrase": phrase, "noun": noun, "box": list(outline.box)}
        for phrase, noun, outline in items
    ]
    own = {"version": 1, "prompt": "", "relations": [], "aspect": float(aspect), "objects": boxes}
    named = {key: data[key] for key in ("prompt", "relations") if key in data}
    layout = Layout.from_json(json.dumps({**own, **named}))
    objects = (
        replace(each, outline=outline)
        for each, (*_, outline) in zip(layout.objects, items, strict=True)
    )
    return replace(layout, objects=tuple(objects))


def _colour(value: Any, where: str) -> int:
    if not isinstance(value, str) or not _COLOUR.fullmatch(value):
        raise ValueError(f'{where} must be like "#ff0000", got {value!r}')
    return int(value[1:], 16)
