"""The application: what `stal serve` and `stal app` run, and what other servers can.

app = create_app(stal.Pipeline.from_pretrained())
uvicorn.run(app)
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

import stal
from stal.app import images_routes, page_routes
from stal.app.access import Access
from stal.app.desk import Desk
from stal.app.guard import Guard
from stal.app.limits import Limits
from stal.app.metrics import CONTENT_TYPE, Metrics
from stal.app.page_files import PageFile
from stal.app.problems import Problem
from stal.app.requests import completed
from stal.app.schema import ErrorBody, Health
from stal.batch import Engine
from stal.checked_json import short
from stal.pipeline import Pipeline
from stal.settings import Settings

_STATUSES = {
    400: "Not what the server takes.",
    401: "No key, or another one.",
    403: "From another site.",
    404: "Not there.",
    408: "Too slow.",
    409: "Not finished, or cancelled.",
    413: "Too large.",
    421: "Another host.",
    429: "Full: try again.",
    500: "The server failed.",
    503: "Shutting down.",
}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": text} for status, text in _STATUSES.items()
}


def create_app(
    pipe: Pipeline,
    *,
    limits: Limits | None = None,
    key: str | None = None,
    local: bool = True,
    page: Mapping[str, PageFile] | None = None,
    max_rows: int = 16,
) -> FastAPI:
    """The application, whose engine lives as long as it does (ASGI's lifespan).

    Args:
        pipe: what draws.
        limits: how much is accepted; those of `limits_of` if None.
        key, local: see `stal.app.access.Access`.
        page: its files (`stal.app.page_files`); None for OpenAI's interface alone.
        max_rows: pictures in a call of the UNet, see `stal.batch.Engine`.

    Raises: ValueError if an argument breaks its rule.
    """
    limits = limits or limits_of(pipe, max_rows=max_rows)
    if limits.images > max_rows:
        raise ValueError(f"images must be at most max_rows = {max_rows}, got {limits.images}")
    metrics, access = Metrics(), Access(key, local=local)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engine = Engine(pipe, max_rows=max_rows)
        app.state.desk = Desk(engine, limits, metrics)
        try:
            yield
        finally:
            await app.state.desk.close()
            await asyncio.to_thread(engine.close, drain=False)

    app = FastAPI(
        title="stal",
        version=stal.__version__,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        separate_input_output_schemas=False,
    )

    def desk_of(request: Request) -> Desk:
        desk: Desk = request.app.state.desk
        return desk

    app.include_router(images_routes.routes(desk_of, _RESPONSES))
    app.include_router(_own_routes(desk_of, metrics))
    if page is not None:
        app.include_router(page_routes.page_routes(page))
        app.include_router(page_routes.api_routes(desk_of, _RESPONSES))
    app.add_middleware(
        Guard,
        access=access,
        public=page_routes.PUBLIC if page is not None else ("/health",),
        most_bytes={"": limits.body_bytes, page_routes.UPLOAD: limits.upload_bytes},
        refused=lambda why: metrics.refused.labels(why).inc(),
    )
    _handle_errors(app, metrics)
    _describe(app, has_key=key is not None)
    return app


def limits_of(pipe: Pipeline, *, max_rows: int = 16, **given: int | None) -> Limits:
    """Limits for a model: four times as many pixels as its own pictures have, unless given.

    given: fields of `Limits`; None is none.
    """
    full = completed(pipe, Settings())
    own = {
        "pixels": 4 * full.width * full.height,
        "steps": max(Limits.steps, full.steps),
        "images": min(Limits.images, max_rows),
    }
    return Limits(**own | {name: value for name, value in given.items() if value is not None})


def _own_routes(desk_of: Any, metrics: Metrics) -> APIRouter:
    router = APIRouter(responses=_RESPONSES)

    @router.get("/health")
    async def health(request: Request) -> Health:
        if desk_of(request).draining:
            raise Problem(503, "the server is shutting down", code="shutting_down")
        return Health(status="ok")

    @router.get("/metrics", response_class=Response)
    async def read_metrics() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    return router


def _handle_errors(app: FastAPI, metrics: Metrics) -> None:
    """Every error is an answer in OpenAI's form."""

    async def of_problem(request: Request, error: Any) -> Response:
        problem = error if isinstance(error, Problem) else _problem_of_http(request, error)
        if problem.status_code in (408, 413, 429, 503):
            metrics.refused.labels(problem.code or "other").inc()
        return problem.response()

    async def of_validation(request: Request, error: Any) -> Response:
        metrics.refused.labels("invalid").inc()
        return _problem_of_values(error).response()

    async def of_others(request: Request, error: Exception) -> JSONResponse:
        return Problem(500, "the server failed; its log says why", code="server_error").response()

    app.add_exception_handler(HTTPException, of_problem)
    app.add_exception_handler(RequestValidationError, of_validation)
    app.add_exception_handler(Exception, of_others)


def _problem_of_http(request: Request, error: HTTPException) -> Problem:
    path = request.url.path
    if error.status_code == 404:
        return Problem(404, f"path must be one of the server's, got {path}", code="unknown_url")
    if error.status_code == 405:
        rule = f"method must be one that {path} has, got {request.method}"
        problem = Problem(405, rule, code="method_not_allowed")
        problem.headers = {**(problem.headers or {}), **(error.headers or {})}
        return problem
    if error.status_code == 400:
        return Problem(400, "the body must be JSON in UTF-8, got another one")
    return Problem(error.status_code, str(error.detail))


def _problem_of_values(error: RequestValidationError) -> Problem:
    """The first thing that is wrong with a body or a parameter."""
    first = error.errors()[0]
    place = [str(part) for part in first["loc"][1:]]
    message = str(first["msg"])
    if first["type"] == "json_invalid":
        return Problem(400, f"the body must be JSON, got another text: {first['ctx']['error']}")
    # Pydantic adds the branch of a union to the place.
    name = ".".join(part for part in place if "[" not in part) or "the body"
    param = place[0] if place else None
    if first["type"] == "missing":
        return Problem(400, f"{name} must be given, got none", param=param)
    if first["type"] == "extra_forbidden":
        rule = f"{name} must not be given, the server knows no such field"
        return Problem(400, rule, param=param, code="unknown_parameter")
    rule = re.sub(r"^\w+ should", "must", message)
    if rule == message:
        rule = f"must be valid ({message})"
    return Problem(400, f"{name} {rule}, got {short(first.get('input'))}", param=param)


def _describe(app: FastAPI, *, has_key: bool) -> None:
    """What /openapi.json says, where FastAPI would say something else."""
    original = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = original()
            for path in schema["paths"].values():
                for operation in path.values():
                    operation["responses"].pop("422", None)  # they are 400
            for name in ("HTTPValidationError", "ValidationError"):
                schema.get("components", {}).get("schemas", {}).pop(name, None)
            if has_key:
                bearer = {"key": {"type": "http", "scheme": "bearer"}}
                schema.setdefault("components", {})["securitySchemes"] = bearer
                schema["security"] = [{"key": []}]
                schema["paths"]["/health"]["get"]["security"] = []
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
