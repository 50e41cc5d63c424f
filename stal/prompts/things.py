"""How large everyday things are and what they rest on: the table `assets/layout/nouns.tsv`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path

from stal.prompts.words import KINDS, MEN, PEOPLE, WOMEN, WORN_AT, singular, singular_noun

# What an adjective makes of a width and height.
_ADJECTIVES = {
    **dict.fromkeys(("tiny", "miniature", "mini", "minuscule"), 0.4),
    **dict.fromkeys(("small", "little"), 0.7),
    **dict.fromkeys(("large", "big", "oversized", "tall", "towering"), 1.4),
    **dict.fromkeys(("huge", "giant", "gigantic", "enormous", "massive", "colossal"), 2.5),
}
# Sizes in pictures go with this power of those in metres, down to 1 / _CONTRAST of the largest
# thing; chosen so that the smallest, a fifth as large as the largest, can still be drawn.
FLATTERY = 0.5
_CONTRAST = 20

RESTS_ON = (
    "ground", "table", "water", "wall", "ceiling", "hand", "body", "air", "sky", "flat", "land",
    "far",
)  # fmt: skip

NOUNS = Path(__file__).parents[1] / "assets" / "layout" / "nouns.tsv"


@dataclass(frozen=True)
class Thing:
    """A row of the table.

    Attributes:
        noun: what it is called.
        width, height: as usually seen, in metres.
        over_ground: height of its lower edge over the ground, in metres.
        rests_on: one of `RESTS_ON`: what bears it, or how it is borne. What is "flat" lies and is
            lain on, "land" is a stretch of ground or water, "far" is scenery.
        settings: where it is met.
    """

    noun: str
    width: float
    height: float
    over_ground: float
    rests_on: str
    settings: tuple[str, ...]

    @property
    def extent(self) -> float:
        """The larger of width and height."""
        return max(self.width, self.height)

    def share(self, largest: float) -> float:
        """How large it is in pictures with things of that extent, in metres, as a share of theirs.

        Pictures flatter the small: whoever photographs a mouse and an elephant goes near the mouse.
        """
        return max(self.extent / largest, 1 / _CONTRAST) ** FLATTERY


@cache
def things() -> dict[str, Thing]:
    """The table, by noun."""
    lines = [line for line in NOUNS.read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
    found = {}
    for line in lines[1:]:
        noun, width, height, over_ground, rests_on, settings = line.split("\t")
        measures = float(width), float(height), float(over_ground)
        found[noun] = Thing(noun, *measures, rests_on, tuple(settings.split()))
    return found


def _kind_of(noun: str) -> str:
    """ "man" for "wizard", "bird" for "finch"; "" where nothing is known."""
    for kind, nouns in (("man", MEN), ("woman", WOMEN), ("person", PEOPLE), *KINDS.items()):
        if noun in nouns:
            return kind
    return ""


def is_kind(noun: str) -> bool:
    """Whether a noun is a kind of a person or an animal: "wizard", "finch"."""
    return _kind_of(noun) in ("man", "woman", "person", "bird", "dog", "cat", "fish")


def worn_at(noun: str) -> float | None:
    """How far down its wearer a thing is worn, as a share of their height, if that is known."""
    last = noun.lower().split(" ")[-1]
    # Of "jeans" and "socks", which have no singular for the grammar, too.
    return WORN_AT.get(last, WORN_AT.get(singular(last), WORN_AT.get(last.removesuffix("s"))))


@lru_cache(maxsize=65536)
def thing_of(noun: str, phrase: str = "") -> Thing | None:
    """The row of a noun, in singular or plural, or of what it is a kind of ("polar bear"); or None.

    The last words of a compound say what it is. The adjectives of its phrase ("a tiny cup") change
    the size; those of its parts ("a woman with a huge smile") do not.
    """
    words = noun.lower().split()
    before = re.findall(r"([\w-]+) " + re.escape(noun.lower()), phrase.lower())
    words = before[:1] + words if before and f"{before[0]} {noun.lower()}" in things() else words
    for start in range(len(words)):
        kind = " ".join(words[start:])
        found = things().get(kind) or things().get(singular_noun(kind))
        found = found or things().get(_kind_of(singular_noun(kind)))
        if found is not None:
            described = re.findall(r"[\w-]+", phrase.lower().partition(" with ")[0])
            by = math.prod(_ADJECTIVES.get(word, 1.0) for word in described if word not in words)
            return replace(found, width=by * found.width, height=by * found.height)
    return None
