"""Boxes in the prompts of models that read them: Ideogram 4's captions and FLUX 3's tables.

    {"high_level_description": str, "style_description": {...}, "aspect_ratio": "16:9",
     "compositional_deconstruction": {"background": str, "elements": [
        {"type": "obj", "bbox": [y0, x0, y1, x1], "desc": str},
        {"type": "text", "bbox": [...], "text": str, "desc": str}]}}          Ideogram 4
    A cat <cat_1> on a mat. [{"id": "cat_1", "bbox": [y0, x0, y1, x1], "desc": str}, ...]   FLUX 3

y comes first, and a box lies on a grid of 0 to 1000 however wide the picture is. Tables of edits
have "src_bbox" and "tgt_bbox", of which the target counts. Boxes that a program hands to FLUX 3,
{"boxes": [{"id": str, "bbox": [...], "desc": str}]}, may be fractions as well. The elements may
stand alone, and have elements of their own. What has no box is left out with a warning.

Sources: Ideogram 4's docs/prompting.md (github.com/ideogram-oss/ideogram4) and ComfyUI's
comfy_extras/nodes_json_prompt.py and nodes_bounding_boxes.py, which write its captions; diffusers'
modular_pipelines/flux3/prompt_upsampler.py for FLUX 3.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from stal import budget
from stal.caller import warn
from stal.checked_json import number, short, typed
from stal.layout.answers import PHRASE_KEYS, Found
from stal.layout.coverage import Box
from stal.layout.layout import check_phrase

GRID = 1000.0
_CAPTION = "compositional_deconstruction"
_CAPTION_KEYS = ("high_level_description", "style_description", _CAPTION)
_WRAPPERS = ("json_prompt", "prompt", "caption")
_PARTS = ("elements", "sub_elements", "children")
_BOXES = ("bbox", "src_bbox", "tgt_bbox")
# Programs that write these beside "desc" have x first, and others y.
_OTHER_NAMES = ("label", "name", "object")
_RATIO_KEYS = ("aspect_ratio", "resolution")
_RATIO = re.compile(r"(\d{1,5}(?:\.\d{1,5})?)\s*[:x/×]\s*(\d{1,5}(?:\.\d{1,5})?)")
_TARGET = re.compile(rf"^[ \t]*TARGET CANVAS:\s*{_RATIO.pattern}[^\n]*\n?", re.MULTILINE)
_CITED = re.compile(r" ?<(\w{1,100})>")
_ID = re.compile(r"([A-Za-z]+(?:_[A-Za-z]+)*)_\d+")
_NO_NOUN = re.compile(r"obj|element|box|\w+_Text", re.IGNORECASE)


@dataclass(frozen=True)
class _Rows:
    """The elements of a prompt.

    Attributes:
        items: the value that should be a list of them.
        where: what errors call it.
        said: the prompt.
        ratio: what says the aspect; None if nothing does.
        fractions: whether boxes may be fractions instead of on the grid.
    """

    items: Any
    where: str
    said: Any = ""
    ratio: Any = None
    fractions: bool = False


def is_box_prompt(data: Any) -> bool:
    """Whether JSON, or what it holds, is one of those above; it need not be without a fault."""
    return _rows(data) is not None


def read_box_prompt(
    data: Any, *, said: str, article: Callable[[str], str]
) -> tuple[str, Found, float | None]:
    """What a prompt holds.

    Args:
        data: the JSON, see `is_box_prompt`.
        said: the text before it, which may cite the elements by their ids.
        article: from a word to "a" or "an", for elements that only their id describes.

    Returns:
        The prompt, phrases with their boxes, and the aspect if the prompt says it. Warns of
        elements that have no box.

    Raises:
        ValueError: no element with a box, or one that breaks its rule; the message names the place.
    """
    rows = _rows(data)
    if rows is None:
        raise ValueError(f"layout must be a caption or a table of boxes, got {short(data)}")
    found, left, ids = _elements(rows, article)
    if left:
        some = ", ".join(left[:5]) + ", ..." * (len(left) > 5)
        if not found:
            raise ValueError(f'{rows.where} must have an element with a "bbox", got none: {some}')
        warn(f"the layout leaves out what has no box: {some}")
    if not found:
        raise ValueError(f"{rows.where} must have an element, got none")
    prompt = "" if rows.said is None else typed(rows.said, str, "prompt")
    aspect = _aspect(rows.ratio)
    if target := _TARGET.search(said):
        aspect = _aspect(f"{target[1]}:{target[2]}")
        said = said[: target.start()] + said[target.end() :]
    # A colon introduces the table, and belongs to an answer's prose.
    if ids and not prompt and not said.rstrip().endswith(":"):
        prompt = _CITED.sub(lambda mark: "" if mark[1] in ids else mark[0], said).strip()
    return prompt, found, aspect


def _rows(data: Any) -> _Rows | None:
    """The elements, if these are such data."""
    if isinstance(data, list | tuple):
        if not any(_is_element(each) for each in data):
            return None
        # "type" is Ideogram's, which has no fractions.
        table = not any(isinstance(each, Mapping) and "type" in each for each in data)
        return _Rows(data, "elements", fractions=table)
    if not isinstance(data, Mapping):
        return None
    caption = next((data[key] for key in _WRAPPERS if _is_caption(data.get(key))), data)
    ratios = [part.get(key) for part in (caption, data) for key in _RATIO_KEYS]
    ratio = next((each for each in ratios if each is not None), None)
    said = caption.get("high_level_description", "")
    if _CAPTION in caption or (_is_caption(caption) and "elements" not in caption):
        inner = caption.get(_CAPTION)
        items = inner.get("elements") if isinstance(inner, Mapping) else None
        return _Rows(items, f"{_CAPTION}.elements", said, ratio)
    for key in ("elements", "boxes"):
        rows = _rows(data[key]) if isinstance(data.get(key), list | tuple) else None
        if rows is not None:
            said = data.get("prompt", said)
            return _Rows(rows.items, key, said, ratio, rows.fractions and key == "boxes")
    if _is_element(data) and "desc" in data:
        return _Rows([data], "elements")
    return None


def _is_caption(value: Any) -> bool:
    return isinstance(value, Mapping) and any(key in value for key in _CAPTION_KEYS)


def _is_element(value: Any) -> bool:
    """Whether it is an element, and not an object of a language model's list."""
    if not isinstance(value, Mapping) or not any(key in value for key in _BOXES):
        return False
    return "desc" in value or (
        (value.get("type") in ("obj", "text") or any(key in value for key in ("id", *_BOXES[1:])))
        and not any(key in value for key in PHRASE_KEYS)
    )


