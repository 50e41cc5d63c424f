"""Regions in ComfyUI's networks compute what the formula says, and leave nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from stal.integrations.comfyui.layers import Layer
from stal.weights import weight_maps
from tests.stal.integrations import comfy_models as tiny

pytestmark = [pytest.mark.xdist_group("comfyui"), pytest.mark.usefixtures("comfyui")]

# Latents of each network.
LATENTS = {
    "sd15": (2, 4, 16, 16),
    "sdxl": (1, 4, 16, 24),
    "cosmos": (1, 16, 1, 14, 18),
    "wan": (1, 16, 3, 16, 16),
    "wan_i2v": (1, 16, 2, 16, 16),
    "ltx": (1, 16, 3, 8, 8),
}


def drawn(name: str, model: Any, **changes: Any) -> Tensor:
    """What a model draws from noise of its network's size."""
    if name == "wan_i2v":
        changes |= {"positive": tiny.with_picture(1), "negative": tiny.with_picture(2)}
    return tiny.sample(model, torch.zeros(LATENTS[name]), **changes)


@pytest.fixture(scope="module")
def plain(models: Callable[[str], Any]) -> Callable[[str], Tensor]:
    """plain(name): what a model draws without regions, made once."""
    made: dict[str, Tensor] = {}

    def get(name: str) -> Tensor:
        if name not in made:
            made[name] = drawn(name, models(name))
        return made[name]

    return get


@pytest.mark.filterwarnings("ignore:the regions are of a canvas")
@pytest.mark.parametrize("name", LATENTS)
def test_regions_act_and_leave_nothing_behind(
    name: str, models: Callable[[str], Any], plain: Callable[[str], Tensor]
) -> None:
    model, before = models(name), plain(name)
    assert torch.equal(drawn(name, tiny.regional(model, strength=0.0)), before)
    assert torch.equal(drawn(name, tiny.regional(model, start=1.0)), before)
    with_regions = drawn(name, tiny.regional(model))
    assert (with_regions - before).abs().max() > 0.1 * before.std()
    assert torch.equal(drawn(name, model), before)


def attended(seen: Seen, row: int, lam: Tensor, rule: Any, dtype: torch.dtype) -> Tensor:
    """sum_p weight_p softmax(scale q k_p^T) v_p, (heads, n, head_dim) of one row of a batch."""
    call, prompts = seen.call, seen.call.run.prompts
    maps = weight_maps(
        call.run.coverage(0, call.size, seen.level, (0, 0)),
        lam,
        rule=rule,
        reference_is_prompt=rule == "guidance",
    )
    # Of LTX's own prompts, which have a mask, the last token is padding.
    count = seen.k.shape[2] - seen.masked
    own = seen.k[row, :, :count], seen.v[row, :, :count]
    tables = [(*own, torch.ones_like(maps.weight[0]))]
    if call.conditional[row // len(call.pictures)]:
        tables = [(*own, maps.weight[0])]
        for p, weight in zip(prompts.rows[0], maps.weight[1:], strict=rule == "guidance"):
            n = prompts.lengths[p]
            tables.append((seen.local_k[p, :, :n], seen.local_v[p, :, :n], weight))
    q = seen.q[row].to(dtype)
    out = torch.zeros_like(q)
    for each in tables:
        k, v, weight = (tensor.to(dtype) for tensor in each)
        out += weight[:, None] * (torch.softmax(q.shape[-1] ** -0.5 * q @ k.mT, dim=-1) @ v)
    return out


@pytest.mark.filterwarnings("ignore:the regions are of a canvas")
@pytest.mark.parametrize("rule", ["guidance", "convex"])
@pytest.mark.parametrize("name", LATENTS)
def test_each_layer_blends_as_the_rule_says(
    name: str, rule: Any, models: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = record(monkeypatch)
    given = tiny.regions()
    weights = torch.tensor([[0.9, 0.8], [0.5, 0.7]])
    model = tiny.regional(models(name), given, rule=rule, weights=str(weights.tolist()))
    drawn(name, model, steps=2)
    assert len(calls) == 2 * len(tiny.state_of(model).layers) > 2
    for index, seen in enumerate(calls):
        lam = weights[index // (len(calls) // 2)]
        for row in range(len(seen.q)):
            exact = attended(seen, row, lam, rule, torch.float64)
            eager = attended(seen, row, lam, rule, torch.float32)
            allowed = 2 * (eager - exact).abs().max()
            assert (seen.out[row] - exact).abs().max() <= allowed


@dataclass
class Seen:
    """What a layer was given and what it gave, heads apart."""

    call: Any
    level: Any
    q: Tensor
    k: Tensor
    v: Tensor
    local_k: Tensor
    local_v: Tensor
    masked: bool
    out: Tensor


def record(monkeypatch: pytest.MonkeyPatch) -> list[Seen]:
    """A list to which the calls of layers are added."""
    found: list[Seen] = []
    original = Layer.__call__

    def recorded(self: Layer, call: Any, level: Any, *qkv: Tensor, **named: Any) -> Tensor:
        # Functions may write into their arguments.
        tensors = [each.clone() for each in (*qkv, *named["local"])]
        out = original(self, call, level, *qkv, **named)
        apart = out.unflatten(2, (qkv[0].shape[1], -1)).transpose(1, 2).clone()
        found.append(Seen(call, level, *tensors, named["own"] is not None, apart))
        return out

    monkeypatch.setattr(Layer, "__call__", recorded)
    return found
