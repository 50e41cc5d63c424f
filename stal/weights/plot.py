"""The weights over time as a figure, a line an object, as in the paper (arXiv 2304.03869)."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path
from typing import Any

import torch

from stal.checked_json import read_json
from stal.echo import plot_label
from stal.extras import check_installed
from stal.files import write_atomic
from stal.weights.files import WeightSchedule

# What can be told apart in one figure.
_MOST_PANELS, _MOST_LINES = 50, 200


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

    with_loss = any(losses for _, _, losses, _ in panels)
    size = (10 if with_loss else 6, 0.6 + 2.6 * len(panels))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(panels), 1 + with_loss, squeeze=False)
    for row, (title, lines, losses, online) in zip(grid, panels, strict=True):
        for label, values in lines.items():
            row[0].plot(values, label=plot_label(label))
        row[0].axhline(0, color="0.7", linewidth=0.8, zorder=0)
        row[0].set(title=plot_label(title[:200]), xlabel=x_label, ylabel="weight")
        if lines:
            row[0].legend(fontsize="small")
        if with_loss:
            row[1].plot(losses, color="0.3", marker=".")
            row[1].set(title="CLIP loss", xlabel="look" if online else "epoch")
    write_atomic(output, saved(figure, kind))


def saved(figure: Any, kind: str) -> bytes:
    """A figure of matplotlib as a "png", "svg" or "pdf".

    Letters that its font lacks are boxes, of which it would warn one by one.
    """
    data = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        figure.savefig(data, format=kind, dpi=120)
    return data.getvalue()


# Title, weights by object, losses, and whether these are of one drawing and not of epochs.
Panel = tuple[str, dict[str, list[float]], list[float], bool]


def _panels(source: str | os.PathLike[str]) -> list[Panel]:
    """What a file says of each of its prompts, or of the numbers of objects of a schedule."""
    record = _record(source)
    if "knots" in record:
        schedule = WeightSchedule.from_json(record, source=source)
        lines = {
            f"{n} object{'s' * (n > 1)}": schedule(101, n)[:, 0].tolist()
            for n in sorted(schedule.knots)
        }
        return [("schedule", lines, [], False)]
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
            losses = [float(each["loss"]) for each in trace]
            online = any("step" in each for each in trace)
            lines = dict(zip(names, columns, strict=True))
            panels.append((str(prompt), lines, losses, online))
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError, OverflowError) as e:
        raise ValueError(f"{source} must hold weights with their layout, got others") from e
    if len(panels) > _MOST_PANELS or any(len(lines) > _MOST_LINES for _, lines, _, _ in panels):
        got = f"{len(panels)} prompts"
        rule = f"hold at most {_MOST_PANELS} prompts of {_MOST_LINES} objects"
        raise ValueError(f"{source} must {rule} to be plotted, got {got} or more objects")
    if not panels:
        raise ValueError(f"{source} must hold weights with their layout, got none")
    return panels


def _record(source: str | os.PathLike[str]) -> dict[str, Any]:
    if Path(source).suffix.lower() == ".png":
        from stal.picture import read_record

        return read_record(source)
    return read_json(Path(source))
