"""Layout files of every format, mended and broken: read, or refused in words.

What is read must be drawn too: masks of it, a sketch, its JSON, which is read back.
"""

import io
import json
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from PIL import Image

from stal.layout import Layout, hard_masks, masks, sketch
from stal.layout.formats import as_layout, read_layout
from stal.prompts import article, noun_of

ENGLISH = {"noun_of": noun_of, "article": article}

ODD = st.sampled_from(
    [
        None,
        True,
        [],
        {},
        "",
        "a",
        -1,
        0,
        1.5,
        1e400,
        float("nan"),
        10**30,
        "9" * 5000,
        [[]],
        "\ud800",
    ]
)
TEXTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["a red cat", "two dogs", "o'clock", "a\n{b}", "x" * 6000]),
)
FRACTIONS = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0]) | st.floats(0, 1)
BOXES = st.tuples(FRACTIONS, FRACTIONS, FRACTIONS, FRACTIONS).map(
    lambda b: [min(b[0], b[2]), min(b[1], b[3]), max(b[0], b[2]), max(b[1], b[3])]
)
RUNS = st.one_of(
    st.lists(st.integers(0, 9), min_size=1, max_size=9).map(
        lambda runs: {"height": 1, "width": sum(runs), "runs": runs}
    ),
    st.sampled_from(
        [
            {"height": 20000, "width": 20000, "runs": [0, 4 * 10**8]},
            {"height": 8192, "width": 4096, "runs": [0, 1 << 25]},
            {"height": 2, "width": 10**12, "runs": [0, 2 * 10**12]},
            {"height": 1000, "width": 1000, "runs": [1] * 10**6},
        ]
    ),
)
CORNERS = st.lists(st.tuples(FRACTIONS, FRACTIONS), min_size=2, max_size=8) | st.builds(
    lambda n: [
        (0.5 + 0.4 * np.cos(k * 6.28 / n), 0.5 + 0.4 * np.sin(k * 6.28 / n)) for k in range(n)
    ],
    st.sampled_from([3, 50, 2000]),
)
SHAPES = st.just("ellipse") | CORNERS | RUNS
RELATIONS = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from(["left of", "on", "between"]), st.integers(0, 2)),
    max_size=3,
)


def changed(values):
    """The same with a value that is missing, another or too much."""

    def change(draw):
        found = dict(draw(values))
        for _ in range(draw(st.sampled_from([0] * 8 + [1, 1, 2]))):
            how = draw(st.sampled_from(["another", "missing", "more"]))
            key = (
                draw(TEXTS) if how == "more" or not found else draw(st.sampled_from(sorted(found)))
            )
            found[key] = draw(ODD)
            if how == "missing":
                del found[key]
        return found

    return st.composite(change)()


