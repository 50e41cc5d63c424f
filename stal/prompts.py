"""From a sentence to the objects that it names and the relations that it states.

    parse("a red circle to the left of a blue square")

gives the objects "a red circle" and "a blue square" and the relation (0, "left of", 1): the global
description D and the local descriptions L_1..L_K of Wu et al. (arXiv 2304.03869), and what a
layout has to satisfy.

The grammar is a single pass over the words with a few closed word lists. What the lists do not
know is taken for a noun or an attribute by its position, so odd sentences still give their noun
phrases. To teach it a wording, extend `_PREPOSITIONS` or `_SIDES`; a noun of several words,
`_COMPOUNDS`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

PREDICATES = ("left of", "right of", "above", "below", "next to")


@dataclass(frozen=True)
class Object:
    """One thing to draw.

    Attributes:
        phrase: the local description, e.g. "a shiny red circle".
        noun: what it is, e.g. "circle" or "teddy bear"; plural where the text speaks of an
            uncounted plural ("red shoes").
        attributes: the words that describe it, in order, e.g. ("shiny", "red").
    """

    phrase: str
    noun: str
    attributes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Relation:
    """`objects[subject]` is `predicate` `objects[object]`; predicate is one of `PREDICATES`."""

    subject: int
    predicate: str
    object: int


@dataclass(frozen=True)
class Description:
    """A prompt: its text (D), its objects in order of mention, its relations in order of statement.

    Relations are kept as stated, contradictory ones included.
    """

    text: str
    objects: tuple[Object, ...] = ()
    relations: tuple[Relation, ...] = ()


def parse(text: str) -> Description:
    """Reads a prompt of one or more English sentences.

    Counted plurals become several objects ("two red circles" is twice "a red circle"); a second
    definite mention ("... The circle is ...") and a pronoun refer to an object that is already
    there; backgrounds, scenery ("in a field") and the picture itself ("a photo of") are no objects.
    Any text that is not blank gives a description, at worst one without objects.

    Raises:
        ValueError: the text is empty or blank.
    """
    if not text.strip():
        raise ValueError(f"text must not be blank, got {text!r}")
    reader = _Reader()
    sentence: list[str] = []
    for token in [*_TOKEN.findall(text.lower().replace("’", "'")), "."]:
        if token in _SENTENCE_ENDS:
            reader.read(sentence)
            sentence = []
        elif token.endswith(("'s", "s'")) and token.rstrip("s").rstrip("'") not in _CONTRACTED:
            sentence += [token[:-2] if token.endswith("'s") else token[:-1], "'s"]
        else:
            sentence.append(token.removesuffix("'s").rstrip("'"))
    objects = tuple(Object(m.phrase, m.noun, tuple(m.attributes)) for m in reader.mentions)
    return Description(text, objects, tuple(reader.relations))


def _list(text: str, separator: str | None = None) -> list[str]:
    return text.split(separator)


def _words(text: str) -> frozenset[str]:
    return frozenset(_list(text))


_TOKEN = re.compile(r"\w+(?:[-']\w+)*'?|[^\w\s]|\n")
_SENTENCE_ENDS = frozenset(".!?;\n")
_CONTRACTED = _words("it he she that there what here who where let")

# Words of place that take an object; the longest match wins.
_PREPOSITIONS = {
    tuple(words.split()): predicate
    for predicate, table in {
        "above": "above | over | atop | on | onto | upon | on top of | on the top of"
        " | at the top of | higher than | up above",
        "below": "below | under | underneath | beneath | lower than | on the bottom of"
        " | at the bottom of | at the feet of | at the foot of",
        "next to": "next to | beside | besides | near | near to | nearby to | close to | alongside"
        " | adjacent to | side by side with | on side of | on the side of | at the side of"
        " | to the side of | by the side of | on either side of | on both sides of | between"
        " | in between | near by",
    }.items()
    for words in table.split(" | ")
}
_LONGEST_PREPOSITION = max(map(len, _PREPOSITIONS))

# Sides of the canvas or of another object: (x, y), each -1, 0, 1 or None where it says nothing.
_Side = tuple[int | None, int | None]
_SIDES: dict[str, _Side] = {
    "left": (-1, None),
    "leftmost": (-1, None),
    "left-hand": (-1, None),
    "right": (1, None),
    "rightmost": (1, None),
    "right-hand": (1, None),
    "top": (None, -1),
    "upper": (None, -1),
    "bottom": (None, 1),
    "lower": (None, 1),
    "middle": (0, 0),
    "center": (0, 0),
    "centre": (0, 0),
}
_SIDE_PREDICATES = {(0, -1): "left of", (0, 1): "right of", (1, -1): "above", (1, 1): "below"}

_NUMBERS = {
    word: number
    for number, word in enumerate(
        _list(
            "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
            " fifteen sixteen seventeen eighteen nineteen twenty"
        ),
        start=1,
    )
}
_MOST_COUNTED = 20
_POSSESSIVES = _words("my your his her its their our whose 's")
_QUANTIFIERS = _words("some several many few various multiple numerous")
_DEFINITE = _words("the this these those")
_DETERMINERS = (
    _words("a an no another each every both all other second")
    | _POSSESSIVES
    | _QUANTIFIERS
    | _DEFINITE
)
_PRONOUNS = _words("it they them he him she her")
_PERSONAL = _words("he him she her his")
_PLURAL_PRONOUNS = _words("they them their")
_PEOPLE = _words(
    "person man woman boy girl child kid baby lady guy people men women children skier surfer"
    " player rider"
)
# Words of place that need no object: "the bird below".
_ADVERBIAL = _words("above below underneath beneath")
_COPULAS = _words("is are was were be being been")
_AUXILIARIES = _COPULAS | _words(
    "am has have had do does did can could will would may might must shall should"
)
_CONJUNCTIONS = _words(", and & or plus")
_CLAUSE_BREAKS = _words("while whereas but as because so when if although though")
_RELATIVES = _words("which that who whom")
# The noun phrase after these is what the next words of place speak about ("with a dog below it").
_WITH = _words("with by having featuring including containing plus")
_FUNCTION_WORDS = (
    _DETERMINERS
    | _PRONOUNS
    | _AUXILIARIES
    | _CONJUNCTIONS
    | _CLAUSE_BREAKS
    | _RELATIVES
    | _WITH
    | _words(
        "of to in on at from for without into inside within onto upon over under underneath"
        " beneath above below atop beside besides near nearby alongside between behind around"
        " about across through along against toward towards off up down out like than during past"
        " until since after before via per we us you i me what where there here also too not just"
        " only even still together apart away then nor yet very quite really ahead"
        " itself themselves himself herself etc front outside full visible present"
        " ready"
    )
)

_COLOURS = _words(
    "red green blue yellow orange purple pink cyan magenta white black gray grey brown beige"
    " gold golden silver turquoise violet maroon navy teal crimson scarlet tan"
)
_PURE_COLOURS = _COLOURS - {"orange"}  # an orange is a thing as well
_ADJECTIVES = _COLOURS | _words(
    "big small large little tiny huge giant tall short long wide narrow thick thin round"
    " circular rectangular triangular oval new old young wooden metal metallic plastic golden"
    " rubber leather fluffy soft hard rough smooth shiny bright dark pale colorful colourful"
    " striped spotted plain empty blank solid clean dirty beautiful cute open closed sleek"
    " single same different identical majestic tasty delicious fresh hot cold warm heavy"
    " curious"
)
# Words in -ing and -ed that are nouns.
_NOT_VERBS = _words(
    "building painting ceiling wedding clothing evening morning drawing railing bedding"
    " earring pudding lightning dumpling duckling bread hundred thread"
)
_VERB_STEMS = _words(
    "sit stand lie lay rest hang float hover fly run walk perch place locate situate position"
    " park hold ride wear carry eat drive sleep graze lean look watch swim jump play stack"
    " mount move point face tower soar surround appear contain show touch cover drift balance"
    " gallop trot scurry suspend tuck nestle install prop pull push chase grow travel wait"
    " greet observe stay remain seat hide climb throw catch kick hit feed drink read use cast"
    " arrange sandwich flank top dangle glide pass leave rise roll slide spin dance sail"
    " cross"
)
_IRREGULAR_VERBS = _words(
    "sat stood lay lain laid slung hung flew flown ran held rode ridden wore worn ate eaten"
    " drove driven slept threw thrown caught hid hidden made seen saw seems seem lit"
)

# Nouns of the frame, of time and of thought: nothing that gets a place of its own.
_NOT_OBJECTS = _words(
    "background backdrop foreground scene scenery canvas left right top bottom upper lower"
    " middle center centre corner side front back edge end half distance air"
    " mid-air midair way style order position direction contrast"
    " nothing something anything everything else other others rest place area vicinity"
    " atmosphere touch turn shade day night time color colour shape size composition"
    " setting focal"
)
_PICTURES = _words(
    "photo photograph picture image painting drawing illustration render rendering sketch"
    " portrait closeup close-up view shot snapshot"
)
_SHOWING = ("of", "with", "showing", "containing", "featuring")
_CANVASES = _PICTURES | _words("scene canvas frame")
_THE_CANVAS = _words("photo photograph picture image canvas frame")  # "the left of the picture"
# Surroundings; not objects where something is in, on or along them.
_SCENERY = _words(
    "sky ground floor room street road field grass park beach water ocean sea forest meadow"
    " sidewalk kitchen bathroom bedroom lot snow slope hill track tracks sand"
    " yard desert city wall sun row line column light display space"
)
_SCENERY_COMPOUNDS = ("living room", "parking lot")
_BODY_PARTS = _words(
    "hand hands arm arms foot feet leg legs shoulder shoulders head back face eyes mouth side"
    " lap wings wing tail wheels wheel fur body"
)
_PORTIONS = _words(
    "slice piece stalk head bunch group herd flock pile stack bouquet pair set couple row lot"
    " bit cluster variety number kind type sort"
)
_COMPOUNDS = frozenset(
    tuple(words.split())
    for words in _list(
        "traffic light|fire hydrant|stop sign|street sign|parking meter|parking lot|sports ball"
        "|baseball bat|baseball glove|tennis racket|tennis ball|wine glass|hot dog|potted plant"
        "|dining table|coffee table|cell phone|mobile phone|teddy bear|hair drier|hair dryer"
        "|fire truck|fire engine|polar bear|mouse pad|ice cream|ice cream cone|top hat|cowboy hat"
        "|soccer ball|bowling ball|tooth brush|skate board|washing machine|street lamp|street light"
        "|christmas tree|palm tree|sewing machine|vending machine|shopping cart|cutting board"
        "|wrist watch|computer mouse|computer keyboard|paint brush|rubber duck|school bus"
        "|police car|pine cone|picture frame|umbrella stand|plus sign|swimming pool|living room",
        "|",
    )
)
_ALWAYS_PLURAL = _words(
    "scissors skis pants jeans shorts trousers glasses sunglasses goggles binoculars tongs"
    " pliers headphones shoes boots gloves socks"
)
_SINGULAR_IN_S = _words(
    "bus gas lens canvas iris atlas tennis chess sports christmas series species"
)
_IRREGULAR_PLURALS = {
    "men": "man",
    "women": "woman",
    "children": "child",
    "people": "person",
    "mice": "mouse",
    "geese": "goose",
    "feet": "foot",
    "teeth": "tooth",
    "oxen": "ox",
    "knives": "knife",
    "leaves": "leaf",
    "wolves": "wolf",
    "shelves": "shelf",
    "loaves": "loaf",
    "scarves": "scarf",
    "calves": "calf",
    "potatoes": "potato",
    "tomatoes": "tomato",
    "buses": "bus",
    "cookies": "cookie",
    "movies": "movie",
    "zombies": "zombie",
    "axes": "axe",
}


def article(word: str) -> str:
    """ "a" or "an", by the sound that the word begins with as far as spelling tells."""
    if word.startswith(("hour", "honest", "heir")):
        return "an"
    if re.match(r"uni(?!m|n)|use|usu|eu|one|ukulele|utensil", word):
        return "a"
    return "an" if word[:1] in set("aeiou") else "a"


def _is_plural(word: str) -> bool:
    if word in _IRREGULAR_PLURALS or word in _ALWAYS_PLURAL:
        return True
    return len(word) > 3 and re.search(r"[^sui]s$", word) is not None and word not in _SINGULAR_IN_S


def _singular(word: str) -> str:
    if word in _IRREGULAR_PLURALS:
        return _IRREGULAR_PLURALS[word]
    if not _is_plural(word) or word in _ALWAYS_PLURAL:
        return word
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if re.search(r"(?:ss|sh|ch|x|zz|[^aeo]us)es$", word):
        return word[:-2]
    return word[:-1]


def _singular_noun(noun: str) -> str:
    *before, last = noun.split(" ")
    return " ".join([*before, _singular(last)])


def _verb_stems(word: str) -> Iterable[str]:
    """What a word could be a form of: "stopped" of "stopp", "stop" and "stoppe"."""
    for ending in ("ing", "ed", "es", "s", "d"):
        if word.endswith(ending):
            stem = word[: -len(ending)]
            yield stem
            yield stem + "e"
            if len(stem) > 2 and stem[-1] == stem[-2]:
                yield stem[:-1]
            if stem.endswith("i"):
                yield stem[:-1] + "y"


def _is_known_verb(word: str) -> bool:
    return word in _IRREGULAR_VERBS or any(stem in _VERB_STEMS for stem in _verb_stems(word))


def _looks_like_participle(word: str) -> bool:
    if word in _NOT_VERBS or word.endswith("eed") or not word.endswith(("ing", "ed")):
        return False
    stem = word.removesuffix("ing").removesuffix("ed")
    return not set("aeiouy").isdisjoint(stem)  # no "ring", no "bed"


def _is_adverb(word: str) -> bool:
    return (
        len(word) > 5 and word.endswith("ly") and word not in ("butterfly", "family", "dragonfly")
    )


def _is_adjective(word: str) -> bool:
    return word in _ADJECTIVES or word.endswith(("ful", "less", "ous", "-colored", "-coloured"))


def _is_word(token: str) -> bool:
    return token[:1].isalnum()


def _is_boundary(tokens: Sequence[str], i: int) -> bool:
    """Whether a phrase cannot go on at position i."""
    if i >= len(tokens):
        return True
    token = tokens[i]
    return token in _FUNCTION_WORDS or token in _NUMBERS or token.isdecimal() or not _is_word(token)


@dataclass(frozen=True)
class _Place:
    """Words of place at [start, end): predicates and what they are relative to.

    `reference` is "object" (a noun phrase or pronoun follows), a possessive pronoun ("to its
    left"), or "canvas" ("on the left": a side of the picture, or of what the sentence is about).
    """

    end: int
    predicates: tuple[str, ...]
    reference: str
    side: _Side = (None, None)


def _place(tokens: Sequence[str], i: int) -> _Place | None:
    """The words of place that begin at position i."""
    start = i
    while i < len(tokens) and tokens[i] in ("right", "just", "directly", "immediately", "partly"):
        i += 1  # "right next to", "directly above"
    side = _side(tokens, start) or (_side(tokens, i) if i > start else None)
    if side is not None:
        return side
    at, whose, part = [*tokens[i : i + 3], "", "", ""][:3]
    if at == "at" and whose in _POSSESSIVES and part in ("feet", "foot"):
        return _Place(i + 3, ("below",), whose)
    for length in range(min(_LONGEST_PREPOSITION, len(tokens) - i), 0, -1):
        predicate = _PREPOSITIONS.get(tuple(tokens[i : i + length]))
        if predicate is not None:
            return _Place(i + length, (predicate,), "object")
    return None


def _side(tokens: Sequence[str], i: int) -> _Place | None:
    """ "[to|on|at|in] [the|its] left [side] [of]" and its kin."""
    n = len(tokens)
    start = i
    preposition = i < n and tokens[i] in ("to", "on", "at", "in", "from", "toward", "towards")
    i += preposition
    whose = tokens[i] if i < n and (tokens[i] == "the" or tokens[i] in _POSSESSIVES) else ""
    i += bool(whose)
    while i < n and tokens[i] in ("far", "immediate", "very", "extreme", "direct"):
        i += 1
    x: int | None = None
    y: int | None = None
    first = i
    while i < n:
        parts = tokens[i].split("-") if tokens[i] not in _SIDES else [tokens[i]]
        if not all(part in _SIDES for part in parts):
            break
        for part in parts:
            dx, dy = _SIDES[part]
            x, y = (x if dx is None else dx), (y if dy is None else dy)
        i += 1
    if i == first:
        return None
    corner = False
    if tokens[i : i + 2] == ["hand", "side"]:
        i += 1
    while i < n and tokens[i] in ("side", "corner", "half", "part", "edge", "area"):
        corner |= tokens[i] != "side"
        i += 1
    side = (x, y)
    predicates = _side_predicates(side)
    if i < n and tokens[i] == "of" and predicates and not corner:
        # "the top of the stairs" is a part; "on the top of the box" is a place.
        if preposition or x in (-1, 1):
            return _Place(i + 1, predicates, "object")
        return None
    if i < n and tokens[i] == "from":
        return None
    if not _is_boundary(tokens, i) and not _is_known_verb(tokens[i]):
        return None  # "in the left hand", "on the top shelf"
    if whose in _POSSESSIVES:
        return _Place(i, predicates, whose) if preposition and predicates else None
    if preposition or (start == first and x):
        return _Place(i, predicates, "canvas", side)
    return None


def _side_predicates(side: _Side) -> tuple[str, ...]:
    return tuple(_SIDE_PREDICATES[axis, value] for axis, value in enumerate(side) if value)


def _needs_object(tokens: Sequence[str], i: int) -> bool:
    """Whether what follows can be the object of a preposition that ends at i."""
    if i >= len(tokens):
        return False
    return tokens[i] in _PRONOUNS | _DETERMINERS | {"one"} or _noun_phrase(tokens, i) is not None


def _is_verb(token: str) -> bool:
    return token in _AUXILIARIES or _is_known_verb(token)


def _inverts(tokens: Sequence[str], i: int) -> bool:
    """Whether a verb and its subject follow, as in "above the dog [is a cat]"."""
    if i >= len(tokens) or not _is_verb(tokens[i]):
        return False
    phrase = _noun_phrase(tokens, i + 1)
    return phrase is not None and bool(phrase.determiner)


@dataclass
class _NounPhrase:
    end: int
    determiner: str
    count: int | None  # None: uncounted
    words: list[str]
    verb: bool = False  # the word after it is a verb
    of: str = ""  # "of water" in "a glass of water"
    portion: str = ""  # "a slice of" in "a slice of pizza"
    noun: str = ""
    attributes: tuple[str, ...] = ()


def _noun_phrase(tokens: Sequence[str], i: int) -> _NounPhrase | None:
    """The noun phrase that begins at position i."""
    n = len(tokens)
    determiner, count = "", None
    for _ in range(4):  # "all the other two"
        token = tokens[i] if i < n else ""
        if token in _NUMBERS or token.isdecimal():
            count = _NUMBERS[token] if token in _NUMBERS else int(token[:9])
        elif token in ("a", "an") and tokens[i + 1 : i + 2] in (["couple"], ["pair"], ["dozen"]):
            of = tokens[i + 2 : i + 3] == ["of"]
            if not of and tokens[i + 1] != "dozen":
                determiner = token
                i += 1
                break
            count = 12 if tokens[i + 1] == "dozen" else 2
            determiner = tokens[i + 1]
            i += 1 + of
        elif token in _DETERMINERS:
            # "the other", "all the", "the three": the definite word says how to read the phrase.
            determiner = token if determiner not in _DEFINITE | _POSSESSIVES else determiner
        else:
            break
        i += 1
    words: list[str] = []
    verb = False
    while not _is_boundary(tokens, i) or _joins_adjectives(tokens, i, words):
        token = tokens[i]
        if words and _place(tokens, i) is not None:
            break
        if _ends_phrase(tokens, i, words, determiner, count):
            verb = not _is_adverb(token)
            break
        words.append(token)
        i += 1
    if words and tokens[i : i + 1] in (["one"], ["ones"]) and all(map(_is_adjective, words)):
        words.append(tokens[i])  # "a blue one"
        i += 1
    while words and _is_adverb(words[-1]):
        words.pop()
        i -= 1
    if not words:
        return None
    phrase = _NounPhrase(i, determiner, count, words, verb)
    _find_noun(phrase)
    if tokens[i : i + 1] == ["of"] and words[-1] not in _PICTURES:
        inner = _noun_phrase(tokens, i + 1)
        if inner is not None and _singular(words[-1]) in _PORTIONS and not inner.portion:
            amount = " ".join([determiner or article(words[0]), *words, "of"])
            inner.portion = amount if determiner not in _DEFINITE else amount.replace("the", "a", 1)
            inner.determiner = determiner or "a"
            inner.count = None
            return inner
        if inner is not None and not inner.determiner and not inner.of and not inner.portion:
            phrase.of = " of " + " ".join(inner.words)
            phrase.end = inner.end
    return phrase


def _joins_adjectives(tokens: Sequence[str], i: int, words: Sequence[str]) -> bool:
    """ "red and white" in "a red and white cat"; "large," in "a large, green field"."""
    if i + 2 >= len(tokens) or tokens[i] not in ("and", ",", "&") or not words:
        return False
    known = all(_is_adjective(word) or word in ("and", ",", "&") for word in words)
    last = words[-1] not in ("and", ",", "&")
    return (
        known
        and last
        and _is_adjective(tokens[i + 1])
        and (not _is_boundary(tokens, i + 2) or tokens[i + 2] in ("and", ","))
        and _place(tokens, i + 2) is None
    )


def _has_head(words: Sequence[str]) -> bool:
    """Whether the words so far can stand as a noun phrase."""
    if not words or words[-1] in ("and", ",", "&") or _is_adverb(words[-1]):
        return False
    return not _is_adjective(words[-1]) and (
        words[-1] in _NOT_VERBS or not _looks_like_participle(words[-1])
    )


def _ends_phrase(
    tokens: Sequence[str], i: int, words: Sequence[str], determiner: str, count: int | None
) -> bool:
    """Whether the word at i is no part of the noun phrase `words` but a verb or adverb after it."""
    word = tokens[i]
    after = _is_boundary(tokens, i + 1)
    if not words and not determiner and count is None:
        participle = after and _looks_like_participle(word)
        return _is_known_verb(word) or participle or _is_adverb(word)
    if not _has_head(words) and not (words and words[-1] == "orange" and _is_known_verb(word)):
        return False
    if _is_adverb(word):
        return True
    if (word, *tokens[i + 1 : i + 2]) in _COMPOUNDS:
        return False
    if count is not None and count > 1 and not _is_plural(words[-1]) and _is_plural(word):
        return False  # "two lamp stands"
    if _is_known_verb(word):
        return True
    if _is_plural(words[-1]) and word in _VERB_STEMS:
        return True  # "the scissors rest"
    if _looks_like_participle(word) and after:
        return True
    singular = determiner in ("a", "an", "another") or count == 1
    return singular and after and _is_plural(word) and word not in _ALWAYS_PLURAL


def _find_noun(phrase: _NounPhrase) -> None:
    """Splits the words into attributes and noun."""
    words = phrase.words
    length = 1
    for size in (3, 2):
        if (*words[-size:-1], _singular(words[-1])) in _COMPOUNDS and len(words) >= size:
            length = size
            break
    phrase.noun = " ".join(words[-length:])
    phrase.attributes = tuple(
        word
        for word in words[:-length]
        if _is_word(word) and word != "and" and not _is_adverb(word)
    )


@dataclass
class _Mention:
    """An object while the text is read."""

    noun: str
    attributes: list[str]
    phrase: str
    sentence: int


@dataclass
class _Link:
    """A relation while the text is read: it may still lack its objects, or its subjects."""

    predicates: tuple[str, ...]
    subjects: list[int]
    references: list[int]
    opens: bool = False  # begins a clause, so that its subject may follow
    between: bool = False


class _Reader:
    """Objects and relations of the sentences read so far."""

    def __init__(self) -> None:
        self.mentions: list[_Mention] = []
        self.relations: dict[Relation, None] = {}
        self.sentence = 0
        self.main: list[int] = []  # what the sentence is about

    def read(self, tokens: Sequence[str]) -> None:
        """Reads one sentence."""
        self.sentence += 1
        self.about = self.main  # ... and the one before
        self.main = []
        self.subject: list[int] = []  # what the next words of place speak about by default
        self.latest: list[int] = []  # the latest noun phrase
        self.last: list[int] = []  # ... with those that it is joined to, and what they are:
        # "subject"; "object" of a verb or of "with", which the next words of place speak about;
        # "adjunct", after a preposition.
        self.role = "subject"
        self.determiner = ""  # of the latest noun phrase
        self.joint = ""  # conjunction since then
        self.preposition = ""  # preposition since then
        self.waiting: _Link | None = None  # lacks its objects
        self.inverted: _Link | None = None  # lacks its subjects: "above the dog is a cat"
        self.complete: _Link | None = None  # the latest that lacks nothing
        self.side: _Side | None = None  # "on the left": of the noun phrase that follows
        self.sided: list[tuple[list[int], _Side]] = []
        self.ignored_end = -1  # where the latest phrase that is no object ended
        self._begin_clause([])
        i = 0
        while i < len(tokens):
            i = self._step(tokens, i)
        self._relate_sides()

    def _begin_clause(self, subject: list[int]) -> None:
        self.subject, self.last, self.latest, self.role = subject, subject, subject, "subject"
        self.head = subject  # the clause's own subject
        self.second = bool(self.main) and bool(subject)  # a clause after the main one
        self.main = self.main or subject
        self.verb = ""
        self.finite = self.relative = False

    def _step(self, tokens: Sequence[str], i: int) -> int:
        token = tokens[i]
        ahead = tuple(tokens[i : i + 3])
        if ahead[:2] in (("each", "other"), ("one", "another")):
            if self.waiting is not None:
                group = self.waiting.subjects if self.waiting.subjects[1:] else self.last
                self._relate_neighbours(group, self.waiting.predicates)
            self.waiting = None
            return i + 2
        if ahead == ("side", "by", "side") and tokens[i + 3 : i + 4] != ["with"]:
            self._relate_neighbours(self.last, ("next to",))
            return i + 3
        place = _place(tokens, i)
        if place is not None:
            self._take_place(tokens, i, place)
            return place.end
        if token in _PRONOUNS and not (token == "her" and not _is_boundary(tokens, i + 1)):
            self._take_pronoun(tokens, i)
            return i + 1
        if token in _RELATIVES:
            if self.last and self.waiting is None:
                self.subject, self.role, self.joint, self.verb = self.last, "subject", "", ""
                self.relative = True
        elif token in _CONJUNCTIONS:
            self.joint = "," if "," in (token, self.joint) else "and"
        elif token in _CLAUSE_BREAKS:
            self.joint = "while"
        elif token in _WITH:
            self.preposition, self.joint = "with", ""
        elif token in _AUXILIARIES:
            self._take_verb(token)
        else:
            phrase = _noun_phrase(tokens, i)
            if phrase is not None:
                return self._take_noun_phrase(tokens, i, phrase)
            if _is_known_verb(token) or _looks_like_participle(token):
                self._take_verb(token)
            elif token in _FUNCTION_WORDS and token not in _DETERMINERS:
                self.preposition = token
            return i + 1
        if token not in _WITH:
            self.preposition = ""
        if token not in _AUXILIARIES:
            self.waiting = None
        return i + 1

    def _take_verb(self, verb: str) -> None:
        finite = verb in _AUXILIARIES or verb.endswith("s")
        if self.relative:
            self.relative = False
        elif finite and self.head and not self.finite:
            # "a dog with a cat above it is ...": back to the dog.
            self.finite = True
            if self.role != "subject" and not self.joint:
                self.subject, self.last, self.role = self.head, self.head, "subject"
        self.verb, self.preposition = verb, ""

    def _spoken_of(self) -> list[int]:
        """What words of place at this point are said of."""
        if self.role == "object":
            return self.last
        if self.joint or self.verb:
            return self.subject or self.last
        return self.latest

    def _take_place(self, tokens: Sequence[str], i: int, place: _Place) -> None:
        opens = bool(self.joint) or not self.last
        subjects = [] if self.joint == "while" else self._spoken_of()
        orphan = not subjects and bool(self.verb) and self.joint != "while"
        if self.role == "object":
            self.subject = subjects
        link = _Link(place.predicates, subjects, [], opens, tokens[place.end - 1] == "between")
        self.preposition = ""
        if place.reference == "canvas":
            after = place.end
            while after < len(tokens) and _is_verb(tokens[after]):
                after += 1
            if opens and _noun_phrase(tokens, after) is not None:
                self.side = place.side
            elif subjects:
                self.sided.append((subjects, place.side))
        elif place.reference != "object":
            self._link(tokens, place.end, link, self._resolve(place.reference, subjects))
        elif _needs_object(tokens, place.end):
            self.waiting = None if orphan else link
        elif tokens[place.end - 1] in _ADVERBIAL and i != self.ignored_end:
            # "the bird below": below what the sentence is about.
            self._relate(subjects, place.predicates, self._other_than(subjects))

    def _take_pronoun(self, tokens: Sequence[str], i: int) -> None:
        if self.waiting is not None:
            link, self.waiting = self.waiting, None
            besides = [] if link.opens and _inverts(tokens, i + 1) else link.subjects
            self._link(tokens, i + 1, link, self._resolve(tokens[i], besides))
        elif self.joint or not self.last:
            found = self._resolve(tokens[i], [])
            if found:
                self._begin_clause(found)
                self.joint = ""

    def _link(self, tokens: Sequence[str], end: int, link: _Link, references: list[int]) -> None:
        """Gives a relation its objects, whose words end at `end`."""
        link.references = references
        if link.opens and (not link.subjects or _inverts(tokens, end)):
            link.subjects = []
            self.inverted = link
        else:
            self._relate(link.subjects, link.predicates, references)
            self.complete = link

    def _take_noun_phrase(self, tokens: Sequence[str], i: int, phrase: _NounPhrase) -> int:
        end = phrase.end
        if not phrase.determiner and all(map(_is_adjective, phrase.words)):
            described = self.verb in _COPULAS and self.waiting is None and self.role == "subject"
            if described and not self.joint:
                self._describe(phrase.words)
                return end
            if phrase.words[-1] != "orange":
                self.waiting = None
                return end
        before = ["", "", *tokens[max(0, i - 2) : i]][-2:]
        if not phrase.determiner and before[1] in _COPULAS and before[0] != "there":
            return end  # "is asleep"
        if not phrase.determiner and self.joint == "and" and self.determiner == "the":
            phrase.determiner = "the"  # "the horse and cow"
        self.determiner = phrase.determiner
        self._borrow_noun(tokens, phrase)
        owner, owned = [*tokens[end : end + 2], "", ""][:2]
        side = _SIDES.get(owned) if owner == "'s" else None
        if side is not None and self.preposition in ("to", "on", "at"):
            # "to the person's left"
            self.waiting = _Link(_side_predicates(side), self._spoken_of(), [])
            end += 2
        elif owner == "'s" and owned in _BODY_PARTS:
            end += 2  # "on the cat's back"
        elif owner == "'s":
            self._mention(phrase)  # "the cat's bowl": the sentence is about the bowl
            return end
        if not self._is_object(tokens, phrase):
            self._pass_over(phrase)
            self.ignored_end = end
            is_picture = phrase.words[-1] in _CANVASES and end < len(tokens)
            return end + 1 if is_picture and tokens[end] in _SHOWING else end
        ids = self.latest = self._mention(phrase)
        if self.side is not None:
            self.sided.append((ids, self.side))
        self._place_in_clause(tokens, end, ids)
        self.joint, self.preposition, self.waiting, self.side = "", "", None, None
        if phrase.verb and end == phrase.end:
            self._take_verb(tokens[end])
            return end + 1
        return end

    def _pass_over(self, phrase: _NounPhrase) -> None:
        """Reads a noun phrase that is no object."""
        if self.waiting is not None and phrase.words[-1] in _CANVASES and self.waiting.subjects:
            # "on the left of the picture" is "on the left".
            canvas_side: list[int | None] = [None, None]
            for (axis, value), predicate in _SIDE_PREDICATES.items():
                if predicate in self.waiting.predicates:
                    canvas_side[axis] = value
            self.sided.append((self.waiting.subjects, (canvas_side[0], canvas_side[1])))
        elif self.waiting is None and not self.preposition and (self.joint or not self.last):
            self._begin_clause([])  # "while their right hand is empty"
        self.waiting, self.preposition, self.joint = None, "", ""
        if self.last:
            self.role = "adjunct" if self.verb else self.role

    def _place_in_clause(self, tokens: Sequence[str], end: int, ids: list[int]) -> None:
        """Decides what a new noun phrase is: subject, object, adjunct, or one more of these."""
        followed_by_verb = end < len(tokens) and _is_verb(tokens[end])
        goes_on = self.joint == "and" and not followed_by_verb and _place(tokens, end) is None
        listed = self.joint in ("and", ",")
        complete = self.complete
        if self.waiting is not None:
            self._link(tokens, end, self.waiting, ids)
            self.last, self.role = ids, "object" if self.waiting.between else "adjunct"
        elif self.inverted is not None and (goes_on or not self.inverted.subjects):
            # "above the dog is a cat [and a bird]"
            self._relate(ids, self.inverted.predicates, self.inverted.references)
            if not self.inverted.subjects:
                self._begin_clause(ids)
                self.finite, self.verb = True, "is"
            self.inverted.subjects = ids
        elif self.preposition == "with":
            self.last, self.role = ids, "object"
        elif listed and self.role == "object" and self.last:
            if complete is not None and complete.between:
                self._relate(complete.subjects, complete.predicates, ids)
            self.last = ids
        elif goes_on and self.role == "adjunct" and complete is not None:
            # "above the fork and the knife"
            self._relate(complete.subjects, complete.predicates, ids)
            complete.references = complete.references + ids
            self.last = self.last + ids
        elif listed and self.role == "subject" and not self.verb and self.last:
            self.last = self.last + ids
            self.main = self.last if self.main == self.subject else self.main
            self.subject = self.head = self.last
        elif self.preposition:
            self.last, self.role = ids, "adjunct"
        elif self.verb and self.subject and not self.joint:
            self.last, self.role = ids, "object"
        else:
            self._begin_clause(ids)

    # What a phrase stands for

    def _borrow_noun(self, tokens: Sequence[str], phrase: _NounPhrase) -> None:
        """ "a red and a blue circle", "a red circle and a blue one"."""
        if phrase.words[-1] in ("one", "ones") and self.mentions:
            phrase.words[-1:] = self.mentions[-1].noun.split(" ")
            _find_noun(phrase)
            return
        if not phrase.determiner or phrase.words[-1] not in _PURE_COLOURS:
            return
        if tokens[phrase.end : phrase.end + 1] in (["and"], [","]):
            other = _noun_phrase(tokens, phrase.end + 1)
            if other is not None and other.determiner:
                phrase.words += other.noun.split(" ")
                _find_noun(phrase)

    def _is_object(self, tokens: Sequence[str], phrase: _NounPhrase) -> bool:
        last = phrase.words[-1]
        head = _singular(last)
        if phrase.determiner == "no" or phrase.count == 0 or self.preposition == "without":
            return False
        scenery = phrase.noun in _SCENERY or _singular_noun(phrase.noun) in _SCENERY_COMPOUNDS
        if scenery and (self.preposition or self.waiting is not None):
            return False
        if " " in phrase.noun:
            return True
        if head in _NOT_OBJECTS or last in _NOT_OBJECTS or last in _PURE_COLOURS:
            return False
        if head in _PICTURES and (
            tokens[phrase.end : phrase.end + 1] in [[word] for word in _SHOWING]
            or not {"empty", "blank", "plain"}.isdisjoint(phrase.attributes)
        ):
            return False
        if head in _THE_CANVAS and phrase.determiner == "the" and self.waiting is not None:
            return False
        one_of_two = phrase.count == 1 or phrase.determiner == "other"
        owned = phrase.determiner in _POSSESSIVES or (
            one_of_two and self.preposition in ("in", "on")
        )
        return not (owned and last in _BODY_PARTS)

    def _mention(self, phrase: _NounPhrase) -> list[int]:
        """The objects that a noun phrase speaks of: earlier ones, or new ones."""
        earlier = self._earlier(phrase)
        if earlier:
            return earlier
        words, noun, count = phrase.words, phrase.noun, phrase.count or 0
        copies = count if 1 < count <= _MOST_COUNTED else 1
        if phrase.determiner == "pair" and words[-1] in _ALWAYS_PLURAL:
            copies, phrase.portion = 1, "a pair of"
        one = phrase.determiner in ("a", "an", "each", "every") and not phrase.portion
        if copies > 1 or count == 1 or one:
            words, noun = [*words[:-1], _singular(words[-1])], _singular_noun(noun)
        text = " ".join(words).replace(" ,", ",") + phrase.of
        if phrase.portion:
            text = f"{phrase.portion} {text}"
        elif count > _MOST_COUNTED:
            text = f"{count} {text}"
        elif phrase.determiner in _QUANTIFIERS:
            text = f"{phrase.determiner} {text}"
        elif not _is_plural(words[-1]):
            text = f"{article(words[0])} {text}"
        self.mentions += [
            _Mention(noun, list(phrase.attributes), text, self.sentence) for _ in range(copies)
        ]
        return list(range(len(self.mentions) - copies, len(self.mentions)))

    def _earlier(self, phrase: _NounPhrase) -> list[int]:
        """Objects that a definite phrase, or a bare one in a later sentence, names again."""
        definite = phrase.determiner in _DEFINITE | {"both", "all", "each"}
        owned = phrase.determiner in _POSSESSIVES - {"'s"}
        if phrase.determiner and not (definite or owned):
            return []
        noun, attributes = _singular_noun(phrase.noun), set(phrase.attributes)
        found = []
        for index, mention in enumerate(self.mentions):
            known, have = _singular_noun(mention.noun), set(mention.attributes)
            same = noun in (known, known.split(" ")[-1]) and attributes <= have
            again = mention.sentence < self.sentence and attributes == have
            if same and (definite or again):
                found.append(index)
        if len(found) < 2:
            return found
        if _is_plural(phrase.words[-1]) and phrase.words[-1] not in _ALWAYS_PLURAL:
            return found[: phrase.count]
        exact = [index for index in found if set(self.mentions[index].attributes) == attributes]
        return (exact or found)[-1:]

    def _describe(self, words: Sequence[str]) -> None:
        """ "a circle that is red": an attribute after the noun."""
        for index in self.subject:
            mention = self.mentions[index]
            new = [word for word in words if _is_word(word) and word not in mention.attributes]
            before = mention.phrase.removesuffix(mention.noun).split()
            if not new or " ".join([*before, mention.noun]) != mention.phrase:
                continue
            mention.attributes += new
            before += new
            if before[0] in ("a", "an"):
                before[0] = article(before[1])
            mention.phrase = " ".join([*before, mention.noun])

    def _resolve(self, pronoun: str, besides: Sequence[int]) -> list[int]:
        """What a pronoun stands for.

        The main subject if it fits, else the latest object that does; in a clause after the main
        one ("..., while the dog sits below it"), what the relation before spoke of comes first.
        """
        groups = [self.main, self.subject, self.about]
        if self.second and self.complete is not None and besides:
            groups.insert(0, self.complete.references)
        groups += [[index] for index in reversed(range(len(self.mentions)))]
        for group in groups:
            if not group or not set(group).isdisjoint(besides):
                continue
            person = any(_singular(self.mentions[index].noun) in _PEOPLE for index in group)
            plural = len(group) > 1 or _is_plural(self.mentions[group[0]].noun)
            if pronoun in _PERSONAL:
                fits = person
            elif pronoun in _PLURAL_PRONOUNS:
                fits = person or plural
            else:
                fits = not person and len(group) == 1
            if fits:
                return list(group)
        return self._other_than(besides)

    def _other_than(self, besides: Sequence[int]) -> list[int]:
        for group in (self.subject, self.main, self.about, self.last):
            if group and set(group).isdisjoint(besides):
                return list(group)
        return []

    # Relations

    def _relate(
        self, subjects: Sequence[int], predicates: Sequence[str], references: Sequence[int]
    ) -> None:
        for subject in subjects:
            for reference in references:
                if subject != reference:
                    for predicate in predicates:
                        self.relations[Relation(subject, predicate, reference)] = None

    def _relate_neighbours(self, group: Sequence[int], predicates: Sequence[str]) -> None:
        for subject, reference in pairwise(group):
            self._relate([subject], predicates, [reference])

    def _relate_sides(self) -> None:
        """ "a on the left and b on the right" is "a left of b"."""
        if not any(set(self.main) & set(subjects) for subjects, _ in self.sided):
            # "a dog with a cat to the left": of what the sentence is about.
            for subjects, side in self.sided:
                self._relate(subjects, _side_predicates(side), self.main)
        for axis, predicate in ((0, "left of"), (1, "above")):
            levels: dict[int, list[int]] = {}
            for subjects, side in self.sided:
                value = side[axis]
                if value is not None:
                    levels.setdefault(value, []).extend(subjects)
            order = sorted(levels)
            for before, after in pairwise(order):
                self._relate(levels[before], [predicate], levels[after])
