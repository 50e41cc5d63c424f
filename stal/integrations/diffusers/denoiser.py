"""A denoiser that is being taught regions: of each call the step, and who attends to what."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from stal.attention import EntryMaps, Plan, csr, plan_of
from stal.caller import warn
from stal.integrations.diffusers.encoded import Encoded
from stal.integrations.diffusers.halves import Halves, halves_of
from stal.integrations.diffusers.inputs import Size
from stal.integrations.diffusers.layers import Attended, Clock, padded
from stal.integrations.diffusers.models import Row
from stal.integrations.diffusers.regions import Regions
from stal.integrations.diffusers.registry import Registry
from stal.integrations.diffusers.steps import repeats_step, step_index, steps_of
from stal.layout import Keyframes, masks
from stal.weights import weight_maps

DENOISERS: Registry[Denoiser] = Registry()
# Tensors of encoded prompts of which the rows are known, the two halves' and as many more.
_MOST_SEEN = 4
# Of the bytes of the pipeline's weights, what keys and values may take that are kept. All of them
# take 1.3% for five regions of Stable Diffusion 1 and 2.6% of XL.
_KEPT = 0.019
_LEAST_KEPT = 1 << 24


def room_of(pipe: Any, denoisers: Sequence[nn.Module]) -> int:
    """Bytes of keys and values that the layers of each denoiser of a pipeline may keep.

    A share of the weights that lie beside each other while it denoises: of its models, those on
    the same device that no hook moves.
    """
    device = next(denoisers[0].parameters()).device
    models = [m for m in vars(pipe).values() if isinstance(m, nn.Module)]
    others = [m for m in models if getattr(m, "_orig_mod", m) not in denoisers and not _hooked(m)]
    weights = {
        p: p.nbytes
        for module in (*denoisers, *others)
        for p in module.parameters()
        if p.device == device
    }
    return max(int(_KEPT * sum(weights.values()) / len(denoisers)), _LEAST_KEPT)


def _hooked(module: nn.Module) -> bool:
    return any("_hf_hook" in vars(m) or "_diffusers_hook" in vars(m) for m in module.modules())


class Denoiser:
    """Regions on one denoiser of a pipeline.

    Args:
        pipe: the pipeline, whose scheduler says the timesteps.
        module: the denoiser.
        model: the row of the table for it.
        regions: what is attended to where.
        room: bytes of keys and values that its layers may keep.
    """

    def __init__(
        self, pipe: Any, module: nn.Module, model: Row, regions: Regions, *, room: int
    ) -> None:
        self.pipe, self.module, self.model, self.regions = pipe, module, model, regions
        self.processors: list[tuple[Any, Any]] = []  # (module, the processor that it must have)
        self.clock = Clock()
        self._call: Call | None = None
        self._room = room
        # Whether the prompts that a module projects right now are the local ones.
        self.projects_local = False
        # What else is to be done before each call.
        self.before: Callable[[], None] | None = None
        self.key = DENOISERS.add(self)
        self._run: Run | None = None
        self._seen: list[tuple[Tensor, Halves]] = []
        self._calls = 0  # of this run
        self._recognised = False  # whether one of them was of the prompts
        # The local prompts, all of them and without references.
        self._local: tuple[Tensor, Tensor] | None = None
        self._local_call: Call | None = None
        self._joined: tuple[Tensor, Tensor, Tensor] | None = None
        self._masks: dict[tuple[int, Size], Tensor] = {}
        self._rows: dict[tuple[Halves, int, bool, torch.device], tuple[Tensor, Tensor]] = {}
        self._plans: dict[tuple[object, ...], Plan | None] = {}

    @property
    def call(self) -> Call:
        """The current call; there is one wherever a layer runs."""
        assert self._call is not None
        return self._call

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
        scheduler = self.pipe.scheduler
        step = run.step(timestep, step_index(scheduler), again=repeats_step(scheduler))
        halves = self._halves(prompts)
        # A call without a conditional half refers to nothing: as before, so that tables last.
        refers = self._call is None or self._call.refers
        if any(halves.conditional):
            guided = halves.unconditional is not None
            refers = self.regions.moves_to_prompt(unconditional=guided)
        self._call = Call(self, step, run, halves, size, timestep, refers)
        return step

    def scale_adapters(self, scale: float) -> None:
        """Before a compiled call, the scale that it is given for its adapters."""
        for _, processor in self.processors:
            processor.layer.scale_adapters(scale)

    def _begin_run(self, device: torch.device) -> Run:
        """The current run of the scheduler; a new one for each set_timesteps."""
        timesteps = self.pipe.scheduler.timesteps
        if self._run is None or self._run.timesteps is not timesteps or self._run.device != device:
            self.end_run()
            levels = self.model.timesteps(self.pipe)
            self._run = Run(self.pipe.scheduler, levels, self.regions, device)
            self._local = None  # what projects them may have changed
        return self._run

    def end_run(self) -> None:
        """Warns if a run that is over was of other prompts, where its calls could not tell."""
        if self._calls and not self._recognised:
            names = " and ".join(self.regions.names)
            warn(f"the pipeline was called with other prompts than {names}, and drew no regions")
        self._seen.clear()
        self._calls, self._recognised = 0, False

    def _check_aspect(self, size: Size) -> None:
        _, height, width = size
        for layout in self.regions.layouts:
            # Half a cell of rounding on either side.
            least, most = (width - 1) / (height + 1), (width + 1) / max(height - 1, 0.5)
            if not least <= layout.aspect <= most:
                warn(
                    f"the layout has an aspect (width / height) of {layout.aspect:.3g} and is"
                    f" stretched to {width} x {height} latents: give it the picture's, with"
                    f" aspect={width / height:.3g}, or in the layout where that states its own"
                )

    def _halves(self, prompts: Tensor) -> Halves:
        halves = next((known for seen, known in self._seen if seen is prompts), None)
        new = halves is None
        if new:
            halves = halves_of(
                prompts, self.model.recognised(self.module, self.regions.prompts.embeds)
            )
        own = halves is not None and any(halves.conditional)
        self._calls += 1
        self._recognised = self._recognised or own
        # Where guidance takes two calls one is of other prompts: of the first two of a run.
        two = self.model.calls == "two" and (self._recognised or self._calls == 1)
        if halves is not None and own and halves.unconditional is not None:
            # Without guidance another text beside a prompt is one more picture. Pipelines know it
            # during a call; some do not tell.
            own = getattr(self.pipe, "do_classifier_free_guidance", None) is not False
        if halves is None or not (own or two):
            names = " and ".join(self.regions.names)
            self._calls = 0
            raise ValueError(
                f"pipe must be called with the prompts that its regions were prepared for, {names},"
                f" in that order, got a batch of {len(prompts)} rows of other prompts: prepare"
                " regions for these, with prompt_embeds or encode= if they are encoded otherwise,"
                " or disable(pipe)"
            )
        if new:
            self._seen = [(prompts, halves), *self._seen[: _MOST_SEEN - 1]]
        return halves

    def local_prompts(self, like: Tensor) -> Tensor:
        """(local prompts, seqlen_k, width), what processors get of those that `_rows_of_table` has.

        The same tensor as long as it holds the same.
        """
        kept, call = self._local, self.call
        if kept is not None and kept[0].device == like.device and kept[0].dtype == like.dtype:
            # A call without a conditional half attends to none of them.
            idle = self._local_call is call or not any(call.halves.conditional)
            if self.model.at_each_step is None or idle:
                return kept[not call.refers]
        with torch.inference_mode(False), torch.no_grad():
            if self.model.at_each_step is not None:
                local = self.model.at_each_step(self.module, self.regions.local, call.timestep)
            else:
                embeds = self.regions.local.compact()[0].to(like.device)
                # Not a parameter's: some are kept in single precision, or stored in 8 bits.
                dtype: Any = self.module.dtype
                local = self.model.context(self.module, embeds.to(dtype))
            local = local.to(like)
            bare = local[: self._bare]
            self._local = local, local if len(bare) == len(local) else bare
            self._local_call = call
        return self._local[not call.refers]

    def joined(self, local: Tensor, own: Tensor) -> Tensor:
        """(local prompts + rows, seqlen_k, width), the batch's own prompts after the local ones.

        Made once for all layers that are given the same; without gradients.
        """
        if self._joined is None or self._joined[0] is not local or self._joined[1] is not own:
            self._joined = local, own, torch.cat(padded(local, own))
        return self._joined[2]

    @property
    def _bare(self) -> int:
        """Local prompts without the references, which come after them."""
        return sum(len(layout.objects) for layout in self.regions.layouts)

    @property
    def _rows_of_table(self) -> int:
        """Local prompts that the op's table has before the batch's own: those that are needed."""
        return len(self.regions.local.embeds) if self.call.refers else self._bare

    def may_keep(self, before: int, now: int) -> bool:
        """Whether a layer that keeps so many bytes may keep so many instead; if not it has none."""
        self._room += before
        if now > self._room:
            return False
        self._room -= now
        return True

    def table_lengths(self, own: Tensor, lengths: Tensor | None) -> Tensor | None:
        """(local prompts + rows,) int32, how many tokens of each count, or None if all do.

        own, lengths: (rows, seqlen_k, width) and (rows,) of the batch's own prompts.
        """
        embeds, local = self.regions.local.rows(slice(self._rows_of_table)).compact()
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
            layout = self.regions.layouts[prompt]
            if isinstance(layout, Keyframes):
                covered = layout.masks(frames, height, width).flatten(2)
            else:
                covered = masks(layout, height, width).flatten(1)[:, None].expand(-1, frames, -1)
            self._masks[key] = covered.to(device)
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
            own = self._rows_of_table
            entries = []
            for row in range(halves.rows):
                local: tuple[int, ...] = ()
                if halves.is_conditional(row):
                    local = self.regions.rows_of(halves.prompt_of(row), reference)
                entries += [(own + row, *local)] * frames
            # Kept tensors must do where gradients are asked for.
            with torch.inference_mode(False):
                self._rows[key] = csr(entries, device)
        return self._rows[key]

    def plan(
        self, regions_of: tuple[object, ...], region: Tensor, ids: Tensor, offsets: Tensor
    ) -> Plan | None:
        """The op's plan of a batch's regions, which depend on neither the step nor its weights.

        regions_of: what they do depend on; a plan is made once for each.
        """
        if regions_of not in self._plans:
            self._plans[regions_of] = plan_of(region, ids, offsets)
        return self._plans[regions_of]


class Run:
    """One run of the scheduler: its steps and each prompt's weights at them."""

    def __init__(
        self, scheduler: Any, levels: Tensor, regions: Regions, device: torch.device
    ) -> None:
        timesteps = scheduler.timesteps
        self.timesteps, self.device = timesteps, device
        self.size: Size | None = None
        self._last: Tensor | None = None
        levels = levels.detach().to("cpu", torch.float32)
        steps, count = steps_of(scheduler, timesteps.tolist(), levels.tolist())
        each, indices = zip(*steps, strict=True)
        self.levels = torch.tensor(each, dtype=torch.float32, device="cpu")
        self._levels = self.levels.to(device)
        self._steps = torch.tensor(indices, dtype=torch.int64, device=device)
        self.weights = [
            regions.weights_of(prompt, count).to(device) for prompt in range(len(regions.layouts))
        ]

    def step(self, timestep: Tensor, index: int, *, again: bool) -> Tensor:
        """(1,) int64: the index of the sampler's transition that a timestep belongs to.

        index: what the scheduler says it is; decides between steps that rounding makes one.
        again: whether the transition is that of the call before.
        """
        levels = self._levels
        if timestep.is_floating_point():
            # Rounded as the denoiser's are, which in half precision may be nearer to the next one.
            levels = levels.to(timestep.dtype).to(levels)
        t = timestep.detach().to(levels).amax()
        apart = (levels - t).abs()
        far = (self._steps - index).abs()
        nearest = torch.where(apart == apart.amin(), far, torch.inf).argmin()
        step = self._steps.index_select(0, nearest.reshape(1))
        if not apart.is_cuda or self._last is None:
            gaps = self.levels.unique().diff().tolist()
            # What bfloat16 makes of it.
            rounding = float(self.levels.abs().max()) * 2**-8
            if float(apart.min()) > min([rounding, *(gap / 2 for gap in gaps)]):
                raise ValueError(
                    f"timestep must be one of scheduler.timesteps, got {float(t):g}: regions know"
                    " the step by it, so call the pipeline that was given to enable, or"
                    " disable(pipe)"
                )
        if again and self._last is not None:
            return self._last
        self._last = step
        return step


