"""Draws docs/app.png anew: the page in a browser, after a box was dragged and a picture drawn.

    python docs/app_picture.py [--output FILE] [--dark] [--phone]

Needs `pip install ".[app]" playwright` and Chromium.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from playwright.sync_api import sync_playwright

OUTPUT = Path(__file__).with_name("app.png")
PROMPT = "a red circle, a blue square and a green star"
DESKTOP, PHONE = {"width": 1280, "height": 1180}, {"width": 390, "height": 844}
SHOWN_SIDE = 2  # screen pixels of one of the page's on a phone


def use(page: Any) -> None:
    """What a user does: a prompt, a box that is dragged, a picture."""
    page.wait_for_selector(".mark")
    page.fill("#prompt", PROMPT)
    page.wait_for_function("() => document.querySelectorAll('.mark').length === 3")
    page.locator(".mark").last.focus()
    for _ in range(6):
        page.keyboard.press("ArrowUp")
    page.click("#draw")
    page.locator("#visit li").first.wait_for()
    page.locator("#words .chip").first.wait_for()
    page.evaluate("scrollTo(0, 0)")


def main(
    output: Path = OUTPUT,
    dark: Annotated[bool, typer.Option("--dark")] = False,
    phone: Annotated[bool, typer.Option("--phone")] = False,
) -> None:
    command = [sys.executable, "-m", "stal", "app", "--no-browser", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            said = server.stdout.readline()
            found = re.search(r"http://\S+", said)
            if found is None:
                raise RuntimeError(f"the server must say where it is, got {said!r}")
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
                page = browser.new_page(
                    viewport=PHONE if phone else DESKTOP,
                    device_scale_factor=SHOWN_SIDE if phone else 1,
                    color_scheme="dark" if dark else "light",
                    has_touch=phone,
                )
                page.goto(found[0])
                use(page)
                page.screenshot(path=output)
                browser.close()
        finally:
            server.terminate()


if __name__ == "__main__":
    typer.run(main)
