"""Other ways of saying things, in the words that the grammar reads.

"Draw a cat" asks for a cat, "you can see a cat" says that there is one, "left: a cat" where it is.
"""

from __future__ import annotations

from collections.abc import Sequence

from stal.prompts.places import SIDES, find
from stal.prompts.words import (
    AUXILIARIES,
    DETERMINERS,
    THE_CANVAS,
    VERB_STEMS,
    is_adjective,
    is_boundary,
    is_number,
    word_set,
)
from stal.relations import Span

Word = tuple[str, Span]  # a token, and its span in the text

_VIEWERS = word_set("you you'll we we'll i one")
_SEES = word_set("see find spot notice observe")
_REQUESTS = word_set(
    "draw paint create generate make show render design sketch depict illustrate produce give"
    " imagine picture visualize visualise put place add compose"
)
# Those that are nothing else, and so ask for "cats" too.
_PLAIN_REQUESTS = word_set("draw create generate depict illustrate imagine visualize visualise")
_WISHES = word_set("want need like")
_ASKERS = word_set("we i i'd would")
_POLITE = word_set("please can could would you we i i'd let's lets let us me to see")
_AFTER_CAN = word_set("be have also only not just clearly easily")
ORDERS = {
    "from left to right": "left of",
    "from right to left": "right of",
    "from top to bottom": "above",
    "from bottom to top": "below",
}
# Kinds of cans.
_CANS = word_set("tin watering soda garbage trash rubbish beer paint spray oil milk gas jerry soup")


def reword(tokens: Sequence[str], spans: Sequence[Span]) -> list[Word]:
    """The words of a sentence as the grammar reads them.

    Args:
        tokens: the words as they stand in the text.
        spans: the place of each in the text.

    Returns:
        The words, each with the span that it stands for.
    """
    words = list(zip(tokens, spans, strict=True))
    for rule in (_without_request, _with_order_last, _with_places_said, _without_viewer, _plain):
        words = rule(words)
    return words


def _without_request(words: list[Word]) -> list[Word]:
    """Leaves out "please draw me" and "in this picture,"."""
    tokens = [token for token, _ in words]
    pictured = len(tokens) > 4 and tokens[0] == "in" and tokens[1] in DETERMINERS
    if pictured and tokens[2] in THE_CANVAS and tokens[3] == ",":
        return words[4:]
    i, asked = 0, False
    while i < len(tokens):
        wishes = tokens[i] in _WISHES and i > 0 and tokens[i - 1] in _ASKERS
        if not wishes and tokens[i] not in _POLITE | _REQUESTS:
            break
        asked |= wishes or tokens[i] in _REQUESTS
        i += 1
    if not asked or i == len(tokens):
        return words
    starts = tokens[i] in DETERMINERS or is_number(tokens[i])
    plain = tokens[i - 1] in _PLAIN_REQUESTS and not is_boundary(tokens, i)
    return words[i:] if starts or plain or tokens[i - 1] in ("me", "us") else words


def _with_order_last(words: list[Word]) -> list[Word]:
    """ "From left to right: a cat and a dog" is "a cat and a dog from left to right"."""
    if " ".join(token for token, _ in words[:4]) not in ORDERS:
        return words
    rest = words[4:]
    while rest and rest[0][0] in (",", ":", "there", "is", "are"):
        rest = rest[1:]
    return rest + words[:4]


def _with_places_said(words: list[Word]) -> list[Word]:
    """ "Top left: a cat" is "on the top left there is a cat"."""
    out: list[Word] = []
    i = 0
    while i < len(words):
        end = i
        if i == 0 or words[i - 1][0] == ",":
            while end < len(words) and _is_side(words[end][0]):
                end += 1
        if i < end < len(words) and words[end][0] == ":":
            before, after = words[i][1], words[end][1]
            out += [("on", before), ("the", before), *words[i:end], ("there", after), ("is", after)]
            i = end + 1
        else:
            out.append(words[i])
            i += 1
    return out


def _is_side(token: str) -> bool:
    return all(part in SIDES or part in ("corner", "side") for part in token.split("-"))


def _without_viewer(words: list[Word]) -> list[Word]:
    """Puts "there is" in the place of "you can see", and leaves out "if you look"."""
    tokens = [token for token, _ in words]
    out: list[Word] = []
    i = 0
    while i < len(tokens):
        end = i + 1
        if tokens[i] in _VIEWERS:
            while end < len(tokens) and (tokens[end] in AUXILIARIES or tokens[end] == "can"):
                end += 1
        if tokens[i : i + 3] == ["if", "you", "look"]:
            i += 3
        elif tokens[i] in _VIEWERS and end < len(tokens) and tokens[end] in _SEES:
            out += [("there", words[i][1]), ("is", words[end][1])]
            i = end + 1
        else:
            out.append(words[i])
            i += 1
    return out


def _plain(words: list[Word]) -> list[Word]:
    """Leaves out the "can" of "can be seen" and the "a little" of "a little to the left"."""
    tokens = [token for token, _ in words]
    out: list[Word] = []
    i = 0
    while i < len(tokens):
        a_little = tokens[i] == "a" and tokens[i + 1 : i + 2] in (["little"], ["bit"])
        if a_little and find(tokens, i + 2) is not None:
            i += 2
            continue
        if tokens[i] != "can" or not _is_modal(tokens, i):
            out.append(words[i])
        i += 1
    return out


def _is_modal(tokens: Sequence[str], i: int) -> bool:
    before, after = tokens[i - 1] if i else "", tokens[i + 1] if i + 1 < len(tokens) else ""
    thing = before in DETERMINERS | _CANS or is_number(before) or is_adjective(before)
    return after in _AFTER_CAN or (after in VERB_STEMS and not thing)
