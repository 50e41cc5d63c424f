"""The boxes in a workflow of ComfyUI, {"6": {"class_type": str, "inputs": {...}}, ...}.

Read are the node Create Bounding Boxes, and Conditioning (Set Area), the same with Percentage, and
GLIGEN Textbox Apply with the words that they are for: an area's are those of the text node that it
leads back to. The canvas is the one of the empty latents. An area of the negative prompt alone is
left out with a warning.

This is the format that "Export (API)" writes, in which an input is a value or a link, [node,
output]. Source: comfyanonymous/ComfyUI, nodes.py and comfy_extras/nodes_bounding_boxes.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from stal import budget
from stal.caller import warn
from stal.checked_json import loads, number, short, shown
from stal.layout.answers import Canvas, Found
from stal.layout.comfyui import box_in_pixels, fractions_of, named_canvas, one_canvas, read_comfyui
from stal.layout.layout import check_phrase

_EDITOR = "CreateBoundingBoxes"
_PERCENTAGE = "ConditioningSetAreaPercentage"
_AREAS = ("ConditioningSetArea", _PERCENTAGE, "GLIGENTextBoxApply")
_TEXTS = ("text", "text_g", "prompt", "clip_l", "t5xxl", "value", "string")
_SIDES = ("x", "y", "width", "height")
# Nodes between an area and its words. Each changes a prompt in some way, and few are used at once.
_MOST_NODES = 100


@dataclass(frozen=True)
class _Node:
    kind: str
    inputs: Mapping[str, Any]


def is_workflow(data: Any) -> bool:
    """Whether JSON is a workflow, in the API format or in the one of the page."""
    return _is_page(data) or bool(_nodes(data))


def read_workflow(data: Any, *, canvas: Canvas | None) -> tuple[Found, float | None]:
    """What a workflow holds.

    Args:
        data: the JSON, see `is_workflow`.
        canvas: (width, height) in pixels, for workflows that do not name their own.

    Returns:
        Phrases with their boxes, and the aspect (width / height) where a canvas is known.

    Raises:
        ValueError: no box, several layouts, an area whose words are not found, or as
            `stal.layout.comfyui.read_comfyui`; the message names the node.
    """
    if _is_page(data):
        raise ValueError(
            "layout must be a workflow in the API format, got the format of the page: save it with"
            ' "Export (API)"'
        )
    nodes = _nodes(data)
    editors = [key for key, node in nodes.items() if node.kind == _EDITOR]
    areas = [key for key, node in nodes.items() if node.kind in _AREAS]
    if len(editors) + bool(areas) != 1:
        got = f"{len(editors)} nodes {_EDITOR} and {len(areas)} with an area"
        raise ValueError(f"workflow must have one layout, got {got}")
    if editors:
        return _read_editor(nodes[editors[0]], canvas, f"node {shown(editors[0])}.")
    if len(areas) > budget.MOST_OBJECTS:
        raise ValueError(f"areas must be at most {budget.MOST_OBJECTS}, got {len(areas)}")
    negative = _before(nodes, "negative") - _before(nodes, "positive")
    wanted = [key for key in areas if key not in negative]
    if len(wanted) < len(areas):
        left = ", ".join(shown(key) for key in areas if key in negative)
        warn(f"the layout leaves out what is of the negative prompt: node {left}")
    if not wanted:
        raise ValueError("workflow must have an area of the positive prompt, got none")
    canvas = one_canvas(_latents(nodes), canvas)
    found = []
    for key in wanted:
        node, where = nodes[key], f"node {shown(key)}"
        own = node.inputs.get("text") if "text" in node.inputs else [key, 0]
        phrase = own if isinstance(own, str) else _text(nodes, own, where)
        found.append((check_phrase(" ".join(phrase.split()), where), _area(node, canvas, where)))
    return found, None if canvas is None else canvas[0] / canvas[1]


def _is_page(data: Any) -> bool:
    return isinstance(data, Mapping) and all(
        isinstance(data.get(key), list | tuple) for key in ("nodes", "links")
    )


def _nodes(data: Any) -> dict[str, _Node]:
    """The nodes of a workflow, which may lie under "prompt" as a server is sent it."""
    found: dict[str, _Node] = {}
    for part in (data, data.get("prompt") if isinstance(data, Mapping) else None):
        for key, node in part.items() if isinstance(part, Mapping) and not found else ():
            if isinstance(node, Mapping) and isinstance(node.get("inputs"), Mapping):
                kind = node.get("class_type")
                found |= {str(key): _Node(kind, node["inputs"])} if isinstance(kind, str) else {}
    return found


def _read_editor(node: _Node, canvas: Canvas | None, where: str) -> tuple[Found, float | None]:
    inputs = dict(node.inputs)
    if isinstance(inputs.get("bboxes"), str):
        try:
            inputs["bboxes"] = loads(inputs["bboxes"])
        except ValueError as error:
            raise ValueError(f"{where}bboxes must be JSON, got {error}") from None
    if not inputs.get("editor_state") and _is_link(inputs.get("bboxes")):
        raise ValueError(f"{where}bboxes must be boxes, got those of another node: save its output")
    return read_comfyui(inputs, canvas=canvas, where=where)


def _area(node: _Node, canvas: Canvas | None, where: str) -> Any:
    for key in _SIDES:
        if _is_link(node.inputs.get(key)):
            raise ValueError(f"{where}.{key} must be a number, got that of another node")
    if node.kind != _PERCENTAGE:
        return box_in_pixels({key: node.inputs.get(key) for key in _SIDES}, canvas, where)
    corner = [number(node.inputs.get(key), f"{where}.{key}") for key in _SIDES]
    return fractions_of(corner, where)


def _latents(nodes: Mapping[str, _Node]) -> Canvas | None:
    """The size of the empty latents, if there are any and all are alike."""
    sizes = {
        named_canvas(node.inputs)
        for node in nodes.values()
        if node.kind.startswith("Empty") and "Latent" in node.kind
    }
    return sizes.pop() if len(sizes) == 1 else None


def _is_link(value: Any) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, list | tuple) and len(value) == 2


def _text(nodes: Mapping[str, _Node], link: Any, where: str) -> str:
    """The words of the node that a link leads back to."""
    for _ in range(_MOST_NODES):
        node = nodes.get(str(link[0])) if _is_link(link) else None
        if node is None:
            break
        texts = [node.inputs.get(key) for key in _TEXTS]
        said = next((text for text in texts if isinstance(text, str) and text.strip()), None)
        if said is not None:
            return said
        link = node.inputs.get("conditioning", next(filter(_is_link, texts), None))
    raise ValueError(f"{where} must lead back to a text, got {short(link)}")


def _before(nodes: Mapping[str, _Node], name: str) -> set[str]:
    """The nodes that lead to an input of this name, "positive" or "negative"."""
    waiting = [node.inputs.get(name) for node in nodes.values()]
    seen: set[tuple[str, bool]] = set()
    while waiting:
        link = waiting.pop()
        if not _is_link(link) or str(link[0]) not in nodes:
            continue
        key, inputs = str(link[0]), nodes[str(link[0])].inputs
        # A node that has both prompts hands them on one after the other.
        both = "positive" in inputs and "negative" in inputs
        second = both and link[1] == 1
        if (key, second) in seen:
            continue
        seen.add((key, second))
        other = ("positive" if second else "negative") if both else None
        waiting += [value for name, value in inputs.items() if name != other]
    return {key for key, _ in seen}
