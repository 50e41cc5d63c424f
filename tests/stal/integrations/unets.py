"""Tiny random pipelines around UNets, one function each; pictures of 64 x 64, latents of 8 x 8.

Two calls of a builder return equal pipelines. `BUILDERS` names those that draw a picture through
`pipe(prompt, **arguments(name))`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AnimateDiffPipeline,
    ControlNetModel,
    KolorsPipeline,
    LatentConsistencyModelPipeline,
    MotionAdapter,
    StableDiffusionAdapterPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPAGPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    T2IAdapter,
    UNet2DConditionModel,
)
from torch import Tensor, nn

from stal.shapes.captions import words
from tests.stal.integrations import tiny

# Stable Diffusion's shape: attention at the picture's latents and at half of them.
_SHAPE: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (16, 32, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "cross_attention_dim": 32,
    "attention_head_dim": 2,
    "norm_num_groups": 8,
}
# XL's: none at the latents themselves, several transformer blocks below.
_XL_SHAPE: dict[str, Any] = _SHAPE | {
    "block_out_channels": (16, 32),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2),
    "attention_head_dim": (2, 4),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
}
_POOLED = 24


def _unet(shape: dict[str, Any] = _SHAPE, **changes: Any) -> UNet2DConditionModel:
    return tiny.enliven(UNet2DConditionModel(**shape | changes))


def _xl_unet(*, cross_attention_dim: int = 16 + 32, conditions: int = 6) -> UNet2DConditionModel:
    return _unet(
        _XL_SHAPE,
        cross_attention_dim=cross_attention_dim,
        projection_class_embeddings_input_dim=_POOLED + conditions * 8,
    )


def _ready(pipe: Any, dtype: torch.dtype) -> Any:
    pipe.set_progress_bar_config(disable=True)
    # diffusers warns about any `to` with a dtype, needed or not.
    return pipe if dtype == torch.float32 else pipe.to(dtype)


def _parts(unet: UNet2DConditionModel) -> dict[str, Any]:
    """What a pipeline of Stable Diffusion consists of."""
    tokens = tiny.tokenizer()
    return {
        "vae": tiny.vae(),
        "text_encoder": tiny.text_encoder(tokens),
        "tokenizer": tokens,
        "unet": unet,
        "scheduler": tiny.scheduler("ddim"),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


def _xl_parts(unet: UNet2DConditionModel) -> dict[str, Any]:
    """What a pipeline of XL consists of; its encoders are 16 and 32 wide."""
    tokens, tokens_2 = tiny.tokenizer(), tiny.tokenizer(pad="!")
    return {
        "vae": tiny.vae(),
        "text_encoder": tiny.text_encoder(tokens, width=16),
        "text_encoder_2": tiny.text_encoder(tokens_2, width=32, projection_dim=_POOLED),
        "tokenizer": tokens,
        "tokenizer_2": tokens_2,
        "unet": unet,
        "scheduler": tiny.scheduler("euler"),
        "add_watermarker": False,
    }


def _controlnet(unet: UNet2DConditionModel) -> ControlNetModel:
    """Its output convolutions are born zero: without effect."""
    model = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 4, 4, 4))
    for module in [*model.controlnet_down_blocks, model.controlnet_mid_block]:
        nn.init.normal_(module.weight, std=0.1)
    nn.init.normal_(model.controlnet_cond_embedding.conv_out.weight, std=0.1)
    return model.eval()


def stable_diffusion(*, dtype: torch.dtype = torch.float32) -> StableDiffusionPipeline:
    """Stable Diffusion 1."""
    with tiny.seeded(0):
        return _ready(StableDiffusionPipeline(**_parts(_unet())), dtype)


def stable_diffusion_2(*, dtype: torch.dtype = torch.float32) -> StableDiffusionPipeline:
    """Stable Diffusion 2: linear projections, v-prediction, heads by block."""
    with tiny.seeded(1):
        parts = _parts(_unet(use_linear_projection=True, attention_head_dim=(2, 4, 4)))
        parts["scheduler"] = tiny.scheduler("ddim", prediction_type="v_prediction")
        return _ready(StableDiffusionPipeline(**parts), dtype)


def stable_diffusion_xl(*, dtype: torch.dtype = torch.float32) -> StableDiffusionXLPipeline:
    """XL: two text encoders side by side, pooled text and sizes beside the time."""
    with tiny.seeded(2):
        return _ready(StableDiffusionXLPipeline(**_xl_parts(_xl_unet())), dtype)


def stable_diffusion_xl_turbo(*, dtype: torch.dtype = torch.float32) -> StableDiffusionXLPipeline:
    """XL Turbo: few steps, trailing, drawn with guidance_scale 0."""
    with tiny.seeded(3):
        pipe = StableDiffusionXLPipeline(**_xl_parts(_xl_unet()))
        config = pipe.scheduler.config
        pipe.scheduler = tiny.SCHEDULERS["euler_ancestral"].from_config(
            config, timestep_spacing="trailing"
        )
        return _ready(pipe, dtype)


def stable_diffusion_xl_refiner(
    *, dtype: torch.dtype = torch.float32
) -> StableDiffusionXLImg2ImgPipeline:
    """XL's refiner: the second text encoder alone, an aesthetic score beside the time."""
    with tiny.seeded(4):
        parts = _xl_parts(_xl_unet(cross_attention_dim=32, conditions=5))
        parts |= {"text_encoder": None, "tokenizer": None, "requires_aesthetics_score": True}
        return _ready(StableDiffusionXLImg2ImgPipeline(**parts), dtype)


