"""Picture files: written whole or not at all, with the settings that made them."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from io import BytesIO
from typing import TYPE_CHECKING, Any

from stal.budget import MOST_RECORD_CHARS
from stal.checked_json import first_line, loads
from stal.files import open_regular, write_atomic

if TYPE_CHECKING:
    from PIL.Image import Image

# The PNG text chunk that holds a result's settings as JSON.
_KEY = "stal"


def save(image: Image, path: str | os.PathLike[str], record: Mapping[str, Any]) -> None:
    """Saves a PNG with the settings that made it (`Result.settings`) in its metadata.

    A failure leaves what was there before.

    Args:
        image: the picture.
        path: of the file.
        record: the settings, with at least a "prompt"; JSON can hold them.

    Raises:
        OSError: the file cannot be written.
    """
    write_atomic(path, encoded(image, record))


def encoded(image: Image, record: Mapping[str, Any]) -> bytes:
    """The bytes of the file that `save` writes."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_itxt(_KEY, json.dumps(record))
    buffer = BytesIO()
    image.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def read_record(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings in a PNG that `save` wrote.

    The pixels are not looked at, whatever their number.

    Returns:
        What was given as its record, with a "prompt", as JSON gives it back.

    Raises:
        ValueError: there is no such picture, or it carries no settings.
    """
    try:
        with open_regular(path, name=str(path)) as file:
            start = file.read(2 * MOST_RECORD_CHARS)
    except OSError as error:
        raise ValueError(f"{path} must be a picture, got: {error.strerror or error}") from error
    return record_in(start, name=str(path))


def record_in(data: bytes, *, name: str) -> dict[str, Any]:
    """The settings in the bytes of a PNG, or of its start, as `read_record` gives them.

    name: what messages call the picture.

    Raises: ValueError if it is no PNG, or carries no settings.
    """
    text = _text(data, name)
    if text is None:
        raise ValueError(f"{name} must carry the settings that made it, got none")
    try:
        record = loads(text)
    except ValueError as error:
        raise ValueError(f"{name} must carry the settings that made it, got no JSON") from error
    if not isinstance(record, dict) or not isinstance(record.get("prompt"), str):
        raise ValueError(f"{name} must carry the settings that made it, got others")
    return record


def _text(data: bytes, name: str) -> str | None:
    """What a PNG has under our key before its pixels; None where it has nothing."""
    from PIL.PngImagePlugin import PngImageFile

    try:
        # Not Image.open, which takes other formats and refuses many pixels; what Pillow warns of
        # are the pixels.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with PngImageFile(BytesIO(data)) as image:
                text = image.info.get(_KEY)
    except SyntaxError as error:
        raise ValueError(f"{name} must be a PNG picture, got another kind of file") from error
    except Exception as error:  # of a broken file Pillow raises many kinds
        got = f"broken or too large ones: {first_line(error)}"
        raise ValueError(f"{name} must carry the settings that made it, got {got}") from error
    if text is not None and len(text) > MOST_RECORD_CHARS:
        got = f"{len(text)} characters of them, more than {MOST_RECORD_CHARS}"
        raise ValueError(f"{name} must carry the settings that made it, got {got}")
    return None if text is None else str(text)
