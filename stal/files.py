"""Files that are written whole or not at all."""

from __future__ import annotations

import os
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


def read_text(path: str | os.PathLike[str], *, name: str) -> str:
    """A text file. Raises ValueError, which calls it by `name`, if there is none in UTF-8."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"{name} must be a text file, got {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} must be a text file in UTF-8, got {path}: {error}") from error


def read_lines(path: str | os.PathLike[str], *, name: str) -> list[str]:
    """The lines of a text file, without those that are blank and the space around them.

    Raises:
        ValueError: there is no such file, it is not UTF-8, or every line is blank; the message
            calls it by `name`.
    """
    text = read_text(path, name=name)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{name} must hold one a line, got none in {path}")
    return lines


def write_atomic(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes a file that is complete or, after an error such as a full disk, as it was before.

    Of a symbolic link the file that it points to is replaced.

    Raises:
        OSError: it cannot be written; the error names the file.
    """
    target = Path(os.path.realpath(path))
    partial = target.with_name(f".{target.name[:50]}.{secrets.token_hex(4)}.tmp")
    try:
        with open(partial, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
    except OSError as error:
        if error.strerror is None:
            raise
        # The system names no file, or the one that is about to vanish.
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with suppress(OSError):  # on a disk that became read-only
            partial.unlink(missing_ok=True)
