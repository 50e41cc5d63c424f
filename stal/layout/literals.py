"""Lists and texts as language models write them: Python's, JSON's, and what is nearly either.

Quotes may be typographic, and an apostrophe may stand inside single ones: a quote ends a text only
where a comma, colon or bracket follows. Commas may be missing or too many. Nothing is executed.
"""

from __future__ import annotations

import re
from typing import Any

from stal import budget

_CLOSING = {"[": "]", "(": ")", "{": "}"}
# What ends a text, by what it began with.
_QUOTES = {'"': '"', "'": "'", "`": "`", "“": '”“"', "”": '”"', "‘": "’'", "’": "’'", "«": "»"}
OPENING_QUOTE = "[" + "".join(_QUOTES) + "]"
_ENDS = {ends: re.compile(rf"[\\{ends}]") for ends in _QUOTES.values()}
_AFTER_TEXT = re.compile(r"\s*(?:[,:;\])}]|$)")
_GAP = re.compile(r"(?:[\s,;]|#[^\n]*|//[^\n]*)*")  # with comments
_COLON = re.compile(r"\s*(?::|=>?)\s*")
_NUMBER = re.compile(
    r"([-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d{1,3})?)\s*(%|px\b)?", re.IGNORECASE
)
_WORD = re.compile(r"[^\W\d]\w*")
_WORDS = {"none": None, "null": None, "true": True, "false": False}
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|.)", re.DOTALL)


def parse_value(text: str, start: int) -> tuple[Any, int]:
    """The list, tuple, dict, text or number at a place in a text, and where it ends.

    Numbers are floats, in px as without; percentages remain texts, "30%".

    Raises:
        ValueError: it is none, or it is not closed.
    """
    return _value(text, start, 0, start)


def _value(text: str, at: int, depth: int, start: int) -> tuple[Any, int]:
    if depth > budget.MOST_ANSWER_DEPTH:
        raise ValueError("list must be of pairs (phrase, [x, y, width, height]), got deep nesting")
    char = text[at : at + 1]
    if char in _CLOSING:
        return _collection(text, at, depth, start)
    if char in _QUOTES:
        return _text(text, at, start)
    if found := _NUMBER.match(text, at):
        percent = found[2] == "%"
        return (f"{found[1]}%" if percent else float(found[1])), found.end()
    if (found := _WORD.match(text, at)) and found[0].lower() in _WORDS:
        return _WORDS[found[0].lower()], found.end()
    if at >= len(text):
        raise _unclosed(text, start)
    line = text.count("\n", 0, at) + 1
    raise ValueError(
        "list must be of pairs (phrase, [x, y, width, height]), got"
        f" {text[at : at + 20]!r} in line {line}"
    )


def _collection(text: str, at: int, depth: int, start: int) -> tuple[Any, int]:
    closing = _CLOSING[text[at]]
    keyed = closing == "}"
    items: list[Any] = []
    at = _skip(_GAP, text, at + 1)
    while text[at : at + 1] != closing:
        value, at = _value(text, at, depth + 1, start)
        if keyed:
            colon = _COLON.match(text, at)
            if colon is None or not isinstance(value, str):
                raise ValueError("list must be of pairs (phrase, [x, y, width, height])")
            item, at = _value(text, colon.end(), depth + 1, start)
            value = (value, item)
        items.append(value)
        at = _skip(_GAP, text, at)
    if not keyed:
        return (items if closing == "]" else tuple(items)), at + 1
    table = dict(items)
    if len(table) < len(items):
        raise ValueError("list must name each key of an object once, got one twice")
    return table, at + 1


def _skip(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    return at if found is None else found.end()


def _text(text: str, at: int, start: int) -> tuple[str, int]:
    ends = _ENDS[_QUOTES[text[at]]]
    begin = at = at + 1
    while found := ends.search(text, at):
        at = found.end()
        if found[0] == "\\":
            at += 1
        elif _AFTER_TEXT.match(text, at):
            return _unescaped(text[begin : found.start()]), at
    raise _unclosed(text, start)


def _unescaped(text: str) -> str:
    if "\\" not in text:
        return text

    def char(found: re.Match[str]) -> str:
        code = found[1]
        if len(code) > 1:
            return chr(int(code[1:], 16))
        return " " if code in "nrt" else code

    # JSON writes what is beyond 16 bits as two halves.
    halves = _ESCAPE.sub(char, text).encode("utf-16", "surrogatepass")
    return halves.decode("utf-16", "replace")


def _unclosed(text: str, start: int) -> ValueError:
    line = text.count("\n", 0, start) + 1
    return ValueError(f"list must be closed by ], got the end of the file after line {line}")


def length(value: Any, whole: float) -> float:
    """A length in pixels: a number, "30", "30px", or "30%" of a whole number of pixels.

    Raises ValueError for everything else.
    """
    if isinstance(value, bool) or value is None:
        raise ValueError("no number")
    if isinstance(value, int | float):
        return float(value)
    found = _NUMBER.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None:
        raise ValueError("no number")
    return float(found[1]) * (whole / 100 if found[2] == "%" else 1)
