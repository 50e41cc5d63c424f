"""Two tiny diffusers folders with random weights, Stable Diffusion and XL, made once a session."""

from __future__ import annotations

import shutil
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from hypothesis import settings
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from stal.__main__ import main
from stal.model.clip import Clip, Preprocessing
from stal.pipeline import Pipeline
from stal.training.shapes_model import MAX_TOKENS, write_tokenizer

# A busy machine is no failure.
settings.register_profile("stal", deadline=None)
settings.load_profile("stal")


def _text_encoder(model_class: Any, tokenizer: CLIPTokenizer, *, gain: float = 4.0) -> Any:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=20,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return _lively(model_class(config), gain=gain)


def _unet(**changes: Any) -> UNet2DConditionModel:
    config: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (16, 32),
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "only_cross_attention": (True, False),
        "layers_per_block": 1,
        "cross_attention_dim": 16,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    }
    return _lively(UNet2DConditionModel(**config | changes), gain=1.5)


def _vae() -> AutoencoderKL:
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
    )
    # Pictures of full contrast, so that a difference of a few levels is a small one.
    nn.init.normal_(vae.decoder.conv_out.weight, std=0.3)
    return vae.eval()


def _lively(model: Any, *, gain: float) -> Any:
    """Larger random weights, so that a picture depends on its prompt from the first step on."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(gain)
    return model.eval()


@pytest.fixture(scope="session")
def sd_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stable Diffusion: latents of 8 x 8, pictures of 16 x 16, the words of the shapes world."""
    folder = tmp_path_factory.mktemp("models") / "sd"
    write_tokenizer(folder / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    torch.manual_seed(0)
    StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=_text_encoder(CLIPTextModel, tokenizer),
        tokenizer=tokenizer,
        unet=_unet(),
        scheduler=DDIMScheduler(
            prediction_type="v_prediction",
            clip_sample=False,
            timestep_spacing="trailing",
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def xl_folder(sd_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stable Diffusion XL, likewise."""
    folder = tmp_path_factory.mktemp("models") / "xl"
    tokenizer = CLIPTokenizer.from_pretrained(sd_folder / "tokenizer", local_files_only=True)
    torch.manual_seed(1)
    StableDiffusionXLPipeline(
        vae=_vae(),
        text_encoder=_text_encoder(CLIPTextModel, tokenizer, gain=1.5),
        tokenizer=tokenizer,
        text_encoder_2=_text_encoder(CLIPTextModelWithProjection, tokenizer, gain=1.5),
        tokenizer_2=tokenizer,
        unet=_unet(
            cross_attention_dim=32,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=20 + 6 * 8,
        ),
        scheduler=DDIMScheduler(prediction_type="v_prediction", clip_sample=False, steps_offset=1),
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def clip() -> Clip:
    """Random features, smooth in the pixels."""
    generator = torch.Generator().manual_seed(0)
    project = torch.randn(3 * 8 * 8, 6, generator=generator)

    def texts(texts: Sequence[str]) -> torch.Tensor:
        seeds = [sum(map(ord, text)) for text in texts]
        each = [torch.randn(6, generator=torch.Generator().manual_seed(s)) for s in seeds]
        return torch.stack(each)

    def images(pixels: torch.Tensor) -> torch.Tensor:
        return torch.tanh(pixels.flatten(1) @ project.to(pixels.dtype) / 8)

    return Clip(images, texts, Preprocessing(8, squash=True))


@pytest.fixture(scope="session")
def pipe(sd_folder: Path) -> Pipeline:
    return Pipeline.from_pretrained(sd_folder)


@pytest.fixture(scope="session")
def xl_pipe(xl_folder: Path) -> Pipeline:
    return Pipeline.from_pretrained(xl_folder)


@pytest.fixture
def with_stal_json(sd_folder: Path, tmp_path: Path) -> Callable[[str], Path]:
    """with_stal_json(text): a copy of the Stable Diffusion folder that states such defaults."""

    def copied(text: str) -> Path:
        folder = tmp_path / "model"
        shutil.copytree(sd_folder, folder)
        (folder / "stal.json").write_text(text)
        return folder

    return copied


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[Any, str, str]]:
    """run(*arguments) of `stal` -> exit code, stdout, stderr; in tmp_path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)

    def call(*arguments: Any) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["stal", *map(str, arguments)])
        try:
            main()
            code: Any = 0
        except SystemExit as exit_:
            code = exit_.code or 0
        return code, *capsys.readouterr()

    return call


GPT = """\
Objects: silver bed, couch
Relation: silver bed left of couch
Sentence: The silver bed is left of the couch.

Objects: dog, cat, zebra
Relation: dog above cat, cat right of dog
Sentence: A dog is above a cat.
"""


@pytest.fixture
def gpt(tmp_path: Path) -> Path:
    """A labelled set in the released code's format; of the second prompt not all is true."""
    path = tmp_path / "gpt.txt"
    path.write_text(GPT)
    return path
