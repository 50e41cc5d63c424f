"""Settings in PNG files."""

import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from stal import picture

RECORD = {"prompt": "ein „Ö“, 円", "weights": [[1.0, 1 / 3]] * 300, "seeds": [2**63]}


def checkered(width=16, height=12) -> Image.Image:
    pixels = np.indices((height, width)).sum(0) % 2 * 255
    return Image.fromarray(pixels.astype(np.uint8)).convert("RGB")


def test_settings_come_back_from_the_file(tmp_path):
    path = tmp_path / "picture.png"
    picture.save(checkered(), path, RECORD)
    assert picture.read_record(path) == RECORD
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert np.array_equal(np.asarray(image), np.asarray(checkered()))


def test_a_failed_save_leaves_the_old_picture(tmp_path, monkeypatch):
    path = tmp_path / "picture.png"
    picture.save(checkered(), path, RECORD)
    before = path.read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        picture.save(checkered(32, 32), path, {"prompt": ""})
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [before]


def save_png(path, zip=False, **texts):
    info = PngInfo()
    for key, text in texts.items():
        info.add_itxt(key, text, zip=zip)
    checkered().save(path, pnginfo=info)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "must be a picture, got: No such file or directory"),
        (lambda path: path.mkdir(), "must be a file, got the folder"),
        (lambda path: path.write_bytes(b""), "must be a PNG picture, got another kind of file"),
        (os.mkfifo, "must be a file, got the pipe"),
        (lambda path: checkered().save(path, "JPEG"), "must be a PNG picture"),
        (lambda path: checkered().save(path, "GIF"), "must be a PNG picture"),
        (lambda path: save_png(path, stal="[" * 100_000), "must carry .*, got no JSON"),
        (lambda path: save_png(path, zip=True, stal=" " * 10**8), "must carry .*, got broken or"),
        (lambda path: save_png(path, stal=" " * 9_000_000), "must carry .*, got 9000000"),
        (lambda path: path.write_text('{"prompt": ""}'), "must be a PNG picture, got another kind"),
        (lambda path: save_png(path), "must carry the settings that made it, got none"),
        (lambda path: save_png(path, other="{}"), "must carry the settings that made it, got none"),
        (
            lambda path: save_png(path, stal="{"),
            "must carry the settings that made it, got no JSON",
        ),
        (lambda path: save_png(path, stal="[1]"), "must carry .*, got others"),
        (lambda path: save_png(path, stal='{"seed": 1}'), "must carry .*, got others"),
        (lambda path: save_png(path, stal='{"prompt": 1}'), "must carry .*, got others"),
    ],
)
def test_files_without_settings_are_refused(tmp_path, write, message):
    path = tmp_path / "file.png"
    write(path)
    with pytest.raises(ValueError, match=rf"file\.png {message}"):
        picture.read_record(path)


def test_a_picture_cut_short_is_refused(tmp_path):
    path = tmp_path / "file.png"
    picture.save(checkered(), path, RECORD)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"file\.png must "):
        picture.read_record(path)


def chunk(name, data):
    whole = name + data
    return struct.pack(">I", len(data)) + whole + struct.pack(">I", zlib.crc32(whole))


def test_the_record_of_a_picture_of_very_many_pixels_is_read(tmp_path):
    path = tmp_path / "file.png"
    text = b"stal\0\0\0\0\0" + b'{"prompt": "a cat"}'
    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    chunks = [
        chunk(b"IHDR", header),
        chunk(b"iTXt", text),
        chunk(b"IDAT", b""),
        chunk(b"IEND", b""),
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    assert picture.read_record(path) == {"prompt": "a cat"}
