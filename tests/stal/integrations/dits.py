"""Tiny diffusers pipelines of diffusion transformers with a cross-attention of their own.

Random weights, tokenizers made on the spot, nothing from a hub. `BUILDERS[name]()` is a pipeline
that runs whole through `pipe(prompt=..., **ARGUMENTS[name])`; two builds are equal. Head sizes,
lengths of prompts, schedulers and the scale of latents are those of the published models, so that
a test meets what users meet; widths and depths are not.
"""

from __future__ import annotations

import functools
import json
import string
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    AutoencoderKLLTXVideo,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    HunyuanDiT2DModel,
    HunyuanDiTPipeline,
    LTX2Pipeline,
    LTX2VideoTransformer3DModel,
    LTXImageToVideoPipeline,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SanaPipeline,
    SanaSprintPipeline,
    SanaTransformer2DModel,
    SCMScheduler,
)
from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    Gemma2Config,
    Gemma2Model,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GemmaTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)

# Each is one token; other words are spelled.
_KNOWN = """
a an and of the in on with left right above below cube sphere cone cylinder table wall red green
blue yellow purple black white small large knight dragon castle dog horse photograph
"""
_WORDS = _KNOWN.split()

_TEXT_WIDTH = 32


def t5_tokenizer() -> T5Tokenizer:
    """Pads on the right and ends each text by </s>; 128 tokens unless told, as LTX's."""
    # Written out: the trainer of Unigram gives other scores and ids in another process.
    words = [(f"▁{word}", -3.0) for word in _WORDS]
    letters = [(letter, -8.0) for letter in "▁,.:" + string.ascii_lowercase + string.digits]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    return T5Tokenizer(vocab=special + words + letters, extra_ids=0, model_max_length=128)


@functools.cache
def _byte_pairs() -> str:
    """The model of a tokenizer of byte pairs, as JSON; no pair across words."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    special += [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False)
    letters = string.ascii_letters + string.digits + string.punctuation
    tokenizer.train_from_iterator([f"▁{text}" for text in (*_WORDS, *letters)], trainer)
    return json.dumps(json.loads(tokenizer.to_str())["model"])


def gemma_tokenizer() -> GemmaTokenizer:
    """Begins each text by <bos> and pads on the left, unless a pipeline tells it otherwise."""
    model = json.loads(_byte_pairs())
    merges = [tuple(pair) for pair in model["merges"]]
    return GemmaTokenizer(vocab=model["vocab"], merges=merges, add_bos_token=True)


def bert_tokenizer() -> BertTokenizer:
    """[CLS] ... [SEP], padded on the right."""
    letters = string.ascii_lowercase + string.digits + ",.:"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *_WORDS]
    pieces += sorted({*letters} - {*_WORDS}) + [f"##{letter}" for letter in letters]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    return BertTokenizer(vocab=vocab, model_max_length=77)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _lively(model: Any, *, gain: float = 1.7, sharp: float = 1.0) -> Any:
    """Weights large enough that a picture depends on its prompt, and attention on q and k.

    `sharp` is one more factor of q and k. Tables and biases that begin as zero, which hide a part
    that is left out, get values.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.mul_(gain)
            # The norms too: after one the projection's size is lost.
            if name.endswith(("to_q.weight", "to_k.weight", "norm_q.weight", "norm_k.weight")):
                parameter.mul_(sharp)
            if not parameter.any():
                parameter.normal_(std=0.2)
    return model.eval()


def t5_encoder(tokenizer: T5Tokenizer) -> T5EncoderModel:
    return _t5(T5EncoderModel, T5Config, tokenizer)


def umt5_encoder(tokenizer: T5Tokenizer) -> UMT5EncoderModel:
    return _t5(UMT5EncoderModel, UMT5Config, tokenizer)


def _t5(model_class: Any, config_class: Any, tokenizer: T5Tokenizer) -> Any:
    config = config_class(
        vocab_size=len(tokenizer),
        d_model=_TEXT_WIDTH,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
    )
    return model_class(config).eval()


def _gemma(tokenizer: GemmaTokenizer) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": _TEXT_WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 4096,
        "initializer_range": 0.2,
    }


def gemma2_encoder(tokenizer: GemmaTokenizer) -> Gemma2Model:
    return Gemma2Model(Gemma2Config(**_gemma(tokenizer))).eval()


def gemma3_encoder(tokenizer: GemmaTokenizer) -> Gemma3ForConditionalGeneration:
    vision = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "image_size": 8,
        "patch_size": 4,
    }
    config = Gemma3Config(
        text_config=_gemma(tokenizer), vision_config=vision, mm_tokens_per_image=4
    )
    return Gemma3ForConditionalGeneration(config).eval()


