"""Files of prompts, read row by row: a million of them never sit in memory.

    prompts.txt       a prompt a line
    prompts.jsonl     {"prompt": "a cat", "seed": 3, "layout": {...}}
    prompts.csv       a header, then a row a prompt; an empty cell is no value
    prompts.parquet   likewise

A row that cannot be read has an error instead of values; only a file that is none of these, or that
has a column which no row may have, is refused as a whole.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TextIO

from stal import budget
from stal.checked_json import first_line, loads, quoted, short
from stal.extras import check_installed
from stal.files import open_regular

# What a row may say. What is not among the settings is read in `stal.shards.requests`.
COLUMNS = (
    *("prompt", "id", "seed", "layout", "weights", "negative_prompt", "steps", "guidance_scale"),
    *("width", "height", "attention", "rule", "reference", "background", "sampler", "eta"),
)
FORMATS = (".txt", ".jsonl", ".csv", ".parquet")
STDIN = Path("-")
_ROWS_AT_ONCE = 1024  # of a Parquet file


@dataclass(frozen=True)
class PromptRow:
    """A row of a prompts file.

    Attributes:
        number: of the row, from 0; blank lines have none.
        line: of the file, from 1, in which it ends; of a Parquet file the row's number from 1.
        values: by column, as the file has them.
        error: why it cannot be drawn; "" if nothing is known against it.
    """

    number: int
    line: int
    values: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""

    @property
    def digest(self) -> str:
        """Tells rows apart by what they say."""
        text = json.dumps([dict(self.values), self.error], sort_keys=True, default=repr)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_rows(path: Path) -> Iterator[PromptRow]:
    """The rows of a prompts file, or of stdin, a prompt a line, for "-".

    Raises:
        ValueError: there is no such file, it is of none of the formats, it has a column that is
            not in `COLUMNS`, or none called prompt.
    """
    if path == STDIN:
        # Not as the terminal's encoding has it: a file of prompts is UTF-8 everywhere.
        yield from _text_rows(_decoded(sys.stdin.buffer))
        return
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise ValueError(f"prompts must be a {', '.join(FORMATS)} file or -, got {path}")
    try:
        file = open_regular(path, name="prompts")
    except OSError as error:
        raise ValueError(f"prompts must be a file, got {path}: {error.strerror}") from error
    with file:
        if suffix == ".parquet":
            yield from _parquet_rows(file, path)
            return
        if file.read(2) in (b"\xff\xfe", b"\xfe\xff"):
            raise ValueError(f"prompts must be text in UTF-8, got UTF-16 in {path}: save it so")
        file.seek(0)
        if suffix == ".csv":
            yield from _csv_rows(_decoded(file, newline=""), path)
        else:
            text = _decoded(file)
            yield from _text_rows(text) if suffix == ".txt" else _json_rows(text)


def _decoded(file: Any, newline: str | None = None) -> TextIO:
    # What is no UTF-8 becomes halves of surrogate pairs, which are refused where a text is read.
    return io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline=newline)


def _lines(file: TextIO) -> Iterator[PromptRow]:
    """A row with the value "line" for each line that is not blank, or with an error."""
    most = budget.MOST_TEXT_BYTES
    line = number = 0
    while text := file.readline(most + 1):
        line += 1
        rest = text
        while len(rest) > most and not rest.endswith("\n"):
            rest = file.readline(most + 1)
        if not text.strip():
            continue
        if len(text) > most:
            error = f"a row must have at most {most} characters, got more"
            yield PromptRow(number, line, {}, error)
        else:
            yield PromptRow(number, line, {"line": text.strip()})
        number += 1


def _text_rows(file: TextIO) -> Iterator[PromptRow]:
    for row in _lines(file):
        yield row if row.error else replace(row, values={"prompt": row.values["line"]})


def _json_rows(file: TextIO) -> Iterator[PromptRow]:
    for row in _lines(file):
        yield row if row.error else replace(row, **{"values": {}} | _parsed(row.values["line"]))


def _parsed(text: str) -> dict[str, Any]:
    """What a line of JSON says: the values of a row, or its error."""
    rule = "a row must be a JSON object"
    try:
        values = loads(text)
    except ValueError as problem:
        return {"error": f"{rule}, got {problem}: {short(text)}"}
    if not isinstance(values, dict):
        return {"error": f"{rule}, got {short(values)}"}
    given = {name: value for name, value in values.items() if value is not None}
    return {"values": given, "error": _strange(given)}


def _csv_rows(file: TextIO, path: Path) -> Iterator[PromptRow]:
    reader = csv.reader(file, skipinitialspace=True)
    try:
        header = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        raise ValueError(f"prompts must begin with a header, got {error} in {path}") from error
    _check_header(header, path)
    row = 0
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as problem:
            yield PromptRow(row, reader.line_num, {}, f"a row must be CSV, got {problem}")
            row += 1
            continue
        if not any(cell.strip() for cell in cells):
            continue
        wrong = ""
        if len(cells) > len(header):
            wrong = f"a row must have {len(header)} cells, as the header has, got {len(cells)}"
        pairs = zip(header, cells, strict=False)
        values = {name: cell.strip() for name, cell in pairs if cell.strip()}
        yield PromptRow(row, reader.line_num, values, wrong)
        row += 1


def _parquet_rows(file: Any, path: Path) -> Iterator[PromptRow]:
    check_installed("pyarrow", "prompts in a Parquet file")
    import pyarrow
    from pyarrow import parquet

    try:
        source = parquet.ParquetFile(file)
        _check_header(source.schema_arrow.names, path)
        row = 0
        for batch in source.iter_batches(batch_size=_ROWS_AT_ONCE):
            for values in batch.to_pylist():
                given = {name: value for name, value in values.items() if value is not None}
                yield PromptRow(row, row + 1, given)
                row += 1
    except pyarrow.ArrowException as error:
        got = f"{path}: {first_line(error)}"
        raise ValueError(f"prompts must be a whole Parquet file, got {got}") from error


def _check_header(names: list[str], path: Path) -> None:
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"prompts must have each column once, got {quoted(twice)} twice in {path}")
    if strange := _strange(dict.fromkeys(names)):
        raise ValueError(f"{strange} in {path}")
    if "prompt" not in names:
        raise ValueError(f'prompts must have the column "prompt", got none in {path}')


def _strange(values: Mapping[str, Any]) -> str:
    """What is wrong with the columns; "" if nothing is."""
    for name in values:
        if name not in COLUMNS:
            near = get_close_matches(name, COLUMNS, n=1)
            meant = f"; {near[0]} is the nearest" if near else f"; they are {', '.join(COLUMNS)}"
            return f"columns must be known ones, got {quoted(name)}{meant}"
    return ""
