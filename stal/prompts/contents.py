"""What a thing comes with: "a vase with flowers", "a table with a lamp", "a plate holding a cake".

As far as the nouns tell, it is in the thing or on it, unless words of place say more ("a table with
a lamp above it").
"""

from __future__ import annotations

from collections.abc import Sequence

from stal.prompts.mentions import Mention
from stal.prompts.statements import Link, Statements
from stal.prompts.words import (
    ANIMALS,
    BABIES,
    CONTAINERS,
    INSEPARABLE,
    PEOPLE,
    STANDING,
    SURFACES,
    WORN,
    is_one_of,
)
from stal.relations import Span


class Contents:
    """The containers and surfaces that the sentence spoke of last, innermost last.

    Objects are lists of their numbers among the mentions.

    Args:
        mentions: the objects of the text so far.
        said: its relations, to which these are added.
    """

    def __init__(self, mentions: list[Mention], said: Statements) -> None:
        self._mentions = mentions
        self._said = said
        self._links: list[Link] = []

    def can_bear(self, ids: Sequence[int]) -> bool:
        """Whether it is a single container or surface."""
        if len(ids) != 1 or self._mentions[ids[0]].count != (1, 1):
            return False
        return self._last_word(ids) in CONTAINERS | SURFACES

    def stands(self, ids: Sequence[int]) -> bool:
        """Whether it is furniture, which is on nothing."""
        return self._last_word(ids) in STANDING

    def bearer_of(self, ids: Sequence[int]) -> list[int]:
        """What the latest things are in or on by what they came with, or nothing."""
        latest = self._links[-1:]
        return [i for link in latest if link.subjects == list(ids) for i in link.references]

    def take(
        self, bearer: Sequence[int], ids: Sequence[int], span: Span, *, held: bool = False
    ) -> bool:
        """Relates things to what they come with or are held by, if they can be in or on it.

        Args:
            bearer: what they come with; empty if that is nothing.
            ids: the things.
            span: of the word that says so.
            held: whether that is a verb ("a plate holding a cake"), which says nothing of clothes.

        Returns:
            Whether they are related.
        """
        nested = bool(self._links) and set(bearer) <= set(self._links[-1].subjects)
        self._links = self._links if nested else []
        name = self._name(bearer, ids)
        if name is None or (held and name == "worn by"):
            return False
        link = Link((name,), list(ids), span, list(bearer))
        self._said.relate(link, ids, bearer)
        self._links = [*self._links, link]
        return True

    def take_too(self, ids: Sequence[int], *, with_article: bool) -> None:
        """One more thing: "a table with a vase and a lamp", but "a vase with roses and a lamp".

        Args:
            ids: the thing, or several.
            with_article: whether only a thing without an article joins others without.
        """
        while self._links and with_article and not self._mentions[ids[0]].bare:
            wears = self._name(self._links[-1].references, ids) == "worn by"
            if wears or not self._mentions[self._links[-1].subjects[0]].bare:
                break  # "a girl with boots and a hat"
            self._links = self._links[:-1]
        if self._links and self._name(self._links[-1].references, ids):
            link = self._links[-1]
            link.subjects = [*link.subjects, *ids]
            self._said.relate(link, ids, link.references)
        else:
            self._links = []

    def withdraw(self, ids: Sequence[int]) -> None:
        """Takes back where these are: words of place say it instead."""
        for link in self._links:
            self._said.withdraw(link, [index for index in ids if index in link.subjects])

    def _name(self, bearer: Sequence[int], ids: Sequence[int]) -> str | None:
        if not ids or not bearer:
            return None
        noun = self._last_word(ids)
        if is_one_of(noun, WORN) and {self._last_word([i]) for i in bearer} <= ANIMALS | PEOPLE:
            return "worn by"
        if not self.can_bear(bearer):
            return None
        if noun in INSEPARABLE or noun in PEOPLE - BABIES:
            return None
        if self._last_word(bearer) in CONTAINERS:
            return "inside"
        return None if noun in STANDING else "on"

    def _last_word(self, ids: Sequence[int]) -> str:
        return self._mentions[ids[0]].kind.split(" ")[-1]
