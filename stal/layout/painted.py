"""Masks painted in a picture: one colour an object.

    {"masks": "masks.png", "prompt": str, "background": "#000000",
     "objects": [{"phrase": str, "noun": str, "colour": "#ff0000"}],
     "relations": [...], "aspect": number}

"prompt", "background", "noun", "relations" and "aspect" (of the picture) may be missing.

The picture is what a viewer shows: a palette is looked up, and one that says that it lies on its
side is turned. A pixel that is wholly transparent belongs to the background, whatever its colour;
one that is partly so is the mark of a smoothed edge, and refused like a colour that is nobody's. Of
16 bits the upper 8 count, so that white is white. Colours are the numbers in the file, which is
what a painting program shows of them; a colour profile is not applied. JPEG and lossy WebP, whose
colours are only about those that were painted, several pictures in a file, and colours that are not
red, green and blue (CMYK, YCbCr, LAB) or have no white (32-bit integers, floats) are refused.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stal import budget
from stal.checked_json import check_keys, first_line, number, quoted, short, shown, typed
from stal.files import read_bytes
from stal.layout.coverage import Painted
from stal.layout.layout import Layout, PlacedObject, check_phrase, find_noun, read_relations

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.ImageFile import ImageFile

_COLOUR = re.compile(r"#[0-9a-fA-F]{6}")
# Others are not painted in, and some of their readers run programs.
_FORMATS = ("PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
_AS_PNG = "save it as a PNG of 8 bits in RGB"
_CLEAR = 1 << 24  # the code of a transparent pixel, above every colour


def read_painted(
    data: Mapping[str, Any], folder: Path, *, noun_of: Callable[[str], str] | None
) -> Layout:
    """The layout of the format above.

    Args:
        data: the JSON object.
        folder: that of its file, in which the picture must lie.
        noun_of: from a phrase to its noun, see `Layout.from_json`.

    Raises:
        ValueError: not that format, or no such picture; the message names the place.
    """
    known = ("masks", "prompt", "background", "objects", "relations", "aspect")
    for key in data:
        if key not in known:
            raise ValueError(f'layout must not have {quoted(key)} beside "masks"')
    name = data["masks"]
    if not isinstance(name, str) or not isinstance(data.get("objects"), list):
        raise ValueError('layout must name a PNG file as "masks", and have a list of "objects"')
    if len(data["objects"]) > budget.MOST_OBJECTS:
        got = len(data["objects"])
        raise ValueError(f"objects must be at most {budget.MOST_OBJECTS}, got {got}")
    background = _colour(data.get("background", "#000000"), "background")
    items, colours = [], [background]
    for index, item in enumerate(data["objects"]):
        where = f"objects[{index}]"
        if not isinstance(item, dict) or not isinstance(item.get("phrase"), str):
            raise ValueError(f'{where} must have a "phrase" and a "colour", got {short(item)}')
        check_keys(item, where, ("phrase",), optional=("noun", "colour"))
        phrase = check_phrase(item["phrase"], f"{where}.phrase")
        noun = item["noun"] if "noun" in item else find_noun(phrase, noun_of)
        colour = _colour(item.get("colour"), f"{where}.colour")
        if colour in colours:
            raise ValueError(f"{where}.colour must be its own, got {item['colour']} again")
        colours.append(colour)
        items.append((phrase, typed(noun, str, f"{where}.noun")))
    codes = _codes(folder, name)
    height, width = codes.shape
    aspect = _aspect(data, width, height)
    if abs(aspect * height - width) > 1:
        raise ValueError(
            f"masks must have the layout's aspect {aspect:g}, got {shown(name)} of"
            f" {width} x {height}"
        )
    outlines = _outlines(codes, colours, shown(name))
    return Layout(
        typed(data.get("prompt", ""), str, "prompt"),
        tuple(
            PlacedObject(phrase, noun, outline.box, outline=outline)
            for (phrase, noun), outline in zip(items, outlines, strict=True)
        ),
        read_relations(data.get("relations", [])),
        aspect,
    )


def _aspect(data: Mapping[str, Any], width: int, height: int) -> float:
    given = data.get("aspect", width / height)
    try:
        aspect = number(given, "aspect")
    except ValueError:
        aspect = 0.0
    if not 0 < aspect < 1e6:
        raise ValueError(f"aspect must be a positive number, got {short(given)}")
    return aspect


def _outlines(codes: NDArray[np.uint32], colours: list[int], name: str) -> list[Painted]:
    """Where each colour but the first, which is the background's, is."""
    height, width = codes.shape
    flat = codes.ravel()
    changed = flat[1:] != flat[:-1]
    count = np.count_nonzero(changed) + 1
    if count > budget.MOST_MASK_RUNS:
        raise ValueError(
            f"{name} must have areas of one colour, at most {budget.MOST_MASK_RUNS} stretches of"
            f" pixels in all rows, got {count}: save it without smoothing"
        )
    starts = np.concatenate(([0], np.flatnonzero(changed) + 1))
    of_run, lengths = flat[starts], np.diff(np.append(starts, flat.size))
    found = []
    for index, colour in enumerate(colours[1:]):
        mine = of_run == colour
        if not mine.any():
            raise ValueError(
                f"objects[{index}].colour must be in {name}, got no pixel of #{colour:06x}"
            )
        # A run of ours is a stretch of these, or of others, in turn; the first is of others.
        begins = np.flatnonzero(np.diff(mine, prepend=not mine[0]))
        runs = np.add.reduceat(lengths, begins).tolist()
        found.append(Painted(height, width, tuple([0, *runs] if mine[0] else runs)))
    other = ~np.isin(of_run, [*colours, _CLEAR])
    if other.any():
        first = int(starts[other.argmax()])
        at = (first % width, first // width)
        raise ValueError(
            f"{name} must have the colours of the objects and the background"
            f" #{colours[0]:06x} only, got #{int(flat[first]):06x} at {at}: save it"
            " without smoothing"
        )
    return found


def _codes(folder: Path, name: str) -> NDArray[np.uint32]:
    """The colour 0xRRGGBB of each pixel, or _CLEAR: (height, width)."""
    where = f"masks must be a picture, got {short(name)}"
    try:
        path = (folder / name).resolve()
        inside = path.is_relative_to(folder.resolve())
        data = None
        if inside:
            data = read_bytes(path, name="masks", limit=budget.MOST_IMAGE_BYTES)
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError of links in a circle
        reason = error.strerror if isinstance(error, OSError) else None
        raise ValueError(f"{where}: {reason or first_line(error)}") from None
    if data is None:
        raise ValueError(f"masks must be a file in the layout's folder, got {short(name)}")
    is_jpeg = data.startswith(b"\xff\xd8")
    if is_jpeg or (data[8:12] == b"WEBP" and b"VP8L" not in data):
        kind = "JPEG" if is_jpeg else "lossy WebP"
        raise ValueError(
            f"masks must have exact colours, got the {kind} {shown(name)}, which has them only"
            " nearly: paint them again and save as PNG"
        )
    try:
        image = _open(data)
        return _pixels(image)
    except _Refused as error:
        raise ValueError(f"masks must {error.rule}, got {shown(name)} {error.got}") from None
    except Exception as error:  # Pillow's readers raise all kinds of them over a broken file
        raise ValueError(f"{where}: {first_line(error)}") from None


class _Refused(Exception):
    """A picture that Pillow reads and we do not."""

    def __init__(self, rule: str, got: str) -> None:
        super().__init__(rule, got)
        self.rule, self.got = rule, got


def _open(data: bytes) -> ImageFile:
    """The picture, of a size that may be decoded."""
    import warnings

    from PIL import Image

    with warnings.catch_warnings():
        # Our own limit is below the one that Pillow warns of, and refuses at twice.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
        except Image.DecompressionBombError:
            raise _Refused(f"have at most {budget.MOST_IMAGE_PIXELS} pixels", "of more") from None
    width, height = image.size
    if width * height > budget.MOST_IMAGE_PIXELS:
        rule = f"have at most {budget.MOST_IMAGE_PIXELS} pixels"
        raise _Refused(rule, f"of {width} x {height}")
    if max(width, height) > budget.MOST_MASK_SIDE:
        raise _Refused(f"have sides of at most {budget.MOST_MASK_SIDE}", f"of {width} x {height}")
    if getattr(image, "is_animated", False):
        raise _Refused("be one picture", "of several: save the one that is meant")
    return image


def _pixels(file: ImageFile) -> NDArray[np.uint32]:
    """What `_codes` gives, of a picture."""
    from PIL import Image, ImageOps

    # How the file has its samples, such as "L;2" or "RGB;16B"; it is forgotten once they are read.
    tile = file.tile[0].args if file.tile else file.mode
    raw = str(tile[0] if isinstance(tile, tuple) else tile)
    if file.format == "PNG" and "transparency" in file.info and file.mode not in ("P", raw):
        raise _Refused("have 8 bits", f"with a transparent colour of others: {_AS_PNG}")
    image: Image.Image = ImageOps.exif_transpose(file)
    if file.format == "PNG" and raw.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif file.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA"):
        raise _Refused("have colours in RGB", f"in {file.mode}: {_AS_PNG}")
    pixels = np.asarray(image.convert("RGBA"))
    alpha = pixels[..., 3]
    partly = (alpha != 0) & (alpha != 255)
    if partly.any():
        y, x = np.unravel_index(int(partly.argmax()), partly.shape)
        rule = "have pixels that are wholly opaque or wholly transparent"
        raise _Refused(rule, f"with one in between at {(int(x), int(y))}: save without smoothing")
    codes = pixels[..., 0].astype(np.uint32)
    for channel in (1, 2):
        codes <<= 8
        codes |= pixels[..., channel]
    codes[alpha == 0] = _CLEAR
    return codes


def _colour(value: Any, where: str) -> int:
    if not isinstance(value, str) or not _COLOUR.fullmatch(value):
        raise ValueError(f'{where} must be like "#ff0000", got {short(value)}')
    return int(value[1:], 16)
