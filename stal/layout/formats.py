"""Layouts from elsewhere: files of several formats, and what Python gives.

    layout.json     our own format, see `stal.layout.Layout.from_json`
    layoutgpt.css   cat {width: 30px; height: 40px; left: 5px; top: 10px; }
    lmd.txt         [('a green car', [21, 281, 211, 159]), ...]
    masks.json      {"masks": "masks.png", "objects": [{..., "colour": "#ff0000"}]}
    prompt.json     {"compositional_deconstruction": {"elements": [{"bbox": [...], ...}]}, ...}
    boxes.json      [{"x": 10, "y": 20, "width": 80, "height": 60, "metadata": {...}}, ...]

Other programs give names or phrases, and no nouns. What knows English is handed in:

    from stal.prompts import article, noun_of

    read_layout("layoutgpt.css", noun_of=noun_of, article=article)

Sources: LayoutGPT (arXiv 2305.15393), whose canvas has 64 pixels a side unless it is told
otherwise; LLM-grounded diffusion (arXiv 2305.13655), boxes [x, y, width, height] on 512 pixels.
`stal.layout.answers` says what of their models' answers is read, `stal.layout.painted` which
pictures are masks, `stal.layout.box_prompts` which prompts of Ideogram 4 and FLUX 3,
`stal.layout.comfyui` and `stal.layout.workflow` what of ComfyUI's, and `stal.layout.mask_values`
which arrays, tensors and pictures in memory are masks.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

from stal import budget
from stal.checked_json import loads, number, quoted, scalar, short, typed
from stal.files import load_text
from stal.layout.answers import plain_text, read_answer
from stal.layout.box_prompts import is_box_prompt, read_box_prompt
from stal.layout.comfyui import box_in_pixels, is_comfyui, read_comfyui
from stal.layout.coverage import Box, check_box
from stal.layout.layout import Layout, PlacedObject, check_phrase, find_noun
from stal.layout.literals import OPENING_QUOTE
from stal.layout.mask_values import is_mask, outline_of, split_stack
from stal.layout.workflow import is_workflow, read_workflow

# What can be made a layout: one, its JSON, a file, phrases with their boxes or masks, or what the
# JSON of another program holds.
LayoutLike: TypeAlias = "Layout | str | os.PathLike[str] | Mapping[str, Any] | Iterable[Any]"

# An edge beyond this is one in pixels rather than a fraction that misses the canvas.
_PIXELS = 2
_OWN = ("version", "prompt", "objects", "relations", "aspect", "masks", "background")
_OWN_OBJECT = ("phrase", "noun", "box", "score", "shape")
_PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
# What has these names in a mapping is no place of a phrase.
_NO_PHRASES = frozenset({"box", "boxes", "bbox", "mask", "masks", "object", "phrase", "phrases"})
_FIRST_KEY = re.compile(rf"\{{\s*{OPENING_QUOTE}(\w*)")
_OWN_IN_PROSE = re.compile(rf'\{{\s*"(?:{"|".join(_OWN)})"\s*:')
# How the JSON of other programs begins that an answer may have prose around.
_CAPTION = re.compile(
    r'\{\s*"(?:high_level_description|style_description|compositional_deconstruction'
    r'|json_prompt|aspect_ratio)"\s*:'
)
_TABLE = re.compile(r'\[\s*\{\s*"(?:id|type|bbox|desc)"\s*:')
# Without one of these keys no other program wrote a JSON.
_FOREIGN = re.compile(
    rf'{_CAPTION.pattern}|"(?:(?:src_|tgt_)?bbox|x|area|class_type|links|editor_state)"\s*:'
)


@dataclass(frozen=True)
class _Reading:
    """What a reader is told.

    Attributes:
        noun_of, article, canvas: as in `read_layout`.
        aspect: width / height of the canvas where nothing says another.
    """

    noun_of: Callable[[str], str]
    article: Callable[[str], str]
    canvas: tuple[float, float] | None
    aspect: float

    def layout(
        self, prompt: str, found: Iterable[tuple[str, Box]], aspect: float | None = None
    ) -> Layout:
        """The layout of phrases with their boxes; the canvas's aspect is the one of it."""
        if self.canvas is not None:
            aspect = self.canvas[0] / self.canvas[1]
        objects = (
            PlacedObject(phrase, find_noun(phrase, self.noun_of), box) for phrase, box in found
        )
        return Layout(prompt, tuple(objects), (), self.aspect if aspect is None else aspect)


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
        canvas: (width, height) in pixels that LayoutGPT and LLM-grounded diffusion were told,
            their usual ones if None, or that ComfyUI's boxes lie in, which there is no usual one
            of. Of boxes in fractions or on a grid it is the aspect, unless JSON of ours states it.
            Other formats do not need it.
        prompt: for files that do not hold it.

    Returns:
        The layout, without relations if the file has none; its aspect is that of the canvas.

    Raises:
        ValueError: none of these formats, or a box outside the canvas; the message names the file
            and the place in it.
        OSError: the file cannot be read.
    """
    return _read_file(path, prompt, _Reading(noun_of, article, check_canvas(canvas), 1.0))


def read_layout_text(
    text: str,
    *,
    noun_of: Callable[[str], str],
    article: Callable[[str], str],
    canvas: tuple[float, float] | None = None,
    aspect: float = 1.0,
) -> Layout:
    """What `read_layout` gives of a file that holds this text; no file is looked at.

    noun_of, article, canvas: as there.
    aspect: of the canvas, where nothing says another.

    Raises:
        ValueError: none of the formats, a box outside the canvas, or painted masks, whose picture
            is another file; the message names the place.
    """
    return _read_text(text, None, _Reading(noun_of, article, check_canvas(canvas), aspect), None)


def _read_file(path: str | os.PathLike[str], prompt: str | None, reading: _Reading) -> Layout:
    try:
        return _read_text(load_text(path, name="layout"), prompt, reading, Path(path).parent)
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from None


def _read_text(text: str, prompt: str | None, reading: _Reading, folder: Path | None) -> Layout:
    """folder: where the pictures of masks are; None where there are none."""
    layout = _read_foreign(text, reading, of_file=True)
    if layout is not None:
        return layout if prompt is None else replace(layout, prompt=prompt)
    own = _own_json(text)
    if own is not None:
        masks = _masks(own)
        if masks is None:
            return _read_own(own, reading)
        if folder is None:
            raise ValueError('layout must hold its places, got "masks", the name of a picture')
        from stal.layout.painted import read_painted

        return read_painted(masks, folder, noun_of=reading.noun_of)
    said, found, size = read_answer(
        plain_text(text), canvas=reading.canvas, article=reading.article
    )
    return reading.layout(said if prompt is None else prompt, found, size[0] / size[1])


def as_layout(
    value: LayoutLike,
    *,
    prompt: str,
    aspect: float,
    noun_of: Callable[[str], str],
    article: Callable[[str], str],
    canvas: tuple[float, float] | None = None,
) -> Layout:
    """The layout that a value of Python stands for.

    Args:
        value: one of
            * a `Layout`; the JSON of one, or of a program that `read_layout` knows, or what such
              JSON holds; the path of a file that `read_layout` reads;
            * (phrase, box) or (phrase, mask) pairs, objects with a "phrase" and a "box" or a
              "mask", or boxes and masks by phrase. A box is (x0, y0, x1, y1) in fractions of the
              canvas, or {"x", "y", "width", "height"} in its pixels; a mask is a torch tensor,
              numpy array or PIL image, see `stal.layout.mask_values`;
            * {"phrases": [...], "masks": (k, h, w)}, a stack of masks.
        prompt: of pairs, and of what holds none.
        aspect: width / height of the canvas, of pairs, and of what does not say it.
        noun_of, article: as in `read_layout`.
        canvas: (width, height) in pixels that boxes in pixels lie in; its aspect counts.

    Raises:
        ValueError: none of these, or a box or mask that breaks its rule; the message names it.
    """
    if isinstance(value, Layout):
        return value
    reading = _Reading(noun_of, article, check_canvas(canvas), aspect)
    if isinstance(value, str):
        layout = _read_foreign(value, reading, of_file=False)
        if layout is not None:
            return _with_prompt(layout, prompt)
        if value.lstrip().startswith("{"):
            return _read_own(value, reading)
        value = _objects(value) or value
    if isinstance(value, str | os.PathLike):
        if Path(value).suffix.lower() in _PICTURES:
            raise ValueError(
                f"layout must be of phrases and their places, got the picture {short(str(value))}:"
                " give (phrase, mask) pairs"
            )
        try:
            return _with_prompt(_read_file(value, None, reading), prompt)
        except OSError as error:
            got = f"{short(os.fspath(value))}: {error.strerror}"
            raise ValueError(
                f"layout must be JSON or a file that can be read, got {got}"
            ) from error
    if isinstance(value, bytes) or not isinstance(value, Iterable):
        raise ValueError(
            f"layout must be a Layout, its JSON, a path or (phrase, box) pairs, got {short(value)}"
        )
    if hasattr(value, "shape"):
        raise ValueError(
            'layout must name what its masks are of, as {"phrases": [...], "masks": stack}, got an'
            f" array {tuple(value.shape)}"
        )
    if isinstance(value, Mapping) and "phrases" in value and "masks" in value:
        return _stack(value, reading, prompt)
    if not isinstance(value, Mapping):
        # One more than a layout may have, of what may have no end.
        value = list(islice(value, budget.MOST_OBJECTS + 1))
    layout = _read_data(value, "", reading, of_file=False)
    if layout is not None:
        return _with_prompt(layout, prompt)
    if isinstance(value, Mapping) and "objects" in value:
        if "masks" in value:
            raise ValueError(
                'layout must be a file where "masks" names a picture, got what such a file holds'
            )
        return _read_own(_json(value), reading)
    if isinstance(value, Mapping) and any(key in _NO_PHRASES for key in value):
        keys = ", ".join(short(key) for key in value)
        raise ValueError(
            'layout must be places by phrase, {"objects": [...]} or {"phrases": [...], "masks":'
            f" stack}}, got the keys {keys}"
        )
    items = value.items() if isinstance(value, Mapping) else value
    objects = (_pair(item, f"layout[{k}]", reading) for k, item in enumerate(items))
    return Layout(prompt, tuple(objects), (), _aspect(reading))


def _with_prompt(layout: Layout, prompt: str) -> Layout:
    return layout if layout.prompt else replace(layout, prompt=prompt)


def _stack(value: Mapping[str, Any], reading: _Reading, prompt: str) -> Layout:
    """Of {"phrases": [...], "masks": stack}."""
    for key in value:
        if key not in ("phrases", "masks", "prompt"):
            raise ValueError(f'layout must not have {quoted(str(key))} beside "masks"')
    phrases = value["phrases"]
    if not isinstance(phrases, list | tuple):
        raise ValueError(f"phrases must be a list, got {short(phrases)}")
    if len(phrases) > budget.MOST_OBJECTS:
        raise ValueError(f"phrases must be at most {budget.MOST_OBJECTS}, got {len(phrases)}")
    masks = split_stack(value["masks"], len(phrases))
    objects = (
        _pair({"phrase": phrase, "mask": mask}, f"masks[{k}]", reading)
        for k, (phrase, mask) in enumerate(zip(phrases, masks, strict=True))
    )
    said = typed(value.get("prompt", prompt), str, "prompt")
    return Layout(said, tuple(objects), (), _aspect(reading))


def _pair(item: Any, where: str, reading: _Reading) -> PlacedObject:
    if isinstance(item, PlacedObject):
        return item
    phrase, place = _phrase_and_place(item)
    if not isinstance(phrase, str) or not phrase.strip():
        raise ValueError(
            f"{where} must be a pair (phrase, (x0, y0, x1, y1)) or (phrase, mask), got"
            f" {short(item)}"
        )
    check_phrase(phrase, where)
    noun = find_noun(phrase, reading.noun_of)
    if is_mask(place):
        outline = outline_of(place, where, aspect=_aspect(reading))
        return PlacedObject(phrase, noun, outline.box, outline=outline)
    if isinstance(place, Mapping):
        return PlacedObject(phrase, noun, box_in_pixels(place, reading.canvas, where))
    if isinstance(place, str):
        raise ValueError(
            f"{where} must have a box or a mask, got the text {short(place)}: open a picture with"
            " PIL.Image.open"
        )
    try:
        edges = [number(edge, where) for edge in place]
    except TypeError:
        edges = []
    if len(edges) == 4 and max(edges) >= _PIXELS:
        instead = '{"x", "y", "width", "height"} is read in pixels of canvas=(width, height)'
        raise ValueError(
            f"{where} must have its box in fractions of the canvas, got {edges}: divide pixels"
            f" by the picture's width and height; {instead}"
        )
    return PlacedObject(phrase, noun, check_box(edges or place, where))


def _phrase_and_place(item: Any) -> tuple[Any, Any]:
    """(None, ()) of what is no pair."""
    try:
        if isinstance(item, Mapping):
            return item["phrase"], item["mask"] if "mask" in item else item["box"]
        phrase, place = item
    except (TypeError, ValueError, KeyError):
        return None, ()
    return phrase, place


def _read_foreign(text: str, reading: _Reading, *, of_file: bool) -> Layout | None:
    """What the JSON in a text holds, if it is another program's or a list of our objects."""
    text = plain_text(text).strip()
    whole = text[:1] in ("{", "[")
    if _FOREIGN.search(text) is None and not (text[:1] == "[" and '"box"' in text):
        return None
    begin = _CAPTION.search(text) or _TABLE.search(text)
    if not whole and begin is None:
        return None
    start = 0 if whole or begin is None else begin.start()
    try:
        data = loads(
            text if whole else text[start : 1 + text.rfind("}" if text[start] == "{" else "]")]
        )
    except ValueError as error:
        # A language model's lists are read more generously.
        if begin is not None and (text[begin.start()] == "{" or '"desc"' in text):
            raise ValueError(f"layout must be valid JSON, got {error}") from None
        return None
    return _read_data(data, text[:start].strip(), reading, of_file=of_file)


