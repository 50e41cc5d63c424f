"""Bodies of requests and answers. Kinds and ranges are checked here; limits that a server sets, in
`stal.app.limits`; what a model can draw, by the engine."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from stal.weights import Mode

_MOST_SEED = 2**63 - 1
_MOST_SIDE = 1 << 16

Seed = Annotated[int, Field(ge=-(2**63), le=_MOST_SEED)]
Side = Annotated[int, Field(ge=1, le=_MOST_SIDE, description="In pixels.")]
Share = Annotated[float, Field(ge=0, le=1)]
Knot = Annotated[list[Share], Field(min_length=2, max_length=2)]
Weight = Annotated[float, Field(ge=-1000, le=1000)]
Matrix = Annotated[list[Annotated[list[Weight], Field(max_length=1000)]], Field(max_length=1000)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class ImageRequest(_Strict):
    """OpenAI's request, and ours: layout, weights, strength, negative_prompt, steps, seed."""

    prompt: str = Field(min_length=1)
    model: str | None = Field(None, description="As /v1/models names it.")
    n: Annotated[int, Field(ge=1)] | None = None
    size: str | None = Field(None, pattern=r"^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$")
    response_format: Literal["b64_json", "url"] | None = Field(None, description="b64_json.")
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = None
    stream: bool | None = None
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = None
    background: Literal["transparent", "opaque", "auto"] | None = None
    moderation: str | None = Field(None, description="Not looked at; as quality, style and user.")
    quality: str | None = None
    style: str | None = None
    user: str | None = None
    layout: dict[str, Any] | list[Any] | None = Field(
        None, description="Where objects go: JSON of a format of docs/layout.md."
    )
    weights: Matrix | Annotated[list[Weight], Field(max_length=1000)] | None = Field(
        None, description="(steps, objects) or (objects,) numbers."
    )
    strength: Annotated[float, Field(ge=0, le=10)] | None = Field(
        None, description="Multiple of the weights that are used where none are given."
    )
    negative_prompt: str | None = None
    steps: Annotated[int, Field(ge=1)] | None = None
    seed: Seed | None = Field(None, description="Picture i has seed + i; by chance if absent.")


class Image(BaseModel):
    b64_json: str


class Images(BaseModel):
    created: int
    data: list[Image]
    background: str
    output_format: str
    size: str
    seeds: list[int] = Field(description="Of each picture.")
    layout: dict[str, Any] = Field(description="Where the objects were to go.")
    warnings: list[str]


class ServedModel(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ServedModels(BaseModel):
    object: Literal["list"]
    data: list[ServedModel]


class Health(BaseModel):
    status: Literal["ok", "draining"]


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    error: ErrorDetail


class RegionStrength(_Strict):
    """strength: multiple of the mode's first weight, between fractions of the steps."""

    strength: Annotated[float, Field(ge=0, le=4)] = 1.0
    start: Share = 0.0
    stop: Share = 1.0


class Strengths(_Strict):
    """regions: one an object; curve: [t, w] with t ascending, the mode's own if absent."""

    regions: Annotated[list[RegionStrength], Field(max_length=1000)] | None = None
    curve: Annotated[list[Knot], Field(min_length=1, max_length=1000)] | None = None


class WeightsRequest(Strengths):
    objects: Annotated[int, Field(ge=0)]
    steps: Annotated[int, Field(ge=1)]
    attention: Mode = "spatial-temporal"


class WeightsAnswer(BaseModel):
    weights: list[list[float]] = Field(description="(steps, objects)")


class LayoutRequest(_Strict):
    prompt: str = Field(min_length=1)
    width: Side
    height: Side
    seed: Annotated[int, Field(ge=0, le=_MOST_SEED)] | None = Field(
        None, description="The likeliest boxes if absent."
    )


class LayoutAnswer(BaseModel):
    layout: dict[str, Any]


class OpenAnswer(BaseModel):
    layout: dict[str, Any]
    settings: dict[str, Any] | None
    seed: int | None
    regions: list[dict[str, Any]] | None
    curve: list[list[float]] | None


class DrawingRequest(_Strict):
    prompt: str = Field(min_length=1)
    layout: dict[str, Any]
    attention: Mode = "spatial-temporal"
    weights: Strengths | None = None
    negative_prompt: str = ""
    seed: Seed = 0
    steps: Annotated[int, Field(ge=1)] | None = None
    sampler: str | None = None
    guidance_scale: Annotated[float, Field(ge=-1000, le=1000)] | None = None
    width: Side | None = None
    height: Side | None = None
    previews: bool = True


class DrawingAnswer(BaseModel):
    id: str
    position: int


class Word(BaseModel):
    index: int
    text: str


class Words(BaseModel):
    words: list[Word]


class AboutLimits(BaseModel):
    pixels: int
    steps: int
    objects: int
    upload_bytes: int
    images: int
    prompt_chars: int


class About(BaseModel):
    model: str
    width: int
    height: int
    unit: int
    steps: int
    guidance_scale: float
    samplers: list[str]
    default_sampler: str
    words: list[str] | None
    local_prompt: str
    limits: AboutLimits
    version: str
