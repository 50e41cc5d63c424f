"""Runs that a kill does not undo: a file of state, written whole and read by the same run alone.

A run with many results has a folder, whose `command.json` is its identity, and lines of JSON in it.

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
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from stal.checked_json import first_line, integer, read_json
from stal.files import write_atomic

if sys.platform != "win32":  # where two runs in one folder go unnoticed
    import fcntl

if TYPE_CHECKING:
    from torch import Tensor

COMMAND = "command.json"
_FIX = "delete it, or write to another output"


@contextmanager
def held(folder: Path, *, patience: float = 0.0) -> Iterator[None]:
    """Holds an output folder, which is made, for one process.

    Raises ValueError if another one holds it, for so many seconds more, or it is no folder.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output must be a folder, got the file {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "ab") as file:
        end = time.monotonic() + patience
        while not _locked(file):
            if time.monotonic() >= end:
                raise ValueError(f"output must not be in use by another run, got {folder}")
            time.sleep(0.1)
        yield


def _locked(file: BinaryIO) -> bool:
    """Whether a file is locked for this process from now on."""
    try:
        if sys.platform != "win32":
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def check_command(
    folder: Path, command: Mapping[str, Any], *, of: str, key: str, begun: bool
) -> None:
    """Refuses an output folder that does not hold results of this command.

    One that is empty, or where a command has no result yet, is welcome. command may be a part of
    the whole: what it does not name is not compared.

    Args:
        folder: it need not exist.
        command: what results depend on.
        of: the command as users call it, like "stal evaluate".
        key: what no other command's record has.
        begun: whether the folder has results.

    Raises:
        ValueError: it holds something else; the message says the first value that differs.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output must be a folder, got the file {folder}")
    path = folder / COMMAND
    if not path.exists():
        # A run that was killed at its start leaves hidden files.
        if folder.is_dir() and any(not each.name.startswith(".") for each in folder.iterdir()):
            raise ValueError(f"output must be a folder of `{of}`, got {folder}: name a new one")
        return
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        old = None
    if not isinstance(old, dict) or key not in old:
        raise ValueError(f"{path} must be of `{of}`, got something else")
    if not begun:
        return
    for name in differing(old, command):
        before, value = json.dumps(old.get(name)), json.dumps(command[name])
        got = f"{folder}, one with {name} {before} instead of {value}"
        raise ValueError(f"output must be a folder of this command, got {got}: name a new one")


def append_lines(path: Path, rows: Iterable[Any]) -> None:
    """Adds JSON, a value a line, and waits until it is on the disk.

    Raises OSError, which names the file; a failure leaves at most one torn line.
    """
    data = json_lines(rows)
    try:
        with open(path, "ab", buffering=0) as file:
            while data:
                data = data[file.write(data) :]
            os.fsync(file.fileno())
    except OSError as error:  # which does not name the file
        raise OSError(error.errno, error.strerror, str(path)) from error


def whole_lines(path: Path) -> list[bytes]:
    """The lines that `append_lines` wrote, none where there is no file.

    A last line that was torn by a kill or a full disk is removed from the file.
    """
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        os.truncate(path, whole)
    return data[:whole].splitlines()


def json_lines(rows: Iterable[Any]) -> bytes:
    """Values as lines of JSON."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


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
