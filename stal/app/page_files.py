"""The files of the page, read once: no name in a request is ever looked up on a disk."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".json": "application/json",
    ".webmanifest": "application/manifest+json",
}
INDEX = "index.html"


@dataclass(frozen=True)
class PageFile:
    data: bytes
    media_type: str
    etag: str


def page_files(folder: Path | None = None) -> Mapping[str, PageFile]:
    """The page's files by name, those of the package if no folder is given.

    Raises ValueError if there is no index.
    """
    folder = folder or Path(str(files("stal") / "app" / "page"))
    found = {}
    for each in folder.iterdir() if folder.is_dir() else ():
        kind = _TYPES.get(each.suffix)
        if kind is not None and each.is_file():
            data = each.read_bytes()
            found[each.name] = PageFile(data, kind, f'"{hashlib.sha256(data).hexdigest()[:32]}"')
    if INDEX not in found:
        raise ValueError(f"the package must carry its page, got no {INDEX}: install it again")
    return found
