"""What a body asks for as a request of the engine, within the limits. No path is ever read: where
`stal.Pipeline` would open a file, texts of bodies are JSON or refused."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from pydantic import ValidationError

from stal import picture
from stal.app import limits as limit
from stal.app.limits import Limits
from stal.app.problems import Problem
from stal.app.schema import DrawingRequest, ImageRequest, LayoutRequest, Strengths
from stal.app.strengths import weights_of
from stal.batch import Request
from stal.checked_json import is_integer
from stal.fitting import misfits
from stal.layout import Layout
from stal.layout.formats import as_layout, read_layout_text
from stal.layout.predictor import predict
from stal.pipeline import Pipeline
from stal.prompts import article, noun_of, parse
from stal.settings import Complete, Settings, complete, refers_to_prompt

_PNG = b"\x89PNG\r\n\x1a\n"
# Settings of a picture that the page can set; others are the model's own or the layout's.
_PAGE_SETTINGS = (
    *("attention", "negative_prompt", "steps", "sampler", "guidance_scale", "width", "height"),
)


def completed(pipe: Pipeline, settings: Settings) -> Complete:
    """With the model's own values. Raises ValueError for one that breaks its rule."""
    return complete(
        settings,
        pipe.defaults,
        sample_size=pipe.model.unet.config.sample_size,
        unit=pipe.model.scale_factor,
    )


def of_images(body: ImageRequest, pipe: Pipeline, limits: Limits) -> Request:
    """What OpenAI's request asks for. Raises Problem and ValueError."""
    if body.response_format == "url":
        rule = "response_format must be b64_json, got url: pictures are not kept"
        raise Problem(400, rule, param="response_format")
    if body.background == "transparent":
        raise Problem(400, "background must be opaque, got transparent", param="background")
    if body.weights is not None and body.strength is not None:
        raise Problem(400, "strength must be given without weights, got both", param="strength")
    limit.at_most("n", body.n or 1, limits.images)
    width, height = _size(body.size)
    settings = Settings(
        negative_prompt=body.negative_prompt or "",
        num_images=body.n or 1,
        steps=body.steps,
        width=width,
        height=height,
    )
    full = _within(settings, pipe, limits)
    limit.check_text("prompt", body.prompt, limits)
    layout = None  # the engine predicts one
    if body.layout is None:
        found = parse(body.prompt).objects
        limit.check_count(found, limits)
        objects = len(found)
    else:
        # A mapping or a list: of a text alone it would be a file's name.
        layout = as_layout(
            body.layout,
            prompt=body.prompt,
            aspect=full.width / full.height,
            noun_of=noun_of,
            article=article,
        )
        limit.check_layout(layout, limits)
        objects = len(layout.objects)
    weights: Any = body.weights
    if body.strength is not None:
        weights = body.strength * _weights(Strengths(), full, objects)
    seed = secrets.randbelow(2**31) if body.seed is None else body.seed
    return Request(body.prompt, settings, layout, weights, seed)


def of_drawing(body: DrawingRequest, pipe: Pipeline, limits: Limits) -> Request:
    """What the page asks for. Raises Problem and ValueError."""
    settings = Settings(
        attention=body.attention,
        negative_prompt=body.negative_prompt,
        sampler=body.sampler,
        steps=body.steps,
        guidance_scale=body.guidance_scale,
        width=body.width,
        height=body.height,
    )
    full = _within(settings, pipe, limits)
    limit.check_text("prompt", body.prompt, limits)
    layout = layout_of(body.layout)
    limit.check_layout(layout, limits)
    weights = None
    if body.weights is not None and body.attention != "plain":
        weights = _weights(body.weights, full, len(layout.objects))
    return Request(body.prompt, settings, layout, weights, body.seed)


