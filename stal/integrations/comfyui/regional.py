"""A model that has regions, while ComfyUI samples it and while it does not."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from stal.integrations.comfyui.layers import Layer
from stal.integrations.comfyui.models import Row, Size
from stal.integrations.comfyui.regions import Conditioning, Regions
from stal.integrations.comfyui.run import Call, Corner, Prompts, Run
from stal.integrations.comfyui.steps import Steps
from stal.integrations.comfyui.strengths import Strengths


class Regional:
    """Regions on one model, and the run of the sampler that is under way.

    ComfyUI copies what lies in a model's options, with all it refers to; this has no copies.

    Attributes:
        layers: of the network, by what names them.
        check: raises if another node has taken the place of what this one put on the model, in
            the options of a run or the object patches of its ModelPatcher.
    """

    def __init__(self, row: Row, regions: Sequence[Regions], strengths: Strengths) -> None:
        self.row, self.regions, self.strengths = row, tuple(regions), strengths
        self.layers: dict[object, Layer] = {}
        self.check: Callable[[dict[str, Any], dict[str, Any]], None] = lambda options, objects: None
        self._run: Run | None = None
        self._call: Call | None = None
        self._patcher: Any = None

    def __deepcopy__(self, memo: object) -> Regional:
        return self

    @property
    def call(self) -> Call:
        """The current call of the network.

        Raises:
            ValueError: there is none, since something calls the network past ComfyUI's sampling.
        """
        if self._call is None:
            raise ValueError(
                "model must be sampled by ComfyUI's samplers while it has regions, got a call from"
                " elsewhere: take out Spatial-temporal attention or the node that calls it"
            )
        return self._call

    @property
    def weights_may_change(self) -> bool:
        """Whether hooks patch the network's weights in the middle of a run."""
        return self._patcher is not None and self._patcher.current_hooks is not None

    def sample(self, executor: Any, guider: Any, sigmas: Any, *args: Any, **kwargs: Any) -> Any:
        """ComfyUI's wrapper around a run of a sampler."""
        if len(sigmas) < 2:  # no step, so no call of the network
            return executor(guider, sigmas, *args, **kwargs)
        options, noise = args[0]["model_options"]["transformer_options"], args[2]
        self._patcher = guider.model_patcher
        try:
            self.check(options, self._patcher.object_patches)
            with torch.no_grad():
                self._run = self._begin(guider, sigmas, noise)
            return executor(guider, sigmas, *args, **kwargs)
        finally:
            self._run = self._call = self._patcher = None
            for layer in self.layers.values():
                layer.forget()

    def apply(self, executor: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        """ComfyUI's wrapper around a call of the network."""
        # x, t, c_concat, c_crossattn, control, transformer_options
        options = kwargs["transformer_options"] if "transformer_options" in kwargs else args[4]
        self._call = None if self._run is None else self._run.call(_size(x), len(x), options)
        return executor(x, *args, **kwargs)

    def _begin(self, guider: Any, sigmas: Any, noise: Any) -> Run:
        model = guider.inner_model
        steps = Steps(sigmas.tolist(), model.model_sampling.percent_to_sigma)
        positive = guider.conds.get("positive", [])
        # A conditioning for an area has copies in the other lists, with its uuid.
        for each in positive:
            each["uuid"] = uuid.uuid4()
        corners = {c["uuid"]: _corner(c["area"]) for c in positive if c.get("area") is not None}
        return Run(
            self.row,
            model.diffusion_model,
            self.regions,
            self.strengths,
            steps,
            _size(noise),
            self._prompts(model, noise, guider.model_patcher.load_device),
            frozenset(c["uuid"] for c in positive),
            corners,
        )

    def _prompts(self, model: Any, noise: Any, device: Any) -> Prompts:
        """The local prompts as the network's layers get them, each once."""
        each: list[Conditioning] = []
        rows = []
        for regions in self.regions:
            own = []
            for given in (*regions.local, regions.reference):
                known = next((i for i, other in enumerate(each) if other[0] is given[0]), None)
                if known is None:
                    each.append(given)
                own.append(len(each) - 1 if known is None else known)
            rows.append(tuple(own))
        texts = [_as_network_gets(model, given, noise, device) for given in each]
        most = max(text.shape[1] for text in texts)
        padded = torch.cat([F.pad(t, (0, 0, 0, most - t.shape[1])) for t in texts])
        embeds = self.row.context(model.diffusion_model, padded)
        return Prompts(embeds, tuple(text.shape[1] for text in texts), tuple(rows))


def _as_network_gets(model: Any, given: Conditioning, noise: Any, device: Any) -> torch.Tensor:
    """(1, tokens that count, width): what a model makes of a text that is encoded."""
    import comfy.model_management
    import comfy.samplers
    from comfy.sampler_helpers import convert_cond

    conds = convert_cond([list(given)])
    # The text depends on neither, but some models ask for them.
    comfy.samplers.encode_model_conds(
        model.extra_conds, conds, noise, device, "positive", latent_image=noise, seed=0
    )
    made = conds[0]["model_conds"]
    dtype = model.get_dtype() if model.manual_cast_dtype is None else model.manual_cast_dtype
    text: torch.Tensor = comfy.model_management.cast_to_device(
        made["c_crossattn"].cond, device, dtype
    )
    if "attention_mask" not in made:
        return text
    counts = made["attention_mask"].cond.to(device).reshape(-1) > 0
    return text[:, counts]


def _size(latents: Any) -> Size:
    """Of latents (rows, channels, height, width) or (rows, channels, frames, height, width)."""
    frames = latents.shape[2] if latents.ndim == 5 else 1
    return frames, latents.shape[-2], latents.shape[-1]


def _corner(area: Sequence[int]) -> Corner:
    """Of a conditioning's area, (height, width, top, left), with frames in front of each half."""
    corner = area[len(area) // 2 :][-2:]
    return int(corner[0]), int(corner[1])
