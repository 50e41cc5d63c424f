"""What pronouns stand for, by what the sentence and the one before were about.

Objects are lists of their numbers among the mentions; `besides` are those that a pronoun cannot
mean, because the words of place that it follows are said of them.
"""

from __future__ import annotations

from collections.abc import Sequence

from stal.prompts.clause import Sentence
from stal.prompts.mentions import Mentions
from stal.prompts.statements import Link
from stal.prompts.words import (
    MASCULINE,
    MEN,
    PEOPLE,
    PERSONAL,
    PLURAL_PRONOUNS,
    WOMEN,
    is_plural,
    singular,
)


def resolve(
    pronoun: str,
    besides: Sequence[int],
    sentence: Sentence,
    known: Mentions,
    *,
    first: Sequence[int] = (),
    alive: bool = False,
) -> list[int]:
    """What a pronoun stands for: the main subject if that fits, else the latest object that does.

    Args:
        pronoun: personal or possessive, e.g. "it" or "its".
        besides: what it cannot mean.
        sentence: that it is in, read up to it.
        known: the objects so far.
        first: what it means if that fits.
        alive: whether it is rather somebody than something.

    Returns:
        The objects; none if there is nothing that it can mean.
    """
    groups = [list(first), *_topics(pronoun, besides, sentence)]
    groups += [[index] for index in known.latest()]
    if alive:
        groups.sort(key=lambda group: not known.are_alive(group))
    for group in groups:
        found = _fitting(pronoun, group, known) if set(group).isdisjoint(besides) else []
        if found:
            return found
    if pronoun == "them":
        for number in (sentence.number, sentence.number - 1):
            latest = reversed(known.latest())
            group = [i for i in latest if known.items[i].sentence == number]
            if group[1:]:
                return [index for index in group if index not in besides]
    return other_than(besides, sentence)


def _topics(pronoun: str, besides: Sequence[int], sentence: Sentence) -> list[list[int]]:
    """What the text is about, the likeliest first.

    What the relation before spoke of comes first in a clause after the main one ("..., while the
    dog sits below it"), and after a single statement of side ("a cat left of a dog, with a bird
    above it").
    """
    topics = [sentence.main, sentence.clause.subject, sentence.about]
    if sentence.clause.role == "object" and besides and pronoun in ("it", "its"):
        topics.insert(0, sentence.aside)
    link = sentence.complete
    if sentence.second and link is not None and besides:
        # "a laptop on a desk, a cup to its right", but "... a cat under it"
        topics.insert(0, link.subjects if link.rests and pronoun == "its" else link.references)
    return topics


def _fitting(pronoun: str, group: Sequence[int], known: Mentions) -> list[int]:
    """Those of a group that a pronoun can stand for: all or none, but of "him" the men."""
    if not group:
        return []
    mentions = known.items
    people = [index for index in group if singular(mentions[index].noun) in PEOPLE]
    if pronoun in PERSONAL:
        others = WOMEN if pronoun in MASCULINE else MEN
        return [index for index in people if mentions[index].kind not in others]
    if pronoun in PLURAL_PRONOUNS:
        plural = len(group) > 1 or is_plural(mentions[group[0]].noun)
        # "a man on a horse ... them" is both.
        one = pronoun == "them" and mentions[group[0]].kind in MEN | WOMEN
        fits = plural or (bool(people) and not one)
    else:
        fits = len(group) == 1 and not (known.is_one_of_several(group[0]) or people)
    return list(group) if fits else []


def after_list(pronoun: str, link: Link, sentence: Sentence, known: Mentions) -> list[int]:
    """What a pronoun after words of place that end a list stands for; none if it is no list.

    In "a cat, a dog behind it" that is the cat, and the relation speaks of the dog alone: of the
    latest noun phrase. In "a bench, a tree on its left and a lamp on its right" both speak of the
    bench.

    Args:
        pronoun: personal or possessive.
        link: the relation, with the whole list for its subjects.
        sentence: that it is in, read up to the pronoun.
        known: the objects so far.
    """
    clause, said = sentence.clause, sentence.complete
    if clause.verb or sentence.about or link.opens or clause.role != "subject":
        return []
    before = [index for index in link.subjects if index not in clause.latest]
    if said and before in ([], said.subjects) and said.looks_back:
        before = said.references
    found = resolve(pronoun, clause.latest, sentence, known, first=before) if before else []
    return found if set(found).issuperset(before) else []


def latest_two(besides: Sequence[int], sentence: Sentence, known: Mentions) -> list[int]:
    """What "both" and "between them" stand for: what the text is about if that is two.

    Args:
        besides: what they cannot mean.
        sentence: that they are in, read up to them.
        known: the objects so far; the latest two if the text is about one or more.
    """
    for group in (sentence.clause.subject, sentence.main, sentence.about):
        if len(group) == 2 and set(group).isdisjoint(besides):
            return list(group)
    return [index for index in reversed(known.latest()) if index not in besides][-2:]


def other_than(besides: Sequence[int], sentence: Sentence) -> list[int]:
    """What the text is about, other than these; none if that is nothing."""
    clause = sentence.clause
    for group in (clause.subject, sentence.main, sentence.about, clause.last):
        if group and set(group).isdisjoint(besides):
            return list(group)
    return []
