"""`stal layout`: boxes without a picture. Heavy imports happen late."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stal import picture
from stal.budget import MOST_IMAGES
from stal.cli.options import check_apart, outputs
from stal.files import read_lines, write_atomic

if TYPE_CHECKING:
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
        record = {"prompt": each.prompt, "layout": json.loads(each.to_json())}
        picture.save(sketch(each, contours=contours), path, record)
        print(path, flush=True)
    for each, path in zip(found[0], jsons, strict=False):
        each.save(path)


def _aspect(text: str) -> float:
    try:
        width, colon, height = text.partition(":")
        return float(width) / (float(height) if colon else 1.0)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"aspect must be like 16:9 or 1.5, got {text!r}") from None