def _elements(rows: _Rows, article: Callable[[str], str]) -> tuple[Found, list[str], set[str]]:
    """Phrases with their boxes, the places of elements without one, and the ids of all."""
    edges: list[tuple[str, list[float], str]] = []
    left: list[str] = []
    ids: set[str] = set()
    waiting = _listed(rows.items, rows.where, 0)
    count = len(waiting)
    while waiting:
        item, where, depth = waiting.pop()
        if not isinstance(item, Mapping):
            raise ValueError(f'{where} must be an object with a "bbox", got {short(item)}')
        inner = [
            each
            for key in _PARTS
            if item.get(key) is not None
            for each in _listed(item[key], f"{where}.{key}", depth + 1)
        ]
        waiting += inner
        count += len(inner)
        if count > budget.MOST_OBJECTS:
            raise ValueError(f"{rows.where} must have at most {budget.MOST_OBJECTS} elements")
        if isinstance(item.get("id"), str):
            ids.add(item["id"])
        corners = item.get("tgt_bbox" if "tgt_bbox" in item or "src_bbox" in item else "bbox")
        if corners is not None:
            edges.append((_phrase(item, where, article), _edges(corners, where), where))
        elif "desc" in item or not inner:
            left.append(where)
    fractions = rows.fractions and all(max(each) <= 1 for _, each, _ in edges)
    whole = 1.0 if fractions else GRID
    return [(phrase, _box(each, whole, where)) for phrase, each, where in edges], left, ids


def _listed(items: Any, where: str, depth: int) -> list[tuple[Any, str, int]]:
    """The items of a list, the last one first, with their places and how deep they are."""
    if not isinstance(items, list | tuple):
        raise ValueError(f"{where} must be a list of elements, got {short(items)}")
    if depth > budget.MOST_ANSWER_DEPTH:
        raise ValueError("elements must have few levels, got deep nesting")
    return [(items[k], f"{where}[{k}]", depth) for k in reversed(range(len(items)))]


def _phrase(item: Mapping[str, Any], where: str, article: Callable[[str], str]) -> str:
    named = [key for key in _OTHER_NAMES if key in item]
    if named:
        raise ValueError(
            f'{where} must have no "{named[0]}" beside "bbox" and "desc": programs that write it'
            " put x first, others y; without it y is first"
        )
    name = _ID.fullmatch(item["id"]) if isinstance(item.get("id"), str) else None
    phrase = said_of(item.get("desc"), item.get("text"), where)
    if not phrase and name is not None and not _NO_NOUN.fullmatch(name[1]):
        noun = name[1].replace("_", " ")
        phrase = f"{article(noun)} {noun}"
    if not phrase:
        raise ValueError(f'{where} must have a "desc" that says what it is, got {short(item)}')
    return check_phrase(phrase, where)


def said_of(desc: Any, text: Any, where: str) -> str:
    """The phrase of an element that is described and has letters to draw; "" if neither.

    Raises ValueError, naming the place, for what is no text.
    """
    desc, text = (
        "" if each is None else " ".join(typed(each, str, f"{where}.{key}").split())
        for key, each in (("desc", desc), ("text", text))
    )
    if not text:
        return desc
    return f'the text "{text}"' + f", {desc}" * bool(desc)


def _edges(value: Any, where: str) -> list[float]:
    if not isinstance(value, list | tuple) or len(value) != 4:
        raise ValueError(f"{where}.bbox must be [y0, x0, y1, x1], got {short(value)}")
    edges = [number(each, f"{where}.bbox") for each in value]
    if not all(map(math.isfinite, edges)):
        raise ValueError(f"{where}.bbox must be of finite numbers, got {short(value)}")
    return edges


def _box(edges: list[float], whole: float, where: str) -> Box:
    got = [round(each, 6) for each in edges]
    if whole > 1 >= max(edges):
        raise ValueError(f"{where}.bbox must be on a grid of 0 to 1000, got fractions {got}")
    if min(edges) < 0 or max(edges) > whole:
        raise ValueError(f"{where}.bbox must lie inside 0 to {whole:g}, got {got}")
    y0, x0, y1, x1 = edges
    if not (y0 < y1 and x0 < x1):
        raise ValueError(f"{where}.bbox must be [y0, x0, y1, x1] with y0 < y1, x0 < x1, got {got}")
    return x0 / whole, y0 / whole, x1 / whole, y1 / whole


def _aspect(ratio: Any) -> float | None:
    if ratio is None or ratio == "auto":
        return None
    found = _RATIO.fullmatch(ratio.strip()) if isinstance(ratio, str) else None
    if found is None or not (float(found[1]) > 0 and float(found[2]) > 0):
        raise ValueError(f"aspect_ratio must be like 16:9, got {short(ratio)}")
    return float(found[1]) / float(found[2])
