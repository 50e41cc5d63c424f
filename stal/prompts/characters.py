"""A text in the characters that the grammar reads, each with its place in the text as it was given.

Whatever keyboards, editors and web pages make of a letter, a space, a mark or a digit, it is the
plain one here: accents are composed (Unicode's NFC), full-width forms and letters of mathematics
are ASCII, what nobody sees is gone, and every line end is a line feed.
"""

from __future__ import annotations

import re
import unicodedata

# Of more accents on one letter, the rest is nobody's (UAX #15, stream-safe text), and sorting them
# takes quadratic time.
_MOST_ACCENTS = 30
_ACCENTS = "\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f"
_PIECE = re.compile(rf"[^{_ACCENTS}][{_ACCENTS}]{{1,{_MOST_ACCENTS}}}|\r\n|[\s\S]")

_LINE_ENDS = "\n\r\x0b\x0c\x85\u2028\u2029"
_PLAIN = {
    **dict.fromkeys("‘’‛′ʼ＇", "'"),
    **dict.fromkeys("“”„‟″«»＂", '"'),
    **dict.fromkeys("‐‑﹣－", "-"),  # hyphens, and none of the dashes
    **dict.fromkeys("、﹐", ","),
    **dict.fromkeys("。｡﹒…", "."),
    **dict.fromkeys("「」『』", '"'),
    "【": "[",
    "】": "]",
    "\u200b": " ",  # a word ends there, though nobody sees it
    "⁄": "/",
    **dict.fromkeys(_LINE_ENDS, "\n"),
}


def plain(text: str) -> tuple[str, list[int] | None]:
    """The text in plain characters, and where each of them begins in the text as it was.

    Returns:
        The plain text of n characters, and n + 1 offsets, the last of which is where the text
        ends; None if they count from 0, one by one.
    """
    if text.isascii() and text.isprintable():
        return text, None
    out: list[str] = []
    starts: list[int] = []
    for found in _PIECE.finditer(text):
        for character in _characters(found[0]):
            out.append(character)
            starts.append(found.start())
    starts.append(len(text))
    return "".join(out), starts


def _characters(piece: str) -> str:
    """What stands for a letter with its accents, or for another character."""
    if piece == "\r\n":
        return "\n"
    if len(piece) > 1:
        piece = unicodedata.normalize("NFC", piece)
        return "".join(_characters(each) for each in piece if not unicodedata.combining(each))
    if piece in _PLAIN:
        return _PLAIN[piece]
    if piece.isascii():
        return piece if piece.isprintable() else " "
    code = ord(piece)
    if 0xFF01 <= code <= 0xFF5E or 0x1D400 <= code <= 0x1D7FF or 0xFB00 <= code <= 0xFB06:
        return unicodedata.normalize("NFKC", piece)
    kind = unicodedata.category(piece)
    if kind == "Nd":
        return str(unicodedata.decimal(piece))
    if kind in ("Zs", "Cc"):
        return " "
    if kind == "Cf" or unicodedata.combining(piece) or 0xFE00 <= code <= 0xFE0F:
        return ""  # soft hyphens, joiners, marks of direction, variants
    return unicodedata.normalize("NFC", piece)
