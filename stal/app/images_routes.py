"""OpenAI's interface: POST /v1/images/generations and GET /v1/models."""

from __future__ import annotations

import asyncio
import json
import time
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import aclosing
from io import BytesIO
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from stal.app import requests
from stal.app.desk import Commission, Desk
from stal.app.events import HEARTBEAT
from stal.app.problems import Problem
from stal.app.schema import ImageRequest, Images, ServedModel, ServedModels
from stal.batch import Result
from stal.model.model import Model

# What nobody reads any more, as other servers number it.
_CLIENT_GONE = 499
_QUALITY = 90


def model_id(model: Model) -> str:
    """How the server calls a model: the last part of its name; the bundled one "stal-shapes"."""
    name = model.name.replace("\\", "/").rstrip("/").rpartition("/")[2]
    return name or "stal-shapes"


def routes(desk_of: Any, responses: dict[int | str, dict[str, Any]]) -> APIRouter:
    """The router. desk_of: from a request to the application's desk."""
    router = APIRouter(responses=responses)
    created = int(time.time())

    def served(desk: Desk) -> ServedModel:
        name = model_id(desk.engine.pipe.model)
        return ServedModel(id=name, object="model", created=created, owned_by="stal")

    @router.get("/v1/models")
    async def list_models(request: Request) -> ServedModels:
        return ServedModels(object="list", data=[served(desk_of(request))])

    @router.get("/v1/models/{model}")
    async def read_model(model: str, request: Request) -> ServedModel:
        found = served(desk_of(request))
        _check_model(model, found.id)
        return found

    @router.post("/v1/images/generations", response_model=Images)
    async def generate_images(body: ImageRequest, request: Request) -> Response:
        desk: Desk = desk_of(request)
        pipe = desk.engine.pipe
        _check_model(body.model, model_id(pipe.model))
        pictures = body.n or 1
        # Before anything is computed: a server that is full says so at once.
        desk.check_room(min(pictures, desk.limits.images))
        steps = body.steps or pipe.defaults.steps
        partial = _partial_steps(steps, body.partial_images or 0) if body.stream else frozenset()
        commission = await desk.submit(
            lambda: requests.of_images(body, pipe, desk.limits),
            pictures=min(pictures, desk.limits.images),
            previews=partial,
        )
        if body.stream:
            stream = _stream(desk, commission, body)
            return StreamingResponse(stream, media_type="text/event-stream")
        await _over_or_gone(request, commission)
        if not commission.over.is_set():
            desk.cancel(commission)
            return Response(status_code=_CLIENT_GONE)
        if commission.problem is not None:
            raise commission.problem
        assert commission.result is not None
        data = [{"b64_json": each} for each in await asyncio.to_thread(_encoded, commission, body)]
        return JSONResponse({"data": data, **_about(commission, commission.result, body)})

    return router


def _check_model(given: str | None, served: str) -> None:
    if given not in (None, served):
        rule = f"model must be {served}, which this server has, got {given}"
        raise Problem(404, rule, param="model", code="model_not_found")


def _partial_steps(steps: int, count: int) -> frozenset[int]:
    """Steps, from 1, at even distances, after which a partial picture is sent."""
    return frozenset(max(1, round(k * steps / (count + 1))) for k in range(1, count + 1))


async def _over_or_gone(request: Request, commission: Commission) -> None:
    """Returns when a request is done, or its client has gone."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    waiting = [asyncio.create_task(gone()), asyncio.create_task(_wait(commission.over))]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()


async def _wait(event: asyncio.Event) -> None:
    await event.wait()


async def _stream(desk: Desk, commission: Commission, body: ImageRequest) -> AsyncIterator[bytes]:
    """OpenAI's events of a picture on its way."""
    partial = 0
    try:
        async with aclosing(commission.log.follow()) as events:
            async for event in events:
                if event is None:
                    yield HEARTBEAT
                elif event.name == "partial":
                    kind = "image_generation.partial_image"
                    said = {**event.data, "partial_image_index": partial, "output_format": "png"}
                    yield _event(kind, {**_common(commission, body), **said})
                    partial += 1
        if commission.problem is not None:
            yield b"event: error\ndata: " + json.dumps(commission.problem.body()).encode() + b"\n\n"
            return
        assert commission.result is not None
        about = _about(commission, commission.result, body)
        for made in await asyncio.to_thread(_encoded, commission, body):
            said = {**_common(commission, body), **about, "b64_json": made}
            yield _event("image_generation.completed", said)
    finally:
        desk.cancel(commission)


def _event(kind: str, data: dict[str, Any]) -> bytes:
    text = json.dumps({"type": kind, **data})
    return f"event: {kind}\ndata: {text}\n\n".encode("ascii")


def _common(commission: Commission, body: ImageRequest) -> dict[str, Any]:
    return {
        "created_at": int(time.time()),
        "background": "opaque",
        "quality": body.quality or "auto",
        "size": body.size or "auto",
    }


def _about(commission: Commission, result: Result, body: ImageRequest) -> dict[str, Any]:
    settings = result.settings
    return {
        "created": int(time.time()),
        "background": "opaque",
        "output_format": body.output_format or "png",
        "size": f"{settings['width']}x{settings['height']}",
        "seeds": settings["seeds"],
        "layout": requests.layout_json(result.layout),
        "warnings": commission.warnings,
    }


def _encoded(commission: Commission, body: ImageRequest) -> list[str]:
    """The pictures in the format that was asked for; PNGs carry their settings."""
    kind = body.output_format or "png"
    if kind == "png":
        files = commission.files
    else:
        assert commission.result is not None
        quality = _QUALITY if body.output_compression is None else body.output_compression
        files = [_as(image, kind, quality) for image in commission.result.images]
    return [b64encode(each).decode("ascii") for each in files]


def _as(image: Any, kind: str, quality: int) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind.upper(), quality=quality)
    return buffer.getvalue()