def _read_data(data: Any, said: str, reading: _Reading, *, of_file: bool) -> Layout | None:
    """What JSON holds, after a text or none, if it is another program's or a list of ours."""
    if is_workflow(data):
        return reading.layout("", *read_workflow(data, canvas=reading.canvas))
    if is_box_prompt(data):
        return reading.layout(*read_box_prompt(data, said=said, article=reading.article))
    if is_comfyui(data, of_file=of_file):
        return reading.layout("", *read_comfyui(data, canvas=reading.canvas))
    if not _is_own_list(data, reading, of_file=of_file):
        return None
    return _read_own(_json({"objects": data}), reading)


def _read_own(text: str, reading: _Reading) -> Layout:
    """The layout of our own JSON, of the canvas's aspect where it does not state one."""
    return Layout.from_json(text, noun_of=reading.noun_of, aspect=_aspect(reading))


def _objects(text: str) -> list[Any] | None:
    """The items of a text that is a JSON list of objects or pairs; None of another."""
    text = plain_text(text).strip()
    try:
        data = loads(text) if text[:1] == "[" else None
    except ValueError:
        return None
    of_objects = isinstance(data, list) and all(isinstance(item, dict | list) for item in data)
    return data if of_objects else None


def _is_own_list(data: Any, reading: _Reading, *, of_file: bool) -> bool:
    """Whether it is the "objects" of our own format, and not what a language model calls so."""
    if not isinstance(data, list) or not data:
        return False
    for item in data:
        mine = isinstance(item, Mapping) and all(key in _OWN_OBJECT for key in item)
        if not mine or "phrase" not in item or "box" not in item:
            return False
    if any(key in item for item in data for key in ("noun", "score", "shape")):
        return True
    pixels = reading.canvas is None or max(reading.canvas) > 1
    return of_file and pixels and all(_are_fractions(item["box"]) for item in data)


def _are_fractions(box: Any) -> bool:
    return isinstance(box, list) and all(
        isinstance(edge, int | float) and abs(edge) <= 1 for edge in box
    )


def _json(value: Any) -> str:
    """What JSON holds as a text, with numbers of every kind."""
    try:
        return json.dumps(value, default=scalar)
    except (TypeError, ValueError, RecursionError):
        raise ValueError(f"layout must be what JSON can hold, got {short(value)}") from None


def _aspect(reading: _Reading) -> float:
    canvas = reading.canvas
    return reading.aspect if canvas is None else canvas[0] / canvas[1]


def check_canvas(canvas: tuple[float, float] | None) -> tuple[float, float] | None:
    """The canvas, if there is one. Raises ValueError unless it is of two positive numbers."""
    if canvas is None:
        return None
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
