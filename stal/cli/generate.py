"""`stal generate`: a picture, or several, of one prompt. Heavy imports happen late."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stal import picture
from stal.budget import MOST_IMAGES
from stal.caller import warn
from stal.cli.loras import LoraOption, Loras, read_loras
from stal.cli.options import (
    AttentionOption,
    BackgroundOption,
    CanvasOption,
    ClipOption,
    DeviceOption,
    DType,
    EtaOption,
    ModelOption,
    QuietOption,
    ReferenceOption,
    RuleOption,
    SamplerOption,
    SideOption,
    StepsOption,
    canvas_size,
    outputs,
    torch_dtype,
)
from stal.cli.records import checked, read_settings
from stal.files import write_atomic
from stal.layout import render

if TYPE_CHECKING:
    from stal.drawing import Drawing, Result
    from stal.layout import Layout


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
_AllowDownload = Annotated[
    bool, typer.Option("--allow-download", help="Fetch the model that --from names.")
]
_Prompt = Annotated[
    str | None, typer.Argument(help="What to draw; that of --from or --layout if absent.")
]
_Epochs = Annotated[int | None, typer.Option(min=1, help="Drawings of --optimize trajectory. [3]")]
_NumImages = Annotated[int | None, typer.Option(min=1, max=MOST_IMAGES, help="[1]")]
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
    typer.Option(help="Layout to use: ours, painted masks, or another program's boxes."),
]


def generate(
    prompt: _Prompt = None,
    output: Annotated[Path, typer.Option(help="PNG file to write.")] = Path("stal.png"),
    json_file: _JsonFile = None,
    compare: _Compare = False,
    source: _Source = None,
    allow_download: _AllowDownload = False,
    model: ModelOption = None,
    lora: LoraOption = None,
    attention: AttentionOption = None,
    rule: RuleOption = None,
    reference: ReferenceOption = None,
    background: BackgroundOption = None,
    weights: _Weights = None,
    resample: _Resample = False,
    optimize: _Optimize = Optimize.none,
    epochs: _Epochs = None,
    lr: Annotated[float | None, typer.Option(help="Of --optimize trajectory. [0.1]")] = None,
    recompute_blocks: _RecomputeBlocks = False,
    clip: ClipOption = None,
    layout: _Layout = None,
    canvas: CanvasOption = None,
    seed: Annotated[int | None, typer.Option(help="Image i is drawn from seed + i. [0]")] = None,
    num_images: _NumImages = None,
    negative_prompt: str | None = None,
    sampler: SamplerOption = None,
    eta: EtaOption = None,
    steps: StepsOption = None,
    guidance_scale: float | None = None,
    height: SideOption = None,
    width: SideOption = None,
    dtype: Annotated[DType | None, typer.Option(help="[float32]")] = None,
    device: DeviceOption = "cpu",
    quiet: QuietOption = False,
) -> None:
    """Draw a picture of PROMPT."""
    search = _search(optimize, epochs, lr, clip, recompute_blocks)
    if allow_download and source is None:
        raise ValueError("allow_download must come with --from, whose picture names a model")
    every: dict[str, Any] = {
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
        "layout": _read_layout(layout, canvas),
        "weights": _read_weights(weights, resample),
    }
    given = {name: value for name, value in every.items() if value is not None}
    loras = read_loras(lora)
    record = {} if source is None else read_settings(source, with_loras=bool(loras))
    kept = _kept(record, given)
    if source is not None:
        kept = checked(kept, source, allow_download=allow_download)
    elif prompt is None:
        kept["prompt"] = _prompt_of(given.get("layout"))
    wanted = kept | given
    _check_wanted(wanted, compare=compare, search=search)
    pictures, _ = outputs(output, json_file, pictures=wanted.get("num_images", 1))
    drawing = _Wanted(wanted, given, loras, compare, search, device, quiet)
    _draw(drawing, pictures, json_file)


@dataclass(frozen=True)
class _Search:
    """How CLIP is to choose the weights. clip: its folder; None for the model's own."""

    mode: Optimize
    epochs: int
    lr: float
    clip: Path | None
    recompute_blocks: bool


@dataclass(frozen=True)
class _Wanted:
    """What to draw. settings: as a picture's record has them; given: those of the command line."""

    settings: dict[str, Any]
    given: dict[str, Any]
    loras: Loras
    compare: bool
    search: _Search | None
    device: str
    quiet: bool


def _search(
    mode: Optimize,
    epochs: int | None,
    lr: float | None,
    clip: Path | None,
    recompute_blocks: bool,
) -> _Search | None:
    """Raises ValueError for an option that the way of searching does not know."""
    of_trajectory = {"epochs": epochs is not None, "lr": lr is not None}
    of_any = {"clip": clip is not None, "recompute_blocks": recompute_blocks}
    for wanted, options, needed in (
        (mode == Optimize.trajectory, of_trajectory, "--optimize trajectory"),
        (mode != Optimize.none, of_any, "--optimize"),
    ):
        for name, is_given in options.items():
            if is_given and not wanted:
                raise ValueError(f"{name} must come with {needed}, without which it does nothing")
    if mode == Optimize.none:
        return None
    return _Search(mode, epochs or 3, 0.1 if lr is None else lr, clip, recompute_blocks)


