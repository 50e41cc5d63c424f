"""The `stal` command. Heavy imports happen inside the commands, so that `--help` is quick."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stal import picture
from stal.cli import weights as weight_commands
from stal.cli.evaluate import evaluate
from stal.files import check_writable, read_lines, write_atomic
from stal.layout import Layout

if TYPE_CHECKING:
    from stal.pipeline import Drawing, Result

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


class Attention(str, Enum):
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


class DType(str, Enum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


@app.callback()
def stal() -> None:
    """Text-to-image with every object in its place (arXiv 2304.03869)."""


@app.command()
def generate(
    prompt: Annotated[str | None, typer.Argument(help="What to draw.")] = None,
    output: Annotated[Path, typer.Option(help="PNG file to write.")] = Path("stal.png"),
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write the settings to this file.")
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Plain attention beside ours, with the layout.")
    ] = False,
    source: Annotated[
        Path | None,
        typer.Option("--from", help="Draw again as this PNG says; other options override."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Diffusers folder or hub name; the bundled model if absent.")
    ] = None,
    attention: Annotated[Attention | None, typer.Option(help="[spatial-temporal]")] = None,
    rule: Annotated[RuleName | None, typer.Option(help="How weights combine. [guidance]")] = None,
    reference: Annotated[
        str | None, typer.Option(help="'unconditional', or a prompt to move away from.")
    ] = None,
    background: Annotated[
        float | None, typer.Option(help="Pull of the background to the reference prompt.")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="Numbers like 1,0.5, one an object, or a file: weights, or a schedule."),
    ] = None,
    resample: Annotated[
        bool, typer.Option("--resample", help="Stretch a file's weights over other --steps.")
    ] = False,
    optimize: Annotated[
        Optimize, typer.Option(help="Adapt the weights by CLIP: while drawing, or over epochs.")
    ] = Optimize.none,
    epochs: Annotated[int, typer.Option(min=1, help="Drawings of --optimize trajectory.")] = 3,
    lr: Annotated[float, typer.Option(help="Adam's, of --optimize trajectory.")] = 0.1,
    recompute_blocks: Annotated[
        bool,
        typer.Option("--recompute-blocks", help="--optimize in less memory and more time."),
    ] = False,
    clip: Annotated[
        Path | None, typer.Option(help="Folder of a CLIP model; clip in the model's if absent.")
    ] = None,
    layout: Annotated[
        Path | None,
        typer.Option(help="Layout to use: ours, painted masks, LayoutGPT's or LMD's format."),
    ] = None,
    canvas: Annotated[
        str | None,
        typer.Option(help="Pixels of LayoutGPT's or LMD's canvas. [64x64, 512x512]"),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Image i is drawn from seed + i. [0]")] = None,
    num_images: Annotated[int | None, typer.Option(min=1, help="[1]")] = None,
    negative_prompt: Annotated[str | None, typer.Option()] = None,
    sampler: Annotated[
        str | None, typer.Option(help="ddim, plms, dpm++2m, euler, euler-ancestral.")
    ] = None,
    eta: Annotated[float | None, typer.Option(help="Fresh noise of ddim, 0 to 1. [0]")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    guidance_scale: Annotated[float | None, typer.Option()] = None,
    height: Annotated[int | None, typer.Option(help="In pixels.")] = None,
    width: Annotated[int | None, typer.Option(help="In pixels.")] = None,
    dtype: Annotated[DType | None, typer.Option(help="[float32]")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps.")] = "cpu",
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
) -> None:
    """Draw a picture of PROMPT."""
    from stal.layout.formats import read_layout

    if prompt is None and source is None:
        raise typer.BadParameter("give one, or a picture with --from", param_hint="PROMPT")
    record = picture.read_record(source) if source else {}
    if "layout" in record:
        record["layout"] = Layout.from_json(json.dumps(record["layout"]))
    given: dict[str, Any] = {
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
        "layout": None if layout is None else read_layout(layout, canvas=_canvas(canvas)),
        "weights": None if weights is None else _weights(weights, resample),
    }
    given = {name: value for name, value in given.items() if value is not None}
    # What the picture's other settings led to is no longer meant when they change.
    if "prompt" in given:
        record.pop("layout", None)
    if not given.keys().isdisjoint(_LEAD_TO_WEIGHTS):
        record.pop("weights", None)
    if not given.keys().isdisjoint(("model", "rule", "reference")):
        record.pop("background", None)
    wanted = {**record, **given}
    if not wanted["prompt"].strip():
        raise ValueError("prompt must not be empty, e.g. 'a red circle above a blue ring'")
    if compare and wanted.get("attention") == "plain":
        raise ValueError("attention must not be plain with --compare, which draws that too")
    if optimize != Optimize.none and wanted.get("attention") == "plain":
        raise ValueError("attention must not be plain with --optimize: it has no weights")
    count = wanted.get("num_images", 1)
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"num_images must be a positive integer, got {count!r} in {source}")
    outputs = _numbered(output, count)
    _check_outputs(outputs, json_file)
    search = None
    if optimize != Optimize.none:
        search = {"mode": optimize.value, "epochs": epochs, "lr": lr, "clip": clip}
        search["recompute_blocks"] = recompute_blocks
    _draw(wanted, outputs, json_file, compare=compare, search=search, device=device, quiet=quiet)


# Settings that the default weights follow from, and the objects that there is one for each.
_LEAD_TO_WEIGHTS = ("prompt", "layout", "model", "attention", "rule", "reference", "steps")


def _weights(text: str, resample: bool) -> list[float] | Callable[[int, int], Any]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        if not Path(text).is_file():
            rule = "be numbers like 1,0.5 or an existing file"
            raise ValueError(f"weights must {rule}, got {text!r}") from None
    from stal.weights.files import load_weights

    return load_weights(text, resample=resample)


def _numbered(output: Path, count: int) -> list[Path]:
    """One path a picture: FILE.png, or FILE-0.png, FILE-1.png, ..."""
    if output.suffix.lower() != ".png":
        raise ValueError(f"output must be a PNG file, got {output}: name it {output.stem}.png")
    if count == 1:
        return [output]
    return [output.with_stem(f"{output.stem}-{i}") for i in range(count)]


def _check_outputs(outputs: list[Path], json_file: Path | None) -> None:
    """Before anything slow begins."""
    for path in outputs:
        check_writable(path)
    if json_file is not None:
        check_writable(json_file, name="json")
        if json_file.resolve() in [path.resolve() for path in outputs]:
            raise ValueError(f"json must be another file than output, got {json_file}")


def _draw(
    wanted: dict[str, Any],
    outputs: list[Path],
    json_file: Path | None,
    *,
    compare: bool,
    search: dict[str, Any] | None,
    device: str,
    quiet: bool,
) -> None:
    """Draws what the settings of a result say, and writes the files."""
    from dataclasses import fields, replace

    import torch
    from tqdm import tqdm

    from stal.pipeline import Pipeline, Settings, enough_memory

    settings = Settings(**{f.name: wanted[f.name] for f in fields(Settings) if f.name in wanted})
    seeds = wanted.get("seeds", [0])
    pipe = Pipeline.from_pretrained(
        str(wanted["model"]) if wanted.get("model") else None,
        dtype=getattr(torch, DType(wanted.get("dtype", "float32")).value),
        device=device,
    )

    def draw(settings: Settings, weights: Any, search: dict[str, Any] | None = None) -> Result:
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
            picture.compare(
                one,
                two,
                result.layout,
                prompt=wanted["prompt"],
                attention=settings.attention,
            )
            for one, two in zip(plain.images, images, strict=True)
        ]
    for image, path, seed in zip(images, outputs, result.settings["seeds"], strict=True):
        picture.save(image, path, {**result.settings, "num_images": 1, "seeds": [seed]})
        # Flushed here, where a closed pipe is no traceback.
        print(path, flush=True)
    if json_file is not None:
        write_atomic(json_file, (json.dumps(result.settings, indent=2) + "\n").encode())


def _optimized(drawing: Drawing, search: dict[str, Any], *, device: str, quiet: bool) -> Result:
    """Draws with weights that CLIP chose; what was done goes into the settings."""
    from stal.model import clip
    from stal.optimize import Options, online, trajectory
    from stal.pipeline import clip_folder

    scorer = clip.load(search["clip"] or clip_folder(drawing.pipe), device=device)
    drawing.pipe.components.unet.gradient_checkpointing = search["recompute_blocks"]
    if search["mode"] == "online":
        done: dict[str, Any] = {"mode": "online"}
        found = online(drawing, scorer)
    else:
        options = Options(epochs=search["epochs"], lr=search["lr"])
        done = {"mode": "trajectory", "epochs": options.epochs, "lr": options.lr}
        found = trajectory(drawing, scorer, options, quiet=quiet)
    done["trace"] = found.trace[0]
    return drawing.results(found.latents, found.weights, optimize=[done])[0]


app.command()(weight_commands.plot)
app.command()(weight_commands.fit_schedule)
app.command()(evaluate)


@app.command()
def train_shapes(
    output: Annotated[Path, typer.Option(help="Folder for checkpoints and the model.")],
    stage: Annotated[
        list[str] | None, typer.Option(help="vae, unet or clip; all three if absent.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of scenes, captions and initial weights.")] = 0,
    start: Annotated[
        Path | None,
        typer.Option("--from", help="Model folder to train on from; its vae is kept."),
    ] = None,
) -> None:
    """Train the bundled model of coloured shapes; a killed run resumes where it stopped."""
    from stal.training.shapes import STAGES, train

    every = STAGES if start is None else tuple(name for name in STAGES if name != "vae")
    train(output, stages=tuple(stage) if stage else every, seed=seed, start=start)


@app.command("layout")
def show_layout(
    prompt: Annotated[str | None, typer.Argument(help="What to place.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="PNG file to draw the boxes in; one a sample.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="JSON file; JSON lines with --prompts.")
    ] = None,
    prompts: Annotated[Path | None, typer.Option(help="File of prompts, one a line.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Layouts a prompt, the likeliest first.")] = 1,
    aspect: Annotated[str, typer.Option(help="Width to height, like 16:9 or 1.5.")] = "1:1",
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=2**63 - 1, help="Of sampled boxes; the likeliest ones if absent."),
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="Folder of `stal train-layout`; the bundled one if absent.")
    ] = None,
    text_encoder: Annotated[
        Path | None, typer.Option(help="Diffusers folder that the model was trained with, if any.")
    ] = None,
) -> None:
    """Predict where the objects of PROMPT go, and draw them.

    The picture carries the layout: `stal generate --from layout.png` draws from it.
    """
    if (prompt is None) == (prompts is None):
        raise typer.BadParameter("give one, or a file of them with --prompts", param_hint="PROMPT")
    width_to_height = _aspect(aspect)
    if prompts is not None and (json_file is None or output is not None):
        raise ValueError("prompts must come with --json OUT.jsonl and without --output")
    if prompt is not None and output is None and json_file is None:
        raise ValueError("output must be given, or json, e.g. --output layout.png")
    pictures = [] if output is None else _numbered(output, samples)
    jsons = []
    if json_file is not None:
        one = prompts is not None or samples == 1
        stems = [f"{json_file.stem}-{i}" for i in range(samples)]
        jsons = [json_file] if one else [json_file.with_stem(stem) for stem in stems]
    for path in pictures:
        check_writable(path)
    for path in jsons:
        check_writable(path, name="json")
    if {path.resolve() for path in pictures} & {path.resolve() for path in jsons}:
        raise ValueError(f"json must be another file than output, got {json_file}")
    if prompts is not None and prompts.resolve() in {path.resolve() for path in jsons}:
        raise ValueError(f"json must be another file than prompts, got {json_file}")
    texts = [prompt or ""]
    if prompts is not None:
        texts = read_lines(prompts, name="prompts")
    elif not texts[0].strip():
        raise ValueError("prompt must not be empty, e.g. 'a cat under a desk'")

    from stal.layout import sketch
    from stal.layout.predictor import LayoutPredictor
    from stal.prompts import parse

    predictor = LayoutPredictor.load(model, text_encoder=text_encoder)
    found: list[list[Layout]] = []
    for start in range(0, len(texts), 64):
        batch = [parse(text) for text in texts[start : start + 64]]
        found += predictor.predict(batch, aspect=width_to_height, seed=seed, samples=samples)
    for number, group in enumerate(found, 1):
        where = "" if prompts is None else f"prompt {number}: "
        for each in group:
            for statement in each.violated:
                print(f"stal: {where}cannot hold: {each.say(statement)}", file=sys.stderr)
    if prompts is not None:
        lines = [json.dumps(json.loads(each.to_json())) for group in found for each in group]
        write_atomic(jsons[0], "".join(f"{line}\n" for line in lines).encode())
        return
    if not found[0][0].objects:
        print("stal: nothing to place was found in the prompt", file=sys.stderr)
    contours = predictor.contours(parse(texts[0]), aspect=width_to_height) if pictures else []
    for each, path in zip(found[0], pictures, strict=False):
        record = {"prompt": each.prompt, "layout": json.loads(each.to_json())}
        picture.save(sketch(each, contours=contours), path, record)
        print(path, flush=True)
    for each, path in zip(found[0], jsons, strict=False):
        each.save(path)


def _canvas(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        width, height = text.lower().split("x")
        return float(width), float(height)
    except ValueError:
        raise ValueError(f"canvas must be like 512x512, got {text!r}") from None


def _aspect(text: str) -> float:
    try:
        width, colon, height = text.partition(":")
        return float(width) / (float(height) if colon else 1.0)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"aspect must be like 16:9 or 1.5, got {text!r}") from None


@app.command()
def train_layout(
    output: Annotated[Path, typer.Option(help="Folder for checkpoints and the weights.")],
    nsr1k: Annotated[
        list[Path] | None, typer.Option(help="File in NSR-1K's format; may be repeated.")
    ] = None,
    annotations: Annotated[Path | None, typer.Option(help="COCO's instances, a JSON file.")] = None,
    captions: Annotated[
        Path | None, typer.Option(help="COCO's captions; relations of boxes if absent.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1)] = None,
    fold: Annotated[
        int | None, typer.Option(help="Hold out pictures whose id modulo 5 is this.")
    ] = None,
    text_encoder: Annotated[
        Path | None,
        typer.Option(help="Diffusers folder whose text encoder embeds phrases; else n-grams."),
    ] = None,
    relative: Annotated[
        bool, typer.Option(help="Train on differences of stated pairs too.")
    ] = True,
    seed: Annotated[int, typer.Option(help="Of the data and the initial weights.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
) -> None:
    """Train the layout predictor; a killed run resumes where it stopped."""
    if captions is not None and annotations is None:
        raise ValueError("captions must come with --annotations, which has the boxes")

    from dataclasses import replace

    from stal.training.layout import LayoutRecipe, train

    recipe = LayoutRecipe(fold=fold, seed=seed)
    recipe = replace(
        recipe, steps=steps or recipe.steps, relative=recipe.relative if relative else 0.0
    )
    scores = train(
        output,
        recipe,
        nsr1k=nsr1k or (),
        annotations=annotations,
        captions=captions,
        text_encoder=text_encoder,
        quiet=quiet,
    )
    print(f"NLL {scores['nll']:.3f} an object, stated sides right {scores['relations']:.1%}")


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)
def evaluate_layout(context: typer.Context) -> None:
    """Score the prompt parser and the layout predictor on labelled sets."""
    from stal.cli.evaluate_layout import evaluate_layout as evaluate

    evaluation = typer.Typer(
        add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False
    )
    evaluation.command()(evaluate)
    evaluation(context.args, prog_name="stal evaluate-layout")


def main() -> None:
    """Runs the command: exit code 0, 1 for an error (one line on stderr), 2 for wrong usage."""
    warnings.formatwarning = _one_line
    try:
        app()
    except (ValueError, OSError, NotImplementedError, MemoryError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, OSError) and error.filename and error.strerror:
            reason = f"{error.filename}: {error.strerror}"
        print(f"stal: {reason}", file=sys.stderr)
        sys.exit(1)


def _one_line(
    message: Warning | str, category: Any, filename: str, lineno: int, line: str | None = None
) -> str:
    return f"stal: {message}\n"


if __name__ == "__main__":
    main()
