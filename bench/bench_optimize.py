"""Time and memory of optimising weights, beside those of one generation.

Each row runs in a process of its own. Memory is the peak of the resident set above that after
loading, so Linux alone knows it. "sd15" is a UNet of Stable Diffusion 1.5's size with random
weights on latents of 64 x 64, with the bundled model's text encoder (40 tokens) and autoencoder.

    python bench/bench_optimize.py --output bench/results
"""

from __future__ import annotations

import json
import statistics
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import torch
import typer
from timing import machine
from tqdm import tqdm

from stal.evaluation.harness import Meter
from stal.model import clip
from stal.model.model import Model, bundled_model
from stal.model.unet import UNet
from stal.model.unet_config import UNetConfig
from stal.optimize import Options, online, trajectory
from stal.pipeline import Pipeline
from stal.settings import Settings

PROMPT = "a red circle to the left of a blue square"


@dataclass(frozen=True)
class Row:
    """One measurement: seconds (median of the rounds) and peak memory above the loaded model."""

    model: str
    mode: str
    steps: int
    seconds: float
    generations: float
    memory_mb: float | None


def load(model: str) -> Pipeline:
    pipe = Pipeline.from_pretrained()
    if model == "bundled":
        return pipe
    own = pipe.model.unet.config
    config = UNetConfig.from_dict(
        {"sample_size": 64, "cross_attention_dim": own.cross_attention_dim[-1]}
    )
    torch.manual_seed(0)
    unet = UNet(config).eval().requires_grad_(False)
    return Pipeline(Model(replace(pipe.model.components, unet=unet)), defaults=pipe.defaults)


def measure(model: str, mode: str, steps: int, rounds: int) -> Row:
    """mode: "generation", "epoch" (drawing, backward and update), "epoch, blocks recomputed" or
    "online" (of the whole drawing). A round times a generation too, for the ratio."""
    pipe = load(model)
    scorer = clip.load(bundled_model() / "clip")
    pipe.model.unet.gradient_checkpointing = mode.endswith("recomputed")
    drawing = pipe.prepare([PROMPT], Settings(steps=steps))
    seconds, ratios, peaks = [], [], []
    for _ in range(rounds):
        # An epoch is followed by another drawing, with the weights that it led to.
        parts = {}
        for epochs in (1, 2) if mode.startswith("epoch") else (1,):
            meter = Meter("cpu")
            with meter:
                if mode == "generation":
                    pipe.model.pixels(drawing.sample())
                elif mode == "online":
                    online(drawing, scorer)
                else:
                    trajectory(drawing, scorer, Options(epochs=epochs))
            parts[epochs] = meter
        peaks.append(parts[max(parts)].peak_mb)
        seconds.append(parts[max(parts)].seconds - (parts[1].seconds if 2 in parts else 0))
        if mode != "generation":
            with meter:
                pipe.model.pixels(drawing.sample())
        ratios.append(seconds[-1] / meter.seconds)
    time, ratio = statistics.median(seconds), statistics.median(ratios)
    # Later rounds find memory that earlier ones have left.
    return Row(model, mode, steps, time, ratio, peaks[0])


def main(
    models: Annotated[str, typer.Option(help="Comma-separated.")] = "bundled,sd15",
    rounds: Annotated[int, typer.Option(min=1, help="Of the bundled model; sd15 has one.")] = 5,
    output: Annotated[Path | None, typer.Option(help="Folder for optimize.json and .md.")] = None,
) -> None:
    """Print the table."""
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
    work = []
    for model in models.split(","):
        modes = ["generation", "epoch", "epoch, blocks recomputed", "online"]
        lengths = (10, 25, 50) if model == "bundled" else (2,)
        modes = modes if model == "bundled" else modes[:3]
        work += [(model, mode, steps) for steps in lengths for mode in modes]
    rows = []
    context = get_context("spawn")
    for model, mode, steps in tqdm(work):
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            count = rounds if model == "bundled" else 1
            rows.append(pool.submit(measure, model, mode, steps, count).result())
    text = table(rows)
    print(text)
    if output is not None:
        record = {**machine(), "rows": [asdict(row) for row in rows]}
        (output / "optimize.json").write_text(json.dumps(record, indent=2) + "\n")
        (output / "optimize.md").write_text(text + "\n")


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table, with ratios to the generation of as many steps."""
    lines = [
        "| model | what | steps | seconds | of a generation | memory, MB | of a generation |",
        "|---|---|---|---|---|---|---|",
    ]
    base = {(r.model, r.steps): r for r in rows if r.mode == "generation"}
    for r in rows:
        one = base[r.model, r.steps]
        memory = ["unknown", ""]
        if r.memory_mb is not None and one.memory_mb:
            memory = [f"{r.memory_mb:.0f}", f"{r.memory_mb / one.memory_mb:.2f}"]
        lines.append(
            f"| {r.model} | {r.mode} | {r.steps} | {r.seconds:.3g} "
            f"| {r.generations:.2f} | {memory[0]} | {memory[1]} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    typer.run(main)
