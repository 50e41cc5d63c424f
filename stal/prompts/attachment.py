"""What words of place, participles and parts are said of, by what the sentence named before.

In "a cat on a bed next to a lamp" the cat is next to the lamp, in "a cat next to a lamp on a desk"
the lamp is on the desk. Objects are lists of their numbers among the mentions.
"""

from __future__ import annotations

from stal.prompts.clause import Sentence
from stal.prompts.mentions import Mentions
from stal.prompts.nouns import NounPhrase
from stal.prompts.places import ACTS, HAS, Place, holds
from stal.prompts.statements import BESIDE, BORNE, OPPOSITE, Statements
from stal.prompts.words import ANIMALS, PEOPLE, verb_stem


def spoken_of(
    place: Place,
    i: int,
    sentence: Sentence,
    said: Statements,
    *,
    bare: bool = False,
    pronoun: bool = False,
) -> list[int]:
    """What words of place are said of.

    Args:
        place: the words.
        i: the position at which they begin.
        sentence: that they are in, read up to them.
        said: the relations so far.
        bare: whether they have no object.
        pronoun: whether a pronoun is their object.

    Returns:
        The objects; none if none was named yet.
    """
    clause, link = sentence.clause, sentence.complete
    if clause.role == "object":
        return _spoken_of_object(place, i, sentence, said, bare=bare, pronoun=pronoun)
    adjunct, beside = clause.role == "adjunct", place.names[:1] in BESIDE
    facing, on = place.names == ("facing",), place.names == ("on",)
    to_latest = link is not None and link.references == clause.latest
    looks = link is not None and link.names == ("facing",)
    if looks and adjunct and to_latest and not sentence.joint:
        return clause.latest  # "looking at a goldfish in a bowl"
    if i == sentence.phrase_end and link is not None and link.rests:
        stacks = on and adjunct and to_latest and not link.reverse
        if link.names != ("inside",) and (stacks or place.names == ("around",)):
            # "a pizza on a pan on a stove", "sitting on benches around a table"
            return clause.latest
    if sentence.joint or clause.verb:
        return clause.subject or clause.last
    if link is not None and adjunct and to_latest:
        if link.names == ("inside",) and (link.reverse or beside or facing):
            # "a bowl full of fruit", "a cat in a box next to a dog"
            both = beside and not link.reverse
            return [*link.subjects, *(link.references if both else [])]
        if link.rests and (beside or facing):
            # "a cat on a bed next to a lamp", "a plate topped with cake next to a spoon"
            bears = link.reverse and link.names != ("worn by",)
            return [*link.subjects, *(link.references if bears else [])]
    if clause.role == "subject" and place.reference == "object" and not sentence.room:
        # "a lamp and a cup on a shelf", but "a lamp to its left, a cup on a shelf"
        placed = {subject for subject, _, _ in said.relations}
        placed.update(index for each in sentence.sided for index in each.subjects)
        return [index for index in clause.last if index in clause.latest or index not in placed]
    return clause.latest


def _spoken_of_object(
    place: Place, i: int, sentence: Sentence, said: Statements, *, bare: bool, pronoun: bool
) -> list[int]:
    """What words of place after the object of a verb or of "with" are said of."""
    clause, link = sentence.clause, sentence.complete
    of_object = place.reference == "object"
    bearer = sentence.contents.bearer_of(clause.last)
    if clause.trait and bearer and (of_object or place.reference == "canvas"):
        # "a vase with flowers next to a clock", but "... with flowers inside"
        return clause.last if bare else bearer
    if of_object and not bare:
        if clause.trait:
            return clause.head
        if bearer and not pronoun and not sentence.contents.stands(bearer):
            return bearer  # "a bowl with an egg on a table"
    if link is not None and link.references == clause.last and of_object:
        # "a woman riding a horse in front of a house", "... holding a cup behind a table"
        if verb_stem(clause.verb) in ACTS:
            return link.subjects  # "a child reading a book on a rug"
        rides, held = link.names == ("on",), link.names == ("held by",) and link.reverse
        if rides or (held and place.names[:1] in BESIDE):
            return [*link.subjects, *clause.last]
    listed = link is not None and link.lists and link.names not in BORNE
    if sentence.joint == "," and clause.head and not listed:
        return clause.head  # "a house with a garden, next to a lake"
    another = sentence.preceding == "," and i == sentence.phrase_end
    if another and (pronoun or not of_object):
        return clause.latest  # "a plate with a burger, a fork to its left"
    worn = {thing for thing, name, _ in said.relations if name == "worn by"}
    if place.reference not in ("object", "canvas") and worn.issuperset(clause.last):
        return said.wearers(clause.last)  # "a dog with a collar to her left"
    if pronoun:
        # "with an eyepatch and a parrot on his shoulder"
        return [index for index in clause.last if index in clause.latest or index not in worn]
    return clause.last


