"""Tiny diffusers pipelines of the Cosmos, Wan and Kandinsky families, with random weights.

Each function makes a whole pipeline on the spot, tokenizers included, and two calls make equal
ones. Sizes are small, ratios are those of the released models: the VAE's scale, the patches, 512
text tokens. `ARGUMENTS` has, for each, a call that takes about a second on one core.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import PIL.Image
import torch
from diffusers import (
    AnimaAutoBlocks,
    AnimaTextConditioner,
    Cosmos2_5_PredictBasePipeline,
    Cosmos2_5_TransferPipeline,
    Cosmos2TextToImagePipeline,
    CosmosControlNetModel,
    CosmosTextToWorldPipeline,
    CosmosTransformer3DModel,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    Kandinsky5T2IPipeline,
    Kandinsky5T2VPipeline,
    Kandinsky5Transformer3DModel,
    Kandinsky6TI2VAPipeline,
    Kandinsky6Transformer3DModel,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from diffusers.modular_pipelines import LoopSequentialPipelineBlocks, ModularPipeline
from diffusers.pipelines.kandinsky6 import pipeline_kandinsky6_ti2va
from transformers import (
    CLIPImageProcessor,
)

from .video_parts import (
    CHANNELS,
    WIDTH,
    AllowEverything,
    clip_text,
    clip_tokenizer,
    clip_vision,
    cosmos_vae,
    hunyuan_vae,
    image_vae,
    lively,
    qwen3,
    qwen_processor,
    qwen_tokenizer,
    qwen_vl,
    sound,
    t5,
    t5_tokenizer,
    wan_vae,
)

HEADS, HEAD_DIM = 2, 16


# Denoisers


def cosmos_transformer(dtype: torch.dtype, **changes: Any) -> CosmosTransformer3DModel:
    config: dict[str, Any] = {
        "in_channels": CHANNELS,
        "out_channels": CHANNELS,
        "num_attention_heads": HEADS,
        "attention_head_dim": HEAD_DIM,
        "num_layers": 2,
        "mlp_ratio": 2.0,
        "text_embed_dim": WIDTH,
        "adaln_lora_dim": 8,
        "max_size": (8, 32, 32),
        "extra_pos_embed_type": None,
        "rope_scale": (1.0, 4.0, 4.0),
    }
    return lively(CosmosTransformer3DModel(**config | changes), seed=10, dtype=dtype)


def wan_transformer(dtype: torch.dtype, *, seed: int = 11, **changes: Any) -> WanTransformer3DModel:
    config: dict[str, Any] = {
        "num_attention_heads": HEADS,
        "attention_head_dim": HEAD_DIM,
        "in_channels": CHANNELS,
        "out_channels": CHANNELS,
        "text_dim": WIDTH,
        "freq_dim": 32,
        "ffn_dim": 64,
        "num_layers": 2,
        "rope_max_seq_len": 32,
    }
    return lively(WanTransformer3DModel(**config | changes), seed=seed, dtype=dtype)


_KANDINSKY: dict[str, Any] = {
    "in_visual_dim": CHANNELS,
    "out_visual_dim": CHANNELS,
    "in_text_dim": WIDTH,
    "in_text_dim2": WIDTH,
    "time_dim": 16,
    "model_dim": HEADS * HEAD_DIM,
    "ff_dim": 64,
    "num_text_blocks": 1,
    "num_visual_blocks": 2,
    "axes_dims": (4, 6, 6),
}


def kandinsky5_transformer(dtype: torch.dtype, **changes: Any) -> Kandinsky5Transformer3DModel:
    model = Kandinsky5Transformer3DModel(**_KANDINSKY | changes)
    return lively(model, seed=12, dtype=dtype)


def kandinsky6_transformer(dtype: torch.dtype) -> Kandinsky6Transformer3DModel:
    model = Kandinsky6Transformer3DModel(
        **_KANDINSKY,
        in_audio_dim=CHANNELS,
        out_audio_dim=CHANNELS,
        text_token_padding=True,
        ca_rope=True,
        cross_gates=True,
        fix_modulation=True,
        visual_token_type_num_embeddings=2,
    )
    return lively(model, seed=13, dtype=dtype)


# Pipelines


def cosmos_text_to_world(*, dtype: torch.dtype = torch.float32) -> CosmosTextToWorldPipeline:
    """Cosmos Predict 1: EDM, T5, learned positions."""
    return _quiet(
        CosmosTextToWorldPipeline(
            text_encoder=t5(dtype),
            tokenizer=t5_tokenizer(),
            transformer=cosmos_transformer(
                dtype, extra_pos_embed_type="learnable", rope_scale=(2.0, 1.0, 1.0)
            ),
            vae=cosmos_vae(dtype),
            scheduler=EDMEulerScheduler(
                sigma_min=0.002,
                sigma_max=80.0,
                sigma_data=0.5,
                sigma_schedule="karras",
                num_train_timesteps=1000,
                prediction_type="epsilon",
                rho=7.0,
                final_sigmas_type="sigma_min",
            ),
            safety_checker=AllowEverything(),
        )
    )


def cosmos2_text_to_image(*, dtype: torch.dtype = torch.float32) -> Cosmos2TextToImagePipeline:
    """Cosmos Predict 2."""
    return _quiet(
        Cosmos2TextToImagePipeline(
            text_encoder=t5(dtype),
            tokenizer=t5_tokenizer(),
            transformer=cosmos_transformer(dtype),
            vae=wan_vae(dtype),
            scheduler=FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True),
            safety_checker=AllowEverything(),
        )
    )


def cosmos25_predict(*, dtype: torch.dtype = torch.float32) -> Cosmos2_5_PredictBasePipeline:
    """Cosmos Predict 2.5: Qwen2.5-VL's layers side by side, projected inside the denoiser."""
    return _quiet(Cosmos2_5_PredictBasePipeline(**_cosmos25(dtype)))


