"""`stal generate`: a picture, or several, of one prompt. Heavy imports happen late."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stal import picture
from stal.cli.options import (
    ClipOption,
    DeviceOption,
    DType,
    ModelOption,
    QuietOption,
    SamplerOption,
    StepsOption,
    outputs,
    torch_dtype,
)
from stal.files import write_atomic
from stal.layout import render

if TYPE_CHECKING:
    from stal.drawing import Drawing, Result


class AttentionMode(str, Enum):
    plain = "plain"
    spatial = "spatial"
    spatial_temporal = "spatial-temporal"


class RuleName(str, Enum):
    guidance = "guidance"
    convex = "convex"


class Optimize(str, Enum):
    none = "none"
    online = "online"
    trajectory = "trajectory"


# Options that take more than a line.
_JsonFile = Annotated[
    Path | None, typer.Option("--json", help="Also write the settings to this file.")
]
_Compare = Annotated[
    bool, typer.Option("--compare", help="Plain attention beside ours, with the layout.")
]
_Source = Annotated[
    Path | None,
    typer.Option("--from", help="Draw again as this PNG says; other options override."),
]
_Reference = Annotated[
    str | None, typer.Option(help="'unconditional', or a prompt to move away from.")
]
_Background = Annotated[
    float | None, typer.Option(help="Pull of the background to the reference prompt.")
]
_Weights = Annotated[
    str | None,
    typer.Option(help="Numbers like 1,0.5, one an object, or a file: weights, or a schedule."),
]
_Resample = Annotated[
    bool, typer.Option("--resample", help="Stretch a file's weights over other --steps.")
]
_Optimize = Annotated[
    Optimize, typer.Option(help="Adapt the weights by CLIP: while drawing, or over epochs.")
]
_RecomputeBlocks = Annotated[
    bool, typer.Option("--recompute-blocks", help="--optimize in less memory and more time.")
]
_Layout = Annotated[
    Path | None,
    typer.Option(help="Layout to use: ours, painted masks, LayoutGPT's or LMD's format."),
]
_Canvas = Annotated[
    str | None, typer.Option(help="Pixels of LayoutGPT's or LMD's canvas. [64x64, 512x512]")
]


def generate(
    prompt: Annotated[str | None, typer.Argument(help="What to draw.")] = None,
    output: Annotated[Path, typer.Option(help="PNG file to write.")] = Path("stal.png"),
    json_file: _JsonFile = None,
    compare: _Compare = False,
    source: _Source = None,
    model: ModelOption = None,
    attention: Annotated[AttentionMode | None, typer.Option(help="[spatial-temporal]")] = None,
    rule: Annotated[RuleName | None, typer.Option(help="How weights combine. [guidance]")] = None,
    reference: _Reference = None,
    background: _Background = None,
    weights: _Weights = None,
    resample: _Resample = False,
    optimize: _Optimize = Optimize.none,
    epochs: Annotated[int, typer.Option(min=1, help="Drawings of --optimize trajectory.")] = 3,
    lr: Annotated[float, typer.Option(help="Adam's, of --optimize trajectory.")] = 0.1,
    recompute_blocks: _RecomputeBlocks = False,
    clip: ClipOption = None,
    layout: _Layout = None,
    canvas: _Canvas = None,
    seed: Annotated[int | None, typer.Option(help="Image i is drawn from seed + i. [0]")] = None,
    num_images: Annotated[int | None, typer.Option(min=1, help="[1]")] = None,
    negative_prompt: str | None = None,
    sampler: SamplerOption = None,
    eta: Annotated[float | None, typer.Option(help="Fresh noise of ddim, 0 to 1. [0]")] = None,
    steps: StepsOption = None,
    guidance_scale: float | None = None,
    height: Annotated[int | None, typer.Option(help="In pixels.")] = None,
    width: Annotated[int | None, typer.Option(help="In pixels.")] = None,
    dtype: Annotated[DType | None, typer.Option(help="[float32]")] = None,
    device: DeviceOption = "cpu",
    quiet: QuietOption = False,
) -> None:
    """Draw a picture of PROMPT."""
    from stal.layout.formats import read_layout
    from stal.prompts import article, noun_of

    if prompt is None and source is None:
        raise typer.BadParameter("give one, or a picture with --from", param_hint="PROMPT")
    record = {} if source is None else _read_settings(source)
    given = {
        "prompt": prompt,
        "model": model,
        "attention": attention and attention.value,
        "rule": rule and rule.value,
        "reference": reference,
        "background": background,
        "negative_prompt": negative_prompt,
        "sampler": sampler,
        "eta": eta,
        "steps": steps,
        "guidance_scale": guidance_scale,
        "height": height,
        "width": width,
        "num_images": num_images,
        "dtype": dtype and dtype.value,
        "seeds": None if seed is None else [seed],
        "layout": None
        if layout is None
        else read_layout(layout, noun_of=noun_of, article=article, canvas=_canvas_size(canvas)),
        "weights": None if weights is None else _read_weights(weights, resample),
    }
    wanted = _overridden(record, given)
    search = None
    if optimize != Optimize.none:
        search = _Search(optimize, epochs, lr, clip, recompute_blocks)
    _check_wanted(wanted, compare=compare, search=search, source=source)
    pictures, _ = outputs(output, json_file, pictures=wanted.get("num_images", 1))
    _draw(wanted, pictures, json_file, compare=compare, search=search, device=device, quiet=quiet)


@dataclass(frozen=True)
class _Search:
    """How CLIP is to choose the weights. clip: its folder; None for the model's own."""

    mode: Optimize
    epochs: int
    lr: float
    clip: Path | None
    recompute_blocks: bool


