"""Which noun phrases name something to draw.

Those do not that name where the picture is taken, the picture itself, a part of somebody, or what
is said to be absent.
"""

from __future__ import annotations

from collections.abc import Sequence

from stal.prompts.clause import Sentence
from stal.prompts.names import is_figure
from stal.prompts.nouns import NounPhrase
from stal.prompts.places import holds, stated_by
from stal.prompts.statements import RESTS
from stal.prompts.words import (
    AUXILIARIES,
    BODY_PARTS,
    NEGATIONS,
    NOT_OBJECTS,
    PICTURES,
    PLACES,
    POSSESSIVES,
    PURE_COLOURS,
    SHOWING,
    THE_CANVAS,
    singular,
    word_at,
    word_set,
)

# "a kitchen with two chairs" is a picture of two chairs.
_HAVING = word_set("with has have having containing filled where")


def is_object(tokens: Sequence[str], phrase: NounPhrase, sentence: Sentence) -> bool:
    """Whether a noun phrase names something to draw.

    Args:
        tokens: the words of its sentence.
        phrase: the noun phrase.
        sentence: that it is in, read up to it.
    """
    link = sentence.waiting
    last = phrase.noun.split(" ")[-1]
    head = singular(last)
    if phrase.determiner == "no" or phrase.count == 0 or _is_absent(sentence):
        return False
    if is_figure(phrase.words[-1]):
        return False
    if sentence.of_several and phrase.is_bare and (phrase.is_scenery or head in PLACES):
        return False  # "park, night BREAK a girl BREAK a boy"
    within = link is not None and link.names[:1] in RESTS
    at = sentence.preposition in ("at", "through", "across")
    at = at or word_at(tokens, phrase.start - 1) == "at"
    if head in PLACES and (within or at):
        return False
    if phrase.is_scenery and _is_setting(tokens, phrase, sentence):
        return False
    if " " in phrase.noun:
        return True
    if head in NOT_OBJECTS or last in NOT_OBJECTS or last in PURE_COLOURS:
        return False
    if head in PICTURES and _is_picture_itself(tokens, phrase):
        return False
    if phrase.determiner == "the" and link is not None:
        if last == "camera" and link.names == ("facing",):
            return False  # "looks at the camera"
        if head in THE_CANVAS:
            return False
    one_of_two = phrase.count == 1 or phrase.other
    owned = phrase.determiner in POSSESSIVES or (one_of_two and within)
    return not (owned and last in BODY_PARTS)


def _is_absent(sentence: Sentence) -> bool:
    """ "not a hat", "without a hat or a coat", "is not wearing a hat"."""
    clause = sentence.clause
    if sentence.preposition in NEGATIONS or (sentence.absent and sentence.joint):
        return True
    if sentence.waiting is not None or sentence.joint or sentence.preposition:
        return False
    states = holds(clause.verb) or stated_by(clause.verb) is not None
    return sentence.negated and bool(clause.subject) and states


def _is_setting(tokens: Sequence[str], phrase: NounPhrase, sentence: Sentence) -> bool:
    """Whether scenery is only where the picture is taken: "a cow in a field", "a field with"."""
    clause = sentence.clause
    if sentence.preposition or sentence.waiting is not None:
        return True
    if word_at(tokens, phrase.end) in _HAVING:
        return True
    acted_on = clause.verb and clause.verb not in AUXILIARIES and not sentence.joint
    return bool(clause.head) and bool(acted_on or not phrase.determiner)


def _is_picture_itself(tokens: Sequence[str], phrase: NounPhrase) -> bool:
    """ "a photo of", "a close up of", "an empty canvas"."""
    following, after = word_at(tokens, phrase.end), word_at(tokens, phrase.end + 1)
    shows = following in SHOWING or following in ("from", "taken")
    blank = not {"empty", "blank", "plain"}.isdisjoint(phrase.attributes)
    return shows or blank or (following == "up" and after == "of")