def _read_layout(file: Path | None, canvas: str | None) -> Layout | None:
    from stal.layout.formats import read_layout
    from stal.prompts import article, noun_of

    if file is None:
        if canvas is not None:
            raise ValueError("canvas must come with --layout, whose boxes are in its pixels")
        return None
    return read_layout(file, noun_of=noun_of, article=article, canvas=canvas_size(canvas))


def _prompt_of(layout: Layout | None) -> str:
    """What a layout says that it is of."""
    if layout is None:
        fix = "give one, or a picture with --from, or a layout that has one"
        raise typer.BadParameter(fix, param_hint="PROMPT")
    if not layout.prompt.strip():
        raise ValueError("prompt must be given: the layout has none")
    return layout.prompt


# Settings that the default weights follow from, and the objects that there is one for each.
_LEAD_TO_WEIGHTS = ("prompt", "layout", "model", "attention", "rule", "reference", "steps")


def _kept(record: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The settings of a picture that are still meant where others are given.

    What the picture's other settings led to is not, when those change.
    """
    from stal.fitting import fits

    changed = {name for name, value in given.items() if not _same(name, value, record.get(name))}
    stale = set(given)
    if "prompt" in changed:
        stale.add("layout")
    if not changed.isdisjoint(_LEAD_TO_WEIGHTS):
        stale.add("weights")
    if not changed.isdisjoint(("model", "rule", "reference")):
        stale.add("background")
    height, width = record.get("height"), record.get("width")
    if "layout" in given and isinstance(height, int) and isinstance(width, int):
        own = not {"height", "width"} & given.keys() and min(height, width) > 0
        if own and not fits(given["layout"], height=height, width=width):
            stale |= {"height", "width"}
    return {name: value for name, value in record.items() if name not in stale}


def _same(name: str, given: Any, recorded: Any) -> bool:
    """Whether an option says what the picture says anyway."""
    if name == "model" and isinstance(recorded, str) and recorded:
        return os.path.realpath(given) == os.path.realpath(recorded)
    return type(given) is type(recorded) and given == recorded


def _check_wanted(wanted: dict[str, Any], *, compare: bool, search: _Search | None) -> None:
    """Raises ValueError for what cannot be drawn, before anything slow begins."""
    if not wanted["prompt"].strip():
        raise ValueError("prompt must not be empty, e.g. 'a red circle above a blue ring'")
    if compare and wanted.get("attention") == "plain":
        raise ValueError("attention must not be plain with --compare, which draws that too")
    if search is not None and wanted.get("attention") == "plain":
        raise ValueError("attention must not be plain with --optimize: it has no weights")


def _read_weights(
    text: str | None, resample: bool
) -> list[float] | Callable[[int, int], Any] | None:
    numbers = None
    if text is not None:
        with suppress(ValueError):
            numbers = [float(part) for part in text.split(",")]
    if resample and (text is None or numbers is not None):
        raise ValueError("resample must come with a file of --weights, which it stretches")
    if text is None or numbers is not None:
        return numbers
    if not os.path.isfile(text):
        rule = "be numbers like 1,0.5 or an existing file"
        raise ValueError(f"weights must {rule}, got {text!r}")
    from stal.weights.files import load_weights

    return load_weights(text, resample=resample)


def _draw(what: _Wanted, pictures: list[Path], json_file: Path | None) -> None:
    """Draws what the settings of a result say, and writes the files."""
    from dataclasses import fields, replace

    from tqdm import tqdm

    from stal.fitting import without_effect
    from stal.model.model import enough_memory
    from stal.pipeline import Pipeline
    from stal.settings import Settings

    wanted, device, quiet = what.settings, what.device, what.quiet
    settings = Settings(**{f.name: wanted[f.name] for f in fields(Settings) if f.name in wanted})
    seeds = wanted.get("seeds", [0])
    pipe = Pipeline.from_pretrained(
        str(wanted["model"]) if wanted.get("model") else None,
        dtype=torch_dtype(DType(wanted.get("dtype", "float32"))),
        device=device,
        loras=what.loras,
    )

    def draw(settings: Settings, weights: Any, *, ours: bool) -> Result:
        with enough_memory(device, "draw a smaller picture, or fewer at once"):
            drawing = pipe.prepare(
                [wanted["prompt"]],
                settings,
                layouts=[wanted.get("layout")],
                weights=[weights],
                # One seed stands for those of all images.
                seed=seeds[0] if isinstance(seeds, list) and len(seeds) == 1 else seeds,
            )
            if ours:
                for sentence in without_effect(what.given, drawing.settings):
                    warn(sentence)
            if ours and what.search is not None:
                return _optimized(drawing, what.search, device=device, quiet=quiet)
            steps = drawing.schedule.steps
            with tqdm(total=steps, desc=settings.attention, disable=quiet, leave=False) as bar:
                latents = drawing.sample(callback=lambda step, x, denoised: bar.update())
            return drawing.results(latents)[0]

    result = draw(settings, wanted.get("weights"), ours=True)
    images = result.images
    if what.compare:
        plain = draw(replace(settings, attention="plain"), None, ours=False)
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
