"""Files of prompts: each row is read, or says why it is not."""

import io
import json
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import pytest

from stal import budget
from stal.settings import Settings
from stal.shards.requests import request_of, seed_of
from stal.shards.rows import PromptRow, read_rows

LAYOUT = {"version": 1, "prompt": "a cat", "objects": [], "relations": [], "aspect": 1.0}


def read(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return list(read_rows(path))


def error_of(row):
    """What the index will say of a row."""
    if row.error:
        return row.error
    try:
        request_of(row, Settings(), 0)
    except ValueError as error:
        return str(error)
    return ""


def test_each_line_of_a_text_is_a_prompt_and_blank_ones_are_none(tmp_path):
    rows = read(tmp_path, "p.txt", '\ufeffa cat\r\n\n  a dog, "big" \n\n\na bird')
    assert rows == [
        PromptRow(0, 1, {"prompt": "a cat"}),
        PromptRow(1, 3, {"prompt": 'a dog, "big"'}),
        PromptRow(2, 6, {"prompt": "a bird"}),
    ]


def test_json_lines_have_values_and_broken_ones_an_error(tmp_path):
    lines = [
        '{"prompt": "a cat", "seed": 3, "steps": null}',
        '{"prompt": "a dog"',
        "",
        '["a bird"]',
        '{"prompt": "a fish", "guidance": 4}',
        '{"seed": 4}',
        '{"prompt": 7}',
        '{"prompt": "a cow", "prompt": "a pig"}',
        '{"prompt": "a hen", "seed": 99999999999999999999}',
    ]
    rows = read(tmp_path, "p.jsonl", "\n".join(lines))
    assert [row.line for row in rows] == [1, 2, 4, 5, 6, 7, 8, 9]
    assert [row.number for row in rows] == list(range(8))
    assert rows[0] == PromptRow(0, 1, {"prompt": "a cat", "seed": 3})
    errors = [error_of(row) for row in rows]
    assert errors[0] == ""
    assert errors[1].startswith("a row must be a JSON object, got expecting ',' delimiter in line")
    assert errors[2] == "a row must be a JSON object, got ['a bird']"
    assert errors[3] == 'columns must be known ones, got "guidance"; guidance_scale is the nearest'
    assert errors[4] == "a row must have a prompt, got none"
    assert errors[5] == "prompt must be a string, got 7"
    assert "two of the key" in errors[6]
    assert errors[7] == "seed must lie in [-2**63, 2**63), got 99999999999999999999"


def test_cells_of_csv_become_what_their_column_has(tmp_path):
    text = (
        "id,prompt,seed,steps,guidance_scale,layout,weights,attention\n"
        f'7,"a cat, big",3,12,2.5,"{json.dumps(LAYOUT)}","[1, 0.5]",plain\n'.replace(
            json.dumps(LAYOUT), json.dumps(LAYOUT).replace('"', '""')
        )
        + "8,a dog,,,,,,\n"
        "\n"
        "9,a bird,x,,,,,\n"
        "10,a fish,,,,,,,too many\n"
        '11,"two\nlines",,,,,,\n'
        "12,a cow,,2.5,,,,\n"
        "13,a pig,,,,file.json,,\n"
        "14,a hen,,,high,,,\n"
    )
    rows = read(tmp_path, "p.csv", text)
    request = request_of(rows[0], Settings(steps=9, eta=0.5), 100)
    assert (request.prompt, request.seed, request.layout) == ("a cat, big", 3, LAYOUT)
    assert request.weights == [1, 0.5]
    assert request.settings == Settings(steps=12, guidance_scale=2.5, attention="plain", eta=0.5)
    plain = request_of(rows[1], Settings(steps=9), 100)
    assert (plain.settings, plain.seed, plain.layout) == (Settings(steps=9), 101, None)
    assert [row.line for row in rows] == [2, 3, 5, 6, 8, 9, 10, 11]
    errors = [error_of(row) for row in rows]
    assert errors[2] == "seed must be an integer, got 'x'"
    assert errors[3] == "a row must have 8 cells, as the header has, got 9"
    assert (errors[4], rows[4].values["prompt"]) == ("", "two\nlines")
    assert errors[5] == "steps must be an integer, got '2.5'"
    assert errors[6].startswith("layout must be JSON, got expecting value")
    assert errors[7] == "guidance_scale must be a number, got 'high'"


@pytest.mark.needs("pyarrow")
def test_rows_of_parquet_are_those_of_json(tmp_path):
    import pyarrow
    from pyarrow import parquet

    rows = [
        {"prompt": "a cat", "seed": 3, "layout": json.dumps(LAYOUT)},
        {"prompt": "a dog", "seed": None, "layout": None},
        {"prompt": None, "seed": 5, "layout": None},
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "p.parquet")
    found = list(read_rows(tmp_path / "p.parquet"))
    lines = "\n".join(map(json.dumps, rows))
    assert found == read(tmp_path, "p.jsonl", lines)
    assert [error_of(row) for row in found] == ["", "", "a row must have a prompt, got none"]
    assert request_of(found[0], Settings(), 0).layout == LAYOUT


@pytest.mark.needs("pyarrow")
@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("p.doc", b"", r"prompts must be a \.txt, \.jsonl, \.csv, \.parquet file or -, got"),
        ("p.txt", "a cat".encode("utf-16"), "prompts must be text in UTF-8, got UTF-16"),
        ("p.csv", b"id,seed\n1,2\n", 'prompts must have the column "prompt", got none in'),
        ("p.csv", b"", 'prompts must have the column "prompt", got none in'),
        ("p.csv", b"prompt,prompt\n", 'each column once, got "prompt" twice in'),
        ("p.csv", b"prompt,step\n", 'got "step"; steps is the nearest in .*p.csv'),
        ("p.csv", b"prompt,licence\n", 'got "licence"; they are prompt, id, seed, '),
        ("p.parquet", b"PAR1", "prompts must be a whole Parquet file, got"),
        ("none.txt", None, "prompts must be a file, got .*none.txt: No such file"),
    ],
)
def test_a_file_that_no_row_can_be_read_of_is_refused(tmp_path, name, data, message):
    path = tmp_path / name
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(ValueError, match=message):
        list(read_rows(path))


