"""The page and what it calls: GET /, /page/{file}, and everything below /api."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import Response, StreamingResponse

import stal
from stal.app import requests
from stal.app.desk import Commission, Desk
from stal.app.events import HEARTBEAT
from stal.app.heat import as_png, heat, words_of
from stal.app.images_routes import model_id
from stal.app.limits import Limits, at_most
from stal.app.page_files import INDEX, PageFile
from stal.app.problems import Problem
from stal.app.schema import (
    About,
    AboutLimits,
    DrawingAnswer,
    DrawingRequest,
    LayoutAnswer,
    LayoutRequest,
    OpenAnswer,
    WeightsAnswer,
    WeightsRequest,
    Word,
    Words,
)
from stal.app.script import script
from stal.app.strengths import weights_of
from stal.pipeline import Pipeline
from stal.sampler import SAMPLERS
from stal.schedule import schedule_from_config
from stal.settings import Settings, refers_to_prompt

UPLOAD = "/api/open"
# Paths that need no key: a browser opens the page without one, and then sends it.
PUBLIC = ("/", "/page/", "/health")
_BINARY = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}


def about(pipe: Pipeline, limits: Limits) -> About:
    """What the page needs to know of the server."""
    full = requests.completed(pipe, Settings())
    schedule = schedule_from_config(pipe.model.components.scheduler_config, full.steps)
    words = pipe.defaults.words
    return About(
        model=model_id(pipe.model),
        width=full.width,
        height=full.height,
        unit=pipe.model.scale_factor,
        steps=full.steps,
        guidance_scale=full.guidance_scale,
        samplers=list(SAMPLERS),
        default_sampler=schedule.sampler,
        words=None if words is None else list(words),
        local_prompt=pipe.defaults.local_prompt,
        limits=AboutLimits(
            pixels=limits.pixels,
            steps=limits.steps,
            objects=limits.objects,
            upload_bytes=limits.upload_bytes,
            images=limits.images,
            prompt_chars=limits.prompt_chars,
        ),
        version=stal.__version__,
    )


def page_routes(files: Mapping[str, PageFile]) -> APIRouter:
    """The page's own files."""
    router = APIRouter()

    def answer(name: str, request: Request) -> Response:
        file = files.get(name)
        if file is None:
            raise Problem(404, "the page must have the file, it has none of that name")
        headers = {"ETag": file.etag, "Cache-Control": "no-cache"}
        if request.headers.get("if-none-match") == file.etag:
            return Response(status_code=304, headers=headers)
        return Response(file.data, media_type=file.media_type, headers=headers)

    @router.get("/", include_in_schema=False)
    async def index(request: Request) -> Response:
        return answer(INDEX, request)

    @router.get("/page/{file}", include_in_schema=False)
    async def page_file(file: str, request: Request) -> Response:
        return answer(file, request)

    return router


