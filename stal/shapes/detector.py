"""An exact detector for pictures of the shapes world: colour, shape, place and size of each object.

No learning: colours are separated by where a pixel lies between the background's colour and an
object's, connected pixels of one colour are one object, and its shape is the nearest of the
templates in a frame normalised by centroid and second moment.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from stal.shapes.scenes import (
    BACKGROUND_NAMES,
    BACKGROUNDS,
    COLOUR_NAMES,
    COLOURS,
    SHAPES,
    coverage,
)
from stal.torch_state import undisturbed

# Side of the normalised frame in cells, and half its width in units of the object's spread.
_FRAME, _REACH = 32, 2.4
# A pixel whose neighbours differ by less than this in every channel shows a colour, not an edge.
_FLAT = 0.35
# Objects smaller than this share of the picture are specks.
_SPECK = 0.004
UNKNOWN = "blob"


@dataclass(frozen=True)
class DetectedShape:
    """One object: names, box (x0, y0, x1, y1) as fractions of the canvas, and in [0, 1] how well
    its outline fits its shape (shape is "blob" where nothing fits)."""

    colour: str
    shape: str
    box: tuple[float, float, float, float]
    score: float

    @property
    def centre(self) -> tuple[float, float]:
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2


@undisturbed()
def detect(images: Tensor, *, min_score: float = 0.72) -> list[list[DetectedShape]]:
    """Finds the objects of each picture, largest first.

    Args:
        images: (n, 3, height, width) float in [0, 1], noise beyond that too. An object whose
            strokes are not three pixels wide shows no pure colour and is not found: the smallest
            rings below 64 pixels.
        min_score: an outline that fits no shape this well is called "blob".

    Raises:
        ValueError: images of another shape or dtype, or with a NaN or infinity in them.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be (n, 3, height, width), got {tuple(images.shape)}")
    if not images.is_floating_point() or not bool(images.isfinite().all()):
        got = "NaN or infinity" if images.is_floating_point() else images.dtype
        raise ValueError(f"images must be finite floating point in [0, 1], got {got}")
    return [_detect_one(image, min_score) for image in images.float()]


@undisturbed()
def background_of(image: Tensor) -> str:
    """The name of the background colour of a picture, (3, height, width) float in [0, 1]."""
    return _background(image, _flat(image))[0]


def _flat(image: Tensor) -> Tensor:
    """Where a pixel and its neighbours have about one colour: (height, width) bool."""
    high = F.max_pool2d(image[None], 3, stride=1, padding=1)[0]
    low = -F.max_pool2d(-image[None], 3, stride=1, padding=1)[0]
    return (high - low).amax(0) < _FLAT


def _background(image: Tensor, flat: Tensor) -> tuple[str, Tensor]:
    """Name and measured colour (3,) of the background: of the flat pixels most are near it."""
    table = image.new_tensor([*BACKGROUNDS.values(), *COLOURS.values()])
    pixels = image[:, flat].t() if bool(flat.any()) else image.flatten(1).t()
    nearest = torch.cdist(pixels, table).argmin(1)
    counts = torch.bincount(nearest, minlength=len(table))[: len(BACKGROUNDS)]
    index = int(counts.argmax())
    chosen = pixels[nearest == index] if int(counts[index]) else table[index][None]
    return BACKGROUND_NAMES[index], chosen.median(0).values


