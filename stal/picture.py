"""Picture files: written whole or not at all, with the settings that made them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from io import BytesIO
from typing import TYPE_CHECKING, Any

from stal.files import write_atomic

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
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_itxt(_KEY, json.dumps(record))
    buffer = BytesIO()
    image.save(buffer, "PNG", pnginfo=info)
    write_atomic(path, buffer.getvalue())


def read_record(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings in a PNG that `save` wrote.

    Returns:
        What was given as its record, with a "prompt", as JSON gives it back.

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
