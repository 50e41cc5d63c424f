"""Pictures of layouts: boxes over a picture or on blank paper, and a picture beside another.

PIL is imported where it is used: reading a layout file needs none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from stal.checked_json import short, typed
from stal.layout.coverage import Ellipse, Painted, Polygon
from stal.layout.layout import Contour, Layout

if TYPE_CHECKING:
    from PIL.Image import Image

# Distinct on light and dark pictures and for colour-blind eyes (Okabe and Ito's set, reordered).
_COLOURS = ("#e69f00", "#0072b2", "#cc79a7", "#009e73", "#d55e00", "#56b4e9", "#f0e442")

# Of a phrase that are drawn where there is room: each try to shorten one measures all of it.
_LABEL_CHARS = 500


def draw(layout: Layout, image: Image, *, min_side: int = 256) -> Image:
    """Draws the outlines with their phrases on a copy of a picture.

    Args:
        layout: boxes as fractions of the canvas.
        image: the picture, of any mode and size.
        min_side: a picture whose shorter side is below this many pixels is enlarged by a whole
            factor, so that the phrases can be read; 1 keeps the size.

    Returns:
        A new RGB picture.
    """
    from PIL import Image as pil_image
    from PIL import ImageDraw, ImageFont

    _check(layout)
    min_side = typed(min_side, int, "min_side")
    shorter = min(image.size)
    factor = max(1, -(-min_side // shorter))
    out = image.convert("RGB").resize(
        (image.width * factor, image.height * factor), pil_image.Resampling.NEAREST
    )
    width, height = out.size
    shorter *= factor
    line = max(1, round(shorter / 128))
    font = ImageFont.load_default(size=max(10, round(shorter / 22)))
    pen = ImageDraw.Draw(out)
    corners = [
        (
            min(round(x0 * width), width - 1),
            min(round(y0 * height), height - 1),
            max(round(x1 * width) - 1, 0),
            max(round(y1 * height) - 1, 0),
        )
        for x0, y0, x1, y1 in (placed.box for placed in layout.objects)
    ]
    for index, (x0, y0, x1, y1) in enumerate(corners):
        x1, y1 = max(x0, x1), max(y0, y1)
        halo = (x0 - 1, y0 - 1, x1 + 1, y1 + 1)
        colour = _COLOURS[index % len(_COLOURS)]
        outline = layout.objects[index].outline
        if isinstance(outline, Polygon):
            points = [(x * width, y * height) for x, y in (*outline.corners, outline.corners[0])]
            pen.line(points, fill="black", width=line + 2, joint="curve")
            pen.line(points, fill=colour, width=line, joint="curve")
            continue
        if isinstance(outline, Painted):
            _trace_cells(out, outline, line, colour)
            continue
        trace = pen.ellipse if isinstance(outline, Ellipse) else pen.rectangle
        trace(halo, outline="black", width=line + 2)
        trace((x0, y0, x1, y1), outline=colour, width=line)
    labels: list[tuple[int, int, int, int]] = []
    for index, (placed, (x0, y0, _, _)) in enumerate(zip(layout.objects, corners, strict=True)):
        text = _label(placed.phrase, lambda text: font.getlength(text) + 2 * line <= width)
        _, top, _, bottom = font.getbbox("Ag|")
        label_width = min(width, math.ceil(font.getlength(text)) + 2 * line)
        label_height = math.ceil(bottom - top) + 2 * line
        x = max(0, min(x0, width - label_width))
        y = max(0, min(y0, height - label_height))
        # Below the labels that are in the way, if there is room.
        for other in sorted(labels, key=lambda box: box[1]):
            meets = (
                x < other[2]
                and other[0] < x + label_width
                and y < other[3]
                and (other[1] < y + label_height)
            )
            if meets and other[3] + label_height <= height:
                y = other[3]
        labels.append((x, y, x + label_width, y + label_height))
        colour = _COLOURS[index % len(_COLOURS)]
        pen.rectangle((x, y, x + label_width - 1, y + label_height - 1), fill=colour)
        pen.text((x + line, y + line - top), text, fill=_ink(colour), font=font)
    return out


def sketch(layout: Layout, *, side: int = 512, contours: Sequence[Sequence[Contour]] = ()) -> Image:
    """Draws a layout on blank paper: boxes, phrases, and an arrow a relation.

    An arrow points from the subject to the object of a relation, whose name it bears; red ones are
    `Layout.violated`.

    Args:
        layout: boxes as fractions of the canvas.
        side: the longer side in pixels.
        contours: of each object, ellipses in which its centre may be, drawn the stronger the
            likelier (`stal.layout.predictor.LayoutPredictor.contours`).

    Returns:
        A new RGB picture.
    """
    from PIL import Image as pil_image
    from PIL import ImageColor, ImageDraw, ImageFont

    _check(layout)
    side = typed(side, int, "side")
    width = max(1, round(side * min(1.0, layout.aspect)))
    height = max(1, round(side * min(1.0, 1 / layout.aspect)))
    paper = pil_image.new("RGB", (width, height), (250, 250, 250))
    for index, ellipses in enumerate(contours):
        shade = ImageColor.getrgb(_COLOURS[index % len(_COLOURS)])
        # Faint ones first.
        for share, x, y, rx, ry in sorted(ellipses):
            cloud = pil_image.new("L", (width, height))
            box = [(x - rx) * width, (y - ry) * height, (x + rx) * width, (y + ry) * height]
            ImageDraw.Draw(cloud).ellipse(box, fill=round(90 * share), outline=round(200 * share))
            paper.paste(shade, mask=cloud)
    out = draw(layout, paper, min_side=1)
    pen = ImageDraw.Draw(out)
    font = ImageFont.load_default(size=max(10, side // 32))
    violated = set(layout.violated)
    for relation in layout.relations:
        i, predicate, j = relation
        colour = "#d00000" if relation in violated else "#404040"
        ends = []
        for x0, y0, x1, y1 in (layout.objects[i].box, layout.objects[j].box):
            ends.append(((x0 + x1) / 2 * width, (y0 + y1) / 2 * height))
        (ax, ay), (bx, by) = ends
        pen.line((ax, ay, bx, by), fill=colour, width=2)
        length = math.hypot(bx - ax, by - ay)
        if length > 0:
            ux, uy = (bx - ax) / length * side / 40, (by - ay) / length * side / 40
            wings = ((bx - ux - uy / 2, by - uy + ux / 2), (bx - ux + uy / 2, by - uy - ux / 2))
            pen.polygon(((bx, by), *wings), fill=colour)
        middle = ((ax + bx) / 2, (ay + by) / 2)
        halo = (250, 250, 250)
        pen.text(middle, predicate, colour, font, "mb", stroke_width=2, stroke_fill=halo)
    return out


def _check(layout: object) -> None:
    if not isinstance(layout, Layout):
        raise ValueError(
            f"layout must be a Layout, such as regions.layouts[0], got {short(layout)}"
        )


def _trace_cells(picture: Image, painted: Painted, line: int, colour: str) -> None:
    """Draws the edge of painted cells on the picture, within them and with a halo, as of boxes."""
    from PIL import Image as pil_image
    from PIL import ImageChops, ImageFilter

    cells = pil_image.fromarray(painted.cells).convert("L")
    covered = cells.resize(picture.size, pil_image.Resampling.NEAREST)

    def grown(by: int) -> Image:
        kind = ImageFilter.MaxFilter if by > 0 else ImageFilter.MinFilter
        return covered.filter(kind(2 * abs(by) + 1))

    picture.paste("black", mask=ImageChops.subtract(grown(1), grown(-line - 1)))
    picture.paste(colour, mask=ImageChops.subtract(covered, grown(-line)))


def _label(phrase: str, fits: Callable[[str], bool]) -> str:
    """The phrase on one line, shortened until it fits."""
    text = " ".join(phrase.encode("utf-8", "replace").decode().split())[:_LABEL_CHARS]
    if fits(text):
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(text[:middle] + "…") else (low, middle - 1)
    return text[:low] + "…"


def _ink(colour: str) -> str:
    """Black or white, whichever is read better on the colour (luma of ITU-R BT.601)."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 128 else "white"


