"""The relations of a text, in order of statement."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from itertools import pairwise

from stal.budget import MOST_PROMPT_RELATIONS
from stal.prompts.mentions import MOST_COUNTED, Mention
from stal.prompts.words import UNCOUNTED, article, is_for_one, is_plural, singular_noun
from stal.relations import Side, Span, Statement, side_names

OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
# The names of a link by kind: ...
BESIDE = [("next to",), ("left of",), ("right of",), ("behind",), ("in front of",)]
BORNE = [("worn by",), ("held by",)]
# ... and what is said of what rests on or in something, not of that something: "a mouse on a desk
# next to a cup".
RESTS = [("on",), ("inside",)]


@dataclass
class Link:
    """A relation while the text is read: it may still lack its objects, or its subjects.

    Attributes:
        names: its predicates: two for "at the upper left of", none if it is denied.
        subjects: what the words of place are said of.
        span: of these words.
        references: their objects.
        opens: whether it begins a clause, so that its subject may follow.
        fronted: ... also after a comma: "..., and below the clock, a couch".
        reverse: whether it is the references that are in the relation: "a filled with b".
        rests: on, in or on top of: what is said next is of what rests there.
    """

    names: tuple[str, ...]
    subjects: list[int]
    span: Span
    references: list[int] = field(default_factory=list)
    opens: bool = False
    fronted: bool = False
    reverse: bool = False
    rests: bool = False

    @property
    def is_side(self) -> bool:
        """Whether it puts one or more things on a side of one other."""
        sides = ("left of", "right of", "above", "below")
        return set(self.names) <= set(sides) and not self.rests and len(self.references) == 1

    @property
    def looks_back(self) -> bool:
        """Whether what it refers to was mentioned first: "a bench, a tree on its left"."""
        return bool(self.references) and max(self.references) < min(self.subjects, default=0)

    @property
    def lists(self) -> bool:
        """Whether further objects may follow by "and" that have words of place of their own."""
        return self.names[:1] in (("between",), ("held by",))


@dataclass
class Sided:
    """ "on the left": of the canvas, or of what the clause was about.

    Attributes:
        subjects: what is there.
        side: where that is.
        head: what the clause is about; none for the canvas.
        span: of the words of place.
    """

    subjects: list[int]
    side: Side
    head: list[int]
    span: Span


class Statements:
    """The relations so far, with the spans of the words that state them.

    Args:
        mentions: the objects of the text, whose positions on the canvas are set here.
    """

    def __init__(self, mentions: list[Mention]) -> None:
        self.relations: dict[Statement, Span] = {}
        self._mentions = mentions
        self._rows: set[Statement] = set()  # orders that only the order of mention gives

    def relate(self, link: Link, subjects: Sequence[int], references: Sequence[int]) -> None:
        """Adds what a link states of each subject and reference; what was said before stays."""
        if link.reverse:
            subjects, references = references, subjects
        for subject in subjects:
            for reference in references:
                if subject != reference:
                    if len(self.relations) > MOST_PROMPT_RELATIONS:
                        raise ValueError(
                            f"prompt must state at most {MOST_PROMPT_RELATIONS} relations, got more"
                        )
                    for name in link.names:
                        self._forget_row(subject, name, reference)
                        self.relations.setdefault((subject, name, reference), link.span)

    def wearers(self, ids: list[int]) -> list[int]:
        """Who wears these: of "a woman in a dress" the woman; or ids, if nobody does."""
        worn = [link for link in self.relations if link[0] in ids and link[1] == "worn by"]
        return [wearer for _, _, wearer in worn] or ids

    def _forget_row(self, subject: int, name: str, reference: int) -> None:
        """ "a, b and c in a row, with b to the right of c": not in order of mention."""
        for row in ((subject, OPPOSITE.get(name, ""), reference), (reference, name, subject)):
            if row in self._rows:
                self.relations.pop(row, None)

    def withdraw(self, link: Link, subjects: Sequence[int]) -> None:
        """Takes back what a link states of some subjects."""
        for key in list(self.relations):
            subject, name, reference = key
            if subject in subjects and name in link.names and reference in link.references:
                del self.relations[key]

    def relate_row(self, group: Sequence[int], name: str, span: Span) -> None:
        """ "three dogs in a row": in order of mention, unless more is said."""
        self.relate_neighbours(group, (name,), span)
        self._rows |= {(subject, name, reference) for subject, reference in pairwise(group)}

    def relate_neighbours(self, group: Sequence[int], names: tuple[str, ...], span: Span) -> None:
        """Adds relations of each of a group to the next one."""
        for subject, reference in pairwise(group):
            self.relate(Link(names, [subject], span), [subject], [reference])

    def relate_sides(self, places: Sequence[Sided]) -> None:
        """ "a on the left and b on the right" is "a left of b".

        Sides of the canvas become positions of the mentions as well.
        """
        placed = {index for sided in places for index in sided.subjects}
        groups: dict[tuple[int, ...], list[Sided]] = {}
        for sided in places:
            head = tuple(sided.head)
            names = side_names(sided.side)
            if not head or not names or not placed.isdisjoint(head):
                # Of the canvas.
                head = ()
                for index in sided.subjects:
                    old = self._mentions[index].position
                    x, y, z = (a if b is None else b for a, b in zip(old, sided.side, strict=True))
                    self._mentions[index].position = (x, y, z)
            else:
                # "a dog with a cat to the left": of what the clause is about.
                link = Link(names, sided.subjects, sided.span)
                self.relate(link, sided.subjects, head)
            groups.setdefault(head, []).append(sided)
        for group in groups.values():
            for axis, name in ((0, "left of"), (1, "above")):
                levels: dict[int, list[Sided]] = {}
                for sided in group:
                    value = sided.side[axis]
                    if value is not None:
                        levels.setdefault(value, []).append(sided)
                for before, after in pairwise(sorted(levels)):
                    for a in levels[before]:
                        for b in levels[after]:
                            if not set(a.subjects).isdisjoint(b.subjects):
                                continue
                            link = Link((name,), a.subjects, a.span)
                            self.relate(link, a.subjects, b.subjects)

    def relate_depths(self, places: Sequence[Sided], topics: Sequence[Sequence[int]]) -> None:
        """ "a girl with trees in the background": behind what is in front, or else the topic.

        Args:
            places: of the sentence.
            topics: what it is about, and what the one before was.
        """
        deep = [sided for sided in places if sided.side[2] is not None]
        front = [index for sided in deep if sided.side[2] == 1 for index in sided.subjects]
        for sided in deep:
            name = "behind" if sided.side[2] == -1 else "in front of"
            others = [[i for i in topic if i not in sided.subjects] for topic in topics]
            if name == "behind":
                others.insert(0, front)
            elif len(deep) > 1:
                continue
            topic = next(filter(None, others), [])
            self.relate(Link((name,), sided.subjects, sided.span), sided.subjects, topic)


def without(
    dropped: Set[int], mentions: Sequence[Mention], relations: Mapping[Statement, Span]
) -> tuple[list[Mention], dict[Statement, Span]]:
    """Objects and relations without some of the objects, given by their numbers."""
    kept = [i for i in range(len(mentions)) if i not in dropped]
    number = {i: k for k, i in enumerate(kept)}
    said = {
        (number[i], name, number[j]): span
        for (i, name, j), span in relations.items()
        if i in number and j in number
    }
    return [mentions[i] for i in kept], said


def dealt(
    mentions: Sequence[Mention], relations: Mapping[Statement, Span]
) -> tuple[list[Mention], dict[Statement, Span]]:
    """Deals clothes out: "two women wearing red dresses", a dress for each of them.

    Args:
        mentions: the objects of a text.
        relations: what it states of them, with spans.

    Returns:
        Both with as many clothes as there are wearers, if that makes no more than 20 objects.
    """
    wearers: dict[int, list[int]] = {}
    for i, name, j in relations:
        if name == "worn by":
            wearers.setdefault(i, []).append(j)
    if len(mentions) + sum(len(each) - 1 for each in wearers.values()) > MOST_COUNTED:
        return list(mentions), dict(relations)
    out: list[Mention] = []
    places: list[list[int]] = []  # by mention, where it is in out
    for i, mention in enumerate(mentions):
        copies = len(wearers.get(i, [])) if mention.count in ((1, 1), UNCOUNTED) else 1
        copies = max(copies, 1)
        places.append(list(range(len(out), len(out) + copies)))
        if copies == 1:
            out.append(mention)
            continue
        noun, phrase = mention.noun, mention.phrase
        if is_plural(noun) and not is_for_one(noun.split(" ")[-1]):
            noun = singular_noun(noun)
            phrase = phrase.replace(mention.noun, noun, 1)
            phrase = f"{article(phrase.split(' ')[0])} {phrase}"
        out += [
            replace(mention, noun=noun, phrase=phrase, count=(1, 1), index=index)
            for index in range(copies)
        ]
    said: dict[Statement, Span] = {}
    for (i, name, j), span in relations.items():
        subjects = places[i]
        if name == "worn by" and subjects[1:]:
            subjects = [places[i][wearers[i].index(j)]]
        pairs: Iterable[tuple[int, int]] = itertools.product(subjects, places[j])
        if subjects[1:] and wearers.get(j) == wearers[i]:
            pairs = zip(subjects, places[j], strict=True)  # each tie over its own shirt
        said.update(((a, name, b), span) for a, b in pairs)
    return out, said
