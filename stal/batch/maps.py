"""What the pixels of requests that share a call attend to: made a request, joined for the call.

Rows of the call: the unconditional rows of all guided pictures, then one conditional row a picture,
both in the order of the requests. Those whose conditional rows lose their unconditional row's
result come first, then the other guided ones, then those without guidance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stal.attention import AttentionModule, EntryMaps, Plan, blend, csr, plan_of
from stal.batch.request import CheckedRequest
from stal.batch.table import Table
from stal.layout import masks
from stal.settings import refers_to_prompt
from stal.weights import WeightMaps, weight_maps


class RequestMaps:
    """Of one request: entries, regions and weights of each of its pictures' conditional row."""

    def __init__(self, order: CheckedRequest, device: torch.device) -> None:
        self._order, self._device = order, device
        self._plain = order.settings.attention == "plain"
        self._reference_is_prompt = refers_to_prompt(order.settings)
        self._masks: dict[tuple[int, int], Tensor] = {}
        self._plans: dict[tuple[int, int], Plan | None] = {}

    @property
    def loses_unconditional(self) -> bool:
        """Whether what its rows move away from is the unconditional rows."""
        guidance = self._order.settings.rule == "guidance" and not self._plain
        return guidance and not self._reference_is_prompt

    def at(self, step: int, height: int, width: int) -> WeightMaps:
        if self._plain:
            ones = torch.ones(1, height * width, dtype=torch.float32, device=self._device)
            return WeightMaps(ones, ones.bool(), None)
        size, job, settings = (height, width), self._order.job, self._order.settings
        if size not in self._masks:
            self._masks[size] = masks(job.layout, height, width).to(self._device)
        return weight_maps(
            self._masks[size],
            job.weights[step].to(self._device),
            rule=settings.rule,
            reference_is_prompt=self._reference_is_prompt,
            background=settings.background,
        )

    def plan(self, region: Tensor, size: tuple[int, int]) -> Plan | None:
        """The op's plan of one picture's region, which is the same at all steps."""
        if size not in self._plans:
            self._plans[size] = _plan_alone(region)
        return self._plans[size]


class Rows:
    """The rows of a call, as long as the same requests share it.

    Args:
        requests: order, maps and table rows of the texts (`CheckedRequest.texts`) of each; they are
            expected in the order that the module states.
        table: of the prompts.
        device: of the latents.
    """

    def __init__(
        self,
        requests: Sequence[tuple[CheckedRequest, RequestMaps, Sequence[int]]],
        table: Table,
        device: torch.device,
    ) -> None:
        self.table = table
        self.pictures = [order.settings.num_images for order, _, _ in requests]
        self.maps = [maps for _, maps, _ in requests]
        unconditional: list[Sequence[int]] = []
        conditional: list[Sequence[int]] = []
        for order, _, texts in requests:
            n = order.settings.num_images
            conditional += [texts[: len(order.job.texts)]] * n
            unconditional += [texts[-1:]] * (n * order.guided)
        self.guided = len(unconditional)
        self.own = [texts[0] for texts in (*unconditional, *conditional)]  # each row's own prompt
        self.ids, self.offsets = csr([*unconditional, *conditional], device)
        self.regions: dict[tuple[int, int], tuple[Tensor, Plan | None]] = {}

    def at(self, steps: Sequence[int]) -> AtSteps:
        """The UNet's attention for a call with each request at its own step."""
        return AtSteps(self, steps)


class AtSteps:
    """`Rows` with the step of each request."""

    def __init__(self, rows: Rows, steps: Sequence[int]) -> None:
        self._rows, self._steps = rows, steps
        self._maps: dict[tuple[int, int], EntryMaps] = {}

    def __call__(
        self, name: str, q: Tensor, module: AttentionModule, height: int, width: int
    ) -> Tensor:
        rows, size = self._rows, (height, width)
        if size not in self._maps:
            self._maps[size] = self._join(height, width)
        k, v, packed = rows.table.layer(name)
        maps = self._maps[size]
        return blend(q, k, v, rows.ids, rows.offsets, maps, scale=module.scale, packed=packed)

    def _join(self, height: int, width: int) -> EntryMaps:
        rows, size = self._rows, (height, width)
        each = [maps.at(step, *size) for maps, step in zip(rows.maps, self._steps, strict=True)]
        pictures = rows.pictures
        ones = torch.ones(rows.guided, height * width, dtype=torch.float32, device=rows.ids.device)
        if size not in rows.regions:
            region = torch.cat([ones.bool(), *_repeated([m.region for m in each], pictures)])
            rows.regions[size] = region, self._joined_plan(each, size)
        region, plan = rows.regions[size]
        weight = torch.cat([ones, *_repeated([m.weight for m in each], pictures)])
        lost = [
            row
            for maps, n in zip(each, pictures, strict=True)
            if maps.unconditional is not None
            for row in [maps.unconditional] * n
        ]
        away = torch.stack(lost) if lost else None
        return EntryMaps(weight, region, away, (rows.guided,), 0, plan)

    def _joined_plan(self, each: Sequence[WeightMaps], size: tuple[int, int]) -> Plan | None:
        rows = self._rows
        plans = [maps.plan(of.region, size) for maps, of in zip(rows.maps, each, strict=True)]
        if any(plan is None for plan in plans):
            return None
        everywhere = torch.ones(
            1, each[0].region.shape[1], dtype=torch.bool, device=rows.ids.device
        )
        alone: Any = _plan_alone(everywhere)
        joined: list[Any] = [alone] * rows.guided + _repeated(plans, rows.pictures)
        order, tiles, region = (torch.cat(parts) for parts in zip(*joined, strict=True))
        return order, tiles, region


def _plan_alone(region: Tensor) -> Plan | None:
    ids, offsets = csr([range(len(region))], region.device)
    return plan_of(region, ids, offsets)


def _repeated(values: Sequence[Any], times: Sequence[int]) -> list[Any]:
    return [value for value, n in zip(values, times, strict=True) for _ in range(n)]