def _detect_one(image: Tensor, min_score: float) -> list[DetectedShape]:
    height, width = image.shape[1:]
    flat = _flat(image)
    _, ground = _background(image, flat)
    table = image.new_tensor(list(COLOURS.values()))  # (colours, 3)
    pixels = image.flatten(1).t() - ground  # (n, 3)
    axes = table - ground
    alpha = (pixels @ axes.t()) / axes.square().sum(1)  # (n, colours)
    nearest = torch.cdist(pixels, axes).argmin(1)
    solid = flat.flatten() & (alpha.gather(1, nearest[:, None]).squeeze(1) > 0.6)
    solid &= torch.cdist(pixels, axes).amin(1) < pixels.norm(dim=1)
    present = torch.bincount(nearest[solid], minlength=len(table)) >= 3
    if not bool(present.any()):
        return []
    # Between the background and a colour lie that object's own edge pixels: the colour whose line
    # passes nearest owns them.
    mixed = alpha.clamp(0, 1)
    off = (pixels[:, None] - mixed[..., None] * axes).norm(dim=2)
    off = torch.where(present, off, math.inf)
    owner = off.argmin(1)
    opacity = mixed.gather(1, owner[:, None]).squeeze(1)

    found = []
    for colour in present.nonzero().squeeze(1).tolist():
        mine = (owner == colour).view(height, width)
        alpha_map = torch.where(mine, opacity.view(height, width), 0.0)
        core = (solid & (nearest == colour)).view(height, width)
        for component in _components(alpha_map > 0.5):
            area = alpha_map[component].sum().item() / (height * width)
            if area < _SPECK or int((core & component).sum()) < 3:
                continue
            grown = F.max_pool2d(component[None, None].float(), 3, stride=1, padding=1)[0, 0] > 0
            shape, score = _classify(torch.where(grown, alpha_map, 0.0))
            rows = component.any(1).nonzero().squeeze(1)
            columns = component.any(0).nonzero().squeeze(1)
            box = (
                columns[0].item() / width,
                rows[0].item() / height,
                (columns[-1].item() + 1) / width,
                (rows[-1].item() + 1) / height,
            )
            name = shape if score >= min_score else UNKNOWN
            found.append((area, DetectedShape(COLOUR_NAMES[colour], name, box, score)))
    return [detection for _, detection in sorted(found, key=lambda pair: -pair[0])]


def _components(mask: Tensor) -> list[Tensor]:
    """The 8-connected parts of a mask (height, width), each a mask."""
    numbers = torch.arange(1, mask.numel() + 1, dtype=torch.float32).view(1, 1, *mask.shape)
    label = numbers * mask
    while True:
        spread = F.max_pool2d(label, 3, stride=1, padding=1) * mask
        if torch.equal(spread, label):
            break
        label = spread
    return [label[0, 0] == value for value in label.unique() if value > 0]


def _classify(alpha: Tensor) -> tuple[str, float]:
    """Shape and score, the overlap (intersection over union) with the best template."""
    templates, shapes = _templates()
    frame = _normalise(alpha).flatten()
    overlap = torch.minimum(frame, templates).sum(1) / torch.maximum(frame, templates).sum(1)
    best = int(overlap.argmax())
    return SHAPES[shapes[best]], overlap[best].item()


def _normalise(alpha: Tensor) -> Tensor:
    """The object moved to its centroid and scaled to a standard second moment."""
    height, width = alpha.shape
    v, u = torch.meshgrid(_middles(height), _middles(width), indexing="ij")
    mass = alpha.sum()
    cu, cv = (alpha * u).sum() / mass, (alpha * v).sum() / mass
    spread = ((alpha * ((u - cu) ** 2 + (v - cv) ** 2)).sum() / mass).sqrt()
    steps = (_middles(_FRAME) / _FRAME * 2 - 1) * _REACH * spread
    grid_v, grid_u = torch.meshgrid(
        (cv + steps) / height * 2 - 1, (cu + steps) / width * 2 - 1, indexing="ij"
    )
    grid = torch.stack([grid_u, grid_v], dim=-1)[None]
    return F.grid_sample(alpha[None, None], grid, align_corners=False)[0, 0]


def _middles(cells: int) -> Tensor:
    """0.5, 1.5, ...: (cells,) float32 on the CPU, as pictures that are looked at here."""
    return torch.arange(cells, dtype=torch.float32, device="cpu") + 0.5


@cache
def _templates() -> tuple[Tensor, list[int]]:
    """Every shape at a few small rotations and two sharpnesses, normalised: (templates, cells)."""
    frames, shapes = [], []
    size = 48
    centres = (_middles(size) / size * 2 - 1) * 1.2
    v, u = torch.meshgrid(centres, centres, indexing="ij")
    for shape in range(len(SHAPES)):
        for degrees in range(-9, 10, 3):
            cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
            for softness in (0.08, 0.25):
                picture = coverage(shape, cos * u + sin * v, cos * v - sin * u, softness)
                frames.append(_normalise(picture).flatten())
                shapes.append(shape)
    return torch.stack(frames), shapes
