"""Sets of prompts with labels: what is named in each, and how it is related.

Formats:
    gpt: blocks of `Objects: a, b`, `Relation: a left of b, ...`, `Sentence: ...`.
    spatial, counting: the JSON lists of NSR-1K (LayoutGPT, arXiv 2305.15393).
    captions: a line each, either "the A is R the B" (VSR) or "a A R a B" (T2I-CompBench), where R
        is one of `PREDICATE_OF`; other lines are not labelled and are passed over.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stal import budget
from stal.checked_json import integer, read_value, short
from stal.files import lines_of, read_text

# Relations of one-relation captions -> predicate.
PREDICATE_OF = {
    "left of": "left of",
    "on the left of": "left of",
    "to the left of": "left of",
    "at the left side of": "left of",
    "right of": "right of",
    "on the right of": "right of",
    "to the right of": "right of",
    "at the right side of": "right of",
    "above": "above",
    "on the top of": "above",
    "on top of": "above",
    "below": "below",
    "under": "below",
    "on the bottom of": "below",
    "next to": "next to",
    "near": "next to",
    "on side of": "next to",
    "in front of": "in front of",
    "behind": "behind",
    "hidden by": "behind",
}
_NSR1K = {"left": "left of", "right": "right of", "top": "above", "bottom": "below"}


@dataclass(frozen=True)
class Labelled:
    """A prompt and what is known of it.

    Attributes:
        prompt: the text.
        objects: names of objects, e.g. "silver bed".
        relations: (name, predicate, name).
        counts: (name, number) of all objects of a class, where numbers are what is labelled.
        kind: the part of the set, e.g. "3 objects" or "natural".
        image: id of the picture that the prompt describes; 0 if there is none.
    """

    prompt: str
    objects: tuple[str, ...]
    relations: tuple[tuple[str, str, str], ...] = ()
    counts: tuple[tuple[str, int], ...] = ()
    kind: str = ""
    image: int = 0


def read_gpt(path: Path) -> list[Labelled]:
    """Blocks of `Objects:`, `Relation:`, `Sentence:`; the kind is the number of objects.

    Raises:
        ValueError: a block lacks one of the three, and the message names its line; or a relation
            is none of left of, right of, above, below.
    """
    cases = []
    line = 1
    text = read_text(path, name="gpt", limit=budget.MOST_PROMPTS_BYTES)
    for block in re.split(r"\n(?=[^\S\n]*\n)", text):
        if block.strip():
            parts = dict(re.findall(r"^(Objects|Relation|Sentence): *(.*)$", block, re.MULTILINE))
            if len(parts) != 3:
                first = line + len(block) - len(block.lstrip())
                raise ValueError(
                    f"{path} must consist of blocks of Objects, Relation and Sentence,"
                    f" got {sorted(parts)} near line {first}"
                )
            names = tuple(name.strip() for name in parts["Objects"].split(","))
            relations = tuple(_split(text, path) for text in parts["Relation"].split(","))
            cases.append(
                Labelled(parts["Sentence"], names, relations, kind=f"{len(names)} objects")
            )
        line += block.count("\n") + 1
    return cases


def _split(text: str, path: Path) -> tuple[str, str, str]:
    found = re.fullmatch(r"(.+?) (left of|right of|above|below) (.+)", text.strip())
    if found is None:
        raise ValueError(f"{path} must state relations as `A left of B`, got {text.strip()!r}")
    return found[1], found[2], found[3]


def read_spatial(path: Path) -> list[Labelled]:
    """NSR-1K's spatial set; the kind is "template" or "natural".

    Raises:
        ValueError: not such a file.
    """
    cases = []
    for index, item in enumerate(_read_list(path, ("prompt", "obj1", "obj2", "relation", "type"))):
        where = f"{path}: item {index}"
        try:
            names = (str(item["obj1"][0]), str(item["obj2"][0]))
        except (TypeError, KeyError, IndexError):
            raise ValueError(f"{where}: obj1 and obj2 must be lists with a name first") from None
        predicate = _NSR1K.get(str(item["relation"]), item["relation"])
        if predicate not in PREDICATE_OF.values():
            raise ValueError(f"{where}: relation must be a known one, got {short(predicate)}")
        relations = ((names[0], predicate, names[1]),)
        image = integer(item.get("image_id", 0), f"{where}: image_id")
        cases.append(Labelled(item["prompt"], names, relations, kind=item["type"], image=image))
    return cases


def read_counting(path: Path) -> list[Labelled]:
    """NSR-1K's counting set; the kind is its sub-type.

    Raises:
        ValueError: not such a file.
    """
    cases = []
    for index, item in enumerate(_read_list(path, ("prompt", "num_object", "sub-type"))):
        where = f"{path}: item {index}: num_object"
        try:
            pairs = [(str(name), number) for name, number in item["num_object"]]
        except (TypeError, ValueError):
            raise ValueError(f"{where} must be pairs of a name and a number") from None
        counts = tuple((name, integer(number, where)) for name, number in pairs)
        names = tuple(name for name, _ in counts)
        cases.append(Labelled(item["prompt"], names, (), counts, item["sub-type"]))
    return cases


def _read_list(path: Path, keys: Sequence[str]) -> list[dict[str, Any]]:
    items = read_value(path, limit=budget.MOST_DATASET_BYTES)
    for index, item in enumerate(items if isinstance(items, list) else [None]):
        if not isinstance(item, dict) or not set(keys) <= item.keys():
            raise ValueError(f"{path} must be a list of objects with {keys}, got item {index}")
        if not isinstance(item["prompt"], str):
            raise ValueError(f"{path}: item {index}: prompt must be a text")
    return items


def read_captions(path: Path) -> list[Labelled]:
    """One-relation captions, a line each; lines of another form are left out.

    The kind is the wording of the relation, a key of `PREDICATE_OF`.
    """
    wordings = "|".join(sorted(map(re.escape, PREDICATE_OF), key=len, reverse=True))
    form = re.compile(
        rf"(?:the|an?) (.+?)(?: is)? ({wordings}) (?:the|an?) (.+?)\.?", re.IGNORECASE
    )
    cases = []
    text = read_text(path, name="captions", limit=budget.MOST_PROMPTS_BYTES)
    for line in lines_of(text):
        found = form.fullmatch(line.strip())
        if found is not None:
            first, wording, second = found[1], found[2].lower(), found[3]
            relation = (first, PREDICATE_OF[wording], second)
            cases.append(Labelled(line.strip(), (first, second), (relation,), kind=wording))
    return cases
