"""What the bundled shapes model consists of, untrained, and the folder that holds it.

The folder is an ordinary diffusers folder in half precision that also has a CLIP model and
`stal.json`, the defaults of drawing with the model.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stal.shapes.captions import words
from stal.shapes.scenes import IMAGE_SIZE

MAX_TOKENS = 40
# Pictures of any size are squashed to the input's, and scaled to [-1, 1].
_CLIP_INPUT = {
    "image_processor_type": "CLIPImageProcessor",
    "do_resize": True,
    "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
    "resample": 2,
    "do_center_crop": False,
    "do_rescale": True,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


def write_tokenizer(folder: Path) -> None:
    """A CLIP tokenizer to which every word of the world is one token; other words fall apart.

    Numbers follow from the words alone, so that models of different runs can share weights.
    """
    from transformers import CLIPTokenizer

    letters = [chr(c) for c in range(33, 127)]
    pairs = _merges(words())
    vocabulary = [*letters, *(f"{c}</w>" for c in letters), *(a + b for a, b in pairs)]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    merges: Any = pairs  # declared as strings
    tokenizer = CLIPTokenizer(
        vocab={token: i for i, token in enumerate(vocabulary)},
        merges=merges,
        model_max_length=MAX_TOKENS,
    )
    broken = [word for word in words() if len(tokenizer(word).input_ids) != 3]
    assert not broken, f"words of several tokens: {broken}"
    tokenizer.save_pretrained(folder)


def _merges(texts: Sequence[str]) -> list[tuple[str, str]]:
    """Byte pair encoding until each word is one symbol: the most frequent pair first, equals in
    alphabetical order (the trainer of `tokenizers` leaves that order to chance)."""
    split = [[*word[:-1], f"{word[-1]}</w>"] for word in texts]
    merges = []
    while counts := Counter(pair for symbols in split for pair in pairwise(symbols)):
        first, second = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append((first, second))
        for symbols in split:
            for i in range(len(symbols) - 1):
                if symbols[i : i + 2] == [first, second]:
                    symbols[i : i + 2] = [first + second]
    return merges


def tokenizer_of(model: Path) -> Callable[[list[str]], Tensor]:
    """Texts -> token numbers, (texts, MAX_TOKENS) int64, with the tokenizer of a model folder."""
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(model / "tokenizer", local_files_only=True)

    def tokenize(texts: list[str]) -> Tensor:
        return tokenizer(
            texts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
        ).input_ids

    return tokenize


def new_vae() -> Any:
    """Its pictures are (n, 3, IMAGE_SIZE, IMAGE_SIZE) in [-1, 1], latents have a quarter of the
    side and 4 channels."""
    from diffusers import AutoencoderKL

    vae: Any = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(24, 48, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=IMAGE_SIZE,
        mid_block_add_attention=False,
    )
    vae.to(memory_format=torch.channels_last)
    return vae


def _text_config(vocab_size: int, end: int, *, width: int = 128) -> Any:
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=end - 1,
        eos_token_id=end,
        pad_token_id=end,
    )


def _vocabulary(model: Path) -> tuple[int, int]:
    """Size of the vocabulary and the number of its end-of-text token."""
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(model / "tokenizer", local_files_only=True)
    assert tokenizer.eos_token_id == len(tokenizer) - 1
    return len(tokenizer), tokenizer.eos_token_id


def new_scheduler() -> Any:
    """The noise levels of the UNet, whose prediction is v."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
        # Without effect under this spacing, but diffusers warns about 0.
        steps_offset=1,
    )


def new_unet_and_text_encoder(model: Path) -> tuple[nn.Module, nn.Module]:
    """Of random weights, for the tokenizer in a model folder."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel

    text_encoder = CLIPTextModel(_text_config(*_vocabulary(model)))
    unet: Any = UNet2DConditionModel(
        sample_size=IMAGE_SIZE // 4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D",) * 3,
        block_out_channels=(64, 96, 128),
        layers_per_block=1,
        cross_attention_dim=text_encoder.config.hidden_size,
        attention_head_dim=4,
        # Self-attention at 16x16 would take most of the time of a step.
        only_cross_attention=(True, False, False),
        norm_num_groups=16,
    )
    unet.to(memory_format=torch.channels_last)
    return unet, text_encoder


def new_clip(model: Path) -> Any:
    """Of random weights, for the tokenizer in a model folder."""
    from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig

    vocab_size, end = _vocabulary(model)
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        projection_dim=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=8,
    )
    text = _text_config(vocab_size, end)
    return CLIPModel(
        CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=128)
    )


def write_half(folder: Path, module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Saves a module with other weights of its own kind in half precision; the module stays as it
    is. The folder is replaced as a whole."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    module.load_state_dict(weights)
    module.half().save_pretrained(partial)  # type: ignore[operator]
    module.float().load_state_dict(before)
    config = json.loads((partial / "config.json").read_text())
    if "dtype" in config:
        # transformers would keep half precision where diffusers casts up: one pipeline, two types.
        config["dtype"] = "float32"
        (partial / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)


def write_index(model: Path) -> None:
    """Writes scheduler, `model_index.json` and `stal.json` into a model folder."""
    new_scheduler().save_pretrained(model / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (model / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    defaults = {
        "background": 0.6,
        "guidance_scale": 3.0,
        "reference": "an empty scene {}",
        "steps": 25,
        "words": words(),
    }
    (model / "stal.json").write_text(json.dumps(defaults, indent=2) + "\n")


def write_clip_input(folder: Path) -> None:
    """Writes beside a CLIP model what becomes of pictures before it sees them."""
    text = json.dumps(_CLIP_INPUT, indent=2) + "\n"
    (folder / "preprocessor_config.json").write_text(text)
