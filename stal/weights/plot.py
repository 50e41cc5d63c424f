"""The weights over time as a figure, a line an object, as in the paper (arXiv 2304.03869)."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from stal.checked_json import read_json
from stal.echo import plot_label
from stal.extras import check_installed
from stal.files import write_atomic
from stal.weights.files import WeightSchedule


def plot(source: str | os.PathLike[str], output: str | os.PathLike[str]) -> None:
    """Draws what a file says about weights: a line an object over the steps, one panel a prompt,
    and of an optimised run the loss by epoch beside it.

    Args:
        source: a weights file of `stal.optimize`, the settings of `stal generate --json`, a picture
            of `stal generate`, or a schedule.
        output: .png, .svg or .pdf.

    Raises:
        ValueError: the source holds no weights, output is of another kind, or there is no
            matplotlib.
    """
    check_installed("matplotlib", "the plot")
    kind = Path(output).suffix.lower().removeprefix(".")
    if kind not in ("png", "svg", "pdf"):
        raise ValueError(f"output must be a .png, .svg or .pdf, got {output}")
    panels = _panels(source)
    x_label = "step" if panels[0][0] != "schedule" else "% of the steps"
    from matplotlib.figure import Figure

    with_loss = any(trace for _, _, trace in panels)
    size = (10 if with_loss else 6, 0.6 + 2.6 * len(panels))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(panels), 1 + with_loss, squeeze=False)
    for row, (title, lines, trace) in zip(grid, panels, strict=True):
        for label, values in lines.items():
            row[0].plot(values, label=plot_label(label))
        row[0].axhline(0, color="0.7", linewidth=0.8, zorder=0)
        row[0].set(title=plot_label(title[:200]), xlabel=x_label, ylabel="weight")
        if lines:
            row[0].legend(fontsize="small")
        if with_loss:
            row[1].plot([each["loss"] for each in trace], color="0.3", marker=".")
            online = "step" in trace[0] if trace else False
            row[1].set(title="CLIP loss", xlabel="look" if online else "epoch")
    data = io.BytesIO()
    figure.savefig(data, format=kind, dpi=120)
    write_atomic(output, data.getvalue())


Panel = tuple[str, dict[str, list[float]], Sequence[Mapping[str, float]]]


def _panels(source: str | os.PathLike[str]) -> list[Panel]:
    """Title, weights by object, and the run's trace for each prompt in a file."""
    record = _record(source)
    if "knots" in record:
        schedule = WeightSchedule.from_json(record, source=source)
        lines = {
            f"{n} object{'s' * (n > 1)}": schedule(101, n)[:, 0].tolist()
            for n in sorted(schedule.knots)
        }
        return [("schedule", lines, ())]
    try:
        if "prompts" in record:
            weights, traces = record["weights"], record["trace"]
            layouts, prompts = record["layouts"], record["prompts"]
        else:
            optimized = record.get("optimize") or {}
            weights, traces = [record["weights"]], [optimized.get("trace", ())]
            layouts, prompts = [record["layout"]], [record["prompt"]]
        panels: list[Panel] = []
        for values, trace, layout, prompt in zip(weights, traces, layouts, prompts, strict=True):
            phrases = [item["phrase"] for item in layout["objects"]]
            columns = (
                torch.tensor(values, dtype=torch.float32, device="cpu")
                .reshape(len(values), len(phrases))
                .T.tolist()
            )
            # Two objects may have one phrase.
            names = [f"{i + 1} {phrase}" for i, phrase in enumerate(phrases)]
            panels.append((prompt, dict(zip(names, columns, strict=True)), trace))
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise ValueError(f"{source} must hold weights with their layout, got others") from error
    return panels


def _record(source: str | os.PathLike[str]) -> dict[str, Any]:
    if Path(source).suffix.lower() == ".png":
        from stal.picture import read_record

        return read_record(source)
    return read_json(Path(source))
