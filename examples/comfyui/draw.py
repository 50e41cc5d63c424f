"""Draws a workflow of ComfyUI in its API format: nodes in columns, from left to right.

python examples/comfyui/draw.py examples/comfyui/layout.json docs/comfyui.png
"""

import json
import sys
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

_BOX, _GAP, _LINE, _MARGIN = 300, 90, 22, 20
_OURS = "Stal"


def _columns(graph: dict[str, Any]) -> list[list[str]]:
    """The nodes by how many lead to them at most."""
    depth: dict[str, int] = {}

    def find(name: str) -> int:
        if name not in depth:
            before = [v[0] for v in graph[name]["inputs"].values() if isinstance(v, list)]
            depth[name] = 1 + max(map(find, before), default=-1)
        return depth[name]

    columns: list[list[str]] = [[] for _ in range(1 + max(map(find, graph)))]
    for name in graph:
        columns[depth[name]].append(name)
    return columns


def _lines(node: dict[str, Any]) -> list[str]:
    """A node's inputs: those that are connected have no value."""
    return [
        name if isinstance(value, list) else f"{name}: {' / '.join(str(value).splitlines())}"[:36]
        for name, value in node["inputs"].items()
    ]


def draw(graph: dict[str, Any]) -> Image.Image:
    """A picture of the workflow."""
    columns = _columns(graph)
    heights = {name: _LINE * (2 + len(node["inputs"])) for name, node in graph.items()}
    tallest = max(sum(heights[n] + _MARGIN for n in column) for column in columns)
    size = (len(columns) * (_BOX + _GAP) - _GAP + 2 * _MARGIN, tallest + 2 * _MARGIN)
    image = Image.new("RGB", size, "#f7f7f7")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(size=15)
    corner: dict[str, tuple[int, int]] = {}
    for index, column in enumerate(columns):
        y = _MARGIN + (tallest - sum(heights[n] + _MARGIN for n in column)) // 2
        for name in column:
            corner[name] = _MARGIN + index * (_BOX + _GAP), y
            y += heights[name] + _MARGIN
    for name, node in graph.items():
        for index, value in enumerate(node["inputs"].values()):
            if isinstance(value, list):
                (x0, y0), (x1, y1) = corner[value[0]], corner[name]
                start = (x0 + _BOX, y0 + _LINE // 2 + 3 * value[1])
                end = (x1, y1 + _LINE * (index + 1) + _LINE // 2 + 6)
                bend = x1 - _GAP // 3 - 6 * index
                pen.line([start, (bend, start[1]), (bend, end[1]), end], fill="#8a8a8a", width=2)
    for name, node in graph.items():
        x, y = corner[name]
        ours = node["class_type"].startswith(_OURS)
        pen.rectangle((x, y, x + _BOX, y + heights[name]), fill="white", outline="#404040")
        title = (x, y, x + _BOX, y + _LINE)
        pen.rectangle(title, fill="#0072b2" if ours else "#606060", outline="#404040")
        pen.text((x + 8, y + 2), node["class_type"], fill="white", font=font)
        for index, line in enumerate(_lines(node)):
            pen.text((x + 8, y + _LINE * (index + 1) + 6), line, fill="black", font=font)
    return image


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    draw(json.loads(source.read_text(encoding="utf-8"))).save(target, optimize=True)
