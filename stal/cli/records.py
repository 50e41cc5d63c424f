"""A picture's record as settings to draw with. Pictures come from anywhere: nothing that a record
says is believed, opened or downloaded because it says so."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stal import picture
from stal.budget import MOST_IMAGES, MOST_RECORD_PIXELS
from stal.caller import warn
from stal.checked_json import is_integer, short
from stal.cli.options import AttentionMode, DType, RuleName

# Methods of `stal evaluate` whose pictures are drawn by other means than their settings say.
_OTHER_MEANS = (
    *("composable", "composable-released", "structured"),
    *("attend-and-excite", "multidiffusion", "boxdiff"),
)
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def _positive(value: Any) -> bool:
    return is_integer(value) and value >= 1


def _number(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and abs(value) < 1e300  # not NaN, and no integer that a float cannot hold


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _seeds(value: Any) -> bool:
    return isinstance(value, list) and 0 < len(value) <= MOST_IMAGES and all(map(is_integer, value))


def _one_of(kind: Any) -> tuple[Callable[[Any], bool], str]:
    names = [each.value for each in kind]
    return lambda value: value in names, f"one of {', '.join(names)}"


_A_TEXT = (_text, "a text")
_A_NUMBER = (_number, "a finite number")
_COUNT = (_positive, "a positive integer")
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "model": _A_TEXT,
    "attention": _one_of(AttentionMode),
    "rule": _one_of(RuleName),
    "reference": _A_TEXT,
    "background": _A_NUMBER,
    "negative_prompt": _A_TEXT,
    "sampler": _A_TEXT,
    "eta": _A_NUMBER,
    "steps": _COUNT,
    "guidance_scale": _A_NUMBER,
    "height": _COUNT,
    "width": _COUNT,
    "num_images": _COUNT,
    "dtype": _one_of(DType),
    "seeds": (_seeds, f"a list of at most {MOST_IMAGES} integers"),
    "weights": (lambda value: isinstance(value, list), "a list"),
}
# Settings whose option has another name.
_OPTIONS = {"seeds": "--seed", "num_images": "--num-images"}


def read_settings(source: Path, *, with_loras: bool) -> dict[str, Any]:
    """The settings of a picture, of which nothing is checked but that there are some.

    with_loras: whether somebody said which LoRAs to draw with.
    """
    record = picture.read_record(source)
    if record.get("method") in _OTHER_MEANS:
        warn(
            f"{source} was drawn by {record['method']}, which `stal evaluate` alone does; this"
            f" draws with {short(record.get('attention'))} attention"
        )
    if record.get("loras") and not with_loras:
        warn(f"{source} was drawn with a LoRA, and this is without: give --lora FILE:SCALE")
    return record


def checked(record: dict[str, Any], source: Path, *, allow_download: bool) -> dict[str, Any]:
    """The settings of a picture that are to be drawn with, its layout as one.

    Args:
        record: those that nobody gave another value for.
        source: the picture.
        allow_download: whether it may name a model of the hub.

    Raises:
        ValueError: one breaks its rule, or is a model that is not the bundled one.
    """
    from stal.layout import Layout

    for name, (holds, rule) in _RULES.items():
        if name in record and not holds(record[name]):
            got = f"{short(record[name])} in {source}"
            option = _OPTIONS.get(name, f"--{name.replace('_', '-')}")
            raise ValueError(f"{name} must be {rule}, got {got}: give {option}")
    if record.get("model"):
        _check_model(record["model"], source, allow_download)
    _check_size(record, source)
    if "layout" not in record:
        return record
    try:
        layout = Layout.from_json(json.dumps(record["layout"]))
    except ValueError as error:
        raise ValueError(f"{error} in {source}") from error
    return {**record, "layout": layout}


def _check_model(model: str, source: Path, allow_download: bool) -> None:
    """A folder that somebody else names may be any; a name is fetched from the network."""
    option = f"--model {shlex.quote(model)}"
    wanted = f"{source} was drawn with the model {short(model)}"
    if os.path.exists(model) or not _HUB_NAME.fullmatch(model):
        raise ValueError(f"{wanted}: name the folder to draw with, {option} if it is that")
    if not allow_download:
        fix = f"give {option} to use it, or --allow-download to fetch what the picture names"
        raise ValueError(f"{wanted}: {fix}")


def _check_size(record: dict[str, Any], source: Path) -> None:
    count, seeds = record.get("num_images", 1), record.get("seeds")
    if count > MOST_IMAGES:
        raise ValueError(f"num_images must be at most {MOST_IMAGES}, got {count} in {source}")
    if seeds is not None and len(seeds) not in (1, count):
        got = f"{len(seeds)} of {count} images in {source}"
        raise ValueError(f"seeds must be one an image, got {got}: give --seed")
    pixels = count * record.get("height", 1) * record.get("width", 1)
    if pixels > MOST_RECORD_PIXELS:
        got = f"{pixels} in {source}: give --height and --width"
        raise ValueError(f"height x width must be at most {MOST_RECORD_PIXELS} pixels, got {got}")
