"""One run of a sampler: its steps, the prompts of its regions, and each call of the network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from stal.attention import EntryMaps, Plan, csr, plan_of
from stal.caller import warn
from stal.integrations.comfyui.models import Row, Size
from stal.integrations.comfyui.regions import Regions
from stal.integrations.comfyui.steps import Steps
from stal.integrations.comfyui.strengths import Strengths
from stal.layout import masks
from stal.weights import weight_maps

# Of the bytes of the network, what keys and values may take that are kept.
_KEPT = 0.015
_LEAST_KEPT = 1 << 24

# A part of the latents that a conditioning is for: (top, left), in cells.
Corner = tuple[int, int]


@dataclass(frozen=True)
class Attended:
    """What the rows of a batch attend to at one resolution.

    ids, offsets: of the op; local prompts come first in its table, then the rows' own ones.
    maps: of the entries.
    own: (rows, n), what each row's own prompt is multiplied by where it is no entry.
    """

    ids: Tensor
    offsets: Tensor
    maps: EntryMaps
    own: Tensor | None = None


class Run:
    """One run of a sampler.

    Args:
        row: of the network.
        network: whose bytes say how many keys and values may be kept.
        regions: image i of a batch has those at i modulo their number.
        strengths: how strongly they act.
        steps: of the run.
        size: of the latents.
        prompts: the encoded local prompts.
        positive: the uuids of the conditionings that have regions.
        corners: of the conditionings that are for a part of the latents, by uuid.
    """

    def __init__(
        self,
        row: Row,
        network: nn.Module,
        regions: Sequence[Regions],
        strengths: Strengths,
        steps: Steps,
        size: Size,
        prompts: Prompts,
        positive: frozenset[Any],
        corners: dict[Any, Corner],
    ) -> None:
        self.row, self.network, self.regions = row, network, tuple(regions)
        self.rule, self.steps, self.size, self.prompts = strengths.rule, steps, size, prompts
        self._positive, self._corners = positive, corners
        self._weights = [strengths.of(steps.count, len(r.layout.objects)) for r in self.regions]
        self._room = max(int(_KEPT * _bytes(network)), _LEAST_KEPT)
        self._coverage: dict[tuple[object, ...], Tensor] = {}
        self._plans: dict[tuple[object, ...], Plan | None] = {}
        self._lengths: dict[tuple[int, int], Tensor | None] = {}
        self._check_aspects()

    def _check_aspects(self) -> None:
        _, height, width = self.size
        for each in self.regions:
            aspect = each.layout.aspect
            # Half a cell of rounding on either side.
            least, most = (width - 1) / (height + 1), (width + 1) / max(height - 1, 0.5)
            if not 0.98 * least <= aspect <= 1.02 * most:
                warn(
                    f"the regions are of a canvas of aspect (width / height) {aspect:.3g} and are"
                    f" stretched to {width} x {height} latents: give them the picture's width and"
                    " height, or masks of its shape"
                )

    def call(self, size: Size, rows: int, options: dict[str, Any]) -> Call:
        """A call of the network.

        Args:
            size: of the latents that it is called with.
            rows: of its batch.
            options: ComfyUI's transformer_options.

        Raises:
            ValueError: a part of the latents of which nobody says where it is.
        """
        chunks = options["cond_or_uncond"]
        uuids = options.get("uuids") or [None] * len(chunks)
        known = None not in uuids
        conditional = tuple(
            uuid in self._positive if known else chunk == 0
            for uuid, chunk in zip(uuids, chunks, strict=True)
        )
        corners = tuple(self._corners.get(uuid) for uuid in uuids)
        whole = size[1:] == self.size[1:]
        if not whole and not all(c for c, own in zip(corners, conditional, strict=True) if own):
            (height, width), part = self.size[1:], f"{size[1]} x {size[2]}"
            raise ValueError(
                f"model must be called with whole latents while it has regions, {height} x {width},"
                f" got a part of them, {part}: take out the node that cuts them into tiles, or put"
                " Spatial-temporal attention on the model of each tile"
            )
        step = self.steps.at(float(options["sigmas"].max()))
        where = tuple(c or (0, 0) for c in corners)
        lam = [weights[step] for weights in self._weights]
        pictures = tuple(range(rows // len(chunks)))
        # A context window over the batch has some of its pictures.
        window = options.get("context_window")
        if window is not None and window.dim == 0 and len(window.index_list) == len(pictures):
            pictures = tuple(window.index_list)
        return Call(self, size, pictures, conditional, where, lam)

    def may_keep(self, size: int) -> bool:
        """Whether a layer may keep so many bytes."""
        if size > self._room:
            return False
        self._room -= size
        return True

    def coverage(self, which: int, size: Size, level: Size, corner: Corner) -> Tensor:
        """(objects, frames, height * width), the soft coverage of regions at a level.

        size: of the latents that the level is of, whose corner lies there in all of them.
        """
        key = which, size, level, corner
        if key not in self._coverage:
            frames, height, width = level
            layout = self.regions[which].layout
            if size[1:] == self.size[1:]:
                found = masks(layout, height, width)
            else:
                # Each level halves, and rounds up.
                cell = 1 << round(math.log2(size[1] / height))
                rows, columns = (-(-side // cell) for side in self.size[1:])
                # Rounding may put the last cell of a part past that of the whole.
                top = min(corner[0] // cell, rows - height)
                left = min(corner[1] // cell, columns - width)
                whole = masks(layout, rows, columns)
                found = whole[:, top : top + height, left : left + width]
            device = self.prompts.embeds.device
            self._coverage[key] = found.flatten(1)[:, None].expand(-1, frames, -1).to(device)
        return self._coverage[key]

    def key_lengths(self, rows: int, seqlen_k: int) -> Tensor | None:
        """(prompts + rows,) int32, how many keys of each count; None if all do.

        rows, seqlen_k: of the prompts that come after the local ones.
        """
        key = rows, seqlen_k
        if key not in self._lengths:
            each = (*self.prompts.lengths, *[seqlen_k] * rows)
            uneven = len({*each, self.prompts.embeds.shape[1]}) > 1
            device = self.prompts.embeds.device
            found = torch.tensor(each, dtype=torch.int32, device=device) if uneven else None
            self._lengths[key] = found
        return self._lengths[key]

    def plan(
        self, key: tuple[object, ...], region: Tensor, ids: Tensor, offsets: Tensor
    ) -> Plan | None:
        """The op's plan, which depends on neither the step nor its weights; made once a key."""
        if key not in self._plans:
            self._plans[key] = plan_of(region, ids, offsets)
        return self._plans[key]


