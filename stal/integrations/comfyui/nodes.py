"""The three nodes: what each takes, gives and does; `classic` and `extension` tell ComfyUI."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from stal.budget import MOST_PROMPT_CHARS
from stal.integrations.comfyui.patch import regional
from stal.integrations.comfyui.regions import (
    Regions,
    boxes_of,
    layout_of_boxes,
    layout_of_masks,
    lines_of,
    regions_of,
)
from stal.integrations.comfyui.strengths import Strengths
from stal.layout import Layout, sketch
from stal.layout.predictor import predict
from stal.prompts import parse
from stal.settings import check_text
from stal.weights import MODES, RULES

CATEGORY = "stal"


@dataclass(frozen=True)
class Port:
    """An input or output of a node.

    Attributes:
        name: of the function's argument.
        kind: ComfyUI's name of what it is.
        optional: whether it may be left open.
        options: of its widget, as the classic nodes state them.
    """

    name: str
    kind: str
    optional: bool = False
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Node:
    """A node.

    Attributes:
        id, title, description: unique; as people see it.
        function: from the inputs by name to a tuple of the outputs.
    """

    id: str
    title: str
    description: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    function: Callable[..., tuple[Any, ...]]


def predict_layout(
    prompt: str, width: int, height: int, boxes: Any = None
) -> tuple[Layout, list[dict[str, Any]], Tensor]:
    """Boxes for the objects of a prompt, or those that are given.

    Returns:
        The layout, ComfyUI's bounding boxes of it, and a picture of it, (1, height, width, 3) in
        [0, 1].

    Raises:
        ValueError: the prompt is no text, or a box breaks its rule.
    """
    check_text("prompt", prompt)
    if len(prompt) > MOST_PROMPT_CHARS:
        raise ValueError(f"prompt must have at most {MOST_PROMPT_CHARS} characters")
    if boxes:
        layout = layout_of_boxes(boxes, prompt=prompt, width=width, height=height)
    else:
        layout = predict(parse(prompt), aspect=width / height)
    return layout, boxes_of(layout, width=width, height=height), _picture(layout)


def _picture(layout: Layout) -> Tensor:
    image = sketch(layout)
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.reshape(1, image.height, image.width, 3).float() / 255


def region_prompts(
    clip: Any,
    phrases: str = "",
    reference: str = "",
    width: int = 1024,
    height: int = 1024,
    layout: Layout | None = None,
    boxes: Any = None,
    masks: Tensor | None = None,
    earlier: tuple[Regions, ...] = (),
) -> tuple[tuple[Regions, ...]]:
    """What is said in the regions of a picture.

    Args:
        clip: ComfyUI's CLIP.
        phrases: one a line; of a layout or boxes "" for their own.
        reference: what the rule "guidance" moves away from.
        width, height: of the canvas that boxes lie in.
        layout, boxes, masks: where the regions are, one of the three.
        earlier: the regions of the pictures before this one in a batch.

    Raises:
        ValueError: none or several of the three, or one breaks its rule.
    """
    places = {"layout": layout, "boxes": boxes, "masks": masks}
    given = [name for name, place in places.items() if place is not None]
    if len(given) != 1:
        raise ValueError(
            f"layout, boxes or masks must be connected, one of them, got"
            f" {' and '.join(given) or 'none'}"
        )
    lines = lines_of(phrases)
    if masks is not None:
        layout, lines = layout_of_masks(masks, prompt="", phrases=lines), []
    elif layout is None:
        layout = layout_of_boxes(boxes, prompt="", width=width, height=height, phrases=lines)
        lines = []
    assert layout is not None
    return ((*earlier, regions_of(clip, layout, lines, reference)),)


def spatial_temporal_attention(
    model: Any,
    regions: tuple[Regions, ...],
    strength: float = 1.0,
    start: float = 0.0,
    stop: float = 1.0,
    mode: Any = "spatial-temporal",
    rule: Any = "guidance",
    weights: str = "",
) -> tuple[Any]:
    """The model with regions in its cross-attention, see `patch.regional` and `Strengths`."""
    return (regional(model, regions, Strengths(strength, start, stop, rule, mode, weights)),)


_PROMPT = Port("prompt", "STRING", options={"multiline": True, "default": ""})
_WIDTH, _HEIGHT = (
    Port(
        name,
        "INT",
        options={
            "default": 1024,
            "min": 16,
            "max": 16384,
            "step": 8,
            "tooltip": f"{name.capitalize()} of the canvas in pixels.",
        },
    )
    for name in ("width", "height")
)
# A socket also in a ComfyUI that has a widget for boxes.
_BOXES = Port("boxes", "BOUNDING_BOX", optional=True, options={"forceInput": True})


def _share(name: str, default: float, tooltip: str) -> Port:
    options = {"default": default, "min": 0.0, "max": 1.0, "step": 0.01, "tooltip": tooltip}
    return Port(name, "FLOAT", options=options)


def _choice(name: str, choices: tuple[str, ...], default: str, tooltip: str) -> Port:
    options = {"choices": list(choices), "default": default, "tooltip": tooltip}
    return Port(name, "COMBO", options=options)


NODES = (
    Node(
        "StalPredictLayout",
        "Predict layout",
        "Where the objects of a prompt go: predicted, or the boxes that are connected.",
        (_PROMPT, _WIDTH, _HEIGHT, _BOXES),
        (Port("layout", "STAL_LAYOUT"), Port("boxes", "BOUNDING_BOX"), Port("preview", "IMAGE")),
        predict_layout,
    ),
    Node(
        "StalRegionPrompts",
        "Region prompts",
        "What is said in which region of a picture.",
        (
            Port("clip", "CLIP"),
            Port(
                "phrases",
                "STRING",
                options={
                    "multiline": True,
                    "default": "",
                    "tooltip": "One a line. Empty: those of the layout or boxes.",
                },
            ),
            Port(
                "reference",
                "STRING",
                options={
                    "default": "",
                    "tooltip": "What regions are moved away from, such as 'an empty scene'.",
                },
            ),
            _WIDTH,
            _HEIGHT,
            Port("layout", "STAL_LAYOUT", optional=True),
            _BOXES,
            Port("masks", "MASK", optional=True),
            Port(
                "earlier",
                "STAL_REGIONS",
                optional=True,
                options={"tooltip": "Regions of the pictures before this one in a batch."},
            ),
        ),
        (Port("regions", "STAL_REGIONS"),),
        region_prompts,
    ),
    Node(
        "StalSpatialTemporalAttention",
        "Spatial-temporal attention",
        "The model, whose pixels attend to the phrases of their regions as well.",
        (
            Port("model", "MODEL"),
            Port("regions", "STAL_REGIONS"),
            Port(
                "strength",
                "FLOAT",
                options={
                    "default": 1.0,
                    "min": -10.0,
                    "max": 10.0,
                    "step": 0.05,
                    "tooltip": "Multiplies the weights; 0 is the model as it was.",
                },
            ),
            _share("start", 0.0, "The share of the steps from which regions act."),
            _share("stop", 1.0, "The share of the steps before which regions act."),
            _choice(
                "mode",
                tuple(mode for mode in MODES if mode != "plain"),
                "spatial-temporal",
                "Weights that fall over the steps, or stay.",
            ),
            _choice("rule", RULES, "guidance", "How prompts are blended."),
            Port(
                "weights",
                "STRING",
                options={
                    "default": "",
                    "tooltip": "Instead of the mode's: one number a region, 1.2, 0.8, or a list of"
                    " such for each step, [[1.2, 0.8], [1, 0.7]].",
                },
            ),
        ),
        (Port("model", "MODEL"),),
        spatial_temporal_attention,
    ),
)
