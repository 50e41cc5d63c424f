"""Names of diffusers' pipelines, and what to use here instead. Imports no torch."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_R = TypeVar("_R")

# What diffusers calls an argument, and what is its name here.
DIFFUSERS_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "callback_on_step_end": "callback",
        "device_map": "device",
        "generator": "seed",
        "latents": "seed",
        "num_images_per_prompt": "num_images",
        "num_inference_steps": "steps",
        "pretrained_model_name_or_path": "model",
        "scheduler": "sampler",
        "torch_dtype": "dtype",
    }
)
# Its arguments, methods and attributes that have no counterpart, and what there is instead.
DIFFUSERS_ADVICE: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(
            ("cache_dir", "force_download", "local_files_only", "revision", "token", "subfolder"),
            "give the folder of a downloaded model",
        ),
        **dict.fromkeys(("safety_checker", "requires_safety_checker"), "there is none here"),
        **dict.fromkeys(
            (
                "enable_attention_slicing",
                "enable_xformers_memory_efficient_attention",
                "enable_vae_slicing",
                "enable_vae_tiling",
            ),
            "leave it out, and where memory is short draw a smaller picture, or fewer at once",
        ),
        **dict.fromkeys(
            ("enable_model_cpu_offload", "enable_sequential_cpu_offload"),
            "leave it out, and load the model with a device, or move it with pipe.to(device)",
        ),
        "clip_skip": "the text encoder's last layer is always read",
        "components": "they are in pipe.model.components",
        "decode_latents": "call pipe.model.decode(latents)",
        "encode_prompt": "call pipe.model.encode(texts)",
        "feature_extractor": "there is none here",
        "guidance_rescale": "it is always 0 here",
        "low_cpu_mem_usage": "weights are always read so",
        "output_type": "a result has images and latents, pipe.model.pixels(latents) is a tensor",
        "prompt_embeds": "give the prompt",
        "return_dict": "a result has images",
        "set_progress_bar_config": "give a callback",
        "text_encoder": "it is pipe.model.components.text_encoder",
        "tokenizer": "it is pipe.model.components.tokenizer",
        "unet": "it is pipe.model.unet",
        "use_safetensors": "nothing else is ever read",
        "vae": "it is pipe.model.components.vae",
        "variant": "the one that is there is read",
    }
)


def hinted(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """The function, whose TypeError for an argument of diffusers says what to give instead.

    Its signature is the one that is seen: the names are looked up before Python refuses them.
    """
    known = inspect.signature(function).parameters

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        for name in kwargs:
            hint = None if name in known else hint_of(name)
            if hint:
                is_here = DIFFUSERS_NAMES.get(name, name) in (*known, name)
                raise TypeError(hint if is_here else f"{hint}, but not in {function.__name__}")
        return function(*args, **kwargs)

    return call


def hint_of(name: str) -> str | None:
    """What to use instead of a name of diffusers' pipelines; None for any other."""
    if name in DIFFUSERS_NAMES:
        return f"{name} is {DIFFUSERS_NAMES[name]} here"
    if name in DIFFUSERS_ADVICE:
        return f"{name} is diffusers': {DIFFUSERS_ADVICE[name]}"
    return None
