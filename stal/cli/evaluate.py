"""`stal evaluate`: methods compared on the same prompts and noise. Heavy imports happen late."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stal.budget import MOST_IMAGES
from stal.cli.options import (
    ClipOption,
    DeviceOption,
    DType,
    ModelOption,
    QuietOption,
    SamplerOption,
    torch_dtype,
)
from stal.extras import check_installed

if TYPE_CHECKING:
    from stal.evaluation.detectors import Background, Detector
    from stal.evaluation.prompt_files import PromptCase
    from stal.layout import Layout
    from stal.pipeline import Pipeline
    from stal.settings import Settings


class Layouts(str, Enum):
    predicted = "predicted"
    placed = "placed"
    given = "given"


# Options that take more than a line.
_Prompts = Annotated[
    str, typer.Option(help="File of prompts, or shapes:N[:COUNTS[:SEED]] like shapes:100:2,3.")
]
_Seeds = Annotated[
    int, typer.Option(min=1, max=MOST_IMAGES, help="Images of a prompt by each method.")
]
_Layouts = Annotated[
    Layouts,
    typer.Option(help="By the learned predictor, by rules alone, or those of the file."),
]
_Detector = Annotated[
    str, typer.Option(help="shapes, or a folder with OWLv2, OWL-ViT or Grounding DINO.")
]
_MinScore = Annotated[
    float | None, typer.Option(help="Of what the detector of a folder finds. [0.3]")
]


def evaluate(
    prompts: _Prompts,
    methods: Annotated[str, typer.Option(help="Comma-separated, ours last.")],
    output: Annotated[Path, typer.Option(help="Folder for the results; a killed run resumes.")],
    seeds: _Seeds = 2,
    layouts: _Layouts = Layouts.predicted,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first prompts.")] = None,
    model: ModelOption = None,
    detector: _Detector = "shapes",
    min_score: _MinScore = None,
    clip: ClipOption = None,
    sampler: SamplerOption = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps.")] = None,
    guidance_scale: float | None = None,
    batch: Annotated[int, typer.Option(min=1, help="Images drawn at once.")] = 8,
    dtype: DType = DType.float32,
    device: DeviceOption = "cpu",
    quiet: QuietOption = False,
) -> None:
    """Compare METHODS on PROMPTS: what is drawn, where, with which attributes, at what cost."""
    names = _names(methods)
    _check_needs(detector, min_score)
    cases = _read_cases(prompts, layouts, limit)

    from stal.evaluation.harness import check_command, opened, run
    from stal.evaluation.report import write_report

    command: dict[str, Any] = {
        "prompts": Path(prompts).name,
        "cases": _digest([(c.prompt, c.objects, c.relations) for c in cases]),
        "methods": names,
        "seeds": seeds,
        "layouts": layouts.value,
        "model": model or "",
        "detector": detector,
        "min_score": min_score,
        "clip": None if clip is None else str(clip),
        "sampler": sampler,
        "steps": steps,
        "guidance_scale": guidance_scale,
        "dtype": dtype.value,
        "device": device,
    }
    check_command(output, command)

    from stal.evaluation.methods import draw
    from stal.model.model import enough_memory
    from stal.pipeline import Pipeline
    from stal.settings import Settings

    _check_methods(names)
    pipe = Pipeline.from_pretrained(model, dtype=torch_dtype(dtype), device=device)
    command |= _about(pipe)
    check_command(output, command)
    _check_clip(names, pipe)
    _check_words(cases, pipe)
    scorer = _load_clip(clip, pipe, device)
    see, background = _load_detector(detector, scorer, min_score, device)
    placed = _placed(cases, layouts, pipe)
    command["boxes"] = _digest(placed)
    settings = Settings(sampler=sampler, steps=steps, guidance_scale=guidance_scale)
    _check_drawing(cases, placed, scorer, pipe, settings)
    fix = "run the same command with a smaller --batch, it goes on where it stopped"
    with opened(output, command), enough_memory(device, fix):
        rows = run(
            output,
            cases,
            pipe=pipe,
            draw=draw,
            methods=names,
            layouts=placed,
            seeds=seeds,
            settings=settings,
            detector=see,
            scorer=scorer,
            background=background,
            batch=batch,
            quiet=quiet,
        )
        write_report(output, rows, names, title=f"{Path(prompts).name}, layouts {layouts.value}")
    print(output / "summary.md", flush=True)


def _names(methods: str) -> list[str]:
    names = [name.strip() for name in methods.split(",") if name.strip()]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"methods must be different names like plain,spatial, got {methods!r}")
    return names


def _check_needs(detector: str, min_score: float | None) -> None:
    """Raises ValueError for what is missing beside an option, and for the plots."""
    if min_score is not None and detector == "shapes":
        raise ValueError("min_score must come with the detector of a folder")
    check_installed("matplotlib", "the plots")


def _check_methods(names: Sequence[str]) -> None:
    from stal.evaluation.methods import METHODS

    strange = [name for name in names if name not in METHODS]
    if strange:
        known, got = ", ".join(METHODS), ", ".join(strange)
        raise ValueError(f"methods must be among {known}, got {got}")


def _check_clip(names: Sequence[str], pipe: Pipeline) -> None:
    """Before anything is drawn: methods that optimise want the model's own CLIP."""
    from stal.evaluation.methods import NEED_CLIP
    from stal.model.model import clip_folder

    needing = [name for name in names if name in NEED_CLIP]
    folder = clip_folder(pipe.model)
    if needing and not folder.is_dir():
        got = f"{', '.join(needing)} and no {folder}"
        raise ValueError(f"methods must not need CLIP where the model has none, got {got}")


