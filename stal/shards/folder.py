"""The folder of a run: whose it is, who holds it, and what it has."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stal.files import write_atomic
from stal.runs import COMMAND, check_command, held
from stal.shards.index import read_counts
from stal.shards.shard import OpenShard, ShardFolder

VERSION = 1
_NAME = "stal generate-batch"


def check_folder(folder: Path, command: Mapping[str, Any]) -> None:
    """Raises ValueError if a folder has something else than pictures of this command.

    command may be a part of the whole: what it does not name is not compared.
    """
    begun = folder.is_dir() and any(
        each.name.lstrip(".").startswith("shard-") for each in folder.iterdir()
    )
    wanted = {"version": VERSION, **command}
    check_command(folder, wanted, of=_NAME, key="shard_size", begun=begun)


@contextmanager
def opened(folder: Path, command: Mapping[str, Any], place: ShardFolder) -> Iterator[None]:
    """Holds a folder for one process, notes the command in it and removes what a kill left.

    Raises:
        ValueError: the folder holds something else, or another process.
    """
    check_folder(folder, command)
    with held(folder):
        check_folder(folder, command)  # another process may have begun meanwhile
        for torn in folder.glob(".*.????????.tmp"):
            torn.unlink()
        for number in place.done():
            OpenShard.discard(place, number)
        text = json.dumps({"version": VERSION, **command}, indent=2) + "\n"
        write_atomic(folder / COMMAND, text.encode())
        yield


def count(place: ShardFolder) -> tuple[int, int, int]:
    """The shards, pictures and errors of a folder. Raises ValueError if an index is broken."""
    counts = [read_counts(place.index(number)) for number in place.done()]
    return len(counts), sum(pictures for pictures, _ in counts), sum(errors for _, errors in counts)
