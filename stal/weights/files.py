"""Combination weights kept in files: those of one prompt, or a schedule for any.

A file with "weights" holds (steps, objects) of each prompt that `stal.optimize.trajectory` looked
at; a file with "knots" is a `WeightSchedule`. Both become what `Pipeline` takes as weights:

    pipe(prompt, weights=WeightSchedule.load("schedule.json"))
    pipe(prompt, weights=load_weights("weights.json"))
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stal.checked_json import number, read_json, short, typed
from stal.files import write_atomic

VERSION = 1


def at_steps(rows: Tensor, steps: int) -> Tensor:
    """(rows, objects) at even distances in time, linear in between -> (steps, objects)."""
    if len(rows) == steps:
        return rows
    position = torch.linspace(0, len(rows) - 1, steps, dtype=rows.dtype, device=rows.device)
    low = position.long().clamp(max=max(len(rows) - 2, 0))
    high = (low + 1).clamp(max=len(rows) - 1)
    return rows[low] + (position - low)[:, None] * (rows[high] - rows[low])


def knots_to_weights(knots: Tensor, steps: int, objects: int) -> Tensor:
    """(knots,) values as `at_steps` has them, the same for all objects -> (steps, objects)."""
    return at_steps(knots[:, None], steps).expand(steps, objects)


@dataclass(frozen=True)
class WeightSchedule:
    """Weights over time for any prompt: lam of each object runs along straight lines from knot to
    knot, which lie at even distances between the first step and the last.

    Args:
        knots: by number of objects, the values at the knots; a prompt of a number between two
            uses the lower one's, of one below all the lowest one's.
        about: how it was found, kept in the file.

    Raises:
        ValueError: no knots, a number of objects below 1, or a value that is not finite.
    """

    knots: Mapping[int, tuple[float, ...]]
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.knots:
            raise ValueError("knots must be given for at least one number of objects, got none")
        knots: dict[int, tuple[float, ...]] = {}
        for objects, given in self.knots.items():
            values = tuple(number(value, f"knots for {objects} objects") for value in given)
            count = typed(objects, int, "number of objects in knots")
            if count < 1 or not values or not all(map(math.isfinite, values)):
                raise ValueError(
                    "knots must be one or more finite numbers for each number of objects from 1 "
                    f"up, got {short(list(values))} for {short(count)}"
                )
            knots[count] = values
        object.__setattr__(self, "knots", knots)

    def __call__(self, steps: int, objects: int) -> Tensor:
        """(steps, objects) float32."""
        knots = torch.tensor(self.knots[self.group(objects)], dtype=torch.float32, device="cpu")
        return knots_to_weights(knots, steps, objects).clone()

    def group(self, objects: int) -> int:
        """The number of objects whose knots a prompt of so many uses."""
        return max((n for n in self.knots if n <= objects), default=min(self.knots))

    def to_json(self) -> dict[str, Any]:
        """What `save` writes: version, knots by number of objects as text, and `about`."""
        knots = {str(n): list(self.knots[n]) for n in sorted(self.knots)}
        return {"version": VERSION, "knots": knots, **self.about}

    @staticmethod
    def from_json(record: Mapping[str, Any], *, source: str | os.PathLike[str]) -> WeightSchedule:
        """Raises ValueError, naming the source, if the record is no schedule."""
        if record.get("version") != VERSION:
            got = short(record.get("version"))
            raise ValueError(f"{source} must have version {VERSION}, got {got}")
        try:
            if not all(isinstance(v, list) for v in record["knots"].values()):
                raise TypeError("not every value is a list")
            if not all(n.isdecimal() and str(int(n)) == n for n in record["knots"]):
                raise TypeError("not every key is a number of objects")
            knots = {int(n): tuple(v) for n, v in record["knots"].items()}
            about = {k: v for k, v in record.items() if k not in ("version", "knots")}
            return WeightSchedule(knots, about)
        except (AttributeError, TypeError, ValueError, KeyError, OverflowError) as error:
            reason = f'hold "knots", lists of numbers by number of objects: {error}'
            raise ValueError(f"{source} must {reason}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the schedule as JSON, whole or not at all. Raises OSError if it cannot."""
        write_atomic(path, (json.dumps(self.to_json(), indent=2) + "\n").encode())

    @staticmethod
    def load(path: str | os.PathLike[str]) -> WeightSchedule:
        """Reads what `save` wrote. Raises ValueError, naming the file, if it is no schedule."""
        return WeightSchedule.from_json(read_json(Path(path)), source=path)


def load_weights(
    path: str | os.PathLike[str], *, resample: bool = False
) -> Callable[[int, int], Tensor]:
    """The weights in a file, called as weights(steps, objects).

    Of a file of several prompts these are the first one's. With resample, weights of another
    number of steps are stretched over those asked for, linearly in time.

    Raises:
        ValueError: the file holds no weights; when called, weights of another number of objects,
            or of steps without resample.
    """
    record = read_json(Path(path))
    if "knots" in record:
        return WeightSchedule.from_json(record, source=path)
    found = _first_weights(record, path)

    def weights(steps: int, objects: int) -> Tensor:
        if found.shape[1] != objects:
            raise ValueError(f"{path} must hold weights of {objects} objects, got {found.shape[1]}")
        if len(found) != steps and not resample:
            got = f"{len(found)}: take as many, or ask for them to be resampled"
            raise ValueError(f"{path} must hold weights of {steps} steps, got {got}")
        return at_steps(found, steps)

    return weights


def _first_weights(record: Mapping[str, Any], path: str | os.PathLike[str]) -> Tensor:
    """(steps, objects) of a record of `stal.optimize`, or of `stal generate --json`."""
    for candidate in (lambda: record["weights"][0], lambda: record["weights"]):
        try:
            tensor = torch.tensor(candidate(), dtype=torch.float32, device="cpu")
        except (LookupError, TypeError, ValueError, RuntimeError, OverflowError):
            continue
        if tensor.ndim == 2 and len(tensor):
            return tensor
    raise ValueError(f'{path} must hold "weights" (steps, objects), got others')
