"""What the command prints: all of it goes through here, so that no text takes over a terminal."""

from __future__ import annotations

import io
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO

from stal.echo import harmless, one_line

# What a progress bar writes: the way to its line by itself, or the way back and then itself.
_BAR = re.compile(r"(?:\n*(?:\x1b\[A)*\r?\Z|\r)")


class _Outlet(io.TextIOBase):
    """A text stream that writes to another one what is harmless there, in what it can encode.

    bars: whether progress bars are drawn there, so that no other text may begin a write.
    """

    def __init__(self, stream: TextIO, *, bars: bool) -> None:
        self._stream, self._bars = stream, bars

    def write(self, text: str) -> int:
        bar = _BAR.match(text) if self._bars else None
        start = bar.end() if bar else 0
        encoding = self._stream.encoding or "utf-8"
        safe = text[:start] + harmless(text[start:])
        self._stream.write(safe.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    def writable(self) -> bool:
        return True

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    @property
    def errors(self) -> str:  # type: ignore[override]
        return "backslashreplace"


@contextmanager
def outlets() -> Iterator[None]:
    """Within, stdout and stderr take what is harmless, and a warning is one line."""
    out, err = _Outlet(sys.stdout, bars=False), _Outlet(sys.stderr, bars=True)
    before = warnings.formatwarning
    warnings.formatwarning = _format_warning
    try:
        with redirect_stdout(out), redirect_stderr(err):
            yield
    finally:
        warnings.formatwarning = before


def say(message: str) -> None:
    """A line of the command's own on stderr."""
    print(f"stal: {one_line(message)}", file=sys.stderr)


def _format_warning(
    message: Warning | str, category: Any, filename: str, lineno: int, line: str | None = None
) -> str:
    """What `warnings.formatwarning` is to be: one line, not beside a progress bar."""
    for bar in _bars():
        bar.clear()
    return f"stal: {one_line(str(message))}\n"


def close_bars() -> None:
    """Ends every progress bar, so that what follows has a line of its own."""
    for bar in _bars():
        bar.close()


def _bars() -> list[Any]:
    # Not imported: where no bar was made there is none to look for.
    tqdm = sys.modules.get("tqdm")
    return [] if tqdm is None else list(getattr(tqdm.tqdm, "_instances", ()))
