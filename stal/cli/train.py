"""`stal train-shapes` and `stal train-layout`. Heavy imports happen late."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stal.cli.options import QuietOption


def train_shapes(
    output: Annotated[Path, typer.Option(help="Folder for checkpoints and the model.")],
    stage: Annotated[
        list[str] | None, typer.Option(help="vae, unet or clip; all three if absent.")
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, max=2**31 - 1, help="Of scenes, captions and initial weights.")
    ] = 0,
    start: Annotated[
        Path | None,
        typer.Option("--from", help="Model folder to train on from; its vae is kept."),
    ] = None,
) -> None:
    """Train the bundled model of coloured shapes; a killed run resumes where it stopped."""
    from stal.training.shapes import STAGES, train

    every = STAGES if start is None else tuple(name for name in STAGES if name != "vae")
    train(output, stages=tuple(stage) if stage else every, seed=seed, start=start)


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
    composed: Annotated[bool, typer.Option(help="Train on composed scenes and shapes too.")] = True,
    seed: Annotated[
        int, typer.Option(min=0, max=2**31 - 1, help="Of the data and the initial weights.")
    ] = 0,
    quiet: QuietOption = False,
) -> None:
    """Train the layout predictor; a killed run resumes where it stopped."""
    if captions is not None and annotations is None:
        raise ValueError("captions must come with --annotations, which has the boxes")

    from dataclasses import replace

    from stal.training.layout import LayoutRecipe, train

    recipe = LayoutRecipe(fold=fold, seed=seed)
    if steps is not None:
        recipe = replace(recipe, steps=steps)
    if not relative:
        recipe = replace(recipe, relative=0.0)
    if not composed:
        recipe = replace(recipe, composed=0)
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
