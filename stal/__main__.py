"""The `stal` command. Heavy imports happen inside the commands, so that `--help` is quick."""

from __future__ import annotations

import os
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from stal.cli.app import open_page
from stal.cli.comfyui import comfyui
from stal.cli.evaluate import evaluate
from stal.cli.evaluate_layout import evaluate_layout
from stal.cli.generate import generate
from stal.cli.generate_batch import generate_batch
from stal.cli.hints import add_hint
from stal.cli.last_resort import tell
from stal.cli.layout import show_layout
from stal.cli.outlet import outlets
from stal.cli.serve import serve
from stal.cli.train import train_layout, train_shapes
from stal.cli.weights import fit_schedule, plot


class _Commands(TyperGroup):
    """The commands, whose every exception becomes an exit code and a line on stderr."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        # Whoever runs a command again to see more writes the option last.
        end = args.index("--") if "--" in args else len(args)
        if "--debug" in args[:end]:
            ctx.params["debug"] = True
            args = [each for each in args[:end] if each != "--debug"] + args[end:]
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (Exception, KeyboardInterrupt) as error:
            if isinstance(error, (typer.Exit, typer.Abort)) or _is_usage(error):
                raise
            debug = ctx.params["debug"]
            raise typer.Exit(tell(error, command=ctx.invoked_subcommand, debug=debug)) from error


def _is_usage(error: BaseException) -> bool:
    """Whether it is an error of click, which typer carries in itself or not, by its version."""
    return hasattr(error, "format_message") and hasattr(error, "exit_code")


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _print_versions(wanted: bool) -> None:
    if wanted:
        for package in ("stal", "torch", "diffusers", "transformers"):
            try:
                print(package, version(package))
            except PackageNotFoundError:
                print(package, "not installed")
        print("python", sys.version.split()[0])
        print("`python -m stal_kernels` shows the backends")
        raise typer.Exit


@app.callback()
def stal(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show where an error comes from (its traceback).")
    ] = False,
    version: Annotated[
        bool,
        typer.Option("--version", help="Show versions.", callback=_print_versions, is_eager=True),
    ] = False,
) -> None:
    """Text-to-image with every object in its place (arXiv 2304.03869)."""


app.command()(generate)
app.command()(generate_batch)
app.command("app")(open_page)
app.command()(serve)
app.command()(plot)
app.command()(fit_schedule)
app.command()(evaluate)
app.command()(train_shapes)
app.command("layout")(show_layout)
app.command()(train_layout)
app.command()(evaluate_layout)
app.command()(comfyui)


def main() -> None:
    """Runs the command.

    Exit code 0; 1 for an error, of whatever kind, which is one line on stderr; 2 for wrong usage;
    130 for an interruption. `generate-batch` has 3 where some prompts could not be drawn, and 143
    where it was asked to terminate.
    """
    stdout = sys.stdout
    with outlets():
        code = _run()
    try:
        stdout.flush()
    except OSError as error:
        with outlets():
            code = code or tell(error, command=None, debug=False)
        # Python would try to write the rest again, and complain.
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), stdout.fileno())
    if code:
        sys.exit(code)


def _run() -> int:
    """Runs the command and says what went wrong; the exit code."""
    try:
        return app(standalone_mode=False) or 0
    except typer.Abort:
        return 1
    except SystemExit as stop:  # of typer itself, where nobody reads stdout
        return int(stop.code or 0)
    except (Exception, KeyboardInterrupt) as error:
        if not _is_usage(error):
            return tell(error, command=None, debug=False)
        add_hint(error)
        error.show(file=sys.stderr)  # type: ignore[union-attr]
        return error.exit_code  # type: ignore[union-attr]


if __name__ == "__main__":
    main()
