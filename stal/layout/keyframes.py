"""A layout that moves: where each object of a video is at some of its moments.

    Keyframes((at_the_left, at_the_right), (0.0, 1.0))

Between two keyframes boxes move in a straight line at a constant speed; before the first one and
after the last one they rest.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from stal.checked_json import number, short
from stal.layout.coverage import Box, Ellipse, masks
from stal.layout.layout import Layout, PlacedObject

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Keyframes:
    """The layouts of a video at some of its moments.

    Attributes:
        layouts: of the same phrases in the same order, and of one aspect.
        at: when each of them holds, as fractions of the clip: 0 is its first frame, 1 its last.

    Raises:
        ValueError: no layouts, not one moment for each, moments that do not ascend in [0, 1],
            layouts of different objects or aspects, or an outline that neither stays as it is nor
            is an ellipse throughout.
    """

    layouts: tuple[Layout, ...]
    at: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("layouts", "at"):
            if not isinstance(getattr(self, name), Iterable):
                raise ValueError(f"{name} must be a list, got {short(getattr(self, name))}")
        # Lists and numbers of every kind are welcome; equal keyframes compare equal.
        object.__setattr__(self, "layouts", tuple(self.layouts))
        object.__setattr__(self, "at", tuple(number(moment, "at") for moment in self.at))
        strange = [layout for layout in self.layouts if not isinstance(layout, Layout)]
        if strange or not self.layouts:
            got = short(strange[0]) if strange else "none"
            raise ValueError(f"layouts must be at least one Layout, got {got}")
        if len(self.at) != len(self.layouts):
            raise ValueError(
                f"at must have a moment for each of {len(self.layouts)} layouts, got {len(self.at)}"
            )
        steps = zip(self.at, self.at[1:], strict=False)
        if not (all(0 <= moment <= 1 for moment in self.at) and all(a < b for a, b in steps)):
            raise ValueError(f"at must ascend in [0, 1], got {list(self.at)}")
        for index, layout in enumerate(self.layouts[1:], start=1):
            _check_alike(self.layouts[0], layout, f"layouts[{index}]")
        for index, placed in enumerate(zip(*(each.objects for each in self.layouts), strict=True)):
            _check_outlines(placed, f"objects[{index}]")

    @property
    def prompt(self) -> str:
        """The whole text, of the first keyframe."""
        return self.layouts[0].prompt

    @property
    def objects(self) -> tuple[PlacedObject, ...]:
        """As in the first keyframe."""
        return self.layouts[0].objects

    @property
    def aspect(self) -> float:
        """Width / height of the canvas."""
        return self.layouts[0].aspect

    def at_moment(self, moment: float) -> Layout:
        """The layout of one moment.

        Args:
            moment: a fraction of the clip; outside [0, 1] too nothing moves any more.
        """
        after = sum(each <= moment for each in self.at)
        if after in (0, len(self.at)):
            return self.layouts[min(after, len(self.at) - 1)]
        start, end = self.at[after - 1 : after + 1]
        first, second = self.layouts[after - 1 : after + 1]
        share = (moment - start) / (end - start)
        pairs = zip(first.objects, second.objects, strict=True)
        return replace(first, objects=tuple(_between(a, b, share) for a, b in pairs))

    def masks(self, frames: int, height: int, width: int) -> Tensor:
        """The soft coverage of each object in each frame, see `stal.layout.masks`.

        Args:
            frames: of the clip, at even distances: the first is at 0, the last at 1.
            height, width: size of the grid in cells.

        Returns:
            (objects, frames, height, width) float32 on the CPU, in [0, 1].

        Raises:
            ValueError: frames, height or width is not positive.
        """
        import torch

        if frames < 1:
            raise ValueError(f"frames must be positive, got {frames}")
        moments = [frame / max(frames - 1, 1) for frame in range(frames)]
        return torch.stack([masks(self.at_moment(t), height, width) for t in moments], dim=1)


def _check_alike(first: Layout, other: Layout, where: str) -> None:
    """Raises ValueError unless two layouts are of the same objects on the same canvas."""
    phrases = [[placed.phrase for placed in each.objects] for each in (first, other)]
    if phrases[0] != phrases[1]:
        raise ValueError(
            f"{where} must have the phrases of the first, {short(phrases[0])}, in the same order,"
            f" got {short(phrases[1])}"
        )
    if not math.isclose(first.aspect, other.aspect, rel_tol=1e-6):
        raise ValueError(
            f"{where}.aspect must be the first one's, {first.aspect}, got {other.aspect}"
        )


def _check_outlines(placed: tuple[PlacedObject, ...], where: str) -> None:
    """Raises ValueError unless what an object covers of its box is known between keyframes."""
    rests = all((o.outline, o.box) == (placed[0].outline, placed[0].box) for o in placed)
    boxes = all(o.outline is None for o in placed)
    ellipses = all(isinstance(o.outline, Ellipse) for o in placed)
    if not (rests or boxes or ellipses):
        kinds = sorted({"box" if o.outline is None else type(o.outline).__name__ for o in placed})
        raise ValueError(
            f"{where} of all layouts must be boxes, or ellipses, or one shape that does not move,"
            f" got {', '.join(kinds)}"
        )


def _between(first: PlacedObject, second: PlacedObject, share: float) -> PlacedObject:
    """An object on its way from one keyframe to the next."""
    if (first.box, first.outline) == (second.box, second.outline):
        return first
    outline = None
    if isinstance(first.outline, Ellipse) and isinstance(second.outline, Ellipse):
        outline = Ellipse(_box_between(first.outline.box, second.outline.box, share))
    return replace(first, box=_box_between(first.box, second.box, share), outline=outline)


def _box_between(first: Box, second: Box, share: float) -> Box:
    x0, y0, x1, y1 = ((1 - share) * a + share * b for a, b in zip(first, second, strict=True))
    return x0, y0, x1, y1
