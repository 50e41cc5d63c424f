"""Picture files: written whole or not at all, with the settings that made them; comparisons."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from io import BytesIO
from typing import TYPE_CHECKING, Any

from stal.files import write_atomic

if TYPE_CHECKING:
    from PIL.Image import Image

    from stal.layout import Layout

# The PNG text chunk that holds a result's settings as JSON.
_KEY = "stal"


def save(image: Image, path: str | os.PathLike[str], record: Mapping[str, Any]) -> None:
    """Saves a PNG with the settings that made it (`Result.settings`) in its metadata."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_itxt(_KEY, json.dumps(record))
    buffer = BytesIO()
    image.save(buffer, "PNG", pnginfo=info)
    write_atomic(path, buffer.getvalue())


def read_record(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings in a PNG that `save` wrote.

    Raises:
        ValueError: there is no such picture, or it carries no settings.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            text = image.info.get(_KEY)
    except (UnidentifiedImageError, Image.DecompressionBombError, SyntaxError) as error:
        raise ValueError(f"{path} must be a picture, got another kind of file") from error
    except OSError as error:
        raise ValueError(f"{path} must be a picture, got: {error.strerror or error}") from error
    try:
        record = json.loads(text or "")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} must carry the settings that made it, got none") from error
    if not isinstance(record, dict) or not isinstance(record.get("prompt"), str):
        raise ValueError(f"{path} must carry the settings that made it, got others")
    return record


def compare(
    plain: Image, ours: Image, layout: Layout, *, prompt: str, attention: str, width: int = 384
) -> Image:
    """The layout, plain attention, and ours with the layout drawn over it: three titled panels.

    Args:
        plain, ours: pictures of one size.
        layout: where the objects were to go.
        prompt: written below.
        attention: what ours is called.
        width: of each panel in pixels.
    """
    from PIL import Image, ImageDraw, ImageFont

    from stal.layout import draw

    height = max(1, round(width * plain.height / plain.width))
    gap, title, line = width // 24, width // 9, width // 18
    font = ImageFont.load_default(size=line)
    plain, ours = (
        image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
        for image in (plain, ours)
    )
    blank = Image.new("RGB", (width, height), (250, 250, 250))
    panels = {
        "layout": draw(layout, blank, min_side=1),
        "plain attention": plain,
        f"{attention} attention": draw(layout, ours, min_side=1),
    }
    total = gap + len(panels) * (width + gap)
    lines = _wrap(prompt, lambda text: font.getlength(text) <= total - 2 * gap)
    canvas = Image.new("RGB", (total, title + height + 2 * gap + len(lines) * line), "white")
    pen = ImageDraw.Draw(canvas)
    for i, (name, panel) in enumerate(panels.items()):
        left = gap + i * (width + gap)
        pen.text((left + width / 2, title / 2), name, fill="black", font=font, anchor="mm")
        canvas.paste(panel, (left, title))
        pen.rectangle((left - 1, title - 1, left + width, title + height), outline=(200, 200, 200))
    for i, text in enumerate(lines):
        middle = (total / 2, title + height + gap + (i + 0.5) * line)
        pen.text(middle, text, fill="black", font=font, anchor="mm")
    return canvas


def _wrap(text: str, fits: Callable[[str], bool]) -> list[str]:
    """The text in lines that fit, but for single words that do not."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if fits(longer):
            lines[-1] = longer
        else:
            lines.append(word)
    return [line for line in lines if line]