def api_routes(desk_of: Any, responses: dict[int | str, dict[str, Any]]) -> APIRouter:
    """What the page calls. desk_of: from a request to the application's desk."""
    router = APIRouter(prefix="/api", responses=responses)

    @router.get("/about")
    async def read_about(request: Request) -> About:
        desk: Desk = desk_of(request)
        return about(desk.engine.pipe, desk.limits)

    @router.post("/layout")
    async def predict_layout(body: LayoutRequest, request: Request) -> LayoutAnswer:
        desk: Desk = desk_of(request)
        found = await desk.checked(lambda: requests.predicted(body, desk.limits))
        return LayoutAnswer(layout=found)

    @router.post("/open", openapi_extra={"requestBody": {"required": True, "content": _BINARY}})
    async def open_file(
        request: Request,
        name: Annotated[str | None, Query(description="Of the file; not looked at.")] = None,
        width: Annotated[int | None, Query(ge=1, le=1 << 16)] = None,
        height: Annotated[int | None, Query(ge=1, le=1 << 16)] = None,
    ) -> OpenAnswer:
        desk: Desk = desk_of(request)
        data, pipe = await request.body(), desk.engine.pipe
        found = await desk.checked(
            lambda: requests.opened(data, pipe, desk.limits, width=width, height=height)
        )
        return OpenAnswer(**found)

    @router.post("/weights")
    async def show_weights(body: WeightsRequest, request: Request) -> WeightsAnswer:
        desk: Desk = desk_of(request)
        at_most("objects", body.objects, desk.limits.objects)
        at_most("steps", body.steps, desk.limits.steps)
        full = requests.completed(desk.engine.pipe, Settings(attention=body.attention))
        found = weights_of(
            body,
            steps=body.steps,
            objects=body.objects,
            mode=body.attention,
            rule=full.rule,
            reference_is_prompt=refers_to_prompt(full),
        )
        return WeightsAnswer(weights=found.tolist())

    @router.post("/drawings", status_code=202)
    async def draw(body: DrawingRequest, request: Request) -> DrawingAnswer:
        desk: Desk = desk_of(request)
        page = None if body.weights is None else body.weights.model_dump()
        commission = await desk.submit(
            lambda: requests.of_drawing(body, desk.engine.pipe, desk.limits),
            previews=None if body.previews else frozenset(),
            page=page,
            keep=True,
        )
        return DrawingAnswer(id=commission.id, position=desk.position(commission))

    @router.get("/drawings/{id}/events", response_class=StreamingResponse)
    async def follow(
        id: str, request: Request, last_event_id: Annotated[str | None, Header()] = None
    ) -> StreamingResponse:
        desk: Desk = desk_of(request)
        after = int(last_event_id[:18]) if last_event_id and last_event_id.isdecimal() else 0
        stream = _events(desk, desk.find(id), after)
        headers = {"X-Accel-Buffering": "no"}
        return StreamingResponse(stream, media_type="text/event-stream", headers=headers)

    @router.get("/drawings/{id}/picture.png", response_class=Response)
    async def picture(id: str, request: Request) -> Response:
        commission, _ = desk_of(request).finished(id)
        commission.fetched = True
        headers = {"Content-Disposition": 'inline; filename="stal.png"'}
        return Response(commission.files[0], media_type="image/png", headers=headers)

    @router.get("/drawings/{id}/words")
    async def words(id: str, request: Request) -> Words:
        desk: Desk = desk_of(request)
        _, result = desk.finished(id)
        model, prompt = desk.engine.pipe.model, result.settings["prompt"]
        found = await desk.checked(lambda: words_of(model, prompt))
        return Words(words=[Word(index=i, text=text) for i, (text, _) in enumerate(found)])

    @router.get("/drawings/{id}/attention", response_class=Response)
    async def attention(id: str, request: Request, word: Annotated[int, Query(ge=0)]) -> Response:
        desk: Desk = desk_of(request)
        commission, result = desk.finished(id)
        if commission.heat is None:
            model, step = desk.engine.pipe.model, commission.middle
            latents = commission.latents
            commission.heat = await desk.heated(lambda: heat(model, result, latents, step))
        maps = commission.heat
        if word >= len(maps):
            rule = f"word must be one of {len(maps)}, counted from 0, got {word}"
            raise Problem(404, rule, param="word")
        size = result.settings["width"], result.settings["height"]
        made = await desk.heated(lambda: as_png(maps[word], size))
        return Response(made, media_type="image/png")

    @router.get("/drawings/{id}/code", response_class=Response)
    async def code(id: str, request: Request) -> Response:
        _, result = desk_of(request).finished(id)
        return Response(script(result.settings), media_type="text/plain; charset=utf-8")

    @router.delete("/drawings/{id}", status_code=204)
    async def cancel(id: str, request: Request) -> Response:
        desk: Desk = desk_of(request)
        desk.forget(desk.find(id))
        return Response(status_code=204)

    return router


async def _events(desk: Desk, commission: Commission, after: int) -> AsyncIterator[bytes]:
    desk.enter(commission)
    try:
        async with aclosing(commission.log.follow(after)) as events:
            async for event in events:
                yield HEARTBEAT if event is None else event.encoded()
    finally:
        desk.leave(commission)
