"""Whether a text is in English, the only language that is parsed."""

from __future__ import annotations

import re
import unicodedata

from stal.prompts.words import word_set

_ENGLISH = word_set(
    "a an the and or of with without on in at to from by under above below behind between is are"
    " wearing holding sitting standing next near left right two three"
)
# What a German, French, Spanish, Italian, Portuguese or Dutch description of a scene can hardly do
# without; no words of English.
_FOREIGN = word_set(
    "ein eine einem einen einer eines der das dem den und von mit auf im neben"
    " un une le la les des du et dans sur avec"
    " el los las una y con sobre del uno il gli di della"
    " um uma os da em ao het op en een met van naast"
)
# Where one begins a text it is enough.
_ARTICLES = word_set("ein eine der das un une una um uma een")
_LETTERS = re.compile(r"[^\W\d_]+")


def looks_english(text: str) -> bool:
    """False of a text that is mostly of letters that English lacks, or that has several words that
    only other languages have, or one where it begins, and fewer that English has."""
    words = _LETTERS.findall(text.lower())
    letters = "".join(words)
    strange = 0 if letters.isascii() else sum(map(_is_not_latin, letters))
    if 2 * strange > len(letters):
        return False
    foreign, english = (sum(w in known for w in words) for known in (_FOREIGN, _ENGLISH))
    enough = 1 if words and words[0] in _ARTICLES else 2
    return foreign < enough or foreign <= english


def _is_not_latin(letter: str) -> bool:
    return not unicodedata.name(letter, "").startswith("LATIN")
