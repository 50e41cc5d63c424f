"""Tiny models of ComfyUI with random weights, and runs of its samplers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from stal.integrations.comfyui.nodes import region_prompts, spatial_temporal_attention
from stal.integrations.comfyui.patch import KEY
from stal.integrations.comfyui.regional import Regional
from stal.integrations.comfyui.regions import Regions

WIDTH = 48  # of encoded prompts
CANVAS = 120  # pixels along a side, of the boxes
BOXES = [
    {"x": 0, "y": 0, "width": 40, "height": 64, "label": "a red cat"},
    {"x": 30, "y": 20, "width": 90, "height": 100, "label": "a dog"},
]
OTHER_BOXES = [{"x": 60, "y": 60, "width": 60, "height": 60, "label": "a green bird"}]
LATENT = torch.zeros(1, 4, 16, 16)


def near(found: Tensor, expected: Tensor, tolerance: float = 1e-4) -> bool:
    return bool((found - expected).abs().max() <= tolerance * expected.std())


def _patcher(model: Any, std: float) -> Any:
    import comfy.model_patcher

    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        if parameter.ndim > 1:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
        else:
            parameter.fill_(1 / 16)
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)


def _unet(kind: Any, **config: Any) -> Any:
    model = kind(
        {
            "image_size": 32,
            "in_channels": 4,
            "out_channels": 4,
            "model_channels": 64,
            "num_res_blocks": [1, 1],
            "channel_mult": [1, 2],
            "transformer_depth": [1, 1],
            "transformer_depth_output": [1, 1, 1, 1],
            "transformer_depth_middle": 1,
            "context_dim": WIDTH,
            "num_heads": 2,
            "num_head_channels": -1,
            "use_spatial_transformer": True,
            "use_linear_in_transformer": False,
            "adm_in_channels": None,
            "use_temporal_attention": False,
            "legacy": False,
            "dtype": torch.float32,
            **config,
        }
    ).get_model({}, device="cpu")
    return _patcher(model, 0.15)


def sd15(**config: Any) -> Any:
    import comfy.supported_models

    return _unet(comfy.supported_models.SD15, **config)


def sdxl() -> Any:
    import comfy.supported_models

    return _unet(
        comfy.supported_models.SDXL,
        num_classes="sequential",
        adm_in_channels=6 * 256 + 20,
        use_linear_in_transformer=True,
        transformer_depth=[0, 2],
        transformer_depth_output=[0, 0, 2, 2],
        transformer_depth_middle=2,
    )


def cosmos() -> Any:
    import comfy.supported_models

    model = comfy.supported_models.CosmosT2IPredict2(
        {
            "image_model": "cosmos_predict2",
            "max_img_h": 240,
            "max_img_w": 240,
            "max_frames": 128,
            "in_channels": 16,
            "out_channels": 16,
            "patch_spatial": 2,
            "patch_temporal": 1,
            "model_channels": 64,
            "concat_padding_mask": True,
            "crossattn_emb_channels": WIDTH,
            "pos_emb_cls": "rope3d",
            "pos_emb_learnable": True,
            "pos_emb_interpolation": "crop",
            "min_fps": 1,
            "max_fps": 30,
            "use_adaln_lora": True,
            "adaln_lora_dim": 16,
            "num_blocks": 2,
            "num_heads": 2,
            "extra_per_block_abs_pos_emb": False,
            "rope_h_extrapolation_ratio": 4.0,
            "rope_w_extrapolation_ratio": 4.0,
            "rope_t_extrapolation_ratio": 1.0,
            "dtype": torch.float32,
        }
    ).get_model({}, device="cpu")
    return _patcher(model, 0.1)


def wan(kind: str = "WAN21_T2V", **config: Any) -> Any:
    import comfy.supported_models

    model = getattr(comfy.supported_models, kind)(
        {
            "image_model": "wan2.1",
            "model_type": "t2v",
            "dim": 48,
            "num_heads": 2,
            "ffn_dim": 64,
            "num_layers": 2,
            "patch_size": (1, 2, 2),
            "freq_dim": 32,
            "window_size": (-1, -1),
            "qk_norm": True,
            "cross_attn_norm": True,
            "eps": 1e-6,
            "in_dim": 16,
            "text_dim": WIDTH,
            "text_len": 32,
            "dtype": torch.float32,
            **config,
        }
    ).get_model({}, device="cpu")
    return _patcher(model, 0.15)


def wan_i2v() -> Any:
    """Its network attends to the tokens of a given picture too."""
    return wan("WAN21_I2V", model_type="i2v", in_dim=36)


def ltx() -> Any:
    import comfy.supported_models

    model = comfy.supported_models.LTXV(
        {
            "image_model": "ltxv",
            "in_channels": 16,
            "num_layers": 2,
            "num_attention_heads": 2,
            "attention_head_dim": 24,
            "cross_attention_dim": 48,
            "caption_channels": WIDTH,
            "dtype": torch.float32,
        }
    ).get_model({}, device="cpu")
    return _patcher(model, 0.15)


def conditioning(seed: int, *, rows: int = 1, tokens: int = 7, **options: Any) -> Any:
    """Encoded prompts (rows, tokens, WIDTH) as a node gives them; of T5 the last is padding."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randn(rows, tokens, WIDTH, generator=generator)
    pooled = torch.randn(rows, 20, generator=generator)
    counts = torch.ones(rows, tokens, dtype=torch.int64)
    counts[:, -1] = 0
    return [[text, {"pooled_output": pooled, "attention_mask": counts, **options}]]


def with_picture(seed: int) -> Any:
    """Encoded prompts for `wan_i2v`."""
    tokens = torch.randn(1, 5, 1280, generator=torch.Generator().manual_seed(seed))
    picture = SimpleNamespace(penultimate_hidden_states=tokens)
    return conditioning(seed, clip_vision_output=picture)


class Clip:
    """Encodes a text as `conditioning` of a number that is the text's.

    tokens: of each text; texts have different numbers if None.
    """

    def __init__(self, tokens: int | None = None) -> None:
        self.tokens = tokens

    def tokenize(self, text: str) -> str:
        return text

    def encode_from_tokens_scheduled(self, tokens: str) -> Any:
        return conditioning(sum(map(ord, tokens)) + 10, tokens=self.tokens or 7 + len(tokens) % 3)


def regions(boxes: Any = BOXES, **options: Any) -> tuple[Regions, ...]:
    """What the node Region prompts gives."""
    given = {"clip": Clip(), "boxes": boxes, "width": CANVAS, "height": CANVAS, **options}
    return region_prompts(**given)[0]


def regional(model: Any, given: tuple[Regions, ...] | None = None, **options: Any) -> Any:
    """What the node Spatial-temporal attention gives."""
    return spatial_temporal_attention(model, given or regions(), **options)[0]


def state_of(model: Any) -> Regional:
    """The regions on a model."""
    (wrapper,) = model.get_wrappers("sampler_sample", KEY)
    state: Regional = wrapper.__self__
    return state


def sample(model: Any, latent: Tensor, *, noise: Tensor | None = None, **changes: Any) -> Tensor:
    """What a sampler of ComfyUI makes of noise."""
    import comfy.sample

    arguments: dict[str, Any] = {
        "steps": 3,
        "cfg": 4.0,
        "sampler_name": "euler",
        "scheduler": "normal",
        "positive": conditioning(1),
        "negative": conditioning(2),
        "latent_image": latent,
        "disable_pbar": True,
        "seed": 0,
        **changes,
    }
    noise = comfy.sample.prepare_noise(latent, 0) if noise is None else noise
    out: Tensor = comfy.sample.sample(model, noise, **arguments)
    return out
