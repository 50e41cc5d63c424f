"""A server of the page and a browser that uses it as people do."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from stal.shapes.detector import DetectedShape, detect

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
MODES = ("Plain", "Spatial", "Spatial-temporal")
# Of a machine that has much else to do.
WAIT_MS = 240_000


@dataclass(frozen=True)
class Server:
    """Where a server is, and the key that it wants."""

    url: str
    key: str

    @property
    def entrance(self) -> str:
        return f"{self.url}/#token={self.key}"


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """`stal app` with the bundled model at a free port, until the end."""
    key = secrets.token_urlsafe(16)
    path = folder / "key"
    path.write_text(key)
    path.chmod(0o600)
    command = [sys.executable, "-m", "stal", "app", "--no-browser", "--port", "0"]
    with subprocess.Popen(
        [*command, "--api-key-file", str(path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    ) as process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            found = re.search(r"http://\S+", said)
            assert found, said
            yield Server(found[0], key)
        finally:
            process.terminate()
            process.wait(30)


def find_browser() -> str | None:
    """The path of a Chromium."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


@dataclass
class Visitor:
    """Somebody at the page.

    page: of Playwright.
    troubles: what the console said of errors and of refusals, and requests to other servers.
    asked: bodies of the requests to draw.
    """

    page: Any
    server: Server
    troubles: list[str] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.set_default_timeout(WAIT_MS)
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.troubles.append(f"error: {error}"))
        self.page.on("request", self._requested)
        self.page.on("dialog", self._dialog)

    def _heard(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.troubles.append(message.text)

    def _dialog(self, dialog: Any) -> None:
        self.troubles.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _requested(self, request: Any) -> None:
        if not request.url.startswith((self.server.url, "blob:", "data:")):
            self.troubles.append(f"request: {request.url}")
        if request.url.startswith(self.server.url):
            self.paths.append(request.url.removeprefix(self.server.url))
        if request.method == "POST" and request.url.endswith("/api/drawings"):
            self.asked.append(request.post_data_json)

    def enter(self) -> None:
        """Opens the page, whose first prompt has two objects."""
        self.page.goto(self.server.entrance)
        self.page.wait_for_selector(".mark")

    def say(self, prompt: str, objects: int) -> None:
        """Types a prompt and waits until so many objects are placed."""
        with self.page.expect_response("**/api/layout"):
            self.page.fill("#prompt", prompt)
        self.page.wait_for_function(
            "n => document.querySelectorAll('.mark').length === n", arg=objects
        )

    def only(self, *modes: str) -> None:
        """Draws in these ways alone from now on."""
        for mode in (*modes, *MODES):
            self.page.get_by_label(f"Draw {mode}", exact=True).set_checked(mode in modes)

    def picture(self) -> bytes:
        """Draws; the file of the first picture that is done."""
        with self.page.expect_response("**/picture.png") as response:
            self.page.click("#draw")
        self.page.get_by_role("button", name="Draw", exact=True).wait_for()
        return self.get(response.value.url)

    def get(self, url: str) -> bytes:
        """What the server answers; a browser does not tell what its page got as a Blob."""
        headers = {"Authorization": f"Bearer {self.server.key}"}
        return self.page.request.get(url, headers=headers).body()

    def draw(self) -> list[DetectedShape]:
        """What is to be seen in the next picture."""
        return seen(self.picture())

    def place_of(self, phrase: str) -> tuple[float, float, float, float]:
        """Left, top, width and height of an object on the canvas, in hundredths."""
        said = self.mark(phrase).get_attribute("aria-label")
        left, top, wide, high = map(int, re.findall(r"(\d+)%", said))
        return left, top, wide, high

    def mark(self, phrase: str) -> Any:
        return self.page.locator(f'.mark[aria-label^="{phrase}:"]')

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where a point of the canvas, in hundredths, is in the window."""
        self.page.locator("#stage").scroll_into_view_if_needed()
        box = self.page.locator("#stage").bounding_box()
        return box["x"] + box["width"] * x / 100, box["y"] + box["height"] * y / 100

    def drag(self, start: tuple[float, float], end: tuple[float, float], steps: int = 8) -> None:
        """From one point of the canvas to another."""
        (x0, y0), (x1, y1) = self.at(*start), self.at(*end)
        self.page.mouse.move(x0, y0)
        self.page.mouse.down()
        self.page.mouse.move(x1, y1, steps=steps)
        self.page.mouse.up()

    def open(self, name: str, data: bytes) -> None:
        """Chooses a file, and waits until it is there."""
        file = {"name": name, "mimeType": "application/octet-stream", "buffer": data}
        self.page.set_input_files("#file", [file])
        self.page.get_by_text(f"{name} is open.").wait_for()


def pixels(png: bytes) -> np.ndarray:
    """A picture as (height, width, 3) float32 in [0, 1]."""
    with Image.open(BytesIO(png)) as image:
        return np.asarray(image.convert("RGB"), dtype=np.float32) / 255


def seen(png: bytes) -> list[DetectedShape]:
    """The objects of a picture."""
    return detect(torch.from_numpy(pixels(png)).permute(2, 0, 1)[None])[0]
