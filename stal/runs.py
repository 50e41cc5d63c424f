"""Runs that a kill does not undo: a file of state, written whole and read by the same run alone.

Beside the state a file has the run's identity: by name, what a run that goes on must have in common
with the one that wrote it. A record is JSON, a checkpoint safetensors.

    found = read_checkpoint(path, {"seed": "0"})
    start, tensors = found or (0, {})
    ...
    write_checkpoint(path, {"seed": "0"}, step, tensors)
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stal.checked_json import first_line, integer, read_json
from stal.files import write_atomic

if sys.platform != "win32":  # where two runs in one folder go unnoticed
    import fcntl

if TYPE_CHECKING:
    from torch import Tensor

_FIX = "delete it, or write to another output"


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Holds an output folder, which is made, for one process.

    Raises ValueError if another one holds it, or it is no folder.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output must be a folder, got the file {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "ab") as file:
        try:
            if sys.platform != "win32":
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"output must not be in use by another run, got {folder}") from None
        yield


def differing(recorded: Mapping[str, Any], identity: Mapping[str, Any]) -> list[str]:
    """The names of an identity whose recorded value is another, or which have none.

    Values are compared as JSON gives them back: a tuple equals a list. What the identity does not
    name is not compared.
    """
    wanted = json.loads(json.dumps(dict(identity)))
    return [name for name, value in wanted.items() if recorded.get(name) != value]


def read_run(path: str | os.PathLike[str], identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """What `write_run` wrote, identity and state in one object; None where there is no file.

    Raises:
        ValueError: the file is no JSON object, or another run's; the message says what differs.
    """
    if not Path(path).exists():
        return None
    record = read_json(Path(path))
    other = differing(record, identity)
    if other:
        raise ValueError(f"{path} must be of the same run, got other {', '.join(other)}: {_FIX}")
    return record


def write_run(
    path: str | os.PathLike[str], identity: Mapping[str, Any], state: Mapping[str, Any]
) -> None:
    """Replaces a record. Raises OSError, and leaves the one before, where it cannot."""
    write_atomic(path, (json.dumps({**identity, **state}) + "\n").encode())


def read_checkpoint(
    path: str | os.PathLike[str], identity: Mapping[str, str]
) -> tuple[int, dict[str, Tensor]] | None:
    """The step to go on from, and the tensors, on the CPU; None where there is no file.

    Raises:
        ValueError: the file is no complete checkpoint, or another run's; the message has the first
            value that differs.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        got = first_line(error)
        raise ValueError(f"{path} must be a complete checkpoint, got {got}: {_FIX}") from error
    for name in ["step", *differing(metadata, identity)]:
        if name not in metadata:
            raise ValueError(f"{path} must be of the same run, got one without {name}: {_FIX}")
        if name != "step":
            old, new = metadata[name] or "none", identity[name] or "none"
            raise ValueError(f"{name} must be {old} to go on from {path}, got {new}: {_FIX}")
    return integer(metadata["step"], f"{path}: step"), tensors


def write_checkpoint(
    path: str | os.PathLike[str],
    identity: Mapping[str, str],
    step: int,
    tensors: Mapping[str, Tensor],
) -> None:
    """Replaces a checkpoint, of contiguous tensors that share no memory and `step` finished steps.

    Raises OSError, and leaves the one before, where it cannot.
    """
    from safetensors.torch import save

    write_atomic(path, save(dict(tensors), {**identity, "step": str(step)}))
