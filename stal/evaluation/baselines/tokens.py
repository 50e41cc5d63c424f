"""Where the words of a prompt's objects are among its tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from stal.layout import PlacedObject
from stal.prompts import Object, parse
from stal.relations import Span


def token_span(tokenizer: Any, text: str, span: Span) -> range:
    """Positions of the tokens of the whole words text[start:end] in what the encoder reads.

    Position 0 is the start token. Empty where the encoder does not read that far.
    """
    start, end = (
        1 + len(tokenizer(text[:i], add_special_tokens=False, verbose=False).input_ids)
        for i in span
    )
    # The end token takes the last place.
    end = min(end, tokenizer.model_max_length - 1)
    return range(min(start, end), end)


def noun_token(tokenizer: Any, text: str, span: Span) -> int | None:
    """Position of the last token of a noun phrase: of its noun; None if it is cut off."""
    whole = 1 + len(tokenizer(text[: span[1]], add_special_tokens=False, verbose=False).input_ids)
    found = token_span(tokenizer, text, span)
    return found[-1] if found and found.stop == whole else None


def named_in(prompt: str, items: Sequence[PlacedObject]) -> list[Span]:
    """Where a prompt names each object of a layout.

    By the phrase as it is read from the prompt, else by the phrase, else by the noun as written.

    Raises:
        ValueError: the prompt does not name an object.
    """
    read: list[Object] = list(parse(prompt).objects)
    spans = []
    for item in items:
        same = next((o for o in read if o.phrase == item.phrase), None)
        if same is not None:
            # Twins are named one after the other.
            read.remove(same)
            spans.append(same.span)
            continue
        written = (
            re.search(rf"\b{re.escape(words)}\b", prompt, re.IGNORECASE)
            for words in (item.phrase, item.noun)
        )
        found = next((match for match in written if match is not None), None)
        if found is None:
            raise ValueError(
                f"layout must have objects that the prompt names, got {item.phrase!r} for "
                f"{prompt!r}"
            )
        spans.append(found.span())
    return spans
