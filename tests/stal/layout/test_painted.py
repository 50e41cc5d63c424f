"""Masks in pictures of every kind: what a viewer shows is read, and the rest refused in words."""

import io
import json
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from stal.layout import masks
from stal.layout.painted import read_painted

WIDE = {"masks": "m.png", "objects": [{"phrase": "a cat", "colour": "#ffffff"}]}
# White on black: what is read of each picture below.
CELLS = np.zeros((6, 10), dtype=bool)
CELLS[1:3, 2:9] = True
GREY = Image.fromarray(np.where(CELLS, 255, 0).astype(np.uint8))
RED = Image.merge("RGB", (GREY, GREY.point(lambda v: 0), GREY.point(lambda v: 0)))


def read(folder, data, **changes):
    if isinstance(data, Image.Image):
        data.save(folder / "m.png", "PNG")
    else:
        (folder / "m.png").write_bytes(data)
    return read_painted({**WIDE, **changes}, folder, noun_of=None)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunk(data, kind, content):
    """A PNG with one more chunk after its header."""
    return data[:33] + chunk(kind, content) + data[33:]


def png(rows, *, bits, colour_type, header=None, interlaced=False):
    """A PNG of these rows of bytes, each without its filter."""
    height, width = header or (6, 10)
    fields = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, interlaced)
    packed = zlib.compress(b"".join(b"\0" + row for row in rows))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", fields) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    )


def palette(*, transparency=None):
    image = Image.fromarray(np.where(CELLS, 1, 2).astype(np.uint8), "P")
    image.putpalette([255, 0, 0, 255, 255, 255, 0, 0, 0])
    return encoded(image, **({} if transparency is None else {"transparency": transparency}))


def alpha(clear, seen="#ffffff"):
    """The cells in one colour, the others transparent in another."""
    image = Image.new("RGBA", (10, 6), clear)
    image.paste(seen, mask=GREY)
    return image


def adam7(pixels):
    """A PNG of 8 grey bits in seven passes."""
    rows = []
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2))
    for x, y, dx, dy in (*passes, (0, 1, 1, 2)):
        rows += [row.tobytes() for row in pixels[y::dy, x::dx] if row.size]
    return png(rows, bits=8, colour_type=0, interlaced=True)


def turned(kind="PNG"):
    exif = Image.Exif()
    exif[0x0112] = 6  # a viewer turns it to the right
    return encoded(GREY.transpose(Image.Transpose.ROTATE_90), kind, exif=exif)


DEEP = np.where(CELLS, 65535, 0).astype(np.uint16)
VALUES = np.array(GREY)

GOOD = {
    "1": encoded(GREY.convert("1")),
    "L": encoded(GREY),
    "L, 2 bits": encoded(GREY, bits=2),
    "LA": encoded(GREY.convert("LA")),
    "P": palette(),
    "P, a transparent colour": palette(transparency=2),
    "P, alpha by colour": palette(transparency=b"\xff\xff\x00"),
    "RGB": encoded(GREY.convert("RGB")),
    "RGBA": encoded(GREY.convert("RGBA")),
    "RGB, a transparent colour": encoded(GREY.convert("RGB"), transparency=(0, 0, 0)),
    "transparent black": encoded(alpha("#00000000")),
    "transparent white": encoded(alpha("#ffffff00")),
    "transparent of many colours": encoded(alpha("#12345600")),
    "16 bits": encoded(Image.fromarray(DEEP)),
    "16 bits, shifted": encoded(Image.fromarray(DEEP & 0xFF00)),
    "RGB of 16 bits": png(
        [np.repeat(r, 3).astype(">u2").tobytes() for r in DEEP], bits=16, colour_type=2
    ),
    "LA of 16 bits": png(
        [np.stack([r, np.full_like(r, 65535)], 1).astype(">u2").tobytes() for r in DEEP],
        bits=16,
        colour_type=4,
    ),
    "interlaced": adam7(VALUES),
    "GIF": encoded(GREY, "GIF"),
    "GIF, transparent": encoded(Image.open(io.BytesIO(palette())), "GIF", transparency=2),
    "BMP": encoded(GREY.convert("RGB"), "BMP"),
    "PPM": encoded(GREY.convert("RGB"), "PPM"),
    "TIFF": encoded(GREY.convert("RGB"), "TIFF", compression="tiff_lzw"),
    "TIFF, transparent": encoded(alpha("#ff00ff00"), "TIFF"),
    "WebP": encoded(GREY.convert("RGB"), "WEBP", lossless=True),
    "turned": turned(),
    "turned TIFF": turned("TIFF"),
    "a profile": encoded(GREY, icc_profile=b"\0" * 128),
    "gamma": with_chunk(encoded(GREY), b"gAMA", struct.pack(">I", 100_000)),
}