@dataclass
class Call:
    """One call of the denoiser."""

    denoiser: Denoiser
    step: Tensor
    run: Run
    halves: Halves
    size: Size
    timestep: Tensor
    refers: bool  # whether the rule moves away from reference prompts
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
        denoiser, halves, reference = self.denoiser, self.halves, self.refers
        grid = denoiser.model.grid(self.size, tokens)
        # Frames lie in a row of tokens, or in the batch, whose prompts may be repeated for them.
        apart = grid[0] if tokens == grid[1] * grid[2] else 1
        each = [
            self._maps_of(p, grid, tokens, apart, reference, device) for p in range(halves.prompts)
        ]
        conditional = [m for maps in each for m in maps * (halves.images * frames // apart)]
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
        ids, offsets = denoiser.rows(halves, frames, reference, device)
        regions_of = self.size, tokens, halves, frames, reference, device
        plan = denoiser.plan(regions_of, region, ids, offsets)
        maps = EntryMaps(weight, region, taken, tuple(first), lost, plan)
        return Attended(ids, offsets, maps)

    def _maps_of(
        self,
        prompt: int,
        grid: Size,
        tokens: int,
        apart: int,
        reference: bool,
        device: torch.device,
    ) -> list[EntryMaps]:
        """A prompt's maps of all frames at once, or one a frame if so many lie apart in the batch.

        Tokens past the grid attend to the batch's own prompt.
        """
        regions = self.denoiser.regions
        maps = weight_maps(
            self.denoiser.coverage(prompt, grid, device),
            self.run.weights[prompt].index_select(0, self.step)[0],
            rule=regions.rule,
            reference_is_prompt=reference,
            background=regions.background if reference else 0.0,
        )
        away = None if maps.unconditional is None else maps.unconditional[None]
        weight, region = maps.weight, maps.region
        if apart > 1:
            parts = [part.chunk(apart, 1) for part in (weight, region)]
            aways = [None] * apart if away is None else away.chunk(apart, 1)
            return [EntryMaps(w, r, a) for w, r, a in zip(*parts, aways, strict=True)]
        missing = tokens - weight.shape[1]
        if missing:
            weight, region = (nn.functional.pad(part, (0, missing)) for part in (weight, region))
            weight[0, -missing:], region[0, -missing:] = 1, True
            away = None if away is None else nn.functional.pad(away, (0, missing))
        return [EntryMaps(weight, region, away)]

    def own_prompts(self, prompts: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The batch's own prompts, tokens that count first, and the lengths of the whole table.

        Args:
            prompts, mask: as processors get them; made once for all layers that get the same.

        Returns:
            (rows, seqlen_k, width), and (local prompts + rows,) int32 or None if all tokens of all
            prompts count.
        """
        if self._own is not None and self._own[0] is prompts and self._own[1] is mask:
            return self._own[2], self._own[3]
        # Elements share a row that is repeated for them, or is given once.
        rows, counted = prompts[:: len(prompts) // self.halves.rows], None
        if mask is not None:
            counted = mask[:: len(mask) // self.halves.rows].flatten(1)
            if counted.dtype != torch.bool:
                # Additive: 0 where a token counts, a large negative number where not. Only what
                # sets tokens apart matters, so where none counts all do.
                counted = counted > counted.amax(1, keepdim=True) - 1
        rows, lengths = Encoded(rows, counted).compact()
        table = self.denoiser.table_lengths(rows, lengths)
        self._own = prompts, mask, rows, table
        return rows, table
