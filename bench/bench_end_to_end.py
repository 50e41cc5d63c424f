"""What regions cost a whole step of a large UNet, by who computes them.

A step is one call of a UNet with both halves of classifier-free guidance, of random weights and
the shapes of Stable Diffusion 1.5 or XL. Each object has the box that the layout predictor gives
it. The rule is "guidance" against the unconditional half, which all ways but the first compute:

    diffusers  AttnProcessor2_0 and no regions: what the step costs anyway
    naive      a processor as regional extensions have it: one SDPA call a prompt over all pixels,
               masks multiplied, results summed, keys and values projected in every call
    flex       FlexAttention over batch x prompts with a BlockMask of the regions, compiled with
               the weighted sum after it; keys and values projected once
    drop-in    this library inside diffusers' UNet
    stal UNet  this library's own UNet around the same weights, its maps made in every step

On a GPU each way comes again with the UNet compiled, and from a CUDA graph.

Correctness comes first, in the same run and at the same sizes: a result may be at most twice as
far from float64 as the formula in plain PyTorch is (root mean square; the largest error: four
times). "error" is the share of that allowance that was used. In half precision all layers together
round by more than a region changes. So "effect" tells it apart: how far the result is from plain
attention's in the direction of what regions change, in float64, which must be 0 without regions
and 1 with them, to 0.1. Times are interleaved in one process. "in cross-attention" is the share
of another step that its layers take, with their projections.

Memory is the peak of a process that runs one way alone, with all counts of regions in turn, above
what it has when libraries are loaded: the resident set, which Linux alone tells, or on a GPU what
torch allocates. The pipeline's text encoders and VAE lie beside the UNet, as they do when a
pipeline denoises.

    python bench/bench_end_to_end.py --model sdxl --dtype bfloat16 --output bench/results/x.json
"""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import diffusers
import torch
import typer
from rivals import error_used, first_line
from step_ways import (
    KINDS,
    MODELS,
    WAYS,
    Scene,
    Way,
    beside,
    build,
    cross_attentions,
    exact,
    scene,
    way,
)
from timing import Table, cpu_details, interleave
from torch import Tensor

from stal.evaluation.harness import Meter
from stal.files import check_writable
from stal_kernels import why_not

DTYPES = ("bfloat16", "float16", "float32")
PLAIN = "diffusers"
COLUMNS = {
    "model": 5,
    "dtype": 8,
    "latents": 7,
    "regions": 7,
    "way": 20,
    "ms median (p20-p80)": 22,
    "rounds": 6,
    "x diffusers": 11,
    "memory, MB": 10,
    "memory x diffusers": 18,
    "in cross-attention": 18,
    "error": 6,
    "effect": 6,
    "note": 0,
}
KEY = ("model", "dtype", "latents", "regions", "way")


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def finish() -> None:
    """Waits for the GPU, if there is one."""
    if device().type == "cuda":
        torch.cuda.synchronize()


def effect(out: Tensor, without: Tensor, right: Tensor) -> float:
    """0 of a result without regions, 1 of one with them; both in float64 are given."""
    change = right - without
    return ((out.double() - without) * change).sum().item() / change.square().sum().item()


def check(
    outs: dict[str, Tensor], plain: Tensor, without: Tensor, right: Tensor
) -> dict[str, tuple[float, float]]:
    """`error_used` and `effect` of each way.

    plain: of the formula in plain PyTorch.

    Raises:
        AssertionError: a way is wrong, or one without regions would pass for right.
    """
    found = {}
    for name, out in outs.items():
        regions = name.split(",")[0] != PLAIN
        used, share = found[name] = error_used(out, plain, right), effect(out, without, right)
        assert abs(share - regions) <= 0.1, f"{name} has {share:.3f} of what regions change"
        assert used <= 1 or not regions, f"{name} makes {used:.2f} times the error that is allowed"
    return found


def prepared(
    names: Sequence[str], unet: Any, work: Scene
) -> tuple[dict[str, Way], dict[str, Tensor], dict[str, str]]:
    """The ways by name and kind, their first results, and of the others why they cannot run.

    FlexAttention, and what is compiled or captured, may not be for this machine; the others must
    run.
    """
    ways, outs, failures = {}, {}, {}
    kinds = KINDS if device().type == "cuda" else KINDS[:1]
    for kind in kinds:
        for name in names:
            label = name if kind == "eager" else f"{name}, {kind}"
            try:
                ways[label] = way(name, unet, work, kind)
                outs[label] = ways[label].step().clone()
                finish()
            except (RuntimeError, NotImplementedError, ValueError, TypeError) as error:
                if kind == "eager" and name != "flex":
                    raise
                ways.pop(label, None)
                failures[label] = first_line(error)
    return ways, outs, failures