def other_side_of(place: Place, subjects: list[int], sentence: Sentence) -> list[int]:
    """ "a dog is to the left of a bench, and a cat is on the right": of the bench, or of nothing.

    Args:
        place: words of place without an object.
        subjects: what they are said of.
        sentence: that they are in, read up to them.
    """
    link = sentence.complete
    opposite = tuple(OPPOSITE.get(name, "") for name in place.names)
    if link is None or not link.is_side or not opposite or link.names != opposite:
        return []
    return link.references if set(subjects).isdisjoint(link.subjects + link.references) else []


def object_acts(sentence: Sentence, known: Mentions) -> bool:
    """Whether a participle after the object of a verb or of "with" is said of that object.

    So it is in "a bus with a man wearing a hat"; not in "a man with a bag standing next to a bus".

    Args:
        sentence: that it is in, read up to it.
        known: the objects so far.
    """
    clause = sentence.clause
    alive, owner_alive = (
        bool(group) and {known.items[index].kind for index in group} <= ANIMALS | PEOPLE
        for group in (clause.last, clause.bearer)
    )
    owned = owner_alive and clause.bearer == clause.head and not clause.verb
    return alive or not (clause.trait or owned)


def modifies_latest(verb: str, i: int, sentence: Sentence, known: Mentions) -> bool:
    """Whether a participle at position i is said of the latest noun phrase, an adjunct.

    "A dog next to a man wearing a hat", "a cup next to a plate holding a cake".

    Args:
        verb: the participle.
        i: its position.
        sentence: that it is in, read up to it.
        known: the objects so far.
    """
    clause = sentence.clause
    if clause.role != "adjunct" or i != sentence.phrase_end or not verb.endswith("ing"):
        return False
    if known.are_people(clause.latest):
        return True
    people = known.are_people(clause.subject)
    animals = all(known.items[index].kind in ANIMALS for index in clause.latest)
    if animals and verb in ("wearing", "holding", "carrying") and not people:
        return True  # "a dog next to a cat wearing a scarf"
    return holds(verb) and not people and sentence.contents.can_bear(clause.latest)


def owners(
    phrase: NounPhrase, sentence: Sentence, known: Mentions, said: Statements, *, of_body: bool
) -> list[int]:
    """What a part belongs to, if it is said to be a part.

    Args:
        phrase: names the part.
        sentence: that it is in, read up to it.
        known: the objects so far.
        said: the relations so far.
        of_body: whether the part is somebody's, as hair is.

    Returns:
        The objects; none if it is no part of any.
    """
    clause = sentence.clause
    if sentence.preposition == "with":
        bearer = said.wearers(clause.bearer) if of_body else clause.bearer
        if of_body and not known.are_alive(bearer) and known.are_alive(clause.head):
            return clause.head  # "a man on a bench with long hair"
        return bearer
    has = clause.verb in HAS and clause.role == "subject"
    if has and not (sentence.joint or sentence.preposition):
        return clause.subject
    tag_of_latest = is_tag(phrase, sentence) and known.are_alive(clause.latest)
    if adds_part(phrase, sentence) or tag_of_latest:
        return clause.latest
    if sentence.joint and clause.joined and of_body and known.are_alive(clause.bearer):
        return clause.bearer  # "a woman with a dress and long hair"
    return []


def adds_part(phrase: NounPhrase, sentence: Sentence) -> bool:
    """Whether it follows a part and a conjunction: "a man with a beard and ..."."""
    return bool(sentence.joint) and sentence.part_end == phrase.start - 1


def is_tag(phrase: NounPhrase, sentence: Sentence) -> bool:
    """Whether it stands in a list of bare words: "cute cat, tiny hat"."""
    return sentence.joint == "," and not phrase.determiner