def predicted(body: LayoutRequest, limits: Limits) -> dict[str, Any]:
    """The layout of a prompt, as the page has it, with what there is to say of it."""
    limit.check_size(body.width, body.height, limits)
    limit.check_text("prompt", body.prompt, limits)
    layout = predict(parse(body.prompt), aspect=body.width / body.height, seed=body.seed)
    limit.check_count(layout.objects, limits)
    said = misfits(body.prompt, layout, given=False)
    said += [f"the layout does not keep that {layout.say(each)}" for each in layout.violated]
    return {**layout_json(layout), "warnings": said}


def opened(
    data: bytes, pipe: Pipeline, limits: Limits, *, width: int | None, height: int | None
) -> dict[str, Any]:
    """What an uploaded file holds: a picture's settings and layout, or a layout.

    width, height: of the canvas, for what does not say its own.
    """
    if data.startswith(_PNG):
        record = picture.record_in(data, name="the picture")
        layout = layout_of(record.get("layout"))
        limit.check_count(layout.objects, limits)
        settings = {name: record[name] for name in _PAGE_SETTINGS if record.get(name) is not None}
        full = completed(pipe, Settings(**settings))
        known = asdict(full)
        strengths = _strengths(record.get("page"))
        said = []
        if record.get("model", "") != pipe.model.name:
            said.append("the picture was drawn by another model, this one draws it differently")
        return {
            "layout": {**layout_json(replace(layout, prompt=record["prompt"])), "warnings": said},
            "settings": {name: known[name] for name in settings},
            "seed": _seed(record.get("seeds")),
            **strengths.model_dump(),
        }
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        rule = "the file must be a picture of stal's (PNG) or a layout (text in UTF-8), got others"
        raise Problem(400, rule) from None
    layout = _layout_text(text, width, height)
    limit.check_count(layout.objects, limits)
    answer = {"layout": {**layout_json(layout), "warnings": []}}
    return {**answer, **dict.fromkeys(("settings", "seed", "regions", "curve"))}


def _layout_text(text: str, width: int | None, height: int | None) -> Layout:
    if width is None or height is None:
        return read_layout_text(text, noun_of=noun_of, article=article)
    try:
        # Programs whose boxes are in pixels of their own canvas.
        return read_layout_text(text, noun_of=noun_of, article=article, aspect=width / height)
    except ValueError:
        canvas = float(width), float(height)
        return read_layout_text(text, noun_of=noun_of, article=article, canvas=canvas)


def layout_of(data: Any) -> Layout:
    """A layout in our own JSON, as a value; what the page adds is left out."""
    if not isinstance(data, Mapping):
        raise ValueError("layout must be an object, got another value")
    own = {key: value for key, value in data.items() if key != "warnings"}
    return Layout.from_json(json.dumps(own), noun_of=noun_of)


def layout_json(layout: Layout) -> dict[str, Any]:
    """The value of a layout's own JSON."""
    value: dict[str, Any] = json.loads(layout.to_json())
    return value


def _weights(strengths: Strengths, full: Complete, objects: int) -> Any:
    return weights_of(
        strengths,
        steps=full.steps,
        objects=objects,
        mode=full.attention,
        rule=full.rule,
        reference_is_prompt=refers_to_prompt(full),
    )


def _within(settings: Settings, pipe: Pipeline, limits: Limits) -> Complete:
    """The settings, completed. Raises Problem if they ask for more than the limits allow."""
    full = completed(pipe, settings)
    limit.at_most("steps", full.steps, limits.steps)
    limit.check_size(full.width, full.height, limits)
    limit.check_text("negative_prompt", settings.negative_prompt, limits)
    return full


def _size(size: str | None) -> tuple[int | None, int | None]:
    if size in (None, "auto"):
        return None, None
    width, height = str(size).split("x")
    return int(width), int(height)


def _seed(seeds: Any) -> int | None:
    first: Any = seeds[0] if isinstance(seeds, list) and seeds else None
    return int(first) if is_integer(first) and -(2**63) <= first < 2**63 else None


def _strengths(data: Any) -> Strengths:
    """What the page left in a picture; none where somebody else wrote something there."""
    try:
        return Strengths.model_validate({} if data is None else data)
    except ValidationError:
        return Strengths()
