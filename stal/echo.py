"""Texts from elsewhere, as they can be shown: on a terminal, in tables, in plots.

Prompts, file names and phrases may hold what a terminal obeys (it moves the cursor, renames the
window, writes from right to left), what ends a table's cell, what a spreadsheet computes.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

# Control characters but tab and line feed, marks and overrides of direction, separators of lines,
# and halves of surrogate pairs, which no encoding has.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
_MOST = 2000  # characters of a message


def harmless(text: str) -> str:
    """The text with what a terminal would obey as escapes, like "\\x1b"."""
    return _UNSAFE.sub(lambda found: ascii(found[0])[1:-1], text)


def one_line(text: str) -> str:
    """A message on one line, whatever it quotes; what is very long loses its middle."""
    line = harmless(" ".join(text.split()))
    if len(line) <= _MOST:
        return line
    return f"{line[: _MOST // 2]} ... {line[-_MOST // 2 :]}"


def markdown(text: str) -> str:
    """A text on one line of Markdown, or in a table's cell, where it means itself.

    A "#" or "-" that begins it is left: no text of ours begins a line.
    """
    line = html.escape(harmless(" ".join(text.split())), quote=False)
    return re.sub(r"[\\|`*_~]|(?<=\])\(", r"\\\g<0>", line)


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table, every cell as `markdown` has it."""

    def line(cells: Sequence[str]) -> str:
        return "|" + "|".join(f" {text} " if text else " " for text in map(markdown, cells)) + "|"

    return [line(head), "|---" * len(head) + "|", *map(line, rows)]


def csv_cell(text: str) -> str:
    """A text that no spreadsheet takes for a formula."""
    line = harmless(" ".join(text.split()))
    return f"'{line}" if line.startswith(("=", "+", "-", "@")) else line


def plot_label(text: str) -> str:
    """A text for matplotlib, which would set what is between dollar signs as mathematics."""
    return harmless(" ".join(text.split())).replace("$", r"\$")
