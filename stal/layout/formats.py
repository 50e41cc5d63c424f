"""Layouts from elsewhere: files of several formats, and what Python gives.

    layout.json     our own format, see `stal.layout.Layout.from_json`
    layoutgpt.css   cat {width: 30px; height: 40px; left: 5px; top: 10px; }
    lmd.txt         [('a green car', [21, 281, 211, 159]), ...]
    masks.json      {"masks": "masks.png", "objects": [{..., "colour": "#ff0000"}]}

Other programs give names or phrases, and no nouns. What knows English is handed in:

    from stal.prompts import article, noun_of

    read_layout("layoutgpt.css", noun_of=noun_of, article=article)

Sources: LayoutGPT (arXiv 2305.15393), whose canvas has 64 pixels a side unless it is told
otherwise; LLM-grounded diffusion (arXiv 2305.13655), boxes [x, y, width, height] on 512 pixels.
`stal.layout.answers` says what of their models' answers is read, `stal.layout.painted` which
pictures are masks.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from stal.checked_json import loads, number, scalar, short
from stal.files import load_text
from stal.layout.answers import plain_text, read_answer
from stal.layout.coverage import Box, check_box
from stal.layout.layout import Layout, PlacedObject, check_phrase, find_noun
from stal.layout.literals import OPENING_QUOTE

# What can be made a layout: one, its JSON, a file, or phrases with their boxes.
LayoutLike: TypeAlias = "Layout | str | os.PathLike[str] | Iterable[tuple[str, Box]]"

_OWN = ("version", "prompt", "objects", "relations", "aspect", "masks", "background")
_FIRST_KEY = re.compile(rf"\{{\s*{OPENING_QUOTE}(\w*)")
_OWN_IN_PROSE = re.compile(rf'\{{\s*"(?:{"|".join(_OWN)})"\s*:')


def read_layout(
    path: str | os.PathLike[str],
    *,
    noun_of: Callable[[str], str],
    article: Callable[[str], str],
    canvas: tuple[float, float] | None = None,
    prompt: str | None = None,
) -> Layout:
    """Reads a layout in any of the formats above, told apart by what the file holds.

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
    if canvas is not None:
        canvas = _checked_canvas(canvas)
    try:
        text = load_text(path, name="layout")
        own = _own_json(text)
        if own is not None:
            masks = _masks(own)
            if masks is None:
                return Layout.from_json(own, noun_of=noun_of)
            from stal.layout.painted import read_painted

            return read_painted(masks, Path(path).parent, noun_of=noun_of)
        said, found, size = read_answer(plain_text(text), canvas=canvas, article=article)
        objects = (PlacedObject(phrase, find_noun(phrase, noun_of), box) for phrase, box in found)
        return Layout(said if prompt is None else prompt, tuple(objects), (), size[0] / size[1])
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from None


def as_layout(
    value: LayoutLike,
    *,
    prompt: str,
    aspect: float,
    noun_of: Callable[[str], str],
    article: Callable[[str], str],
) -> Layout:
    """The layout that a value of Python stands for.

    Args:
        value: a `Layout`; the JSON of one, which begins with "{", or what that holds; the path of
            a file that `read_layout` reads; or (phrase, box) pairs, objects with a "phrase" and a
            "box", or boxes by phrase, where a box is (x0, y0, x1, y1) in fractions of the canvas.
        prompt: of pairs, and of files that hold none.
        aspect: width / height of the canvas, of pairs.
        noun_of, article: as in `read_layout`.

    Raises:
        ValueError: none of these, or a box that breaks its rule; the message names it.
    """
    if isinstance(value, Layout):
        return value
    if isinstance(value, str) and value.lstrip().startswith("{"):
        return Layout.from_json(value, noun_of=noun_of)
    if isinstance(value, str | os.PathLike):
        try:
            layout = read_layout(value, noun_of=noun_of, article=article)
        except OSError as error:
            got = f"{short(os.fspath(value))}: {error.strerror}"
            raise ValueError(f"layout must be a file that can be read, got {got}") from error
        return layout if layout.prompt else replace(layout, prompt=prompt)
    if isinstance(value, bytes) or not isinstance(value, Iterable):
        raise ValueError(
            f"layout must be a Layout, its JSON, a path or (phrase, box) pairs, got {short(value)}"
        )
    if isinstance(value, Mapping) and "objects" in value:
        try:
            text = json.dumps(value, default=scalar)
        except (TypeError, ValueError, RecursionError):
            raise ValueError(f"layout must be what JSON can hold, got {short(value)}") from None
        return Layout.from_json(text, noun_of=noun_of)
    items = value.items() if isinstance(value, Mapping) else value
    objects = (_pair(item, f"layout[{k}]", noun_of) for k, item in enumerate(items))
    return Layout(prompt, tuple(objects), (), aspect)


def _pair(item: Any, where: str, noun_of: Callable[[str], str]) -> PlacedObject:
    if isinstance(item, PlacedObject):
        return item
    try:
        phrase, box = (item["phrase"], item["box"]) if isinstance(item, Mapping) else item
    except (TypeError, ValueError, KeyError):
        phrase, box = None, ()
    if not isinstance(phrase, str) or not phrase.strip():
        raise ValueError(f"{where} must be a pair (phrase, (x0, y0, x1, y1)), got {short(item)}")
    check_phrase(phrase, where)
    try:
        edges = [number(edge, where) for edge in box]
    except TypeError:
        edges = []
    if len(edges) == 4 and max(edges) > 1:
        raise ValueError(
            f"{where} must have its box in fractions of the canvas, got {edges}: divide pixels"
            " by the picture's width and height"
        )
    return PlacedObject(phrase, find_noun(phrase, noun_of), check_box(edges or box, where))


def _checked_canvas(canvas: tuple[float, float]) -> tuple[float, float]:
    try:
        width, height = (number(side, "canvas") for side in canvas)
    except (TypeError, ValueError):
        raise ValueError(f"canvas must be (width, height), got {short(canvas)}") from None
    if not all(math.isfinite(side) and side > 0 for side in (width, height)):
        raise ValueError(f"canvas must be positive, got {short(canvas)}")
    return width, height


def _own_json(text: str) -> str | None:
    """The JSON of ours in a text, with nothing or with prose around it; None in an answer."""
    bare = text.lstrip()
    if bare.startswith("{"):
        first = _FIRST_KEY.match(bare)
        return text if first is None or first[1] in _OWN else None
    text = plain_text(text)
    found = _OWN_IN_PROSE.search(text)
    return None if found is None else text[found.start() : text.rfind("}") + 1]


def _masks(text: str) -> dict[str, Any] | None:
    """The JSON if it is of `stal.layout.painted`."""
    try:
        data = loads(text) if '"masks"' in text else None
    except ValueError:
        return None  # the reader of our own format says what is wrong
    return data if isinstance(data, dict) and "masks" in data else None
