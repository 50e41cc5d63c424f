"""The bundled engine of `stal.prompts`: a single pass over the words of a prompt.

Noun phrases (`stal.prompts.nouns`) become objects, words of place (`stal.prompts.places`) relations
between them. The reader keeps what the words so far were about: who the clause is about, the latest
noun phrase and its part in the clause, and words of place that still lack their object or subject.
"""

from __future__ import annotations

from collections.abc import Sequence

from stal.prompts.clause import Clause, Sentence
from stal.prompts.contents import Contents
from stal.prompts.mentions import Mention, Mentions
from stal.prompts.nouns import NounPhrase, find_noun, inverts, needs_object, noun_phrase
from stal.prompts.places import SIDES, VERBS, Place, find
from stal.prompts.rewording import ORDERS
from stal.prompts.sentences import sentences
from stal.prompts.statements import OPPOSITE, Link, Sided, Statements, dealt
from stal.prompts.words import (
    ANIMALS,
    AUXILIARIES,
    BACKDROPS,
    BODY_PARTS,
    CANVASES,
    CARRIED_OVER,
    CLAUSE_BREAKS,
    CONJUNCTIONS,
    COPULAS,
    DEFINITE,
    DETERMINERS,
    FUNCTION_WORDS,
    HELD_IN,
    IN_THE_SKY,
    LOOKS,
    MASCULINE,
    MEN,
    NEGATIONS,
    NOT_OBJECTS,
    OF_BODIES,
    OWN_PARTS,
    PEOPLE,
    PERSONAL,
    PICTURES,
    PLACES,
    PLURAL_PRONOUNS,
    POSSESSIVES,
    POSTURES,
    PRONOUNS,
    PURE_COLOURS,
    RELATIVES,
    SCENERY,
    SCENERY_COMPOUNDS,
    SHOWING,
    THE_CANVAS,
    UNCOUNTED,
    VERB_STEMS,
    WITH,
    WOMEN,
    WORN,
    is_adjective,
    is_adverb,
    is_boundary,
    is_known_verb,
    is_number,
    is_one_of,
    is_plural,
    is_verb,
    looks_like_participle,
    number_of,
    singular,
    singular_noun,
    verb_stem,
    word_set,
)
from stal.relations import Span, Statement, side_names

_DIRECTED = word_set(
    "facing faces faced looking looks turning turned pointing points pointed heading headed leaning"
    " gazing staring glancing"
)
_BORNE = [("worn by",), ("held by",)]
_WORN_IN = WORN - word_set("belt bow collar crown halo hood ring watch")  # "in a ring"
_HAS = frozenset(("has", "have", "had", "having"))
_ORDINALS = {
    "first": 0,
    "former": 0,
    "second": 1,
    "third": 2,
    "fourth": 3,
    "fifth": 4,
    "last": -1,
    "latter": -1,
}
_ROWS = {"row": "left of", "line": "left of", "column": "above", "stack": "above", "pile": "above"}
# "a kitchen with two chairs" is a picture of two chairs.
_HAVING = [[word] for word in ("with", "has", "have", "having", "containing", "filled", "where")]
# Said of what rests on or in something, not of that something: "a mouse on a desk next to a cup".
_RESTS = [("on",), ("inside",)]
_ON_TOP = frozenset(("top", "atop"))
_BESIDE = [("next to",), ("left of",), ("right of",), ("behind",), ("in front of",)]


def read(text: str, reader: Reader | None = None) -> tuple[list[Mention], dict[Statement, Span]]:
    """The objects of a text, and its relations with the spans of the words that state them.

    reader: a new one; by default one that knows nothing but the words.
    """
    reader = reader or Reader()
    for tokens, spans in sentences(text):
        reader.read(tokens, spans)
    return dealt(reader.mentions, reader.said.relations)


def _stated_by(verb: str) -> tuple[str, bool] | None:
    """What a verb states of its subject and object; see `VERBS`."""
    return VERBS.get(verb if verb in VERBS else verb_stem(verb) or "")


def _holds(verb: str) -> bool:
    return verb in _HAS or (_stated_by(verb) or ("",))[0] == "held by"


