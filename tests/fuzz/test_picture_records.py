"""Pictures whose record says anything: `stal generate --from` draws, or refuses in a line."""

import json
import os
import struct
import sys
import unicodedata
import warnings
import zlib
from contextlib import suppress

import pytest
from hypothesis import strategies as st
from PIL import Image

from stal import picture
from stal.__main__ import main
from stal.cli.records import checked, read_settings
from stal.layout import place
from stal.pipeline import Pipeline
from stal.prompts import parse

TWO = "a red circle to the left of a blue square"
RECORD = {
    "prompt": TWO,
    "model": "",
    "attention": "spatial-temporal",
    "rule": "guidance",
    "reference": "an empty scene {}",
    "background": 0.6,
    "sampler": "dpm++2m",
    "eta": 0.0,
    "steps": 2,
    "guidance_scale": 3.0,
    "height": 64,
    "width": 64,
    "negative_prompt": "",
    "num_images": 1,
    "seeds": [0],
    "dtype": "float32",
    "layout": json.loads(place(parse(TWO)).to_json()),
    "weights": [[1.0, 1.0], [0.0, 0.0]],
    "optimize": {"mode": "online", "trace": [{"step": 0, "loss": 1.0}]},
}

SIZES = [(64, 64), (0, 0), (40_000, 40_000), (2**31 - 1, 1), (2**32 - 1, 2**32 - 1)]
CHUNKS = [b"iTXt", b"zTXt", b"iCCP", b"eXIf", b"acTL", b"tRNS", b"abcd", b"\0" * 4]

texts = st.one_of(
    st.text(max_size=20),
    st.sampled_from(["", "\x1b[2J", "\ud800", "a\nb", "../..", "/etc", "a/b", "~x", "\0", "1e9"]),
)
numbers = st.one_of(
    st.integers(-3, 100),
    st.sampled_from([10**5, 10**9, 2**31, 2**63, 2**64, -(2**63), 10**400]),
    st.floats(),
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=8,
)


@st.composite
def records(draw):
    """A record that stal writes, some of its values changed, at any depth, or left out."""
    record = json.loads(json.dumps(RECORD))
    for _ in range(draw(st.integers(1, 4))):
        place, key = record, draw(st.sampled_from(sorted(RECORD)))
        while isinstance(place.get(key), dict) and place[key] and draw(st.booleans()):
            place = place[key]
            key = draw(st.sampled_from(sorted(place)))
        how = draw(st.sampled_from(["value", "value", "delete", "list", "more"]))
        if how == "delete":
            place.pop(key, None)
        elif how == "list":
            place[key] = [draw(values)] * draw(st.sampled_from([0, 1, 3, 2000, 100_000]))
        elif how == "more":
            place[draw(texts)] = draw(values)
        else:
            place[key] = draw(values)
    return record


def chunk(name, data, length=None, crc=None):
    length = len(data) if length is None else length
    crc = zlib.crc32(name + data) if crc is None else crc
    return struct.pack(">I", length) + name + data + struct.pack(">I", crc)


def text_chunk(kind, text, *, zipped):
    data = zlib.compress(text) if zipped else text
    if kind == b"iTXt":
        return chunk(kind, b"stal\0" + bytes([zipped, 0]) + b"\0\0" + data)
    if kind == b"zTXt":
        return chunk(kind, b"stal\0\0" + zlib.compress(text))
    return chunk(kind, b"stal\0" + text)


@st.composite
def files(draw):
    """A PNG with a record, of which bytes, chunks, lengths, sums and sizes are not as they were."""
    text = json.dumps(draw(records())).encode()
    if draw(st.integers(0, 9)) == 0:
        text = draw(st.sampled_from([b" ", b"[", b'{"a":', b"\xff"])) * draw(
            st.sampled_from([1000, 10**6, 10**7])
        )
    size = draw(st.sampled_from(SIZES))
    depth = draw(st.sampled_from([(8, 2), (16, 6), (1, 3), (9, 9)]))
    header = struct.pack(">IIBBBBB", *size, *depth, 0, 0, 0)
    kind = draw(st.sampled_from([b"iTXt", b"iTXt", b"zTXt", b"tEXt"]))
    chunks = [
        chunk(b"IHDR", header),
        text_chunk(kind, text, zipped=draw(st.booleans())),
        chunk(b"IDAT", zlib.compress(b"\0" * 64)),
        chunk(b"IEND", b""),
    ]
    for _ in range(draw(st.integers(0, 3))):
        odd = chunk(
            draw(st.sampled_from(CHUNKS)),
            draw(st.binary(max_size=40)),
            draw(st.sampled_from([None, 0, 2**31, 2**32 - 1])),
            draw(st.sampled_from([None, 0])),
        )
        chunks.insert(draw(st.integers(0, 4)), odd)
    data = b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
    if draw(st.booleans()):
        data = data[: draw(st.integers(0, len(data)))]
    if draw(st.integers(0, 3)) == 0 and data:
        at = draw(st.integers(0, len(data) - 1))
        data = data[:at] + draw(st.binary(min_size=1, max_size=4)) + data[at + 1 :]
    return data


class _Loaded(Exception):
    pass


@pytest.fixture
def unloaded(monkeypatch, tmp_path):
    """No model is loaded, and nothing is fetched."""

    def load(*args, **kwargs):
        raise _Loaded

    def ask(*args, **kwargs):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(Pipeline, "from_pretrained", load)
    monkeypatch.setattr("huggingface_hub.snapshot_download", ask)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(capsys, *arguments):
    """`stal` -> exit code and lines of stderr, of which none has what a terminal obeys."""
    sys.argv = ["stal", *arguments]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            main()
            code = 0
        except SystemExit as exit_:
            code = exit_.code
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    # Control characters, halves of surrogate pairs, line separators; overrides of direction.
    obeyed = {c for c in out + err if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")}
    obeyed |= {*"\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"} & {*(out + err)}
    assert obeyed <= {"\n", "\t"}, (out, err)
    return code, err.splitlines()


def test_any_file_is_a_picture_with_a_record_or_refused(fuzz, unloaded, capsys):
    def check(data):
        (unloaded / "odd.png").write_bytes(data)
        with suppress(ValueError):
            picture.read_record("odd.png")
        code, lines = command(capsys, "plot", "odd.png", "--output", "weights.svg")
        assert (code, len(lines)) in ((0, 0), (1, 1))
        assert not any("unexpected" in line for line in lines)

    fuzz(check, st.one_of(files(), st.binary(max_size=200)), examples=6)


def test_any_record_is_drawn_or_refused_before_a_model_is_loaded(fuzz, unloaded, capsys):
    def check(record):
        picture.save(Image.new("RGB", (4, 4)), "odd.png", record)
        with suppress(ValueError):
            settings = read_settings("odd.png", with_loras=False)
            assert not checked(settings, "odd.png", allow_download=False).get("model")
        code, lines = command(capsys, "generate", "--from", "odd.png", "--quiet")
        assert (code, len(lines)) == (1, 1)
        assert "unexpected" not in lines[0] or "unexpected _Loaded" in lines[0]
        assert not os.path.exists("stal.png")

    fuzz(check, records(), examples=20)
