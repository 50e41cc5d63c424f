"""Words with full stops and numbers: "St. Bernard", "No. 5", "U.S.", "5 p.m.", "Boeing 747".

The full stop of an abbreviation ends no sentence, and a number that is part of a name counts
nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from stal.prompts.places import find
from stal.prompts.words import (
    FUNCTION_WORDS,
    NOT_OBJECTS,
    PICTURES,
    PLACES,
    SCENERY,
    is_adjective,
    is_boundary,
    is_known_verb,
    is_number,
    is_plural,
    is_word,
    looks_like_participle,
    number_of,
    word_at,
    word_set,
)
from stal.relations import Span

# What begins a sentence rather than a name: "plan B. The cat ...".
_OPENING = (
    r"(?:A|An|The|This|That|These|Those|There|It|Its|He|She|They|His|Her|Their|In|On|To|At|Next"
    r"|Above|Below|Under|Behind|Between|Near|One|Two|Three|Four|Five|Some|Several|Both|Each|And|But"
    r"|With|Another)\b"
)
_TITLES = (
    "st|ste|mr|mrs|ms|mx|dr|prof|mt|ft|sgt|capt|cpt|lt|col|gen|sen|gov|rev|hon|pres|fr|messrs|pvt"
    "|adm|maj|supt|insp"
)
# Of these the full stop may end a sentence as well.
_CLOSINGS = "etc|jr|sr|inc|ltd|corp|bros|ave|blvd|esq|co|dept|intl"
_OTHERS = "vs|approx|ca|cf|incl|viz|vol|esp"
# What a text spells shorter: words of the grammar, or "" for nothing.
_WORDS_FOR = {
    "vs.": "and",
    "vs": "and",
    "e.g.": ",",
    "i.e.": ",",
    "viz.": ",",
    "incl.": "including",
    "approx.": "",
    "ca.": "",
    "cf.": "",
    "esp.": ",",
    "w/": "with",
    "w/o": "without",
    "etc.": "etc",
}

ABBREVIATION = (
    r"(?<![\w.])(?:"
    r"\d{1,2}(?::\d\d)?\s?[aApP]\.?[mM](?:\.|(?!\w))"  # "5 p.m.", "5:30pm"
    r"|\d{1,2}\s?[oO]['’]clock"
    r"|[$€£¥]\s?\d[\d.,]*(?<=\d)(?:\s?(?:[mb]illion|[kmb])\b)?"  # "a $5 bill"
    r"|(?:Ph|D|M|B|Ed)\.\s?(?:D|Sc|Phil|Ed|Eng)\.|(?:M|B)\.A\."  # "Ph.D."
    r"|[nN][oOrR]\.\s?#?\d+(?![\d.:]\d)|№\s?\d+|\#\d+\b"  # "No. 5", "#5"
    rf"|(?i:{_TITLES})\.(?=\s?[^\W\d_])"
    rf"|(?i:{_CLOSINGS}|{_OTHERS})\."
    rf"|(?:[A-Z]\.\s?){{1,4}}(?!\s?{_OPENING})(?=[A-Z][a-z])"  # "J. R. R. Tolkien"
    r"|(?:[a-zA-Z]\.){2,6}"  # "U.S.", "e.g."
    r"|w/o?(?=\s)|\d+ [x×] \d+(?: [x×] \d+)?\b"
    r")"
)
_TITLE = re.compile(rf"(?i:{_TITLES})\.")
_INITIALS = re.compile(r"(?:[A-Z]\.\s?){1,4}")
_TIME = re.compile(
    r"\d{1,2}(?::\d\d)?\s?[ap]\.?m\.?|\d{1,2}\s?o['’]clock|[$€£¥]\s?\d[\d.,]*\s?\w*", re.IGNORECASE
)
_FIGURE = re.compile(
    rf"{_TIME.pattern}|\d+0s|\d+(?:[:/.,]\d+)*(?:st|nd|rd|th|mm|cm|m|km|in|ft|kg|g|ml|px|k|mp|fps)?"
    r"|\d+ [x×] \d+(?: [x×] \d+)?",
    re.IGNORECASE,
)
_THOUSANDS = re.compile(r"\d{1,3}(?:,\d{3})+")
_NUMBERED = re.compile(r"n[or]\.\s?#?\d+|№\s?\d+|#\d+", re.IGNORECASE)
_NEXT_SENTENCE = re.compile(rf"\s+{_OPENING}|\s*$")
_NOTHING = NOT_OBJECTS | PICTURES | SCENERY | PLACES  # "scene 3" is no thing more than a scene is
_ALIKE = word_set("sheep fish deer people men women children geese mice feet oxen")


def named(tokens: list[str], spans: list[Span], text: str, found: re.Match[str]) -> bool:
    """Appends an abbreviation, or joins a name to the title before it; whether it was either.

    Names keep their capitals: "St. Bernard".

    Args:
        tokens, spans: of the sentence so far, which are changed.
        text: that they are in.
        found: the next token.
    """
    word, start = found[0].strip(), found.start()
    span = (start, start + len(word))
    if tokens and is_word(word) and 0 <= start - spans[-1][1] <= 1:
        title = tokens[-1]
        titled = _TITLE.fullmatch(title) is not None
        titled &= word[0].isupper() or title[:1].islower()
        titled &= not (word.lower() in FUNCTION_WORDS or is_number(word))
        if titled or (_INITIALS.fullmatch(title) and word[0].isupper()):
            bare = re.sub(r"['’]s?$", "", word)
            tokens[-1] = f"{title}{text[spans[-1][1] : start]}{bare}"
            spans[-1] = (spans[-1][0], start + len(bare))
            if bare != word:
                tokens.append("'s")
                spans.append((start + len(bare), span[1]))
            return True
    known = _WORDS_FOR.get(word.lower())
    if _THOUSANDS.fullmatch(word):
        known = word.replace(",", "")
    if known is None:
        numbered = _NUMBERED.fullmatch(word) is not None
        if not (numbered or _TIME.fullmatch(word) or (len(word) > 1 and word.endswith("."))):
            return False
        name = numbered or _TITLE.fullmatch(word) or _INITIALS.fullmatch(word)
        known = word if name else word.lower()
    if known:
        tokens.append(known)
        spans.append(span)
    return True


def is_figure(token: str) -> bool:
    """Whether a token is a time, a year, a ratio or a measure, which is no thing: "5 p.m."."""
    return token[:1].isdigit() and _FIGURE.fullmatch(token) is not None


def ends_sentence(text: str, found: re.Match[str]) -> bool:
    """Whether a token with a full stop of its own ends its sentence as well."""
    word = found[0].lower()
    if len(word) < 2 or not word.endswith(".") or _TITLE.fullmatch(word):
        return False
    if word in _WORDS_FOR and word != "etc.":
        return False
    return _NEXT_SENTENCE.match(text, found.end()) is not None


def with_numbers(words: Sequence[tuple[str, Span]], text: str) -> list[tuple[str, Span]]:
    """Joins the number of a name to it: "route 66", "a Boeing 747 plane", "an iPhone 15".

    A number after a noun counts what comes next only if that is a plural: "1girl, 2 boys".

    Args:
        words: of a sentence, with the place of each in the text.
        text: as it was written.
    """
    tokens = [token for token, _ in words]
    out: list[tuple[str, Span]] = []
    for i, (token, span) in enumerate(words):
        if i > 1 and _measures(tokens, i - 1):
            number, (start, _) = out[-1]
            out[-1] = f"{number} {token}", (start, span[1])
        elif not (i and token.isdecimal() and _is_name(tokens, i, text[words[i - 1][1][0]])):
            out.append((token, span))
        elif tokens[i - 1] not in _NOTHING or not is_boundary(tokens, i + 1):
            before, (start, _) = out[-1]
            out[-1] = f"{before} {token}", (start, span[1])
    return out


def _measures(tokens: Sequence[str], i: int) -> bool:
    """Whether the number at position i measures what it is of: "a 2 m tall man"."""
    if tokens[i - 1] not in ("a", "an") or not is_number(tokens[i]):
        return False
    return not is_boundary(tokens, i + 1) and not is_boundary(tokens, i + 2)


def _is_name(tokens: Sequence[str], i: int, initial: str) -> bool:
    """Whether the number at position i is part of a name, whose last word begins so."""
    before = tokens[i - 1]
    if before in FUNCTION_WORDS or not is_word(before) or before[:1].isdecimal():
        return False
    if is_known_verb(before) or is_adjective(before):
        return False
    if looks_like_participle(before) and not initial.isupper():  # "Boeing"
        return False
    if number_of(tokens[i]) == 1:
        return is_boundary(tokens, i + 1)
    for end in range(i + 1, min(i + 6, len(tokens) + 1)):
        if is_boundary(tokens, end) or find(tokens, end) is not None:
            last = word_at(tokens, end - 1) if end > i + 1 else ""
            return not (is_plural(last) or last in _ALIKE)
    return False
