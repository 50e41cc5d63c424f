"""`python -m stal.integrations.diffusers [PAGE]`: the table of what is supported, as Markdown.

With a page, the table in it is written anew.
"""

import re
import sys
from pathlib import Path

from stal.files import write_atomic
from stal.integrations.diffusers.models import MODELS, Row

_HEADER = "| denoiser | diffusers | used by | guidance | the rule moves away from | note |"
_TABLE = re.compile(rf"^{re.escape(_HEADER)}\n(?:\|.*\n)*", re.MULTILINE)


def table() -> str:
    """The rows of `models.MODELS`, each a line that ends."""
    lines = [_HEADER, "|---|---|---|---|---|---|", *map(_line, MODELS.values())]
    return "\n".join(lines) + "\n"


def with_table(page: str) -> str:
    """A page with its table written anew.

    Raises:
        ValueError: the page has not exactly one.
    """
    found = len(_TABLE.findall(page))
    if found != 1:
        raise ValueError(f"page must have one table that begins with {_HEADER!r}, got {found}")
    return _TABLE.sub(lambda _: table(), page)


def _line(model: Row) -> str:
    together = model.calls == "one"
    cells = (
        f"`{model.name}`",
        f">= {model.since}",
        model.used_by,
        "both halves in one call" if together else "a call for each half",
        "the unconditional half" if together else "the empty prompt",
        model.note,
    )
    return f"| {' | '.join(cells)} |".replace("|  |", "| |")


def main() -> None:
    """Prints the table, or writes it into the page that is named."""
    if len(sys.argv) == 1:
        print(table(), end="")
        return
    page = Path(sys.argv[1])
    write_atomic(page, with_table(page.read_text(encoding="utf-8")).encode())


if __name__ == "__main__":
    main()
