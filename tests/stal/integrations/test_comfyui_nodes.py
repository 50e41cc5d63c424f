"""The nodes: found by ComfyUI's own loader, run by its own executor, and what they refuse."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from stal.integrations.comfyui.classic import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from stal.integrations.comfyui.install import ENTRY, install
from stal.integrations.comfyui.nodes import (
    NODES,
    predict_layout,
    region_prompts,
    spatial_temporal_attention,
)
from tests.stal.integrations import comfy_models as tiny

pytestmark = pytest.mark.xdist_group("comfyui")

WORKFLOWS = Path(__file__).parents[3] / "examples" / "comfyui"
PROMPT = "a red cat to the left of a blue dog"


def test_predicted_boxes_are_comfyuis_and_read_again() -> None:
    layout, boxes, preview = predict_layout(PROMPT, 1024, 768)
    assert [box["label"] for box in boxes] == ["a red cat", "a blue dog"]
    assert all(0 <= box["x"] < box["x"] + box["width"] <= 1024 for box in boxes)
    assert all(0 <= box["y"] < box["y"] + box["height"] <= 768 for box in boxes)
    assert layout.aspect == 1024 / 768
    assert preview.shape == (1, 384, 512, 3)
    assert 0 <= preview.min() < preview.max() <= 1
    _, again, _ = predict_layout(PROMPT, 1024, 768, boxes)
    assert [{**box, "score": 1} for box in again] == [{**box, "score": 1} for box in boxes]


# What the node Create Bounding Boxes of a later ComfyUI hands on: a list of frames.
CANVAS = [
    [
        {"x": 64, "y": 100, "width": 300, "height": 400, "metadata": {"type": "obj", "text": "",
         "desc": "a red cat", "palette": ["#ff0000"]}},
        {"x": 500, "y": 600, "width": 300, "height": 100, "metadata": {"type": "text",
         "text": "STOP", "desc": "a sign", "palette": []}},
    ]
]  # fmt: skip


def test_boxes_of_the_canvas_are_read() -> None:
    layout, _, _ = predict_layout("a street", 1000, 800, CANVAS)
    assert layout.objects[0].box == (0.064, 0.125, 0.364, 0.625)
    assert layout.objects[0].phrase == "a red cat"
    assert "STOP" in layout.objects[1].phrase
    (regions,) = region_prompts(tiny.Clip(), "a cat\na sign", boxes=CANVAS, width=1000, height=800)
    assert [placed.phrase for placed in regions[0].layout.objects] == ["a cat", "a sign"]
    one = CANVAS[0][0]
    (regions,) = region_prompts(tiny.Clip(), boxes=one, width=1000, height=800)
    assert len(regions[0].local) == 1


def test_masks_are_regions_of_their_own_shape() -> None:
    masks = torch.zeros(2, 32, 48)
    masks[0, :16], masks[1, 16:, 24:] = 1, 1
    ((regions,),) = region_prompts(tiny.Clip(), "the sky\na dog", masks=masks)
    assert regions.layout.aspect == 1.5
    assert regions.layout.objects[1].box == (0.5, 0.5, 1, 1)


def test_equal_texts_are_encoded_once() -> None:
    texts = []

    class Counting(tiny.Clip):
        def tokenize(self, text: str) -> str:
            texts.append(text)
            return text

    boxes = [{**box, "label": "a cat"} for box in tiny.BOXES]
    (regions,) = region_prompts(Counting(), boxes=boxes, width=120, height=120)
    assert texts == ["a cat", ""]
    assert regions[0].local[0] is regions[0].local[1]


TWO = torch.ones(2, 8, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "layout, boxes or masks must be connected, one of them, got none"),
        ({"boxes": tiny.BOXES, "masks": TWO}, "got boxes and masks"),
        ({"masks": TWO, "phrases": "one"}, "phrases must be one a line for each of the 2 masks"),
        ({"masks": TWO, "phrases": "one\n\nthree"}, "got an empty line 2"),
        ({"masks": 0 * TWO, "phrases": "a\nb"}, "must cover a cell"),
        ({"boxes": tiny.BOXES, "phrases": "one"}, "for each of the 2 boxes"),
        ({"boxes": [{**tiny.BOXES[0], "label": " "}]}, "must say what is in it"),
        ({"boxes": [{**tiny.BOXES[0], "width": 2000}]}, r"boxes\[0\] must lie in the canvas"),
        ({"boxes": tiny.BOXES * 150}, "layout must have at most 255 objects, got 300"),
        ({"layout": predict_layout("it rains", 64, 64)[0]}, "layout must have an object"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_bad_regions_are_refused(arguments: dict[str, Any], message: str) -> None:
    given = {"width": 120, "height": 120, **arguments}
    with pytest.raises(ValueError, match=message):
        region_prompts(tiny.Clip(), **given)


def test_a_clip_with_a_schedule_is_refused() -> None:
    class Scheduled(tiny.Clip):
        def encode_from_tokens_scheduled(self, tokens: str) -> Any:
            return super().encode_from_tokens_scheduled(tokens) * 2

    with pytest.raises(ValueError, match="clip must encode a text once"):
        tiny.regions(clip=Scheduled())


def test_classic_nodes_state_what_their_functions_take() -> None:
    assert list(NODE_CLASS_MAPPINGS) == list(NODE_DISPLAY_NAME_MAPPINGS) == [n.id for n in NODES]
    made: Any = NODE_CLASS_MAPPINGS["StalPredictLayout"]
    ports = made.INPUT_TYPES()
    assert list(ports["required"]) == ["prompt", "width", "height"]
    assert list(ports["optional"]) == ["boxes"]
    _, boxes, _ = getattr(made(), made.FUNCTION)(prompt=PROMPT, width=64, height=64)
    assert len(boxes) == 2


@pytest.fixture(scope="session")
def tree(comfyui: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real folder of ComfyUI but for its custom_nodes, which is another one, with our nodes."""
    folder = tmp_path_factory.mktemp("ComfyUI")
    for each in comfyui.iterdir():
        if each.name != "custom_nodes":
            (folder / each.name).symlink_to(each)
    (folder / "custom_nodes").mkdir()
    install(folder)
    return folder


