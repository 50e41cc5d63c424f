"""Scenes of coloured shapes on a plain background, drawn and rendered in batches.

A scene is a handful of numbers (kind, place and size of up to four objects); a batch of scenes is
one `Scenes` of tensors. Everything follows from the seed: the same seed gives the same scenes on
every machine and for every number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from stal.prompts import article
from stal.torch_state import undisturbed

MAX_OBJECTS = 4
IMAGE_SIZE = 64

SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross", "ring")
COLOURS = {
    "red": (0.88, 0.10, 0.10),
    "orange": (0.98, 0.52, 0.04),
    "yellow": (0.97, 0.88, 0.12),
    "green": (0.10, 0.62, 0.18),
    "cyan": (0.12, 0.80, 0.86),
    "blue": (0.12, 0.22, 0.86),
    "purple": (0.50, 0.12, 0.68),
    "pink": (0.98, 0.52, 0.74),
}
BACKGROUNDS = {
    "white": (0.97, 0.97, 0.97),
    "gray": (0.60, 0.60, 0.60),
    "black": (0.06, 0.06, 0.06),
    "beige": (0.92, 0.87, 0.76),
}
COLOUR_NAMES = tuple(COLOURS)
BACKGROUND_NAMES = tuple(BACKGROUNDS)

# Share of scenes with 0, 1, 2, 3, 4 objects as drawn. Some of those with several are held out or
# find no room, which leaves 0.07, 0.36, 0.26, 0.18, 0.13.
_COUNT_SHARES = (0.06, 0.30, 0.27, 0.19, 0.18)
# Radius of an object as a fraction of the side, by number of objects in the scene. Large shapes
# keep the caption informative about most pixels, which is what blending regions relies on.
_RADIUS_RANGE = ((0.0, 0.0), (0.16, 0.34), (0.14, 0.25), (0.125, 0.215), (0.12, 0.20))
_BACKGROUND_SHARES = (0.7, 0.1, 0.1, 0.1)
_DUPLICATE_SHARE = 0.04
_GAP = 0.02
_HELD_OUT_OF = 8


@dataclass(frozen=True)
class Scenes:
    """A batch of scenes. Lengths are fractions of the side, y downwards, angles in radians."""

    count: Tensor  # (n,) int64, number of objects
    colour: Tensor  # (n, MAX_OBJECTS) int64, index into COLOUR_NAMES
    shape: Tensor  # (n, MAX_OBJECTS) int64, index into SHAPES
    x: Tensor  # (n, MAX_OBJECTS) float32, centre
    y: Tensor  # (n, MAX_OBJECTS) float32, centre
    radius: Tensor  # (n, MAX_OBJECTS) float32, circumscribed circle
    angle: Tensor  # (n, MAX_OBJECTS) float32
    background: Tensor  # (n,) int64, index into BACKGROUND_NAMES

    def __len__(self) -> int:
        return self.count.shape[0]

    def __getitem__(self, index: slice | Tensor) -> Scenes:
        return Scenes(*(getattr(self, f.name)[index] for f in fields(self)))

    @staticmethod
    def concatenate(parts: Sequence[Scenes]) -> Scenes:
        return Scenes(
            *(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(Scenes))
        )

    def phrase(self, scene: int, index: int) -> str:
        """The object's own description, e.g. "a red circle"."""
        colour = COLOUR_NAMES[int(self.colour[scene, index])]
        return f"{article(colour)} {colour} {SHAPES[int(self.shape[scene, index])]}"

    def box(self, scene: int, index: int) -> tuple[float, float, float, float]:
        """The object's box (x0, y0, x1, y1) as fractions of the canvas."""
        x, y = float(self.x[scene, index]), float(self.y[scene, index])
        radius = float(self.radius[scene, index])
        x0, y0, x1, y1 = x - radius, y - radius, x + radius, y + radius
        return max(x0, 0.0), max(y0, 0.0), min(x1, 1.0), min(y1, 1.0)


