"""Draws a benchmark: how many times faster than plain PyTorch or a library call, case by case.

    python bench/plot.py bench/results/gpu_check.json --output bench/results/gpu_check.svg
    python bench/plot.py results/blended.json --against "one SDPA" --passes forward

Reads the JSON of bench/gpu_check.py and of bench/bench_blended_attention.py --output. Bars are
ratios of medians, whiskers the 20th and 80th percentiles; the line at 1 is what is compared with,
so that a bar below it is a loss.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

RIVALS = (
    "eager",
    "loop",
    "one SDPA",
    "compiled",
    # Those of rivals.py.
    "one SDPA cuDNN",
    "loop cuDNN",
    "varlen",
    "FA3",
    "flex",
    "flex FLASH",
)


def main(
    results: Annotated[Path, typer.Argument(help="JSON of a benchmark.")],
    output: Annotated[Path, typer.Option(help="An .svg or .png.")] = Path("benchmark.svg"),
    against: Annotated[str, typer.Option(help=f"One of {', '.join(RIVALS)}.")] = "loop",
    passes: Annotated[str, typer.Option(help="Comma-separated; all if empty.")] = "",
) -> None:
    """Draw the ratios of one benchmark."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise typer.BadParameter("matplotlib is missing: pip install 'stal[plot]'") from error
    if against not in RIVALS:
        raise typer.BadParameter(f"against must be one of {', '.join(RIVALS)}, got {against}")
    record = json.loads(results.read_text(encoding="utf-8"))
    groups = ratios(record, against, [name for name in passes.split(",") if name])
    if not groups:
        raise typer.BadParameter(f"{results} holds no times beside {against} of these passes")
    height = 1.2 + 0.22 * sum(len(bars) + 1 for bars in groups.values())
    figure = Figure(figsize=(8, height), layout="constrained")
    axes = figure.subplots()
    labels, ticks, y = [], [], 0.0
    backends = list(dict.fromkeys(name for bars in groups.values() for name in bars))
    for case, bars in groups.items():
        ticks.append(y + (len(bars) - 1) / 2)
        labels.append(case)
        for backend, (low, middle, high) in bars.items():
            whiskers = [[middle - low], [high - middle]]
            colour = f"C{backends.index(backend)}"
            axes.barh(y, middle, 0.9, color=colour, xerr=whiskers, ecolor="0.3")
            axes.annotate(f" {middle:.2f}", (high, y), va="center", fontsize=7)
            y += 1
        y += 1
    for i, backend in enumerate(backends):
        axes.barh(0, 0, color=f"C{i}", label=backend)
    axes.axvline(1, color="0.3", linewidth=1)
    axes.set_yticks(ticks, labels, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel(f"times faster than {against}")
    axes.margins(x=0.12)
    axes.legend(loc="lower right")
    machine = record["machine"]
    axes.set_title(f"{machine.get('gpu', 'none')} / {machine['cpu']}".removeprefix("none / "))
    figure.savefig(output)
    print(f"written to {output}")


def ratios(
    record: dict[str, Any], against: str, passes: list[str]
) -> dict[str, dict[str, tuple[float, float, float]]]:
    """By case and pass, then by backend: the median's ratio and those of its quantiles."""
    rows = record["times"] if "times" in record else record["rows"]
    groups: dict[str, dict[str, dict[str, float]]] = {}
    for row in rows:
        seconds = row["_seconds"] if "_seconds" in row else row["seconds"]
        # A rival that cannot run has none.
        if seconds and (not passes or row["pass"] in passes):
            groups.setdefault(f"{row['case']}, {row['pass']}", {})[row["backend"]] = seconds
    found = {}
    for group, times in groups.items():
        if against in times:
            rival = times[against]["median"]
            found[group] = {
                backend: (rival / s["p80"], rival / s["median"], rival / s["p20"])
                for backend, s in times.items()
                if backend not in RIVALS
            }
    return found


if __name__ == "__main__":
    typer.run(main)
