"""Prompts of an evaluation: files in the formats that the field uses, and the shapes world's own.

    read_cases("prompts.txt")        # also GenEval, T2I-CompBench, COCO, 7Bench, gpt blocks
    read_cases("shapes:100:2,3,4")   # 100 prompts of the test split for each number of objects

What a file is, is told by its content. Prompts that come without labels are labelled by the parser.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stal import budget
from stal.checked_json import first_line, short, typed
from stal.evaluation.agreement import matches
from stal.evaluation.labelled import read_gpt
from stal.files import lines_of, read_text
from stal.layout import Box, Layout, PlacedObject
from stal.prompts import PREDICATES, Description, Object, article, parse
from stal.relations import Statement

# 7Bench's boxes are pixels of this square.
_CANVAS = 512
_SHAPES = re.compile(r"shapes:(\d+)(?::(\d(?:,\d)*))?(?::(\d+))?")


@dataclass(frozen=True)
class PromptCase:
    """A prompt, and what a picture of it has to show.

    Attributes:
        prompt: the text.
        objects: what must be there.
        relations: what must hold between them, with indices into objects.
        layout: where the objects are to be, one box for each of `objects`; None where the file
            does not say.
        kind: the part of the set, e.g. "3 objects" or "color_attr".
        where: file and line, for messages.
    """

    prompt: str
    objects: tuple[Object, ...] = ()
    relations: tuple[Statement, ...] = ()
    layout: Layout | None = None
    kind: str = ""
    where: str = ""


def read_cases(source: str, *, limit: int | None = None) -> list[PromptCase]:
    """Reads the prompts of a file, or draws those of `shapes:N[:COUNTS[:SEED]]`.

    Formats, by content: blocks of `Objects:`, `Relation:`, `Sentence:` (the released code of arXiv
    2304.03869); COCO's captions, a JSON object with "annotations", of which the first caption of
    each picture is taken; GenEval, JSON lines with "prompt" and "include"; 7Bench, CSV with the
    columns prompt, obj1, bbox1, ..., boxes being "x0,y0,x1,y1" in pixels of 512 x 512; otherwise a
    prompt a line, as T2I-CompBench's text files are. In the shapes world N prompts are drawn for
    each of COUNTS objects (2,3,4), with the boxes of the scenes that they were written for.

    Args:
        source: a path or `shapes:...`.
        limit: keep only this many, the first ones.

    Raises:
        ValueError: the file cannot be read as any of these; the message names the line.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be positive, got {limit}")
    path = Path(source)
    if source.startswith("shapes:") and not path.exists():
        cases = _shapes_cases(source)
    else:
        cases = _by_content(path, _read_text(path))
    if not cases:
        raise ValueError(f"prompts must hold at least one, got {source} without any")
    return cases[:limit]


def _read_text(path: Path) -> str:
    if not path.is_file():
        fix = "a file of prompts, or shapes:N[:COUNTS[:SEED]] such as shapes:100:2,3,4"
        raise ValueError(f"prompts must be {fix}, got {path}")
    return read_text(path, name="prompts", limit=budget.MOST_PROMPTS_BYTES)


def _by_content(path: Path, text: str) -> list[PromptCase]:
    first = next((line.strip() for line in lines_of(text) if line.strip()), "")
    if first.startswith(("{", "[")):
        return _json_cases(path, text)
    if re.match(r"(Objects|Relation|Sentence):", first):
        return _gpt_cases(path)
    try:
        columns = {name.strip() for name in next(csv.reader([first]), [])}
        if {"prompt", "obj1", "bbox1"} <= columns:
            return _csv_cases(path, text)
    except csv.Error as error:
        if first.startswith(("id,", "prompt,")):
            raise ValueError(f"{path} must be CSV, got: {error}") from None
    return [
        parsed(line.strip(), where=f"{path}:{number}")
        for number, line in enumerate(lines_of(text), 1)
        if line.strip()
    ]


def parsed(prompt: str, *, kind: str = "", where: str = "") -> PromptCase:
    """A prompt of which nothing is known but what the parser reads in it."""
    found = _read(prompt, where)
    relations = found.statements
    return PromptCase(prompt, found.objects, relations, None, kind or _count(found.objects), where)


def _read(prompt: str, where: str) -> Description:
    try:
        return parse(prompt)
    except ValueError as error:
        raise ValueError(f"{where}: {error}" if where else str(error)) from None


