"""Layouts in the answers of language models.

    cat {width: 30px; height: 40px; left: 5px; top: 10px; }     LayoutGPT
    [('a green car', [21, 281, 211, 159]), ...]                  LLM-grounded diffusion

Models are asked for this and write more: prose around it, code fences, bullets and numbers before
an object, quotes and stars around it, comments, rules over several lines, percentages, decorative
properties, lists of lists or of objects with keys, pairs without a list around them, a line
"a cat: [x, y, width, height]" for each. All that is read. What could be read in two ways, and an
object that lacks a number, is refused and never left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from stal import budget
from stal.checked_json import short
from stal.layout.coverage import Box
from stal.layout.layout import check_phrase
from stal.layout.literals import OPENING_QUOTE, length, parse_value

Canvas = tuple[float, float]
Found = list[tuple[str, Box]]

CSS_CANVAS = (64.0, 64.0)
LIST_CANVAS = (512.0, 512.0)
_LIST = re.compile(rf"[\[(]\s*[\[({{]\s*{OPENING_QUOTE}")
_PAIR = re.compile(rf"[\[({{]\s*{OPENING_QUOTE}")
_BOX = re.compile(r"[\[(]([^\[\]()\n]*)[\])]")
_PROPERTIES = ("left", "top", "width", "height")
# Models write these too; they move no box.
_DECORATIONS = (
    *("background", "border", "color", "content", "display", "font", "opacity", "position"),
    *("text", "z-index"),
)
_MARKS = " \t\r*_`\"'“”‘’«»:;,.#<>|=+~•·‣◦▪–—-()[]"
_NUMBERING = re.compile(
    r"\(?\d{1,4}\s*[.):\]]\s*|\d{1,4}\s*[-–]\s+|(?:[A-Za-z]|[ivx]{1,4})[.)]\s+"
    r"|(?:#|(?:item|no|nr|number|object|step)\b\.?)\s?\d{1,4}\s*[.):-]?\s+",
    re.IGNORECASE,
)
_BEFORE = re.compile(r"^[^\w#(]+")  # arrows, boxes to tick, emoji
_TAG = re.compile(r"</?\w{1,10}>")
_HASH = re.compile(r"\s*#\d{1,4}$")
_REASONING = ("think", "thinking", "reasoning")
_ARTICLES = ("a", "an", "the")
_WIDE = str.maketrans("：；，％", ":;,%")  # as Chinese and Japanese keyboards write them
PHRASE_KEYS = ("phrase", "name", "object", "label", "description", "caption", "category")
_BOX_KEYS = ("box", "bbox", "bounding_box", "bounding box", "boundingbox")
_CORNER = (("x", "left"), ("y", "top"), ("width", "w"), ("height", "h"))


def plain_text(text: str) -> str:
    """An answer without what was only thought, code fences and byte order marks; of the fenced
    part alone, if one holds brackets."""
    lines = _without_reasoning(text.replace("\ufeff", "")).split("\n")
    fences = [k for k, line in enumerate(lines) if line.lstrip().startswith("```")]
    for k in fences:
        lines[k] = ""
    for begin, end in zip(fences[::2], [*fences[1::2], len(lines)], strict=False):
        if any(bracket in line for line in lines[begin:end] for bracket in "[{("):
            # Lines keep their numbers.
            lines = [line if begin < k < end else "" for k, line in enumerate(lines)]
            break
    return "\n".join(lines)


def _without_reasoning(text: str) -> str:
    """Without <think> ... </think>, in as many lines."""
    for tag in _REASONING:
        begin, end = text.find(f"<{tag}>"), text.rfind(f"</{tag}>")
        if 0 <= begin < end or (begin < 0 <= end):
            start = max(begin, 0)
            text = text[:start] + "\n" * text.count("\n", start, end) + text[end + len(tag) + 3 :]
    return text


def read_answer(
    text: str, *, canvas: Canvas | None, article: Callable[[str], str]
) -> tuple[str, Found, Canvas]:
    """What an answer holds.

    Args:
        text: as `plain_text` gives it.
        canvas: (width, height) in pixels that the model was told; the usual one of the format if
            None.
        article: from a word to "a" or "an", for names without one.

    Returns:
        The prompt ("" if the answer does not repeat it), phrases with their boxes, the canvas.

    Raises:
        ValueError: no layout, or a box outside the canvas; the message names the place.
    """
    if len(text) > budget.MOST_ANSWER_CHARS:
        most = budget.MOST_ANSWER_CHARS
        raise ValueError(
            f"layout of a language model must have at most {most} characters, got {len(text)}"
        )
    prompt, rest = _without_labels(text)
    if not any(bracket in rest for bracket in "[{("):
        rest = text  # all on the line of a label
    usual = canvas is None
    if _has_rules(rest):
        canvas = canvas or CSS_CANVAS
        named = _read_css(rest, canvas)
        found = [(_with_article(name, article), corner, where) for name, corner, where in named]
    else:
        found = _read_list(rest, canvas)
        canvas = canvas or LIST_CANVAS
    if not found:
        raise ValueError("layout must have an object, got none")
    if len(found) > budget.MOST_OBJECTS:
        raise ValueError(
            f"layout must have at most {budget.MOST_OBJECTS} objects, got {len(found)}"
        )
    if usual and all(abs(edge) <= 1 for _, corner, _ in found for edge in corner):
        width, height = canvas
        raise ValueError(
            f"boxes must be in pixels of {width:g} x {height:g}, got fractions such as"
            f" {found[0][1]}: name the canvas 1x1 if that is meant"
        )
    boxes = [
        (check_phrase(phrase, where), box_of(corner, canvas, where))
        for phrase, corner, where in found
    ]
    return prompt, boxes, canvas


def _without_labels(text: str) -> tuple[str, str]:
    """The prompt that the answer repeats, and the answer without the lines that repeat prompts,
    which may have brackets of their own."""
    prompt, lines = "", text.split("\n")
    for k, line in enumerate(lines):
        label, colon, said = line.partition(":")
        label = label.strip(_MARKS).lower()
        if colon and len(label) <= 40 and label.endswith(("prompt", "caption")):
            lines[k] = ""
            if label in ("prompt", "caption"):
                prompt = prompt or said.lstrip("*_` \t").strip()
    return prompt, "\n".join(lines)


def _has_rules(text: str) -> bool:
    """Whether the first thing in an answer is a rule of CSS, and not a list or an object."""
    brace = text.find("{")
    listed = _LIST.search(text)
    if brace < 0 or (listed is not None and listed.start() < brace):
        return False
    begins = not text[text.rfind("\n", 0, brace) + 1 : brace].strip(_MARKS)
    has_list = text.find("[", brace, text.find("}", brace)) >= 0
    return not ((begins or has_list) and _PAIR.match(text, brace))


_Placed = tuple[str, list[float], str]  # a phrase, (x, y, width, height) in pixels, the place


def _read_css(text: str, canvas: Canvas) -> list[_Placed]:
    """Names and boxes of rules `name {property: value; ...}`."""
    text = _without_comments(text)
    found: list[_Placed] = []
    at, counted, line = 0, 0, 1
    while (brace := text.find("{", at)) >= 0 or text.find("}", at) >= 0:
        close = text.find("}", at)
        place = brace if brace >= 0 else close
        line += text.count("\n", counted, place)
        counted, where = place, f"line {line}"
        if brace < 0 or close < brace or text.find("{", brace + 1, close) >= 0:
            whole = text[text.rfind("\n", at, place) + 1 : place + 60].partition("\n")[0]
            raise ValueError(
                f"{where} must be like `cat {{width: 30px; ...}}`, got {short(whole.strip())}"
            )
        values = _declarations(text[brace + 1 : close], canvas, where)
        said = text[at:brace].rstrip().rpartition("\n")[2]
        name = _name(said)
        if not name:
            raise ValueError(f"{where} must name its object, got {short(said.strip())}")
        found.append((name, [values[each] for each in _PROPERTIES], where))
        at = close + 1
    return found


def _without_comments(text: str) -> str:
    """Without /* ... */, in as many lines."""
    parts, at = [], 0
    while (begin := text.find("/*", at)) >= 0 and (end := text.find("*/", begin + 2)) >= 0:
        parts += [text[at:begin], "\n" * text.count("\n", begin, end)]
        at = end + 2
    return "".join([*parts, text[at:]])


def _declarations(body: str, canvas: Canvas, where: str) -> dict[str, float]:
    values: dict[str, float] = {}
    for part in filter(str.strip, re.split(r"[;,\n]", body.translate(_WIDE))):
        name, colon, value = part.partition(":")
        name, value = name.strip(_MARKS).lower(), value.lower().replace("!important", "")
        value = value.strip(" \t\"'“”‘’`")
        if not colon or name.startswith(_DECORATIONS):
            continue
        if name not in _PROPERTIES:
            raise ValueError(f"{where} must have {', '.join(_PROPERTIES)} only, got {short(name)}")
        if name in values:
            raise ValueError(f"{where} must have one {name}, got two")
        try:
            values[name] = length(value, canvas[name in ("top", "height")])
        except ValueError:
            if value == "nan":
                values[name] = math.nan
                continue
            raise ValueError(f"{where} must have {name} in px, got {short(value)}") from None
    if sorted(values) != sorted(_PROPERTIES):
        got = ", ".join(values) or "none"
        raise ValueError(f"{where} must have {', '.join(_PROPERTIES)}, got {got}")
    return values


def _name(said: str) -> str:
    """The object that is named before its box, without what surrounds and numbers it."""
    name = _BEFORE.sub("", _TAG.sub("", said)).rstrip(_MARKS).lstrip(_MARKS.replace("#", ""))
    if numbering := _NUMBERING.match(name):
        name = name[numbering.end() :]
    name = name.rpartition(":")[2].strip(_MARKS)
    # "cat1" and "cat 2" are cats.
    bare = name.rstrip("0123456789")
    name = bare.rstrip(_MARKS) if bare != name else name
    return " ".join(name.replace("-", " ").replace("_", " ").split())


def _with_article(name: str, article: Callable[[str], str]) -> str:
    if name.partition(" ")[0].lower() in _ARTICLES:
        return name
    return f"{article(name)} {name}"


def _read_list(text: str, canvas: Canvas | None) -> list[_Placed]:
    """Phrases and boxes [x, y, width, height] of the first list of them, or else of pairs and lines
    without a list around them."""
    listed = _LIST.search(text)
    if listed is not None:
        items = _items(parse_value(text, listed.start())[0])
    else:
        items = _pairs(text) or _boxes_of_lines(text)
    if not items:
        start = text.find("[")
        if start < 0:
            raise ValueError(
                "layout must be JSON, LayoutGPT's lines `cat {width: 30px; ...}` or a list of"
                f" (phrase, [x, y, width, height]), got {text.strip()[:40]!r}"
            )
        items = parse_value(text, start)[0]
    return [_item(item, canvas, f"item {index}") for index, item in enumerate(items)]


def _pairs(text: str) -> list[Any]:
    """Pairs of a phrase and a box, or objects, one after the other without a list around them."""
    found: list[Any] = []
    at = 0
    while opening := _PAIR.search(text, at):
        value, at = parse_value(text, opening.start())
        # What has one part, ("like this"), is prose.
        found += [each for each in _items(value) if hasattr(each, "__len__") and len(each) > 1]
    return found


def _items(value: Any) -> list[Any]:
    """The items of a list, of an object by phrase, or of phrases and boxes in turn."""
    if isinstance(value, dict):
        keys = {str(key).lower() for key in value}
        if not keys.isdisjoint(PHRASE_KEYS) and not keys.isdisjoint((*_BOX_KEYS, "x", "left")):
            return [value]
        (first, *more) = value.values() or [None]
        # {"layout": [...]}
        nested = isinstance(first, list) and not more and isinstance((*first, 0)[0], list | dict)
        return _items(first) if nested else [*value.items()]
    names, boxes = value[::2], value[1::2]
    if value and isinstance(value[0], str):
        in_turn = len(names) == len(boxes) and all(isinstance(each, str) for each in names)
        if in_turn and all(isinstance(each, list | tuple | dict) for each in boxes):
            return [*zip(names, boxes, strict=True)]
        return [value]
    return [*value]


def _item(item: Any, canvas: Canvas | None, where: str) -> _Placed:
    try:
        phrase, corner = _phrase_and_corner(item)
        if isinstance(corner, dict):
            corner = {str(key).lower(): each for key, each in corner.items()}
        # LayoutGPT's properties in another program's form: of 64 pixels, or of 512?
        ambiguous = isinstance(corner, dict) and "left" in corner and canvas is None
        if isinstance(corner, dict):
            corner = [next(corner[key] for key in keys if key in corner) for keys in _CORNER]
        if not isinstance(phrase, str) or not phrase.strip(_MARKS) or len(corner) != 4:
            raise TypeError
        numbers = [length(each, (canvas or LIST_CANVAS)[k % 2]) for k, each in enumerate(corner)]
        if not all(map(math.isfinite, numbers)):
            raise TypeError
    except (TypeError, ValueError, KeyError, StopIteration):
        raise ValueError(
            f"{where} must be (phrase, [x, y, width, height]), got {short(item)}"
        ) from None
    if ambiguous:
        raise ValueError(
            f"{where} must lie in a canvas that is named, such as 64x64 or 512x512, got"
            f" {short(item)} without"
        )
    return " ".join(_HASH.sub("", phrase.strip("*_` \t")).split()), numbers, where


def _phrase_and_corner(item: Any) -> tuple[Any, Any]:
    """Of a pair, a phrase and four numbers in one, or an object that names them."""
    if isinstance(item, dict):
        if len(item) == 1:
            return next(iter(item.items()))
        lower = {str(key).lower(): each for key, each in item.items()}
        phrase = next(lower[key] for key in PHRASE_KEYS if key in lower)
        return phrase, next((lower[key] for key in _BOX_KEYS if key in lower), lower)
    if len(item) == 5:
        return item[0], item[1:]
    phrase, corner = item
    return phrase, corner


def _boxes_of_lines(text: str) -> list[Any]:
    """Pairs of "a cat: [x, y, width, height]", one or several a line."""
    found: list[Any] = []
    at = 0
    for brackets in _BOX.finditer(text):
        parts = [part.strip() for part in re.split(r"[,;]", brackets[1])]
        # What holds one number, (2020), is prose, like what holds none.
        if len(parts) > 1 and any(part[:1].isdigit() for part in parts):
            line = text.rfind("\n", at, brackets.start()) + 1
            name = _name(text[max(at, line) : brackets.start()])
            found.append((name.removesuffix(" at"), parts))
            at = brackets.end()
    return found


def box_of(corner: Sequence[float], canvas: Canvas, where: str) -> Box:
    """The box of (x, y, width, height) in pixels of a canvas (width, height).

    One that leaves the canvas by a twentieth or less is cut. Raises ValueError, naming the place,
    for one that leaves it by more or is empty.
    """
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
