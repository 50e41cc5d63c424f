"""Tensors of safetensors files, and into modules: all of them and no others, never a pickle."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from stal.caller import warn
from stal.checked_json import first_line, read_json, shown
from stal.finite import NotFinite, is_finite, way_out

PICKLE_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
# Which variant of a file is read first, by the dtype that is asked for.
_VARIANTS = {
    torch.float16: ("fp16", "fp32", "bf16"),
    torch.bfloat16: ("bf16", "fp32", "fp16"),
}


def load_safetensors(
    source: str | Path,
    *,
    name: str = "diffusion_pytorch_model",
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
) -> dict[str, Tensor]:
    """Every tensor of a safetensors file, or of the weights called name in a folder.

    A folder may hold one file, shards with an index, or a variant (fp16, bf16, ...) of either,
    which is read where there is nothing else. Floating point is converted to dtype; None keeps it
    as stored. A CPU tensor that needs no conversion may be a map of the file, which must then stay
    as it is.

    Raises ValueError if there is no such file, it is not (complete) safetensors, or a number in it
    is not finite.
    """
    return _read(weight_files(Path(source), name, dtype), dtype, device)


@dataclass(frozen=True)
class Weights:
    """The weights in a folder, of which the names and shapes alone have been read.

    shapes: of each tensor, by its name in the files.
    """

    source: Path
    files: tuple[Path, ...]
    dtype: torch.dtype
    shapes: Mapping[str, tuple[int, ...]]

    @staticmethod
    def of(
        source: str | Path, *, dtype: torch.dtype, name: str = "diffusion_pytorch_model"
    ) -> Weights:
        """Arguments and errors are `load_safetensors`'s."""
        files, shapes = weight_files(Path(source), name, dtype), {}
        for file in files:
            with _opened(file, "cpu") as opened:
                for key in opened.keys():  # noqa: SIM118 - it is no mapping
                    shapes[key] = tuple(opened.get_slice(key).get_shape())
        return Weights(Path(source), tuple(files), dtype, shapes)

    def into(
        self,
        module: nn.Module,
        *,
        device: str | torch.device = "cpu",
        rename: Callable[[str], str | None] = lambda key: key,
    ) -> None:
        """Makes them the parameters and buffers of module, which may be on the meta device.

        rename: from a name in the files to the module's; None where a tensor is left out. Names
        and shapes are compared before any number is read. Errors are those of `load_safetensors`
        and `load_state`.
        """

        def renamed(found: Mapping[str, Any]) -> dict[str, Any]:
            return {new: value for key, value in found.items() if (new := rename(key)) is not None}

        check_shapes(module, renamed(self.shapes), source=self.source)
        load_state(module, renamed(_read(self.files, self.dtype, device)), source=self.source)


def _read(
    files: Iterable[Path], dtype: torch.dtype | None, device: str | torch.device
) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for file in files:
        with _opened(file, device) as opened:
            for key in opened.keys():  # noqa: SIM118
                tensors[key] = _converted(opened.get_tensor(key), dtype, f"{shown(key)} in {file}")
    return tensors


def load_state(module: nn.Module, state: Mapping[str, Tensor], *, source: str | Path) -> None:
    """Makes the tensors of state the parameters and buffers of module, all of them and no others.

    Assigns, so the module may be on the meta device. source names the origin in errors.
    Raises ValueError for missing, unexpected and misshapen tensors, naming them.
    """
    check_shapes(module, {key: tuple(value.shape) for key, value in state.items()}, source=source)
    for key, expected in module.state_dict().items():
        if expected.is_floating_point() != state[key].is_floating_point():
            kind = "floating point" if expected.is_floating_point() else "integers"
            raise ValueError(f"{key} must be {kind} in {source}, got {state[key].dtype}")
    module.load_state_dict(state, strict=True, assign=True)


def check_shapes(module: nn.Module, found: Mapping[str, Any], *, source: str | Path) -> None:
    """Raises ValueError unless found are the names and shapes of the module's tensors."""
    expected = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    missing = [key for key in expected if key not in found]
    unexpected = [key for key in found if key not in expected]
    if missing or unexpected:
        got = [
            f"{len(keys)} {what} ({', '.join(map(shown, keys[:3]))}"
            f"{', ...' if len(keys) > 3 else ''})"
            for what, keys in (("missing", missing), ("unexpected", unexpected))
            if keys
        ]
        rule = f"hold the weights of {type(module).__name__} as its config.json says"
        raise ValueError(f"{source} must {rule}, got {' and '.join(got)}")
    wrong = [key for key in expected if expected[key] != found[key]]
    if wrong:
        key, more = wrong[0], f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        rule = f"have shape {expected[key]} as the config.json of {source} says"
        raise ValueError(f"{key}{more} must {rule}, got {found[key]}")


