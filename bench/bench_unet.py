"""What the op buys where it is used: a step of a large UNet, and a picture of the bundled model.

"sd15 step" is one call of a UNet of Stable Diffusion 1.5's size with random weights, latents of
64 x 64, both halves of classifier-free guidance, five objects with their regions, the prompt and a
reference prompt. "bundled picture" is everything from noise to pixels. Each is timed with the op
on the cpu backend, on the reference backend, and with a loop over the prompts in its place, one
`scaled_dot_product_attention` each.

    python bench/bench_unet.py --output bench/results/unet.json
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated
from unittest import mock

import torch
import typer
from bench_optimize import load
from timing import Table, Timing, cpu_details, interleave
from torch import Tensor
from torch.nn import functional as F

from stal.files import check_writable
from stal.settings import Settings
from stal_kernels import blended_attention_ragged

PROMPT = "a red circle, a blue square, a green star, a pink ring and a yellow cross"


def loop(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    weight: Tensor,
    prompt_ids: Tensor,
    offsets: Tensor,
    *,
    region: Tensor | None = None,
    key_lengths: Tensor | None = None,
    plan: object = None,
    packed: object = None,
    scale: float | None = None,
) -> Tensor:
    """The op as a user of torch would write it; the weight is 0 where a region is not.

    plan, packed: not used, for no result depends on them.
    """
    if key_lengths is not None:
        raise ValueError("key_lengths must be None: the prompts of these UNets have no padding")
    if region is not None:
        weight = weight * region
    ids, bounds, weight = prompt_ids.tolist(), offsets.tolist(), weight.to(q.dtype)
    out = torch.zeros_like(q)
    for b, (start, end) in enumerate(itertools.pairwise(bounds)):
        for entry in range(start, end):
            row = slice(ids[entry], ids[entry] + 1)
            one = F.scaled_dot_product_attention(q[b : b + 1], k[row], v[row], scale=scale)
            out[b : b + 1] += one * weight[entry][:, None]
    return out


WAYS: dict[str, Callable[..., Tensor]] = {
    "cpu": partial(blended_attention_ragged, backend="cpu"),
    "reference": partial(blended_attention_ragged, backend="reference"),
    "SDPA loop": loop,
}


@torch.no_grad()
def measure(model: str, rounds: int, steps: int | None = None) -> dict[str, Timing]:
    pipe = load(model)
    drawing = pipe.prepare([PROMPT], Settings(steps=steps))
    if model == "bundled":

        def run() -> object:
            return pipe.model.pixels(drawing.sample())

    else:
        x = torch.randn(1, pipe.model.unet.config.in_channels, 64, 64)

        def run() -> object:
            return drawing.predict(x, drawing.schedule.timesteps[0], 0, *drawing.weights)

    def through(op: Callable[..., Tensor]) -> object:
        with mock.patch("stal.attention.blended_attention_ragged", op):
            return run()

    outs = {name: through(op) for name, op in WAYS.items()}
    for name, out in outs.items():
        torch.testing.assert_close(out, outs["reference"], rtol=1e-2, atol=1e-2, msg=name)
    functions = {name: partial(through, op) for name, op in WAYS.items()}
    return interleave(functions, rounds=rounds)


def main(
    models: Annotated[str, typer.Option(help="Comma-separated.")] = "bundled,sd15",
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    steps: Annotated[int | None, typer.Option(min=1, help="Of a picture.")] = None,
    output: Annotated[Path | None, typer.Option(help="JSON file; Markdown beside it.")] = None,
) -> None:
    """Print the table."""
    if output is not None:
        check_writable(output)
    columns = {"what": 16, "op": 10, "ms median (p20-p80)": 22, "cpu is faster": 14}
    table = Table(columns, command="python bench/bench_unet.py")
    for model in models.split(","):
        times = measure(model, rounds, steps)
        for name, timing in times.items():
            cells = {
                "what": "bundled picture" if model == "bundled" else f"{model} step",
                "op": name,
                "ms median (p20-p80)": str(timing),
                "cpu is faster": f"{timing.median / times['cpu'].median:.2f}x",
            }
            table.add(cells, seconds=timing)
    if output is not None:
        table.merge(output, ("what", "op"), lambda row: True, **cpu_details())


if __name__ == "__main__":
    typer.run(main)