def _bert_encoder(tokenizer: BertTokenizer) -> BertModel:
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=_TEXT_WIDTH,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        initializer_range=0.2,
    )
    return BertModel(config).eval()


def _vae() -> AutoencoderKL:
    """A latent to 8 x 8 pixels."""
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8,) * 4,
        layers_per_block=1,
        norm_num_groups=4,
    )
    return _contrasted(vae, vae.decoder.conv_out)


def _contrasted(vae: Any, last: nn.Conv2d | nn.Conv3d, *, std: float = 0.2) -> Any:
    """Pictures of full contrast, so that a difference of a few levels is a small one."""
    nn.init.normal_(last.weight, std=std)
    return vae.eval()


def _pixart(pipeline_class: Any, *, seed: int, dtype: torch.dtype, **changes: Any) -> Any:
    config: dict[str, Any] = {
        "num_attention_heads": 2,
        "attention_head_dim": 72,
        "cross_attention_dim": 144,
        "caption_channels": _TEXT_WIDTH,
        "num_layers": 2,
        "sample_size": 128,
    }
    with _seeded(seed):
        tokenizer = t5_tokenizer()
        pipe = pipeline_class(
            tokenizer=tokenizer,
            text_encoder=t5_encoder(tokenizer),
            vae=_vae(),
            transformer=_lively(PixArtTransformer2DModel(**config | changes), sharp=1.5),
            # The models predict eps; at the first step random eps means x_0 of size 150.
            scheduler=DPMSolverMultistepScheduler(
                beta_schedule="linear", beta_end=0.02, prediction_type="v_prediction"
            ),
        )
    return _ready(pipe, dtype)


def _ready(pipe: Any, dtype: torch.dtype) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe if dtype == torch.float32 else pipe.to(dtype)


def pixart_alpha(*, dtype: torch.dtype = torch.float32) -> PixArtAlphaPipeline:
    """T5 of 120 tokens; resolution and aspect as conditions of the time embedding."""
    return _pixart(PixArtAlphaPipeline, seed=10, dtype=dtype)


def pixart_sigma(*, dtype: torch.dtype = torch.float32) -> PixArtSigmaPipeline:
    """T5 of 300 tokens, no such conditions."""
    changes = {"use_additional_conditions": False, "interpolation_scale": 2}
    return _pixart(PixArtSigmaPipeline, seed=11, dtype=dtype, **changes)


def _dc_ae(channels: int) -> AutoencoderDC:
    """A latent to 32 x 32 pixels."""
    blocks: dict[str, Any] = {}
    for half in ("encoder", "decoder"):
        blocks |= {
            f"{half}_block_out_channels": (8,) * 6,
            f"{half}_layers_per_block": (1,) * 6,
            f"{half}_block_types": ("ResBlock",) * 5 + ("EfficientViTBlock",),
            f"{half}_qkv_multiscales": ((),) * 5 + ((5,),),
        }
    vae = AutoencoderDC(latent_channels=channels, attention_head_dim=4, **blocks)
    return _contrasted(vae, vae.decoder.conv_out)


def _sana(
    pipeline_class: Any, scheduler: Any, *, seed: int, dtype: torch.dtype, **changes: Any
) -> Any:
    channels = 8
    config: dict[str, Any] = {
        "in_channels": channels,
        "out_channels": channels,
        "num_attention_heads": 7,
        "attention_head_dim": 32,
        "num_layers": 2,
        "num_cross_attention_heads": 2,
        "cross_attention_head_dim": 112,
        "cross_attention_dim": 224,
        "caption_channels": _TEXT_WIDTH,
    }
    with _seeded(seed):
        tokenizer = gemma_tokenizer()
        pipe = pipeline_class(
            tokenizer=tokenizer,
            text_encoder=gemma2_encoder(tokenizer),
            vae=_dc_ae(channels),
            transformer=_lively(SanaTransformer2DModel(**config | changes), sharp=1.5),
            scheduler=scheduler,
        )
    return _ready(pipe, dtype)


def sana(*, dtype: torch.dtype = torch.float32) -> SanaPipeline:
    """Gemma of 300 tokens behind an instruction; flow matching by DPM-Solver."""
    scheduler = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return _sana(SanaPipeline, scheduler, seed=20, dtype=dtype)


def sana_sprint(*, dtype: torch.dtype = torch.float32) -> SanaSprintPipeline:
    """Two steps without guidance, whose scale is embedded; norms of q and k."""
    changes = {"qk_norm": "rms_norm_across_heads", "guidance_embeds": True}
    return _sana(SanaSprintPipeline, SCMScheduler(), seed=21, dtype=dtype, **changes)