def weight_files(source: Path, name: str, dtype: torch.dtype | None = None) -> list[Path]:
    """The safetensors files that hold the weights called name in a folder, or the file itself.

    Raises ValueError if there are none.
    """
    if source.is_file():
        refuse_pickle([source], source)
        return [source]
    single, index = source / f"{name}.safetensors", source / f"{name}.safetensors.index.json"
    if single.is_file():
        return [single]
    if index.is_file():
        return _shards(index)
    variants = _variants(source, name, dtype)
    if variants:
        if len(variants) > 1:
            first, *rest = variants
            chosen = f"the variant {first} is read, not {', '.join(rest)}"
            warn(f"{source} holds no {single.name}: {chosen}")
        file = next(iter(variants.values()))
        return [file] if file.suffix == ".safetensors" else _shards(file)
    refuse_pickle(source.iterdir() if source.is_dir() else (), source)
    others = sorted(file.name for file in source.glob("*.safetensors"))
    got = f"only {', '.join(others[:3])}" if others else "no such file"
    raise ValueError(f"{source} must hold {single.name} (or its shards), got {got}")


def _variants(source: Path, name: str, dtype: torch.dtype | None) -> dict[str, Path]:
    """File, or index of shards, of each variant there is, the best first."""
    pattern = re.compile(
        rf"{re.escape(name)}\.(?:(?!.*-\d+-of-\d+\.)([\w.-]+)\.safetensors"
        rf"|safetensors\.index\.([\w.-]+)\.json)"
    )
    found: dict[str, Path] = {}
    for file in sorted(source.iterdir()) if source.is_dir() else ():
        match = pattern.fullmatch(file.name)
        if match and file.is_file():
            found.setdefault(match[1] or match[2], file)
    order = _VARIANTS.get(dtype, ("fp32", "fp16", "bf16")) if dtype else ("fp32", "fp16", "bf16")

    def rank(variant: str) -> tuple[bool, int, str]:
        # Weights that were not averaged draw worse.
        kind = variant.split(".")[0]
        place = order.index(kind) if kind in order else len(order)
        return "non_ema" in variant, place, variant

    return {variant: found[variant] for variant in sorted(found, key=rank)}


def _shards(index: Path) -> list[Path]:
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise ValueError(f"{index} must have a weight_map of tensors and files, got none")
    for shard in names.values():
        is_name = isinstance(shard, str) and Path(shard).name == shard
        if not is_name or not (index.parent / shard).is_file():
            what = f"the shard {shown(shard)} that {index.name} names"
            raise ValueError(f"{index.parent} must hold {what}, got no such file")
    return [index.parent / shard for shard in sorted(set(names.values()))]


@contextmanager
def _opened(file: Path, device: str | torch.device) -> Iterator[Any]:
    try:
        with safe_open(file, framework="pt", device=str(device)) as opened:
            yield opened
    except SafetensorError as error:
        got = f"{first_line(error)}; fetch it again"
        raise ValueError(f"{file} must be a complete safetensors file, got {got}") from error


def _converted(tensor: Tensor, dtype: torch.dtype | None, where: str) -> Tensor:
    """Floating point in dtype. Raises NotFinite for a number that is not finite, or not in it."""
    if not tensor.is_floating_point():
        return tensor
    converted = tensor.to(dtype)
    # Types of 8 bits have no minimum in torch.
    if not is_finite(converted.float() if converted.itemsize == 1 else converted):
        # Whether it is the file's fault or the dtype's.
        fits = is_finite(tensor.float() if tensor.itemsize == 1 else tensor)
        fix = way_out(converted.dtype) if fits else ": the file is broken"
        raise NotFinite(f"{where} must be finite, got NaN or infinity{fix}")
    return converted


def refuse_pickle(files: Iterable[Path], source: Path) -> None:
    """Raises ValueError if one of the files, found in or as `source`, is a pickle."""
    pickles = sorted(file.name for file in files if file.suffix in PICKLE_SUFFIXES)
    if pickles:
        fix = (
            "a pickle can run any code; if you trust it, convert it once with diffusers: "
            "StableDiffusionPipeline.from_pretrained(old_folder).save_pretrained(new_folder)"
        )
        raise ValueError(f"{source} must hold safetensors, got only {', '.join(pickles)}: {fix}")
