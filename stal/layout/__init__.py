"""Where each object goes: boxes on the canvas, their masks, their JSON, a picture of them.

`stal.layout.predictor`, which learned where things go, is not among these names: it needs torch.
"""

from stal.layout.coverage import Box, Ellipse, Painted, Polygon, hard_masks, masks
from stal.layout.grid import place
from stal.layout.keyframes import Keyframes
from stal.layout.layout import Layout, PlacedObject
from stal.layout.render import draw, sketch

__all__ = [
    "Box",
    "Ellipse",
    "Keyframes",
    "Layout",
    "Painted",
    "PlacedObject",
    "Polygon",
    "draw",
    "hard_masks",
    "masks",
    "place",
    "sketch",
]
