"""The index of a shard: a Parquet file with an entry a row of the prompts file, drawn or not."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from stal.checked_json import first_line
from stal.files import write_atomic


@dataclass(frozen=True)
class Entry:
    """What became of a row of the prompts file.

    Attributes:
        row: its number, from 0.
        line: of the file, from 1, in which it ends.
        source: a digest of what the row says.
        id: the row's own, as a text.
        prompt: None where the row could not be read.
        seed: of the noise; None where the row has one that is none.
        layout: JSON of the layout that it was drawn with; None without a picture.
        settings: JSON of what else it was drawn with, as the picture has it inside.
        file: the picture: a path in the output folder, or a name in the shard's tar file.
        sha256: of the picture's bytes, in hexadecimal digits.
        seconds: from when the row was taken up until its picture was there, among others.
        warnings: what was said of the request, a line each; None where nothing was.
        error: why there is no picture; None where there is one.
    """

    row: int
    line: int
    source: str
    id: str | None = None
    prompt: str | None = None
    seed: int | None = None
    layout: str | None = None
    settings: str | None = None
    file: str | None = None
    sha256: str | None = None
    seconds: float | None = None
    warnings: str | None = None
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """All of it, as JSON has it."""
        return asdict(self)

    @staticmethod
    def from_json(line: bytes) -> Entry:
        """Raises ValueError or TypeError if the line is no entry."""
        return Entry(**json.loads(line))


def write_index(path: Path, entries: Iterable[Entry]) -> None:
    """Writes an index, as a whole or, after an error, not at all. Raises OSError."""
    import pyarrow
    from pyarrow import parquet

    integer, text = pyarrow.int64(), pyarrow.string()
    types = {"row": integer, "line": integer, "seed": integer, "seconds": pyarrow.float64()}
    schema = pyarrow.schema([(each.name, types.get(each.name, text)) for each in fields(Entry)])
    rows = [{name: _utf8(value) for name, value in asdict(each).items()} for each in entries]
    buffer = BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema), buffer)
    write_atomic(path, buffer.getvalue())


def read_index(path: Path | BinaryIO) -> list[Entry]:
    """The entries of an index. Raises ValueError if the file is none."""
    return [Entry(**values) for values in _read(path, [each.name for each in fields(Entry)])]


def read_sources(path: Path) -> dict[int, str]:
    """The digest of each row of an index. Raises ValueError if the file is none."""
    return {values["row"]: values["source"] for values in _read(path, ["row", "source"])}


def read_counts(path: Path) -> tuple[int, int]:
    """The pictures and the errors of an index. Raises ValueError if the file is none."""
    rows = _read(path, ["row", "error"])
    errors = sum(values["error"] is not None for values in rows)
    return len(rows) - errors, errors


def _read(path: Path | BinaryIO, columns: list[str]) -> list[dict[str, Any]]:
    import pyarrow
    from pyarrow import parquet

    try:
        # Not read_table, which takes directories and guesses at partitions.
        rows: list[dict[str, Any]] = parquet.ParquetFile(path).read(columns).to_pylist()
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path} must be a whole index, got {first_line(error)}") from error
    if rows and list(rows[0]) != columns:
        raise ValueError(f"{path} must be an index of `stal generate-batch`, got other columns")
    return rows


def _utf8(value: Any) -> Any:
    """Halves of surrogate pairs, of text that is no UTF-8, as escapes."""
    is_text = isinstance(value, str)
    return value.encode("utf-8", "backslashreplace").decode() if is_text else value