@pytest.fixture(scope="session")
def loaded(tree: Path) -> Any:
    """ComfyUI's module `nodes` after its own loader has found ours and the masks'."""
    import nodes

    for path in (tree / "custom_nodes" / "stal", tree / "comfy_extras" / "nodes_mask.py"):
        assert asyncio.run(nodes.load_custom_node(str(path)))
    return nodes


def test_comfyuis_loader_finds_the_nodes_in_its_new_schema(loaded: Any) -> None:
    from comfy_api.latest import io

    for node in NODES:
        found = loaded.NODE_CLASS_MAPPINGS[node.id]
        assert issubclass(found, io.ComfyNode)
        assert loaded.NODE_DISPLAY_NAME_MAPPINGS[node.id] == node.title
        classic: Any = NODE_CLASS_MAPPINGS[node.id]
        theirs, ours = found.INPUT_TYPES(), classic.INPUT_TYPES()
        for part in ("required", "optional"):
            assert list(theirs.get(part, {})) == list(ours[part])
        if "boxes" in ours["optional"]:
            assert theirs["optional"]["boxes"][1]["forceInput"] is True
        assert tuple(found.RETURN_TYPES) == classic.RETURN_TYPES


def test_a_comfyui_without_the_new_schema_gets_classic_nodes() -> None:
    """In a fresh interpreter, in which there is no ComfyUI at all."""
    code = (
        f"import sys; sys.modules['comfy_api'] = None; found = {{}}; exec({ENTRY!r}, found);"
        "print(*found['NODE_CLASS_MAPPINGS'])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path[1:])}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.split() == [node.id for node in NODES]


class Vae:
    """Pixels that are the latents'."""

    def decode(self, samples: torch.Tensor) -> torch.Tensor:
        pixels = torch.nn.functional.interpolate(samples[:, :3], scale_factor=8.0)
        return pixels.movedim(1, -1).sigmoid()


class Server:
    """What ComfyUI's executor asks of its web server."""

    client_id = None
    last_node_id = None
    last_prompt_id = None

    def send_sync(self, *arguments: object) -> None:
        pass


@pytest.mark.parametrize("name", ["layout", "hires_fix", "masks"])
def test_workflows_run_in_comfyuis_executor(
    name: str, loaded: Any, models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import execution
    import folder_paths

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path / "temp"))

    class Tiny:
        """In the place of the checkpoint's loader."""

        RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL", "CLIP", "VAE"), "load", "tests"

        @classmethod
        def INPUT_TYPES(cls) -> dict[str, Any]:
            return {"required": {"ckpt_name": ("STRING", {})}}

        def load(self, ckpt_name: str) -> tuple[Any, ...]:
            return models("sd15"), tiny.Clip(), Vae()

    monkeypatch.setitem(loaded.NODE_CLASS_MAPPINGS, "CheckpointLoaderSimple", Tiny)
    workflow = json.loads((WORKFLOWS / f"{name}.json").read_text())
    for node in workflow.values():
        inputs = node["inputs"]
        for side in ("width", "height", "x", "y"):
            if isinstance(inputs.get(side), int):
                inputs[side] //= 8
        if "steps" in inputs:
            inputs["steps"] = 2
    valid, error, outputs, wrong = asyncio.run(execution.validate_prompt("id", workflow, None))
    assert valid, (error, wrong)
    executor = execution.PromptExecutor(Server(), cache_args={"lru": 0, "ram": 0})
    executor.execute(workflow, "id", {}, outputs)
    assert executor.success, executor.status_messages[-1]
    pictures = list(tmp_path.glob("stal*.png"))
    assert len(pictures) == 1


def test_an_error_in_a_node_says_what_to_do(models: Any) -> None:
    model, regions = models("sd15"), tiny.regions()
    with pytest.raises(ValueError, match="start and stop must be shares"):
        spatial_temporal_attention(model, regions, start=0.9, stop=0.1)
    with pytest.raises(ValueError, match=r"weights must be \(steps, objects\)"):
        tiny.sample(tiny.regional(model, regions, weights="1, 2, 3"), torch.zeros(1, 4, 8, 8))