OWN = changed(
    st.fixed_dictionaries(
        {
            "objects": st.lists(
                changed(
                    st.fixed_dictionaries({"phrase": TEXTS, "box": BOXES})
                    | st.fixed_dictionaries(
                        {"phrase": TEXTS, "box": st.just([0, 0, 1, 1]), "shape": SHAPES}
                    )
                ),
                max_size=4,
            )
        },
        optional={
            "version": st.sampled_from([2, 2, 2, 1]),
            "prompt": TEXTS,
            "relations": RELATIONS,
            "aspect": st.floats(0.1, 10),
        },
    )
)
COLOURS = [(0, 0, 0), (255, 0, 0), (0, 255, 0), (255, 255, 255)]
MASKS = changed(
    st.fixed_dictionaries(
        {
            "masks": st.sampled_from(["m.png"] * 9 + ["../m.png", "/dev/zero", ".", "a\0b", "é"]),
            "objects": st.tuples(
                *(
                    changed(st.fixed_dictionaries({"phrase": TEXTS, "colour": st.just(colour)}))
                    for colour in ("#ff0000", "#00ff00", "#FFFFFF")
                )
            ),
        },
        optional={"background": st.sampled_from(["#000000", "#ff0000"]), "relations": RELATIONS},
    )
)
NUMBERS = st.sampled_from(
    [*range(1, 30), *("30px", "12.5%"), *(-5, 600, "1e3", "9" * 500, "-0", "None", "")]
)
FOUR = st.lists(NUMBERS, min_size=4, max_size=4) | st.lists(NUMBERS, min_size=3, max_size=5)
MARKS = st.sampled_from(
    ["", "- ", "1. ", "**", "`", "'", '"', "“", "/* ", "[", "{", "(", "\n", "#"]
)
NAMES = st.sampled_from(["cat", "polar-bear1", "a dog", "a boy's hat", "", "7", "[x]"]) | TEXTS
RULES = st.tuples(MARKS, NAMES, MARKS, FOUR).map(
    lambda r: (
        f"{r[0]}{r[1]}{r[2]} {{"
        + "; ".join(
            f"{k}: {v}" for k, v in zip(("left", "top", "width", "height", "x"), r[3], strict=False)
        )
        + "}"
    )
)
PAIRS = st.tuples(MARKS, NAMES, FOUR).map(
    lambda p: f"{p[0]}({p[1]!r}, [{', '.join(map(str, p[2]))}]),"
)
PARTS = st.one_of(
    RULES,
    PAIRS,
    PAIRS.map(lambda p: f"[{p}]"),
    TEXTS,
    st.sampled_from(
        ["Caption: a [cat]\n", "```json\n", "```\n", "Objects: [", "]", "}", "\n", "{" * 999]
    ),
    st.sampled_from(
        ["[('a'," * 300, "a {left:1" + " " * 5000, "_ " * 3000, "'" * 3000, "/*" * 3000]
    ),
)
ANSWERS = st.lists(PARTS, min_size=1, max_size=6).map("\n".join)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@st.composite
def pictures(draw):
    """A picture in memory, its bytes now and then cut, changed, or with a chunk too much."""
    width, height = draw(st.integers(3, 9)), draw(st.integers(3, 9))
    which = np.random.default_rng(draw(st.integers(0, 9))).integers(0, 4, (height, width))
    image = Image.fromarray(np.array(COLOURS, dtype=np.uint8)[which])
    mode = draw(
        st.sampled_from(["RGB", "RGB", "RGBA", "P", "L", "LA", "1", "I", "F", "CMYK", "I;16"])
    )
    image = image.convert("L").convert(mode) if mode in ("I", "F", "I;16") else image.convert(mode)
    if mode == "RGBA" and draw(st.booleans()):
        image.putalpha(
            Image.fromarray(draw(st.sampled_from([255, 128])) * (which > 0).astype(np.uint8))
        )
    exif = Image.Exif()
    exif[0x0112] = draw(st.integers(0, 9))
    buffer = io.BytesIO()
    for kind in (draw(st.sampled_from(["PNG", "GIF", "TIFF", "WEBP", "BMP", "JPEG"])), "TIFF"):
        try:
            image.save(buffer, kind, exif=exif, lossless=True)
            break
        except (OSError, ValueError):
            buffer.seek(0)
    data = buffer.getvalue()
    how = draw(st.sampled_from(["whole"] * 4 + ["cut", "changed", "size", "bomb", "twice"]))
    at = draw(st.integers(0, len(data) - 1))
    if how == "cut":
        return data[:at]
    if how == "changed":
        return data[:at] + draw(st.binary(min_size=1, max_size=3)) + data[at + 1 :]
    if how == "size" and data[:4] == b"\x89PNG":
        side = draw(st.sampled_from([0, 5000, 12000, 40000, 2**31 - 1, 2**32 - 1]))
        return data[:8] + chunk(b"IHDR", struct.pack(">II", side, side) + data[24:29]) + data[33:]
    if how == "bomb" and data[:4] == b"\x89PNG":
        kind = draw(st.sampled_from([b"zTXt", b"iCCP"]))
        return data[:33] + chunk(kind, b"a\0\0" + zlib.compress(b"\0" * 10**7)) + data[33:]
    return data * 2 if how == "twice" else data