def stable_diffusion_inpaint(
    *, dtype: torch.dtype = torch.float32
) -> StableDiffusionInpaintPipeline:
    """Inpainting with the mask and the masked picture beside the latents: 9 channels."""
    with tiny.seeded(5):
        return _ready(StableDiffusionInpaintPipeline(**_parts(_unet(in_channels=9))), dtype)


def stable_diffusion_img2img(
    *, dtype: torch.dtype = torch.float32
) -> StableDiffusionImg2ImgPipeline:
    """A picture to a picture: steps begin late."""
    with tiny.seeded(6):
        return _ready(StableDiffusionImg2ImgPipeline(**_parts(_unet())), dtype)


def stable_diffusion_controlnet(
    *, dtype: torch.dtype = torch.float32
) -> StableDiffusionControlNetPipeline:
    """ControlNet, which has cross-attention of its own."""
    with tiny.seeded(7):
        unet = _unet()
        pipe = StableDiffusionControlNetPipeline(**_parts(unet), controlnet=_controlnet(unet))
        return _ready(pipe, dtype)


def stable_diffusion_xl_controlnet(
    *, dtype: torch.dtype = torch.float32
) -> StableDiffusionXLControlNetPipeline:
    """ControlNet of XL."""
    with tiny.seeded(8):
        unet = _xl_unet()
        pipe = StableDiffusionXLControlNetPipeline(**_xl_parts(unet), controlnet=_controlnet(unet))
        return _ready(pipe, dtype)


def stable_diffusion_adapter(
    *, dtype: torch.dtype = torch.float32
) -> StableDiffusionAdapterPipeline:
    """T2I-Adapter: features of a picture added to the down blocks."""
    with tiny.seeded(9):
        adapter = T2IAdapter(
            in_channels=3,
            channels=[16, 32, 32],
            num_res_blocks=1,
            downscale_factor=8,
            adapter_type="full_adapter",
        )
        pipe = StableDiffusionAdapterPipeline(**_parts(_unet()), adapter=adapter.eval())
        return _ready(pipe, dtype)


def latent_consistency(*, dtype: torch.dtype = torch.float32) -> LatentConsistencyModelPipeline:
    """LCM: the scale of guidance is embedded, there is no unconditional half."""
    with tiny.seeded(10):
        parts = _parts(_unet(time_cond_proj_dim=8))
        parts["scheduler"] = tiny.scheduler("lcm")
        return _ready(LatentConsistencyModelPipeline(**parts), dtype)


def stable_diffusion_instruct_pix2pix(
    *, dtype: torch.dtype = torch.float32
) -> StableDiffusionInstructPix2PixPipeline:
    """InstructPix2Pix: three parts in a batch, the picture beside the latents."""
    with tiny.seeded(11):
        return _ready(StableDiffusionInstructPix2PixPipeline(**_parts(_unet(in_channels=8))), dtype)


def stable_diffusion_pag(*, dtype: torch.dtype = torch.float32) -> StableDiffusionPAGPipeline:
    """Perturbed attention guidance in the middle block."""
    with tiny.seeded(12):
        return _ready(
            StableDiffusionPAGPipeline(**_parts(_unet()), pag_applied_layers="mid"), dtype
        )


