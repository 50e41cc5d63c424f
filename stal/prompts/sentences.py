"""A text as sentences of lower-case words, each with the place in the text that it stands for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from stal.prompts.characters import plain
from stal.prompts.lines import joined_lines
from stal.prompts.markup import PART, SHARED, tidy, without_markup
from stal.prompts.names import ABBREVIATION, ends_sentence, named, with_numbers
from stal.prompts.rewording import reword
from stal.prompts.style_tags import without_tags
from stal.prompts.words import BODY_PARTS, CONTRACTED
from stal.relations import Span

_TOKEN = re.compile(
    ABBREVIATION + r"|(?<!\w)f/\d+(?:\.\d+)?|\d+(?:[./:]\d+)+\w*"  # f/1.8, 1/200s, 16:9
    r"|(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])"
    r"|\d+(?=(?i:girls?|boys?|wom[ae]n|m[ae]n|others?|people|persons?|child(?:ren)?"
    r"|cats?|dogs?|animals?)\b)|\w+(?:[-'’]\w+)*['’]?|[^\w\s]"
    rf"|[{PART}{SHARED}]"
)
_ENDS = frozenset((*".!?;", PART, SHARED))

Sentence = tuple[list[str], list[Span]]  # its tokens, and the span of each


@dataclass
class Part:
    """Sentences of a prompt that were separated from others by the syntax of some tool.

    Attributes:
        sentences: in order.
        shared: whether what it says is said of all parts.
    """

    sentences: list[Sentence]
    shared: bool = False


def parts(text: str) -> list[Part]:
    """The parts of a text, of which most texts have one.

    Tokens are words and marks without what only generators read and without style tags, reworded
    as the grammar reads them (`stal.prompts.rewording`). Possessives are two, "cat" and "'s".
    """
    characters, starts = plain(text)
    read, _ = without_markup(characters)
    found = [Part([])]
    for tokens, spans, end in _sentences(joined_lines(read)):
        if starts is not None:
            spans = [(starts[a], starts[b]) for a, b in spans]
        found[-1].sentences.append(_reworded(tokens, spans, text))
        if end in (PART, SHARED):
            found[-1].shared = end == SHARED
            found.append(Part([]))
    return found


def sentences(text: str) -> Iterator[Sentence]:
    """The sentences of all parts of a text, empty ones included."""
    for part in parts(text):
        yield from part.sentences


def drawn_text(text: str) -> str:
    """A prompt as a text encoder is to read it: without what only other tools understand."""
    characters, starts = plain(text)
    _, kept = without_markup(characters)
    if kept is None:
        return text
    if starts is not None:
        own = (text[a:b] for a, b in pairwise(starts))
        kept = [mine if k == c else k for k, c, mine in zip(kept, characters, own, strict=True)]
    return tidy("".join(kept))


def _sentences(text: str) -> Iterator[tuple[list[str], list[Span], str]]:
    """The sentences of a plain text, with the mark that ends each."""
    tokens: list[str] = []
    spans: list[Span] = []
    for found in _TOKEN.finditer(text):
        if found[0] in _ENDS:
            yield tokens, spans, found[0]
            tokens, spans = [], []
            continue
        if found[0] != '"':  # left of "a dog"
            _add(tokens, spans, text, found)
        if ends_sentence(text, found):
            yield tokens, spans, "."
            tokens, spans = [], []
    yield tokens, spans, ""


def _reworded(tokens: Sequence[str], spans: Sequence[Span], text: str) -> Sentence:
    words = reword(tokens, spans)
    words = [words[i] for i in without_tags([token for token, _ in words])]
    words = with_numbers(words, text)
    return [token for token, _ in words], [span for _, span in words]


def _add(tokens: list[str], spans: list[Span], text: str, found: re.Match[str]) -> None:
    """Appends what was found in the text to the tokens of its sentence."""
    if named(tokens, spans, text, found):
        return
    token, (start, end) = found[0].lower().replace("’", "'"), found.span()
    if (
        token in ("other", "others")
        and tokens
        and tokens[-1].isdecimal()
        and text[start - 1] != " "
    ):
        token = token.replace("other", "person")  # the tag "1other"
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