@dataclass(frozen=True)
class Prompts:
    """The local prompts of all regions, and their references.

    embeds: (prompts, seqlen_k, width), what the network's layers get, padded.
    lengths: of each prompt, how many tokens count; they come first.
    rows: for each of the regions the prompts of its objects and, last, its reference.
    """

    embeds: Tensor
    lengths: tuple[int, ...]
    rows: tuple[tuple[int, ...], ...]


@dataclass
class Call:
    """One call of the network.

    Attributes:
        size: of the latents that it was called with.
        pictures: of each row of one conditioning, its place in the whole batch.
        conditional: of each conditioning, whether it has regions.
        corners: of each conditioning, where its latents lie.
        lam: of each of the regions, (objects,), the weights at this step.
    """

    run: Run
    size: Size
    pictures: tuple[int, ...]
    conditional: tuple[bool, ...]
    corners: tuple[Corner, ...]
    lam: list[Tensor]
    _attended: dict[tuple[Size, bool], Attended] = field(default_factory=dict)

    @property
    def acts(self) -> bool:
        """Whether any region does anything in this call."""
        return any(self.conditional) and any(bool(each.any()) for each in self.lam)

    @property
    def rows(self) -> int:
        return len(self.pictures) * len(self.conditional)

    def attended(self, level: Size, *, fused: bool) -> Attended:
        """What rows of so many pixels attend to, made once for all layers of a level.

        fused: whether a row's own prompt is an entry of the op.
        """
        key = level, fused
        if key not in self._attended:
            self._attended[key] = self._attend(level, fused)
        return self._attended[key]

    def _attend(self, level: Size, fused: bool) -> Attended:
        run = self.run
        device = run.prompts.embeds.device
        pixels = level[0] * level[1] * level[2]
        everything = torch.ones(1, pixels, dtype=torch.float32, device=device)
        entries: list[tuple[int, ...]] = []
        weights, regions, owns = [], [], []
        for row in range(self.rows):
            chunk, image = divmod(row, len(self.pictures))
            own = (len(run.prompts.embeds) + row,) if fused else ()
            if not self.conditional[chunk]:
                entries.append(own)
                weights += [everything] * fused
                regions += [everything.bool()] * fused
                owns.append(everything)
                continue
            which = self.pictures[image] % len(run.regions)
            maps = weight_maps(
                run.coverage(which, self.size, level, self.corners[chunk]),
                self.lam[which].to(device),
                rule=run.rule,
                reference_is_prompt=run.rule == "guidance",
            )
            rows = run.prompts.rows[which]
            entries.append((*own, *(rows if run.rule == "guidance" else rows[:-1])))
            weights.append(maps.weight[not fused :])
            regions.append(maps.region[not fused :])
            owns.append(maps.weight[:1])
        ids, offsets = csr(entries, device)
        region = torch.cat(regions)
        key = self.size, level, self.pictures, self.conditional, self.corners, fused
        plan = run.plan(key, region, ids, offsets)
        # Under "guidance" a row's own prompt has weight 1 everywhere.
        own_weight = torch.cat(owns) if run.rule == "convex" and not fused else None
        return Attended(ids, offsets, EntryMaps(torch.cat(weights), region, plan=plan), own_weight)


def _bytes(network: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in network.parameters())
