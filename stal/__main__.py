"""The `stal` command. Heavy imports happen inside the commands, so that `--help` is quick."""

from __future__ import annotations

import json
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

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
    weights: Annotated[
        str | None, typer.Option(help="A number an object, comma-separated, constant in time.")
    ] = None,
    layout: Annotated[Path | None, typer.Option(help="Layout to use, a JSON file.")] = None,
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
    from stal import picture

    given: dict[str, Any] = {
        "prompt": prompt,
        "model": model,
        "attention": attention and attention.value,
        "rule": rule and rule.value,
        "reference": reference,
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
    }
    record = picture.read_record(source) if source else {}
    wanted = {**record, **{k: v for k, v in given.items() if v is not None}}
    if not (wanted.get("prompt") or "").strip():
        raise ValueError("prompt must not be empty: stal generate 'a red circle above a blue ring'")
    for path in (output, json_file):
        if path is not None:
            picture.check_writable(path)
    if weights is not None:
        wanted["weights"] = _numbers(weights)
    elif steps is not None or attention is not None or rule is not None or prompt is not None:
        # Weights of other steps, another mode or another prompt are no longer meant.
        wanted.pop("weights", None)
    if prompt is not None:
        wanted.pop("layout", None)
    if layout is not None:
        wanted["layout"] = layout
    _draw(wanted, output, json_file, compare=compare, device=device, quiet=quiet)


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"weights must be numbers like 1,0.5, got {text!r}") from None


def _draw(
    wanted: dict[str, Any],
    output: Path,
    json_file: Path | None,
    *,
    compare: bool,
    device: str,
    quiet: bool,
) -> None:
    from dataclasses import fields, replace

    import torch
    from tqdm import tqdm

    from stal import picture
    from stal.layout import Layout
    from stal.pipeline import Pipeline, Settings

    names = {f.name for f in fields(Settings)}
    settings = Settings(**{k: v for k, v in wanted.items() if k in names})
    layout = wanted.get("layout")
    if isinstance(layout, Path):
        layout = Layout.load(layout)
    elif layout is not None:
        layout = Layout.from_json(json.dumps(layout))
    seeds = wanted.get("seeds") or [0]
    if len(seeds) == 1:
        seeds = seeds[0]

    pipe = Pipeline.from_pretrained(
        wanted.get("model") or None,
        dtype=getattr(torch, wanted.get("dtype") or "float32"),
        device=device,
    )

    def draw(settings: Settings, label: str) -> Any:
        steps = settings.steps or pipe.defaults.steps
        plain = settings.attention == "plain"
        with tqdm(total=steps, desc=label, disable=quiet, leave=False) as bar:
            return pipe.batch(
                [wanted["prompt"]],
                settings,
                layouts=[layout],
                weights=[None if plain else wanted.get("weights")],
                seed=seeds,
                callback=lambda step, x, denoised: bar.update(),
            )[0]

    result = draw(settings, settings.attention)
    images = result.images
    if compare:
        plain = draw(replace(settings, attention="plain"), "plain")
        pairs = zip(plain.images, images, strict=True)
        images = [picture.compare(one, two, result.layout) for one, two in pairs]
    paths = [output]
    if len(images) > 1:
        paths = [output.with_stem(f"{output.stem}-{i}") for i in range(len(images))]
    for i, (image, path) in enumerate(zip(images, paths, strict=True)):
        seed = result.settings["seeds"][i]
        picture.save(image, path, {**result.settings, "num_images": 1, "seeds": [seed]})
        print(path)
    if json_file is not None:
        text = json.dumps(result.settings, indent=2) + "\n"
        picture.write_atomic(json_file, text.encode())


@app.command()
def train_shapes(
    output: Annotated[Path, typer.Option(help="Folder for checkpoints and the model.")],
    stage: Annotated[
        list[str] | None, typer.Option(help="vae, unet or clip; all three if absent.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of scenes, captions and initial weights.")] = 0,
) -> None:
    """Train the bundled model of coloured shapes; a killed run resumes where it stopped."""
    from stal.shapes.training import STAGES, train

    train(output, stages=tuple(stage) if stage else STAGES, seed=seed)


def main() -> None:
    """Runs the command: exit code 0, 1 for an error (one line on stderr), 2 for wrong usage."""
    try:
        app()
    except (ValueError, OSError, NotImplementedError) as error:
        print(f"stal: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
