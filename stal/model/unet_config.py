"""Which UNets of diffusers are implemented: what is read in a folder's config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stal.budget import MOST_LATENT_CELLS, MOST_WIDTH
from stal.checked_json import as_whole, read_json, short
from stal.config_values import flag, levels_of, real, whole

# Where not everything is implemented: what is, diffusers' default first. A key that is not there
# has its default, and so has null where null is listed.
IMPLEMENTED: dict[str, tuple[Any, ...]] = {
    "_class_name": ("UNet2DConditionModel",),
    "act_fn": ("silu", "swish"),
    "addition_embed_type": (None, "text_time"),
    "attention_type": ("default",),
    "class_embed_type": (None,),
    "class_embeddings_concat": (False, None),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "cross_attention_norm": (None,),
    "downsample_padding": (1,),
    "dual_cross_attention": (False, None),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "num_class_embeds": (None,),
    "resnet_time_scale_shift": ("default",),
    "reverse_transformer_layers_per_block": (None,),
    "time_cond_proj_dim": (None,),
    "time_embedding_act_fn": (None,),
    "time_embedding_dim": (None,),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
}
DOWN, UP = ("CrossAttnDownBlock2D", "DownBlock2D"), ("CrossAttnUpBlock2D", "UpBlock2D")
POSITIVE_INT: tuple[Any, ...] = ()
# An entry for each level, in a list or as one value for all: diffusers' default, what is allowed.
PER_LEVEL: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "block_out_channels": ((320, 640, 1280, 1280), POSITIVE_INT),
    "down_block_types": ((DOWN[0], DOWN[0], DOWN[0], DOWN[1]), DOWN),
    "up_block_types": ((UP[1], UP[0], UP[0], UP[0]), UP),
    "layers_per_block": (2, POSITIVE_INT),
    "transformer_layers_per_block": (1, POSITIVE_INT),
    "num_attention_heads": (8, POSITIVE_INT),
    "cross_attention_dim": (1280, POSITIVE_INT),
    "only_cross_attention": (False, (False, True)),
}


@dataclass(frozen=True)
class UNetConfig:
    """What the architecture depends on, under diffusers' names and with diffusers' defaults.

    Tuples hold one entry a level, the finest first; up_block_types alone begins with the coarsest.
    Made by `from_dict` and `from_json`, which check what they read.
    """

    block_out_channels: tuple[int, ...]
    down_block_types: tuple[str, ...]
    up_block_types: tuple[str, ...]
    layers_per_block: tuple[int, ...]
    transformer_layers_per_block: tuple[int, ...]
    num_attention_heads: tuple[int, ...]
    cross_attention_dim: tuple[int, ...]
    only_cross_attention: tuple[bool, ...]
    sample_size: int | list[int] | None = None
    in_channels: int = 4
    out_channels: int = 4
    center_input_sample: bool = False
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    mid_block_scale_factor: float = 1.0
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    dropout: float = 0.0
    use_linear_projection: bool = False
    addition_embed_type: str | None = None
    addition_time_embed_dim: int = 0
    projection_class_embeddings_input_dim: int = 0

    @classmethod
    def from_json(cls, path: str | Path) -> UNetConfig:
        """`from_dict` of a file, which in a diffusers folder is unet/config.json."""
        return cls.from_dict(read_json(path))

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> UNetConfig:
        """Reads a configuration of `diffusers.UNet2DConditionModel`.

        Keys that change nothing here are ignored; `upcast_attention` is one, since the softmax is
        computed in float32 anyway. `attention_head_dim` is the number of heads, despite its name;
        `num_attention_heads`, where given, goes before it.

        Raises ValueError for a value that is not implemented or makes no sense, naming its key.
        """
        for key, accepted in IMPLEMENTED.items():
            if as_whole(config.get(key, accepted[0])) not in accepted:
                rule = " or ".join(map(repr, accepted))
                got = short(config[key])
                raise ValueError(f"{key} must be {rule} in a UNet's config, got {got}")
        given = {key: value for key, value in config.items() if value is not None}
        given.setdefault("num_attention_heads", given.get("attention_head_dim", 8))

        channels = given.get("block_out_channels", PER_LEVEL["block_out_channels"][0])
        levels = levels_of(channels)
        values: dict[str, Any] = {}
        for key, (default, allowed) in PER_LEVEL.items():
            value = given.get(key, default)
            value = list(value) if isinstance(value, (list, tuple)) else [value] * levels
            value = tuple(map(as_whole, value))
            right = [v in allowed if allowed else type(v) is int and v > 0 for v in value]
            if len(value) != levels or not all(right):
                what = " or ".join(map(str, allowed)) or "a positive int"
                got = short(value)
                raise ValueError(f"{key} must be {what} for each of {levels} levels, got {got}")
            values[key] = value
        for key in ("block_out_channels", "num_attention_heads", "cross_attention_dim"):
            if max(values[key]) > MOST_WIDTH:
                raise ValueError(f"{key} must be at most {MOST_WIDTH}, got {short(values[key])}")
        made = cls(**values, **_scalars(given))

        # Null is a UNet without norms.
        groups = config.get("norm_num_groups", 32) and made.norm_num_groups
        types = zip(made.down_block_types, reversed(made.up_block_types), strict=True)
        for level, pair in enumerate(types):
            dim, heads = made.block_out_channels[level], made.num_attention_heads[level]
            if not groups or dim % groups:
                raise ValueError(f"norm_num_groups must divide {dim} channels, got {short(groups)}")
            attends = level == levels - 1 or DOWN[0] in pair or UP[0] in pair
            if attends and dim % heads:
                key = "attention_head_dim (the number of heads)"
                raise ValueError(f"{key} must divide {dim} channels, got {heads}")
        if made.addition_embed_type == "text_time":
            for key in ("addition_time_embed_dim", "projection_class_embeddings_input_dim"):
                if not getattr(made, key):
                    raise ValueError(f"{key} must be given with text_time embeddings, got none")
        if made.block_out_channels[0] // 2 <= made.freq_shift:
            dim = made.block_out_channels[0]
            raise ValueError(f"block_out_channels must begin with more for a freq_shift, got {dim}")
        return made

    @property
    def layers(self) -> int:
        """How many resnets and transformer blocks there are at least."""
        counts = zip(
            self.layers_per_block,
            self.transformer_layers_per_block,
            self.down_block_types,
            reversed(self.up_block_types),
            strict=True,
        )
        middle = self.transformer_layers_per_block[-1]
        return middle + sum(
            resnets * (2 + transformers * ((down == DOWN[0]) + (up == UP[0])))
            for resnets, transformers, down, up in counts
        )


def _scalars(given: Mapping[str, Any]) -> dict[str, Any]:
    """The values that are one for all levels."""
    sample_size = given.get("sample_size")
    if sample_size is not None:
        sides = sample_size if isinstance(sample_size, (list, tuple)) else [sample_size]
        if len(sides) not in (1, 2):
            raise ValueError(f"sample_size must be a side or height and width, got {short(sides)}")
        sides = [whole({"sample_size": s}, "sample_size", 0, high=MOST_LATENT_CELLS) for s in sides]
        sample_size = sides if len(sides) == 2 else sides[0]
    return {
        "sample_size": sample_size,
        "in_channels": whole(given, "in_channels", 4),
        "out_channels": whole(given, "out_channels", 4),
        "center_input_sample": flag(given, "center_input_sample", False),
        "flip_sin_to_cos": flag(given, "flip_sin_to_cos", True),
        "freq_shift": whole(given, "freq_shift", 0, low=0, high=1),
        "mid_block_scale_factor": _positive(given, "mid_block_scale_factor", 1.0),
        "norm_num_groups": whole(given, "norm_num_groups", 32),
        "norm_eps": _positive(given, "norm_eps", 1e-5),
        "dropout": real(given, "dropout", 0.0, low=0.0),
        "use_linear_projection": flag(given, "use_linear_projection", False),
        "addition_embed_type": given.get("addition_embed_type"),
        "addition_time_embed_dim": whole(given, "addition_time_embed_dim", 0, low=0),
        "projection_class_embeddings_input_dim": whole(
            given, "projection_class_embeddings_input_dim", 0, low=0
        ),
    }


def _positive(given: Mapping[str, Any], key: str, default: float) -> float:
    value = real(given, key, default, low=0.0)
    if not value:
        raise ValueError(f"{key} must be positive, got 0")
    return value
