"""Tensors of safetensors files, and into modules: all of them and no others, never a pickle."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from stal.checked_json import first_line, read_json

PICKLE_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")


def load_safetensors(
    source: str | Path,
    *,
    name: str = "diffusion_pytorch_model",
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
) -> dict[str, Tensor]:
    """Every tensor of a safetensors file, or of the weights called name in a folder.

    A folder may hold one file, shards with an index, or only the fp16 variant of either. Floating
    point is converted to dtype; None keeps it as stored. A CPU tensor that needs no conversion may
    be a map of the file, which must then stay as it is.

    Raises ValueError if there is no such file, or it is not (complete) safetensors.
    """
    tensors: dict[str, Tensor] = {}
    for file in _weight_files(Path(source), name):
        try:
            with safe_open(file, framework="pt", device=str(device)) as opened:
                for key in opened.keys():  # noqa: SIM118 - it is no mapping
                    tensor = opened.get_tensor(key)
                    tensors[key] = tensor.to(dtype) if tensor.is_floating_point() else tensor
        except SafetensorError as error:
            got = f"{first_line(error)}; fetch it again"
            raise ValueError(f"{file} must be a complete safetensors file, got {got}") from error
    return tensors


def load_state(module: nn.Module, state: Mapping[str, Tensor], *, source: str | Path) -> None:
    """Makes the tensors of state the parameters and buffers of module, all of them and no others.

    Assigns, so the module may be on the meta device. source names the origin in errors.
    Raises ValueError for missing, unexpected and misshapen tensors, naming them.
    """
    expected = module.state_dict()
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in expected]
    if missing or unexpected:
        got = [
            f"{len(keys)} {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
            for what, keys in (("missing", missing), ("unexpected", unexpected))
            if keys
        ]
        rule = f"hold the weights of {type(module).__name__} as its config.json says"
        raise ValueError(f"{source} must {rule}, got {' and '.join(got)}")
    wrong = [key for key in expected if expected[key].shape != state[key].shape]
    if wrong:
        key, more = wrong[0], f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        want, got_shape = tuple(expected[key].shape), tuple(state[key].shape)
        rule = f"have shape {want} as the config.json of {source} says"
        raise ValueError(f"{key}{more} must {rule}, got {got_shape}")
    module.load_state_dict(state, strict=True, assign=True)


def _weight_files(source: Path, name: str) -> list[Path]:
    if source.is_file():
        refuse_pickle([source], source)
        return [source]
    for variant in ("", ".fp16"):
        single = source / f"{name}{variant}.safetensors"
        if single.is_file():
            return [single]
        index = source / f"{name}.safetensors.index{variant}.json"
        if index.is_file():
            shards = sorted(set(read_json(index).get("weight_map", {}).values()))
            for shard in shards:
                if Path(shard).name != shard or not (source / shard).is_file():
                    what = f"the shard {shard} that {index.name} names"
                    raise ValueError(f"{source} must hold {what}, got no such file")
            return [source / shard for shard in shards]
    refuse_pickle(source.iterdir() if source.is_dir() else (), source)
    raise ValueError(f"{source} must hold {name}.safetensors (or its shards), got no such file")


def refuse_pickle(files: Iterable[Path], source: Path) -> None:
    """Raises ValueError if one of the files, found in or as `source`, is a pickle."""
    pickles = sorted(file.name for file in files if file.suffix in PICKLE_SUFFIXES)
    if pickles:
        fix = (
            "a pickle can run any code; if you trust it, convert it once with diffusers: "
            "StableDiffusionPipeline.from_pretrained(old_folder).save_pretrained(new_folder)"
        )
        raise ValueError(f"{source} must hold safetensors, got only {', '.join(pickles)}: {fix}")
