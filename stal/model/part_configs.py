"""The config.json of what libraries build: the autoencoder, text encoders and CLIP.

Libraries trust these files, so each value that they use is checked first; the others are left out.
Every reader raises ValueError for a value that makes no sense, naming its key.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from stal.budget import MOST_ROWS, MOST_WIDTH
from stal.checked_json import as_whole, first_line, short, typed
from stal.config_values import flag, levels_of, one_of, real, reals, whole

_DOWN = ("DownEncoderBlock2D", "AttnDownEncoderBlock2D")
_UP = ("UpDecoderBlock2D", "AttnUpDecoderBlock2D")
_T = TypeVar("_T")


def built(make: Callable[[], _T], where: object) -> _T:
    """What make() gives. Raises ValueError, naming the place, where a library cannot build it."""
    try:
        return make()
    except Exception as error:  # whatever a library makes of values that do not go together
        got = first_line(error)
        raise ValueError(f"the config.json of {where} must be of one network, got {got}") from error


def autoencoder_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `diffusers.AutoencoderKL`."""
    one_of(config, "_class_name", ("AutoencoderKL",))
    channels = config.get("block_out_channels")
    channels = [64] if channels is None else channels
    levels = levels_of(channels)
    channels = list(channels) if isinstance(channels, (list, tuple)) else [channels]
    latent = whole(config, "latent_channels", 4)
    groups = whole(config, "norm_num_groups", 32)
    values: dict[str, Any] = {
        "in_channels": whole(config, "in_channels", 3),
        "out_channels": whole(config, "out_channels", 3),
        "down_block_types": _types(config, "down_block_types", _DOWN, levels),
        "up_block_types": _types(config, "up_block_types", _UP, levels),
        "block_out_channels": tuple(
            whole({"block_out_channels": each}, "block_out_channels", 0) for each in channels
        ),
        "layers_per_block": whole(config, "layers_per_block", 1, high=MOST_ROWS),
        "act_fn": one_of(config, "act_fn", ("silu", "swish", "mish", "gelu", "relu")),
        "latent_channels": latent,
        "norm_num_groups": groups,
        "sample_size": _sample_size(config),
        "scaling_factor": real(config, "scaling_factor", 0.18215),
        "shift_factor": real(config, "shift_factor", 0.0) or None,
        "latents_mean": reals(config, "latents_mean", latent),
        "latents_std": reals(config, "latents_std", latent),
    }
    flags = ("force_upcast", "use_quant_conv", "use_post_quant_conv", "mid_block_add_attention")
    values |= {key: flag(config, key, True) for key in flags}
    if not values["scaling_factor"] or 0 in (values["latents_std"] or ()):
        raise ValueError("scaling_factor and latents_std must not be 0, got 0")
    for dim in values["block_out_channels"]:
        if dim % groups:
            raise ValueError(f"norm_num_groups must divide {dim} channels, got {groups}")
    return values


def autoencoder_layers(values: Mapping[str, Any]) -> int:
    """How many residual layers it has, but for those in the middle."""
    return len(values["block_out_channels"]) * (2 * values["layers_per_block"] + 1)


def text_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `transformers.CLIPTextConfig`."""
    if config.get("model_type") == "clip" and "text_config" in config:
        config = _merged(config, "text_config")
    # They need not be in the vocabulary: many files keep those of another one.
    marks = {"bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 1}
    return {
        **_transformer(config, hidden=512, inner=2048, heads=8),
        **{key: whole(config, key, own, low=-1, high=MOST_ROWS) for key, own in marks.items()},
        "vocab_size": whole(config, "vocab_size", 49408, high=MOST_ROWS),
        "max_position_embeddings": whole(
            config, "max_position_embeddings", 77, low=3, high=MOST_ROWS
        ),
    }


def clip_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `transformers.CLIPConfig`."""
    vision = _merged(config, "vision_config")
    return {
        "text_config": text_values(_merged(config, "text_config")),
        "vision_config": {
            **_transformer(vision, hidden=768, inner=3072, heads=12),
            "num_channels": whole(vision, "num_channels", 3, low=3, high=3),
            "image_size": whole(vision, "image_size", 224, high=MOST_ROWS),
            "patch_size": whole(vision, "patch_size", 32, high=MOST_ROWS),
        },
        "projection_dim": whole(config, "projection_dim", 512),
        "logit_scale_init_value": real(config, "logit_scale_init_value", 2.6592),
    }


def _merged(config: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A part of CLIP's configuration; old files repeat it under "<key>_dict", which counts."""
    parts = (config.get(key), config.get(f"{key}_dict"))
    return {k: v for part in parts for k, v in typed(part or {}, dict, key).items()}


def _transformer(
    config: Mapping[str, Any], *, hidden: int, inner: int, heads: int
) -> dict[str, Any]:
    width = whole(config, "hidden_size", hidden)
    count = whole(config, "num_attention_heads", heads)
    if width % count:
        raise ValueError(f"num_attention_heads must divide {width} features, got {count}")
    return {
        "hidden_size": width,
        "num_attention_heads": count,
        "intermediate_size": whole(config, "intermediate_size", inner, high=16 * MOST_WIDTH),
        "num_hidden_layers": whole(config, "num_hidden_layers", 12, high=MOST_ROWS),
        "projection_dim": whole(config, "projection_dim", 512),
        "hidden_act": str(config.get("hidden_act") or "quick_gelu"),
        "layer_norm_eps": real(config, "layer_norm_eps", 1e-5, low=0.0),
    }


def _types(
    config: Mapping[str, Any], key: str, allowed: Sequence[str], levels: int
) -> tuple[str, ...]:
    types: Any = config.get(key)
    types = [allowed[0]] * levels if types is None else types
    right = isinstance(types, (list, tuple)) and all(each in allowed for each in types)
    if not right or len(types) != levels:
        what = " or ".join(allowed)
        raise ValueError(f"{key} must be {what} for each of {levels} levels, got {short(types)}")
    return tuple(types)


def _sample_size(config: Mapping[str, Any]) -> int:
    """Of the pictures that it was trained on: nothing here depends on it."""
    value = as_whole(config.get("sample_size"))
    return value if isinstance(value, int) and 0 < value <= MOST_ROWS else 32