def _read_cases(prompts: str, layouts: Layouts, limit: int | None) -> list[PromptCase]:
    from stal.evaluation.prompt_files import read_cases

    cases = read_cases(prompts, limit=limit)
    if layouts == Layouts.given and any(case.layout is None for case in cases):
        raise ValueError(f"layouts must be predicted or placed: {prompts} has none")
    return cases


def _digest(values: Sequence[Any]) -> str:
    return hashlib.sha256(repr(values).encode()).hexdigest()[:16]


def _about(pipe: Pipeline) -> dict[str, Any]:
    """What of the model its pictures depend on, as JSON has it: a tuple is a list there."""
    from stal.evaluation.harness import fingerprint

    defaults = json.loads(json.dumps(asdict(pipe.defaults)))
    return {"weights": fingerprint(pipe), "defaults": defaults}


def _check_words(cases: Sequence[PromptCase], pipe: Pipeline) -> None:
    """Before anything is drawn: the bundled model knows few words."""
    from stal.prompts import drawn_text

    for case in cases:
        strange = pipe.defaults.unknown_words([drawn_text(case.prompt)])
        if strange:
            fix = "use prompts of its world, such as shapes:100, or another --model"
            got = ", ".join(strange[:3])
            raise ValueError(
                f"{case.where}: prompts must use words that the model knows, got {got}: {fix}"
            )


def _load_clip(clip: Path | None, pipe: Pipeline, device: str) -> Any:
    from stal.model.clip import load
    from stal.model.model import clip_folder

    folder = clip or clip_folder(pipe.model)
    if clip is None and not folder.is_dir():
        return None
    return load(folder, device=device)


def _load_detector(
    name: str, scorer: Any, min_score: float | None, device: str
) -> tuple[Detector, Background | None]:
    """What sees the objects of a picture, and its background if anything does."""
    from stal.evaluation import detectors

    if name == "shapes":
        return detectors.shapes, detectors.shapes_background
    if scorer is None:
        raise ValueError("clip must be given with the detector of a folder: it tells attributes")
    score = detectors.MIN_SCORE if min_score is None else min_score
    return detectors.zero_shot(name, scorer, min_score=score, device=device), None


def _placed(cases: Sequence[PromptCase], source: Layouts, pipe: Pipeline) -> list[Layout]:
    from stal.layout import place
    from stal.layout.predictor import bundled
    from stal.prompts import parse

    if source == Layouts.given:
        return [case.layout for case in cases if case.layout is not None]
    side = pipe.model.unet.config.sample_size
    aspect = side[1] / side[0] if isinstance(side, (tuple, list)) else 1.0
    found = [parse(case.prompt) for case in cases]
    if source == Layouts.placed:
        return [place(each, aspect=aspect) for each in found]
    placed: list[Layout] = []
    for start in range(0, len(found), 64):
        many = bundled().predict(found[start : start + 64], aspect=aspect)
        placed += [each[0] for each in many]
    return placed


def _check_drawing(
    cases: Sequence[PromptCase],
    layouts: Sequence[Layout],
    scorer: Any,
    pipe: Pipeline,
    settings: Settings,
) -> None:
    """Settings that no method takes, and texts that CLIP cannot read, before anything is drawn."""
    from stal.evaluation.harness import texts_of

    pipe.prepare([cases[0].prompt], replace(settings, attention="plain"))
    if scorer is None:
        return
    for case, layout in zip(cases, layouts, strict=True):
        try:
            scorer.texts(texts_of(case.prompt, layout))
        except ValueError as error:
            raise ValueError(f"{case.where}: {error}") from None