@pytest.mark.parametrize("data", GOOD.values(), ids=GOOD)
def test_what_a_viewer_shows_is_read(tmp_path, data):
    layout = read(tmp_path, data)
    np.testing.assert_array_equal(masks(layout, 6, 10)[0].numpy() > 0.5, CELLS)
    assert layout.aspect == 10 / 6


def test_colours_of_a_palette_are_those_it_names(tmp_path):
    image = Image.fromarray(np.where(CELLS, 1, 2).astype(np.uint8), "P")
    image.putpalette([0, 0, 0, 1, 2, 3, 200, 100, 50])
    objects = [{"phrase": "a cat", "colour": "#010203"}]
    layout = read(tmp_path, image, objects=objects, background="#c86432")
    assert layout.objects[0].box == pytest.approx((0.2, 1 / 6, 0.9, 0.5))


def test_a_colour_of_16_bits_is_its_upper_8(tmp_path):
    data = encoded(Image.fromarray(np.where(CELLS, 20000, 65535).astype(np.uint16)))
    objects = [{"phrase": "a cat", "colour": f"#{'4e' * 3}"}]
    layout = read(tmp_path, data, objects=objects, background="#ffffff")
    assert layout.objects[0].box == pytest.approx((0.2, 1 / 6, 0.9, 0.5))
    with pytest.raises(ValueError, match=r"got #4e4e4e at \(2, 1\)"):
        read(tmp_path, data)


JPEG = encoded(GREY.convert("RGB"), "JPEG", quality=100)
PNG = encoded(GREY)
FRAMES = [GREY.convert("P"), GREY.convert("P").transpose(Image.Transpose.ROTATE_180)]


def frames(kind):
    return encoded(FRAMES[0], kind, save_all=True, append_images=FRAMES[1:])


EDGE = GREY.resize((20, 12), Image.Resampling.BILINEAR)
FLOATS = Image.fromarray(np.float32(CELLS))

BAD = {
    "JPEG": (JPEG, "masks must have exact colours, got the JPEG m.png, .*: paint them again"),
    "lossy WebP": (
        encoded(GREY.convert("RGB"), "WEBP", quality=90),
        "masks must have exact colours, got the lossy WebP m.png, .*: paint them again",
    ),
    "JPEG in TIFF": (encoded(GREY.convert("CMYK"), "TIFF", compression="jpeg"), "colours in RGB"),
    "CMYK": (encoded(GREY.convert("CMYK"), "TIFF"), "masks must have colours in RGB, got m.png in"),
    "LAB": (encoded(Image.new("LAB", (10, 6)), "TIFF"), "colours in RGB, got m.png in LAB"),
    "YCbCr": (encoded(GREY.convert("YCbCr"), "TIFF"), "colours in RGB, got m.png in YCbCr"),
    "I": (encoded(GREY.convert("I"), "TIFF"), "colours in RGB, got m.png in I: save it as"),
    "I, 16 bits": (encoded(GREY.convert("I"), "PPM"), "colours in RGB, got m.png in I"),
    "F": (encoded(FLOATS, "TIFF"), "colours in RGB, got m.png in F: save it as a PNG of 8 bits"),
    "16 bits in TIFF": (
        encoded(Image.fromarray(DEEP), "TIFF"),
        "colours in RGB, got m.png in I;16",
    ),
    "a transparent colour of 16 bits": (
        encoded(Image.fromarray(DEEP), transparency=0),
        "masks must have 8 bits, got m.png with a transparent colour of others",
    ),
    "a transparent colour of 2 bits": (
        with_chunk(encoded(GREY, bits=2), b"tRNS", b"\0\0"),
        "masks must have 8 bits",
    ),
    "half transparent": (
        encoded(alpha("#00000080")),
        r"wholly opaque or wholly transparent, got m.png with one in between at \(0, 0\)",
    ),
    "half transparent palette": (palette(transparency=b"\xff\x80\x00"), r"in between at \(2, 1\)"),
    "smoothed": (encoded(EDGE), "save it without smoothing"),
    "smoothed alpha": (
        encoded(alpha("#00000000").resize((20, 12), Image.Resampling.BILINEAR)),
        "wholly opaque or wholly transparent",
    ),
    "animated GIF": (frames("GIF"), "masks must be one picture, got m.png of several"),
    "animated PNG": (frames("PNG"), "masks must be one picture, got m.png of several"),
    "pages of TIFF": (frames("TIFF"), "masks must be one picture, got m.png of several"),
    "all transparent": (encoded(Image.new("RGBA", (9, 9))), "must be in m.png, got no pixel of"),
    "truncated": (PNG[:-30], "masks must be a picture, got 'm.png'"),
    "header alone": (PNG[:33], "masks must be a picture, got 'm.png'"),
    "broken": (PNG[:50] + b"\xff" * 10 + PNG[60:], "masks must be a picture, got 'm.png'"),
    "no pixels": (png([], bits=8, colour_type=0, header=(0, 10)), "must be a picture"),
    "empty": (b"", "masks must be a picture, got 'm.png': cannot identify"),
    "text": (b"%!PS-Adobe-3.0 EPSF\n%%BoundingBox: 0 0 9 9\n", "masks must be a picture"),
    "12000 x 12000": (
        png([], bits=8, colour_type=2, header=(12000, 12000)),
        "masks must have at most 33554432 pixels, got m.png of 12000 x 12000",
    ),
    "40000 x 40000": (
        png([], bits=8, colour_type=2, header=(40000, 40000)),
        "masks must have at most 33554432 pixels, got m.png of more",
    ),
    "one long row": (
        png([], bits=8, colour_type=0, header=(1, 20000)),
        "masks must have sides of at most 16384, got m.png of 20000 x 1",
    ),
    "noise": (
        encoded(Image.fromarray(np.arange(1 << 20, dtype=np.uint32).reshape(1024, -1) % 2 == 0)),
        "m.png must have areas of one colour, at most 524288 stretches of pixels",
    ),
    "a bomb of a profile": (
        with_chunk(PNG, b"iCCP", b"icc\0\0" + zlib.compress(b"\0" * 100_000_000)),
        "masks must be a picture, got 'm.png': Decompressed data too large",
    ),
    "a bomb of text": (
        with_chunk(PNG, b"zTXt", b"a\0\0" + zlib.compress(b"\0" * 100_000_000)),
        "masks must be a picture, got 'm.png': Decompressed data too large",
    ),
}