def _count(objects: Sequence[Object]) -> str:
    return f"{len(objects)} object{'' if len(objects) == 1 else 's'}"


def _shapes_cases(source: str) -> list[PromptCase]:
    found = _SHAPES.fullmatch(source)
    if found is None or not 1 <= int(found[1]) <= budget.MOST_SHAPES:
        raise ValueError(f"prompts must be like shapes:100:2,3,4, got {source}")

    from stal.shapes.cases import draw_cases
    from stal.shapes.scenes import MAX_OBJECTS

    counts = [int(digit) for digit in (found[2] or "2,3,4").split(",")]
    if not all(1 <= count <= MAX_OBJECTS for count in counts):
        raise ValueError(f"prompts must be of 1 to {MAX_OBJECTS} objects, got {source}")
    cases = []
    for count in counts:
        for true in draw_cases(int(found[1]), objects=count, seed=int(found[3] or 1)):
            case = parsed(true.prompt, where=source)
            cases.append(replace(case, relations=true.relations, layout=true))
    return cases


def _gpt_cases(path: Path) -> list[PromptCase]:
    cases = []
    for number, labelled in enumerate(read_gpt(path), 1):
        where = f"{path}, block {number}"
        objects = tuple(_object(name) for name in labelled.objects)
        relations = []
        for first, predicate, second in labelled.relations:
            for name in (first, second):
                if name not in labelled.objects:
                    raise ValueError(f"{where}: Relation must name Objects, got {name!r}")
            ends = [labelled.objects.index(name) for name in (first, second)]
            relations.append((ends[0], predicate, ends[1]))
        cases.append(
            PromptCase(labelled.prompt, objects, tuple(relations), None, labelled.kind, where)
        )
    return cases


def _object(name: str) -> Object:
    """The object of a label, e.g. "white couch"."""
    phrase = f"{article(name)} {name}"
    found = parse(phrase).objects
    if len(found) == 1 and found[0].phrase == phrase:
        return found[0]
    return Object(phrase, name)


def _json_cases(path: Path, text: str) -> list[PromptCase]:
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        whole = None
    if isinstance(whole, dict) and "annotations" in whole:
        return _coco_cases(path, whole["annotations"])
    cases = []
    for number, line in enumerate(lines_of(text), 1):
        if line.strip():
            cases.append(_geneval_case(line, f"{path}:{number}"))
    return cases


def _coco_cases(path: Path, annotations: Any) -> list[PromptCase]:
    if not isinstance(annotations, list):
        raise ValueError(f'{path}: "annotations" must be a list, got {type(annotations).__name__}')
    cases: dict[str, PromptCase] = {}
    for index, item in enumerate(annotations):
        where = f"{path}: annotations[{index}]"
        if not isinstance(item, dict) or not isinstance(item.get("caption"), str):
            raise ValueError(f'{where} must have a "caption", got {short(item)}')
        prompt = " ".join(item["caption"].split())
        image = repr(item.get("image_id", index))
        if prompt and image not in cases:
            cases[image] = parsed(prompt, where=where)
    return list(cases.values())


def _geneval_case(line: str, where: str) -> PromptCase:
    """One line of GenEval (arXiv 2310.11513): its classes with count, colour and position."""
    rule = 'must be a line of GenEval ("prompt", "include") or COCO captions ("annotations")'
    try:
        item = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} {rule}, got: {error.msg.lower()}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} {rule}, got: {first_line(error)}") from None
    if not isinstance(item, dict) or not isinstance(item.get("prompt"), str):
        raise ValueError(f"{where} {rule}, got {short(item)}")
    include = item.get("include")
    if not isinstance(include, list):
        raise ValueError(f"{where} {rule}, got {short(item)}")
    objects: list[Object] = []
    # The first object of each entry, which positions refer to.
    first: list[int] = []
    for entry in include:
        if not isinstance(entry, dict) or not isinstance(entry.get("class"), str):
            raise ValueError(
                f'{where}: include must consist of {{"class": ...}}, got {short(entry)}'
            )
        count, colour = entry.get("count", 1), entry.get("color")
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"{where}: count must be a positive integer, got {short(count)}")
        if len(objects) + count > budget.MOST_OBJECTS:
            most = f"at most {budget.MOST_OBJECTS} objects"
            raise ValueError(f"{where}: include must name {most}, got {short(count)} more")
        if colour is not None:
            typed(colour, str, f"{where}: color")
        noun = entry["class"]
        name = f"{colour} {noun}" if colour else noun
        first.append(len(objects))
        for index in range(count):
            attributes = (colour,) if colour else ()
            objects.append(Object(f"{article(name)} {name}", noun, attributes, index=index))
    relations = []
    for subject, entry in zip(first, include, strict=True):
        position = entry.get("position")
        if position is None:
            continue
        pair = isinstance(position, list) and len(position) == 2
        if not (pair and position[0] in PREDICATES and position[1] in range(len(first))):
            raise ValueError(
                f'{where}: position must be like ["left of", 0], got {short(position)}'
            )
        relations.append((subject, position[0], first[position[1]]))
    kind = str(item.get("tag") or _count(objects))
    return PromptCase(item["prompt"], tuple(objects), tuple(relations), None, kind, where)


