"""Layouts to learn from: NSR-1K, COCO, the shapes world; `stal.training.composed` has more."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from stal import budget
from stal.checked_json import integer, read_value, short
from stal.layout import Box
from stal.prompts import parse
from stal.prompts.scene import PLAIN, Scene, scene_of
from stal.prompts.words import article
from stal.relations import Side, Statement

_MOST = 12  # objects of an example

Boxes = tuple[Box | None, ...]


@dataclass(frozen=True)
class LayoutExample:
    """A scene: what is said of it, and where its objects are.

    Attributes:
        phrases: (phrase, noun) an object.
        relations: what is stated, with indices into phrases.
        boxes: by object, fractions of the canvas; None where it is not known.
        aspect: width / height of the canvas.
        image: of which picture; 0 for composed scenes.
        scene: the picture as a whole.
        sides: where objects are said to be on the canvas; or none.
    """

    phrases: tuple[tuple[str, str], ...]
    relations: tuple[Statement, ...]
    boxes: Boxes
    aspect: float = 1.0
    image: int = 0
    scene: Scene = PLAIN
    sides: tuple[Side, ...] = ()


def read_nsr1k(path: Path) -> list[LayoutExample]:
    """NSR-1K's spatial or counting set: captions with COCO boxes [x, y, w, h] on a square canvas.

    Raises:
        ValueError: not such a file, or a box without area; the message names the item.
    """
    items = read_value(path, limit=budget.MOST_DATASET_BYTES)
    if not isinstance(items, list):
        raise ValueError(f"{path} must be a list of captions, got {type(items).__name__}")
    examples = []
    for index, item in enumerate(items):
        where = f"{path}: item {index}"
        try:
            things = item["object_list"] if "object_list" in item else [item["obj1"], item["obj2"]]
            named = [(str(name), _from_corner(box, where)) for name, box in things]
            if not isinstance(item["prompt"], str):
                raise TypeError("a prompt that is no string")
            example = _from_caption(
                item["prompt"], named, 1.0, integer(item["image_id"], f"{where}: image_id")
            )
        except (KeyError, TypeError, OverflowError) as error:
            raise ValueError(f"{where} must be a caption of NSR-1K, got {error!r}") from None
        if example is not None:
            examples.append(example)
    return examples


def read_coco(annotations: Path, captions: Path | None) -> list[LayoutExample]:
    """COCO's instances, described by its captions or else by relations of its boxes.

    Raises:
        ValueError: not such files, or no box in them.
    """
    data = read_value(annotations, limit=budget.MOST_DATASET_BYTES)
    try:
        categories = {each["id"]: each["name"] for each in data["categories"]}
        sizes = {each["id"]: (each["width"], each["height"]) for each in data["images"]}
        for image, (width, height) in sizes.items():
            integer(image, f"{annotations}: id of an image")
            if not (width > 0 and height > 0):
                raise ValueError(f"{annotations}: image {image} must have a width and a height")
        things: dict[int, list[tuple[str, Box]]] = defaultdict(list)
        for index, each in enumerate(data["annotations"]):
            where = f"{annotations}: annotation {index}"
            if not isinstance(each["bbox"], list) or len(each["bbox"]) != 4:
                got = short(each["bbox"])
                raise ValueError(f"{where} must have a bbox [x, y, w, h], got {got}")
            x, y, w, h = each["bbox"]
            if each.get("iscrowd") or not (w > 0 and h > 0):
                continue
            width, height = sizes[each["image_id"]]
            box = [x / width, y / height, w / width, h / height]
            name = categories[each["category_id"]]
            things[each["image_id"]].append((name, _from_corner(box, where)))
        texts = (
            read_value(captions, limit=budget.MOST_DATASET_BYTES)["annotations"] if captions else []
        )
        said = [(each["image_id"], each["caption"]) for each in texts]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{annotations} must be in COCO's format, got {error!r}") from None
    if not things:
        raise ValueError(f"{annotations} must have boxes, got none")
    examples = []
    for image, caption in said:
        width, height = sizes.get(image, (1, 1))
        number = integer(image, f"{captions}: image_id")
        example = _from_caption(caption, things.get(image, []), width / height, number)
        if example is not None:
            examples.append(example)
    if captions is None:
        rng = random.Random(0)
        for image, named in things.items():
            width, height = sizes[image]
            largest = sorted(named, key=lambda each: -_area(each[1]))[:_MOST]
            examples.append(_described(largest, width / height, integer(image, "id"), rng))
    return examples


def _from_corner(box: Sequence[float], where: str) -> Box:
    x, y, w, h = map(float, box)
    if not (w > 0 and h > 0 and x >= -0.01 and y >= -0.01 and x + w <= 1.01 and y + h <= 1.01):
        raise ValueError(f"{where} must have a box [x, y, w, h] in the canvas, got {list(box)}")
    return max(x, 0.0), max(y, 0.0), min(x + w, 1.0), min(y + h, 1.0)


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _from_caption(
    text: str, named: Sequence[tuple[str, Box]], aspect: float, image: int
) -> LayoutExample | None:
    """The parsed caption with the boxes of what it names; None if it names nothing that has one.

    Objects of one noun take their boxes from left to right, the largest ones if there are more.
    """
    found = parse(text)
    if not 0 < len(found.objects) <= _MOST:
        return None
    boxes: list[Box | None] = [None] * len(found.objects)
    by_name: dict[str, list[Box]] = defaultdict(list)
    for name, box in named:
        by_name[name].append(box)
    nouns = [each.noun for each in found.objects]
    for name, those in by_name.items():
        close = get_close_matches(name, nouns, n=1)
        indices = [i for i, noun in enumerate(nouns) if noun in close and boxes[i] is None]
        kept = sorted(those, key=_area, reverse=True)[: len(indices)]
        for i, box in zip(indices, sorted(kept, key=lambda b: b[0] + b[2]), strict=False):
            boxes[i] = box
    if not any(boxes):
        return None
    phrases = tuple((each.phrase, each.noun) for each in found.objects)
    relations = found.statements
    sides = tuple(each.position for each in found.objects)
    return LayoutExample(phrases, relations, tuple(boxes), aspect, image, found.scene, sides)


def _described(
    named: Sequence[tuple[str, Box]], aspect: float, image: int, rng: random.Random
) -> LayoutExample:
    """Objects in random order with a relation or two that clearly hold."""
    order = list(named)
    rng.shuffle(order)
    # Twins come from left to right, as the predictor expects them.
    for twin in {name for name, _ in order}:
        places = [i for i, each in enumerate(order) if each[0] == twin]
        group = sorted((order[i] for i in places), key=lambda each: each[1][0] + each[1][2])
        for i, each in zip(places, group, strict=True):
            order[i] = each
    boxes = [box for _, box in order]
    relations = []
    for i in range(len(order) - 1):
        name = side_of(boxes[i], boxes[i + 1])
        if name is not None and rng.random() < 0.6:
            beside = name in ("left of", "right of") and rng.random() < 0.3
            relations.append((i, "next to" if beside else name, i + 1))
    phrases = tuple((f"{article(name)} {name}", name) for name, _ in order)
    scene = scene_of("", [name for name, _ in order])
    return LayoutExample(phrases, tuple(relations), tuple(boxes), aspect, image, scene)


def side_of(a: Box, b: Box) -> str | None:
    """Where a clearly lies as seen from b: left of, right of, above, below; or None."""
    dx, dy = (a[0] + a[2] - b[0] - b[2]) / 2, (a[1] + a[3] - b[1] - b[3]) / 2
    if abs(abs(dx) - abs(dy)) < 0.05:
        return None
    if abs(dx) > abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


def shapes(n: int, *, seed: int) -> list[LayoutExample]:
    """Scenes of one to four objects of the bundled world of shapes."""
    from stal.shapes.scenes import draw_scenes

    rng = random.Random(seed)
    scenes = draw_scenes(n, seed=seed, counts=(1, 2, 2, 3, 3, 4, 4))
    examples = []
    for scene in range(n):
        count = int(scenes.count[scene])
        named = [(scenes.phrase(scene, i), scenes.box(scene, i)) for i in range(count)]
        example = _described(named, 1.0, 0, rng)
        phrases = tuple((noun, noun.rsplit(" ", 1)[1]) for _, noun in example.phrases)
        flat = Scene("", "flat")
        examples.append(LayoutExample(phrases, example.relations, example.boxes, scene=flat))
    return examples
