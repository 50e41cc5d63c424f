"""Adapters that act in regions: in the prompts of their phrases and on the pixels of these.

PEFT adds to a layer's output what an adapter makes of its input. A gate lets through as much of it
as the adapter's regions cover of a pixel, and of a prompt's keys and values all or nothing.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from stal.checked_json import short
from stal.integrations.diffusers.adapters import Gate, check_acts, has_adapter, muted, tuner_layers
from stal.integrations.diffusers.inputs import Size
from stal.integrations.diffusers.registry import Registry

if TYPE_CHECKING:
    from stal.integrations.diffusers.denoiser import Denoiser

GATES: Registry[RegionGate] = Registry()
# Of cross-attention, what is computed of the pixels.
_OF_PIXELS = ("to_q", "to_query", "q_img", "to_gate_logits", "to_out", "out_layer")
# In the names of modules that are given texts, times or sound, elsewhere.
_WITHOUT_PIXELS = (
    *("text", "caption", "encoder_hid_proj", "crossattn_proj", "image_emb", "time"),
    "audio",
)

# (batch, ..., channels) without its first and last dimension.
Places: TypeAlias = tuple[int, ...]


class RegionLoras:
    """The adapters of regions on one denoiser, and in the text encoders of its pipeline.

    Args:
        denoiser: whose regions they are.
        cross_attention: names of its modules that attend to text.
    """

    def __init__(self, denoiser: Denoiser, cross_attention: Collection[str]) -> None:
        self.denoiser = denoiser
        self.names = denoiser.regions.adapters
        self.layers: list[Active] = []
        self.gates: list[Gate] = [*muted(denoiser.pipe, self.names)]
        for path, layer in tuner_layers(denoiser.module):
            own = [name for name in self.names if has_adapter(layer, name)]
            if own:
                of_text = _is_of_text(path, cross_attention)
                self.layers.append(Active(path, layer, self.names, own))
                self.gates += [RegionGate(self, layer, name, of_text) for name in own]
        self._shares: dict[tuple[object, ...], Tensor | None] = {}
        self._size: Size | None = None

    def put_on(self) -> None:
        for gate in self.gates:
            gate.put_on()
        self.activate()
        self.denoiser.before = self.begin

    def take_off(self) -> None:
        for gate in self.gates:
            gate.take_off()
        for layer in self.layers:
            layer.restore()
        self.denoiser.before = None

    def begin(self) -> None:
        """Before each call, as the user may have changed adapters.

        Raises:
            ValueError, NotImplementedError: so that those of regions would not act in them.
        """
        for layer in self.layers:
            check_acts(layer.path, layer.layer, layer.own[0])
        # All of them go at once.
        for layer in self.layers[:1]:
            if self.denoiser.module.get_submodule(layer.path) is not layer.layer:
                raise _gone(layer.own[0])
        self.activate()

    def activate(self) -> None:
        """Makes the adapters of regions active, as set_adapters may have been called.

        Traced by torch.compile too, which runs what is traced, but not what operators do inside.
        """
        for layer in self.layers:
            layer.activate()

    def of_prompts(self, adapter: str, out: Tensor) -> Tensor | None:
        """(rows, 1, 1), 1 for the local prompts that have an adapter; None of other prompts."""
        if not self.denoiser.projects_local:
            return None
        has = [adapter in names for each in self.denoiser.regions.loras for names in each]
        # References come after the local prompts, and have none.
        has += [False] * (len(out) - len(has))
        return out.new_tensor(has)[:, None, None]

    def of_pixels(self, adapter: str, out: Tensor, places: Places) -> Tensor | None:
        """(batch, *places), how far an adapter's regions cover each pixel; None without pixels."""
        call = self.denoiser.call
        if call.size != self._size:
            self._size = call.size
            self._shares.clear()
        key = adapter, call.halves, len(out), places, out.device, out.dtype
        if key not in self._shares:
            # Kept tensors must do where gradients are asked for.
            with torch.inference_mode(False), torch.no_grad():
                self._shares[key] = self._covered(adapter, out, places)
        return self._shares[key]

    def _covered(self, adapter: str, out: Tensor, places: Places) -> Tensor | None:
        call = self.denoiser.call
        grid = self._grid(places)
        if grid is None:
            return None
        halves, regions = call.halves, self.denoiser.regions
        covered = []
        for prompt in range(halves.prompts):
            each = self.denoiser.coverage(prompt, grid, out.device)
            own = torch.tensor(
                [adapter in names for names in regions.loras[prompt]], device=out.device
            )
            # Where two regions share a pixel at their border they cover it together.
            covered.append(each[own].sum(0).clamp(max=1))
        rows = torch.stack([covered[halves.prompt_of(row)] for row in range(halves.rows)])
        frames, missing = grid[0], math.prod(places) - math.prod(grid)
        if missing > 0:
            # Tokens past the grid are a given image's, which has no regions.
            rows = nn.functional.pad(rows.flatten(1), (0, missing))
        if missing < 0:
            # Frames lie in the batch, and may be pictures of the prompts too.
            if len(out) == len(rows) and halves.images % frames == 0:
                rows = rows[torch.arange(len(rows)), torch.arange(len(rows)) % frames]
            else:
                rows = rows.flatten(0, 1)
        if len(out) != len(rows):
            raise ValueError(
                f"loras must act on as many rows as the denoiser has, {len(rows)}, got {len(out)}"
                f" in a layer of {' x '.join(map(str, places))} pixels with the adapter"
                f" {short(adapter)}"
            )
        return rows.reshape(len(out), *places).to(out.dtype)

    def _grid(self, places: Places) -> Size | None:
        """Frames, height and width of a layer's pixels, or None if it has none."""
        size = self.denoiser.call.size
        if len(places) == 3:
            return places[0], places[1], places[2]
        if len(places) == 2:
            return size[0], places[0], places[1]
        if len(places) != 1:
            return None
        try:
            return self.denoiser.model.grid(size, places[0])
        except ValueError:
            return None