GRID = st.lists(
    st.sampled_from([0, 100, 500, 1000, -1, 1001, 0.5, "9"]) | ODD, min_size=3, max_size=5
) | st.tuples(st.integers(0, 499), st.integers(0, 499)).map(lambda p: [*p, p[0] + 501, p[1] + 1])
ELEMENTS = st.lists(
    changed(
        st.fixed_dictionaries(
            {"desc": TEXTS, "bbox": GRID},
            optional={
                **{"type": st.sampled_from(["obj", "text"]), "text": TEXTS, "children": ODD},
                **{"id": st.sampled_from(["cat_1", "obj_1", "a"]), "tgt_bbox": GRID | ODD},
            },
        )
    ),
    max_size=4,
)
CAPTIONS = st.one_of(
    ELEMENTS,
    changed(
        st.fixed_dictionaries(
            {
                "compositional_deconstruction": changed(
                    st.fixed_dictionaries({"elements": ELEMENTS})
                )
            },
            optional={"high_level_description": TEXTS, "aspect_ratio": TEXTS | st.just("3:2")},
        )
    ),
    changed(st.fixed_dictionaries({"boxes": ELEMENTS}, optional={"prompt": TEXTS})),
)
PIXELS = st.integers(0, 300) | st.sampled_from([-5, 0.5, 900, "9"]) | ODD
IN_PIXELS = changed(
    st.fixed_dictionaries(
        {"x": PIXELS, "y": PIXELS, "width": PIXELS, "height": PIXELS, "label": TEXTS},
        optional={
            "metadata": st.fixed_dictionaries({"type": st.just("text"), "text": TEXTS}) | ODD,
            "area": st.lists(FRACTIONS | st.just("percentage"), min_size=3, max_size=6) | ODD,
        },
    )
)
LINKS = st.tuples(st.sampled_from("1234"), st.integers(0, 1)).map(list)
NODES = st.dictionaries(
    st.sampled_from([*"1234", "a\nb"]),
    st.fixed_dictionaries(
        {
            "class_type": st.sampled_from(
                [
                    *("CreateBoundingBoxes", "ConditioningSetArea"),
                    *("ConditioningSetAreaPercentage", "CLIPTextEncode"),
                    *("EmptyLatentImage", "KSampler"),
                ]
            ),
            "inputs": st.dictionaries(
                st.sampled_from(
                    [
                        *("text", "conditioning", "positive", "negative", "editor_state"),
                        *("bboxes", "x", "y", "width", "height"),
                    ]
                ),
                LINKS | PIXELS | TEXTS | FRACTIONS | st.lists(IN_PIXELS, max_size=2),
            ),
        }
    ),
)
COMFYUI = st.one_of(
    st.lists(IN_PIXELS, max_size=3),
    st.lists(st.lists(IN_PIXELS, max_size=2), max_size=2),
    changed(
        st.fixed_dictionaries(
            {"width": st.just(512), "height": st.just(512), "bboxes": st.lists(IN_PIXELS)}
        )
    ),
    NODES,
)


