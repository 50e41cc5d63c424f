"""From rows to what one reads: tables with intervals, plots, a contact sheet, a page of pictures.

Everything is made of `results.jsonl` and the pictures beside it, so a report can be made again.
"""

from __future__ import annotations

import csv
import html
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from stal.echo import csv_cell, harmless, markdown, markdown_table, plot_label
from stal.evaluation.harness import ResultRow
from stal.evaluation.intervals import Estimate
from stal.evaluation.metrics import METRICS, Metric, difference, estimate
from stal.files import write_atomic
from stal.weights.plot import saved

if TYPE_CHECKING:
    from numpy.typing import NDArray

ALL = "all"
# The contact sheet is for README and mail.
SHEET_BYTES = 1_000_000
Counts = dict[tuple[str, str, str], "NDArray[Any]"]


def write_report(
    folder: Path, rows: Sequence[ResultRow], methods: Sequence[str], *, title: str
) -> None:
    """Writes summary.csv, summary.md, the plots, contact_sheet.png and index.html.

    Args:
        folder: of the results.
        rows: of every method, the same prompts and seeds.
        methods: in the order of the tables; the last one is compared with every other.
        title: what was drawn, for headings.
    """
    counts, kinds = count(rows, methods)
    write_atomic(folder / "summary.csv", summary_csv(counts, kinds, methods).encode())
    text = summary_markdown(rows, counts, kinds, methods, title=title)
    write_atomic(folder / "summary.md", text.encode())
    for name, data in plots(counts, kinds, methods, title=title).items():
        write_atomic(folder / name, data)
    write_atomic(folder / "contact_sheet.png", contact_sheet(folder, rows, methods))
    write_atomic(folder / "index.html", page(rows, methods, title=title).encode())


def count(rows: Sequence[ResultRow], methods: Sequence[str]) -> tuple[Counts, list[str]]:
    """Sums over the seeds of each prompt.

    Returns:
        (method, kind, metric name) -> (prompts, 2), numerator and denominator as `Metric.counts`
        has them, and the kinds, the first of which is all.
    """
    import numpy as np

    named = list(dict.fromkeys(row.kind for row in rows if row.kind != ALL))
    kinds = [ALL, *named] if len(named) > 1 else [ALL]
    prompts = {k: sorted({row.index for row in rows if k in (ALL, row.kind)}) for k in kinds}
    counts: Counts = {}
    for kind in kinds:
        place = {index: i for i, index in enumerate(prompts[kind])}
        for method in methods:
            mine = [row for row in rows if row.method == method and row.index in place]
            for metric in METRICS:
                sums = np.zeros((len(place), 2))
                for row in mine:
                    sums[place[row.index]] += metric.counts(vars(row))
                counts[method, kind, metric.name] = sums
    return counts, kinds


