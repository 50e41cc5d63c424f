"""What regions cost in ComfyUI: a step of a UNet of Stable Diffusion 1.5's size, four regions.

"own" is ComfyUI's attention without regions; "calls" is what nodes for regional prompts do, by
their description: one attention call a prompt over all pixels, with keys and values projected at
each, multiplied by masks and added up; "ours" is the node Spatial-temporal attention. Both halves
of classifier-free guidance are in one batch. The first call of a run is among those that are
timed: it is when ours projects the phrases.

    OMP_NUM_THREADS=1 python bench/bench_comfyui.py PATH/TO/ComfyUI --latents 64
    OMP_NUM_THREADS=1 python bench/bench_comfyui.py PATH/TO/ComfyUI --latents 64 --layer

With --layer it is one cross-attention of the first level alone, from q to its result.

Seconds are of the calling thread alone, so that other programs disturb them less; memory is the
most that a process of its own had while it did one step.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from timing import Table, cpu_details, interleave
from torch import Tensor

from stal.files import check_writable
from stal.integrations.comfyui.nodes import region_prompts, spatial_temporal_attention
from stal.layout import masks

WIDTH, TOKENS = 768, 77
CONFIG = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 1,
    "context_dim": WIDTH,
    "num_heads": 8,
    "num_head_channels": -1,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": False,
    "adm_in_channels": None,
    "use_temporal_attention": False,
    "legacy": False,
    "dtype": torch.float32,
}
BOXES = [
    {
        "x": 4 + 64 * (i % 2),
        "y": 8 + 60 * (i // 2),
        "width": 56,
        "height": 52,
        "label": f"thing {i}",
    }
    for i in range(4)
]


class Clip:
    """Random embeddings of a text."""

    def tokenize(self, text: str) -> str:
        return text

    def encode_from_tokens_scheduled(self, tokens: str) -> Any:
        generator = torch.Generator().manual_seed(sum(map(ord, tokens)))
        return [[torch.randn(1, TOKENS, WIDTH, generator=generator), {}]]


def random_model() -> Any:
    """A ModelPatcher; weights that keep values of ordinary size."""
    import comfy.model_patcher
    import comfy.supported_models

    model = comfy.supported_models.SD15(dict(CONFIG)).get_model({}, device="cpu")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        std = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
        parameter.normal_(std=std)
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)


def with_calls(model: Any, regions: Any) -> Any:
    """A clone that calls attention once a prompt."""
    found = model.clone()
    phrases = torch.cat([embeds for embeds, _ in regions.local])
    network = model.model.diffusion_model
    blocks = [("input", i, network.input_blocks[i]) for i in (1, 2, 4, 5, 7, 8)]
    blocks += [("middle", 0, network.middle_block)]
    blocks += [("output", i, network.output_blocks[i]) for i in range(3, 12)]
    for name, number, block in blocks:
        module = block[1].transformer_blocks[0].attn2
        found.set_model_attn2_replace(_calls(module, phrases, regions.layout), name, number)
    return found


def _calls(module: Any, phrases: Tensor, layout: Any) -> Callable[..., Tensor]:
    from comfy.ldm.modules.attention import optimized_attention

    def replace(q: Tensor, k: Tensor, v: Tensor, extra: dict[str, Any]) -> Tensor:
        heads = extra["n_heads"]
        out = optimized_attention(q, k, v, heads)
        height, width = extra["activations_shape"][-2:]
        weights = masks(layout, height, width).flatten(1)[..., None]
        rows = len(q) // len(extra["cond_or_uncond"])
        for chunk, kind in enumerate(extra["cond_or_uncond"]):
            if kind:
                continue
            own = slice(chunk * rows, (chunk + 1) * rows)
            for phrase, weight in zip(phrases, weights, strict=True):
                text = phrase.expand(rows, -1, -1)
                local = optimized_attention(q[own], module.to_k(text), module.to_v(text), heads)
                out[own] += weight * (local - out[own])
        return out

    return replace


def step_functions(ways: dict[str, Any], latents: int, then: Callable[[Any], None]) -> None:
    """Calls `then` with a function a way, each a call of its model within a run of a sampler."""
    import comfy.samplers

    functions: dict[str, Callable[[], Tensor]] = {}
    sigmas = torch.tensor([14.6, 7.0, 0.0])
    empty = torch.zeros(1, 4, latents, latents)
    noise = torch.randn(empty.shape, generator=torch.Generator().manual_seed(0))

    def begin(left: list[str]) -> None:
        if not left:
            then(functions)
            return

        def run(model: Any, x: Tensor, levels: Tensor, extra_args: Any, **named: Any) -> Tensor:
            functions[left[0]] = lambda: model(noise * 14.6, levels[:1], **extra_args)
            begin(left[1:])
            return x

        guider = comfy.samplers.CFGGuider(ways[left[0]])
        clip = Clip()
        guider.set_conds(*map(clip.encode_from_tokens_scheduled, ("four things", "")))
        guider.set_cfg(7.0)
        guider.sample(noise, empty, comfy.samplers.KSAMPLER(run), sigmas, disable_pbar=True)

    begin(list(ways))


def layer_functions(ways: dict[str, Any], latents: int) -> dict[str, Callable[[], Tensor]]:
    """The first cross-attention of each way, within the run of a sampler that `ours` is in."""
    from comfy.ldm.modules.attention import optimized_attention

    pixels, channels = latents * latents, CONFIG["model_channels"]
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, n, channels, generator=generator) for n in (pixels, TOKENS, TOKENS))
    options = {
        "n_heads": 8,
        "activations_shape": [2, channels, latents, latents],
        "cond_or_uncond": [1, 0],
    }
    found: dict[str, Callable[[], Tensor]] = {"own": lambda: optimized_attention(q, k, v, 8)}
    for name, key in (("calls", ("input", 1)), ("ours", ("input", 1, 0))):
        patches = ways[name].model_options["transformer_options"]["patches_replace"]["attn2"]
        found[name] = partial(patches[key], q, k, v, options)
    return found


def peak_bytes(way: Any, latents: int) -> int:
    """The most memory that one step takes in a child of this process."""
    child = os.fork()
    if child == 0:
        step_functions({"way": way}, latents, _call_once)
        os._exit(0)
    _, status, usage = os.wait4(child, 0)
    if status:
        raise RuntimeError(f"a step must end, got status {status}")
    return usage.ru_maxrss * 1024


def _call_once(functions: dict[str, Callable[[], Tensor]]) -> None:
    functions["way"]()


def main(
    comfyui: Annotated[Path, typer.Argument(help="Folder of a ComfyUI.")],
    latents: Annotated[int, typer.Option(min=8)] = 64,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    layer: Annotated[bool, typer.Option(help="One layer instead of a step.")] = False,
    memory: Annotated[bool, typer.Option(help="Measure memory too, a step more each.")] = True,
    output: Annotated[Path | None, typer.Option(help="JSON file; Markdown beside it.")] = None,
) -> None:
    """Print the table."""
    if output is not None:
        check_writable(output)
    sys.path.append(str(comfyui))
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    torch.set_num_threads(1)
    with torch.no_grad():
        model = random_model()
        (regions,) = region_prompts(Clip(), boxes=BOXES, width=128, height=128)
        (ours,) = spatial_temporal_attention(model, regions)
        ways = {"own": model, "calls": with_calls(model, regions[0]), "ours": ours}
        peaks = {
            name: peak_bytes(way, latents) if memory and not layer else 0
            for name, way in ways.items()
        }
        columns = {"latents": 9, "attention": 15, "s median (p20-p80)": 24, "time": 8, "memory": 8}
        command = f"python bench/bench_comfyui.py PATH --latents {latents}{' --layer' * layer}"
        table = Table(columns, command=command)

        def measure(functions: dict[str, Callable[[], Tensor]]) -> None:
            if layer:
                functions["ours"]()  # a call of the network, in which the layer then is
                functions = layer_functions(ways, latents)
            times = interleave(functions, rounds=rounds, sample_s=0, clock=time.thread_time)
            for name, timing in times.items():
                spread = f"({timing.p20:.3g}-{timing.p80:.3g})"
                cells = {
                    "latents": f"{latents} x {latents}",
                    "attention": f"{name}, a layer" if layer else name,
                    "s median (p20-p80)": f"{timing.median:.3g} {spread}",
                    "time": f"{timing.median / times['own'].median:.3f}x",
                    "memory": f"{peaks[name] / peaks['own']:.3f}x" if peaks["own"] else "",
                }
                table.add(cells, seconds=timing, bytes=peaks[name])

        step_functions(ways, latents, measure)
    if output is not None:
        table.merge(output, ("latents", "attention"), lambda row: True, **cpu_details())


if __name__ == "__main__":
    typer.run(main)