@undisturbed()
def draw_scenes(
    n: int, *, seed: int, counts: Sequence[int] | None = None, held_out: bool = False
) -> Scenes:
    """Draws n scenes.

    Args:
        n: number of scenes.
        seed: seed of the draw; scenes follow from it and n together.
        counts: numbers of objects to draw from, equally likely; by default 0 to MAX_OBJECTS in the
            training mixture.
        held_out: with False, no scene holds a combination of objects of the test split; with True
            every scene of two or more objects does. One object in eight combinations is held out
            (of every number of objects from two up); single objects are in both splits.

    Raises:
        ValueError: n is negative, or counts are none or not in 0 .. MAX_OBJECTS.
    """
    if n < 0:
        raise ValueError(f"n must not be negative, got {n}")
    if counts is not None and not (len(counts) and all(0 <= c <= MAX_OBJECTS for c in counts)):
        raise ValueError(f"counts must be in 0 .. {MAX_OBJECTS}, got {list(counts)}")
    generator = torch.Generator("cpu").manual_seed(seed)
    parts: list[Scenes] = []
    have = 0
    while have < n:
        drawn, placed = _draw(max(2 * (n - have), 64), generator, counts)
        keep = placed & ((combination(drawn) == 0) == held_out) | placed & (drawn.count < 2)
        parts.append(drawn[keep.nonzero().squeeze(1)])
        have += len(parts[-1])
    return Scenes.concatenate(parts)[:n] if parts else _draw(0, generator, counts)[0]


def combination(scenes: Scenes) -> Tensor:
    """A number in [0, _HELD_OUT_OF) for the set of kinds in a scene, whatever their order: (n,)."""
    kind = scenes.colour * len(SHAPES) + scenes.shape + 1
    kind = torch.where(_exists(scenes.count), kind, 0).sort(dim=1).values
    key = torch.zeros_like(scenes.count)
    for column in kind.unbind(1):
        key = (key * 6364136223846793005 + column * 1442695040888963407 + 12345) & 0x7FFFFFFFFFFF
    return (key >> 17) % _HELD_OUT_OF


def _floats(values: Sequence[Any]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device="cpu")


def _exists(count: Tensor) -> Tensor:
    return torch.arange(MAX_OBJECTS, dtype=torch.long, device="cpu") < count[:, None]