def animate_diff(*, dtype: torch.dtype = torch.float32) -> AnimateDiffPipeline:
    """AnimateDiff: frames in the batch, attention over time between the blocks."""
    with tiny.seeded(13):
        adapter = MotionAdapter(
            block_out_channels=_SHAPE["block_out_channels"],
            motion_layers_per_block=1,
            motion_num_attention_heads=2,
            motion_norm_num_groups=8,
        )
        parts = _parts(_unet())
        del parts["safety_checker"], parts["requires_safety_checker"]
        return _ready(AnimateDiffPipeline(**parts, motion_adapter=adapter.eval()), dtype)


def stable_diffusion_ip_adapter(*, dtype: torch.dtype = torch.float32) -> StableDiffusionPipeline:
    """Stable Diffusion 1 with an IP-Adapter of 4 picture tokens, at scale 0.6."""
    with tiny.seeded(14):
        parts = _parts(_unet())
        parts |= {
            "image_encoder": tiny.image_encoder(),
            "feature_extractor": tiny.image_processor(),
        }
        pipe = StableDiffusionPipeline(**parts)
        state = ip_adapter_state(pipe.unet, image_width=24)
        pipe.load_ip_adapter(state, subfolder="", weight_name="", image_encoder_folder=None)
        pipe.set_ip_adapter_scale(0.6)
        return _ready(pipe, dtype)


def ip_adapter_state(unet: UNet2DConditionModel, *, image_width: int, tokens: int = 4) -> Any:
    """Random weights of an IP-Adapter as `load_ip_adapter` reads them.

    Cross-attention layers are numbered 1, 3, 5, ... in the order of `unet.attn_processors`; those
    of motion modules attend to frames.
    """
    width = unet.config.cross_attention_dim
    layers = [
        name
        for name in unet.attn_processors
        if name.endswith("attn2.processor") and "motion_modules" not in name
    ]
    weights: dict[str, Tensor] = {}
    for number, name in enumerate(layers):
        rows = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
        for part in ("to_k_ip", "to_v_ip"):
            weights[f"{2 * number + 1}.{part}.weight"] = torch.randn(rows, width) * width**-0.5
    projection = {
        "proj.weight": torch.randn(tokens * width, image_width) * image_width**-0.5,
        "proj.bias": torch.zeros(tokens * width),
        "norm.weight": torch.ones(width),
        "norm.bias": torch.zeros(width),
    }
    return {"image_proj": projection, "ip_adapter": weights}


def lora_state(unet: UNet2DConditionModel, *, seed: int = 0, rank: int = 4) -> dict[str, Tensor]:
    """Random weights of a LoRA over all four projections of attention, for `load_lora_weights`.

    Large enough that a picture drawn with it differs visibly.
    """
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, module in unet.named_modules():
        if name.endswith(("to_q", "to_k", "to_v", "to_out.0")):
            down = torch.randn(rank, module.in_features, generator=generator)
            up = torch.randn(module.out_features, rank, generator=generator)
            state[f"unet.{name}.lora_A.weight"] = down * module.in_features**-0.5
            state[f"unet.{name}.lora_B.weight"] = up * rank**-0.5
    return state


def kandinsky_2_2_unet(*, dtype: torch.dtype = torch.float32) -> UNet2DConditionModel:
    """Kandinsky 2.2's decoder: keys of pictures and of the pixels themselves in one attention."""
    with tiny.seeded(15):
        unet = UNet2DConditionModel(
            **_ADDED_KEYS,
            out_channels=8,
            addition_embed_type="image",
            encoder_hid_dim_type="image_proj",
        )
        return unet.eval().to(dtype)


def deepfloyd_if_unet(*, dtype: torch.dtype = torch.float32) -> UNet2DConditionModel:
    """DeepFloyd IF's first stage: keys of the text and of the pixels in one attention."""
    with tiny.seeded(16):
        unet = UNet2DConditionModel(
            **_ADDED_KEYS,
            in_channels=3,
            out_channels=6,
            addition_embed_type="text",
            addition_embed_type_num_heads=2,
            cross_attention_norm="group_norm",
        )
        return unet.eval().to(dtype)


