"""The `stal` command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

main = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None)


@main.callback()
def stal() -> None:
    """Text-to-image with every object in its place (arXiv 2304.03869)."""


@main.command()
def train_shapes(
    output: Annotated[Path, typer.Option(help="Folder for checkpoints and the model.")],
    stage: Annotated[
        list[str] | None, typer.Option(help="vae, unet or clip; all three by default.")
    ] = None,
    seed: int = 0,
) -> None:
    """Train the bundled model of coloured shapes; a killed run resumes where it stopped."""
    from stal.shapes.training import STAGES, train

    train(output, stages=tuple(stage) if stage else STAGES, seed=seed)


if __name__ == "__main__":
    main()