def summary_csv(counts: Counts, kinds: Sequence[str], methods: Sequence[str]) -> str:
    """Every value and, in lines with `minus`, every difference of two methods."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["kind", "metric", "method", "minus", "value", "low", "high", "prompts"])
    for kind in kinds:
        for metric in METRICS:
            for k, method in enumerate(methods):
                mine = counts[method, kind, metric.name]
                found = estimate(mine, percent=metric.percent)
                lines = [("", found)]
                lines += [
                    (other, difference(mine, counts[other, kind, metric.name]))
                    for other in methods[:k]
                ]
                for minus, e in lines:
                    numbers = ["" if math.isnan(v) else f"{v:.6g}" for v in asdict(e).values()]
                    names = map(csv_cell, (kind, metric.name, method, minus))
                    writer.writerow([*names, *numbers, len(mine)])
    return out.getvalue()


def summary_markdown(
    rows: Sequence[ResultRow],
    counts: Counts,
    kinds: Sequence[str],
    methods: Sequence[str],
    *,
    title: str,
) -> str:
    """Tables of every metric, of all-correct by kind, and of differences."""
    prompts = len({row.index for row in rows})
    images = len(rows) // len(methods)
    correct = METRICS[0]
    lines = [
        f"# {markdown(title)}",
        "",
        f"{prompts} prompts, {images} images a method. In brackets 95% intervals (bootstrap over"
        " prompts with their seeds together).",
        "",
    ]
    lines += _table(
        "method",
        [metric.title for metric in METRICS],
        {
            method: [
                _cell(estimate(counts[method, ALL, m.name], percent=m.percent), m) for m in METRICS
            ]
            for method in methods
        },
    )
    if len(kinds) > 1:
        lines += ["", "## All correct, by kind of prompt", ""]
        lines += _table(
            "method",
            [f"{kind} ({len(counts[methods[0], kind, correct.name])})" for kind in kinds],
            {
                method: [_cell(estimate(counts[method, k, correct.name]), correct) for k in kinds]
                for method in methods
            },
        )
    if len(methods) > 1:
        ours = methods[-1]
        lines += ["", f"## {ours} minus each other method, on the same prompts and noise", ""]
        lines += _table(
            "minus",
            [metric.title for metric in METRICS],
            {
                other: [
                    _cell(
                        difference(counts[ours, ALL, m.name], counts[other, ALL, m.name]),
                        m,
                        signed=True,
                    )
                    for m in METRICS
                ]
                for other in methods[:-1]
            },
        )
    return "\n".join(lines) + "\n"


def _table(corner: str, head: Sequence[str], body: Mapping[str, Sequence[str]]) -> list[str]:
    return markdown_table([corner, *head], [[name, *cells] for name, cells in body.items()])


def _cell(e: Estimate, metric: Metric, *, signed: bool = False) -> str:
    if math.isnan(e.value):
        return "-"
    sign = "+" if signed else ""
    if metric.percent:
        return f"{100 * e.value:{sign}.1f}% [{100 * e.low:{sign}.1f}, {100 * e.high:{sign}.1f}]"
    return f"{e.value:{sign}.3g} [{e.low:{sign}.3g}, {e.high:{sign}.3g}]"


def plots(
    counts: Counts, kinds: Sequence[str], methods: Sequence[str], *, title: str
) -> dict[str, bytes]:
    """PNG files by name: all-correct by kind of prompt, and every share of things right."""
    from matplotlib.figure import Figure

    shares = [metric for metric in METRICS if metric.percent]
    wanted = {
        "all_correct.png": [(kind, kind, METRICS[0]) for kind in kinds],
        "metrics.png": [(metric.title, ALL, metric) for metric in shares],
    }
    files = {}
    for name, columns in wanted.items():
        figure = Figure(figsize=(max(6.0, 1.3 * len(columns) + 2), 4.2), layout="constrained")
        axes = figure.subplots()
        for k, method in enumerate(methods):
            found = [estimate(counts[method, kind, m.name]) for _, kind, m in columns]
            at = [i + 0.8 * ((k + 0.5) / len(methods) - 0.5) for i in range(len(columns))]
            axes.errorbar(
                at,
                [100 * e.value for e in found],
                # Rounding may put the value outside its interval by a hair.
                yerr=[
                    [100 * max(e.value - e.low, 0.0) for e in found],
                    [100 * max(e.high - e.value, 0.0) for e in found],
                ],
                fmt="osD^"[k // 10 % 4],
                color=f"C{k % 10}",
                capsize=2,
                label=method,
            )
        for i in range(len(columns) - 1):
            axes.axvline(i + 0.5, color="0.9", linewidth=1)
        axes.set_xticks(range(len(columns)), [_folded(label) for label, _, _ in columns])
        axes.set_ylim(-3, 103)
        axes.set_ylabel("% (95% interval)")
        what = "all correct: " if name == "all_correct.png" else ""
        axes.set_title(f"{what}{plot_label(title)}", fontsize=9)
        axes.grid(axis="y", alpha=0.3)
        figure.legend(loc="outside right upper", fontsize=8)
        files[name] = saved(figure, "png")
    return files


def _folded(label: str) -> str:
    return plot_label(label).replace(", ", ",\n").replace(" ", "\n", 1)


def contact_sheet(
    folder: Path,
    rows: Sequence[ResultRow],
    methods: Sequence[str],
    *,
    cell: int = 128,
    lines: int = 16,
    max_bytes: int = SHEET_BYTES,
) -> bytes:
    """A PNG with a line a prompt and a column a method, the same noise along a line.

    Prompts are taken from every kind in turn, with their first seed. A picture that is wholly right
    has a green frame, another a red one. Lines are left out until it has at most max_bytes.

    Args:
        folder: that images are relative to.
        rows, methods: see `write_report`.
        cell: side of a picture in pixels.
        lines: prompts at most.
        max_bytes: size of the file; a sheet of one line may be larger.
    """
    chosen = _spread(rows, lines)
    while True:
        data = _sheet(folder, rows, methods, chosen, cell)
        if len(data) <= max_bytes or len(chosen) == 1:
            return data
        chosen = chosen[: max(1, min(len(chosen) - 1, len(chosen) * max_bytes // len(data)))]


def _spread(rows: Sequence[ResultRow], lines: int) -> list[tuple[int, int]]:
    """(index, seed) of the first seed of up to `lines` prompts, a kind after the other in turn."""
    first: dict[str, dict[int, int]] = {}
    for row in rows:
        mine = first.setdefault(row.kind, {})
        mine[row.index] = min(row.seed, mine.get(row.index, row.seed))
    queues = [list(mine.items()) for mine in first.values()]
    found: list[tuple[int, int]] = []
    for turn in range(max(map(len, queues), default=0)):
        found += [queue[turn] for queue in queues if turn < len(queue)]
    kinds = list(first)
    kind_of = {row.index: kinds.index(row.kind) for row in rows}
    return sorted(found[:lines], key=lambda pair: (kind_of[pair[0]], pair))


def _sheet(
    folder: Path,
    rows: Sequence[ResultRow],
    methods: Sequence[str],
    chosen: Sequence[tuple[int, int]],
    cell: int,
) -> bytes:
    from PIL import Image, ImageDraw, ImageFont

    by_key = {(row.method, row.index, row.seed): row for row in rows}
    font = ImageFont.load_default(size=max(9, cell // 11))
    text, gap = cell // 5, cell // 16
    width = gap + len(methods) * (cell + gap)
    step = text + cell + gap
    canvas = Image.new("RGB", (width, text + len(chosen) * step), "white")
    pen = ImageDraw.Draw(canvas)
    for column, method in enumerate(methods):
        x = gap + column * (cell + gap)
        label = _cut(method, font, cell)
        pen.text((x + cell / 2, text / 2), label, fill="black", font=font, anchor="mm")
    for line, (index, seed) in enumerate(chosen):
        top = text + line * step
        for column, method in enumerate(methods):
            row = by_key[method, index, seed]
            x = gap + column * (cell + gap)
            with Image.open(folder / row.image) as image:
                small = image.convert("RGB")
            small.thumbnail((cell, cell), Image.Resampling.LANCZOS)
            if max(small.size) < cell:
                factor = cell / max(small.size)
                size = (round(small.width * factor), round(small.height * factor))
                small = small.resize(size, Image.Resampling.BICUBIC)
            if column == 0:
                words = _cut(f"{row.prompt}  (seed {seed})", font, width - 2 * gap)
                pen.text((gap, top + text / 2), words, fill="black", font=font, anchor="lm")
            left, up = x + (cell - small.width) // 2, top + text + (cell - small.height) // 2
            canvas.paste(small, (left, up))
            frame = (x - 2, top + text - 2, x + cell + 1, top + text + cell + 1)
            pen.rectangle(frame, outline="#2a9d2a" if row.correct else "#d04030", width=2)
    buffer = io.BytesIO()
    canvas.quantize(256).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _cut(text: str, font: Any, width: float) -> str:
    """The text on one line, shortened until it fits."""
    text = harmless(" ".join(text.split()))[:1000]
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"


_PAGE = Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>$title</title>
<style>
body { font: 14px system-ui, sans-serif; margin: 1em }
label { margin-right: 1.5em }
table { border-collapse: collapse }
th { text-align: left; font-weight: 600; padding: .3em }
td { padding: .3em; vertical-align: top }
td.prompt { max-width: 16em }
figure { position: relative; margin: 0; width: 192px; border: 3px solid #d04030 }
figure.correct { border-color: #2a9d2a }
img { display: block; width: 100% }
.box { position: absolute; box-sizing: border-box; display: none; overflow: visible }
.box span { font-size: 10px; background: #fffc; position: absolute; top: 0; left: 0 }
.layout { border: 2px dashed #0072b2 }
.seen { border: 2px solid #e69f00 }
.seen span { top: auto; bottom: 0 }
#layout:checked ~ table .layout, #seen:checked ~ table .seen { display: block }
#unequal:checked ~ table tr.equal { display: none }
small { color: #666 }
</style>
<h1>$title</h1>
<p>Pictures of one line are drawn from the same noise. Green frame: wholly right.
<a href="summary.md">Summary</a>, <a href="results.jsonl">rows</a>.</p>
<input type="checkbox" id="layout"><label for="layout">boxes of the layout (dashed)</label>
<input type="checkbox" id="seen"><label for="seen">what the detector saw (solid)</label>
<input type="checkbox" id="unequal"><label for="unequal">only where methods differ</label>
<table>
<tr><th>prompt</th>$head</tr>
$body
</table>
</html>
""")