def _read_settings(source: Path) -> dict[str, Any]:
    """The settings of a picture, its layout as one."""
    from stal.layout import Layout

    record = picture.read_record(source)
    if "layout" in record:
        record["layout"] = Layout.from_json(json.dumps(record["layout"]))
    return record


# Settings that the default weights follow from, and the objects that there is one for each.
_LEAD_TO_WEIGHTS = ("prompt", "layout", "model", "attention", "rule", "reference", "steps")


def _overridden(record: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The settings of a picture where no other ones are given (not None).

    What the picture's other settings led to is no longer meant when they change.
    """
    given = {name: value for name, value in given.items() if value is not None}
    stale = set()
    if "prompt" in given:
        stale.add("layout")
    if not given.keys().isdisjoint(_LEAD_TO_WEIGHTS):
        stale.add("weights")
    if not given.keys().isdisjoint(("model", "rule", "reference")):
        stale.add("background")
    return {name: value for name, value in record.items() if name not in stale} | given


def _check_wanted(
    wanted: dict[str, Any], *, compare: bool, search: _Search | None, source: Path | None
) -> None:
    """Raises ValueError for what cannot be drawn, before anything slow begins."""
    if not wanted["prompt"].strip():
        raise ValueError("prompt must not be empty, e.g. 'a red circle above a blue ring'")
    if compare and wanted.get("attention") == "plain":
        raise ValueError("attention must not be plain with --compare, which draws that too")
    if search is not None and wanted.get("attention") == "plain":
        raise ValueError("attention must not be plain with --optimize: it has no weights")
    count = wanted.get("num_images", 1)
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"num_images must be a positive integer, got {count!r} in {source}")


def _read_weights(text: str, resample: bool) -> list[float] | Callable[[int, int], Any]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        if not Path(text).is_file():
            rule = "be numbers like 1,0.5 or an existing file"
            raise ValueError(f"weights must {rule}, got {text!r}") from None
    from stal.weights.files import load_weights

    return load_weights(text, resample=resample)


def _canvas_size(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        width, height = text.lower().split("x")
        return float(width), float(height)
    except ValueError:
        raise ValueError(f"canvas must be like 512x512, got {text!r}") from None


def _draw(
    wanted: dict[str, Any],
    pictures: list[Path],
    json_file: Path | None,
    *,
    compare: bool,
    search: _Search | None,
    device: str,
    quiet: bool,
) -> None:
    """Draws what the settings of a result say, and writes the files."""
    from dataclasses import fields, replace

    from tqdm import tqdm

    from stal.model.model import enough_memory
    from stal.pipeline import Pipeline
    from stal.settings import Settings

    settings = Settings(**{f.name: wanted[f.name] for f in fields(Settings) if f.name in wanted})
    seeds = wanted.get("seeds", [0])
    pipe = Pipeline.from_pretrained(
        str(wanted["model"]) if wanted.get("model") else None,
        dtype=torch_dtype(DType(wanted.get("dtype", "float32"))),
        device=device,
    )

    def draw(settings: Settings, weights: Any, search: _Search | None = None) -> Result:
        with enough_memory(device, "draw a smaller picture, or fewer at once"):
            drawing = pipe.prepare(
                [wanted["prompt"]],
                settings,
                layouts=[wanted.get("layout")],
                weights=[weights],
                # One seed stands for those of all images.
                seed=seeds[0] if isinstance(seeds, list) and len(seeds) == 1 else seeds,
            )
            if search is not None:
                return _optimized(drawing, search, device=device, quiet=quiet)
            steps = drawing.schedule.steps
            with tqdm(total=steps, desc=settings.attention, disable=quiet, leave=False) as bar:
                latents = drawing.sample(callback=lambda step, x, denoised: bar.update())
            return drawing.results(latents)[0]

    result = draw(settings, wanted.get("weights"), search)
    images = result.images
    if compare:
        plain = draw(replace(settings, attention="plain"), None)
        images = [
            render.compare(
                one,
                two,
                result.layout,
                prompt=wanted["prompt"],
                attention=settings.attention,
            )
            for one, two in zip(plain.images, images, strict=True)
        ]
    for image, path, seed in zip(images, pictures, result.settings["seeds"], strict=True):
        picture.save(image, path, {**result.settings, "num_images": 1, "seeds": [seed]})
        # Flushed here, where a closed pipe is no traceback.
        print(path, flush=True)
    if json_file is not None:
        write_atomic(json_file, (json.dumps(result.settings, indent=2) + "\n").encode())


def _optimized(drawing: Drawing, search: _Search, *, device: str, quiet: bool) -> Result:
    """Draws with weights that CLIP chose; what was done goes into the settings."""
    from stal.model import clip
    from stal.model.model import clip_folder
    from stal.optimize import Options, online, trajectory

    scorer = clip.load(search.clip or clip_folder(drawing.model), device=device)
    drawing.model.unet.gradient_checkpointing = search.recompute_blocks
    if search.mode == Optimize.online:
        done: dict[str, Any] = {"mode": "online"}
        found = online(drawing, scorer)
    else:
        options = Options(epochs=search.epochs, lr=search.lr)
        done = {"mode": "trajectory", "epochs": options.epochs, "lr": options.lr}
        found = trajectory(drawing, scorer, options, quiet=quiet)
    done["trace"] = found.trace[0]
    return drawing.results(found.latents, found.weights, optimize=[done])[0]
