"""`stal layout`: boxes without a picture. Heavy imports happen late."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stal import picture
from stal.budget import MOST_IMAGES
from stal.cli.options import CanvasOption, canvas_size, check_apart, outputs
from stal.files import read_lines, write_atomic

if TYPE_CHECKING:
    from PIL.Image import Image

    from stal.layout import Layout


def show_layout(
    prompt: Annotated[str | None, typer.Argument(help="What to place.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="PNG file to draw the boxes in; one a sample.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="JSON file; JSON lines with --prompts.")
    ] = None,
    prompts: Annotated[Path | None, typer.Option(help="File of prompts, one a line.")] = None,
    samples: Annotated[
        int, typer.Option(min=1, max=MOST_IMAGES, help="Layouts a prompt, the likeliest first.")
    ] = 1,
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
    layout: Annotated[
        Path | None, typer.Option(help="Layout to draw or rewrite: ours or another program's.")
    ] = None,
    canvas: CanvasOption = None,
) -> None:
    """Predict where the objects of PROMPT go, and draw them; or draw the boxes of a file.

    The picture carries the layout: `stal generate --from layout.png` draws from it.
    """
    if layout is not None:
        _alone(prompts, samples, aspect, seed, model, text_encoder)
        _show_file(layout, prompt, canvas, output, json_file)
        return
    if canvas is not None:
        raise ValueError("canvas must come with --layout, whose boxes are in its pixels")
    if (prompt is None) == (prompts is None):
        raise typer.BadParameter("give one, or a file of them with --prompts", param_hint="PROMPT")
    width_to_height = _aspect(aspect)
    if prompts is not None and (json_file is None or output is not None):
        raise ValueError("prompts must come with --json OUT.jsonl and without --output")
    if prompt is not None:
        _check_output(output, json_file)
    one_json = prompts is not None or samples == 1
    pictures, jsons = outputs(output, json_file, pictures=samples, jsons=1 if one_json else samples)
    if json_file is not None:
        check_apart(json_file, prompts, name="json", read_name="prompts")
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
        _save(sketch(each, contours=contours), path, each)
    for each, path in zip(found[0], jsons, strict=False):
        each.save(path)


def _alone(
    prompts: Path | None,
    samples: int,
    aspect: str,
    seed: int | None,
    model: Path | None,
    text_encoder: Path | None,
) -> None:
    """Raises ValueError for an option of what is predicted, where nothing is."""
    given = {"prompts": prompts, "seed": seed, "model": model, "text_encoder": text_encoder}
    named = [name for name, value in given.items() if value is not None]
    named += ["samples"] * (samples != 1) + ["aspect"] * (aspect != "1:1")
    if named:
        raise ValueError(f"{named[0]} must come without --layout, whose boxes are final")


def _show_file(
    file: Path, prompt: str | None, canvas: str | None, output: Path | None, json_file: Path | None
) -> None:
    """Draws and rewrites the layout of a file."""
    from stal.layout import sketch
    from stal.layout.formats import read_layout
    from stal.prompts import article, noun_of

    _check_output(output, json_file)
    pictures, jsons = outputs(output, json_file)
    if json_file is not None:
        check_apart(json_file, file, name="json", read_name="layout")
    size = canvas_size(canvas)
    found = read_layout(file, noun_of=noun_of, article=article, canvas=size, prompt=prompt)
    for statement in found.violated:
        print(f"stal: does not hold: {found.say(statement)}", file=sys.stderr)
    for path in pictures:
        _save(sketch(found), path, found)
    for path in jsons:
        found.save(path)


def _check_output(output: Path | None, json_file: Path | None) -> None:
    if output is None and json_file is None:
        raise ValueError("output must be given, or json, e.g. --output layout.png")


def _save(image: Image, path: Path, layout: Layout) -> None:
    """Writes a picture that carries a layout, and says so."""
    record = {"prompt": layout.prompt, "layout": json.loads(layout.to_json())}
    picture.save(image, path, record)
    print(path, flush=True)


def _aspect(text: str) -> float:
    try:
        width, colon, height = text.partition(":")
        return float(width) / (float(height) if colon else 1.0)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"aspect must be like 16:9 or 1.5, got {text!r}") from None