def page(rows: Sequence[ResultRow], methods: Sequence[str], *, title: str) -> str:
    """An HTML page of all pictures, a line a prompt and seed; boxes are shown when ticked."""
    by_key = {(row.method, row.index, row.seed): row for row in rows}
    lines = []
    for index, seed in sorted({(row.index, row.seed) for row in rows}):
        mine = [by_key[method, index, seed] for method in methods]
        equal = len({row.correct for row in mine}) == 1
        prompt = html.escape(mine[0].prompt)
        about = f"{html.escape(mine[0].kind)}, prompt {index}, seed {seed}"
        cells = "".join(f"<td>{_figure(row)}</td>" for row in mine)
        kind = ' class="equal"' if equal else ""
        lines.append(
            f'<tr{kind}><td class="prompt">{prompt}<br><small>{about}</small></td>{cells}</tr>'
        )
    head = "".join(f"<th>{html.escape(method)}</th>" for method in methods)
    return _PAGE.substitute(title=html.escape(title), head=head, body="\n".join(lines))


def _figure(row: ResultRow) -> str:
    boxes = [_box("layout", placed["phrase"], placed["box"]) for placed in row.layout]
    boxes += [_box("seen", f"{d['name']} {d['score']:.2f}", d["box"]) for d in row.detections]
    source, words = html.escape(row.image), html.escape(f"{row.prompt}, by {row.method}")
    image = f'<img loading="lazy" src="{source}" alt="{words}">'
    return (
        f'<figure class="{"correct" if row.correct else "wrong"}">{image}{"".join(boxes)}</figure>'
    )


def _box(kind: str, name: str, box: Sequence[float]) -> str:
    x0, y0, x1, y1 = (100 * edge for edge in box)
    place = f"left:{x0:.2f}%;top:{y0:.2f}%;width:{x1 - x0:.2f}%;height:{y1 - y0:.2f}%"
    return f'<div class="box {kind}" style="{place}"><span>{html.escape(name)}</span></div>'
