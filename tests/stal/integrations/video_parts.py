"""What tiny pipelines are made of: lively random weights, tokenizers, text encoders, VAEs."""

from __future__ import annotations

import re
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLCosmos,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLQwenImage,
    AutoencoderKLWan,
    MMAudioVAE,
    MMAudioVocoder,
)
from tokenizers import models
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
    UMT5Config,
    UMT5EncoderModel,
)

WIDTH = 16  # of every text encoder
CHANNELS = 4  # of every latent
# One token each; any other word falls apart into letters.
WORDS = """
    a an the and with of in on at above below left right photo picture painting red blue green
    yellow white black big small old young cat dog knight dragon castle tree ball car boat man
    woman house river mountain sky night
"""
_CHARACTERS = [chr(c) for c in range(33, 127)]
KEY_NORMS = ("norm_k", "norm_added_k", "k_img_norm", "key_norm", "k_norm")
_QWEN_SPECIAL = ["<|im_start|>", "<|im_end|>", "<|image_pad|>", "<|video_pad|>"]
_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{{ message.content[0].text }}<|im_end|>\n{% endfor %}"
)


class AllowEverything:
    """In the place of `cosmos_guardrail`, whose models are gigabytes."""

    def to(self, device: Any) -> AllowEverything:
        return self

    def check_text_safety(self, prompt: str) -> bool:
        return True

    def check_video_safety(self, frames: Any) -> Any:
        return frames


# Weights


def lively(model: Any, *, seed: int, dtype: torch.dtype, sharpness: float = 4.0) -> Any:
    """Weights at which a picture depends on its prompt from the first step on.

    Every matrix keeps the size of what it multiplies, those that begin at zero (gates, modulation,
    positions) too. Keys are `sharpness` times unit length, so that attention is far from uniform.
    """
    generator = torch.Generator().manual_seed(seed)
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("gamma") or parameter.ndim == 0:
                continue  # a norm's scale, in some models of more than one dimension
            if name.endswith("bias"):
                parameter.copy_(noise / 10)
            elif name.split(".")[-2:-1] and name.split(".")[-2] in KEY_NORMS:
                parameter.fill_(sharpness)
            elif id(parameter) in tables:
                parameter.copy_(noise)
            elif parameter.ndim > 1 or not name.endswith("weight"):
                parameter.copy_(noise * (parameter.numel() / len(parameter)) ** -0.5)
    return in_dtype(model, dtype)


def in_dtype(model: Any, dtype: torch.dtype) -> Any:
    """The model as `from_pretrained(torch_dtype=dtype)` gives it: some modules stay in float32."""
    kept = getattr(model, "_keep_in_fp32_modules", None) or ()
    for name, weight in model.state_dict(keep_vars=True).items():
        if weight.is_floating_point() and not any(part in kept for part in name.split(".")):
            weight.data = weight.data.to(dtype)
    return model.requires_grad_(False).eval()


# Tokenizers


def t5_tokenizer() -> T5TokenizerFast:
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    vocabulary += [("\u2581" + word, -3.0) for word in WORDS.split()]
    vocabulary += [(character, -9.0) for character in _CHARACTERS]
    return T5TokenizerFast(vocab=vocabulary, extra_ids=0)


def qwen_tokenizer(text: str = "") -> Qwen2Tokenizer:
    """The words of `text` are one token each too."""
    words = dict.fromkeys([*WORDS.split(), *re.findall("[A-Za-z]+", text)])
    # A space and a line break are "\u0120" and "\u010a" in byte-level BPE.
    tokens = ["<|endoftext|>", *_QWEN_SPECIAL, "\u0120", "\u010a", ".\u010a", *_CHARACTERS]
    tokens += [token for word in words for token in ("\u0120" + word, word)]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary,
        merges=[],
        additional_special_tokens=_QWEN_SPECIAL,
        chat_template=_CHAT,
    )
    tokenizer.backend_tokenizer.model = models.BPE(vocabulary, [], ignore_merges=True)
    return tokenizer


