"""What the grammar keeps while it reads a sentence: what the words so far were about.

Objects are lists of their numbers among the mentions. The lists are never changed, only replaced,
so that several fields may share one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from stal.prompts.contents import Contents
from stal.prompts.statements import Link, Sided
from stal.relations import Side, Span

# What a noun phrase is in its clause: "object" of a verb or of "with", which the next words of
# place speak about; "adjunct", after words of place or a preposition.
Role = Literal["subject", "object", "adjunct"]


@dataclass
class Clause:
    """What a bracket leaves as it was: "a man (wearing a hat) and a woman"."""

    # What the next words of place speak about by default.
    subject: list[int] = field(default_factory=list)
    # The clause's own subject.
    head: list[int] = field(default_factory=list)
    # The latest noun phrase, ...
    latest: list[int] = field(default_factory=list)
    # ... with those that it is joined to, ...
    last: list[int] = field(default_factory=list)
    # ... and what they are.
    role: Role = "subject"
    verb: str = ""  # the latest
    finite: bool = False  # the subject has its verb, not only a participle
    trait: bool = False  # the latest noun phrase only describes: "a vase with flowers"
    joined: bool = False  # "with" and a noun phrase, so that a participle is said of that
    # Of what comes "with" it.
    bearer: list[int] = field(default_factory=list)

    def speak_of(self, subject: list[int]) -> None:
        """The words that follow are about this subject, as if it had just been named."""
        self.subject, self.last, self.role = subject, subject, "subject"


@dataclass
class Sentence:
    """Where the reading of a sentence stands."""

    spans: Sequence[Span]  # of its words in the text
    contents: Contents  # what its things come with: "a table with a vase with flowers"
    number: int = 0  # 1 for the first of the text
    # What the sentence before was about.
    about: list[int] = field(default_factory=list)
    # What it is about.
    main: list[int] = field(default_factory=list)
    clause: Clause = field(default_factory=Clause)
    second: bool = False  # a clause after the main one
    outside: Clause | None = None  # what the clause was before a bracket
    # Subject of the clause around "on which a cat sits".
    outer: list[int] = field(default_factory=list)

    # Since the latest noun phrase.
    joint: str = ""  # conjunction
    preposition: str = ""
    negated: bool = False  # "not"
    absent: bool = False  # "without a hat or ..."
    relative: bool = False  # "that", which still lacks its verb
    waiting: Link | None = None  # lacks its objects
    inverted: Link | None = None  # lacks its subjects: "above the dog is a cat"
    side: tuple[Side, Span] | None = None  # "on the left": of the noun phrase after it
    verb_span: Span = (0, 0)  # of the latest verb or "with"
    fronted: bool = False  # "perched on a post is ...": the subject follows

    # What words of place said.
    complete: Link | None = None  # the latest relation that lacks nothing
    stated: int = 0  # relations so far
    placed: bool = False  # the latest noun phrase has its place
    # What the next words of place spoke about before the latest ones.
    before: list[int] = field(default_factory=list)
    # That "not on the table" is said of, ...
    denied: list[int] = field(default_factory=list)
    # ... and then "but under it".
    corrected: list[int] = field(default_factory=list)
    # What "it" is after "a cat left of a dog, with ...".
    aside: list[int] = field(default_factory=list)
    # Who holds "a cup in one hand", for what is "in the other".
    holders: list[int] = field(default_factory=list)
    scenery: Link | None = None  # "next to a road": of what the road is "with"
    on_scenery: bool = False  # "... with a truck on it": on what is no object
    room: bool = False  # "a bathroom with a sink and a towel on the door": the towel is
    # What is on a side of the canvas, or of what its clause is about.
    sided: list[Sided] = field(default_factory=list)

    # The latest noun phrase.
    determiner: str = ""
    preceding: str = ""  # the token before it
    phrase_end: int = -1  # where it ended
    side_end: int = -1  # where words ended that put it on a side: "the dog on the left"
    part_end: int = -1  # where what the latest thing comes with ended: "a cat with a long tail"
    ignored_end: int = -1  # where the latest phrase that is no object ended
    backdrop_end: int = -1  # ... if it came with something: "with grass in the background"

    of_several: bool = False  # in the first of several parts

    @property
    def opens(self) -> bool:
        """Whether what comes next may begin a clause: after a conjunction, or at the start."""
        return bool(self.joint) or not self.clause.last

    def span(self, start: int, end: int) -> Span:
        """Where tokens [start, end) are in the text."""
        return self.spans[start][0], self.spans[end - 1][1]

    def begin_clause(self, subject: list[int]) -> None:
        """A new clause about a subject, or about nothing yet; what comes "with" something stays."""
        self.clause = Clause(
            subject=subject,
            head=subject,
            latest=subject,
            last=subject,
            joined=self.clause.joined,
            bearer=self.clause.bearer,
        )
        self.second = bool(self.main) and bool(subject)
        self.main = self.main or subject
        self.relative = self.negated = self.fronted = False
        self.verb_span = (0, 0)

    def settle(self) -> None:
        """Nothing waits for a noun phrase any more, and no word since the latest one counts."""
        self.waiting, self.preposition, self.joint = None, "", ""

    def open_bracket(self) -> None:
        """Keeps what the clause is before the bracket."""
        self.outside = replace(self.clause)

    def close_bracket(self) -> None:
        """Goes on where the clause was before the bracket."""
        if self.outside is not None:
            self.clause, self.outside = self.outside, None
