"""What is said of an exception that no command caught: one line, with what to do."""

from __future__ import annotations

import errno
import re
import sys
import traceback
from collections.abc import Iterator

from stal.cli.outlet import close_bars, say

# Commands that go on where they stopped.
_RESUMABLE = ("evaluate", "fit-schedule", "generate-batch", "train-layout", "train-shapes")
_AGAIN = "run the same command again, it goes on where it stopped"

_FIXES = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room, or ask for a larger quota",
    errno.EFBIG: "allow larger files (ulimit -f), or write to another disk",
    errno.EROFS: "write to a place that is not read-only",
}


def tell(error: BaseException, *, command: str | None, debug: bool) -> int:
    """Prints one line about an error, after its traceback if debug.

    Args:
        error: what reached the command.
        command: its name, like "evaluate"; None where it is not known.
        debug: whether to print the traceback.

    Returns:
        The exit code: 130 where the user interrupted, otherwise 1.
    """
    close_bars()
    if isinstance(error, BrokenPipeError):
        return 1  # whoever reads our output has seen enough
    if debug:
        print("".join(traceback.format_exception(error)), file=sys.stderr, end="")
    if isinstance(error, KeyboardInterrupt):
        say(f"interrupted: {_AGAIN}" if command in _RESUMABLE else "interrupted")
        return 130
    say(_what(error, command))
    return 1


def _what(error: BaseException, command: str | None) -> str:
    text = str(error).strip()
    for each in _chain(error):
        fix = _FIXES.get(_number(each) or 0)
        if fix:
            again = _AGAIN if command in _RESUMABLE else "run again"
            return f"{_reason(error)}: {fix} and {again}"
    if _lacks_memory(error):
        # Who knows what was too large says so.
        if type(error) is MemoryError and text:
            return text
        fix = "draw a smaller picture, or fewer at once" if command == "generate" else "free some"
        if command == "evaluate":
            fix = f"{_AGAIN}; a smaller --batch needs less"
        return f"there must be more free memory: {fix}"
    ours = type(error).__module__.startswith("stal.") and isinstance(error, ValueError)
    if text and (ours or type(error) in (ValueError, NotImplementedError)):
        return text
    if isinstance(error, (OSError, ImportError)) and text:
        return _reason(error)
    # Another subclass of ValueError is a library's, and does not say what it is about.
    found = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return f"unexpected {found}: `stal --debug ...` shows where"


def _reason(error: BaseException) -> str:
    """An error's message, of the system's errors with the file that they are about."""
    if isinstance(error, OSError) and error.strerror:
        named = error.filename not in (None, "", -1)
        return f"{error.filename}: {error.strerror}" if named else error.strerror
    return str(error).strip() or type(error).__name__


def _number(error: BaseException) -> int | None:
    """The system's number of an error; safetensors has it in the text alone."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__


def _lacks_memory(error: BaseException) -> bool:
    # torch has a class of its own on a GPU alone, and it is not to be imported for this.
    of_torch = type(error).__name__ == "OutOfMemoryError" or "allocate memory" in str(error)
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and of_torch)