def encoded(text, how):
    """The bytes of a text in some encoding, or broken."""
    if how == "cut":
        text = text[: len(text) // 2]
    kind = {"utf-16": "utf-16", "latin-1": "latin-1", "mark": "utf-8-sig"}.get(how, "utf-8")
    data = text.encode(kind, "surrogatepass" if kind.startswith("utf") else "replace")
    if how == "windows":
        data = data.replace(b"\n", b"\r\n")
    return data[: len(data) // 3] + b"\0\xff" + data[len(data) // 3 :] if how == "bytes" else data


HOW = st.sampled_from(["plain"] * 9 + ["utf-16", "latin-1", "mark", "windows", "bytes", "cut"])
AROUND = st.sampled_from(
    ["{}"] * 4 + ["```json\n{}\n```", "Here:\n{}\nDone.", "\n\n{}", "{}{}", "﻿{}"]
)
FILES = st.one_of(
    st.tuples(
        st.tuples(AROUND, OWN | MASKS).map(lambda f: f[0].replace("{}", json.dumps(f[1]))),
        HOW,
        pictures(),
    ),
    st.tuples(ANSWERS, HOW, st.just(b"")),
    st.tuples(
        st.tuples(AROUND, CAPTIONS | COMFYUI).map(
            lambda f: f[0].replace("{}", json.dumps(f[1]), 1)
        ),
        HOW,
        st.just(b""),
    ),
    st.tuples(MASKS.map(json.dumps), st.just("plain"), pictures()),
)


def tried(read):
    """What is read can be drawn and written; or else the words are for people."""
    try:
        layout, message = read(), ""
    except ValueError as error:
        layout, message = None, str(error)
    if layout is None:
        assert 0 < len(message) < 2000
        return message
    assert Layout.from_json(layout.to_json()) == layout
    assert set(layout.violated) <= set(layout.relations)
    assert masks(layout, 16, 16).isfinite().all()
    assert hard_masks(layout, 3, 5).flatten(1).any(1).all()
    sketch(layout, side=64)
    return ""


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_layout_files(fuzz, tmp_path):
    def check(drawn):
        text, how, picture = drawn
        (tmp_path / "m.png").write_bytes(picture)
        (tmp_path / "layout").write_bytes(encoded(text, how))
        message = tried(lambda: read_layout(tmp_path / "layout", **ENGLISH))
        assert "\n" not in message
        message.encode()

    fuzz(check, FILES, examples=50)


PAIRS_IN_PYTHON = st.lists(
    st.tuples(
        TEXTS | ODD,
        BOXES | ODD | BOXES.map(np.float32) | st.lists(st.floats() | ODD, max_size=5),
    )
    | ODD,
    max_size=3,
)


SHAPES_OF_MASKS = st.sampled_from(
    [(4, 4), (1, 4, 4), (1, 1, 3, 3), (2, 4, 4), (4,), (), (0, 4), (1, 9), (4, 4, 1)]
)


@st.composite
def arrays(draw):
    """A mask, or nearly one."""
    kind = draw(st.sampled_from(["?", "u1", "i8", "f2", "f4", "f8", "c8", "O", "U1"]))
    values = draw(st.sampled_from([[0, 1], [0, 255], [0, 0.3, 0.7, 1], [0, 3], [-1, 1], [0, 1e9]]))
    shape = draw(SHAPES_OF_MASKS)
    found = np.resize(np.array(values, dtype=object), shape).astype(kind if kind == "O" else "f8")
    with np.errstate(invalid="ignore", over="ignore"):
        found = found.astype(kind)
    if kind in ("f2", "f4", "f8") and found.size and draw(st.integers(0, 4)) == 0:
        found.flat[0] = draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    return torch.from_numpy(found) if kind[0] in "?fc" and draw(st.booleans()) else found


STACKS = st.one_of(
    changed(
        st.fixed_dictionaries(
            {"phrases": st.lists(TEXTS, max_size=2), "masks": arrays() | st.lists(arrays())}
        )
    ),
    st.lists(st.tuples(TEXTS, arrays()), max_size=2),
    st.dictionaries(TEXTS, arrays(), max_size=2),
)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_layouts_in_python(fuzz):
    def check(drawn):
        tried(lambda: as_layout(drawn, prompt="a cat", aspect=1.0, **ENGLISH))

    values = PAIRS_IN_PYTHON | CAPTIONS | COMFYUI | STACKS | ODD | OWN.map(json.dumps) | TEXTS
    fuzz(check, values, examples=60)