def _gone(name: str) -> ValueError:
    return ValueError(
        f"pipe must keep the adapter {short(name)} while regions are enabled, got layers without"
        " it: disable(pipe) first"
    )


class Active:
    """Which adapters of a layer are active: the user's and, beside them, those of regions."""

    def __init__(self, path: str, layer: Any, names: Collection[str], own: list[str]) -> None:
        self.path, self.layer, self.names, self.own = path, layer, names, own
        self.users: Any = layer._active_adapter
        self.all: list[str] | None = None

    def activate(self) -> None:
        # Not by identity: compiled code makes its own lists.
        if self.layer._active_adapter == self.all:
            return
        for name in self.own:
            if not has_adapter(self.layer, name):
                raise _gone(name)
        # Not through set_adapter, which also says which weights learn.
        users = self.layer._active_adapter
        # A list of its own: compiled code reads this one again after it has been replaced.
        self.users = users if isinstance(users, str) else list(users)
        others = [name for name in self.layer.active_adapters if name not in self.names]
        self.all = [*others, *self.own]
        self.layer._active_adapter = self.all

    def restore(self) -> None:
        if self.layer._active_adapter == self.all:
            self.layer._active_adapter = self.users


class RegionGate(Gate):
    """Lets through what an adapter adds in its regions.

    Args:
        loras: which knows what the regions cover.
        layer: of PEFT.
        adapter: its name.
        of_text: whether the layer is given texts.
    """

    def __init__(self, loras: RegionLoras, layer: Any, adapter: str, of_text: bool) -> None:
        super().__init__(layer, adapter)
        self.loras, self.of_text = loras, of_text
        # Channels come last, but in convolutions.
        self.convolves = not isinstance(layer.get_base_layer(), nn.Linear)
        self.key = GATES.add(self)

    def share(self, out: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            step = self.loras.denoiser.clock.step
            return torch.ops.stal_diffusers.within(out, step, self.key)
        return self.within(out)

    def within(self, out: Tensor) -> Tensor:
        """`share` outside of compiled code."""
        if self.of_text:
            share = self.loras.of_prompts(self.adapter, out)
        elif self.convolves:
            share = self.loras.of_pixels(self.adapter, out, tuple(out.shape[2:]))
            share = None if share is None else share[:, None]
        else:
            share = self.loras.of_pixels(self.adapter, out, tuple(out.shape[1:-1]))
            share = None if share is None else share[..., None]
        return torch.zeros_like(out) if share is None else out * share


def _is_of_text(path: str, cross_attention: Collection[str]) -> bool:
    """Whether a layer's input has no pixels.

    In cross-attention all but queries and output; elsewhere by a word in its name.
    """
    for name in cross_attention:
        if path.startswith(f"{name}."):
            return path[len(name) + 1 :].split(".")[0] not in _OF_PIXELS
    return any(word in path for word in _WITHOUT_PIXELS)
