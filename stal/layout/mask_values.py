"""Masks as values of Python: what a layout keeps of an array, a tensor or a picture in memory.

    outline_of(mask, "layout[0]", aspect=1.5)  # the cells of (h, w), (1, h, w) or (1, 1, h, w)

A cell is covered or not: bools say so themselves, integers are 0 and 1 or 0 to 255, floats lie in
[0, 1], and from half of the range on a cell is covered. A soft mask has no other form in a layout
than this, and is read with a warning. Masks may overlap and leave cells uncovered.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from stal import budget
from stal.caller import warn
from stal.checked_json import first_line, short
from stal.layout.coverage import Painted

# numpy is imported where it is used: a layout of boxes needs none.
if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_SHAPES = "(h, w), (1, h, w) or (1, 1, h, w)"
# A mask is soft if of the cells above 0 more than this share are far from both ends: edges that a
# program smoothed are fewer.
_SOFT_SHARE = 0.25


def is_mask(value: Any) -> bool:
    """Whether a value is meant as a mask: a picture, or an array of two dimensions or more."""
    shape = getattr(value, "shape", None)
    return _is_picture(value) or (isinstance(shape, tuple) and len(shape) >= 2)


def outline_of(mask: Any, where: str, *, aspect: float) -> Painted:
    """The cells that a mask covers.

    Args:
        mask: a torch tensor on any device, numpy array or PIL image, see above.
        where: what errors call it.
        aspect: width / height of the canvas, which the mask has to within a cell.

    Raises:
        ValueError: another shape, kind of number, range or aspect, NaN, no covered cell, or more
            cells or runs than `stal.budget` allows; the message names the place.
    """
    if not aspect > 0:
        raise ValueError(f"aspect must be positive, got {aspect}")
    height, width = _size(mask, where)
    if height < 1 or width < 1:
        raise ValueError(f"{where} must be a mask with cells, got {height} x {width}")
    most = budget.MOST_MASK_SIDE
    if max(height, width) > most or height * width > budget.MOST_MASK_CELLS:
        raise ValueError(
            f"{where} must be a mask with sides of at most {most} and at most"
            f" {budget.MOST_MASK_CELLS} cells, got {width} x {height}"
        )
    if min(abs(aspect * height - width), abs(width / aspect - height)) > 1:
        raise ValueError(
            f"{where} must have the canvas's aspect {aspect:.6g}, got a mask of another aspect,"
            f" {width} x {height}: resize it, or give the picture's size (height and width of"
            " stal.Pipeline) or its aspect=width / height"
        )
    cells = _covered(_values(mask, where).reshape(height, width), where)
    if not cells.any():
        raise ValueError(f"{where} must cover a cell, got an empty mask")
    try:
        return Painted.from_cells(cells)
    except ValueError as error:
        raise ValueError(f"{where} must be a mask of few areas: {error}") from None


def _is_picture(value: Any) -> bool:
    pillow = sys.modules.get("PIL.Image")
    return pillow is not None and isinstance(value, pillow.Image)


def _size(mask: Any, where: str) -> tuple[int, int]:
    """Rows and columns."""
    if _is_picture(mask):
        width, height = mask.size
        return height, width
    shape = tuple(mask.shape)
    if not 2 <= len(shape) <= 4 or any(side != 1 for side in shape[:-2]):
        fix = ': give a stack as {"phrases": [...], "masks": stack}' * (len(shape) in (3, 4))
        raise ValueError(f"{where} must be a mask of shape {_SHAPES}, got {shape}{fix}")
    return int(shape[-2]), int(shape[-1])


def _values(mask: Any, where: str) -> NDArray[Any]:
    """Its numbers, on the CPU."""
    import numpy as np

    torch = sys.modules.get("torch")
    try:
        if _is_picture(mask):
            return _grey(mask, where)
        if torch is not None and isinstance(mask, torch.Tensor):
            if mask.is_floating_point() and mask.dtype != torch.float64:
                mask = mask.float()  # numpy knows no bfloat16
            return np.asarray(mask.numpy(force=True))
        return np.asarray(mask)
    except _Refused as error:
        raise ValueError(str(error)) from None
    except Exception as error:  # sparse tensors, those of no device, broken files: all kinds
        raise ValueError(
            f"{where} must be a mask that can be read, got {first_line(error)}"
        ) from None


class _Refused(Exception):
    """A picture that Pillow reads and we do not."""


def _grey(image: Any, where: str) -> NDArray[Any]:
    import numpy as np

    if image.mode in ("1", "L", "I", "F") or image.mode.startswith("I;16"):
        return np.asarray(image)
    values = np.asarray(image)
    if image.mode != "RGB" or (values != values[..., :1]).any():
        raise _Refused(
            f"{where} must be a mask in black, white and grey, got a picture in {image.mode}:"
            ' choose a channel, or image.convert("L")'
        )
    return values[..., 0]


def _covered(values: NDArray[Any], where: str) -> NDArray[np.bool_]:
    """Which cells are covered: (h, w)."""
    import numpy as np

    if values.dtype.kind == "b":
        return values.astype(bool)
    if values.dtype.kind not in "uif":
        raise ValueError(f"{where} must be a mask of bools or numbers, got {values.dtype}")
    low, high = values.min(), values.max()
    if np.isnan(low):
        raise ValueError(f"{where} must be a mask of numbers, got NaN")
    whole = values.dtype.kind in "ui"
    top = 255 if whole and high > 1 else 1
    if low < 0 or high > top:
        rule = "0 and 1, or 0 to 255" if whole else "[0, 1]"
        raise ValueError(f"{where} must be a mask of numbers in {rule}, got {low} to {high}")
    cells = values >= top / 2
    above = np.count_nonzero(values)
    soft = np.count_nonzero((values > 0.1 * top) & (values < 0.9 * top))
    if cells.any() and soft > _SOFT_SHARE * above:
        warn(
            f"{where} is a soft mask, of which a layout keeps the {np.count_nonzero(cells)} of"
            f" {above} cells that are at least half covered"
        )
    if not cells.any() and above:
        raise ValueError(
            f"{where} must cover a cell at least half, got a mask of numbers up to {high} of {top}"
        )
    return cells


def split_stack(masks: Any, count: int) -> list[Any]:
    """The masks of a stack (k, h, w) or (k, 1, h, w), or of a list.

    Raises ValueError unless there are as many as phrases.
    """
    shape = getattr(masks, "shape", None)
    if shape is None and not isinstance(masks, list | tuple):
        raise ValueError(f"masks must be a tensor (k, h, w) or a list, got {short(masks)}")
    if shape is not None and len(shape) not in (3, 4):
        raise ValueError(f"masks must be of shape (k, h, w), got {tuple(shape)}")
    if len(masks) != count:
        raise ValueError(f"masks must be one a phrase, got {len(masks)} for {count} phrases")
    return [masks[k] for k in range(count)]
