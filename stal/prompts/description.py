"""What a prompt says: its objects and the relations between them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from stal.prompts.scene import Scene, scene_of
from stal.prompts.words import FUNCTION_WORDS, article
from stal.relations import NOWHERE, Side, Span

_BACKGROUND = re.compile(r"(?<![\w-])(?:background|backdrop)\b", re.IGNORECASE)
_LOOK_BACK = 80  # characters in which the words that describe a background are looked for


@dataclass(frozen=True)
class Object:
    """One thing to draw.

    Attributes:
        phrase: the local description, e.g. "a shiny red circle".
        noun: what it is, e.g. "circle" or "teddy bear"; plural where the text speaks of an
            uncounted plural ("red shoes"). A part stands for its whole: of "a toilet seat" it is
            "toilet".
        attributes: the words that describe it, in order, e.g. ("shiny", "red").
        count: how many things it is, at least and at most: (1, 1) but for plurals that the text
            does not count ("several birds") or counts beyond 20.
        index: which of the things of one counted plural it is: 0 and 1 for "two dogs".
        position: where the text puts it on the canvas, (x, y, depth), each -1 (left, top,
            background), 0 (the middle), 1 (right, bottom, foreground) or None (not said).
        span: [start, end) of the words that name it first; not compared.
    """

    phrase: str
    noun: str
    attributes: tuple[str, ...] = ()
    count: tuple[int, int] = (1, 1)
    index: int = 0
    position: Side = NOWHERE
    span: Span = field(default=(0, 0), compare=False)


@dataclass(frozen=True)
class Relation:
    """`objects[subject]` is `predicate` `objects[object]`.

    Attributes:
        subject, object: indices into the objects.
        predicate: one of `stal.relations.PREDICATES`; `GEOMETRY` there says what it means for two
            boxes.
            "between" comes in pairs: (a, "between", b) and (a, "between", c).
        span: [start, end) of the words that state it; not compared.
    """

    subject: int
    predicate: str
    object: int
    span: Span = field(default=(0, 0), compare=False)


@dataclass(frozen=True)
class Description:
    """A prompt: its text (D), its objects in order of mention, its relations in order of statement.

    Relations are kept as stated, contradictory ones included. Spans index `text`.

    Attributes:
        text: as it was given.
        objects: what to draw.
        relations: what it says of them.
    """

    text: str
    objects: tuple[Object, ...] = ()
    relations: tuple[Relation, ...] = ()

    @property
    def statements(self) -> tuple[tuple[int, str, int], ...]:
        """The relations as (subject, predicate, object), in order: what layouts keep of them."""
        return tuple((r.subject, r.predicate, r.object) for r in self.relations)

    @property
    def scene(self) -> Scene:
        """The kind of shot and the setting."""
        return scene_of(self.text, [each.noun for each in self.objects])

    @property
    def background(self) -> str:
        """What the text says of the background, as "on a black background"; "" if nothing."""
        for found in _BACKGROUND.finditer(self.text):
            start = max(0, found.start() - _LOOK_BACK)
            ends = [o.span[1] for o in self.objects if start < o.span[1] <= found.start()]
            words = self.text[max([start, *ends]) : found.end()].lower().split()[-5:]
            own = [i for i, word in enumerate(words[:-1]) if not _describes(words, i)]
            words = words[own[-1] + 1 :] if own else words
            if len(words) > 1:
                return f"on {article(words[0])} {' '.join(words)}"
        return ""


def _describes(words: list[str], i: int) -> bool:
    """Whether a word before "background" can belong to it: "plain gray", "black and white"."""
    if words[i] == "and":
        return i > 0 and _describes(words, i - 1)
    return bool(re.fullmatch(r"[\w-]+", words[i])) and words[i] not in FUNCTION_WORDS