def hunyuan_dit(*, dtype: torch.dtype = torch.float32) -> HunyuanDiTPipeline:
    """BERT of 77 and T5 of 256 tokens in a row, rotary q."""
    with _seeded(30):
        bert, t5 = bert_tokenizer(), t5_tokenizer()
        transformer = HunyuanDiT2DModel(
            num_attention_heads=2,
            attention_head_dim=88,
            hidden_size=176,
            in_channels=4,
            patch_size=2,
            num_layers=4,
            sample_size=128,
            cross_attention_dim=_TEXT_WIDTH,
            cross_attention_dim_t5=_TEXT_WIDTH,
            pooled_projection_dim=16,
        )
        pipe = HunyuanDiTPipeline(
            vae=_vae(),
            text_encoder=_bert_encoder(bert),
            tokenizer=bert,
            transformer=_lively(transformer, sharp=1.5),
            scheduler=DDPMScheduler(
                beta_schedule="scaled_linear",
                beta_start=0.00085,
                beta_end=0.03,
                prediction_type="v_prediction",
                clip_sample=False,
                steps_offset=1,
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
            text_encoder_2=t5_encoder(t5),
            tokenizer_2=t5,
        )
    return _ready(pipe, dtype)


def _flow() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_image_seq_len=1024,
        max_image_seq_len=4096,
        base_shift=0.95,
        max_shift=2.05,
        shift_terminal=0.1,
    )


def _ltx(pipeline_class: Any, *, dtype: torch.dtype) -> Any:
    channels = 8
    with _seeded(40):
        tokenizer = t5_tokenizer()
        # A latent to 8 frames of 32 x 32 pixels, but for the first, which is of one frame.
        vae = AutoencoderKLLTXVideo(
            latent_channels=channels,
            block_out_channels=(8,) * 4,
            decoder_block_out_channels=(8,) * 4,
            layers_per_block=(1,) * 5,
            decoder_layers_per_block=(1,) * 5,
        )
        transformer = LTXVideoTransformer3DModel(
            in_channels=channels,
            out_channels=channels,
            num_attention_heads=2,
            attention_head_dim=64,
            cross_attention_dim=128,
            num_layers=2,
            caption_channels=_TEXT_WIDTH,
        )
        pipe = pipeline_class(
            scheduler=_flow(),
            vae=_contrasted(vae, vae.decoder.conv_out.conv),
            text_encoder=t5_encoder(tokenizer),
            tokenizer=tokenizer,
            transformer=_lively(transformer, sharp=1.5),
        )
    return _ready(pipe, dtype)


def ltx(*, dtype: torch.dtype = torch.float32) -> LTXPipeline:
    """T5 of 128 tokens, or of 256 by `max_sequence_length`."""
    return _ltx(LTXPipeline, dtype=dtype)


def ltx_image_to_video(*, dtype: torch.dtype = torch.float32) -> LTXImageToVideoPipeline:
    """The same model; the first latent frame is given and its tokens have timestep 0."""
    return _ltx(LTXImageToVideoPipeline, dtype=dtype)


def _ltx2_transformer(channels: int, audio_channels: int, *, newer: bool) -> Any:
    changes: dict[str, Any] = {}
    if newer:
        changes = {
            "gated_attn": True,
            "audio_gated_attn": True,
            "cross_attn_mod": True,
            "audio_cross_attn_mod": True,
            "perturbed_attn": True,
            "use_prompt_embeddings": False,
        }
    transformer = LTX2VideoTransformer3DModel(
        in_channels=channels,
        out_channels=channels,
        num_attention_heads=2,
        attention_head_dim=128,
        cross_attention_dim=256,
        audio_in_channels=audio_channels,
        audio_out_channels=audio_channels,
        audio_num_attention_heads=2,
        audio_attention_head_dim=64,
        audio_cross_attention_dim=128,
        num_layers=2,
        caption_channels=_TEXT_WIDTH,
        rope_type="split",
        **changes,
    )
    return _lively(transformer, sharp=1.7)


def gated(transformer: LTX2VideoTransformer3DModel) -> LTX2VideoTransformer3DModel:
    """LTX-2's of this size whose heads are gated, with other weights."""
    with _seeded(52):
        model = LTX2VideoTransformer3DModel.from_config(
            transformer.config, gated_attn=True, audio_gated_attn=True
        )
        return _lively(model, sharp=1.7)