def compare(
    plain: Image, ours: Image, layout: Layout, *, prompt: str, attention: str, width: int = 384
) -> Image:
    """The layout, plain attention, and ours with the layout drawn over it: three titled panels.

    Args:
        plain, ours: pictures of one size.
        layout: where the objects were to go.
        prompt: written below.
        attention: what ours is called.
        width: of each panel in pixels.

    Returns:
        A new RGB picture.
    """
    from PIL import Image as pil_image
    from PIL import ImageDraw, ImageFont

    height = max(1, round(width * plain.height / plain.width))
    gap, title, line = width // 24, width // 9, width // 18
    font = ImageFont.load_default(size=line)
    plain, ours = (
        image.convert("RGB").resize((width, height), pil_image.Resampling.BICUBIC)
        for image in (plain, ours)
    )
    blank = pil_image.new("RGB", (width, height), (250, 250, 250))
    panels = {
        "layout": draw(layout, blank, min_side=1),
        "plain attention": plain,
        f"{attention} attention": draw(layout, ours, min_side=1),
    }
    total = gap + len(panels) * (width + gap)
    lines = _wrap(prompt, lambda text: font.getlength(text) <= total - 2 * gap)
    canvas = pil_image.new("RGB", (total, title + height + 2 * gap + len(lines) * line), "white")
    pen = ImageDraw.Draw(canvas)
    for i, (name, panel) in enumerate(panels.items()):
        left = gap + i * (width + gap)
        pen.text((left + width / 2, title / 2), name, fill="black", font=font, anchor="mm")
        canvas.paste(panel, (left, title))
        pen.rectangle((left - 1, title - 1, left + width, title + height), outline=(200, 200, 200))
    for i, text in enumerate(lines):
        middle = (total / 2, title + height + gap + (i + 0.5) * line)
        pen.text(middle, text, fill="black", font=font, anchor="mm")
    return canvas


def _wrap(text: str, fits: Callable[[str], bool]) -> list[str]:
    """The text in lines that fit, but for single words that do not."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if fits(longer):
            lines[-1] = longer
        else:
            lines.append(word)
    return [line for line in lines if line]
