"""Files that are written whole or not at all, and lines that are read as they were written."""

from __future__ import annotations

import os
import re
import secrets
import stat
import tempfile
from contextlib import suppress
from pathlib import Path


def check_writable(path: str | os.PathLike[str], *, name: str = "output") -> None:
    """Finds out whether `write_atomic` can write a file; leaves nothing behind.

    Raises:
        ValueError: it cannot; the message calls the file by `name`.
    """
    target = Path(os.path.realpath(path))
    folder = target.parent
    try:
        if not folder.is_dir():
            raise ValueError(f"{name} must be in an existing folder, got {path}: create {folder}")
        with suppress(FileNotFoundError):
            mode = target.stat().st_mode
            if not stat.S_ISREG(mode):
                kind = "folder" if stat.S_ISDIR(mode) else "device"
                raise ValueError(f"{name} must be a file, got the {kind} {path}")
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"{name} must be writable, got {path}: {error.strerror}") from error


def lines_of(text: str) -> list[str]:
    """The lines of a text that has one record a line, without their ends.

    Lines end at line feeds and carriage returns alone. `str.splitlines` ends them at U+2028, form
    feeds and the like as well, which are spaces within a record.
    """
    return re.split(r"\r\n|\r|\n", text)


def read_lines(path: str | os.PathLike[str], *, name: str) -> list[str]:
    """The lines of a text file, without those that are blank and the space around them.

    Raises:
        ValueError: there is no such file, it is not UTF-8, or every line is blank; the message
            calls it by `name`.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"{name} must be a text file, got {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} must be a text file in UTF-8, got {path}: {error}") from error
    lines = [line.strip() for line in lines_of(text) if line.strip()]
    if not lines:
        raise ValueError(f"{name} must hold one a line, got none in {path}")
    return lines


def write_atomic(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes a file that is complete or, after an error such as a full disk, as it was before.

    Of a symbolic link the file that it points to is replaced.
    """
    target = Path(os.path.realpath(path))
    partial = target.with_name(f".{target.name[:50]}.{secrets.token_hex(4)}.tmp")
    try:
        with open(partial, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
