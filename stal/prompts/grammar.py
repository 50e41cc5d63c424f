"""The bundled engine of `stal.prompts`: a single pass over the words of a prompt.

Noun phrases (`stal.prompts.nouns`) become objects, words of place (`stal.prompts.places`) relations
between them. The reader keeps what the words so far were about (`stal.prompts.clause`): who the
clause is about, the latest noun phrase and its part in the clause, and words of place that still
lack their object or subject.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stal.prompts.attachment import (
    adds_part,
    is_tag,
    modifies_latest,
    object_acts,
    other_side_of,
    owners,
    spoken_of,
)
from stal.prompts.clause import Clause, Sentence
from stal.prompts.contents import Contents
from stal.prompts.mentions import Mention, Mentions
from stal.prompts.nouns import (
    NounPhrase,
    ends_there,
    find_noun,
    inverts,
    needs_object,
    noun_phrase,
    part_after,
)
from stal.prompts.objects import is_object
from stal.prompts.places import (
    HAS,
    SIDES,
    Place,
    find,
    holds,
    is_agent,
    is_by_pronoun,
    stated_by,
)
from stal.prompts.pronouns import after_list, latest_two, other_than, resolve
from stal.prompts.rewording import ORDERS
from stal.prompts.sentences import parts
from stal.prompts.statements import (
    BESIDE,
    BORNE,
    RESTS,
    Link,
    Sided,
    Statements,
    dealt,
    without,
)
from stal.prompts.words import (
    AUXILIARIES,
    BACKDROPS,
    BODY_PARTS,
    CANVASES,
    CARRIED_OVER,
    CLAUSE_BREAKS,
    CONJUNCTIONS,
    COPULAS,
    CROSSED,
    DEFINITE,
    DETERMINERS,
    FUNCTION_WORDS,
    HELD_IN,
    LOOKS,
    MEN,
    NEGATIONS,
    OF_BODIES,
    OWN_PARTS,
    PLACES,
    POSSESSIVES,
    PRONOUNS,
    PURE_COLOURS,
    RELATIVES,
    SHOWING,
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
    word_at,
    word_set,
)
from stal.relations import Span, Statement, side_names

_DIRECTED = word_set(
    "facing faces faced looking looks turning turned pointing points pointed heading headed leaning"
    " gazing staring glancing"
)
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
_INTO = frozenset(("into", "onto"))
_ROWS = {"row": "left of", "line": "left of", "column": "above", "stack": "above", "pile": "above"}
_ON_TOP = frozenset(("top", "atop"))


def read(text: str, reader: Reader | None = None) -> tuple[list[Mention], dict[Statement, Span]]:
    """The objects of a text, and its relations with the spans of the words that state them.

    Args:
        text: one or more sentences.
        reader: a new one; by default one that knows nothing but the words.
    """
    reader = reader or Reader()
    found = parts(text)
    for number, part in enumerate(found):
        if number:
            reader.known.begin_part(shared=found[number - 1].shared)
        reader.of_several = number == 0 and len(found) > 1
        for tokens, spans in part.sentences:
            reader.read(tokens, spans)
    of_none = reader.known.of_no_part()
    return dealt(*without(of_none, reader.mentions, reader.said.relations))


@dataclass(frozen=True)
class _Following:
    """What follows a noun phrase: which word, or "", and whether words of place or a verb.

    by_pronoun: whether these words of place are relative to a pronoun.
    """

    word: str
    place: Place | None
    is_verb: bool
    by_pronoun: bool = False

    @property
    def is_finite(self) -> bool:
        return self.is_verb and (self.word in AUXILIARIES or self.word.endswith("s"))


class Reader:
    """Objects and relations of the sentences read so far.

    A method `_take_...` reads one kind of thing. If it may be another kind, it returns where to go
    on, or None; or whether it was that kind.

    Attributes:
        known: the objects; `mentions` are its items.
        said: the relations.
        sentence: the one that is being read.
        of_several: whether it is in the first of several parts.
    """

    def __init__(self) -> None:
        self.known = Mentions()
        self.mentions = self.known.items
        self.said = Statements(self.mentions)
        self.sentence = Sentence([], Contents(self.mentions, self.said))
        self.of_several = False

    @property
    def clause(self) -> Clause:
        """The one that is being read; `Sentence.begin_clause` makes it another."""
        return self.sentence.clause

    def read(self, tokens: list[str], spans: list[Span]) -> None:
        """Reads one sentence.

        Args:
            tokens: its words; comparisons of number are taken out, as from the spans.
            spans: where each is in the text.
        """
        self.known.take_comparisons(tokens, spans)
        self.sentence = Sentence(
            spans,
            Contents(self.mentions, self.said),
            number=self.sentence.number + 1,
            about=self.sentence.main,
            of_several=self.of_several,
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
        joined = self.sentence.joint == "and" and self.clause.role == "subject"
        return noun_phrase(tokens, i, joined=joined)

    def _is_verb(self, token: str, i: int) -> bool:
        return is_known_verb(token) or looks_like_participle(token)

    def _step(self, tokens: Sequence[str], i: int) -> int:
        """Reads what begins at position i."""
        self._take_bracket(tokens, i)
        for take in (
            self._take_order,
            self._take_words_of_place,
            self._take_both,
            self._take_pronoun,
            self._take_member,
        ):
            end = take(tokens, i)
            if end is not None:
                return end
        return self._take_word(tokens, i)

    # Single words

    def _take_bracket(self, tokens: Sequence[str], i: int) -> None:
        sentence = self.sentence
        if tokens[i] == "(" and sentence.waiting is None:
            sentence.phrase_end += i == sentence.phrase_end  # what follows follows the noun phrase
            sentence.open_bracket()
        elif tokens[i] == ")" and sentence.outside is not None:
            sentence.close_bracket()
            sentence.phrase_end = i + 1

    def _take_order(self, tokens: Sequence[str], i: int) -> int | None:
        """ "next to each other", "side by side", "from left to right": said of neighbours."""
        clause, sentence = self.clause, self.sentence
        ahead = tuple(tokens[i : i + 3])
        if ahead[:2] in (("each", "other"), ("one", "another")):
            link, sentence.waiting = sentence.waiting, None
            if link is not None:
                group = link.subjects if link.subjects[1:] else clause.last
                self.said.relate_neighbours(group, link.names, link.span)
            return i + 2
        if ahead == ("side", "by", "side") and word_at(tokens, i + 3) != "with":
            self.said.relate_neighbours(clause.last, ("next to",), sentence.span(i, i + 3))
            return i + 3
        order = ORDERS.get(" ".join(tokens[i : i + 4]))
        if order is not None:
            group = clause.subject if clause.role == "adjunct" else clause.last
            self.said.relate_neighbours(group, (order,), sentence.span(i, i + 4))
            return i + 4
        return None

    def _take_both(self, tokens: Sequence[str], i: int) -> int | None:
        clause, sentence = self.clause, self.sentence
        if tokens[i] != "both":
            return None
        if looks_like_participle(word_at(tokens, i + 1)):
            link = sentence.complete
            if link is not None and clause.role != "subject" and link.references == clause.last:
                clause.speak_of([*link.subjects, *link.references])  # "a dog next to a cat, both"
            if clause.role == "subject":
                sentence.joint = ""  # "a man and a dog, both running"
            return i + 1
        if sentence.waiting is not None and noun_phrase(tokens, i) is None:
            self._refer(tokens, i)
            return i + 1
        return None

    def _take_word(self, tokens: Sequence[str], i: int) -> int:
        """Reads a function word, a verb or a noun phrase."""
        clause, sentence, token = self.clause, self.sentence, tokens[i]
        if token in NEGATIONS or token.endswith("n't"):
            sentence.negated = True
            sentence.preposition = token
        if token in RELATIVES:
            if clause.last and sentence.waiting is None:
                clause.speak_of(clause.last)
                clause.verb = sentence.joint = ""
                sentence.relative = True
        elif token in CONJUNCTIONS:
            sentence.joint = "," if "," in (token, sentence.joint) else "and"
            sentence.absent &= token in ("or", "nor")
        elif token == "but" and sentence.denied and find(tokens, i + 1) is not None:
            sentence.joint, sentence.waiting = "", None  # "a cat not on the table but under it"
            sentence.corrected = sentence.denied
            return i + 1
        elif token in CLAUSE_BREAKS:
            sentence.joint, sentence.absent = "while", False
        elif token in WITH:
            sentence.preposition, sentence.joint = "with", ""
            follows = i in (sentence.phrase_end, sentence.side_end)
            clause.bearer = clause.latest if follows else []
            sentence.verb_span = sentence.spans[i]
        elif token in AUXILIARIES:
            self._take_verb(tokens, i)
        elif token not in NEGATIONS:
            return self._take_content_word(tokens, i)
        if token not in WITH | NEGATIONS:
            sentence.preposition = ""
        if token not in AUXILIARIES:
            sentence.waiting = None
        return i + 1

    def _take_content_word(self, tokens: Sequence[str], i: int) -> int:
        if self._is_bare_verb(tokens, i) or self._is_verb_of_relative(tokens, i):
            self._take_verb(tokens, i)
            return i + 1
        phrase = self._noun_phrase(tokens, i)
        if phrase is not None:
            return self._take_noun_phrase(tokens, phrase)
        if self._is_verb(tokens[i], i):
            self._take_verb(tokens, i)
        elif tokens[i] in FUNCTION_WORDS and tokens[i] not in DETERMINERS:
            self.sentence.preposition = tokens[i]
        return i + 1

    # Verbs

    def _is_bare_verb(self, tokens: Sequence[str], i: int) -> bool:
        """ "they stand next to a car"."""
        clause, sentence = self.clause, self.sentence
        if word_at(tokens, i - 1) == "to" and sentence.waiting is None and tokens[i] in VERB_STEMS:
            return True  # "to catch a frisbee"
        return (
            tokens[i] in VERB_STEMS
            and bool(clause.last)
            and not (sentence.joint or sentence.preposition or sentence.waiting or clause.verb)
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
        sentence, verb, before = self.sentence, tokens[i], word_at(tokens, i - 1)
        finite = verb in AUXILIARIES or verb.endswith("s")
        sentence.fronted = not finite and all(map(is_adverb, tokens[:i]))
        if finite and sentence.outer and sentence.joint == ",":
            sentence.begin_clause(sentence.outer)  # "a box, on which a cat sits, is ..."
            sentence.outer = []
        clause = self.clause
        if sentence.relative:
            sentence.relative = False
        elif finite and clause.head and not clause.finite:
            # "a dog with a cat above it is ...": back to the dog.
            clause.finite = True
            if clause.role != "subject" and not sentence.joint:
                clause.speak_of(clause.head)
        if finite and before in CONJUNCTIONS and clause.head:
            clause.speak_of(clause.head)  # "... and has a hat": the same subject.
            sentence.joint = ""
        joins = before in CONJUNCTIONS and not finite
        if joins and clause.verb and clause.verb not in AUXILIARIES and clause.subject:
            clause.speak_of(clause.subject)  # "wearing a hat and holding a cup": the same subject.
            sentence.joint = ""
        elif joins and before == "," and clause.role == "subject":
            sentence.joint = ""  # "a man, wearing a hat, ..."
        elif clause.role == "object" and (clause.trait or (clause.joined and not finite)):
            back = clause.trait and self._speaks_back(tokens, i + 1)
            if finite or not (back or object_acts(sentence, self.known)):
                clause.speak_of(clause.head)
                sentence.joint = sentence.joint if finite else ""
            else:
                clause.subject = clause.last
        elif not finite and modifies_latest(verb, i, sentence, self.known):
            clause.subject = clause.latest
        clause.trait = clause.joined = sentence.absent = False
        clause.verb, sentence.verb_span, sentence.preposition = verb, sentence.spans[i], ""

    def _speaks_back(self, tokens: Sequence[str], i: int) -> bool:
        """ "a bowl with chopsticks resting on it": on the bowl."""
        place = find(tokens, i)
        return place is not None and word_at(tokens, place.end) in PRONOUNS

    # Words of place

    def _take_words_of_place(self, tokens: Sequence[str], i: int) -> int | None:
        place = None if is_agent(tokens, i) else find(tokens, i)
        if place is None and tokens[i] == "with" and word_at(tokens, i - 1) in COPULAS:
            place = Place(i + 1, ("next to",))  # "the cat is with the dog"
        if place is None:
            return None
        if self._take_relative(tokens, i, place):
            return place.end + (place.reference == "object")
        self._take_place(tokens, i, place)
        return place.end

    def _take_relative(self, tokens: Sequence[str], i: int, place: Place) -> bool:
        """ "a box on which a cat sits", "a chair to whose right stands a lamp"."""
        which = place.reference == "object" and word_at(tokens, place.end) in ("which", "whom")
        latest = self.clause.latest
        if not latest or not (which or place.reference == "whose"):
            return False
        self._await_subject(Link(place.names, [], self.sentence.span(i, place.end), latest))
        return True

    def _await_subject(self, link: Link) -> None:
        """What comes next is in a relation to what came last; then the clause goes on."""
        self.sentence.outer = self.sentence.outer or self.clause.head
        self.sentence.inverted = link
        self.sentence.settle()

    def _take_place(self, tokens: Sequence[str], i: int, place: Place) -> None:
        """Words of place at i: states their relation, or keeps it until its objects come."""
        if is_known_verb(tokens[i]) and tokens[i].endswith("s"):
            self._take_verb(tokens, i)  # "a man on a horse looks at a car"
        if place.reference == "canvas" and word_at(tokens, i - 1) in _DIRECTED:
            return  # "facing left"
        clause, sentence = self.clause, self.sentence
        bare = place.bare and not needs_object(tokens, place.end)
        following, noun = word_at(tokens, place.end), word_at(tokens, place.end + 1)
        pronoun = following in PRONOUNS or (following in POSSESSIVES and noun in BODY_PARTS)
        subjects = self._subjects_of(tokens, i, place, bare=bare, pronoun=pronoun)
        middle = place.reference == "canvas" and set(place.side) == {0, None}
        if middle and sentence.contents.bearer_of(subjects):
            return  # "a table with a vase in the middle": on it
        beside = place.names[:1] in BESIDE and place.reference == "object"
        if not (beside or place.reverse) or pronoun:
            sentence.contents.withdraw(subjects)
        link = self._open_link(tokens, i, place, subjects)
        orphan = not (subjects or sentence.fronted) and bool(clause.verb)
        orphan = orphan and sentence.joint != "while"
        negated = sentence.negated
        sentence.denied = subjects if negated else []
        sentence.before = clause.subject
        if clause.role == "object":
            clause.subject = subjects
        if is_known_verb(tokens[i]):
            clause.verb, sentence.verb_span = tokens[i], sentence.spans[i]
        if i == sentence.phrase_end and (bare or place.reference == "canvas"):
            sentence.side_end = place.end  # "the dog on the left with long ears"
        sentence.preposition, sentence.placed = "", True
        sentence.negated = sentence.absent = False
        if place.reference == "canvas":
            if not negated and i != sentence.backdrop_end:  # "with grass in the background"
                self._take_side(tokens, place, link)
        elif place.reference != "object":
            self._relate_to_owner(tokens, place, link)
        elif needs_object(tokens, place.end):
            sentence.waiting = None if orphan else link
        elif place.bare and i != sentence.ignored_end:
            # "the bird below", "leaving it behind": below what the sentence is about.
            other = sentence.contents.bearer_of(subjects) or other_than(subjects, sentence)
            self.said.relate(link, subjects, other)

    def _subjects_of(
        self, tokens: Sequence[str], i: int, place: Place, *, bare: bool, pronoun: bool
    ) -> list[int]:
        """What a relation that begins at i is about, as far as it is named before.

        bare: whether the words of place have no object. pronoun: whether it is a pronoun.
        """
        clause, sentence = self.clause, self.sentence
        corrected, sentence.corrected = sentence.corrected, []
        if clause.role == "object" and ((clause.trait and pronoun) or tokens[i] in _INTO):
            return clause.last  # "pouring coffee into a mug"
        hangs = i - 1 == sentence.phrase_end and tokens[i - 1].endswith("ing")
        if bare and clause.role == "object" and hangs:
            return clause.latest  # "with a jar and a row of mugs hanging below"
        definite = clause.role == "adjunct" and sentence.determiner == "the"
        if bare and i == sentence.phrase_end and definite:
            return clause.latest  # "on the landscape below"
        if "from" in tokens[max(0, i - 1) : i + 1] and clause.verb and clause.subject:
            return clause.subject  # "a car passing them from the left", "looks from under a bench"
        if sentence.joint == "while":
            return []
        return corrected or self._spoken_of(place, i, bare=bare, pronoun=pronoun)

    def _spoken_of(
        self, place: Place, i: int, *, bare: bool = False, pronoun: bool = False
    ) -> list[int]:
        """For readers that know better than `spoken_of`, whose arguments these are."""
        return spoken_of(place, i, self.sentence, self.said, bare=bare, pronoun=pronoun)

    def _open_link(self, tokens: Sequence[str], i: int, place: Place, subjects: list[int]) -> Link:
        """The relation that words of place at i state, still without its objects."""
        sentence = self.sentence
        names = () if sentence.negated else place.names
        alone = word_at(tokens, i - 1) == "," and word_at(tokens, i - 2) != "and"
        return Link(
            names,
            subjects,
            sentence.span(i, place.end),
            opens=sentence.opens,
            fronted=sentence.opens and not alone and sentence.joint != "and",
            reverse=place.reverse,
            rests=names[:1] in RESTS or not _ON_TOP.isdisjoint(tokens[i : place.end]),
        )

    def _take_side(self, tokens: Sequence[str], place: Place, link: Link) -> None:
        """ "on the left": of the canvas, or of what the clause is about."""
        clause, sentence, subjects = self.clause, self.sentence, link.subjects
        after = place.end + (word_at(tokens, place.end) == ",")
        while is_verb(word_at(tokens, after)) or word_at(tokens, after) == "there":
            after += 1
        if link.opens and noun_phrase(tokens, after) is not None:
            sentence.side = place.side, link.span
        elif subjects and (whose := other_side_of(place, subjects, sentence)):
            self._link(tokens, place.end, link, whose)
        elif subjects:
            sided = [index for each in sentence.sided for index in each.subjects]
            if clause.role == "adjunct" and not set(subjects).isdisjoint(sided):
                # "a boy on the left throws a ball to a girl on the right"
                subjects = clause.latest
            sentence.sided.append(Sided(subjects, place.side, clause.head, link.span))

    def _relate_to_owner(self, tokens: Sequence[str], place: Place, link: Link) -> None:
        """ "to its left": whose left that is."""
        pronoun, sentence, known = place.reference, self.sentence, self.known
        found = after_list(pronoun, link, sentence, known)
        if found:
            link.subjects = self.clause.latest
        else:
            found = resolve(pronoun, link.subjects, sentence, known)
        if not found and link.opens and inverts(tokens, place.end, fronted=link.fronted):
            found = resolve(pronoun, [], sentence, known)  # "a dog, and to its left a cat"
        self._link(tokens, place.end, link, found)

    def _link(self, tokens: Sequence[str], end: int, link: Link, references: list[int]) -> None:
        """Gives a relation its objects, whose words end at `end`."""
        link.references = references
        if link.opens and (not link.subjects or inverts(tokens, end, fronted=link.fronted)):
            link.subjects = []
            self.sentence.inverted = link
            return
        self.said.relate(link, link.subjects, references)
        self.sentence.complete = link
        self.sentence.stated += 1
        if link.names[:1] in BESIDE and self._are_backdrops(references, link.names):
            self.sentence.scenery = link

    def _are_backdrops(self, ids: Sequence[int], names: tuple[str, ...]) -> bool:
        """ "next to trees with a giraffe", "next to a window with a book": not with the trees."""
        here = [self.mentions[index] for index in ids]
        if all(mention.kind in PLACES for mention in here):
            return True
        backdrops = all(each.kind in BACKDROPS or each.count == UNCOUNTED for each in here)
        return backdrops and names == ("next to",)

    # Pronouns

    def _take_pronoun(self, tokens: Sequence[str], i: int) -> int | None:
        if tokens[i] not in PRONOUNS:
            return None
        if tokens[i] == "her" and not is_boundary(tokens, i + 1):
            inverted = is_known_verb(tokens[i + 1]) and inverts(tokens, i + 1, fronted=False)
            if not inverted:
                return None  # "her hat", but "next to her stands a dog"
        self._refer(tokens, i)
        return i + 1

    def _refer(self, tokens: Sequence[str], i: int) -> None:
        """Reads a pronoun: as the object of words of place or of a verb, or as a subject."""
        clause, sentence = self.clause, self.sentence
        if sentence.waiting is not None:
            link, sentence.waiting = sentence.waiting, None
            self._relate_to_pronoun(tokens, i, link)
            return
        if tokens[i - 1 : i] == [clause.verb] and clause.verb not in AUXILIARIES and clause.subject:
            found = resolve(tokens[i], clause.subject, sentence, self.known)
            if found:
                self._take_object(found)  # "riding it", "leaving it behind"
            return
        found = resolve(tokens[i], [], sentence, self.known)
        if found and sentence.opens:
            sentence.begin_clause(found)
            sentence.joint = ""

    def _relate_to_pronoun(self, tokens: Sequence[str], i: int, link: Link) -> None:
        clause, sentence, pronoun = self.clause, self.sentence, tokens[i]
        if sentence.on_scenery and pronoun == "it":
            sentence.on_scenery = False
            return
        inverted = link.opens and inverts(tokens, i + 1, fronted=link.fronted)
        besides = [] if inverted else link.subjects
        if link.names == ("between",) and set(clause.latest) < set(besides):
            link.subjects = besides = clause.latest  # "two pillows and a cat between them"
        listed = after_list(pronoun, link, sentence, self.known)
        if listed:
            found, link.subjects = listed, clause.latest
        elif pronoun == "both" or link.names == ("between",):
            found = latest_two(besides, sentence, self.known)
        elif link.rests and clause.joined and pronoun == "it" and len(clause.bearer) == 1:
            found = clause.bearer  # "a cup next to a box with a cat on it"
        else:
            found = resolve(pronoun, besides, sentence, self.known)
        self._link(tokens, i + 1, link, found)

    # Noun phrases

    def _take_noun_phrase(self, tokens: Sequence[str], phrase: NounPhrase) -> int:
        sentence, end = self.sentence, phrase.end
        if self._describes(phrase):
            return end
        if self._is_described_member(tokens, phrase):
            # "two cats, a black one and a white one"
            member = self.known.next_members(1)
            self.known.describe(member, phrase.words[:-1])
            self._take_members(tokens, end, member)
            return end
        bare, looks = phrase.is_bare, word_at(tokens, phrase.start - 1) in LOOKS
        if bare and looks and word_at(tokens, phrase.start - 2) != "there":
            return end  # "is asleep"
        if not phrase.determiner and sentence.joint == "and" and sentence.determiner == "the":
            phrase.determiner = "the"  # "the horse and cow"
        sentence.determiner = phrase.determiner
        self._borrow_noun(tokens, phrase)
        phrase.part = part_after(tokens, phrase)
        if word_at(tokens, end) == "'s":
            owned = self._take_owner(tokens, phrase)
            if owned is None:
                return end
            end = owned
        aside = self._end_of_aside(tokens, phrase)
        if aside or self._take_row(phrase) or self._take_body_part(phrase):
            sentence.ignored_end = aside or end
            return sentence.ignored_end
        self._take_clothes(tokens, phrase)
        if self._take_part(tokens, phrase):
            return end
        if not is_object(tokens, phrase, sentence):
            return self._pass_over(tokens, end, phrase)
        return self._take_thing(tokens, end, phrase, bare=bare)

    def _describes(self, phrase: NounPhrase) -> bool:
        """Whether it is no noun phrase but adjectives, which describe what is there."""
        clause, sentence, known = self.clause, self.sentence, self.known
        if phrase.determiner or not all(map(is_adjective, phrase.words)):
            return False
        if phrase.count and sentence.joint == "and" and known.are_described():
            # "two red balloons and one green"
            phrase.words += self.mentions[known.members[0]].noun.split(" ")
            find_noun(phrase)
            return False
        if phrase.count and len(known.members) >= phrase.count:
            # "three balloons, two red and one green"
            known.describe(known.next_members(phrase.count), phrase.words)
            return True
        is_said = clause.verb in COPULAS and sentence.waiting is None and clause.role == "subject"
        if is_said and not sentence.joint:
            known.describe(clause.subject, phrase.words)
            return True
        if phrase.words[-1] == "orange":
            return False
        sentence.waiting = None
        return True

    def _is_described_member(self, tokens: Sequence[str], phrase: NounPhrase) -> bool:
        one = phrase.words[-1] == "one" and phrase.determiner in ("a", "an")
        return one and self._is_member(tokens, phrase.start)

    def _borrow_noun(self, tokens: Sequence[str], phrase: NounPhrase) -> None:
        """ "a red and a blue circle", "a red circle and a blue one"."""
        if phrase.words[-1] in ("one", "ones") and self.mentions:
            phrase.words[-1:] = self.mentions[-1].noun.split(" ")
            find_noun(phrase)
            return
        if not phrase.determiner or phrase.words[-1] not in PURE_COLOURS:
            return
        if word_at(tokens, phrase.end) in ("and", ","):
            other = noun_phrase(tokens, phrase.end + 1)
            if other is not None and other.determiner:
                phrase.words += other.noun.split(" ")
                find_noun(phrase)

    def _take_owner(self, tokens: Sequence[str], phrase: NounPhrase) -> int | None:
        """ "the cat" of "the cat's left" and "the cat's back"; None of "the cat's bowl"."""
        sentence, end = self.sentence, phrase.end
        owned, link = word_at(tokens, end + 1), sentence.waiting
        side = SIDES.get(owned)
        if side is not None and (link is not None or sentence.preposition in ("to", "on", "at")):
            # "to the person's left", "on the bed's right side"
            if link is None:
                subjects, opens = self._spoken_of(Place(end, ()), phrase.start), sentence.opens
            else:
                subjects, opens = link.subjects, link.opens
            span = sentence.span(end + 1, end + 2)
            sentence.waiting = Link(side_names(side), subjects, span, opens=opens)
            return end + 2 + (word_at(tokens, end + 2) == "side")
        if owned in BODY_PARTS:
            return end + 2  # "on the cat's back"
        if phrase.is_alive or phrase.determiner not in ("a", "an"):  # "a ship's wheel" has no ship
            self._mention(phrase)  # "the cat's bowl": the sentence is about the bowl
        return None

    def _end_of_aside(self, tokens: Sequence[str], phrase: NounPhrase) -> int:
        """Where "[a ship,] its sails billowing", "[a drone,] its propellers a blur" end; or 0."""
        sentence = self.sentence
        if phrase.determiner not in ("its", "their") or sentence.waiting is not None:
            return 0
        begins = sentence.joint == "," or phrase.start == 0
        if phrase.is_alive or sentence.preposition or not begins:
            return 0
        if phrase.start == 0 and word_at(tokens, phrase.end + 1) != ",":
            return 0  # "its sails billowing, a ship ..."
        following = word_at(tokens, phrase.end)
        if looks_like_participle(following):
            return phrase.end + 1
        other = noun_phrase(tokens, phrase.end) if following in ("a", "an") else None
        return other.end if other is not None else 0

    def _take_row(self, phrase: NounPhrase) -> bool:
        """ "three dogs in a row" """
        clause, link = self.clause, self.sentence.waiting
        name = _ROWS.get(phrase.words[-1])
        if name is None or link is None or link.names != ("inside",):
            return False
        group = link.subjects if link.subjects[1:] else clause.last
        self.said.relate_row(group, name, link.span)
        self.sentence.settle()
        clause.latest = group
        return True

    def _take_body_part(self, phrase: NounPhrase) -> bool:
        """ "has its head on a pillow" speaks of the cat; "in his hand" says who holds it."""
        clause, sentence = self.clause, self.sentence
        link, last = sentence.waiting, phrase.words[-1]
        owned = phrase.determiner in POSSESSIVES - {"'s"} and last in BODY_PARTS
        if phrase.determiner == "whose" and link is not None and clause.latest:
            link.references, link.subjects = clause.latest, []
            self._await_subject(link)  # "a hut, on whose roof a stork sits"
            return True
        one = phrase.count == 1 or phrase.other or phrase.determiner == "each"
        one |= phrase.is_bare and len(phrase.words) == 1
        if one and last in HELD_IN and link is not None and link.names == ("inside",):
            # "in one hand", "in hand"
            self._hold(link, resolve("their", link.subjects, sentence, self.known))
            return True
        if not owned:
            return False
        if link is None and phrase.determiner == "whose":
            sentence.relative = True  # "a dog whose ears are long is ..."
            return True
        if link is None:
            spoken_of = clause.verb and not (sentence.joint or sentence.preposition)
            if not (spoken_of and clause.subject) or clause.role != "subject":
                return False
            clause.latest = clause.last = clause.subject
            clause.role = "object"
            return True
        owner = resolve(phrase.determiner, link.subjects, sentence, self.known, alive=True)
        # "in their left hand": which side that is depends on which way they face.
        held = link.names == ("inside",) and last in HELD_IN
        if held and not self.known.are_alive(owner) and self.known.are_alive(sentence.main):
            owner = sentence.main  # "a robot in a greenhouse, a can in its hand"
        if held or (link.names == ("above",) and singular(last) in CARRIED_OVER):
            self._hold(link, owner)
        elif link.names[:1] in [("on",), ("below",), ("above",)]:
            self._end_adjunct(link, owner)
        else:
            return False
        return True

    def _hold(self, link: Link, owner: list[int]) -> None:
        """ "in her hand", "over his shoulder" """
        clause = self.clause
        link.names = ("held by",)
        self.sentence.holders = owner
        self._end_adjunct(link, owner)
        if clause.role == "adjunct" and owner == clause.head:
            clause.subject = clause.latest = owner

    def _end_adjunct(self, link: Link, references: list[int]) -> None:
        self.said.relate(link, link.subjects, references)
        self.sentence.settle()
        if self.clause.verb:
            self.clause.role = "adjunct"

    # Clothes and parts

    def _take_clothes(self, tokens: Sequence[str], phrase: NounPhrase) -> None:
        """ "a man with a beard and a hat", "cute cat, tiny hat": clothes as if after "with"."""
        clause, sentence, known = self.clause, self.sentence, self.known
        goes_on, listed = adds_part(phrase, sentence), is_tag(phrase, sentence)
        of_latest = goes_on or (listed and known.are_alive(clause.latest))
        wearer = clause.latest if of_latest else clause.head
        place = find(tokens, phrase.end)
        if goes_on and place is not None and is_by_pronoun(tokens, place):
            # "a man with a beard and a parrot on his shoulder"
            sentence.preposition, clause.bearer, sentence.joint = "with", clause.latest, ""
        begins = goes_on or (listed and phrase.attributes)
        if begins and is_one_of(phrase.words[-1], WORN) and known.are_alive(wearer):
            sentence.preposition, clause.bearer, sentence.joint = "with", wearer, ""

    def _take_part(self, tokens: Sequence[str], phrase: NounPhrase) -> bool:
        """ "a woman with red hair", "the house has a blue door", "1girl, long hair".

        "Its tail" and "the beard" of a man with a beard are no objects either.
        """
        clause, sentence, known = self.clause, self.sentence, self.known
        last, words = phrase.words[-1], " ".join(phrase.words)
        of_verb = clause.subject and tokens[phrase.start - 1 : phrase.start] == [clause.verb]
        of_verb = of_verb and clause.verb not in COPULAS | HAS and not phrase.determiner
        if of_verb and words in BODY_PARTS:
            return True  # "holding hands"
        if not is_one_of(last, OWN_PARTS) or phrase.of or phrase.portion or sentence.waiting:
            return False
        of_body = is_one_of(last, OF_BODIES)
        if not of_body and self._is_placed(tokens, phrase):
            return False  # "a house with a door leading to a garden"
        owned_by = owners(phrase, sentence, known, self.said, of_body=of_body)
        if of_body and not (owned_by or phrase.determiner or clause.head):
            owned_by = known.only_person()  # "a woman BREAK red hair"
        if known.are_alive(owned_by) and not of_body:
            return False  # "a girl with a leaf in her hand"
        if known.are_people(owned_by) and last in ("horn", "trunk"):
            return False
        if phrase.determiner in DEFINITE | POSSESSIVES or sentence.negated or sentence.absent:
            named = bool(owned_by) and all(self.mentions[index].has(words) for index in owned_by)
            own = sentence.preposition == "with" and phrase.determiner in POSSESSIVES
            if not (named or own):
                return False
        elif not owned_by:
            return False
        else:
            known.complete(owned_by, " ".join(tokens[phrase.start : phrase.end]), words)
        if owned_by:
            clause.latest = owned_by
            if owned_by == clause.head:
                clause.speak_of(owned_by)
        sentence.phrase_end = sentence.part_end = phrase.end
        sentence.preposition = sentence.joint = ""
        return True

    def _is_placed(self, tokens: Sequence[str], phrase: NounPhrase) -> bool:
        """Whether a part does something, or has a place of its own."""
        end = phrase.end
        if end < len(tokens) and self._is_verb(tokens[end], end):
            return not phrase.attributes
        place = find(tokens, end)
        if place is None or is_by_pronoun(tokens, place):
            return place is not None
        # "with a door on the left", but "a house with a red roof on the left"
        backdrop = place.reference == "canvas" and place.side[2] is not None
        return backdrop or (place.reference == "canvas" and not phrase.attributes)

    # One of several

    def _take_member(self, tokens: Sequence[str], i: int) -> int | None:
        """ "two dogs, one on the left and the other on the right" """
        clause, known = self.clause, self.known
        end, which = self._which(tokens, i)
        if which:
            self._take_members(tokens, end, which)
            return end
        end = i + (tokens[i] in ("the", "one", "another"))
        end += word_at(tokens, end) == "other"
        alone = end > i and tokens[end - 1] in ("one", "another", "other")
        end += 2 * (alone and tokens[end : end + 2] == ["of", "them"])
        if not alone or not ends_there(tokens, end):
            return None
        link, holders = self.sentence.waiting, self.sentence.holders
        if holders and link is not None and link.names == ("inside",):
            self._hold(link, holders)  # "a cup in one hand and a fork in the other"
            return end
        if known.members:
            self._take_members(tokens, end, known.next_members(1))
            return end
        if tokens[i] == "another" and clause.head:
            noun = self.mentions[clause.head[0]].noun.split(" ")
            phrase = NounPhrase(i, end, "a", None, noun)
            find_noun(phrase)
            return self._take_noun_phrase(tokens, phrase)
        return None

    def _which(self, tokens: Sequence[str], i: int) -> tuple[int, list[int]]:
        """Where "the latter", "the second dog" or "two of them" ends, and what it is."""
        nothing: tuple[int, list[int]] = i, []
        if is_number(tokens[i]):
            end, number = i + 1, number_of(tokens[i])
            end += 2 * (tokens[end : end + 2] == ["of", "them"])
            if number > 1 and self._is_member(tokens, i, number) and ends_there(tokens, end):
                return end, self.known.next_members(number)
            return nothing
        word = word_at(tokens, i + 1) if tokens[i] == "the" else ""
        if word not in _ORDINALS:
            return nothing
        end = i + 2 + (word_at(tokens, i + 2) == "one")
        phrase = None if ends_there(tokens, end) else noun_phrase(tokens, end)
        group: Sequence[int]
        if phrase is not None:
            end, kind = phrase.end, singular_noun(phrase.noun)
            group = [index for index, mention in enumerate(self.mentions) if mention.kind == kind]
        else:
            every = range(len(self.mentions))
            groups = (self.known.several, self.sentence.main, self.sentence.about, every)
            group = next((each for each in groups if each[1:]), [])
            group = group[-2:] if word in ("former", "latter") else group
        if not group[1:] or _ORDINALS[word] >= len(group):
            return nothing
        return end, [group[_ORDINALS[word]]]

    def _is_member(self, tokens: Sequence[str], i: int, number: int = 1) -> bool:
        """Whether what begins at i can be some of the plural before: it comes right after it."""
        left = self.known.members
        begun = bool(left) and self.mentions[left[0]].index > 0
        after = word_at(tokens, i - 1) in (",", ":") or (begun and self.sentence.joint == "and")
        return len(left) >= number and i > 0 and after

    def _take_members(self, tokens: Sequence[str], end: int, members: list[int]) -> None:
        sentence = self.sentence
        self.clause.latest = members
        if sentence.joint == "," or sentence.waiting is None:
            sentence.begin_clause(members)
        else:
            self._place_in_clause(tokens, end, members, bare=False)
        sentence.settle()

    # What a noun phrase is in its clause

    def _pass_over(self, tokens: Sequence[str], end: int, phrase: NounPhrase) -> int:
        """Reads a noun phrase that is no object."""
        sentence, link = self.sentence, self.sentence.waiting
        opens = sentence.opens
        sentence.backdrop_end = end if sentence.preposition == "with" else -1
        sentence.ignored_end = end
        if phrase.determiner == "no" or sentence.preposition in NEGATIONS:
            sentence.absent = True
        elif link is None and tokens[phrase.start - 1] == self.clause.verb:
            self.clause.verb = "is"  # "crossing a desert with pyramids"
        elif link is None and not (sentence.preposition or sentence.absent) and opens:
            sentence.begin_clause([])  # "while their right hand is empty"
        if link is not None:
            self.clause.subject = sentence.before  # "riding a bus at night"
            if link.names[:1] in BESIDE and phrase.is_scenery:
                sentence.scenery = link
        sentence.settle()
        sentence.negated = False
        if self.clause.last and self.clause.verb:
            self.clause.role = "adjunct"
        end += word_at(tokens, end) == "up"  # "a close up of"
        shows = phrase.words[-1] in CANVASES or phrase.is_scenery
        if not shows or word_at(tokens, end) not in SHOWING:
            return end
        sentence.room = tokens[end] == "with"
        return end + 1

    def _take_thing(
        self, tokens: Sequence[str], end: int, phrase: NounPhrase, *, bare: bool
    ) -> int:
        """Reads a noun phrase that is one or more objects."""
        sentence, start = self.sentence, phrase.start
        if sentence.waiting is None:
            sentence.denied = []
        ids = self.clause.latest = self._mention(phrase)
        sentence.phrase_end, sentence.preceding = end, word_at(tokens, start - 1)
        if phrase.group in _ROWS:
            self.said.relate_row(ids, _ROWS[phrase.group], sentence.span(start, end))
        if sentence.side is not None:
            (side, span), sentence.side = sentence.side, None
            sentence.sided.append(Sided(ids, side, [], span))
        verb = phrase.verb and end == phrase.end
        self._place_in_clause(tokens, end, ids, bare=bare, verb=verb)
        sentence.settle()
        sentence.negated = sentence.placed = False
        if not verb:
            return end
        self._take_verb(tokens, end)
        return end + 1

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

    def _place_in_clause(
        self, tokens: Sequence[str], end: int, ids: list[int], *, bare: bool, verb: bool = False
    ) -> None:
        """Decides what a new noun phrase is: subject, object, adjunct, or one more of these.

        bare: whether it has no article and no number. verb: whether the word after it is a verb.
        """
        clause, sentence = self.clause, self.sentence
        word = word_at(tokens, end)
        place = find(tokens, end)
        by_pronoun = place is not None and is_by_pronoun(tokens, place)
        after = _Following(word, place, verb or is_verb(word), by_pronoun)
        self._relate_to_scenery(ids)
        # A bare noun in a text that has articles: "a vase with flowers next to a clock".
        clause.trait = bare and bool(clause.head) and not self.mentions[clause.head[0]].bare
        if self._complete_link(tokens, end, ids, after):
            return
        if sentence.joint in ("and", ",") and sentence.holders and word == "in":
            # "a fork in one hand and a knife in the other"
            clause.last, clause.role = ids, "object"
        elif sentence.preposition == "with":
            self._come_with(ids)
        elif self._begins_anew(bare, after) or self._acts_itself(ids, bare, after):
            sentence.begin_clause(ids)
        elif not self._join_latest(ids, after):
            self._take_role(ids)

    def _relate_to_scenery(self, ids: list[int]) -> None:
        """ "a train next to a road with a truck": next to the truck."""
        sentence = self.sentence
        link, sentence.scenery = sentence.scenery, None
        if link is not None and not (sentence.waiting or sentence.joint or sentence.negated):
            self.said.relate(link, link.subjects, ids)
            sentence.on_scenery = not link.references

    def _complete_link(
        self, tokens: Sequence[str], end: int, ids: list[int], after: _Following
    ) -> bool:
        """Gives words of place the object or the subject that they wait for, if they do."""
        clause, sentence = self.clause, self.sentence
        link, inverted = sentence.waiting, sentence.inverted
        if link is not None:
            if link.names == ("inside",) and not link.reverse and self.known.are_clothes(ids):
                link.names, link.reverse = ("worn by",), True  # "a girl in a blue dress"
            if link.names == ("far from",) and self._crosses(link, ids):
                link.names = ("on",)  # "a horse going across a river"
            self._link(tokens, end, link, ids)
            clause.last, clause.role = ids, "object" if link.lists else "adjunct"
            return True
        if inverted is None:
            return False
        if not inverted.subjects and sentence.preceding == "and":
            inverted.references = inverted.references + ids  # "between a and b is ..."
            return True
        if inverted.subjects and not self._continues(after):
            return False
        # "above the dog is a cat [and a bird]"
        self.said.relate(inverted, ids, inverted.references)
        sentence.complete = inverted
        if not inverted.subjects:
            sentence.begin_clause(ids)
            self.clause.finite, self.clause.verb = True, "is"
        inverted.subjects = ids
        return True

    def _crosses(self, link: Link, ids: Sequence[int]) -> bool:
        across = link.span[1] - link.span[0] == len("across")
        return across and all(self.mentions[index].kind in CROSSED for index in ids)

    def _continues(self, after: _Following) -> bool:
        """Whether words of place are said of it too, or it is one more of their objects.

        "Above the fork and the knife", "next to a hat, book and blanket"; but "next to a queen,
        throne behind the queen" begins anew.
        """
        joint, trait = self.sentence.joint, self.clause.trait
        if after.is_verb:
            return False
        if joint == "and":
            return trait or after.place is None
        return joint == "," and trait and after.place is None

    def _come_with(self, ids: list[int]) -> None:
        """ "a table with a lamp" """
        clause, sentence = self.clause, self.sentence
        link = sentence.complete
        if link is not None and link.is_side and sentence.stated == 1:
            sentence.aside = link.references
        clause.last, clause.role, clause.joined = ids, "object", True
        clause.bearer = self.said.wearers(clause.bearer)
        sentence.contents.take(clause.bearer, ids, sentence.verb_span)

    def _begins_anew(self, bare: bool, after: _Following) -> bool:
        """ "woman holding umbrella, car on left" """
        head = self.clause.head
        listed = bare and self.sentence.preceding == "," and bool(head)
        return listed and self.mentions[head[0]].bare and after.place is not None

    def _acts_itself(self, ids: list[int], bare: bool, after: _Following) -> bool:
        """ "a man holding a cup and a dog sitting next to him"."""
        clause, sentence, known = self.clause, self.sentence, self.known
        if clause.role != "object" or sentence.joint not in ("and", ","):
            return False
        alive, place, link = known.are_alive(ids), after.place, sentence.complete
        if place is not None and place.reference == "canvas" and clause.joined:
            sided = {index for each in sentence.sided for index in each.subjects}
            if not sided.isdisjoint(clause.head):
                return True  # "a dog on the left with a hat and a cat on the right"
        acts = alive and after.is_verb
        if sentence.joint == "," and not (bare or clause.joined):
            # "a girl holding an umbrella, a dog with a ball", "..., a tree to her left"
            acts |= alive and after.word not in ("", *CONJUNCTIONS)
            acts |= (place is not None and place.reference != "object") or after.by_pronoun
        if clause.joined:
            return acts and not known.are_alive(clause.last)
        return acts and (link is None or link.references == clause.last)

    def _join_latest(self, ids: list[int], after: _Following) -> bool:
        """Adds it to the objects of a verb or of words of place, if it is one more of these."""
        clause, sentence, known = self.clause, self.sentence, self.known
        link = sentence.complete
        borne = link is not None and link.names in BORNE
        worn = link is not None and link.names == ("worn by",)
        kinds = {self.mentions[index].kind for index in ids}
        if (borne and kinds <= MEN | WOMEN) or (worn and known.are_alive(ids)):
            return False  # "a man wearing a hat and a woman", "a cat wearing a hat and a dog"
        listed = sentence.joint in ("and", ",")
        # "a man wearing a hat and a scarf stands"
        borne_too = borne and sentence.joint == "and" and after.is_finite and not clause.finite
        may_act = after.is_finite and not borne_too
        if clause.role == "object" and listed and clause.last and not may_act:
            if link is not None and link.lists:
                self.said.relate(link, link.subjects, ids)
            clause.last = ids if sentence.placed else clause.last + ids
            sentence.contents.take_too(ids, with_article=clause.joined)
            return True
        clothes = listed and worn and known.are_clothes(ids)
        clothes = clothes and sentence.determiner != "the"  # "wearing a hat, the hat above ..."
        too = borne_too or clothes or self._continues(after)
        if link is None or clause.role != "adjunct" or not too:
            return False
        self.said.relate(link, link.subjects, ids)
        link.references = link.references + ids
        clause.last = clause.last + ids
        return True

    def _take_role(self, ids: list[int]) -> None:
        """Makes it a subject, an object or an adjunct, by what stands before it."""
        clause, sentence = self.clause, self.sentence
        one_more = sentence.joint in ("and", ",") and clause.role == "subject"
        if one_more and set(ids) < set(clause.last):
            sentence.begin_clause(ids)  # "a cat and a dog, the cat on a mat"
        elif one_more and not clause.verb and clause.last:
            clause.last = clause.last + ids
            if sentence.main == clause.subject:
                sentence.main = clause.last
            clause.subject = clause.head = clause.last
        elif sentence.preposition:
            clause.last, clause.role = ids, "adjunct"
        elif clause.verb and clause.subject and not sentence.joint:
            self._take_object(ids)
        else:
            sentence.begin_clause(ids)

    def _take_object(self, ids: list[int]) -> None:
        """ "a man holding a cup" """
        clause, sentence = self.clause, self.sentence
        verb, span, subjects = clause.verb, sentence.verb_span, clause.subject
        clause.last, clause.role = ids, "object"
        if holds(verb) and sentence.contents.take(subjects, ids, span, held=verb not in HAS):
            return
        stated = stated_by(verb)
        if stated is not None:
            name, reverse = stated
            link = Link((name,), subjects, span, ids, reverse=reverse)
            self.said.relate(link, subjects, ids)
            sentence.complete = link
            if name == "worn by":
                clause.role = "adjunct"  # "a dog wearing a shirt on top of a bed"