def cosmos25_transfer(*, dtype: torch.dtype = torch.float32) -> Cosmos2_5_TransferPipeline:
    """Cosmos Transfer 2.5: a ControlNet, and image tokens beside the text."""
    image = {"img_context_dim_in": 8, "img_context_dim_out": HEADS * HEAD_DIM}
    model = CosmosControlNetModel(
        n_controlnet_blocks=1,
        in_channels=CHANNELS + 2,
        latent_channels=CHANNELS + 2,
        model_channels=HEADS * HEAD_DIM,
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_DIM,
        mlp_ratio=2.0,
        text_embed_dim=WIDTH,
        adaln_lora_dim=8,
        max_size=(8, 32, 32),
        rope_scale=(1.0, 4.0, 4.0),
        use_crossattn_projection=True,
        crossattn_proj_in_channels=2 * WIDTH,
        encoder_hidden_states_channels=WIDTH,
        **image,
    )
    parts = _cosmos25(dtype, controlnet_block_every_n=2, img_context_num_tokens=4, **image)
    controlnet = lively(model, seed=14, dtype=dtype)
    return _quiet(Cosmos2_5_TransferPipeline(**parts, controlnet=controlnet))


def _cosmos25(dtype: torch.dtype, **changes: Any) -> dict[str, Any]:
    tokenizer = qwen_tokenizer()
    transformer = cosmos_transformer(
        dtype,
        in_channels=CHANNELS + 1,
        use_crossattn_projection=True,
        crossattn_proj_in_channels=2 * WIDTH,
        encoder_hidden_states_channels=WIDTH,
        **changes,
    )
    return {
        "text_encoder": qwen_vl(tokenizer, dtype),
        "tokenizer": tokenizer,
        "transformer": transformer,
        "vae": wan_vae(dtype),
        "scheduler": UniPCMultistepScheduler(
            use_karras_sigmas=True,
            use_flow_sigmas=True,
            prediction_type="flow_prediction",
            sigma_max=200.0,
            sigma_min=0.01,
        ),
        "safety_checker": AllowEverything(),
    }