def test_bytes_that_are_no_text_are_an_error_of_their_row(tmp_path, pipe):
    rows = read(tmp_path, "p.txt", b"a cat\na \xff dog\na bird\n")
    assert rows[1].values == {"prompt": "a \udcff dog"}
    with pytest.raises(ValueError, match="prompt must be a text of valid Unicode"):
        pipe.prepare([request_of(rows[1], Settings(), 0).prompt])
    assert rows[2].values == {"prompt": "a bird"}


def test_a_line_without_end_is_an_error_and_the_next_one_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(budget, "MOST_TEXT_BYTES", 10)
    for name, line in (("p.txt", "a cat"), ("p.jsonl", "{}")):
        rows = read(tmp_path, name, "x" * 35 + f"\n{line}\n" + "y" * 11)
        assert [row.line for row in rows] == [1, 2, 3]
        assert [row.error != "" for row in rows] == [True, False, True]
        assert rows[0].error == "a row must have at most 10 characters, got more"


def test_stdin_has_a_prompt_a_line(monkeypatch):
    stdin = SimpleNamespace(buffer=io.BytesIO("a kočka\na dog".encode()))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert [row.values["prompt"] for row in read_rows(Path("-"))] == ["a kočka", "a dog"]


def test_rows_differ_by_what_they_say_and_not_by_where_they_are():
    row = PromptRow(0, 1, {"prompt": "a cat", "seed": 1})
    assert row.digest == PromptRow(5, 9, {"seed": 1, "prompt": "a cat"}).digest
    others = [PromptRow(0, 1, {"prompt": "a cat"}), PromptRow(0, 1, row.values, "wrong")]
    assert len({row.digest, *(each.digest for each in others)}) == 3


def test_a_row_without_a_seed_has_that_of_its_number():
    assert seed_of(PromptRow(7, 9, {}), 100) == 107
    assert seed_of(PromptRow(7, 9, {"seed": "-3"}), 100) == -3


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv"])
def test_rows_are_not_kept(tmp_path, suffix):
    path = tmp_path / f"p{suffix}"
    row = '{"prompt": "a cat to the left of a dog"}\n' if suffix == ".jsonl" else "a cat, a dog\n"
    path.write_text("prompt,id\n" * (suffix == ".csv") + row * 20_000)
    tracemalloc.start()
    try:
        count = sum(1 for _ in read_rows(path))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 20_000
    assert peak < 300_000  # bytes; 20 000 rows would take millions
