"""A text as sentences of lower-case words, each with the place in the text that it stands for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from stal.prompts.rewording import reword, without_markup
from stal.prompts.style_tags import without_tags
from stal.prompts.words import BODY_PARTS, CONTRACTED
from stal.relations import Span

_TOKEN = re.compile(
    r"(?<!\w)f/\d+(?:\.\d+)?|\d+(?:[./]\d+)+\w*"  # f/1.8, 1/200s
    r"|\d+(?=(?i:girls?|boys?|wom[ae]n|m[ae]n)\b)|\w+(?:[-'’]\w+)*['’]?|[^\w\s]|\n"
)
_ENDS = frozenset(".!?;\n")


def sentences(text: str) -> Iterator[tuple[list[str], list[Span]]]:
    """The sentences of a text, empty ones included: their tokens, and the span of each.

    Tokens are words and marks without what only generators read and without style tags, reworded
    as the grammar reads them (`stal.prompts.rewording`). Possessives are two, "cat" and "'s".
    """
    tokens: list[str] = []
    spans: list[Span] = []
    text = without_markup(text)
    for found in _TOKEN.finditer(text):
        if found[0] in _ENDS:
            yield _reworded(tokens, spans)
            tokens, spans = [], []
        else:
            _add(tokens, spans, text, found)
    yield _reworded(tokens, spans)


def _reworded(tokens: Sequence[str], spans: Sequence[Span]) -> tuple[list[str], list[Span]]:
    words = reword(tokens, spans)
    words = [words[i] for i in without_tags([token for token, _ in words])]
    return [token for token, _ in words], [span for _, span in words]


def _add(tokens: list[str], spans: list[Span], text: str, found: re.Match[str]) -> None:
    """Appends what was found in the text to the tokens of its sentence."""
    token, (start, end) = found[0].lower().replace("’", "'"), found.span()
    owner = token.rstrip("s").rstrip("'")
    if token.endswith("'s") and owner not in CONTRACTED and _owns_nothing(text, end):
        tokens.append(owner + "s")  # "two banana's."
        spans.append((start, end))
    elif token.endswith(("'s", "s'")) and owner not in CONTRACTED:
        bare = token[:-2] if token.endswith("'s") else token[:-1]
        tokens += [bare, "'s"]
        spans += [(start, start + len(bare)), (start + len(bare), end)]
    elif token == "down" and tokens[-1:] == ["upside"]:
        tokens[-1] = "upside-down"
        spans[-1] = (spans[-1][0], end)
    else:
        tokens.append(token if token.endswith("n't") else token.removesuffix("'s").rstrip("'"))
        if token == "it's":
            following = _TOKEN.match(text, end + 1)
            if following and following[0].lower() in BODY_PARTS:
                tokens[-1] = "its"
        spans.append((start, end))


def _owns_nothing(text: str, end: int) -> bool:
    """Whether no word follows for "'s" to own."""
    following = _TOKEN.search(text, end)
    return following is None or following[0] in _ENDS or following[0] == ","