def anima(*, dtype: torch.dtype = torch.float32) -> Any:
    """Anima, a modular pipeline: Qwen3 and T5 tokens through a conditioner, Cosmos 2's denoiser."""
    pipe = AnimaAutoBlocks().init_pipeline()
    tokenizer, t5_words = qwen_tokenizer(), t5_tokenizer()
    conditioner = AnimaTextConditioner(
        source_dim=WIDTH,
        target_dim=WIDTH,
        model_dim=WIDTH,
        num_layers=1,
        num_attention_heads=2,
        mlp_ratio=2.0,
        target_vocab_size=len(t5_words),
    )
    pipe.update_components(
        text_encoder=qwen3(tokenizer, dtype),
        tokenizer=tokenizer,
        t5_tokenizer=t5_words,
        text_conditioner=lively(conditioner, seed=15, dtype=dtype, sharpness=1.0),
        transformer=cosmos_transformer(dtype),
        vae=wan_vae(dtype, qwen=True),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
    return _quiet(pipe)


def wan21(*, dtype: torch.dtype = torch.float32) -> WanPipeline:
    """Wan 2.1, text to video: one transformer."""
    return _quiet(WanPipeline(**_wan(dtype), transformer=wan_transformer(dtype)))


def wan22(*, dtype: torch.dtype = torch.float32) -> WanPipeline:
    """Wan 2.2 A14B, text to video: another transformer below the boundary."""
    return _quiet(
        WanPipeline(
            **_wan(dtype),
            transformer=wan_transformer(dtype),
            transformer_2=wan_transformer(dtype, seed=16),
            boundary_ratio=0.875,
        )
    )


def wan22_5b(*, dtype: torch.dtype = torch.float32) -> WanPipeline:
    """Wan 2.2 TI2V-5B: a timestep a token."""
    return _quiet(
        WanPipeline(**_wan(dtype), transformer=wan_transformer(dtype), expand_timesteps=True)
    )


def wan21_image_to_video(*, dtype: torch.dtype = torch.float32) -> WanImageToVideoPipeline:
    """Wan 2.1, image to video: image tokens before the text, with projections of their own."""
    transformer = wan_transformer(
        dtype,
        in_channels=2 * CHANNELS + 4,
        image_dim=WIDTH,
        added_kv_proj_dim=HEADS * HEAD_DIM,
    )
    size = {"height": 16, "width": 16}
    return _quiet(
        WanImageToVideoPipeline(
            **_wan(dtype),
            transformer=transformer,
            image_encoder=clip_vision(dtype),
            image_processor=CLIPImageProcessor(size=size, crop_size=size),
        )
    )


def wan22_image_to_video(*, dtype: torch.dtype = torch.float32) -> WanImageToVideoPipeline:
    """Wan 2.2 A14B, image to video: the image in the latent channels alone."""
    channels = 2 * CHANNELS + 4
    return _quiet(
        WanImageToVideoPipeline(
            **_wan(dtype),
            transformer=wan_transformer(dtype, in_channels=channels),
            transformer_2=wan_transformer(dtype, in_channels=channels, seed=16),
            boundary_ratio=0.9,
        )
    )


def _wan(dtype: torch.dtype) -> dict[str, Any]:
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return {
        "tokenizer": t5_tokenizer(),
        "text_encoder": t5(dtype, umt5=True),
        "vae": wan_vae(dtype),
        "scheduler": scheduler,
    }


def kandinsky5_text_to_video(*, dtype: torch.dtype = torch.float32) -> Kandinsky5T2VPipeline:
    transformer = kandinsky5_transformer(dtype, visual_cond=True)
    pipe = Kandinsky5T2VPipeline(
        **_kandinsky(dtype), transformer=transformer, vae=hunyuan_vae(dtype)
    )
    return _cut_at_the_prompt(_quiet(pipe))


def kandinsky5_text_to_image(*, dtype: torch.dtype = torch.float32) -> Kandinsky5T2IPipeline:
    pipe = Kandinsky5T2IPipeline(
        **_kandinsky(dtype), transformer=kandinsky5_transformer(dtype), vae=image_vae(dtype)
    )
    # The pipeline replaces any other size by the one of these that is nearest in aspect.
    pipe.resolutions = [(128, 96), (96, 128)]
    return _cut_at_the_prompt(_quiet(pipe))


def kandinsky6(*, dtype: torch.dtype = torch.float32) -> Kandinsky6TI2VAPipeline:
    """Video and sound, the sound with a cross-attention of its own."""
    return _quiet(
        Kandinsky6TI2VAPipeline(
            **_kandinsky(dtype),
            **sound(dtype),
            transformer=kandinsky6_transformer(dtype),
            vae=hunyuan_vae(dtype),
        )
    )


def _kandinsky(dtype: torch.dtype) -> dict[str, Any]:
    # Kandinsky 6 counts on 129 tokens before the prompt: with this word in letters there are.
    processor = qwen_processor(pipeline_kandinsky6_ti2va._PROMPT_TEMPLATE.replace("zoom", ""))
    words = clip_tokenizer()
    return {
        "text_encoder": qwen_vl(processor.tokenizer, dtype),
        "tokenizer": processor,
        "text_encoder_2": clip_text(words, dtype),
        "tokenizer_2": words,
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=5.0),
    }


