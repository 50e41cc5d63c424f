"""Draws the pictures of tutorial.md anew by running the commands in it.

    python docs/tutorial.py

Small pictures are enlarged and large ones reduced; each keeps the settings that made it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from stal import picture

PAGE = Path(__file__).with_name("tutorial.md")
PICTURES = Path(__file__).with_name("tutorial")
SMALLEST, LARGEST = 192, 760  # pixels of a picture's width in the page


def blocks(text: str) -> list[str]:
    """The commands of the page, a text a block."""
    return re.findall(r"```sh\n(.*?)```", text, re.DOTALL)


def names(text: str) -> list[str]:
    """The pictures that the page shows."""
    return re.findall(r"\(tutorial/([\w-]+\.png)\)", text)


def fitted(image: Image.Image) -> Image.Image:
    """The picture at a width for the page: a whole multiple of a small one."""
    if image.width < SMALLEST:
        factor = -(-SMALLEST // image.width)
        size = image.width * factor, image.height * factor
        return image.resize(size, Image.Resampling.NEAREST)
    width = min(image.width, LARGEST)
    return image.resize((width, round(image.height * width / image.width)))


def main() -> None:
    text = PAGE.read_text(encoding="utf-8")
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        command = Path(folder) / "bin" / "stal"
        command.parent.mkdir()
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m stal "$@"\n', encoding="utf-8")
        command.chmod(0o755)
        paths = os.pathsep.join([str(command.parent), os.environ["PATH"]])
        for block in blocks(text):
            print(block, end="", flush=True)
            subprocess.run(
                ["sh", "-ec", block], cwd=folder, env={**os.environ, "PATH": paths}, check=True
            )
        for name in names(text):
            made = Path(folder) / name
            with Image.open(made) as image:
                shown = fitted(image.convert("RGB"))
            try:
                picture.save(shown, PICTURES / name, picture.read_record(made))
            except ValueError:  # a figure, which has no settings
                shown.save(PICTURES / name)


if __name__ == "__main__":
    main()
