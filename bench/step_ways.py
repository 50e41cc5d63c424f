"""The ways that bench_end_to_end.py compares: one step of one UNet, its regions handled by each.

All ways share the weights of one `diffusers.UNet2DConditionModel`: each has modules of its own
around the same tensors, so that its processors stay where they are while others run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from regions import prompt_of
from timing import captured
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from stal.attention import Blend, Blended, Prompts
from stal.integrations.diffusers import enable, prepare
from stal.layout import Layout, masks
from stal.layout.predictor import predict
from stal.model.unet import UNet
from stal.model.unet_config import UNetConfig
from stal.prompts import parse
from stal.weights import WeightMaps, default_weights, weight_maps

_SD15 = {
    "attention_head_dim": 8,
    "block_out_channels": (320, 640, 1280, 1280),
    "cross_attention_dim": 768,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}
_SDXL = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "attention_head_dim": (5, 10, 20),
    "block_out_channels": (320, 640, 1280),
    "cross_attention_dim": 2048,
    "down_block_types": ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2,
    "projection_class_embeddings_input_dim": 2816,
    "transformer_layers_per_block": (1, 2, 10),
    "up_block_types": ("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",),
    "use_linear_projection": True,
}
# Says nothing about speed: it shows in seconds that the program runs. With fewer layers bfloat16
# hides what a single region changes.
_TINY = {
    **_SDXL,
    "addition_time_embed_dim": 8,
    "attention_head_dim": (1, 2, 4),
    "block_out_channels": (16, 32, 64),
    "cross_attention_dim": 48,
    "norm_num_groups": 8,
    "projection_class_embeddings_input_dim": 80,
    "transformer_layers_per_block": (1, 2, 6),
}
# What diffusers' classes take; the keys of config.json that equal its defaults are left out.
MODELS: dict[str, dict[str, Any]] = {"sd15": _SD15, "sdxl": _SDXL, "tiny": _TINY}
# What lies beside the UNet in its pipeline: text encoders, by whether diffusers takes their
# projection too, and the widths of the VAE.
_CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
_CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32}
_TEXT: dict[str, list[tuple[bool, dict[str, int]]]] = {
    "sd15": [(False, _CLIP_L)],
    "sdxl": [(False, _CLIP_L), (True, {**_CLIP_G, "projection_dim": 1280})],
    "tiny": [(False, dict.fromkeys(_CLIP_L, 4))],
}
_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
_SEQLEN_K = 77
_STEPS = 30
# What a residual branch ends in.
_ENDS = ("to_out.0.weight", "net.2.weight", "conv2.weight", "proj_out.weight")
# Prime, so that no two rows of a matrix begin at the same place of the repeated noise.
_NOISE = 1_000_003


def build(model: str, dtype: torch.dtype, device: torch.device) -> UNet2DConditionModel:
    """Random weights of variance 1 / fan_in: scores and activations keep a variance near 1.

    Branches add 0.3 of that: with all of it XL's 70 transformer blocks amplify the rounding of
    bfloat16 to the size of the result, and what regions change could not be seen. One draw is
    repeated, since to draw 2.6 billion numbers takes long.
    """
    with torch.device("meta"):
        unet = UNet2DConditionModel(**MODELS[model])
    # Not diffusers' own `to`, which warns of layers that some of its models keep in float32.
    unet = nn.Module.to(unet, dtype).to_empty(device=device).eval().requires_grad_(False)
    noise = torch.randn(_NOISE, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    for name, parameter in unet.named_parameters():
        if parameter.ndim == 1:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)
            continue
        scale = parameter[0].numel() ** -0.5 * (0.3 if name.endswith(_ENDS) else 1.0)
        for part in parameter.view(-1).split(_NOISE):
            torch.mul(noise[: len(part)], scale, out=part)
    return unet


def beside(model: str, dtype: torch.dtype, device: torch.device) -> dict[str, nn.Module]:
    """The other models of a pipeline, by the names that it has for them. They are not called: they
    are there because regions may take memory in proportion to what a pipeline has."""
    with torch.device("meta"):
        models: dict[str, nn.Module] = {}
        for i, (projects, config) in enumerate(_TEXT[model]):
            kind = CLIPTextModelWithProjection if projects else CLIPTextModel
            name = f"text_encoder_{i + 1}" if i else "text_encoder"
            models[name] = kind(CLIPTextConfig(num_attention_heads=4, **config))
        if model != "tiny":
            models["vae"] = AutoencoderKL(**_VAE)
    for other in models.values():
        nn.Module.to(other, dtype).to_empty(device=device).eval().requires_grad_(False)
        for parameter in other.parameters():
            parameter.zero_()  # pages that are never written take no memory
    return models


def twin(unet: UNet2DConditionModel, made: Callable[[], nn.Module]) -> nn.Module:
    """A module of the same state-dict keys around the same weights."""
    with torch.device("meta"):
        other = made()
    other.load_state_dict(unet.state_dict(), strict=True, assign=True)
    return other.eval().requires_grad_(False)


@dataclass(frozen=True)
class Scene:
    """One call of a UNet: the halves of classifier-free guidance of one picture, and its regions.

    latents: (2, 4, height, width), the unconditional half first.
    timestep: (), on the latents' device: a CUDA graph cannot hold a copy from the CPU.
    embeddings: (2 + regions, 77, width): of the empty prompt, the whole one, one an object.
    added: what XL is told beside them.
    weights: (steps, regions), of which the first step's are used.
    maps: by number of pixels, what the conditional half's pixels attend to.
    beside: the pipeline's other models.
    """

    latents: Tensor
    timestep: Tensor
    embeddings: Tensor
    added: dict[str, Tensor] | None
    layout: Layout
    weights: Tensor
    maps: dict[int, WeightMaps]
    beside: dict[str, nn.Module]

    @property
    def regions(self) -> int:
        return len(self.layout.objects)

    def double(self) -> Scene:
        """The same values in float64; the maps stay, for they are float32 by definition."""
        added = self.added and {name: x.double() for name, x in self.added.items()}
        others = self.layout, self.weights, self.maps, self.beside
        return Scene(self.latents.double(), self.timestep, self.embeddings.double(), added, *others)


def scene(
    unet: UNet2DConditionModel,
    regions: int,
    height: int,
    width: int,
    *,
    seed: int = 0,
    others: dict[str, nn.Module] | None = None,
) -> Scene:
    """The layout is the predictor's for a prompt of as many objects."""
    config, dtype, device = unet.config, unet.dtype, unet.device
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    layout = predict(parse(prompt_of(regions)), aspect=width / height, seed=seed)
    weights = default_weights(_STEPS, regions)
    maps, h, w = {}, height, width
    for _ in config.block_out_channels:
        made = weight_maps(masks(layout, h, w), weights[0])
        parts = made.weight, made.region, made.unconditional
        maps[h * w] = WeightMaps(*(x if x is None else x.to(device) for x in parts))
        h, w = -(-h // 2), -(-w // 2)
    latents = normal(1, config.in_channels, height, width).repeat(2, 1, 1, 1)
    embeddings = normal(2 + regions, _SEQLEN_K, config.cross_attention_dim)
    added = None
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        size = [8 * height, 8 * width]
        times = torch.tensor([[*size, 0, 0, *size]] * 2).to(device, dtype)
        added = {"text_embeds": normal(2, pooled), "time_ids": times}
    timestep = torch.tensor(500, device=device)
    return Scene(latents, timestep, embeddings, added, layout, weights, maps, others or {})


class _Processor:
    """A cross-attention layer's processor; what is between to_q and to_out is `attend`.

    encoder_hidden_states holds the empty prompt and the whole one.
    """

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self._projected: tuple[Tensor, Tensor] | None = None

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        q = self.heads(attn, attn.to_q(hidden_states))
        out = self.attend(attn, q, encoder_hidden_states).transpose(1, 2).flatten(2)
        return attn.to_out[1](attn.to_out[0](out))

    def attend(self, attn: Any, q: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        raise NotImplementedError

    def heads(self, attn: Any, x: Tensor) -> Tensor:
        return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

    def project(self, attn: Any, context: Tensor) -> tuple[Tensor, Tensor]:
        return self.heads(attn, attn.to_k(context)), self.heads(attn, attn.to_v(context))

    def projected(self, attn: Any) -> tuple[Tensor, Tensor]:
        """k, v of all prompts, (2 + regions, heads, 77, head_dim), made in the first call."""
        if self._projected is None:
            self._projected = self.project(attn, self.scene.embeddings)
        return self._projected

    def maps(self, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """weight, region (1 + regions, n) and the multiple of the unconditional half (n,)."""
        made = self.scene.maps[q.shape[2]]
        assert made.unconditional is not None
        return made.weight, made.region, made.unconditional


class Eager(_Processor):
    """The formula in batched products and a softmax: what errors are measured by."""

    def attend(self, attn: Any, q: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        k, v = self.projected(attn)
        weight, _, away = (x.to(q.dtype) for x in self.maps(q))
        owner = torch.tensor([0, *[1] * len(weight)], device=q.device)
        attended = (q[owner] @ k.mT * attn.scale).softmax(-1) @ v
        unconditional = attended[:1]
        conditional = (attended[1:] * weight[:, None, :, None]).sum(0, keepdim=True)
        return torch.cat([unconditional, conditional - unconditional * away[:, None]])


class Naive(_Processor):
    """As regional extensions do it: one call a prompt over all pixels, masks multiplied, summed.

    Keys and values are projected in every call.
    """

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._masks: dict[int, Tensor] = {}

    def attend(self, attn: Any, q: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        k, v = self.project(attn, encoder_hidden_states)
        unconditional, out = F.scaled_dot_product_attention(q, k, v).chunk(2)
        pixels = q.shape[2]
        if pixels not in self._masks:
            self._masks[pixels] = self.maps(q)[0][1:, :, None].to(q.dtype)
        for context, mask in zip(self.scene.embeddings[2:], self._masks[pixels], strict=True):
            k, v = self.project(attn, context[None])
            local = F.scaled_dot_product_attention(q[1:], k, v)
            out = out + (local - unconditional) * mask
        return torch.cat([unconditional, out])


def _flex(q: Tensor, k: Tensor, v: Tensor, weight: Tensor, away: Tensor, block_mask: Any) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    q = torch.cat([q[:1], q[1:].expand(len(weight), -1, -1, -1)])
    attended = flex_attention(q, k, v, block_mask=block_mask)
    unconditional = attended[:1]
    conditional = (attended[1:] * weight[:, None, :, None]).sum(0, keepdim=True)
    return torch.cat([unconditional, conditional - unconditional * away[:, None]])


@cache
def _compiled_flex() -> Callable[..., Tensor]:
    """FlexAttention is fast, and on a CPU runs at all, only when it is compiled."""
    return torch.compile(_flex, dynamic=False)


class Flex(_Processor):
    """FlexAttention over batch x prompts: blocks of pixels outside a region are skipped.

    Keys and values are projected once, the weighted sum is compiled with it.
    """

    def __init__(self, scene: Scene, block_masks: dict[int, Any]) -> None:
        super().__init__(scene)
        self._block_masks = block_masks

    def attend(self, attn: Any, q: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        k, v = self.projected(attn)
        weight, _, away = (x.to(q.dtype) for x in self.maps(q))
        return _compiled_flex()(q, k, v, weight, away, self._block_masks[q.shape[2]])


def block_masks(scene: Scene) -> dict[int, Any]:
    """By number of pixels: which of them each entry of batch x prompts has, in blocks."""
    from torch.nn.attention.flex_attention import create_block_mask

    def one(pixels: int) -> Any:
        region = scene.maps[pixels].region
        exists = torch.cat([torch.ones_like(region[:1]), region])

        def mask(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return exists[b, q]

        device = str(region.device)
        return create_block_mask(mask, len(exists), None, pixels, _SEQLEN_K, device=device)

    return {pixels: one(pixels) for pixels in scene.maps}


def drop_in(unet: UNet2DConditionModel, scene: Scene) -> None:
    """Makes the UNet obey the regions as a user's pipeline would, with embeddings made before."""
    steps = torch.linspace(float(scene.timestep), 0, _STEPS)
    scheduler = SimpleNamespace(timesteps=steps)
    pipe = SimpleNamespace(unet=unet, scheduler=scheduler, **scene.beside)
    regions = prepare(
        pipe,
        prompt_embeds=scene.embeddings[1:2],
        local_embeds=scene.embeddings[2:],
        layout=scene.layout,
        weights=scene.weights,
        reference="unconditional",
    )
    enable(pipe, regions)


def _install(unet: UNet2DConditionModel, made: Callable[[], object]) -> None:
    """A processor of its own for each cross-attention layer."""
    for _, module in cross_attentions(unet):
        module.set_processor(made())


def cross_attentions(unet: nn.Module) -> list[tuple[str, Any]]:
    """The layers that attend to the text, of diffusers' UNet and of ours."""
    return [(name, module) for name, module in unet.named_modules() if name.endswith(".attn2")]


@dataclass(frozen=True)
class Way:
    """A step that can be timed, and the UNet whose layers it runs."""

    step: Callable[[], Tensor]
    unet: nn.Module


WAYS = ("diffusers", "naive", "flex", "drop-in", "stal UNet")
# On a GPU each way is also run compiled and from a CUDA graph.
KINDS = ("eager", "compiled", "graph")


def way(name: str, unet: UNet2DConditionModel, scene: Scene, kind: str = "eager") -> Way:
    """A way by its name in `WAYS`, or "eager formula", around the weights of a UNet.

    Whatever it needs to know of the regions is made here, before a step.
    """
    own = name == "stal UNet"
    made = _own(unet, scene, fixed=kind == "graph") if own else _diffusers(name, unet, scene)
    if kind == "compiled":
        made.unet.compile()
    if kind == "graph":
        return Way(_graphed(made.step), made.unet)
    return made


def _diffusers(name: str, unet: UNet2DConditionModel, scene: Scene) -> Way:
    other: Any = twin(unet, lambda: UNet2DConditionModel(**unet.config))
    other.set_attn_processor(AttnProcessor2_0())
    if name == "eager formula":
        _install(other, lambda: Eager(scene))
    elif name == "naive":
        _install(other, lambda: Naive(scene))
    elif name == "flex":
        skipped = block_masks(scene)
        _install(other, lambda: Flex(scene, skipped))
    elif name == "drop-in":
        drop_in(other, scene)
    elif name != "diffusers":
        raise ValueError(f"name must be one of {', '.join(WAYS)}, got {name!r}")
    # The same tensor at every step, as pipelines hand it over.
    prompts = scene.embeddings[:2]
    return Way(lambda: _call(other, scene, prompts), other)


def _call(unet: Any, scene: Scene, prompts: Tensor) -> Tensor:
    others = {"added_cond_kwargs": scene.added, "return_dict": False}
    return unet(scene.latents, scene.timestep, encoder_hidden_states=prompts, **others)[0]


def _own(unet: UNet2DConditionModel, scene: Scene, *, fixed: bool) -> Way:
    """Our UNet. Its maps are made in every step, as in a drawing, unless they are `fixed`: a CUDA
    graph cannot hold the copy of the weights from the CPU."""
    own = twin(unet, lambda: UNet(UNetConfig.from_dict(dict(unet.config))))
    rows = tuple(range(1, len(scene.embeddings)))
    blended = Blended(Prompts(scene.embeddings), [Blend(rows, scene.layout)], unconditional=0)
    kept = blended.at(0, [scene.weights]) if fixed else None

    def step() -> Tensor:
        attention = kept or blended.at(0, [scene.weights])
        return own(scene.latents, scene.timestep, None, scene.added, attention=attention)

    return Way(step, own)


def _graphed(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    out = torch.empty_like(step())
    graph = captured(lambda: out.copy_(step()))

    def replay() -> Tensor:
        graph.replay()
        return out

    return replay


class _Wide(nn.Module):
    def forward(self, parameter: Tensor) -> Tensor:
        return parameter.double()


def exact(name: str, unet: UNet2DConditionModel, scene: Scene) -> Tensor:
    """The step's result in float64, of "diffusers" or "eager formula". Weights are widened a layer
    at a time, since all of them at once are larger than many machines."""
    made = _diffusers(name, unet, scene.double())
    for module in list(made.unet.modules()):
        for weight, _ in list(module.named_parameters(recurse=False)):
            parametrize.register_parametrization(module, weight, _Wide(), unsafe=True)
    return made.step()