def qwen_processor(text: str) -> Qwen2VLProcessor:
    return Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(),
        tokenizer=qwen_tokenizer(text),
        video_processor=Qwen2VLVideoProcessor(),
        chat_template=_CHAT,
    )


def clip_tokenizer() -> CLIPTokenizer:
    tokens = [*_CHARACTERS, *(f"{c}</w>" for c in _CHARACTERS), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={t: i for i, t in enumerate(tokens)}, merges=[], model_max_length=77)


# Text encoders and the image encoder


def t5(dtype: torch.dtype, *, umt5: bool = False) -> Any:
    config = (UMT5Config if umt5 else T5Config)(
        vocab_size=len(t5_tokenizer()),
        d_model=WIDTH,
        d_kv=8,
        d_ff=2 * WIDTH,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    model: Any = UMT5EncoderModel if umt5 else T5EncoderModel
    return lively(model(config), seed=1, dtype=dtype)


def qwen_vl(tokenizer: Any, dtype: torch.dtype) -> Qwen2_5_VLForConditionalGeneration:
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
    }
    vision = {
        "depth": 1,
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "num_heads": 2,
        "out_hidden_size": WIDTH,
    }
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    return lively(Qwen2_5_VLForConditionalGeneration(config), seed=2, dtype=dtype)


def qwen3(tokenizer: Any, dtype: torch.dtype) -> Qwen3Model:
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    return lively(Qwen3Model(config), seed=3, dtype=dtype)


def clip_text(tokenizer: CLIPTokenizer, dtype: torch.dtype) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return lively(CLIPTextModel(config), seed=4, dtype=dtype)


def clip_vision(dtype: torch.dtype) -> CLIPVisionModel:
    config = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=4,
    )
    return lively(CLIPVisionModel(config), seed=5, dtype=dtype)


# VAEs: eight pixels to a latent, four frames to one


def wan_vae(dtype: torch.dtype, *, qwen: bool = False) -> Any:
    model_class = AutoencoderKLQwenImage if qwen else AutoencoderKLWan
    vae = model_class(
        base_dim=4,
        z_dim=CHANNELS,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.0] * CHANNELS,
        latents_std=[1.0] * CHANNELS,
    )
    return lively(vae, seed=6, dtype=dtype)


def cosmos_vae(dtype: torch.dtype) -> AutoencoderKLCosmos:
    vae = AutoencoderKLCosmos(
        latent_channels=CHANNELS,
        encoder_block_out_channels=(4, 4, 4, 4),
        decode_block_out_channels=(4, 4, 4, 4),
        attention_resolutions=(8,),
        resolution=64,
        num_layers=1,
        latents_mean=None,
        latents_std=None,
    )
    return lively(vae, seed=7, dtype=dtype)


def hunyuan_vae(dtype: torch.dtype) -> AutoencoderKLHunyuanVideo:
    vae = AutoencoderKLHunyuanVideo(
        latent_channels=CHANNELS,
        block_out_channels=(4, 4, 4, 4),
        layers_per_block=1,
        norm_num_groups=2,
        mid_block_add_attention=False,
    )
    return lively(vae, seed=8, dtype=dtype)


def image_vae(dtype: torch.dtype) -> AutoencoderKL:
    vae = AutoencoderKL(
        latent_channels=CHANNELS,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 4, 4),
        layers_per_block=1,
        norm_num_groups=2,
        mid_block_add_attention=False,
    )
    return lively(vae, seed=9, dtype=dtype)


def sound(dtype: torch.dtype) -> dict[str, Any]:
    vae = MMAudioVAE(
        mel_bins=8,
        latent_channels=CHANNELS,
        hidden_channels=8,
        channel_multipliers=(1, 1, 2),
        layers_per_block=1,
    )
    vocoder = MMAudioVocoder(
        num_mels=8,
        upsample_initial_channel=64,
        resblock_kernel_sizes=(3,),
        resblock_dilation_sizes=((1,),),
    )
    return {
        "audio_vae": lively(vae, seed=18, dtype=dtype),
        "vocoder": lively(vocoder, seed=19, dtype=dtype),
    }
