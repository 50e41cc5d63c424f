"""Line breaks of a prompt: mostly they are spaces, sometimes they end something."""

from __future__ import annotations

import re

from stal.prompts.places import SIDES, find
from stal.prompts.words import (
    COMPOUNDS,
    DETERMINERS,
    FUNCTION_WORDS,
    is_adjective,
    is_known_verb,
    is_number,
    is_word,
    looks_like_participle,
)

_WORDS = re.compile(r"\w+(?:[-'’]\w+)*|[^\w\s]")
_BULLET = re.compile(r"\s*(?:[-*•‣·]|\d{1,2}[.)])\s")
_FAR_ENOUGH = 80  # characters of a line to look at


def joined_lines(text: str) -> str:
    """A text with a space, a comma or a full stop in the place of each line break.

    A blank line, the next point of a list and the next sentence, "... on a sofa" before "A cat
    ...", are ends; where words go on, there is a space. Of words alone, as in lists of tags, each
    line is an item.
    """
    if "\n" not in text:
        return text
    lines = text.split("\n")
    out = [_without_bullet(lines[0])]
    for i in range(1, len(lines)):
        out += [_break(lines[i - 1], lines[i]), _without_bullet(lines[i])]
    return "".join(out)


def _without_bullet(line: str) -> str:
    bullet = _BULLET.match(line)
    return line if bullet is None else " " * bullet.end() + line[bullet.end() :]


def _break(before: str, after: str) -> str:
    """What the break between two lines is."""
    earlier = _WORDS.findall(before.rstrip()[-_FAR_ENOUGH:])
    later = _WORDS.findall(after[:_FAR_ENOUGH])
    if not earlier or not later or _BULLET.match(after):
        return "."
    first, tokens, last = later[0], [word.lower() for word in later], earlier[-1].lower()
    if not (is_word(first) and is_word(last)):
        return " "
    if last in FUNCTION_WORDS or last in SIDES or is_adjective(last) or is_number(last):
        return " "
    if is_known_verb(last) or looks_like_participle(last):
        return " "
    if first[0].isupper() or tokens[0] in DETERMINERS or is_number(tokens[0]):
        return "."
    if tokens[0] in FUNCTION_WORDS or find(tokens, 0) is not None or is_known_verb(tokens[0]):
        return " "
    if looks_like_participle(tokens[0]) or (last, tokens[0]) in COMPOUNDS:
        return " "
    words = {word.lower() for word in earlier} | set(tokens)
    return "," if DETERMINERS.isdisjoint(words) else " "
