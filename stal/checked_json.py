"""JSON of other people's making, read so that an error names the place.

Every reader here raises ValueError: "<place> must <rule>, got <value>".
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any


def read_json(path: str | Path) -> dict[str, Any]:
    """The JSON object in a file. Raises ValueError, naming the file, if there is none."""
    value = read_value(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path} must be a JSON object, got {type(value).__name__}")
    return value


def read_value(path: str | Path) -> Any:
    """What a JSON file holds. Raises ValueError, naming the file, if it is none."""
    path = Path(path)
    if not path.is_file():
        got = "another thing" if path.exists() else "no such file"
        raise ValueError(f"{path} must be a JSON file, got {got}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} must be JSON, got {first_line(error)}") from error


def check_keys(
    data: Any, where: str, required: Sequence[str], *, optional: Sequence[str] = ()
) -> None:
    """Raises ValueError unless data is a JSON object with these keys."""
    typed(data, dict, where)
    for key in required:
        if key not in data:
            raise ValueError(f'{where} must have "{key}", got {_list_keys(data)}')
    for key in data:
        if key not in required and key not in optional:
            raise ValueError(
                f'{where} must not have "{key}", only {_list_keys([*required, *optional])}'
            )


def _list_keys(keys: Mapping[str, Any] | Sequence[str]) -> str:
    return ", ".join(f'"{key}"' for key in keys) or "no keys"


_JSON_NAMES = {dict: "an object", list: "a list", str: "a string", int: "an integer"}


def typed(value: Any, kind: type, where: str) -> Any:
    """The value. Raises ValueError unless it is of that kind: dict, list, str or int, no bool."""
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{where} must be {_JSON_NAMES[kind]}, got {short(value)}")
    return value


def number(value: Any, where: str) -> float:
    """The value as a float. Raises ValueError unless it is a number that a float can hold."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"{where} must be a number, got {short(value)}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{where} must be a finite number, got {short(value)}") from None


def integer(value: Any, where: str) -> int:
    """The value as an integer, which may be written as a text, as other people's ids are.

    Raises ValueError if it is none.
    """
    whole = isinstance(value, float) and value.is_integer()
    if isinstance(value, str) or whole or (isinstance(value, int) and not isinstance(value, bool)):
        with suppress(ValueError):
            return int(value)
    raise ValueError(f"{where} must be an integer, got {short(value)}")


def short(value: Any) -> str:
    """A value as error messages show it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


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
    return (str(error).strip() or type(error).__name__).splitlines()[0]
