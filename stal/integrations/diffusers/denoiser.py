"""A denoiser that is being taught regions: of each call the step, and who attends to what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from stal.attention import EntryMaps
from stal.caller import warn
from stal.integrations.diffusers.encoded import Encoded
from stal.integrations.diffusers.halves import Halves, halves_of
from stal.integrations.diffusers.models import Model, Size
from stal.integrations.diffusers.regions import Regions
from stal.layout import masks
from stal.weights import weight_maps

_KEYS = count()
# As for layers: how an operator of torch finds its denoiser.
DENOISERS: WeakValueDictionary[int, Denoiser] = WeakValueDictionary()
# Tensors of encoded prompts of which the rows are known, the two halves' and as many more.
_MOST_SEEN = 4


class Clock:
    """The step of the latest call, (1,) int64, where compiled code can hand it on."""

    def __init__(self) -> None:
        self.step: Tensor = torch.zeros(1, dtype=torch.int64, device="cpu")


@dataclass(frozen=True)
class Attended:
    """What one layer's batch attends to: the op's CSR and the maps of its entries."""

    ids: Tensor
    offsets: Tensor
    maps: EntryMaps


class Denoiser:
    """Regions on one denoiser of a pipeline.

    Args:
        pipe: the pipeline, whose scheduler says the timesteps.
        module: the denoiser.
        model: the row of the table for it.
        regions: what is attended to where.
    """

    def __init__(self, pipe: Any, module: nn.Module, model: Model, regions: Regions) -> None:
        self.pipe, self.module, self.model, self.regions = pipe, module, model, regions
        self.processors: list[tuple[Any, Any]] = []  # (module, the processor that it must have)
        self.clock = Clock()
        self.call: Call
        # Whether the prompts that a module projects right now are the local ones.
        self.projects_local = False
        # What else is to be done before each call.
        self.before: Callable[[], None] | None = None
        number = next(_KEYS)
        DENOISERS[number] = self
        self.key = torch.tensor(number, dtype=torch.int64, device="cpu")
        self._run: Run | None = None
        self._seen: list[tuple[Tensor, Halves]] = []
        self._local: tuple[Tensor, Tensor] | None = None
        self._masks: dict[tuple[int, Size], Tensor] = {}
        self._rows: dict[tuple[Halves, int, bool, torch.device], tuple[Tensor, Tensor]] = {}

    def begin(self, timestep: Tensor, prompts: Tensor, size: Size) -> Tensor:
        """Called before each call of the denoiser.

        Args:
            timestep: as the denoiser gets it; its largest value counts.
            prompts: (rows, seqlen_k, width), the encoded prompts of the batch.
            size: of the latents.

        Returns:
            (1,) int64 on the device of the prompts: the index of the sampler's transition.

        Raises:
            ValueError: a batch that is not of the prompts of the regions, a timestep that is not
                the scheduler's, weights of another number of steps, or processors that somebody
                has replaced.
        """
        for module, processor in self.processors:
            if module.processor is not processor:
                got = type(module.processor).__name__
                raise ValueError(
                    f"pipe must keep its attention processors while regions are enabled, got {got}:"
                    " change them before, or disable(pipe) first"
                )
        if self.before is not None:
            self.before()
        run = self._begin_run(prompts.device)
        if run.size != size:
            run.size = size
            self._check_aspect(size)
        step = run.step(timestep)
        self.call = Call(self, step, run, self._halves(prompts), size)
        return step

    def _begin_run(self, device: torch.device) -> Run:
        """The current run of the scheduler; a new one for each set_timesteps."""
        timesteps = self.pipe.scheduler.timesteps
        if self._run is None or self._run.timesteps is not timesteps or self._run.device != device:
            self._run = Run(
                timesteps, self.model.timesteps(self.pipe.scheduler), self.regions, device
            )
            self._seen.clear()
        return self._run

    def _check_aspect(self, size: Size) -> None:
        _, height, width = size
        for layout in self.regions.layouts:
            # Half a cell of rounding on either side.
            least, most = (width - 1) / (height + 1), (width + 1) / max(height - 1, 0.5)
            if not least <= layout.aspect <= most:
                warn(
                    f"the layout has an aspect (width / height) of {layout.aspect:.3g} and is"
                    f" stretched to {width} x {height} latents"
                )

    def _halves(self, prompts: Tensor) -> Halves:
        for seen, known_halves in self._seen:
            if seen is prompts:
                return known_halves
        known = self.regions.prompts.embeds
        halves = halves_of(prompts, known)
        if halves is None or (self.model.calls == "one" and not any(halves.conditional)):
            names = " and ".join(self.regions.names)
            raise ValueError(
                f"pipe must be called with the prompts that its regions were prepared for, {names},"
                f" in that order, got a batch of {len(prompts)} rows of other prompts: prepare"
                " regions for these, with prompt_embeds or encode= if they are encoded otherwise"
            )
        self._seen = [(prompts, halves), *self._seen[: _MOST_SEEN - 1]]
        return halves

    def local_prompts(self, like: Tensor) -> Tensor:
        """(local prompts, seqlen_k, width), what processors get of them."""
        if (
            self._local is None
            or self._local[1].device != like.device
            or (self._local[1].dtype != like.dtype)
        ):
            with torch.inference_mode(False), torch.no_grad():
                embeds = self.regions.local.compact()[0].to(like.device)
                parameter = next(self.module.parameters())
                embeds = embeds.to(parameter.dtype)
                self._local = embeds, self.model.context(self.module, embeds).to(like)
        return self._local[1]

    def table_lengths(self, own: Tensor, lengths: Tensor | None) -> Tensor | None:
        """(local prompts + rows,) int32, how many tokens of each count, or None if all do.

        own, lengths: (rows, seqlen_k, width) and (rows,) of the batch's own prompts.
        """
        embeds, local = self.regions.local.compact()
        if lengths is None and local is None and own.shape[1] == embeds.shape[1]:
            return None
        tables = ((embeds, local), (own, lengths))
        return torch.cat(
            [
                torch.full((len(e),), e.shape[1], dtype=torch.int32, device=own.device)
                if n is None
                else n.to(own.device, torch.int32)
                for e, n in tables
            ]
        )

    def coverage(self, prompt: int, size: Size, device: torch.device) -> Tensor:
        """(objects, frames, height * width), the soft coverage of a prompt's regions."""
        key = prompt, size
        if key not in self._masks or self._masks[key].device != device:
            frames, height, width = size
            covered = masks(self.regions.layouts[prompt], height, width).flatten(1)[:, None]
            self._masks[key] = covered.expand(-1, frames, -1).to(device)
        return self._masks[key]

    def rows(
        self, halves: Halves, frames: int, reference: bool, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """The op's ids and offsets; local prompts come first in the table, then the batch's own.

        frames: elements of the batch that share a row of prompts.
        reference: whether each prompt has its reference prompt.
        """
        key = halves, frames, reference, device
        if key not in self._rows:
            own = len(self.regions.local.embeds)
            entries = []
            for row in range(halves.rows):
                prompt = halves.prompt_of(row)
                local = () if prompt is None else self.regions.rows_of(prompt, reference)
                entries += [(own + row, *local)] * frames
            ids = torch.tensor([i for e in entries for i in e], dtype=torch.int32, device=device)
            lengths = torch.tensor([0, *map(len, entries)], dtype=torch.int64)
            self._rows[key] = ids, lengths.cumsum(0).to(device, torch.int32)
        return self._rows[key]


class Run:
    """One run of the scheduler: its steps and each prompt's weights at them."""

    def __init__(
        self, timesteps: Tensor, levels: Tensor, regions: Regions, device: torch.device
    ) -> None:
        self.timesteps, self.device, self.size = timesteps, device, None
        # A step that takes two calls has one timestep twice, or more.
        levels = levels.detach().to("cpu", torch.float32)
        order = torch.unique_consecutive(levels).tolist()
        self.levels = torch.tensor(list(dict.fromkeys(order)), dtype=torch.float32)
        self._levels = self.levels.to(device)
        self.weights = [
            regions.weights_of(prompt, len(self.levels)).to(device)
            for prompt in range(len(regions.layouts))
        ]

    size: Size | None

    def step(self, timestep: Tensor) -> Tensor:
        """(1,) int64: the index of the sampler's transition that begins at a timestep."""
        t = timestep.detach().to(self._levels).amax()
        apart = (self._levels - t).abs()
        step = apart.argmin().reshape(1)
        if not apart.is_cuda:
            gaps = self.levels.diff().abs()
            allowed = float(gaps.min()) / 2 if len(gaps) else 1.0
            if float(apart.min()) > allowed:
                raise ValueError(
                    f"timestep must be one of scheduler.timesteps, got {float(t):g}: regions know"
                    " the step by it"
                )
        return step


@dataclass
class Call:
    """One call of the denoiser."""

    denoiser: Denoiser
    step: Tensor
    run: Run
    halves: Halves
    size: Size
    _attended: dict[tuple[int, int], Attended] = field(default_factory=dict)
    _own: tuple[Tensor, Tensor | None, Tensor, Tensor | None] | None = None

    def attended(self, tokens: int, frames: int, device: torch.device) -> Attended:
        """What elements of so many tokens attend to, made once for all layers of a resolution.

        frames: elements of the batch that share a row of prompts.
        """
        key = tokens, frames
        if key not in self._attended:
            self._attended[key] = self._attend(tokens, frames, device)
        return self._attended[key]

    def _attend(self, tokens: int, frames: int, device: torch.device) -> Attended:
        denoiser, halves, regions = self.denoiser, self.halves, self.denoiser.regions
        reference = regions.moves_to_prompt(unconditional=halves.unconditional is not None)
        grid = denoiser.model.grid(self.size, tokens)
        each = [self._maps_of(p, grid, frames, reference, device) for p in range(halves.prompts)]
        conditional = [m for maps in each for m in maps * halves.images]
        ones = torch.ones(1, tokens, dtype=torch.float32, device=device)
        alone = EntryMaps(ones, ones.bool())
        elements = [
            m
            for is_conditional in halves.conditional
            for m in (conditional if is_conditional else [alone] * (halves.block * frames))
        ]
        weight = torch.cat([m.weight for m in elements])
        region = torch.cat([m.region for m in elements])
        away = [m.away for m in conditional if m.away is not None]
        first = [i * halves.block * frames for i, own in enumerate(halves.conditional) if own]
        lost = (halves.unconditional or 0) * halves.block * frames
        taken = torch.cat(away) if away and first else None
        maps = EntryMaps(weight, region, taken, tuple(first), lost)
        return Attended(*denoiser.rows(halves, frames, reference, device), maps)

    def _maps_of(
        self, prompt: int, grid: Size, frames: int, reference: bool, device: torch.device
    ) -> list[EntryMaps]:
        """A prompt's maps: of all frames at once, or one for each if they lie in the batch."""
        regions = self.denoiser.regions
        maps = weight_maps(
            self.denoiser.coverage(prompt, grid, device),
            self.run.weights[prompt].index_select(0, self.step)[0],
            rule=regions.rule,
            reference_is_prompt=reference,
            background=regions.background if reference else 0.0,
        )
        away = None if maps.unconditional is None else maps.unconditional[None]
        if frames == 1:
            return [EntryMaps(maps.weight, maps.region, away)]
        parts = [part.chunk(frames, 1) for part in (maps.weight, maps.region)]
        aways = [None] * frames if away is None else away.chunk(frames, 1)
        return [EntryMaps(w, r, a) for w, r, a in zip(*parts, aways, strict=True)]

    def own_prompts(
        self, prompts: Tensor, mask: Tensor | None, frames: int
    ) -> tuple[Tensor, Tensor | None]:
        """The batch's own prompts, tokens that count first, and the lengths of the whole table.

        Args:
            prompts, mask: as processors get them; made once for all layers that get the same.
            frames: elements of the batch that share a row.

        Returns:
            (rows, seqlen_k, width), and (local prompts + rows,) int32 or None if all tokens of all
            prompts count.
        """
        if self._own is not None and self._own[0] is prompts and self._own[1] is mask:
            return self._own[2], self._own[3]
        rows, counted = prompts[::frames], None
        if mask is not None:
            mask_rows = mask[::frames].flatten(1)
            # Additive: 0 where a token counts, a large negative number where not.
            counted = mask_rows if mask_rows.dtype == torch.bool else mask_rows > -1
        rows, lengths = Encoded(rows, counted).compact()
        table = self.denoiser.table_lengths(rows, lengths)
        self._own = prompts, mask, rows, table
        return rows, table
