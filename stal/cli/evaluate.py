"""`stal evaluate`: methods compared on the same prompts and noise. Heavy imports happen late."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Sequence
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from stal.evaluation.prompt_files import Case
    from stal.layout import Layout
    from stal.pipeline import Pipeline


class Layouts(str, Enum):
    predicted = "predicted"
    placed = "placed"
    given = "given"


class DType(str, Enum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def evaluate(
    prompts: Annotated[
        str, typer.Option(help="File of prompts, or shapes:N[:COUNTS[:SEED]] like shapes:100:2,3.")
    ],
    methods: Annotated[str, typer.Option(help="Comma-separated, ours last.")],
    output: Annotated[Path, typer.Option(help="Folder for the results; a killed run resumes.")],
    seeds: Annotated[int, typer.Option(min=1, help="Images of a prompt by each method.")] = 2,
    layouts: Annotated[
        Layouts,
        typer.Option(help="By the learned predictor, by rules alone, or those of the file."),
    ] = Layouts.predicted,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first prompts.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Diffusers folder or hub name; the bundled model if absent.")
    ] = None,
    detector: Annotated[
        str, typer.Option(help="shapes, or a folder with OWLv2, OWL-ViT or Grounding DINO.")
    ] = "shapes",
    min_score: Annotated[
        float | None, typer.Option(help="Of what the detector of a folder finds. [0.3]")
    ] = None,
    clip: Annotated[
        Path | None, typer.Option(help="Folder of a CLIP model; clip in the model's if absent.")
    ] = None,
    sampler: Annotated[str | None, typer.Option(help="As in `stal generate`.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps.")] = None,
    guidance_scale: Annotated[float | None, typer.Option()] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images drawn at once.")] = 8,
    dtype: Annotated[DType, typer.Option()] = DType.float32,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps.")] = "cpu",
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
) -> None:
    """Compare METHODS on PROMPTS: what is drawn, where, with which attributes, at what cost."""
    from stal.evaluation.prompt_files import read_cases

    names = [name.strip() for name in methods.split(",") if name.strip()]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"methods must be different names like plain,spatial, got {methods!r}")
    if min_score is not None and detector == "shapes":
        raise ValueError("min_score must come with the detector of a folder")
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("matplotlib must be installed for the plots: pip install 'stal[plot]'")
    cases = read_cases(prompts, limit=limit)
    if layouts == Layouts.given and any(case.layout is None for case in cases):
        raise ValueError(f"layouts must be predicted or placed: {prompts} has none")

    from stal.evaluation.harness import check_command, fingerprint, opened, run
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

    import torch

    from stal.evaluation import detectors
    from stal.evaluation.methods import METHODS, draw
    from stal.model.model import enough_memory
    from stal.pipeline import Pipeline
    from stal.settings import Settings

    strange = [name for name in names if name not in METHODS]
    if strange:
        known, got = ", ".join(METHODS), ", ".join(strange)
        raise ValueError(f"methods must be among {known}, got {got}")
    pipe = Pipeline.from_pretrained(model, dtype=getattr(torch, dtype.value), device=device)
    command["weights"] = fingerprint(pipe)
    # As JSON has it, a tuple being a list there.
    command["defaults"] = json.loads(json.dumps(asdict(pipe.defaults)))
    check_command(output, command)
    _check_words(cases, pipe)
    scorer = _scorer(clip, pipe, device)
    if detector == "shapes":
        see: detectors.Detector = detectors.shapes
    elif scorer is None:
        raise ValueError("clip must be given with the detector of a folder: it tells attributes")
    else:
        score = detectors.MIN_SCORE if min_score is None else min_score
        see = detectors.zero_shot(detector, scorer, min_score=score, device=device)
    placed = _layouts(cases, layouts, pipe)
    command["boxes"] = _digest(placed)
    if scorer is not None:
        _check_texts(cases, placed, scorer)
    with opened(output, command):
        fix = "run the same command with a smaller --batch, it goes on where it stopped"
        with enough_memory(device, fix):
            rows = run(
                output,
                cases,
                pipe=pipe,
                draw=draw,
                methods=names,
                layouts=placed,
                seeds=seeds,
                settings=Settings(sampler=sampler, steps=steps, guidance_scale=guidance_scale),
                detector=see,
                scorer=scorer,
                background=detectors.shapes_background if detector == "shapes" else None,
                batch=batch,
                quiet=quiet,
            )
        write_report(output, rows, names, title=f"{Path(prompts).name}, layouts {layouts.value}")
    print(output / "summary.md", flush=True)


def _digest(values: Sequence[Any]) -> str:
    return hashlib.sha256(repr(values).encode()).hexdigest()[:16]


def _check_words(cases: Sequence[Case], pipe: Pipeline) -> None:
    """Before anything is drawn: the bundled model knows few words."""
    for case in cases:
        strange = pipe.defaults.unknown_words(case.prompt)
        if strange:
            fix = "use prompts of its world, such as shapes:100, or another --model"
            got = ", ".join(strange[:3])
            raise ValueError(
                f"{case.where}: prompts must use words that the model knows, got {got}: {fix}"
            )


def _scorer(clip: Path | None, pipe: Pipeline, device: str) -> Any:
    from stal.model.clip import load
    from stal.model.model import clip_folder

    folder = clip or clip_folder(pipe.model)
    if clip is None and not folder.is_dir():
        return None
    return load(folder, device=device)


def _layouts(cases: Sequence[Case], source: Layouts, pipe: Pipeline) -> list[Layout]:
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


def _check_texts(cases: Sequence[Case], layouts: Sequence[Layout], scorer: Any) -> None:
    """Encodes every text once, so that one that CLIP cannot read is found before the drawing."""
    from stal.evaluation.harness import texts_of

    for case, layout in zip(cases, layouts, strict=True):
        try:
            scorer.texts(texts_of(case.prompt, layout))
        except ValueError as error:
            raise ValueError(f"{case.where}: {error}") from None
