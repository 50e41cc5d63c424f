"""`stal plot` and `stal fit-schedule`: weights as a figure, and a schedule for many prompts."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stal.cli.options import (
    ClipOption,
    DeviceOption,
    ModelOption,
    QuietOption,
    StepsOption,
    check_apart,
)
from stal.files import check_writable, read_lines

if TYPE_CHECKING:
    from stal.pipeline import Pipeline
    from stal.weights.files import WeightSchedule


def plot(
    source: Annotated[
        Path, typer.Argument(help="Weights file, schedule, or what `stal generate` wrote.")
    ],
    output: Annotated[Path, typer.Option(help="A .png, .svg or .pdf.")] = Path("weights.png"),
) -> None:
    """Draw the weights over the steps, a line an object."""
    check_writable(output)
    check_apart(output, source, name="output", read_name="source")

    from stal.weights import plot as weight_plot

    weight_plot.plot(source, output)
    print(output, flush=True)


def fit_schedule(
    output: Annotated[Path, typer.Option(help="JSON file to write.")] = Path("schedule.json"),
    prompts: Annotated[
        Path | None,
        typer.Option(help="File of prompts, one a line; the shapes world's if absent."),
    ] = None,
    shapes: Annotated[
        int | None,
        typer.Option(
            min=1, max=100_000, help="Prompts of the shapes world for each number of objects. [64]"
        ),
    ] = None,
    model: ModelOption = None,
    clip: ClipOption = None,
    start: Annotated[
        Path | None, typer.Option(help="Schedule to start from; the default weights if absent.")
    ] = None,
    knots: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Values over time, without --start. [4]")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1)] = 4,
    lr: Annotated[float, typer.Option(help="Adam's.")] = 0.05,
    crop_weight: Annotated[float, typer.Option(help="Weight of the crops in the loss.")] = 5.0,
    batch: Annotated[int, typer.Option(min=1, help="Prompts an update looks at.")] = 16,
    steps: StepsOption = None,
    seed: Annotated[int, typer.Option(help="Of the noise, and of the shapes world's prompts.")] = 0,
    device: DeviceOption = "cpu",
    quiet: QuietOption = False,
) -> None:
    """Fit one schedule of weights to many prompts by CLIP.

    The run is kept beside the output and goes on from there if it is killed.
    `stal generate PROMPT --weights schedule.json` draws with the result.
    """
    check_writable(output)
    check_apart(output, prompts, name="output", read_name="prompts")
    if shapes is not None and prompts is not None:
        raise ValueError("shapes must not be given with --prompts, which has them")
    if knots is not None and start is not None:
        raise ValueError("knots must not be given with --start, which has them")
    # Before anything slow begins.
    if prompts is None:
        texts = _shapes_prompts(shapes or 64, seed)
    else:
        texts = read_lines(prompts, name="prompts")

    from stal.model.clip import load
    from stal.model.model import clip_folder
    from stal.optimize import Options, schedule
    from stal.pipeline import Pipeline
    from stal.settings import Settings
    from stal.weights.files import WeightSchedule

    pipe = Pipeline.from_pretrained(model, device=device)
    scorer = load(clip or clip_folder(pipe.model), device=device)
    settings = Settings(steps=steps)
    drawings = [
        pipe.prepare(
            texts[i : i + batch],
            settings,
            seed=[seed + i + j for j in range(len(texts[i : i + batch]))],
        )
        for i in range(0, len(texts), batch)
    ]
    sizes = {len(job.layout.objects) for drawing in drawings for job in drawing.jobs} - {0}
    if not sizes:
        raise ValueError("prompts must name objects to place, got none that does")
    first = _start(pipe, sizes, knots or 4) if start is None else WeightSchedule.load(start)
    options = Options(epochs=epochs, lr=lr, crop_weight=crop_weight)
    run = output.with_suffix(".run.json")
    found, losses = schedule(drawings, scorer, options, start=first, path=run, quiet=quiet)
    about = {
        "model": pipe.model.name,
        "prompts": f"{len(texts)} of {prompts.name if prompts else 'the shapes world'}",
        "steps": drawings[0].schedule.steps,
        "losses": losses,
    }
    WeightSchedule(found.knots, about).save(output)
    print(output, flush=True)


def _start(pipe: Pipeline, sizes: Iterable[int], knots: int) -> WeightSchedule:
    """The default weights of as many steps as there are knots, for each number of objects."""
    from stal.settings import UNCONDITIONAL
    from stal.weights import default_weights
    from stal.weights.files import WeightSchedule

    reference_is_prompt = pipe.defaults.reference != UNCONDITIONAL
    weights = {n: default_weights(knots, n, reference_is_prompt=reference_is_prompt) for n in sizes}
    return WeightSchedule({n: tuple(each[:, 0].tolist()) for n, each in weights.items()})


def _shapes_prompts(each: int, seed: int) -> list[str]:
    """Prompts of the training split with 1 to 4 objects, mixed."""
    from stal.shapes.cases import draw_cases

    groups = [draw_cases(each, objects=n, seed=seed, held_out=False) for n in range(1, 5)]
    return [case.prompt for cases in zip(*groups, strict=True) for case in cases]
