"""`stal serve`: OpenAI's interface for images, on the batch engine. Heavy imports happen late."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stal.cli.loras import LoraOption, Loras, read_loras
from stal.cli.options import DeviceOption, DType, ModelOption, torch_dtype
from stal.extras import check_installed

if TYPE_CHECKING:
    from fastapi import FastAPI

HostOption = Annotated[str, typer.Option(help="Address to listen at; others need a key.")]
PortOption = Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")]
KeyOption = Annotated[
    Path | None, typer.Option("--api-key-file", help="File of the key; - is stdin.")
]
MaxRowsOption = Annotated[int, typer.Option(min=1, max=1024, help="Pictures of one batch.")]
QueueOption = Annotated[
    int, typer.Option(min=1, help="Pictures that are accepted and not done; others get 429.")
]
MaxPixelsOption = Annotated[
    int | None, typer.Option(min=1, help="Of a picture. [4 times the model's own]")
]
MaxStepsOption = Annotated[int | None, typer.Option(min=1, help="Of a picture. [100]")]
MaxObjectsOption = Annotated[int | None, typer.Option(min=1, help="Of a layout. [16]")]
MaxImagesOption = Annotated[int | None, typer.Option(min=1, help="Of a request. [4]")]


def serve(
    host: HostOption = "127.0.0.1",
    port: PortOption = 8000,
    api_key_file: KeyOption = None,
    model: ModelOption = None,
    lora: LoraOption = None,
    dtype: DType = DType.float32,
    device: DeviceOption = "cpu",
    max_rows: MaxRowsOption = 16,
    queue: QueueOption = 64,
    max_pixels: MaxPixelsOption = None,
    max_steps: MaxStepsOption = None,
    max_objects: MaxObjectsOption = None,
    max_images: MaxImagesOption = None,
) -> None:
    """Serve pictures over HTTP as OpenAI does: POST /v1/images/generations."""
    limits = {"pixels": max_pixels, "steps": max_steps, "objects": max_objects}
    limits |= {"images": max_images, "queue": queue}
    where = Where(host, port, api_key_file)
    what = What(model, read_loras(lora), dtype, device, max_rows, limits)
    run(where, what, page=False, browser=False)


@dataclass(frozen=True)
class Where:
    """Where to listen, and the file of the key that requests must have."""

    host: str
    port: int
    key: Path | None


@dataclass(frozen=True)
class What:
    """What draws, and how much. limits: fields of `stal.app.limits.Limits`."""

    model: str | None
    loras: Loras
    dtype: DType
    device: str
    max_rows: int
    limits: dict[str, int | None]


def run(where: Where, what: What, *, page: bool, browser: bool) -> None:
    """Serves until it is asked to stop.

    page: whether there is one, or OpenAI's interface alone; browser: whether it is opened.
    """
    for package in ("fastapi", "uvicorn", "prometheus_client"):
        check_installed(package, "the server")

    from stal.app import access, page_files, serving

    key = None if where.key is None else access.read_key(where.key)
    access.check_address(where.host, key)
    files = page_files.page_files() if page else None
    # A port that is taken is found before the model is loaded.
    with serving.bound(where.host, where.port) as sock:
        app = _application(what, files, key, local=access.is_loopback(where.host))
        url = serving.address(sock, where.host)

        def ready() -> None:
            purpose = f"the page is at {url}" if page else f"serving at {url}/v1"
            print(f"stal: {purpose} (stop with Ctrl+C)", flush=True)
            if browser:
                _open(url if key is None else f"{url}/#token={key}")

        serving.Server(app, ready=ready).serve_at(sock)


def _application(what: What, files: Any, key: str | None, *, local: bool) -> FastAPI:
    from stal.app.server import create_app, limits_of
    from stal.pipeline import Pipeline

    pipe = Pipeline.from_pretrained(
        what.model, dtype=torch_dtype(what.dtype), device=what.device, loras=what.loras
    )
    limits = limits_of(pipe, max_rows=what.max_rows, **what.limits)
    return create_app(pipe, limits=limits, key=key, local=local, page=files, max_rows=what.max_rows)


def _open(url: str) -> None:
    """Opens a browser, if there is one, without waiting for it."""
    import threading
    import webbrowser

    threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
