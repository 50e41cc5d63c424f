"""How often pictures of the shapes world are wholly right, by method and number of objects.

Prompts are of the test split: combinations of objects that training never saw. Every method draws
the same prompts from the same noise. A picture is wholly right if the exact detector finds every
object with its colour and shape, every stated relation between the centres, and nothing else. A
thing of another colour than the prompt says is something extra.

    python bench/bench_shapes.py --prompts 200 --output bench/results
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from timing import machine
from tqdm import tqdm

from stal.evaluation import detectors
from stal.evaluation.intervals import interval
from stal.evaluation.metrics import Verdict, judge
from stal.extras import check_installed
from stal.layout import Layout, place
from stal.layout.predictor import predict
from stal.pipeline import Pipeline
from stal.prompts import parse
from stal.settings import Settings
from stal.shapes.cases import draw_cases

_SETTINGS = {
    "plain": Settings(attention="plain"),
    "spatial": Settings(attention="spatial"),
    "spatial-temporal": Settings(attention="spatial-temporal"),
    "unconditional": Settings(attention="spatial", reference="unconditional"),
    "convex": Settings(attention="spatial", rule="convex"),
}
_LAYOUTS: dict[str, Callable[[Layout], Layout]] = {
    "true": lambda case: case,
    "predicted": lambda case: predict(parse(case.prompt)),
    "placed": lambda case: place(parse(case.prompt)),
}


@dataclass(frozen=True)
class Tally:
    """One method on the prompts of one number of objects: counts out of images."""

    method: str
    layout: str
    objects: int
    images: int
    correct: int
    found: float
    placed: float
    relations: int
    extra: int
    seconds: float


def evaluate(
    pipe: Pipeline, cases: list[Layout], settings: Settings, *, layout: str, batch: int
) -> list[Verdict]:
    """Draws every case from the noise of its own number and judges the pictures.

    layout: "true" (of the scene that the prompt was written for), "predicted" (of the bundled
    layout predictor) or "placed" (by rules).
    """
    verdicts: list[Verdict] = []
    for start in range(0, len(cases), batch):
        part = cases[start : start + batch]
        layouts: list[Layout | None] = [_LAYOUTS[layout](case) for case in part]
        drawn = pipe.batch(
            [case.prompt for case in part],
            settings,
            layouts=layouts,
            seed=list(range(start, start + len(part))),
        )
        objects = [parse(case.prompt).objects for case in part]
        found = detectors.shapes([r.images[0] for r in drawn], objects)
        verdicts += [
            judge(seen, wanted, r.layout.relations, [o.box for o in r.layout.objects])
            for seen, wanted, r in zip(found, objects, drawn, strict=True)
        ]
    return verdicts


def main(
    prompts: Annotated[int, typer.Option(help="Prompts for each number of objects.")] = 200,
    methods: Annotated[str, typer.Option(help="Comma-separated.")] = ",".join(_SETTINGS),
    objects: Annotated[str, typer.Option(help="Numbers of objects, comma-separated.")] = "1,2,3,4",
    layouts: Annotated[str, typer.Option(help="Of placed, predicted, true.")] = "placed,true",
    model: Annotated[Path | None, typer.Option(help="Folder; the bundled model if absent.")] = None,
    seed: Annotated[int, typer.Option(help="Of the prompts.")] = 1,
    batch: Annotated[int, typer.Option(help="Pictures drawn at once.")] = 50,
    output: Annotated[Path | None, typer.Option(help="Folder for shapes.json and .md.")] = None,
) -> None:
    """Print the table."""
    check_installed("scipy", "the intervals")
    for option, text, known in (
        ("methods", methods, list(_SETTINGS)),
        ("layouts", layouts, list(_LAYOUTS)),
        ("objects", objects, ["1", "2", "3", "4"]),
    ):
        for name in text.split(","):
            if name not in known:
                raise typer.BadParameter(f"{option} must be of {', '.join(known)}, got {name!r}")
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
    pipe = Pipeline.from_pretrained(model)
    rows = []
    work = [
        (method, layout, int(count))
        for count in objects.split(",")
        for layout in layouts.split(",")
        for method in methods.split(",")
        # Plain attention has no layout; one only fixes where objects should have been.
        if method != "plain" or layout == layouts.split(",")[-1]
    ]
    for method, layout, count in tqdm(work):
        cases = draw_cases(prompts, objects=count, seed=seed)
        start = time.perf_counter()
        verdicts = evaluate(pipe, cases, _SETTINGS[method], layout=layout, batch=batch)
        total = max(sum(v.objects for v in verdicts), 1)
        rows.append(
            Tally(
                method=method,
                layout=layout if method != "plain" else "none",
                objects=count,
                images=len(verdicts),
                correct=sum(v.correct for v in verdicts),
                found=sum(v.found for v in verdicts) / total,
                placed=sum(v.placed for v in verdicts) / total,
                relations=sum(v.relations_hold == v.relations for v in verdicts),
                extra=sum(v.extra + v.nouns > v.found for v in verdicts),
                seconds=(time.perf_counter() - start) / len(verdicts),
            )
        )
    text = table(rows)
    print(text)
    if output is not None:
        record = {**machine(), "seed": seed, "rows": [asdict(row) for row in rows]}
        (output / "shapes.json").write_text(json.dumps(record, indent=2) + "\n")
        (output / "shapes.md").write_text(text + "\n")


def table(rows: list[Tally]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| objects | method | layout | wholly right | 95% interval | objects found | in place "
        "| relations hold | something extra | s/image |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        low, high = interval(r.correct, r.images)
        lines.append(
            f"| {r.objects} | {r.method} | {r.layout} | {r.correct / r.images:.1%} "
            f"| {low:.1%} to {high:.1%} | {r.found:.1%} | {r.placed:.1%} "
            f"| {r.relations / r.images:.1%} | {r.extra / r.images:.1%} | {r.seconds:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    typer.run(main)