def _draw(
    n: int, generator: torch.Generator, counts: Sequence[int] | None
) -> tuple[Scenes, Tensor]:
    """n scenes, and which of them found room for all their objects."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float32, device="cpu")

    shares = _floats([0.0] * (MAX_OBJECTS + 1))
    if counts is None:
        shares = _floats(_COUNT_SHARES)
    else:
        shares[list(counts)] = 1.0

    def choice(weights: Tensor) -> Tensor:
        edges = (weights / weights.sum()).cumsum(0)
        return torch.searchsorted(edges, uniform(n)).clamp(max=len(weights) - 1)

    count = choice(shares)
    background = choice(_floats(_BACKGROUND_SHARES))
    colour = (uniform(n, MAX_OBJECTS) * len(COLOURS)).long()
    shape = (uniform(n, MAX_OBJECTS) * len(SHAPES)).long()
    twins = uniform(n) < _DUPLICATE_SHARE
    colour[:, 1] = torch.where(twins, colour[:, 0], colour[:, 1])
    shape[:, 1] = torch.where(twins, shape[:, 0], shape[:, 1])

    low, high = _floats(_RADIUS_RANGE)[count].unbind(1)
    radius = low[:, None] + (high - low)[:, None] * uniform(n, MAX_OBJECTS)
    angle = (uniform(n, MAX_OBJECTS) - 0.5) * 0.3
    x, y, placed = _place(count, radius, generator)
    scenes = Scenes(count, colour, shape, x, y, radius, angle, background)
    return scenes, placed


def _place(
    count: Tensor, radius: Tensor, generator: torch.Generator, candidates: int = 32
) -> tuple[Tensor, Tensor, Tensor]:
    """Centres of circles that neither overlap nor leave the canvas, and where that succeeded."""
    n = len(count)
    x, y = torch.zeros_like(radius), torch.zeros_like(radius)
    placed = torch.ones_like(count, dtype=torch.bool)
    for i in range(MAX_OBJECTS):
        r = radius[:, i, None]
        drawn = torch.rand(2, n, candidates, generator=generator, dtype=torch.float32, device="cpu")
        trial = r + (1 - 2 * r) * drawn
        free = torch.ones_like(trial[0], dtype=torch.bool)
        for j in range(i):
            distance = torch.hypot(trial[0] - x[:, j, None], trial[1] - y[:, j, None])
            free &= distance > r + radius[:, j, None] + _GAP
        first = free.float().argmax(dim=1, keepdim=True)
        x[:, i] = trial[0].gather(1, first).squeeze(1)
        y[:, i] = trial[1].gather(1, first).squeeze(1)
        placed &= free.any(dim=1) | (i >= count)
    return x, y, placed


def coverage(shape: int, u: Tensor, v: Tensor, softness: Tensor | float) -> Tensor:
    """How much of each pixel a shape of circumscribed radius 1 covers, in [0, 1].

    Args:
        shape: index into SHAPES.
        u, v: pixel centres in the shape's own frame, v downwards.
        softness: width of a pixel in that frame.
    """
    au, av = u.abs(), v.abs()
    length = torch.hypot(u, v)
    name = SHAPES[shape]
    if name == "circle":
        distance = length - 0.92
    elif name == "square":
        distance = torch.maximum(au, av) - 0.78
    elif name == "diamond":
        # Taller than wide, so that no rotation turns it into a square.
        distance = (au * 1.45 + av - 1.0) / math.hypot(1.45, 1.0)
    elif name == "triangle":
        slope = math.sqrt(3.0) / 2
        distance = torch.maximum(slope * au - 0.5 * v - 0.5, v - 0.5)
    elif name == "star":
        # Fold the plane onto one half point of the star, then one straight edge decides.
        sector = math.pi / 5
        turn = torch.atan2(u, -v)
        folded = (turn + sector) % (2 * sector) - sector
        p, q = length * folded.cos(), length * folded.abs().sin()
        inner_x, inner_y = 0.45 * math.cos(sector), 0.45 * math.sin(sector)
        edge = math.hypot(inner_x - 1.0, inner_y)
        distance = ((p - 1.0) * inner_y - q * (inner_x - 1.0)) / edge
    elif name == "cross":
        bar = 0.27
        distance = torch.minimum(
            torch.maximum(au - bar, av - 0.92), torch.maximum(au - 0.92, av - bar)
        )
    else:  # ring
        distance = (length - 0.69).abs() - 0.24
    return (0.5 - distance / softness).clamp(0.0, 1.0)


@undisturbed()
def render(scenes: Scenes, *, size: int = IMAGE_SIZE, seed: int | None = None) -> Tensor:
    """Pictures of the scenes: (n, 3, size, size) float32 in [0, 1].

    With a seed, every colour moves by up to 0.03 a channel; without one colours are exact.
    """
    n = len(scenes)
    generator = torch.Generator("cpu").manual_seed(seed or 0)
    jitter = 0.0 if seed is None else 0.03

    def shade(table: dict[str, tuple[float, float, float]], index: Tensor) -> Tensor:
        rgb = _floats(list(table.values()))[index]
        drawn = torch.rand(rgb.shape, generator=generator, dtype=torch.float32, device="cpu")
        return (rgb + jitter * (2 * drawn - 1)).clamp(0, 1)

    image = shade(BACKGROUNDS, scenes.background)[:, :, None, None].repeat(1, 1, size, size)
    paint = shade(COLOURS, scenes.colour)
    centres = (torch.arange(size, dtype=torch.float32, device="cpu") + 0.5) / size
    for i in range(MAX_OBJECTS):
        for shape in range(len(SHAPES)):
            rows = ((scenes.shape[:, i] == shape) & (scenes.count > i)).nonzero().squeeze(1)
            if len(rows) == 0:
                continue
            radius = scenes.radius[rows, i, None, None]
            dx = (centres[None, None, :] - scenes.x[rows, i, None, None]) / radius
            dy = (centres[None, :, None] - scenes.y[rows, i, None, None]) / radius
            cos, sin = scenes.angle[rows, i].cos(), scenes.angle[rows, i].sin()
            cos, sin = cos[:, None, None], sin[:, None, None]
            alpha = coverage(shape, cos * dx + sin * dy, cos * dy - sin * dx, 1 / (size * radius))
            picture = image[rows]
            image[rows] = picture + alpha[:, None] * (paint[rows, i, :, None, None] - picture)
    assert image.shape == (n, 3, size, size)
    return image