def cross_attention_share(made: Way) -> float:
    """The share of a step's time that passes in the layers that attend to the text."""
    spent, began = [0.0], [0.0]

    def before(*_: object) -> None:
        finish()
        began[0] = time.perf_counter()

    def after(*_: object) -> None:
        finish()
        spent[0] += time.perf_counter() - began[0]

    hooks = []
    for _, module in cross_attentions(made.unet):
        hooks += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    finish()
    start = time.perf_counter()
    made.step()
    finish()
    whole = time.perf_counter() - start
    for hook in hooks:
        hook.remove()
    return spent[0] / whole


def give_back_memory() -> None:
    """Has glibc return what is freed at once: the resident set is then what is in use, alike in
    each run. Other C libraries keep it as they like."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
            mallopt(option, 1 << 16)


def peak_mb(made: Way, meter: Meter) -> float | None:
    """The peak memory of a warm step, above what there was when the meter was made."""
    made.step()
    with meter:
        made.step()
    return meter.peak_mb


@torch.no_grad()
def peaks_alone(
    name: str, model: str, dtype: str, size: tuple[int, int], counts: Sequence[int], threads: int
) -> list[float | None]:
    """`peak_mb` of a way for each count of regions; for a process of its own."""
    torch.set_num_threads(threads)
    give_back_memory()
    why_not("cpu")  # loads the library, whose code is no way's own
    meter = Meter(device())
    unet = build(model, getattr(torch, dtype), device())
    others = beside(model, getattr(torch, dtype), device())
    peaks: list[float | None] = []
    for count in counts:
        torch.compiler.reset()
        gc.collect()  # what one scene kept must not count for the next
        try:
            peaks.append(peak_mb(way(name, unet, scene(unet, count, *size, others=others)), meter))
        except (RuntimeError, NotImplementedError):
            # That it cannot run is told where it is checked.
            peaks.append(None)
    return peaks


def peaks_of(
    names: Sequence[str], *arguments: Any, counts: Sequence[int], threads: int
) -> dict[tuple[str, int], float | None]:
    """By way and count of regions; one process after another, for the weights are large."""
    found: dict[tuple[str, int], float | None] = {}
    for name in names:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            peaks = pool.submit(peaks_alone, name, *arguments, counts, threads).result()
        found |= {(name, count): peak for count, peak in zip(counts, peaks, strict=True)}
    return found


@torch.no_grad()
def measure(
    table: Table,
    labels: dict[str, str],
    names: Sequence[str],
    unet: Any,
    work: Scene,
    repeats: int,
    peaks: dict[str, float | None],
) -> None:
    """Checks and times all ways for one number of regions, and adds their rows.

    labels: the cells that all of them share.
    peaks: MB by name.
    """
    # What was compiled for other scenes counts towards torch's limit of recompilations.
    torch.compiler.reset()
    without, right = (exact(name, unet, work) for name in (PLAIN, "eager formula"))
    plain = way("eager formula", unet, work).step()
    ways, outs, failures = prepared(names, unet, work)
    checked = check(outs, plain, without, right)
    del outs, plain, without, right

    def waited(made: Way) -> None:
        made.step()
        finish()

    functions = {name: partial(waited, made) for name, made in ways.items()}
    times = interleave(functions, rounds=repeats, sample_s=0)
    boxes = [list(placed.box) for placed in work.layout.objects]
    for name, timing in times.items():
        megabytes, most = peaks.get(name), peaks[PLAIN]
        hooked = "," not in name  # compiled or captured, a layer calls no hooks
        share = cross_attention_share(ways[name]) if hooked else None
        used, changed = checked[name]
        cells = {
            "way": name,
            "ms median (p20-p80)": str(timing),
            "x diffusers": f"{timing.median / times[PLAIN].median:.3f}",
            "memory, MB": "" if megabytes is None else f"{megabytes:.0f}",
            "memory x diffusers": f"{megabytes / most:.3f}" if megabytes and most else "",
            "in cross-attention": "" if share is None else f"{share:.1%}",
            "error": "" if name.split(",")[0] == PLAIN else f"{used:.2f}",
            "effect": f"{changed:.2f}",
        }
        raw = {"memory_mb": megabytes, "cross_attention": share}
        raw |= {"error_used": used, "effect_share": changed}
        add(table, labels, cells, seconds=timing, boxes=boxes, **raw)
    for name, why in failures.items():
        add(table, labels, {"way": name, "note": why}, seconds=None, boxes=boxes)


def add(table: Table, labels: dict[str, str], cells: dict[str, str], **raw: Any) -> None:
    """A row; a cell that is not given is empty."""
    table.add(dict.fromkeys(COLUMNS, "") | labels | cells, **raw)


def latents_size(text: str, model: str) -> tuple[int, int]:
    """Height and width of "64" or "64x96"."""
    least = 2 ** (len(MODELS[model]["block_out_channels"]) - 1)
    sides = text.split("x")
    if len(sides) > 2 or not all(s.isdecimal() and int(s) and int(s) % least == 0 for s in sides):
        raise typer.BadParameter(
            f"latents must be a side or HEIGHTxWIDTH, multiples of {least}, got {text!r}"
        )
    return int(sides[0]), int(sides[-1])


def chosen(option: str, text: str, known: Sequence[str]) -> list[str]:
    """The names of a comma-separated list, each of which must be known."""
    for name in text.split(","):
        if name not in known:
            raise typer.BadParameter(f"{option} must be of {', '.join(known)}, got {name!r}")
    return text.split(",")


def main(
    model: Annotated[str, typer.Option(help="sd15, sdxl, or tiny to try the program.")] = "sd15",
    dtype: Annotated[str, typer.Option(help=f"One of {', '.join(DTYPES)}.")] = "bfloat16",
    regions: Annotated[str, typer.Option(help="Of 1 to 5, comma-separated.")] = "1,2,3,4,5",
    latents: Annotated[str, typer.Option(help="A side or HEIGHTxWIDTH.")] = "64",
    ways: Annotated[str, typer.Option(help="Comma-separated.")] = ",".join(WAYS),
    threads: Annotated[int | None, typer.Option(min=1, help="Torch's own if absent.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Timed steps of each way.")] = 5,
    memory: Annotated[bool, typer.Option(help="Whether memory is measured too.")] = True,
    output: Annotated[Path | None, typer.Option(help="JSON file; Markdown beside it.")] = None,
) -> None:
    """Print the table."""
    chosen("model", model, list(MODELS))
    chosen("dtype", dtype, DTYPES)
    counts = [int(text) for text in chosen("regions", regions, list("12345"))]
    names = chosen("ways", ways, WAYS)
    if PLAIN not in names:
        raise typer.BadParameter(f"ways must hold {PLAIN}, got {ways!r}")
    size = latents_size(latents, model)
    if output is not None:
        check_writable(output)
    if threads is not None:
        torch.set_num_threads(threads)
    where = device()
    gpu = {"gpu": torch.cuda.get_device_name()} if where.type == "cuda" else {}
    # Rows of several runs meet in one file; they say the rest.
    command = "python bench/bench_end_to_end.py --model ... --dtype ... --repeats ..."
    table = Table(COLUMNS, diffusers=diffusers.__version__, **gpu, command=command)
    peaks: dict[tuple[str, int], float | None] = {}
    if memory:
        # Before the UNet of this process is there, for two may not fit.
        limit = torch.get_num_threads()
        peaks = peaks_of(names, model, dtype, size, counts=counts, threads=limit)
    unet = build(model, getattr(torch, dtype), where)
    others = beside(model, getattr(torch, dtype), where)
    for count in counts:
        labels = {"model": model, "dtype": dtype, "regions": str(count)}
        labels |= {"latents": f"{size[0]}x{size[1]}", "rounds": str(repeats)}
        work = scene(unet, count, *size, others=others)
        alone = {name: peaks.get((name, count)) for name in names}
        measure(table, labels, names, unet, work, repeats, alone)
        if output is not None:
            table.merge(output, KEY, lambda row: True, **cpu_details())


if __name__ == "__main__":
    typer.run(main)