_ADDED_KEYS: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (16, 32),
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "layers_per_block": 1,
    "cross_attention_dim": 32,
    "encoder_hid_dim": 32,
    "attention_head_dim": 8,
    "norm_num_groups": 8,
    "resnet_time_scale_shift": "scale_shift",
}


def kolors(*, dtype: torch.dtype = torch.float32) -> KolorsPipeline:
    """Kolors: a ChatGLM reads 256 tokens, padded on the left; the UNet projects them."""
    with tiny.seeded(17):
        tokens, encoder = _chat_glm(width=32)
        unet = _unet(
            _XL_SHAPE,
            cross_attention_dim=48,
            encoder_hid_dim=32,
            encoder_hid_dim_type="text_proj",
            projection_class_embeddings_input_dim=32 + 6 * 8,
        )
        pipe = KolorsPipeline(
            vae=tiny.vae(),
            text_encoder=encoder,
            tokenizer=tokens,
            unet=unet,
            scheduler=tiny.scheduler("euler"),
        )
        return _ready(pipe, dtype)


def _chat_glm(*, width: int) -> tuple[Any, Any]:
    """Kolors' tokenizer, trained on the words of the shapes world, and its text encoder."""
    import sentencepiece
    from diffusers.pipelines.kolors import ChatGLMModel, ChatGLMTokenizer
    from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig, RMSNorm

    with tempfile.TemporaryDirectory() as folder:
        prefix = Path(folder) / "tokenizer"
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(words()),
            model_prefix=str(prefix),
            model_type="bpe",
            vocab_size=100,
            hard_vocab_limit=False,
            minloglevel=2,
        )
        tokens = ChatGLMTokenizer(str(prefix.with_suffix(".model")), model_max_length=256)
    config = ChatGLMConfig(
        num_layers=2,
        padded_vocab_size=tokens.vocab_size,
        hidden_size=width,
        ffn_hidden_size=2 * width,
        kv_channels=16,
        num_attention_heads=2,
        seq_length=256,
        multi_query_attention=True,
        multi_query_group_num=1,
        add_qkv_bias=True,
        original_rope=True,
    )
    model = ChatGLMModel(config, empty_init=False)
    for module in model.modules():
        if isinstance(module, RMSNorm):
            nn.init.ones_(module.weight)  # born as memory was
    return tokens, model.eval()


BUILDERS: dict[str, Callable[..., Any]] = {
    "sd1": stable_diffusion,
    "sd2": stable_diffusion_2,
    "xl": stable_diffusion_xl,
    "xl_turbo": stable_diffusion_xl_turbo,
    "xl_refiner": stable_diffusion_xl_refiner,
    "kolors": kolors,
    "inpaint": stable_diffusion_inpaint,
    "img2img": stable_diffusion_img2img,
    "controlnet": stable_diffusion_controlnet,
    "xl_controlnet": stable_diffusion_xl_controlnet,
    "adapter": stable_diffusion_adapter,
    "lcm": latent_consistency,
    "instruct_pix2pix": stable_diffusion_instruct_pix2pix,
    "pag": stable_diffusion_pag,
    "animate_diff": animate_diff,
    "ip_adapter": stable_diffusion_ip_adapter,
}


def cases(*names: str) -> list[Any]:
    """For parametrize: a tokenizer of sentencepiece is made by that package."""
    needs = {"kolors": pytest.mark.needs("sentencepiece")}
    return [pytest.param(name, marks=needs.get(name, ())) for name in names]


CASES = cases(*BUILDERS)


def arguments(name: str, *, width: int = 64, height: int = 64) -> dict[str, Any]:
    """What a pipeline of `BUILDERS` is called with beside the prompt, the seed and the steps."""
    picture = tiny.image(width=width, height=height)
    size = {"width": width, "height": height}
    if name == "inpaint":
        return size | {"image": picture, "mask_image": tiny.mask(width=width, height=height)}
    if name in ("img2img", "xl_refiner"):
        return {"image": picture, "strength": 0.6}
    if name in ("controlnet", "xl_controlnet", "adapter"):
        return size | {"image": picture}
    if name == "instruct_pix2pix":
        return {"image": picture}
    if name == "xl_turbo":
        return size | {"guidance_scale": 0.0}
    if name == "animate_diff":
        return size | {"num_frames": 3}
    if name == "ip_adapter":
        return size | {"ip_adapter_image": picture}
    return size