@pytest.mark.parametrize(("data", "message"), BAD.values(), ids=BAD)
def test_other_pictures_are_refused(tmp_path, data, message):
    with pytest.raises(ValueError, match=message) as caught:
        read(tmp_path, data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../out.png", "masks must be a file in the layout's folder, got '../out.png'"),
        ("OUT", "masks must be a file in the layout's folder"),
        ("sub/../../out.png", "masks must be a file in the layout's folder"),
        ("link.png", "masks must be a file in the layout's folder, got 'link.png'"),
        ("/dev/zero", "masks must be a file in the layout's folder"),
        ("circle", "masks must be a picture|masks must be a file in the layout's folder"),
        ("pipe", "masks must be a picture, got 'pipe': masks must be a file, got the pipe"),
        (".", "masks must be a file, got the folder"),
        ("", "masks must be a file, got the folder"),
        ("absent.png", "masks must be a picture, got 'absent.png': .*No such file"),
        ("n" * 300, "masks must be a picture, got 'nnn.*File name too long"),
        ("n/" * 3000, "masks must be a picture, got 'n/n.*File name too long"),
        ("a\0b", "masks must be a picture, got 'a.x00b'"),
    ],
)
def test_only_files_below_the_layout_are_opened(tmp_path, name, message):
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    GREY.save(tmp_path / "out.png")
    GREY.save(folder / "sub" / "in.png")
    (folder / "link.png").symlink_to(tmp_path / "out.png")
    (folder / "circle").symlink_to(folder / "circle")
    os.mkfifo(folder / "pipe")
    name = str(tmp_path / "out.png") if name == "OUT" else name
    with pytest.raises(ValueError, match=message) as caught:
        read_painted({**WIDE, "masks": name}, folder, noun_of=None)
    assert len(str(caught.value)) < 300
    assert read_painted({**WIDE, "masks": "sub/in.png"}, folder, noun_of=None).objects


def test_what_is_written_of_masks_is_read_back(tmp_path):
    layout = read(tmp_path, GREY, prompt="a cat", relations=[[0, "next to", 0]])
    assert type(layout).from_json(layout.to_json()) == layout
    assert json.loads(layout.to_json())["objects"][0]["noun"] == "a cat"


def test_touching_objects_keep_their_cells(tmp_path):
    rng = np.random.default_rng(0)
    colours = np.array([(0, 0, 0), (255, 0, 0), (0, 255, 0), (1, 2, 3)], dtype=np.uint8)
    which = rng.integers(0, 4, (13, 17))
    objects = [{"phrase": f"thing {k}", "colour": "#" + bytes(colours[k]).hex()} for k in (1, 2, 3)]
    layout = read(tmp_path, Image.fromarray(colours[which]), objects=objects)
    for k, placed in enumerate(layout.objects, 1):
        np.testing.assert_array_equal(placed.outline.cells, which == k)
