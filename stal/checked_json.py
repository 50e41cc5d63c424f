"""JSON of other people's making, read so that an error names the place.

Every reader here raises ValueError: "<place> must <rule>, got <value>".
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from stal import budget
from stal.files import load_text


def read_json(path: str | Path) -> dict[str, Any]:
    """The JSON object in a file. Raises ValueError, naming the file, if there is none."""
    value = read_value(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path} must be a JSON object, got {type(value).__name__}")
    return value


def read_value(path: str | Path, *, limit: int = budget.MOST_TEXT_BYTES) -> Any:
    """What a JSON file of at most `limit` bytes holds.

    Raises ValueError, naming the file, if it is none.
    """
    try:
        text = load_text(path, name=str(path), limit=limit)
    except FileNotFoundError as error:
        raise ValueError(f"{path} must be a JSON file, got no such file") from error
    except OSError as error:
        raise ValueError(f"{path} must be a JSON file, got: {error.strerror}") from error
    try:
        return loads(text)
    except ValueError as error:
        raise ValueError(f"{path} must be JSON, got {error}") from error


def loads(text: str) -> Any:
    """What a JSON text says.

    Raises ValueError, with what is wrong and where, if it is no JSON, or says one key of an object
    twice, of which some readers take the first and some the last.
    """
    try:
        return json.loads(text, object_pairs_hook=_object, parse_int=_integer)
    except json.JSONDecodeError as error:
        reason = f"{error.msg.lower()} in line {error.lineno}, column {error.colno}"
        raise ValueError(reason) from None
    except RecursionError:
        raise ValueError("deep nesting") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"two of the key {short(key)} in one object")
            seen.add(key)
    return found


def _integer(digits: str) -> int:
    if len(digits) > budget.MOST_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)


def check_keys(
    data: Any, where: str, required: Sequence[str], *, optional: Sequence[str] = ()
) -> None:
    """Raises ValueError unless data is a JSON object with these keys, of which the optional ones,
    those that are required or others, may be missing."""
    typed(data, dict, where)
    for key in required:
        if key not in data and key not in optional:
            raise ValueError(f"{where} must have {quoted(key)}, got {_list_keys(data)}")
    for key in data:
        if key not in required and key not in optional:
            raise ValueError(
                f"{where} must not have {quoted(key)}, only"
                f" {_list_keys(dict.fromkeys([*required, *optional]))}"
            )


def _list_keys(keys: Mapping[str, Any]) -> str:
    more = ", ..." if len(keys) > 10 else ""
    return ", ".join(map(quoted, list(keys)[:10])) + more or "no keys"


def quoted(key: str) -> str:
    """A key as error messages show it."""
    return dumps(key if len(key) <= 60 else f"{key[:57]}...")


_JSON_NAMES = {dict: "an object", list: "a list", str: "a string", int: "an integer"}


def typed(value: Any, kind: type, where: str) -> Any:
    """The value. Raises ValueError unless it is of that kind: dict, list, str or int, no bool.

    An int may be any integer that `scalar` knows.
    """
    if kind is int:
        value = scalar(value)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{where} must be {_JSON_NAMES[kind]}, got {short(value)}")
    return value


def number(value: Any, where: str) -> float:
    """The value as a float: any number that `scalar` knows, NaN and infinity too, which each place
    refuses by its own rule. Raises ValueError unless it is one that a float can hold."""
    value = scalar(value)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"{where} must be a number, got {short(value)}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{where} must be a finite number, got {short(value)}") from None


def scalar(value: Any) -> Any:
    """A number of numpy, or an array or tensor of no dimension, as Python's int, float or bool.

    Everything else comes back as it is. Numbers of our public functions go through this, so that
    `numpy.int64(5)` is as good as 5, and what is written is what json knows.
    """
    if type(value) in (int, float, bool, str):
        return value
    if getattr(value, "shape", None) == () and callable(getattr(value, "item", None)):
        try:
            value = value.item()
        except (RuntimeError, NotImplementedError):  # a tensor that has no value, such as meta's
            return value
    if isinstance(value, bool):
        return value
    try:
        if isinstance(value, Integral):
            return int(value)
        return float(value) if isinstance(value, Real) else value
    except OverflowError:  # a fraction that no float holds
        return value


def is_integer(value: Any) -> bool:
    """Whether `scalar(value)` is an integer, and no bool."""
    value = scalar(value)
    return isinstance(value, int) and not isinstance(value, bool)


def as_whole(value: Any) -> Any:
    """A float without a fraction as an int; anything else as it is."""
    is_whole = isinstance(value, float) and value.is_integer()
    return int(value) if is_whole else value


def integer(value: Any, where: str) -> int:
    """The value as an integer, which may be written as a text, as other people's ids are.

    Raises ValueError if it is none.
    """
    found = as_whole(scalar(value))
    if isinstance(found, str) and re.fullmatch(rf"\s*-?[0-9]{{1,{budget.MOST_DIGITS}}}\s*", found):
        found = int(found)
    if not is_integer(found):
        raise ValueError(f"{where} must be an integer, got {short(value)}")
    return int(found)


def short(value: Any) -> str:
    """A value as error messages show it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def shown(name: Any) -> str:
    """A name of a file's making as it is, where it fits into a line; anything else as `short`."""
    fits = isinstance(name, str) and name.isprintable() and 0 < len(name) <= 100
    return name if fits else short(name)


def dumps(value: Any) -> str:
    """A value as JSON on one line. Raises ValueError for NaN and infinity."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    # Halves of surrogate pairs, as an undecodable command line gives them, have no UTF-8 form.
    return re.sub("[\ud800-\udfff]", lambda half: f"\\u{ord(half[0]):04x}", text)


def dump_lines(items: Sequence[Any]) -> str:
    """A list as JSON, an item a line, indented for the second level of a file."""
    if not items:
        return "[]"
    return "[\n    " + ",\n    ".join(map(dumps, items)) + "\n  ]"


def first_line(error: Exception) -> str:
    """An error's message as one line of ours can end."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line if len(line) <= 300 else f"{line[:297]}..."
