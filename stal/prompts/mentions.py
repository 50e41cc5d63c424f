"""The objects of a text, in order of mention: what a noun phrase names, new or known.

`stal.prompts.grammar` finds the phrases; here "the dog" finds its dog, "two dogs" become two
objects, and "a few cats, fewer than dogs" a number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from stal.budget import MOST_PROMPT_OBJECTS
from stal.prompts.nouns import NounPhrase, noun_phrase
from stal.prompts.things import thing_of
from stal.prompts.words import (
    ALWAYS_PLURAL,
    ANIMALS,
    DEFINITE,
    FIRST_PARTS,
    KINDS,
    LESS,
    MORE,
    PEOPLE,
    POSSESSIVES,
    QUANTITIES,
    UNCOUNTED,
    VERB_STEMS,
    WORN,
    article,
    is_one_of,
    is_plural,
    is_word,
    singular,
    singular_noun,
    word_set,
)
from stal.relations import NOWHERE, Side, Span

MOST_COUNTED = 20
# Of how many objects, the latest, a definite phrase or a pronoun means one, in texts with more.
MOST_LOOKED_AT = 200
_WORN_IN = WORN - word_set("belt bow collar crown halo hood ring watch")  # "in a ring"


def _shortens(short: str, noun: str) -> bool:
    """Whether a noun is called so: a bathtub "the tub", but no elephant "the ant"."""
    if len(short) < 3 or short == noun:
        return False
    if noun.endswith(short):
        rest = noun[: -len(short)]
        return rest in FIRST_PARTS or rest in VERB_STEMS or thing_of(rest) is not None
    return noun.startswith(short) and thing_of(short) is None


@dataclass
class Mention:
    """An object of the text.

    Attributes: see `stal.prompts.Object`, and
        sentence: number of the sentence that names it.
        part: number of its part of the prompt, as BREAK and its kin separate them.
        kind: the noun, singular.
        bare: whether it is named without article and number.
        parts: what is drawn with it, with articles: ["red hair", "a long tail"].
    """

    noun: str
    attributes: list[str]
    phrase: str
    sentence: int
    span: Span
    kind: str
    bare: bool
    count: tuple[int, int] = (1, 1)
    index: int = 0
    position: Side = NOWHERE
    parts: list[str] = field(default_factory=list)
    part: int = 0

    @property
    def whole(self) -> str:
        """The phrase and what is drawn with it: "a woman with red hair and green eyes"."""
        return self.phrase + (f" with {' and '.join(self.parts)}" if self.parts else "")

    def has(self, part: str) -> bool:
        """Whether a part, without its article, was named."""
        wanted = singular_noun(part)
        return any(f" {singular_noun(known)}".endswith(f" {wanted}") for known in self.parts)


class Mentions:
    """The objects so far.

    Attributes:
        items: in order of mention.
        several: what the latest counted plural named.
        members: those of `several` that no "one" or "the other" took yet.
    """

    def __init__(self) -> None:
        self.items: list[Mention] = []
        self.several: list[int] = []
        self.members: list[int] = []
        self.part = 0  # of the prompt, that is being read
        self._summed: list[int] = []  # what the first part names and no other part yet
        self._shared = False  # whether that part is said of all
        self._by_name: dict[str, list[int]] = {}  # by kind, and by its last word
        self._compared: dict[str, tuple[str, int]] = {}  # noun -> (noun, 1 if it is to be more)

    def begin_part(self, *, shared: bool) -> None:
        """What comes next is another part of the prompt.

        "2girls BREAK 1girl, red hair BREAK 1girl, blue hair" are two girls: what the first part
        sums up, others describe.

        Args:
            shared: whether the part before is said of all parts, and names nothing else.
        """
        if self.part == 0 and (shared or self.items[1:]):
            self._shared = shared
            self._summed = [
                index
                for index, mention in enumerate(self.items)
                if shared or not (mention.attributes or mention.parts)
            ]
        self.part += 1
        self.several, self.members = [], []

    def of_no_part(self) -> set[int]:
        """What only the part names that is said of all; nothing if there is nothing else."""
        dropped = set(self._summed) if self._shared else set()
        return dropped if len(dropped) < len(self.items) else set()

    def only_person(self) -> list[int]:
        """Whom an earlier part names, if that is one."""
        alive = [index for index in self.latest() if self.are_alive([index])]
        return alive if self.part and len(alive) == 1 else []

    def _add(self, mention: Mention) -> int:
        """The number of an object: a new one, or that of one that an earlier part sums up."""
        for index in self._summed if mention.count == (1, 1) else ():
            old = self.items[index]
            if old.kind == mention.kind:
                self._summed.remove(index)
                mention.position = old.position
                self.items[index] = mention
                return index
        if len(self.items) >= MOST_PROMPT_OBJECTS:
            raise ValueError(f"prompt must name at most {MOST_PROMPT_OBJECTS} objects, got more")
        self.items.append(mention)
        index = len(self.items) - 1
        for name in {mention.kind, mention.kind.split(" ")[-1]}:
            self._by_name.setdefault(name, []).append(index)
        return index

    def take_comparisons(self, tokens: list[str], spans: list[Span]) -> None:
        """Takes out "the number of dogs is more than that of cats" and keeps what it says.

        Args:
            tokens: the words of a sentence; those of a comparison are deleted.
            spans: their places in the text; deleted as well.
        """
        i = 0
        while i + 1 < len(tokens):
            if tokens[i] != "number" or tokens[i + 1] != "of":
                i += 1
                continue
            first = noun_phrase(tokens, i + 2)
            j = first.end if first is not None else i + 2
            j += tokens[j : j + 1] in (["is"], ["are"])
            word, than = [*tokens[j : j + 2], "", ""][:2]
            if first is None or than != "than" or word not in MORE | LESS:
                i += 1
                continue
            j += 2
            while j < len(tokens) and tokens[j] in ("the", "that", "number", "of"):
                j += 1
            second = noun_phrase(tokens, j)
            if second is None:
                i += 1
                continue
            sign = 1 if word in MORE else -1
            a, b = singular_noun(first.noun), singular_noun(second.noun)
            self._compared[a], self._compared[b] = (b, sign), (a, -sign)
            start = i - (tokens[i - 1 : i] == ["the"])
            del tokens[start : second.end], spans[start : second.end]
            i = start

    def take(
        self,
        phrase: NounPhrase,
        span: Span,
        *,
        sentence: int,
        subject: Sequence[int],
        latest: Sequence[int],
        related: bool = False,
    ) -> list[int]:
        """The objects that a noun phrase speaks of: earlier ones, or new ones.

        Args:
            phrase: the noun phrase.
            span: its place in the text.
            sentence: the number of its sentence.
            subject: what its clause is about.
            latest: the objects of the noun phrase before.
            related: whether words of place wait for it.
        """
        earlier = self._earlier(phrase, sentence, subject, related)
        if earlier:
            return earlier
        words, noun, count = phrase.words, phrase.noun, self._number(phrase, latest) or 0
        copies = count if 1 < count <= MOST_COUNTED else 1
        if phrase.determiner == "pair" and words[-1] in ALWAYS_PLURAL:
            copies, count, phrase.portion = 1, 0, "a pair of"
        one = phrase.determiner in ("a", "an", "each", "every") and not phrase.portion
        if copies > 1 or count == 1 or one:
            last = singular(words[-1]) if noun.endswith(words[-1]) else words[-1]
            words, noun = [*words[:-1], last], singular_noun(noun)
        text = " ".join(words).replace(" ,", ",") + phrase.of
        numbers = (1, 1)
        if phrase.portion:
            text = f"{phrase.portion} {text}"
        elif count > MOST_COUNTED:
            text, numbers = f"{count} {text}", (count, count)
        elif phrase.determiner in QUANTITIES and count == 0:
            some = "a few" if phrase.determiner == "few" else phrase.determiner
            text, numbers = f"{some} {text}", QUANTITIES[phrase.determiner]
        elif not is_plural(words[-1]):
            text = f"{article(words[0])} {text}"
        elif words[-1] not in ALWAYS_PLURAL:
            numbers = UNCOUNTED
        new = [
            Mention(
                noun,
                list(phrase.attributes),
                text,
                sentence,
                span,
                kind=singular_noun(noun),
                bare=phrase.is_bare,
                count=numbers,
                index=index,
                part=self.part,
            )
            for index in range(copies)
        ]
        ids = [self._add(mention) for mention in new]
        if copies > 1:
            self.several, self.members = list(ids), list(ids)
        return ids

    def _number(self, phrase: NounPhrase, latest: Sequence[int]) -> int | None:
        """How many a noun phrase speaks of, if it or a comparison says so."""
        if phrase.as_many:
            return len(latest) or None
        noun = singular_noun(phrase.noun)
        if phrase.determiner not in QUANTITIES or noun not in self._compared:
            return phrase.count
        other, sign = self._compared[noun]
        number = sum(mention.kind == other for mention in self.items)
        if number == 0:
            return phrase.count
        return max(2, number + 1) if sign > 0 else max(1, min(2, number - 1))

    def _earlier(
        self, phrase: NounPhrase, sentence: int, subject: Sequence[int], related: bool
    ) -> list[int]:
        """Objects that a definite phrase names again, or a bare one in a later sentence.

        Also a bare one in a text without articles: "cup left of plate, fork right of plate".
        """
        if phrase.determiner == "multiple" and not phrase.attributes:
            named = self._by_name.get(singular_noun(phrase.noun), [])
            return named[:MOST_COUNTED] if named[1:] else []  # the tags "2girls, multiple girls"
        definite = phrase.determiner in DEFINITE | {"both", "all", "each"}
        owned = phrase.determiner in POSSESSIVES - {"'s"}
        if phrase.determiner and not (definite or owned):
            return []
        noun, attributes = singular_noun(phrase.noun), set(phrase.attributes)
        found: list[int] = []
        for index in self._by_name.get(noun, [])[-MOST_LOOKED_AT:]:
            mention = self.items[index]
            have = set(mention.attributes)
            same = attributes <= have
            again = mention.sentence < sentence and mention.part == self.part
            again |= related and mention.bare and index not in subject
            again &= attributes == have
            if same and (definite or again) and not (phrase.other and index in subject):
                found.append(index)
        if not (found or attributes or phrase.other or " " in noun) and definite:
            found = self._called(noun, subject if related else ())
        if phrase.part:
            kind = phrase.part.split(" ")[-1]
            theirs = [index for index in found if self.items[index].has(phrase.part)]
            others = [index for index in found if not self.items[index].has(kind)]
            found = theirs or others  # not the woman with other hair
        if len(found) < 2:
            return found
        if is_plural(phrase.words[-1]) and phrase.words[-1] not in ALWAYS_PLURAL:
            return found[: min(phrase.count or MOST_COUNTED, MOST_COUNTED)]
        exact = [index for index in found if set(self.items[index].attributes) == attributes]
        return (exact or found)[-1:]

    def _called(self, noun: str, but: Sequence[int]) -> list[int]:
        """The latest object with a longer or a narrower name: a dustbin is "the bin"."""
        for index in self.latest():
            kind = self.items[index].kind.split(" ")[-1]
            named = kind in KINDS.get(noun, ()) or _shortens(noun, kind)
            if named and index not in but:
                return [index]
        return []

    def latest(self) -> range:
        """The objects, the latest first, as many as are looked at."""
        return range(len(self.items) - 1, max(-1, len(self.items) - 1 - MOST_LOOKED_AT), -1)

    def next_members(self, number: int) -> list[int]:
        """The next so many of the members, which are taken thereby."""
        taken, self.members = self.members[:number], self.members[number:]
        return taken

    def are_described(self) -> bool:
        """Whether the latest counted plural has attributes and none of it was taken yet."""
        return self.members == self.several and any(
            self.items[index].attributes for index in self.members
        )

    def is_one_of_several(self, index: int) -> bool:
        """Whether a counted plural named it."""
        span, beside = self.items[index].span, (index - 1, index + 1)
        return any(self.items[i].span == span for i in beside if 0 <= i < len(self.items))

    def are_people(self, ids: Sequence[int]) -> bool:
        """Whether they are somebody, and at least one."""
        return bool(ids) and all(self.items[index].kind in PEOPLE for index in ids)

    def are_alive(self, ids: Sequence[int]) -> bool:
        """Whether they are people or animals, and at least one."""
        kinds = {self.items[index].kind.split(" ")[-1] for index in ids}
        return bool(kinds) and kinds <= ANIMALS | PEOPLE

    def are_clothes(self, ids: Sequence[int]) -> bool:
        """Whether somebody can be in them: "in a hat and boots", but "in a ring"."""
        return all(is_one_of(self.items[i].noun.split(" ")[-1], _WORN_IN) for i in ids)

    def describe(self, subject: Sequence[int], words: Sequence[str]) -> None:
        """Adds attributes that stand after the noun: "a circle that is red".

        Objects whose phrase is more than attributes and noun ("a glass of water") stay as they are.
        """
        for index in subject:
            mention = self.items[index]
            new = [word for word in words if is_word(word) and word not in mention.attributes]
            before = mention.phrase.removesuffix(mention.noun).split()
            if not new or " ".join([*before, mention.noun]) != mention.phrase:
                continue
            mention.attributes += new
            before += new
            if before[0] in ("a", "an"):
                before[0] = article(before[1])
            mention.phrase = " ".join([*before, mention.noun])

    def complete(self, owners: Sequence[int], part: str, name: str) -> None:
        """Has a part drawn with its owners: "a man with a beard".

        Args:
            owners: to each of them it is added, once.
            part: as the text names it.
            name: without its article.
        """
        for index in owners:
            if not self.items[index].has(name):
                self.items[index].parts.append(part)
