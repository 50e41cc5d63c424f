"""Files: read within a budget and in lines as written, written whole or not at all."""

from __future__ import annotations

import codecs
import os
import re
import secrets
import stat
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import BinaryIO

from stal import budget


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
            if kind := _other_kind(target.stat().st_mode):
                raise ValueError(f"{name} must be a file, got the {kind} {path}")
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"{name} must be writable, got {path}: {error.strerror}") from error


def _other_kind(mode: int) -> str:
    """What a path is that is no regular file; "" if it is one."""
    if stat.S_ISREG(mode):
        return ""
    if stat.S_ISDIR(mode):
        return "folder"
    return "pipe" if stat.S_ISFIFO(mode) else "device"


def open_regular(path: str | os.PathLike[str], *, name: str) -> BinaryIO:
    """Opens a file to read its bytes; one that is there as a whole.

    A pipe, such as that of `<(command)` in a shell, waits for its writer and a device may never
    end: both are refused, and neither is waited for.

    Raises:
        ValueError: a folder, a pipe or a device; the message calls it by `name`.
        OSError: there is no such file, or it may not be read.
    """

    def check(mode: int) -> None:
        if kind := _other_kind(mode):
            fix = ": save what it gives in a file first" * (kind == "pipe")
            raise ValueError(f"{name} must be a file, got the {kind} {path}{fix}")

    if "\0" in os.fspath(path):
        raise ValueError(f"{name} must be a file, got {os.fspath(path)!r}, which no file is called")
    check(os.stat(path).st_mode)  # to open some devices does something

    def opener(path: str, flags: int) -> int:
        return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))

    with ExitStack() as stack:
        file = stack.enter_context(open(path, "rb", opener=opener))
        check(os.fstat(file.fileno()).st_mode)  # it may have changed since
        stack.pop_all()
    return file


def read_bytes(path: str | os.PathLike[str], *, name: str, limit: int) -> bytes:
    """The bytes of a file, at most `limit`.

    Raises:
        ValueError: as `open_regular`, or there are more; the message calls it by `name`.
        OSError: there is no such file, or it cannot be read.
    """
    with open_regular(path, name=name) as file:
        size = os.fstat(file.fileno()).st_size
        # A file of the kernel's says 0, and one may be growing.
        data = file.read(limit + 1) if size <= limit else b""
    if size > limit or len(data) > limit:
        got = f"{size} in {path}" if size > limit else f"more in {path}"
        raise ValueError(f"{name} must have at most {limit} bytes, got {got}")
    return data


def load_text(
    path: str | os.PathLike[str], *, name: str, limit: int = budget.MOST_TEXT_BYTES
) -> str:
    """The text of a file in UTF-8, or in UTF-16 with its mark; every line ends with "\\n".

    Raises:
        ValueError: as `read_bytes`, or it is no such text; the message calls it by `name`.
        OSError: there is no such file, or it cannot be read.
    """
    data = read_bytes(path, name=name, limit=limit)
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        got = f"other bytes in line {line} of {path}"
        raise ValueError(f"{name} must be text in UTF-8, got {got}: save it as UTF-8") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ValueError(f"{name} must be text, got a zero byte in line {line} of {path}")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_text(
    path: str | os.PathLike[str], *, name: str, limit: int = budget.MOST_TEXT_BYTES
) -> str:
    """What `load_text` gives. Raises ValueError where there is no such file, too."""
    try:
        return load_text(path, name=name, limit=limit)
    except OSError as error:
        raise ValueError(f"{name} must be a text file, got {path}: {error.strerror}") from error


def lines_of(text: str) -> list[str]:
    """The lines of a text that has one record a line, without their ends.

    Lines end at line feeds and carriage returns alone. `str.splitlines` ends them at U+2028, form
    feeds and the like as well, which are spaces within a record.
    """
    return re.split(r"\r\n|\r|\n", text)


def read_lines(path: str | os.PathLike[str], *, name: str) -> list[str]:
    """The lines of a text file, without those that are blank and the space around them.

    Raises:
        ValueError: there is no such file, it is no text in UTF-8, or every line is blank; the
            message calls it by `name`.
    """
    text = read_text(path, name=name, limit=budget.MOST_PROMPTS_BYTES)
    lines = [line.strip() for line in lines_of(text) if line.strip()]
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
        with suppress(FileNotFoundError):
            os.chmod(partial, stat.S_IMODE(target.stat().st_mode))
        os.replace(partial, target)
    except OSError as error:
        if error.strerror is None:
            raise
        # The system names no file, or the one that is about to vanish.
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with suppress(OSError):  # on a disk that became read-only
            partial.unlink(missing_ok=True)
