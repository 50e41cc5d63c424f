"""The `stal` command. Heavy imports happen inside the commands, so that `--help` is quick."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import typer

from stal.cli.evaluate import evaluate
from stal.cli.evaluate_layout import evaluate_layout
from stal.cli.generate import generate
from stal.cli.layout import show_layout
from stal.cli.train import train_layout, train_shapes
from stal.cli.weights import fit_schedule, plot

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback()
def stal() -> None:
    """Text-to-image with every object in its place (arXiv 2304.03869)."""


app.command()(generate)
app.command()(plot)
app.command()(fit_schedule)
app.command()(evaluate)
app.command()(train_shapes)
app.command("layout")(show_layout)
app.command()(train_layout)
app.command()(evaluate_layout)


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