def _cut_at_the_prompt(pipe: Any) -> Any:
    """The template's length in the tokens of this tokenizer, which the pipeline takes as known."""
    before, _ = pipe.prompt_template.split("{}")
    pipe.prompt_template_encode_start_idx = len(pipe.tokenizer.tokenizer(before).input_ids)
    return pipe


def _quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    blocks = [pipe._blocks] if isinstance(pipe, ModularPipeline) else []
    while blocks:  # a modular pipeline tells its outermost blocks alone
        block = blocks.pop()
        blocks += block.sub_blocks.values()
        if isinstance(block, LoopSequentialPipelineBlocks):
            block.set_progress_bar_config(disable=True)
    return pipe


# Calls


def _picture() -> PIL.Image.Image:
    pixels = torch.randint(256, (96, 128, 3), generator=torch.Generator().manual_seed(17))
    return PIL.Image.fromarray(pixels.to(torch.uint8).numpy())


def _controls() -> list[PIL.Image.Image]:
    return [_picture()] * 5


_IMAGE: dict[str, Any] = {"height": 96, "width": 128, "num_inference_steps": 2}
_VIDEO: dict[str, Any] = _IMAGE | {"num_frames": 5}
_TEXT: dict[str, Any] = {"prompt": "a red cat on the castle", "negative_prompt": "a small car"}

# Builder -> arguments of a call that takes about a second; copy and change them.
ARGUMENTS: dict[Callable[..., Any], dict[str, Any]] = {
    cosmos_text_to_world: _TEXT | _VIDEO | {"num_frames": 9},
    cosmos2_text_to_image: _TEXT | _IMAGE,
    cosmos25_predict: _TEXT | _VIDEO,
    cosmos25_transfer: _TEXT | _VIDEO | {"controls": _controls(), "num_frames_per_chunk": 5},
    anima: _TEXT | _IMAGE,
    wan21: _TEXT | _VIDEO,
    wan22: _TEXT | _VIDEO,
    wan22_5b: _TEXT | _VIDEO,
    wan21_image_to_video: _TEXT | _VIDEO | {"image": _picture()},
    wan22_image_to_video: _TEXT | _VIDEO | {"image": _picture()},
    kandinsky5_text_to_video: _TEXT | _VIDEO,
    kandinsky5_text_to_image: _TEXT | _IMAGE,
    # 8 latents of sound: torch draws other noise in another dtype unless 16 divides the numbers.
    kandinsky6: _TEXT | _VIDEO | {"frame_rate": 27.0},
}


def draw(pipe: Any, arguments: dict[str, Any], *, seed: int = 0) -> torch.Tensor:
    """What the pipeline draws, in [0, 1]: (rows, 3, height, width), or (rows, frames, 3, ...)."""
    generator = torch.Generator().manual_seed(seed)
    if isinstance(pipe, ModularPipeline):
        return pipe(**arguments, generator=generator, output_type="pt", output="images")
    return pipe(**arguments, generator=generator, output_type="pt")[0]