def _csv_cases(path: Path, text: str) -> list[PromptCase]:
    """7Bench (arXiv 2508.12919): a row a prompt with the boxes of its objects."""
    cases = []
    reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)
    for row in reader:
        where = f"{path}:{reader.line_num}"
        prompt = (row.get("prompt") or "").strip()
        if not prompt:
            raise ValueError(f"{where}: prompt must not be empty")
        description = _read(prompt, where)
        names, boxes = zip(*_labelled_boxes(row, where), strict=True)
        objects, mine = _described(names, description)
        relations = tuple(
            (mine[r.subject], r.predicate, mine[r.object])
            for r in description.relations
            if r.subject in mine and r.object in mine
        )
        placed = (PlacedObject(o.phrase, o.noun, b) for o, b in zip(objects, boxes, strict=True))
        layout = Layout(prompt, tuple(placed), relations)
        kind = (row.get("category") or "").strip() or _count(objects)
        cases.append(PromptCase(prompt, objects, relations, layout, kind, where))
    return cases


def _labelled_boxes(row: dict[str, Any], where: str) -> Iterator[tuple[str, Box]]:
    for number in range(1, len(row)):
        name = (row.get(f"obj{number}") or "").strip()
        if not name:
            if number == 1:
                raise ValueError(f"{where}: obj1 must name an object, got nothing")
            continue
        text = row.get(f"bbox{number}") or ""
        try:
            x0, y0, x1, y1 = (float(edge) for edge in text.strip(" ()[]").split(","))
        except ValueError:
            rule = f"bbox{number} must be x0,y0,x1,y1 in pixels"
            raise ValueError(f"{where}: {rule}, got {text!r}") from None
        if not (0 <= x0 <= x1 <= _CANVAS and 0 <= y0 <= y1 <= _CANVAS):
            rule = f"bbox{number} must lie in 0 .. {_CANVAS} with x0 <= x1 and y0 <= y1"
            raise ValueError(f"{where}: {rule}, got {text!r}")
        # The published file has a box without area: it becomes a pixel.
        x0, y0 = min(x0, _CANVAS - 1), min(y0, _CANVAS - 1)
        x1, y1 = max(x1, x0 + 1), max(y1, y0 + 1)
        yield name, (x0 / _CANVAS, y0 / _CANVAS, x1 / _CANVAS, y1 / _CANVAS)


def _described(
    names: Iterable[str], description: Description
) -> tuple[tuple[Object, ...], dict[int, int]]:
    """Labelled objects with what the prompt says of them, and where parsed ones went."""
    objects: list[Object] = []
    mine: dict[int, int] = {}
    for name in names:
        for index, thing in enumerate(description.objects):
            if index not in mine and matches(name, thing):
                mine[index] = len(objects)
                objects.append(thing)
                break
        else:
            objects.append(_object(name))
    return tuple(objects), mine


def boxes_of(case: PromptCase, layout: Layout) -> list[Box | None]:
    """Where a layout puts each object of a case; None for one that the layout does not have.

    A layout of the case itself has its objects in the same order. One that was predicted from the
    text has what the parser found, which is matched by noun and attributes.
    """
    if [o.phrase for o in layout.objects] == [o.phrase for o in case.objects]:
        return [placed.box for placed in layout.objects]
    left = list(layout.objects)
    boxes: list[Box | None] = []
    for wanted in case.objects:
        name = " ".join((*wanted.attributes, wanted.noun))
        same = (p for p in left if matches(name, Object(p.phrase, p.noun)))
        best = next(same, None)
        if best is not None:
            left.remove(best)
        boxes.append(None if best is None else best.box)
    return boxes
