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

from stal import budget
from stal.checked_json import number, short, typed

# numpy and torch are imported where they are used: to read a layout of boxes needs none.
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

    def __post_init__(self) -> None:
        object.__setattr__(self, "box", check_box(self.box, "box"))

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

    def __post_init__(self) -> None:
        corners = tuple((number(x, "corner"), number(y, "corner")) for x, y in self.corners)
        object.__setattr__(self, "corners", corners)

    @property
    def box(self) -> Box:
        """The smallest box around it."""
        xs, ys = zip(*self.corners, strict=True)
        return min(xs), min(ys), max(xs), max(ys)

    def area_before(self, x: Array, y: Array) -> Array:
        """G on the grid of x (columns) and y (rows): (rows, columns).

        By Green's theorem it is the sum over the edges of the integral of min(u, x) dv over their
        part above y. y ascends.
        """
        import numpy as np

        total = np.zeros((len(y), len(x)))
        start = np.array(self.corners)
        for (ax, ay), (bx, by) in zip(start, np.roll(start, -1, axis=0), strict=True):
            dx, dy = bx - ax, by - ay
            if dy == 0:
                continue
            # Rows above the edge have nothing of it, and those below it have all alike.
            first = np.searchsorted(y, min(ay, by), "right")
            last = np.searchsorted(y, max(ay, by))
            rows = y[first : last + 1]
            if not len(rows):
                continue
            with np.errstate(over="ignore"):  # of an edge that is almost level
                t = np.clip((rows - ay) / dy, 0, 1)[:, None]  # where the edge passes y
            below = self._below(ax - x[None, :], dx, t)
            if dy < 0:
                below = self._below(ax - x[None, :], dx, np.ones_like(t)) - below
                t = 1 - t
            part = dy * (x[None, :] * t + below)
            total[first : last + 1] += part
            total[last + 1 :] += part[-1]
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

    Raises:
        ValueError: the runs are no lengths that add up to the cells, or more than
            `stal.budget` allows.
    """

    height: int
    width: int
    runs: tuple[int, ...]

    def __post_init__(self) -> None:
        height, width = (typed(getattr(self, name), int, name) for name in ("height", "width"))
        most = budget.MOST_MASK_SIDE
        if max(height, width) > most or height * width > budget.MOST_MASK_CELLS:
            raise ValueError(
                f"height and width must be at most {most}, and at most"
                f" {budget.MOST_MASK_CELLS} cells together, got {short(height)} and {short(width)}"
            )
        if len(self.runs) > budget.MOST_MASK_RUNS:
            raise ValueError(f"runs must be at most {budget.MOST_MASK_RUNS}, got {len(self.runs)}")
        runs = tuple(typed(n, int, "runs") for n in self.runs)
        if min(height, width) < 1 or min(runs, default=0) < 0 or sum(runs) != height * width:
            raise ValueError(
                f"runs must be lengths that add up to {height} x {width} cells,"
                f" got {short(sum(runs))}"
            )
        for name, value in (("height", height), ("width", width), ("runs", runs)):
            object.__setattr__(self, name, value)

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
        start, end = self._covered()
        first, last = start // self.width, (end - 1) // self.width
        # A run that goes on in the next row reaches both sides.
        whole = bool((first < last).any())
        left = 0 if whole else (start % self.width).min()
        right = self.width - 1 if whole else ((end - 1) % self.width).max()
        return (
            float(left / self.width),
            float(first.min() / self.height),
            float((right + 1) / self.width),
            float((last.max() + 1) / self.height),
        )

    def _covered(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where each run of covered cells begins and ends in reading order."""
        import numpy as np

        ends = np.cumsum(self.runs, dtype=np.int64)
        lengths = np.array(self.runs[1::2], dtype=np.int64)
        end = ends[1::2][lengths > 0]
        return end - lengths[lengths > 0], end

    def _counts(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Covered cells above rows (ascending, each once) and left of a column: (rows, width + 1).

        From the runs: however many cells there are, it takes memory for these rows alone.
        """
        import numpy as np

        start, end = self._covered()
        first, last = start // self.width, (end - 1) // self.width
        # From one of the rows to the next: how many more runs begin than end at each column. One
        # that goes on in the next row begins again at its left side; right of the last column
        # nothing is counted.
        steps = np.zeros((len(rows) + 1, self.width + 1), dtype=np.int64)
        np.add.at(steps, (np.searchsorted(rows, first, "right"), start - first * self.width), 1)
        np.add.at(steps, (np.searchsorted(rows, last, "right"), end - last * self.width), -1)
        going_on = np.zeros(self.height + 1, dtype=np.int64)
        np.add.at(going_on, first + 1, 1)
        np.add.at(going_on, last + 1, -1)
        at = np.searchsorted(rows, np.arange(self.height), "right")
        np.add.at(steps[:, 0], at, np.cumsum(going_on)[:-1])
        above = np.cumsum(steps[:-1, :-1], axis=0)
        cells = np.cumsum(np.cumsum(above, axis=1), axis=1)
        return np.concatenate((np.zeros_like(cells[:, :1]), cells), axis=1)

    def area_before(self, x: Array, y: Array) -> Array:
        """G on the grid of x (columns) and y (rows): (rows, columns)."""
        import numpy as np

        row, column = (
            np.clip((at * n).astype(np.int64), 0, n - 1)
            for at, n in ((y, self.height), (x, self.width))
        )
        needed, index = np.unique(np.concatenate((row, row + 1)), return_inverse=True)
        corners = self._counts(needed).astype(np.float64)
        # Within a cell the area grows in proportion, so that interpolation is exact.
        low, high = corners[index[: len(row)]], corners[index[len(row) :]]
        corners = low + (y * self.height - row)[:, None] * (high - low)
        low, high = corners[:, column], corners[:, column + 1]
        corners = low + (x * self.width - column)[None, :] * (high - low)
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
    if not 3 <= len(corners) <= budget.MOST_CORNERS:
        rule = "at least 3" if len(corners) < 3 else f"at most {budget.MOST_CORNERS}"
        raise ValueError(f"{where} must have {rule} corners, got {len(corners)}")
    polygon = Polygon(tuple((x, y) for x, y in corners))
    for x, y in polygon.corners:
        if not (0 <= x <= 1 and 0 <= y <= 1):
            raise ValueError(f"{where} must lie inside [0, 1], got the corner {[x, y]}")
    if crossing := _crossing(polygon):
        i, j = crossing
        raise ValueError(f"{where} must not cross itself, got edges {i} and {j} that do")
    points = polygon.corners
    edges = zip(points, (*points[1:], points[0]), strict=True)
    doubled = sum(a[0] * b[1] - b[0] * a[1] for a, b in edges)
    if abs(doubled) < 1e-9:
        raise ValueError(f"{where} must have an area, got none")
    return polygon


def _crossing(polygon: Polygon) -> tuple[int, int] | None:
    """The first two edges of which the open segments have one point in common."""
    import numpy as np

    a = np.array(polygon.corners)
    b = np.roll(a, -1, axis=0)
    low, high = np.minimum(a, b), np.maximum(a, b)
    n = len(a)

    def side(p: Array, q: Array, r: Array) -> Array:
        return (q[..., 0] - p[..., 0]) * (r[..., 1] - p[..., 1]) - (q[..., 1] - p[..., 1]) * (
            r[..., 0] - p[..., 0]
        )

    for i in range(n - 2):
        later = slice(i + 2, n - (i == 0))  # neighbours share a corner
        # Most edges are far from each other.
        near = (low[later] <= high[i]) & (high[later] >= low[i])
        j = np.flatnonzero(near[:, 0] & near[:, 1]) + i + 2
        if not len(j):
            continue
        p, q = a[i], b[i]
        crosses = (side(p, q, a[j]) * side(p, q, b[j]) < 0) & (
            side(a[j], b[j], p) * side(a[j], b[j], q) < 0
        )
        if crosses.any():
            return i, int(j[crosses.argmax()])
    return None


def check_box(box: Sequence[float], where: str) -> Box:
    """A box of these edges.

    Raises:
        ValueError: not four numbers, outside [0, 1], not finite, or empty.
    """
    try:
        edges = tuple(box)
    except TypeError:
        raise ValueError(f"{where} must be (x0, y0, x1, y1), got {short(box)}") from None
    if len(edges) != 4:
        raise ValueError(f"{where} must be (x0, y0, x1, y1), got {short(box)}")
    x0, y0, x1, y1 = (number(edge, where) for edge in edges)
    if not all(0.0 <= edge <= 1.0 for edge in (x0, y0, x1, y1)):  # NaN is outside
        pixels = max(x0, y0, x1, y1) >= 2
        divide = ": divide pixels by the picture's width and height" if pixels else ""
        raise ValueError(f"{where} must lie inside [0, 1], got {[x0, y0, x1, y1]}{divide}")
    if not (x0 < x1 and y0 < y1):
        raise ValueError(f"{where} must have x0 < x1 and y0 < y1, got {[x0, y0, x1, y1]}")
    return x0, y0, x1, y1


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

    height, width = typed(height, int, "height"), typed(width, int, "width")
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