class Reader:
    """Objects and relations of the sentences read so far."""

    def __init__(self) -> None:
        self.known = Mentions()
        self.mentions = self.known.items
        self.said = Statements(self.mentions)
        self.sentence = Sentence([], Contents(self.mentions, self.said))

    @property
    def clause(self) -> Clause:
        """The clause that is being read."""
        return self.sentence.clause

    def read(self, tokens: list[str], spans: list[Span]) -> None:
        """Reads one sentence."""
        self.known.take_comparisons(tokens, spans)
        self.sentence = Sentence(
            spans,
            Contents(self.mentions, self.said),
            number=self.sentence.number + 1,
            about=self.sentence.main,
        )
        self._begin_sentence()
        i = 0
        while i < len(tokens):
            i = self._step(tokens, i)
        self.said.relate_sides(self.sentence.sided)
        self.said.relate_depths(self.sentence.sided, (self.sentence.main, self.sentence.about))

    def _begin_sentence(self) -> None:
        """For readers that know more than the words."""

    def _noun_phrase(self, tokens: Sequence[str], i: int) -> NounPhrase | None:
        return noun_phrase(
            tokens, i, joined=self.sentence.joint == "and" and self.clause.role == "subject"
        )

    def _is_verb(self, token: str, i: int) -> bool:
        return is_known_verb(token) or looks_like_participle(token)

    def _step(self, tokens: Sequence[str], i: int) -> int:
        token = tokens[i]
        if token == "(" and self.sentence.waiting is None:
            self.sentence.phrase_end += i == self.sentence.phrase_end
            self.sentence.open_bracket()
        elif token == ")" and self.sentence.outside is not None:
            self.sentence.close_bracket()
            self.sentence.phrase_end = i + 1
        ahead = tuple(tokens[i : i + 3])
        if ahead[:2] in (("each", "other"), ("one", "another")):
            if self.sentence.waiting is not None:
                group = (
                    self.sentence.waiting.subjects
                    if self.sentence.waiting.subjects[1:]
                    else self.clause.last
                )
                self.said.relate_neighbours(
                    group, self.sentence.waiting.names, self.sentence.waiting.span
                )
            self.sentence.waiting = None
            return i + 2
        if ahead == ("side", "by", "side") and tokens[i + 3 : i + 4] != ["with"]:
            self.said.relate_neighbours(
                self.clause.last, ("next to",), self.sentence.span(i, i + 3)
            )
            return i + 3
        order = ORDERS.get(" ".join(tokens[i : i + 4]))
        if order is not None:
            group = self.clause.subject if self.clause.role == "adjunct" else self.clause.last
            self.said.relate_neighbours(group, (order,), self.sentence.span(i, i + 4))
            return i + 4
        place = None if self._is_agent(tokens, i) else find(tokens, i)
        if place is None and token == "with" and tokens[i - 1 : i] and tokens[i - 1] in COPULAS:
            place = Place(i + 1, ("next to",))  # "the cat is with the dog"
        if place is not None:
            if self._take_relative(tokens, i, place):
                return place.end + (place.reference == "object")
            self._take_place(tokens, i, place)
            return place.end
        if token == "both" and looks_like_participle(tokens[i + 1] if i + 1 < len(tokens) else ""):
            link = (
                self.sentence.complete
            )  # "a man and a dog, both running", "a dog next to a cat, both ..."
            if (
                link is not None
                and self.clause.role != "subject"
                and link.references == self.clause.last
            ):
                self.clause.subject = self.clause.last = [*link.subjects, *link.references]
                self.clause.role = "subject"
            self.sentence.joint = self.sentence.joint if self.clause.role != "subject" else ""
            return i + 1
        if token == "both" and self.sentence.waiting is not None and noun_phrase(tokens, i) is None:
            self._take_pronoun(tokens, i)
            return i + 1
        hers = token == "her" and not is_boundary(tokens, i + 1)
        hers = hers and not (is_known_verb(tokens[i + 1]) and inverts(tokens, i + 1, fronted=False))
        if token in PRONOUNS and not hers:
            self._take_pronoun(tokens, i)
            return i + 1
        end = self._take_member(tokens, i)
        if end is not None:
            return end
        if token in NEGATIONS or token.endswith("n't"):
            self.sentence.negated = True
            self.sentence.preposition = token
        if token in RELATIVES:
            if self.clause.last and self.sentence.waiting is None:
                self.clause.subject, self.clause.role, self.sentence.joint, self.clause.verb = (
                    self.clause.last,
                    "subject",
                    "",
                    "",
                )
                self.sentence.relative = True
        elif token in CONJUNCTIONS:
            self.sentence.joint = "," if "," in (token, self.sentence.joint) else "and"
            self.sentence.absent &= token in ("or", "nor")
        elif token == "but" and self.sentence.denied and find(tokens, i + 1) is not None:
            self.sentence.joint, self.sentence.waiting = (
                "",
                None,
            )  # "a cat not on the table but under it"
            self.sentence.corrected = self.sentence.denied
            return i + 1
        elif token in CLAUSE_BREAKS:
            self.sentence.joint, self.sentence.absent = "while", False
        elif token in WITH:
            self.sentence.preposition, self.sentence.joint = "with", ""
            self.clause.bearer = self.clause.latest if i == self.sentence.phrase_end else []
            self.sentence.verb_span = self.sentence.spans[i]
        elif token in AUXILIARIES:
            self._take_verb(tokens, i)
        elif token not in NEGATIONS:
            if self._is_bare_verb(tokens, i) or self._is_verb_of_relative(tokens, i):
                self._take_verb(tokens, i)
                return i + 1
            phrase = self._noun_phrase(tokens, i)
            if phrase is not None:
                return self._take_noun_phrase(tokens, phrase)
            if self._is_verb(token, i):
                self._take_verb(tokens, i)
            elif token in FUNCTION_WORDS and token not in DETERMINERS:
                self.sentence.preposition = token
            return i + 1
        if token not in WITH | NEGATIONS:
            self.sentence.preposition = ""
        if token not in AUXILIARIES:
            self.sentence.waiting = None
        return i + 1

    def _is_agent(self, tokens: Sequence[str], i: int) -> bool:
        """ "driven by a man", but not "parked by a car"."""
        if tokens[i] != "by" or i == 0:
            return False
        before = tokens[i - 1]
        passive = is_known_verb(before) or looks_like_participle(before)
        return passive and not before.endswith("ing") and before not in POSTURES

    def _is_bare_verb(self, tokens: Sequence[str], i: int) -> bool:
        """ "they stand next to a car"."""
        if (
            tokens[i - 1 : i] == ["to"]
            and self.sentence.waiting is None
            and tokens[i] in VERB_STEMS
        ):
            return True  # "to catch a frisbee"
        return (
            tokens[i] in VERB_STEMS
            and bool(self.clause.last)
            and not (
                self.sentence.joint
                or self.sentence.preposition
                or self.sentence.waiting
                or self.clause.verb
            )
            and find(tokens, i + 1) is not None
        )

    def _is_verb_of_relative(self, tokens: Sequence[str], i: int) -> bool:
        """ "a lamp that lights up", but not "a lamp that cats like"."""
        return (
            self.sentence.relative
            and tokens[i - 1] in RELATIVES
            and tokens[i].endswith("s")
            and is_boundary(tokens, i + 1)
            and not any(is_plural(self.mentions[index].noun) for index in self.clause.last)
        )

    def _take_verb(self, tokens: Sequence[str], i: int) -> None:
        verb = tokens[i]
        finite = verb in AUXILIARIES or verb.endswith("s")
        self.sentence.fronted = not finite and all(map(is_adverb, tokens[:i]))
        if finite and self.sentence.outer and self.sentence.joint == ",":
            self.sentence.begin_clause(self.sentence.outer)  # "a box, on which a cat sits, is ..."
            self.sentence.outer = []
        if self.sentence.relative:
            self.sentence.relative = False
        elif finite and self.clause.head and not self.clause.finite:
            # "a dog with a cat above it is ...": back to the dog.
            self.clause.finite = True
            if self.clause.role != "subject" and not self.sentence.joint:
                self.clause.subject, self.clause.last, self.clause.role = (
                    self.clause.head,
                    self.clause.head,
                    "subject",
                )
        if finite and tokens[i - 1 : i] and tokens[i - 1] in CONJUNCTIONS and self.clause.head:
            # "... and has a hat": the same subject.
            self.clause.subject, self.clause.last, self.clause.role, self.sentence.joint = (
                self.clause.head,
                self.clause.head,
                "subject",
                "",
            )
        joins = bool(tokens[i - 1 : i]) and tokens[i - 1] in CONJUNCTIONS and not finite
        if (
            joins
            and self.clause.verb
            and self.clause.verb not in AUXILIARIES
            and self.clause.subject
        ):
            # "wearing a hat and holding a cup": the same subject.
            self.clause.last, self.clause.role, self.sentence.joint = (
                self.clause.subject,
                "subject",
                "",
            )
        elif joins and tokens[i - 1] == "," and self.clause.role == "subject":
            self.sentence.joint = ""  # "a man, wearing a hat, ..."
        elif self.clause.role == "object" and (
            self.clause.trait or (self.clause.joined and not finite)
        ):
            if finite or not self._acts(self.clause.last):
                self.clause.subject, self.clause.last, self.clause.role = (
                    self.clause.head,
                    self.clause.head,
                    "subject",
                )
                self.sentence.joint = self.sentence.joint if finite else ""
            else:
                self.clause.subject = self.clause.last
        elif not finite and self._modifies_latest(verb, i):
            self.clause.subject = self.clause.latest
        self.clause.trait = self.sentence.absent = self.clause.joined = False
        self.clause.verb, self.sentence.preposition, self.sentence.verb_span = (
            verb,
            "",
            self.sentence.spans[i],
        )

    def _acts(self, ids: Sequence[int]) -> bool:
        """ "a bus with a man wearing a hat", but "a man with a bag standing next to a bus"."""
        alive, other = (
            bool(group) and {self.mentions[index].kind for index in group} <= ANIMALS | PEOPLE
            for group in (ids, self.clause.bearer)
        )
        return alive or not (
            self.clause.trait
            or (other and self.clause.bearer == self.clause.head and not self.clause.verb)
        )

    def _modifies_latest(self, verb: str, i: int) -> bool:
        """ "a dog next to a man wearing a hat", "a cup next to a plate holding a cake"."""
        if (
            self.clause.role != "adjunct"
            or i != self.sentence.phrase_end
            or not verb.endswith("ing")
        ):
            return False
        if self._are_people(self.clause.latest):
            return True
        people = self._are_people(self.clause.subject)
        alive = all(self.mentions[index].kind in ANIMALS for index in self.clause.latest)
        if alive and verb in ("wearing", "holding", "carrying") and not people:
            return True  # "a dog next to a cat wearing a scarf"
        return _holds(verb) and not people and self.sentence.contents.can_bear(self.clause.latest)

    def _are_alive(self, ids: Sequence[int]) -> bool:
        kinds = {self.mentions[index].kind.split(" ")[-1] for index in ids}
        return bool(kinds) and kinds <= ANIMALS | PEOPLE

    def _are_clothes(self, ids: Sequence[int]) -> bool:
        """ "in a hat and boots", but "in a ring"."""
        return all(is_one_of(self.mentions[i].noun.split(" ")[-1], _WORN_IN) for i in ids)

    def _wearers(self, ids: list[int]) -> list[int]:
        """ "a woman in a dress with a ponytail": the woman comes with it; or ids."""
        worn = [link for link in self.said.relations if link[0] in ids and link[1] == "worn by"]
        return [wearer for _, _, wearer in worn] or ids

    def _are_people(self, ids: Sequence[int]) -> bool:
        return bool(ids) and all(self.mentions[index].kind in PEOPLE for index in ids)

    def _spoken_of(
        self, place: Place, i: int, *, bare: bool = False, pronoun: bool = False
    ) -> list[int]:
        """What words of place at i are said of; bare ones have no object, others may a pronoun."""
        if (
            self.clause.role == "object"
            and self.clause.trait
            and place.reference in ("object", "canvas")
        ):
            bearer = self.sentence.contents.bearer_of(self.clause.last)
            if bearer:
                # "a vase with flowers next to a clock", but "... with flowers inside"
                return self.clause.last if bare else bearer
            if place.reference == "object" and not bare:
                return self.clause.head
        if self.clause.role == "object" and place.reference == "object" and not (bare or pronoun):
            bearer = self.sentence.contents.bearer_of(self.clause.last)
            if bearer and not self.sentence.contents.stands(bearer):
                return bearer  # "a bowl with an egg on a table"
        link, beside = self.sentence.complete, place.names[:1] in _BESIDE
        if self.clause.role == "object":
            if (
                link is not None
                and link.references == self.clause.last
                and place.reference == "object"
            ):
                # "a woman riding a horse in front of a house", "... holding a cup behind a table"
                rides, holds = link.names == ("on",), link.names == ("held by",) and link.reverse
                if rides or (holds and beside):
                    return [*link.subjects, *self.clause.last]
            listed = link is not None and link.lists and link.names not in _BORNE
            if self.sentence.joint == "," and self.clause.head and not listed:
                return self.clause.head  # "a house with a garden, next to a lake"
            another = self.sentence.preceding == "," and i == self.sentence.phrase_end
            if another and (pronoun or place.reference != "object"):
                return self.clause.latest  # "a plate with a burger, a fork to its left"
            worn = {thing for thing, name, _ in self.said.relations if name == "worn by"}
            if place.reference not in ("object", "canvas") and worn.issuperset(self.clause.last):
                return self._wearers(self.clause.last)  # "a dog with a collar to her left"
            if pronoun:
                # "with an eyepatch and a parrot on his shoulder"
                return [i for i in self.clause.last if i in self.clause.latest or i not in worn]
            return self.clause.last
        looks = (
            link is not None and link.names == ("facing",) and link.references == self.clause.latest
        )
        if looks and self.clause.role == "adjunct" and not self.sentence.joint:
            return self.clause.latest  # "looking at a goldfish in a bowl"
        if (
            i == self.sentence.phrase_end
            and link is not None
            and link.rests
            and link.names != ("inside",)
        ):
            if place.names == ("around",):
                return self.clause.latest  # "sitting on benches around a table"
            stacks = place.names == ("on",) and self.clause.role == "adjunct" and not link.reverse
            if stacks and link.references == self.clause.latest:
                return self.clause.latest  # "a pizza on a pan on a stove"
        if self.sentence.joint or self.clause.verb:
            return self.clause.subject or self.clause.last
        facing = place.names == ("facing",)
        if (
            self.clause.role == "adjunct"
            and link is not None
            and link.references == self.clause.latest
        ):
            if link.names == ("inside",) and (link.reverse or beside or facing):
                # "a bowl full of fruit", "a cat in a box next to a dog"
                both = beside and not link.reverse
                return [*link.subjects, *(link.references if both else [])]
            if link.rests and (beside or facing):
                # "a cat on a bed next to a lamp", "a plate topped with cake next to a spoon"
                bears = link.reverse and link.names != ("worn by",)
                return [*link.subjects, *(link.references if bears else [])]
        if self.clause.role == "subject" and place.reference == "object" and not self.sentence.room:
            # "a lamp and a cup on a shelf", but "a lamp to its left, a cup on a shelf"
            placed = {subject for subject, _, _ in self.said.relations}
            placed.update(index for each in self.sentence.sided for index in each.subjects)
            return [i for i in self.clause.last if i in self.clause.latest or i not in placed]
        return self.clause.latest

    def _take_place(self, tokens: Sequence[str], i: int, place: Place) -> None:
        if is_known_verb(tokens[i]) and tokens[i].endswith("s"):
            self._take_verb(tokens, i)  # "a man on a horse looks at a car"
        if place.reference == "canvas" and tokens[i - 1 : i] and tokens[i - 1] in _DIRECTED:
            return  # "facing left"
        opens = bool(self.sentence.joint) or not self.clause.last
        bare = place.bare and not needs_object(tokens, place.end)
        following = tokens[place.end] if place.end < len(tokens) else ""
        on_body = following in POSSESSIVES and not {*tokens[place.end + 1 :][:1]}.isdisjoint(
            BODY_PARTS
        )
        pronoun = following in PRONOUNS or on_body
        said_of = self.sentence.corrected or self._spoken_of(place, i, bare=bare, pronoun=pronoun)
        self.sentence.corrected = []
        subjects = [] if self.sentence.joint == "while" else said_of
        if (
            bare
            and i == self.sentence.phrase_end
            and self.clause.role == "adjunct"
            and self.sentence.determiner == "the"
        ):
            subjects = self.clause.latest  # "on the landscape below"
        elif "from" in tokens[max(0, i - 1) : i + 1] and self.clause.verb and self.clause.subject:
            subjects = (
                self.clause.subject
            )  # "a car passing them from the left", "looks from under a bench"
        if self.clause.role == "object" and (
            (self.clause.trait and pronoun) or tokens[i] in ("into", "onto")
        ):
            subjects = self.clause.last  # "pouring coffee into a mug"
        middle = place.reference == "canvas" and set(place.side) == {0, None}
        if middle and self.sentence.contents.bearer_of(subjects):
            return  # "a table with a vase in the middle": on it
        beside = place.names[:1] in _BESIDE and place.reference == "object"
        if not (beside or place.reverse) or pronoun:
            self.sentence.contents.withdraw(subjects)
        orphan = (
            not subjects
            and bool(self.clause.verb)
            and self.sentence.joint != "while"
            and not self.sentence.fronted
        )
        self.sentence.before = self.clause.subject
        if self.clause.role == "object":
            self.clause.subject = subjects
        span = self.sentence.span(i, place.end)
        names = () if self.sentence.negated else place.names
        rests = names[:1] in _RESTS or not _ON_TOP.isdisjoint(tokens[i : place.end])
        link = Link(names, subjects, span, opens=opens, reverse=place.reverse, rests=rests)
        alone = tokens[i - 1 : i] == [","] and tokens[i - 2 : i - 1] != ["and"]
        link.fronted = opens and not alone and self.sentence.joint != "and"
        if is_known_verb(tokens[i]):
            self.clause.verb, self.sentence.verb_span = tokens[i], self.sentence.spans[i]
        negated = self.sentence.negated
        self.sentence.denied = subjects if negated else []
        self.sentence.preposition, self.sentence.placed = "", True
        self.sentence.negated = self.sentence.absent = False
        if place.reference == "canvas" and i == self.sentence.backdrop_end:
            return  # "with grass in the background"
        if place.reference == "canvas" and not negated:
            after = place.end + (tokens[place.end : place.end + 1] == [","])
            while after < len(tokens) and (is_verb(tokens[after]) or tokens[after] == "there"):
                after += 1
            if opens and noun_phrase(tokens, after) is not None:
                self.sentence.side = place.side, span
            elif subjects and (whose := self._other_side_of(place, subjects)):
                self._link(tokens, place.end, link, whose)
            elif subjects:
                sided = [index for each in self.sentence.sided for index in each.subjects]
                if self.clause.role == "adjunct" and not set(subjects).isdisjoint(sided):
                    subjects = (
                        self.clause.latest
                    )  # "a boy on the left throws a ball to a girl on the right"
                self.sentence.sided.append(Sided(subjects, place.side, self.clause.head, span))
        elif place.reference not in ("object", "canvas"):
            found = self._reference(place.reference, link)
            found = found or self._resolve(place.reference, subjects)
            if not found and link.opens and inverts(tokens, place.end, fronted=link.fronted):
                found = self._resolve(place.reference, [])  # "a dog, and to its left a cat"
            self._link(tokens, place.end, link, found)
        elif place.reference == "object" and needs_object(tokens, place.end):
            self.sentence.waiting = None if orphan else link
        elif place.bare and i != self.sentence.ignored_end:
            # "the bird below", "leaving it behind": below what the sentence is about.
            other = self.sentence.contents.bearer_of(subjects) or self._other_than(subjects)
            self.said.relate(link, subjects, other)

    def _take_relative(self, tokens: Sequence[str], i: int, place: Place) -> bool:
        """ "a box on which a cat sits", "a chair to whose right stands a lamp"."""
        following = tokens[place.end] if place.end < len(tokens) else ""
        which = place.reference == "object" and following in ("which", "whom")
        if not self.clause.latest or not (which or place.reference == "whose"):
            return False
        self._await_subject(
            Link(place.names, [], self.sentence.span(i, place.end), self.clause.latest)
        )
        return True

    def _await_subject(self, link: Link) -> None:
        """What comes next is in a relation to what came last; then the clause goes on."""
        self.sentence.outer = self.sentence.outer or self.clause.head
        (
            self.sentence.inverted,
            self.sentence.waiting,
            self.sentence.joint,
            self.sentence.preposition,
        ) = link, None, "", ""

    def _other_side_of(self, place: Place, subjects: list[int]) -> list[int]:
        """ "a dog is to the left of a bench, and a cat is on the right": of the bench."""
        link = self.sentence.complete
        opposite = tuple(OPPOSITE.get(name, "") for name in place.names)
        if link is None or not link.is_side or not opposite or link.names != opposite:
            return []
        return link.references if set(subjects).isdisjoint(link.subjects + link.references) else []

    def _take_pronoun(self, tokens: Sequence[str], i: int) -> None:
        if self.sentence.waiting is not None:
            link, self.sentence.waiting = self.sentence.waiting, None
            if self.sentence.on_scenery and tokens[i] == "it":
                self.sentence.on_scenery = False
                return
            inverted = link.opens and inverts(tokens, i + 1, fronted=link.fronted)
            besides = [] if inverted else link.subjects
            if link.names == ("between",) and set(self.clause.latest) < set(besides):
                link.subjects, besides = (
                    self.clause.latest,
                    self.clause.latest,
                )  # "two pillows and a cat between them"
            if listed := self._reference(tokens[i], link):
                found = listed
            elif tokens[i] == "both" or link.names == ("between",):
                found = self._latest_two(besides)
            elif (
                link.rests
                and self.clause.joined
                and tokens[i] == "it"
                and len(self.clause.bearer) == 1
            ):
                found = self.clause.bearer  # "a cup next to a box with a cat on it"
            else:
                found = self._resolve(tokens[i], besides)
            self._link(tokens, i + 1, link, found)
            return
        if (
            tokens[i - 1 : i] == [self.clause.verb]
            and self.clause.verb not in AUXILIARIES
            and self.clause.subject
        ):
            found = self._resolve(tokens[i], self.clause.subject)
            if found:
                self._take_object(found)  # "riding it", "leaving it behind"
            return
        found = self._resolve(tokens[i], [])
        if found and (self.sentence.joint or not self.clause.last):
            self.sentence.begin_clause(found)
            self.sentence.joint = ""

    def _link(self, tokens: Sequence[str], end: int, link: Link, references: list[int]) -> None:
        """Gives a relation its objects, whose words end at `end`."""
        link.references = references
        if link.opens and (not link.subjects or inverts(tokens, end, fronted=link.fronted)):
            link.subjects = []
            self.sentence.inverted = link
        else:
            self.said.relate(link, link.subjects, references)
            self.sentence.complete = link
            self.sentence.stated += 1
            if link.names[:1] in _BESIDE and self._are_backdrops(references, link.names):
                self.sentence.scenery = link

    def _are_backdrops(self, ids: Sequence[int], names: tuple[str, ...]) -> bool:
        """ "next to trees with a giraffe", "next to a window with a book": not with the trees."""
        here = [self.mentions[index] for index in ids]
        if all(mention.kind in PLACES for mention in here):
            return True
        backdrops = all(each.kind in BACKDROPS or each.count == UNCOUNTED for each in here)
        return backdrops and names == ("next to",)

    def _take_noun_phrase(self, tokens: Sequence[str], phrase: NounPhrase) -> int:
        i, end = phrase.start, phrase.end
        described = not phrase.determiner and all(map(is_adjective, phrase.words))
        if (
            described
            and phrase.count
            and self.sentence.joint == "and"
            and self.known.are_described()
        ):
            # "two red balloons and one green"
            phrase.words += self.mentions[self.known.members[0]].noun.split(" ")
            find_noun(phrase)
        elif described:
            if phrase.count and len(self.known.members) >= phrase.count:
                # "three balloons, two red and one green"
                self.known.describe(self.known.next_members(phrase.count), phrase.words)
                return end
            is_said = (
                self.clause.verb in COPULAS
                and self.sentence.waiting is None
                and self.clause.role == "subject"
            )
            if is_said and not self.sentence.joint:
                self.known.describe(self.clause.subject, phrase.words)
                return end
            if phrase.words[-1] != "orange":
                self.sentence.waiting = None
                return end
        if (
            phrase.words[-1] == "one"
            and phrase.determiner in ("a", "an")
            and self._is_member(tokens, i)
        ):
            # "two cats, a black one and a white one"
            member = self.known.next_members(1)
            self.known.describe(member, phrase.words[:-1])
            self._take_members(tokens, end, member)
            return end
        before = ["", "", *tokens[max(0, i - 2) : i]][-2:]
        bare = not phrase.determiner and phrase.count is None
        if bare and before[1] in LOOKS and before[0] != "there":
            return end  # "is asleep"
        if (
            not phrase.determiner
            and self.sentence.joint == "and"
            and self.sentence.determiner == "the"
        ):
            phrase.determiner = "the"  # "the horse and cow"
        self.sentence.determiner = phrase.determiner
        self._borrow_noun(tokens, phrase)
        phrase.part = self._part_after(tokens, phrase)
        owner, owned = [*tokens[end : end + 2], "", ""][:2]
        side = SIDES.get(owned) if owner == "'s" else None
        link = self.sentence.waiting
        if side is not None and (
            link is not None or self.sentence.preposition in ("to", "on", "at")
        ):
            # "to the person's left", "on the bed's right side"
            of = self._spoken_of(Place(end, ()), i) if link is None else link.subjects
            span, opens = (
                self.sentence.span(end + 1, end + 2),
                bool(self.sentence.joint) or not self.clause.last,
            )
            opens = opens if link is None else link.opens
            self.sentence.waiting = Link(side_names(side), of, span, opens=opens)
            end += 2 + (tokens[end + 2 : end + 3] == ["side"])
        elif owner == "'s" and owned in BODY_PARTS:
            end += 2  # "on the cat's back"
        elif owner == "'s":
            alive = singular_noun(phrase.noun) in ANIMALS | PEOPLE
            if alive or phrase.determiner not in ("a", "an"):  # "a ship's wheel" has no ship
                self._mention(phrase)  # "the cat's bowl": the sentence is about the bowl
            return end
        aside = self._end_of_aside(tokens, phrase)
        if aside:
            self.sentence.ignored_end = aside
            return aside
        if self._take_row(phrase) or self._take_body_part(phrase):
            self.sentence.ignored_end = end
            return end
        self._take_clothes(tokens, phrase)
        if self._take_part(tokens, phrase):
            return end
        if not self._is_object(tokens, phrase):
            self.sentence.backdrop_end = end if self.sentence.preposition == "with" else -1
            self._pass_over(phrase)
            self.sentence.ignored_end = end
            end += tokens[end : end + 1] == ["up"]  # "a close up of"
            shows = phrase.words[-1] in CANVASES or self._is_scenery(phrase)
            if not shows or end == len(tokens) or tokens[end] not in SHOWING:
                return end
            self.sentence.room = tokens[end] == "with"
            return end + 1
        if self.sentence.waiting is None:
            self.sentence.denied = []
        ids = self.clause.latest = self._mention(phrase)
        self.sentence.phrase_end, self.sentence.preceding = end, tokens[i - 1] if i else ""
        if phrase.group in _ROWS:
            self.said.relate_row(ids, _ROWS[phrase.group], self.sentence.span(i, end))
        if self.sentence.side is not None:
            self.sentence.sided.append(Sided(ids, self.sentence.side[0], [], self.sentence.side[1]))
        self._place_in_clause(tokens, end, ids, bare, verb=phrase.verb and end == phrase.end)
        (
            self.sentence.joint,
            self.sentence.preposition,
            self.sentence.waiting,
            self.sentence.side,
        ) = "", "", None, None
        self.sentence.negated = self.sentence.placed = False
        if phrase.verb and end == phrase.end:
            self._take_verb(tokens, end)
            return end + 1
        return end

    def _end_of_aside(self, tokens: Sequence[str], phrase: NounPhrase) -> int:
        """Where "[a ship,] its sails billowing", "[a drone,] its propellers a blur" end; or 0."""
        if phrase.determiner not in ("its", "their") or self.sentence.waiting is not None:
            return 0
        alive = singular_noun(phrase.noun) in ANIMALS | PEOPLE
        if (
            alive
            or self.sentence.preposition
            or not (self.sentence.joint == "," or phrase.start == 0)
        ):
            return 0
        if phrase.start == 0 and tokens[phrase.end + 1 : phrase.end + 2] != [","]:
            return 0  # "its sails billowing, a ship ..."
        following = tokens[phrase.end] if phrase.end < len(tokens) else ""
        if looks_like_participle(following):
            return phrase.end + 1
        other = noun_phrase(tokens, phrase.end) if following in ("a", "an") else None
        return other.end if other is not None else 0

    def _take_row(self, phrase: NounPhrase) -> bool:
        """ "three dogs in a row" """
        name = _ROWS.get(phrase.words[-1])
        if (
            name is None
            or self.sentence.waiting is None
            or self.sentence.waiting.names != ("inside",)
        ):
            return False
        group = (
            self.sentence.waiting.subjects
            if self.sentence.waiting.subjects[1:]
            else self.clause.last
        )
        self.said.relate_row(group, name, self.sentence.waiting.span)
        self.sentence.waiting, self.sentence.preposition, self.sentence.joint = None, "", ""
        self.clause.latest = group
        return True

    def _take_body_part(self, phrase: NounPhrase) -> bool:
        """ "has its head on a pillow" speaks of the cat; "in his hand" says who holds it."""
        link, last = self.sentence.waiting, phrase.words[-1]
        owned = phrase.determiner in POSSESSIVES - {"'s"} and last in BODY_PARTS
        if phrase.determiner == "whose" and link is not None and self.clause.latest:
            link.references, link.subjects = self.clause.latest, []
            self._await_subject(link)  # "a hut, on whose roof a stork sits"
            return True
        one = phrase.count == 1 or phrase.other or phrase.determiner == "each"
        one |= not phrase.determiner and phrase.count is None and len(phrase.words) == 1
        if one and last in HELD_IN and link is not None and link.names == ("inside",):
            self._hold(link, self._resolve("their", link.subjects))  # "in one hand", "in hand"
            return True
        if not owned:
            return False
        if link is None and phrase.determiner == "whose":
            self.sentence.relative = True  # "a dog whose ears are long is ..."
            return True
        if link is None:
            spoken_of = (
                self.clause.verb
                and not (self.sentence.joint or self.sentence.preposition)
                and self.clause.subject
            )
            if not spoken_of or self.clause.role != "subject":
                return False
            self.clause.latest, self.clause.last, self.clause.role = (
                self.clause.subject,
                self.clause.subject,
                "object",
            )
            return True
        owner = self._resolve(phrase.determiner, link.subjects, alive=True)
        # "in their left hand": which side that is depends on which way they face.
        held = link.names == ("inside",) and last in HELD_IN
        if held or (link.names == ("above",) and singular(last) in CARRIED_OVER):
            self._hold(link, owner)
        elif link.names[:1] in [("on",), ("below",), ("above",)]:
            self._end_adjunct(link, owner)
        else:
            return False
        return True

    def _part_after(self, tokens: Sequence[str], phrase: NounPhrase) -> str:
        """ "red hair" after "the woman with red hair", which tells which woman."""
        if phrase.determiner not in DEFINITE or tokens[phrase.end : phrase.end + 1] != ["with"]:
            return ""
        part = noun_phrase(tokens, phrase.end + 1)
        return " ".join(part.words) if part and is_one_of(part.words[-1], OWN_PARTS) else ""

    def _take_clothes(self, tokens: Sequence[str], phrase: NounPhrase) -> None:
        """ "a man with a beard and a hat", "cute cat, tiny hat": clothes as if after "with"."""
        goes_on, listed = self._goes_on(phrase), self._is_tag(phrase)
        wearer = (
            self.clause.latest
            if goes_on or (listed and self._are_alive(self.clause.latest))
            else self.clause.head
        )
        place = find(tokens, phrase.end)
        if goes_on and place is not None and self._is_by_pronoun(tokens, place):
            # "a man with a beard and a parrot on his shoulder"
            self.sentence.preposition, self.clause.bearer, self.sentence.joint = (
                "with",
                self.clause.latest,
                "",
            )
        begins = goes_on or (listed and phrase.attributes)
        if begins and is_one_of(phrase.words[-1], WORN) and self._are_alive(wearer):
            self.sentence.preposition, self.clause.bearer, self.sentence.joint = "with", wearer, ""

    def _goes_on(self, phrase: NounPhrase) -> bool:
        """Whether it is one more part: "a man with a beard and ..."."""
        return bool(self.sentence.joint) and self.sentence.part_end == phrase.start - 1

    def _is_tag(self, phrase: NounPhrase) -> bool:
        return self.sentence.joint == "," and not phrase.determiner

    def _take_part(self, tokens: Sequence[str], phrase: NounPhrase) -> bool:
        """ "a woman with red hair", "the house has a blue door", "1girl, long hair".

        "Its tail" and "the beard" of a man with a beard are no objects either.
        """
        last, words = phrase.words[-1], " ".join(phrase.words)
        of_verb = self.clause.subject and tokens[phrase.start - 1 : phrase.start] == [
            self.clause.verb
        ]
        of_verb = of_verb and self.clause.verb not in COPULAS | _HAS and not phrase.determiner
        if of_verb and words in BODY_PARTS:
            return True  # "holding hands"
        if not is_one_of(last, OWN_PARTS) or phrase.of or phrase.portion or self.sentence.waiting:
            return False
        of_body = is_one_of(last, OF_BODIES)
        if not of_body and self._is_placed(tokens, phrase):
            return False  # "a house with a door leading to a garden"
        owners = self._owners(phrase, of_body=of_body)
        if self._are_alive(owners) and not of_body:
            return False  # "a girl with a leaf in her hand"
        if self._are_people(owners) and last in ("horn", "trunk"):
            return False
        if (
            phrase.determiner in DEFINITE | POSSESSIVES
            or self.sentence.negated
            or self.sentence.absent
        ):
            known = bool(owners) and all(self.mentions[index].has(words) for index in owners)
            own = self.sentence.preposition == "with" and phrase.determiner in POSSESSIVES
            if not (known or own):
                return False
        elif not owners:
            return False
        else:
            text = " ".join(tokens[phrase.start : phrase.end])
            self.known.complete(owners, text, words)
        if owners:
            self.clause.latest = owners
            if owners == self.clause.head:
                self.clause.subject, self.clause.last, self.clause.role = owners, owners, "subject"
        self.sentence.phrase_end = self.sentence.part_end = phrase.end
        self.sentence.preposition, self.sentence.joint = "", ""
        return True

    def _owners(self, phrase: NounPhrase, *, of_body: bool) -> list[int]:
        """What a part belongs to, if it is said to be a part; of_body: somebody's."""
        if self.sentence.preposition == "with":
            owners = self._wearers(self.clause.bearer) if of_body else self.clause.bearer
            if of_body and not self._are_alive(owners) and self._are_alive(self.clause.head):
                return self.clause.head  # "a man on a bench with long hair"
            return owners
        if (
            self.clause.verb in _HAS
            and self.clause.role == "subject"
            and not (self.sentence.joint or self.sentence.preposition)
        ):
            return self.clause.subject
        if self._goes_on(phrase) or (self._is_tag(phrase) and self._are_alive(self.clause.latest)):
            return self.clause.latest
        if (
            self.sentence.joint
            and self.clause.joined
            and of_body
            and self._are_alive(self.clause.bearer)
        ):
            return self.clause.bearer  # "a woman with a dress and long hair"
        return []

    def _is_placed(self, tokens: Sequence[str], phrase: NounPhrase) -> bool:
        """Whether a part does something, or has a place of its own."""
        end = phrase.end
        if end < len(tokens) and self._is_verb(tokens[end], end):
            return not phrase.attributes
        place = find(tokens, end)
        if place is None or self._is_by_pronoun(tokens, place):
            return place is not None
        # "with a door on the left", but "a house with a red roof on the left"
        backdrop = place.reference == "canvas" and place.side[2] is not None
        return backdrop or (place.reference == "canvas" and not phrase.attributes)

    def _is_by_pronoun(self, tokens: Sequence[str], place: Place) -> bool:
        """ "behind it", "to her left", "on his head" """
        following = tokens[place.end] if place.end < len(tokens) else ""
        own = following in PRONOUNS | POSSESSIVES
        return place.reference not in ("object", "canvas") or (place.reference == "object" and own)

    def _hold(self, link: Link, owner: list[int]) -> None:
        """ "in her hand", "over his shoulder" """
        link.names = ("held by",)
        self.sentence.holders = owner
        self._end_adjunct(link, owner)
        if self.clause.role == "adjunct" and owner == self.clause.head:
            self.clause.subject = self.clause.latest = owner

    def _end_adjunct(self, link: Link, references: list[int]) -> None:
        self.said.relate(link, link.subjects, references)
        self.sentence.waiting, self.sentence.preposition, self.sentence.joint = None, "", ""
        self.clause.role = "adjunct" if self.clause.verb else self.clause.role

    def _take_member(self, tokens: Sequence[str], i: int) -> int | None:
        """ "two dogs, one on the left and the other on the right" """
        end, which = self._which(tokens, i)
        if which:
            self._take_members(tokens, end, which)
            return end
        end = i + (tokens[i] in ("the", "one", "another"))
        end += tokens[end : end + 1] == ["other"]
        alone = end > i and tokens[end - 1] in ("one", "another", "other")
        end += 2 * (alone and tokens[end : end + 2] == ["of", "them"])
        alone &= self._ends_there(tokens, end)
        link = self.sentence.waiting
        if alone and self.sentence.holders and link and link.names == ("inside",):
            self._hold(link, self.sentence.holders)  # "a cup in one hand and a fork in the other"
            return end
        if not alone:
            return None
        if not self.known.members and tokens[i] == "another" and self.clause.head:
            noun = self.mentions[self.clause.head[0]].noun.split(" ")
            phrase = NounPhrase(i, end, "a", None, noun)
            find_noun(phrase)
            return self._take_noun_phrase(tokens, phrase)
        if not self.known.members:
            return None
        self._take_members(tokens, end, self.known.next_members(1))
        return end

    def _which(self, tokens: Sequence[str], i: int) -> tuple[int, list[int]]:
        """Where "the latter", "the second dog" or "two of them" ends, and what it is."""
        nothing: tuple[int, list[int]] = i, []
        if is_number(tokens[i]):
            end, number = i + 1, number_of(tokens[i])
            end += 2 * (tokens[end : end + 2] == ["of", "them"])
            if number > 1 and self._is_member(tokens, i, number) and self._ends_there(tokens, end):
                return end, self.known.next_members(number)
            return nothing
        word = tokens[i + 1] if tokens[i] == "the" and i + 1 < len(tokens) else ""
        if word not in _ORDINALS:
            return nothing
        end = i + 2 + (tokens[i + 2 : i + 3] == ["one"])
        phrase = None if self._ends_there(tokens, end) else noun_phrase(tokens, end)
        group: Sequence[int]
        if phrase is not None:
            end, kind = phrase.end, singular_noun(phrase.noun)
            group = [index for index, mention in enumerate(self.mentions) if mention.kind == kind]
        else:
            groups = (
                self.known.several,
                self.sentence.main,
                self.sentence.about,
                range(len(self.mentions)),
            )
            group = next((each for each in groups if each[1:]), [])
            group = group[-2:] if word in ("former", "latter") else group
        if not group[1:] or _ORDINALS[word] >= len(group):
            return nothing
        return end, [group[_ORDINALS[word]]]

    def _ends_there(self, tokens: Sequence[str], end: int) -> bool:
        """Whether what stands before `end` is no part of a longer noun phrase."""
        return is_boundary(tokens, end) or self._acts_alone(tokens, end)

    def _is_member(self, tokens: Sequence[str], i: int, number: int = 1) -> bool:
        """Whether what begins at i can be some of the plural before: it comes right after it."""
        left = self.known.members
        begun = bool(left) and self.mentions[left[0]].index > 0
        return (
            len(left) >= number
            and i > 0
            and (tokens[i - 1] in (",", ":") or (begun and self.sentence.joint == "and"))
        )

    def _take_members(self, tokens: Sequence[str], end: int, members: list[int]) -> None:
        self.clause.latest = members
        if self.sentence.joint == "," or self.sentence.waiting is None:
            self.sentence.begin_clause(members)
        else:
            self._place_in_clause(tokens, end, members, False)
        self.sentence.joint, self.sentence.preposition, self.sentence.waiting = "", "", None

    def _acts_alone(self, tokens: Sequence[str], i: int) -> bool:
        """ "two dogs, one standing on a chair", but "one standing dog"."""
        return (
            i < len(tokens)
            and (is_known_verb(tokens[i]) or looks_like_participle(tokens[i]))
            and (is_boundary(tokens, i + 1) or find(tokens, i) is not None)
        )

    def _pass_over(self, phrase: NounPhrase) -> None:
        """Reads a noun phrase that is no object."""
        if phrase.determiner == "no" or self.sentence.preposition in NEGATIONS:
            self.sentence.absent = True
        elif (
            self.sentence.waiting is None
            and not (self.sentence.preposition or self.sentence.absent)
            and (self.sentence.joint or not self.clause.last)
        ):
            self.sentence.begin_clause([])  # "while their right hand is empty"
        if self.sentence.waiting is not None:
            self.clause.subject = self.sentence.before  # "riding a bus at night"
            if self.sentence.waiting.names[:1] in _BESIDE and self._is_scenery(phrase):
                self.sentence.scenery = self.sentence.waiting
        (
            self.sentence.waiting,
            self.sentence.preposition,
            self.sentence.joint,
            self.sentence.negated,
        ) = None, "", "", False
        if self.clause.last:
            self.clause.role = "adjunct" if self.clause.verb else self.clause.role

    def _place_in_clause(
        self, tokens: Sequence[str], end: int, ids: list[int], bare: bool, *, verb: bool = False
    ) -> None:
        """Decides what a new noun phrase is: subject, object, adjunct, or one more of these."""
        followed_by_verb = verb or (end < len(tokens) and is_verb(tokens[end]))
        finite = followed_by_verb and (tokens[end] in AUXILIARIES or tokens[end].endswith("s"))
        listed = self.sentence.joint in ("and", ",")
        complete = self.sentence.complete
        scenery, self.sentence.scenery = self.sentence.scenery, None
        if scenery is not None and not (
            self.sentence.waiting or self.sentence.joint or self.sentence.negated
        ):
            # "a train next to a road with a truck"
            self.said.relate(scenery, scenery.subjects, ids)
            self.sentence.on_scenery = not scenery.references
        # A bare noun in a text that has articles: "a vase with flowers next to a clock".
        self.clause.trait = (
            bare and bool(self.clause.head) and not self.mentions[self.clause.head[0]].bare
        )
        # "above the fork and the knife", "next to a hat, book and blanket"
        goes_on = self.sentence.joint == "and" and find(tokens, end) is None
        # ... but "next to a queen, throne behind the queen" begins anew.
        alone = self.clause.trait and (self.sentence.joint == "and" or find(tokens, end) is None)
        goes_on = (goes_on or (listed and alone)) and not followed_by_verb
        bare_list = bare and self.sentence.preceding == "," and bool(self.clause.head)
        anew = (
            bare_list and self.mentions[self.clause.head[0]].bare and find(tokens, end) is not None
        )
        acts = listed and self.clause.role == "object" and followed_by_verb and self._are_alive(ids)
        place, following = find(tokens, end), tokens[end] if end < len(tokens) else ""
        if (
            self.sentence.joint == ","
            and self.clause.role == "object"
            and not (bare or self.clause.joined)
        ):
            # "a girl holding an umbrella, a dog with a ball", "..., a tree to her left"
            acts |= place is not None and place.reference != "object"
            acts |= self._are_alive(ids) and following not in ("", *CONJUNCTIONS)
        acts = acts and (
            not self._are_alive(self.clause.last)
            if self.clause.joined
            else complete is None or complete.references == self.clause.last
        )
        # "a man wearing a hat and a scarf stands"
        borne = complete.names if complete is not None and complete.names in _BORNE else ()
        carried = bool(borne)
        worn = carried and self.sentence.joint == "and" and finite and not self.clause.finite
        # "a man wearing a hat and a woman", "a cat wearing a hat and a dog"
        other = carried and {self.mentions[index].kind for index in ids} <= MEN | WOMEN
        other |= borne == ("worn by",) and self._are_alive(ids)
        clothes = listed and borne == ("worn by",) and self._are_clothes(ids)
        clothes = (
            clothes and self.sentence.determiner != "the"
        )  # "wearing a hat, the hat above ..."
        if self.sentence.waiting is not None:
            link = self.sentence.waiting
            if link.names == ("inside",) and not link.reverse and self._are_clothes(ids):
                link.names, link.reverse = ("worn by",), True  # "a girl in a blue dress"
            self._link(tokens, end, link, ids)
            self.clause.last, self.clause.role = ids, "object" if link.lists else "adjunct"
        elif (
            self.sentence.inverted
            and not self.sentence.inverted.subjects
            and self.sentence.preceding == "and"
        ):
            self.sentence.inverted.references = (
                self.sentence.inverted.references + ids
            )  # "between a and b is ..."
        elif self.sentence.inverted is not None and (
            goes_on or not self.sentence.inverted.subjects
        ):
            # "above the dog is a cat [and a bird]"
            self.said.relate(self.sentence.inverted, ids, self.sentence.inverted.references)
            self.sentence.complete = self.sentence.inverted
            if not self.sentence.inverted.subjects:
                self.sentence.begin_clause(ids)
                self.clause.finite, self.clause.verb = True, "is"
            self.sentence.inverted.subjects = ids
        elif listed and self.sentence.holders and tokens[end : end + 1] == ["in"]:
            self.clause.last, self.clause.role = (
                ids,
                "object",
            )  # "a fork in one hand and a knife in the other"
        elif self.sentence.preposition == "with":
            if complete is not None and complete.is_side and self.sentence.stated == 1:
                self.sentence.aside = complete.references
            self.clause.last, self.clause.role, self.clause.joined = ids, "object", True
            self.clause.bearer = self._wearers(self.clause.bearer)
            self.sentence.contents.take(self.clause.bearer, ids, self.sentence.verb_span)
        elif anew:
            self.sentence.begin_clause(ids)  # "woman holding umbrella, car on left"
        elif acts:
            self.sentence.begin_clause(ids)  # "a man holding a cup and a dog sitting next to him"
        elif (
            listed
            and self.clause.role == "object"
            and self.clause.last
            and (worn or not finite)
            and not other
        ):
            if complete is not None and complete.lists:
                self.said.relate(complete, complete.subjects, ids)
            self.clause.last = ids if self.sentence.placed else self.clause.last + ids
            self.sentence.contents.take_too(ids, with_article=self.clause.joined)
        elif (
            self.clause.role == "adjunct"
            and complete
            and not other
            and (goes_on or worn or clothes)
        ):
            self.said.relate(complete, complete.subjects, ids)
            complete.references = complete.references + ids
            self.clause.last = self.clause.last + ids
        elif listed and self.clause.role == "subject" and set(ids) < set(self.clause.last):
            self.sentence.begin_clause(ids)  # "a cat and a dog, the cat on a mat"
        elif listed and self.clause.role == "subject" and not self.clause.verb and self.clause.last:
            self.clause.last = self.clause.last + ids
            self.sentence.main = (
                self.clause.last
                if self.sentence.main == self.clause.subject
                else self.sentence.main
            )
            self.clause.subject = self.clause.head = self.clause.last
        elif self.sentence.preposition:
            self.clause.last, self.clause.role = ids, "adjunct"
        elif self.clause.verb and self.clause.subject and not self.sentence.joint:
            self._take_object(ids)
        else:
            self.sentence.begin_clause(ids)

    def _take_object(self, ids: list[int]) -> None:
        """ "a man holding a cup" """
        self.clause.last, self.clause.role = ids, "object"
        held = self.clause.verb not in _HAS
        if _holds(self.clause.verb) and self.sentence.contents.take(
            self.clause.subject, ids, self.sentence.verb_span, held=held
        ):
            return
        stated = _stated_by(self.clause.verb)
        if stated is not None:
            name, reverse = stated
            link = Link((name,), self.clause.subject, self.sentence.verb_span, ids, reverse=reverse)
            self.said.relate(link, self.clause.subject, ids)
            self.sentence.complete = link
            if name == "worn by":
                self.clause.role = "adjunct"  # "a dog wearing a shirt on top of a bed"

    # What a phrase stands for

    def _borrow_noun(self, tokens: Sequence[str], phrase: NounPhrase) -> None:
        """ "a red and a blue circle", "a red circle and a blue one"."""
        if phrase.words[-1] in ("one", "ones") and self.mentions:
            phrase.words[-1:] = self.mentions[-1].noun.split(" ")
            find_noun(phrase)
            return
        if not phrase.determiner or phrase.words[-1] not in PURE_COLOURS:
            return
        if tokens[phrase.end : phrase.end + 1] in (["and"], [","]):
            other = noun_phrase(tokens, phrase.end + 1)
            if other is not None and other.determiner:
                phrase.words += other.noun.split(" ")
                find_noun(phrase)

    def _is_object(self, tokens: Sequence[str], phrase: NounPhrase) -> bool:
        last = phrase.noun.split(" ")[-1]
        head = singular(last)
        if phrase.determiner == "no" or phrase.count == 0 or self.sentence.preposition in NEGATIONS:
            return False
        if self.sentence.absent and self.sentence.joint:
            return False  # "without a hat or a coat"
        acted_on = (
            self.sentence.waiting is None
            and self.clause.subject
            and not (self.sentence.joint or self.sentence.preposition)
        )
        if (
            self.sentence.negated
            and acted_on
            and (_holds(self.clause.verb) or _stated_by(self.clause.verb))
        ):
            return False  # "is not wearing a hat"
        following = tokens[phrase.end : phrase.end + 2]
        shown = [["from"], ["taken"], *([word] for word in SHOWING)]
        within = self.sentence.waiting is not None and self.sentence.waiting.names[:1] in [
            ("inside",),
            ("on",),
        ]
        within = within or self.sentence.preposition in ("at", "through", "across")
        within = within or tokens[phrase.start - 1 : phrase.start] == ["at"]
        if head in PLACES and within:
            return False
        if self._is_scenery(phrase) and (
            self.sentence.preposition
            or self.sentence.waiting is not None
            or following[:1] in _HAVING
            or (self.clause.head and not phrase.determiner)
            or (
                self.clause.head
                and self.clause.verb
                and self.clause.verb not in AUXILIARIES
                and not self.sentence.joint
            )
        ):
            return False
        if " " in phrase.noun:
            return True
        if head in NOT_OBJECTS or last in NOT_OBJECTS or last in PURE_COLOURS:
            return False
        if head in PICTURES and (
            following[:1] in shown
            or following == ["up", "of"]
            or not {"empty", "blank", "plain"}.isdisjoint(phrase.attributes)
        ):
            return False
        facing = self.sentence.waiting is not None and self.sentence.waiting.names == ("facing",)
        if last == "camera" and phrase.determiner == "the" and facing:
            return False  # "looks at the camera"
        if head in THE_CANVAS and phrase.determiner == "the" and self.sentence.waiting is not None:
            return False
        one_of_two = phrase.count == 1 or phrase.other
        owned = phrase.determiner in POSSESSIVES or (
            one_of_two
            and self.sentence.waiting is not None
            and self.sentence.waiting.names[:1] in [("inside",), ("on",)]
        )
        return not (owned and last in BODY_PARTS)

    def _mention(self, phrase: NounPhrase) -> list[int]:
        start = phrase.start + (phrase.determiner == "'s")
        return self.known.take(
            phrase,
            self.sentence.span(start, phrase.end),
            sentence=self.sentence.number,
            subject=self.clause.subject,
            latest=self.clause.latest,
            related=self.sentence.waiting is not None,
        )

    def _is_scenery(self, phrase: NounPhrase) -> bool:
        if phrase.noun in IN_THE_SKY and phrase.determiner in ("a", "an"):
            return False  # "a red sun", but "in the sun"
        return phrase.noun in SCENERY or singular_noun(phrase.noun) in SCENERY_COMPOUNDS

    def _reference(self, pronoun: str, link: Link) -> list[int]:
        """What a pronoun after words of place that end a list stands for; none if it is no list.

        In "a cat, a dog behind it" that is the cat, and the relation speaks of the dog alone. In
        "a bench, a tree on its left and a lamp on its right" both speak of the bench.
        """
        if self.clause.verb or self.sentence.about or link.opens or self.clause.role != "subject":
            return []
        before, said = (
            [i for i in link.subjects if i not in self.clause.latest],
            self.sentence.complete,
        )
        if said and before in ([], said.subjects) and said.looks_back:
            before = said.references
        found = self._resolve(pronoun, self.clause.latest, first=before) if before else []
        if not set(found).issuperset(before):
            return []
        if found:
            link.subjects = self.clause.latest
        return found

    def _resolve(
        self,
        pronoun: str,
        besides: Sequence[int],
        first: Sequence[int] = (),
        *,
        alive: bool = False,
    ) -> list[int]:
        """What a pronoun stands for: `first` if that fits, and rather what is alive if it is to be.

        The main subject if it fits, else the latest object that does; what the relation before
        spoke of comes first in a clause after the main one ("..., while the dog sits below it"),
        and after a single statement of side ("a cat left of a dog, with a bird above it").
        """
        groups = [self.sentence.main, self.clause.subject, self.sentence.about]
        if self.clause.role == "object" and besides and pronoun in ("it", "its"):
            groups.insert(0, self.sentence.aside)
        if self.sentence.second and self.sentence.complete is not None and besides:
            # "a laptop on a desk, a cup to its right", but "... a cat under it"
            link, side = self.sentence.complete, pronoun == "its"
            groups.insert(0, link.subjects if link.rests and side else link.references)
        groups += [[index] for index in reversed(range(len(self.mentions)))]
        groups.insert(0, list(first))
        if alive:
            groups.sort(key=lambda group: not self._are_alive(group))
        for group in groups:
            if not group or not set(group).isdisjoint(besides):
                continue
            people = [index for index in group if singular(self.mentions[index].noun) in PEOPLE]
            person = bool(people)
            plural = len(group) > 1 or is_plural(self.mentions[group[0]].noun)
            if pronoun in PERSONAL:
                others = WOMEN if pronoun in MASCULINE else MEN
                group = [index for index in people if self.mentions[index].kind not in others]
                fits = bool(group)
            elif pronoun in PLURAL_PRONOUNS:
                # "a man on a horse ... them" is both.
                one = pronoun == "them" and self.mentions[group[0]].kind in MEN | WOMEN
                fits = plural or (person and not one)
            else:
                one = len(group) == 1 and not self.known.is_one_of_several(group[0])
                fits = one and not person
            if fits:
                return list(group)
        here = [
            i for i, mention in enumerate(self.mentions) if mention.sentence == self.sentence.number
        ]
        before = [
            i for i, each in enumerate(self.mentions) if each.sentence == self.sentence.number - 1
        ]
        for group in (here, before):
            if pronoun == "them" and group[1:]:
                return [index for index in group if index not in besides]
        return self._other_than(besides)

    def _latest_two(self, besides: Sequence[int]) -> list[int]:
        """What "both" and "between them" stand for."""
        for group in (self.clause.subject, self.sentence.main, self.sentence.about):
            if len(group) == 2 and set(group).isdisjoint(besides):
                return list(group)
        return [i for i in range(len(self.mentions)) if i not in besides][-2:]

    def _other_than(self, besides: Sequence[int]) -> list[int]:
        for group in (
            self.clause.subject,
            self.sentence.main,
            self.sentence.about,
            self.clause.last,
        ):
            if group and set(group).isdisjoint(besides):
                return list(group)
        return []
