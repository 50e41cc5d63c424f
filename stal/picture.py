"""Picture files: written whole or not at all, with the settings that made them; comparisons."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

    from stal.layout import Layout

# The PNG text chunk that holds a result's settings as JSON.
_KEY = "stal"


def check_writable(path: Path) -> None:
    """Raises ValueError unless a file can be written at path; writes nothing that stays."""
    if path.is_dir():
        raise ValueError(f"output must be a file, got the folder {path}")
    folder = path.parent
    if not folder.is_dir():
        raise ValueError(f"output must be in an existing folder, got {path}: create {folder}")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"output must be in a writable folder, got {path}: {error}") from error


def write_atomic(path: Path, data: bytes) -> None:
    """Writes a file that is either complete or, after an error such as a full disk, as before."""
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise


def save(image: Image, path: Path, record: dict[str, Any]) -> None:
    """Saves a PNG with the settings that made it (`Result.settings`) in its metadata."""
    from io import BytesIO

    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_itxt(_KEY, json.dumps(record))
    buffer = BytesIO()
    image.save(buffer, "PNG", pnginfo=info)
    write_atomic(path, buffer.getvalue())


def read_record(path: Path) -> dict[str, Any]:
    """The settings in a PNG that `save` wrote. Raises ValueError if there are none."""
    from PIL import Image, UnidentifiedImageError

    if not path.is_file():
        raise ValueError(f"{path} must be a picture, got no such file")
    try:
        with Image.open(path) as image:
            text = image.info.get(_KEY)
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} must be a picture, got another kind of file") from error
    try:
        record = json.loads(text or "")
    except ValueError as error:
        raise ValueError(f"{path} must carry the settings that made it, got none") from error
    if not isinstance(record, dict) or "prompt" not in record:
        raise ValueError(f"{path} must carry the settings that made it, got others")
    return record


def compare(plain: Image, blended: Image, layout: Layout, *, side: int = 384) -> Image:
    """Plain attention beside ours, with the layout drawn on a third panel and titles above.

    Args:
        plain, blended: pictures of one size.
        layout: where the objects were to go.
        side: height of each panel in pixels.
    """
    from PIL import Image, ImageDraw, ImageFont

    from stal.layout import draw

    width = round(side * plain.width / plain.height)
    gap, title = side // 24, side // 9
    font = ImageFont.load_default(size=side // 18)
    enlarged = [
        image.convert("RGB").resize((width, side), Image.Resampling.BICUBIC)
        for image in (plain, blended)
    ]
    blank = Image.new("RGB", (width, side), (250, 250, 250))
    panels = [
        ("layout", draw(layout, blank)),
        ("plain attention", enlarged[0]),
        ("spatial-temporal attention", draw(layout, enlarged[1])),
    ]
    size = (gap + len(panels) * (width + gap), title + side + gap + title)
    canvas = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(canvas)
    for i, (name, panel) in enumerate(panels):
        left = gap + i * (width + gap)
        pen.text((left + width / 2, title / 2), name, fill="black", font=font, anchor="mm")
        canvas.paste(panel, (left, title))
        pen.rectangle((left - 1, title - 1, left + width, title + side), outline=(200, 200, 200))
    middle = (size[0] / 2, title + side + (gap + title) / 2)
    pen.text(middle, layout.prompt, fill="black", font=font, anchor="mm")
    return canvas
