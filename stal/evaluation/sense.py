"""What anybody sees at once in a layout: prompts with checks that any sane one passes.

    {"prompt": "a dog under a table", "checks": [["rel", "dog", "overlaps", "table"]]}

a line of a file. ["obj", noun, n] asks for n objects and ["no", noun] for none. ["cx", noun, ">",
0.5], and likewise cy, w, h, top, bottom and area, are of the largest object of a noun, as fractions
of the canvas. ["rel", a, how, b] is of two nouns: left of, right of, above and below (centres),
overlaps, inside (three quarters of a), near (a gap of at most 0.08), bigger, and smaller (all of a
than the largest of b). "a|b" is either noun.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stal.checked_json import loads, short
from stal.echo import markdown_table
from stal.evaluation.intervals import share_cell
from stal.files import read_lines
from stal.layout import Box, Layout

_NEAR = 0.08


def _area(b: Box) -> float:
    return (b[2] - b[0]) * (b[3] - b[1])


def _shared(a: Box, b: Box) -> float:
    w, h = (max(0.0, min(a[k + 2], b[k + 2]) - max(a[k], b[k])) for k in (0, 1))
    return w * h


_HOW: dict[str, Callable[[Box, Box], bool]] = {
    "left of": lambda a, b: a[0] + a[2] < b[0] + b[2],
    "right of": lambda a, b: a[0] + a[2] > b[0] + b[2],
    "above": lambda a, b: a[1] + a[3] < b[1] + b[3],
    "below": lambda a, b: a[1] + a[3] > b[1] + b[3],
    "overlaps": lambda a, b: _shared(a, b) > 0,
    "inside": lambda a, b: _shared(a, b) >= 0.75 * _area(a),
    "near": lambda a, b: max(max(a[k], b[k]) - min(a[k + 2], b[k + 2]) for k in (0, 1)) <= _NEAR,
    "bigger": lambda a, b: _area(a) > _area(b),
    "smaller": lambda a, b: _area(a) < _area(b),
}
_MEASURES: dict[str, Callable[[Box], float]] = {
    "cx": lambda b: (b[0] + b[2]) / 2,
    "cy": lambda b: (b[1] + b[3]) / 2,
    "w": lambda b: b[2] - b[0],
    "h": lambda b: b[3] - b[1],
    "top": lambda b: b[1],
    "bottom": lambda b: b[3],
    "area": _area,
}


@dataclass(frozen=True)
class Sensible:
    """A prompt and the checks that its layouts should pass."""

    prompt: str
    checks: tuple[tuple[Any, ...], ...]


def read_sensible(path: Path) -> list[Sensible]:
    """Prompts with checks, a JSON object a line.

    Raises:
        ValueError: no such line; the message names it.
    """
    found = []
    for number, line in enumerate(read_lines(path, name="sense"), 1):
        where = f"{path}: line {number}"
        try:
            item = loads(line)
            checks = tuple(tuple(check) for check in item["checks"])
            if not isinstance(item["prompt"], str) or not all(map(_is_check, checks)):
                raise ValueError(f"got {short(item)}")
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{where} must have a prompt and checks, {error}") from None
        found.append(Sensible(item["prompt"], checks))
    return found


def _is_check(check: tuple[Any, ...]) -> bool:
    match check:
        case ("obj" | "no", str()):
            return True
        case ("obj", str(), int()):
            return True
        case ("rel", str(), str(how), str()):
            return how in _HOW
        case (str(measure), str(), ">" | "<", int() | float()):
            return measure in _MEASURES
    return False


def passes(layout: Layout, check: tuple[Any, ...]) -> bool:
    """Whether a layout passes one check."""
    kind, noun, *rest = check
    if kind == "no":
        return not any(noun in re.findall(r"[\w-]+", o.noun.lower()) for o in layout.objects)
    found = _boxes(layout, noun)
    if kind == "obj":
        return len(found) >= (rest[0] if rest else 1)
    if not found:
        return False
    if kind == "rel":
        others = _boxes(layout, rest[1])
        if not others:
            return False
        if rest[0] == "smaller":
            return all(_area(a) < max(map(_area, others)) for a in found)
        return any(_HOW[rest[0]](a, b) for a in found for b in others)
    value = _MEASURES[kind](max(found, key=_area))
    return bool(value > rest[1] if rest[0] == ">" else value < rest[1])


def _boxes(layout: Layout, noun: str) -> list[Box]:
    forms = "|".join(re.escape(word.strip()) for word in noun.split("|"))
    form = re.compile(rf"\b(?:{forms})(?:s|es)?\b")
    return [o.box for o in layout.objects if form.search(o.phrase.lower())]


def sense_table(
    sets: Sequence[tuple[str, Sequence[Sensible]]],
    place: Callable[[Sequence[str]], Sequence[Layout]],
) -> tuple[str, list[tuple[str, str]]]:
    """Checks passed and prompts wholly right, a row a file: Markdown; and (prompt, failed checks).

    Args:
        sets: (name, prompts).
        place: from prompts to their layouts.
    """
    lines, failed = [], []
    for name, prompts in sets:
        passed = total = whole = 0
        for each, layout in zip(prompts, place([p.prompt for p in prompts]), strict=True):
            bad = [check for check in each.checks if not passes(layout, check)]
            passed += len(each.checks) - len(bad)
            total += len(each.checks)
            whole += not bad
            failed += [(each.prompt, " ".join(map(str, check))) for check in bad]
        lines.append([name, share_cell(passed, total), share_cell(whole, len(prompts))])
    return "\n".join(markdown_table(["", "checks", "prompts"], lines)), failed
