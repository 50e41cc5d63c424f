"""Options that several commands take, and checks of the files that they write."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stal.files import check_writable

if TYPE_CHECKING:
    import torch


class DType(str, Enum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class AttentionMode(str, Enum):
    plain = "plain"
    spatial = "spatial"
    spatial_temporal = "spatial-temporal"


class RuleName(str, Enum):
    guidance = "guidance"
    convex = "convex"


ModelOption = Annotated[
    str | None, typer.Option(help="Diffusers folder or hub name; the bundled model if absent.")
]
ClipOption = Annotated[
    Path | None, typer.Option(help="Folder of a CLIP model; clip in the model's if absent.")
]
SamplerOption = Annotated[
    str | None, typer.Option(help="ddim, plms, dpm++2m, euler, euler-ancestral.")
]
StepsOption = Annotated[int | None, typer.Option(help="Denoising steps.")]
AttentionOption = Annotated[AttentionMode | None, typer.Option(help="[spatial-temporal]")]
RuleOption = Annotated[RuleName | None, typer.Option(help="How weights combine. [guidance]")]
ReferenceOption = Annotated[
    str | None, typer.Option(help="'unconditional', or a prompt to move away from.")
]
BackgroundOption = Annotated[
    float | None, typer.Option(help="Pull of the background to the reference prompt.")
]
EtaOption = Annotated[float | None, typer.Option(help="Fresh noise of ddim, 0 to 1. [0]")]
SideOption = Annotated[int | None, typer.Option(help="In pixels.")]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps.")]
CanvasOption = Annotated[
    str | None,
    typer.Option(help="Pixels that the layout's boxes lie in. [64x64 LayoutGPT, 512x512 LMD]"),
]
QuietOption = Annotated[bool, typer.Option("--quiet", help="No progress bar.")]


def canvas_size(text: str | None) -> tuple[float, float] | None:
    """Width and height of an option like 512x512; None if it is absent."""
    if text is None:
        return None
    try:
        width, height = text.lower().split("x")
        return float(width), float(height)
    except ValueError:
        raise ValueError(f"canvas must be like 512x512, got {text!r}") from None


def torch_dtype(dtype: DType) -> torch.dtype:
    """What torch calls it."""
    import torch

    return getattr(torch, dtype.value)


def outputs(
    output: Path | None, json_file: Path | None, *, pictures: int = 1, jsons: int = 1
) -> tuple[list[Path], list[Path]]:
    """The paths of pictures and JSON files to write, checked before anything slow begins.

    Of several, FILE.png stands for FILE-0.png, FILE-1.png, ...; None for no file at all.

    Raises:
        ValueError: a picture's name does not end in .png, a file cannot be written, or one would
            replace another.
    """
    if output is not None and output.suffix.lower() != ".png":
        raise ValueError(
            f"output must be a PNG file, got {output}: name it {output.stem or 'stal'}.png"
        )
    picture_paths, json_paths = _numbered(output, pictures), _numbered(json_file, jsons)
    for path in picture_paths:
        check_writable(path)
    for path in json_paths:
        check_writable(path, name="json")
    if {path.resolve() for path in picture_paths} & {path.resolve() for path in json_paths}:
        raise ValueError(f"json must be another file than output, got {json_file}")
    return picture_paths, json_paths


def _numbered(file: Path | None, count: int) -> list[Path]:
    if file is None:
        return []
    return [file] if count == 1 else [file.with_stem(f"{file.stem}-{i}") for i in range(count)]


def check_apart(written: Path, read: Path | None, *, name: str, read_name: str) -> None:
    """Raises ValueError if writing one file, called name, would replace what is read."""
    if read is not None and read.resolve() == written.resolve():
        raise ValueError(f"{name} must be another file than {read_name}, got {written}")