def _ltx2_connectors(layers: int, *, newer: bool) -> LTX2TextConnectors:
    """Of LTX-2, one projection and text of one width; of LTX-2.3, each modality its own."""
    video, audio = ((2, 128), (2, 64)) if newer else ((2, _TEXT_WIDTH // 2),) * 2
    connectors = LTX2TextConnectors(
        caption_channels=_TEXT_WIDTH,
        text_proj_in_factor=layers + 1,
        video_connector_num_attention_heads=video[0],
        video_connector_attention_head_dim=video[1],
        video_connector_num_layers=1,
        audio_connector_num_attention_heads=audio[0],
        audio_connector_attention_head_dim=audio[1],
        audio_connector_num_layers=1,
        video_gated_attn=newer,
        audio_gated_attn=newer,
        per_modality_projections=newer,
        video_hidden_dim=256,
        audio_hidden_dim=128,
        proj_bias=newer,
        rope_type="split",
    )
    # Registers fill what the text leaves of 1024 tokens; much alike, they do not drown it.
    for connector in (connectors.video_connector, connectors.audio_connector):
        registers = connector.learnable_registers.data
        registers.copy_(registers[:1] + 0.2 * registers)
    return _lively(connectors)


def _ltx2(*, seed: int, dtype: torch.dtype, newer: bool) -> LTX2Pipeline:
    channels, mel_bins, audio_latents = 8, 16, 2
    audio_channels = audio_latents * mel_bins // 4
    with _seeded(seed):
        tokenizer = gemma_tokenizer()
        text_encoder = gemma3_encoder(tokenizer)
        vae = AutoencoderKLLTX2Video(
            latent_channels=channels,
            block_out_channels=(8,) * 4,
            decoder_block_out_channels=(8, 16, 32),
            layers_per_block=(1,) * 5,
            decoder_layers_per_block=(1,) * 4,
            spatial_compression_ratio=32,
            temporal_compression_ratio=8,
        )
        audio_vae = AutoencoderKLLTX2Audio(
            base_channels=audio_channels,
            ch_mult=(1, 1, 1),
            num_res_blocks=1,
            latent_channels=audio_latents,
            mel_bins=mel_bins,
        )
        vocoder = LTX2Vocoder(
            in_channels=2 * mel_bins,
            hidden_channels=8,
            upsample_kernel_sizes=[4, 4],
            upsample_factors=[2, 2],
            resnet_kernel_sizes=[3],
            resnet_dilations=[[1, 3, 5]],
        )
        pipe = LTX2Pipeline(
            scheduler=_flow(),
            vae=_contrasted(vae, vae.decoder.conv_out.conv),
            audio_vae=audio_vae.eval(),
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            connectors=_ltx2_connectors(2, newer=newer),
            transformer=_ltx2_transformer(channels, audio_channels, newer=newer),
            vocoder=vocoder.eval(),
        )
    return _ready(pipe, dtype)


def ltx2(*, dtype: torch.dtype = torch.float32) -> LTX2Pipeline:
    """Gemma of 1024 tokens, of which a video's and a sound's tokens see two projections."""
    return _ltx2(seed=50, dtype=dtype, newer=False)


def ltx2_3(*, dtype: torch.dtype = torch.float32) -> LTX2Pipeline:
    """LTX-2.3: gated heads, and text modulated by the timestep before it is projected to k, v."""
    return _ltx2(seed=51, dtype=dtype, newer=True)


BUILDERS: dict[str, Callable[..., Any]] = {
    "pixart_alpha": pixart_alpha,
    "pixart_sigma": pixart_sigma,
    "sana": sana,
    "sana_sprint": sana_sprint,
    "hunyuan_dit": hunyuan_dit,
    "ltx": ltx,
    "ltx_image_to_video": ltx_image_to_video,
    "ltx2": ltx2,
    "ltx2_3": ltx2_3,
}

_PICTURE = {"height": 64, "width": 96, "num_inference_steps": 3, "use_resolution_binning": False}
_VIDEO = {"height": 96, "width": 160, "num_frames": 17, "num_inference_steps": 3}
# By default LTX-2 draws three times a step, in block 28.
_LTX2 = _VIDEO | {"stg_scale": 0.0, "modality_scale": 1.0, "spatio_temporal_guidance_blocks": None}
_LTX2 |= {"audio_stg_scale": 0.0, "audio_modality_scale": 1.0}

# What a call of each needs beside the prompt; heights and widths differ.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "pixart_alpha": _PICTURE | {"clean_caption": False},
    "pixart_sigma": _PICTURE | {"clean_caption": False},
    "sana": _PICTURE | {"height": 128, "width": 192},
    "sana_sprint": _PICTURE | {"height": 128, "width": 192, "num_inference_steps": 2},
    "hunyuan_dit": _PICTURE,
    "ltx": _VIDEO,
    "ltx_image_to_video": _VIDEO | {"image": Image.linear_gradient("L").convert("RGB")},
    "ltx2": _LTX2,
    "ltx2_3": _LTX2,
}
