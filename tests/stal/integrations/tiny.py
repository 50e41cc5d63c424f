"""Parts of tiny random diffusers pipelines, made on the spot: no hub, no file, the same each time.

Weights are larger than those that networks are born with, so that attention to a prompt is far
from uniform and the picture depends on it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from diffusers.models.attention_processor import Attention
from PIL import Image
from torch import nn
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from stal.training.shapes_model import write_tokenizer

SCHEDULERS: dict[str, Any] = {
    "ddim": DDIMScheduler,
    "ddpm": DDPMScheduler,
    "dpm": DPMSolverMultistepScheduler,
    "euler": EulerDiscreteScheduler,
    "euler_ancestral": EulerAncestralDiscreteScheduler,
    "heun": HeunDiscreteScheduler,
    "lcm": LCMScheduler,
    "pndm": PNDMScheduler,
    "unipc": UniPCMultistepScheduler,
}


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random numbers of torch that begin at a seed; those of the caller go on undisturbed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def tokenizer(*, max_length: int = 77, pad: str = "<|endoftext|>") -> CLIPTokenizer:
    """CLIP's byte pair encoding, to which words of the shapes world are one token each.

    Other words fall apart into letters. The second tokenizer of XL pads with "!".
    """
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder))
        return CLIPTokenizer.from_pretrained(
            folder, local_files_only=True, model_max_length=max_length, pad_token=pad
        )


def text_encoder(tokens: CLIPTokenizer, *, width: int = 32, projection_dim: int = 0) -> Any:
    """A CLIP text model of two layers; with a projection where `projection_dim` is given."""
    config = CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokens.model_max_length,
        projection_dim=projection_dim or width,
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.pad_token_id,
    )
    model: Any = (CLIPTextModelWithProjection if projection_dim else CLIPTextModel)(config)
    embeddings = next(m for m in model.modules() if isinstance(m, nn.Embedding))
    # The words decide, not their positions; the layer before the last has no norm after it.
    nn.init.normal_(embeddings.weight)
    if projection_dim:
        nn.init.normal_(model.text_projection.weight, std=width**-0.5)
    return model.eval()


def image_encoder(*, width: int = 16, projection_dim: int = 24) -> CLIPVisionModelWithProjection:
    """CLIP's picture side, for IP-Adapter: pictures of 32 x 32 in 4 x 4 patches and one token."""
    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        projection_dim=projection_dim,
    )
    model = CLIPVisionModelWithProjection(config)
    nn.init.normal_(model.visual_projection.weight, std=width**-0.5)
    return model.eval()


def image_processor() -> CLIPImageProcessor:
    """What `image_encoder` takes."""
    side = {"height": 32, "width": 32}
    return CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=side)


def vae(*, latent_channels: int = 4) -> AutoencoderKL:
    """Latents of an eighth of the picture's side; pictures of full contrast."""
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8,) * 4,
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=4,
        mid_block_add_attention=False,
        sample_size=64,
    )
    nn.init.normal_(model.decoder.conv_out.weight, std=0.1)
    return model.eval()


def scheduler(name: str, *, prediction_type: str = "epsilon") -> Any:
    """One of `SCHEDULERS` with the noise levels of Stable Diffusion."""
    changes = {"clip_sample": False} if name in ("ddim", "ddpm", "lcm") else {}
    if name == "pndm":
        changes["skip_prk_steps"] = True
    return SCHEDULERS[name](
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction_type,
        timestep_spacing="leading",
        steps_offset=1,
        **changes,
    )


def enliven(model: Any) -> Any:
    """Cross-attention that tells tokens apart and whose output counts beside the residual."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, Attention) and module.is_cross_attention:
                module.to_q.weight.mul_(2)
                module.to_k.weight.mul_(4)
                module.to_v.weight.mul_(3)
                module.to_out[0].weight.mul_(4)
    return model.eval()


def image(seed: int = 0, *, width: int = 64, height: int = 64) -> Image.Image:
    """A picture of coarse random colours."""
    colours = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((width, height))


def mask(*, width: int = 64, height: int = 64) -> Image.Image:
    """What to paint over: the right half."""
    levels = np.zeros((height, width), dtype=np.uint8)
    levels[:, width // 2 :] = 255
    return Image.fromarray(levels)
