"""What objects cover: of their boxes, as outlines, and of the cells of a grid, as masks.

    masks(layout, 16, 16)  # (objects, 16, 16): M_i, the share of each cell that object i covers

An outline, which is an ellipse, a polygon or painted cells, gives its area left of x and above y,

    G(x, y) = area of {(u, v) in outline : u < x, v < y}

in closed form, so that what it covers of a cell is a difference of four values of G, exact at any
resolution, and the sum over a grid is the area of the outline.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

# numpy and torch are imported where they are used: reading a layout file needs none.
if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    Array: TypeAlias = NDArray[np.float64]

Box = tuple[float, float, float, float]  # (x0, y0, x1, y1), fractions of the canvas

ELLIPSE = "ellipse"


@dataclass(frozen=True)
class Ellipse:
    """The ellipse that touches the four sides of its box."""

    box: Box

    def area_before(self, x: Array, y: Array) -> Array:
        """G on the grid of x (columns) and y (rows): (rows, columns)."""
        import numpy as np

        x0, y0, x1, y1 = self.box
        u = np.clip(2 * (x - x0) / (x1 - x0) - 1, -1, 1)[None, :]
        v = np.clip(2 * (y - y0) / (y1 - y0) - 1, -1, 1)[:, None]
        # Of the unit circle: the part with |height| over |v|, left of u, between -c and c.
        c = np.sqrt(1 - v**2)
        inner = np.clip(u, -c, c)
        cap = _half_disk(inner) - _half_disk(-c) - np.abs(v) * (inner + c)
        area = np.where(v >= 0, 2 * _half_disk(u) - cap, cap)
        return area * (x1 - x0) * (y1 - y0) / 4

    def to_json(self) -> str:
        """Its shape in the JSON of a layout, see `stal.layout.Layout.from_json`."""
        return ELLIPSE


def _half_disk(u: Array) -> Array:
    """The integral of sqrt(1 - t^2) from -1 to u."""
    import numpy as np

    return (u * np.sqrt(np.maximum(1 - u**2, 0)) + np.arcsin(u) + math.pi / 2) / 2


@dataclass(frozen=True)
class Polygon:
    """A polygon that does not cross itself; its corners (x, y) as fractions of the canvas."""

    corners: tuple[tuple[float, float], ...]

    @property
    def box(self) -> Box:
        """The smallest box around it."""
        xs, ys = zip(*self.corners, strict=True)
        return min(xs), min(ys), max(xs), max(ys)

    def area_before(self, x: Array, y: Array) -> Array:
        """G on the grid of x (columns) and y (rows): (rows, columns).

        By Green's theorem it is the sum over the edges of the integral of min(u, x) dv over their
        part above y.
        """
        import numpy as np

        total = np.zeros((len(y), len(x)))
        start = np.array(self.corners)
        for (ax, ay), (bx, by) in zip(start, np.roll(start, -1, axis=0), strict=True):
            dx, dy = bx - ax, by - ay
            if dy == 0:
                continue
            with np.errstate(over="ignore"):  # of an edge that is almost level
                t = np.clip((y - ay) / dy, 0, 1)[:, None]  # where the edge passes y
            below = self._below(ax - x[None, :], dx, t)
            if dy < 0:
                below = self._below(ax - x[None, :], dx, np.ones_like(t)) - below
                t = 1 - t
            total += dy * (x[None, :] * t + below)
        return np.abs(total)

    @staticmethod
    def _below(a: Array, b: float, t: Array) -> Array:
        """The integral of min(a + b s, 0) over s from 0 to t."""
        import numpy as np

        first, last = np.minimum(a, 0), np.minimum(a + b * t, 0)
        # How long it is below 0. Of an edge that stays there the difference would cancel.
        crossed = np.abs(last - first) / abs(b) if b else 0.0
        length = np.where((a <= 0) & (a + b * t <= 0), t, np.minimum(crossed, t))
        return (first + last) / 2 * length

    def to_json(self) -> list[list[float]]:
        """Its shape in the JSON of a layout, see `stal.layout.Layout.from_json`."""
        return [list(corner) for corner in self.corners]


@dataclass(frozen=True)
class Painted:
    """Cells of a grid over the whole canvas.

    Attributes:
        height, width: of the grid in cells.
        runs: lengths of runs in reading order, in turn of cells that are not covered (0 if the
            first one is) and of cells that are.
    """

    height: int
    width: int
    runs: tuple[int, ...]

    @classmethod
    def from_cells(cls, cells: NDArray[np.bool_]) -> Painted:
        """Those that are true of a grid (height, width) bool over the whole canvas."""
        import numpy as np

        flat = np.concatenate(([False], cells.ravel()))
        changes = np.flatnonzero(flat[1:] != flat[:-1])
        ends = np.concatenate(([0], changes, [cells.size]))
        height, width = cells.shape
        return cls(height, width, tuple(np.diff(ends).tolist()))

    @property
    def cells(self) -> NDArray[np.bool_]:
        """The grid (height, width) bool."""
        import numpy as np

        values = np.arange(len(self.runs)) % 2 == 1
        return np.repeat(values, self.runs).reshape(self.height, self.width)

    @property
    def box(self) -> Box:
        """The smallest box around what is covered; at least one cell must be."""
        import numpy as np

        rows, columns = (np.flatnonzero(self.cells.any(axis)) for axis in (1, 0))
        return (
            float(columns[0] / self.width),
            float(rows[0] / self.height),
            float((columns[-1] + 1) / self.width),
            float((rows[-1] + 1) / self.height),
        )

    def area_before(self, x: Array, y: Array) -> Array:
        """G on the grid of x (columns) and y (rows): (rows, columns)."""
        import numpy as np

        corners = np.zeros((self.height + 1, self.width + 1))
        corners[1:, 1:] = self.cells.cumsum(0).cumsum(1)
        # Within a cell the area grows in proportion, so that interpolation is exact.
        for axis, (at, n) in enumerate(((y, self.height), (x, self.width))):
            cell = np.clip((at * n).astype(np.int64), 0, n - 1)
            part = (at * n - cell).reshape((-1, 1) if axis == 0 else (1, -1))
            low, high = (np.take(corners, cell + k, axis) for k in (0, 1))
            corners = low + part * (high - low)
        return corners / (self.height * self.width)

    def to_json(self) -> dict[str, Any]:
        """Its shape in the JSON of a layout, see `stal.layout.Layout.from_json`."""
        return {"height": self.height, "width": self.width, "runs": list(self.runs)}


Outline = Ellipse | Polygon | Painted


def cell_shares(outline: Outline, height: int, width: int) -> Array:
    """The share of each cell of a grid that an outline covers.

    Args:
        outline: in fractions of the canvas.
        height, width: size of the grid in cells, positive.

    Returns:
        (height, width) float64, in [0, 1].
    """
    import numpy as np

    x, y = np.arange(width + 1) / width, np.arange(height + 1) / height
    area = outline.area_before(x, y)
    cells = np.diff(np.diff(area, axis=0), axis=1) * (height * width)
    return np.clip(cells, 0.0, 1.0)


def check_polygon(corners: Sequence[Sequence[float]], where: str) -> Polygon:
    """A polygon of these corners.

    Args:
        corners: (x, y) in order around it, as fractions of the canvas.
        where: what the errors call them.

    Raises:
        ValueError: fewer than three corners, one outside the canvas, no area, or edges that cross.
    """
    if len(corners) < 3:
        raise ValueError(f"{where} must have at least 3 corners, got {len(corners)}")
    points = tuple((float(x), float(y)) for x, y in corners)
    for x, y in points:
        if not (0 <= x <= 1 and 0 <= y <= 1):
            raise ValueError(f"{where} must lie inside [0, 1], got the corner {[x, y]}")
    n = len(points)
    edges = [(points[k], points[(k + 1) % n]) for k in range(n)]
    for i in range(n):
        for j in range(i + 2, n):
            if (i, j) != (0, n - 1) and _cross(*edges[i], *edges[j]):
                raise ValueError(f"{where} must not cross itself, got edges {i} and {j} that do")
    doubled = sum(a[0] * b[1] - b[0] * a[1] for a, b in edges)
    if abs(doubled) < 1e-9:
        raise ValueError(f"{where} must have an area, got none")
    return Polygon(points)


_Point = tuple[float, float]


def _cross(a: _Point, b: _Point, c: _Point, d: _Point) -> bool:
    """Whether the open segments ab and cd have one point in common."""

    def side(p: _Point, q: _Point, r: _Point) -> float:
        return (q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0])

    return side(a, b, c) * side(a, b, d) < 0 and side(c, d, a) * side(c, d, b) < 0


class Covering(Protocol):
    """An object with a box, and what it covers of it; all of it if None."""

    @property
    def box(self) -> Box: ...
    @property
    def outline(self) -> Outline | None: ...


class HasObjects(Protocol):
    """What masks are of, such as a `stal.layout.Layout`."""

    @property
    def objects(self) -> Sequence[Covering]: ...


def masks(layout: HasObjects, height: int, width: int) -> Tensor:
    """The soft coverage M_i of each object on a grid.

        M[i, y, x] = area of (object i ∩ cell (y, x)) / area of a cell

    An object is its outline, or its box. The mean of M[i] is its area as a fraction of the canvas,
    exactly but for rounding. One whose coverage is too small for float32 still has one cell above
    0: no object vanishes. `hard_masks` are the same as true or false.

    Args:
        layout: boxes as fractions of the canvas.
        height, width: size of the grid in cells.

    Returns:
        (objects, height, width) float32 on the CPU, in [0, 1]; computed in float64.

    Raises:
        ValueError: height or width is not positive.
    """
    import torch

    for name, cells in (("height", height), ("width", width)):
        if cells < 1:
            raise ValueError(f"{name} must be positive, got {cells}")
    boxes = torch.tensor([o.box for o in layout.objects], dtype=torch.float64, device="cpu")
    boxes = boxes.reshape(-1, 4)

    def covered(low: Tensor, high: Tensor, cells: int) -> Tensor:
        start = torch.arange(cells, dtype=torch.float64, device="cpu")
        low, high = low[:, None] * cells, high[:, None] * cells
        return (torch.minimum(high, start + 1) - torch.maximum(low, start)).clamp(min=0)

    rows = covered(boxes[:, 1], boxes[:, 3], height)
    columns = covered(boxes[:, 0], boxes[:, 2], width)
    out = rows[:, :, None] * columns[:, None, :]
    for i, placed in enumerate(layout.objects):
        if placed.outline is not None:
            out[i] = torch.from_numpy(cell_shares(placed.outline, height, width))
    out = out.float()
    for i in (out.amax(dim=(1, 2)) == 0).nonzero().flatten().tolist():
        x0, y0, x1, y1 = layout.objects[i].box
        row, column = int((y0 + y1) / 2 * height), int((x0 + x1) / 2 * width)
        out[i, min(row, height - 1), min(column, width - 1)] = torch.finfo(torch.float32).tiny
    return out


def hard_masks(layout: HasObjects, height: int, width: int) -> Tensor:
    """The cells that each object covers by half or more, or else the one that it covers most.

    Args:
        layout: boxes as fractions of the canvas.
        height, width: size of the grid in cells.

    Returns:
        (objects, height, width) bool on the CPU; each object has at least one cell.

    Raises:
        ValueError: height or width is not positive.
    """
    soft = masks(layout, height, width)
    most = soft.flatten(1).amax(1)[:, None, None]
    return (soft >= 0.5) | ((most < 0.5) & (soft == most))
