"""Noun phrases of `stal.prompts.grammar`: where one ends, what its noun is, what describes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stal.prompts.places import find
from stal.prompts.words import (
    AFTER_NOUN,
    ALWAYS_PLURAL,
    ANIMALS,
    BODY_PARTS,
    COMPOUNDS,
    DEFINITE,
    DETERMINERS,
    HEAD_FIRST,
    IN_THE_SKY,
    NOT_VERBS,
    OWN_PARTS,
    PARTS,
    PARTS_OF,
    PEOPLE,
    PICTURES,
    PORTIONS,
    POSSESSIVES,
    PRONOUNS,
    SCENERY,
    SCENERY_COMPOUNDS,
    VERB_STEMS,
    WORN,
    article,
    is_adjective,
    is_adverb,
    is_boundary,
    is_known_verb,
    is_number,
    is_one_of,
    is_plural,
    is_verb,
    is_word,
    looks_like_participle,
    may_be_adjective,
    number_of,
    singular,
    singular_noun,
    word_at,
)

_DEEPEST = 3  # "a slice of a piece of a cake"
_MOST_WORDS = 30  # of a noun phrase


@dataclass
class NounPhrase:
    """A noun phrase, tokens [start, end).

    Attributes:
        determiner: "a", "the", "her", "some"; "" for none.
        count: its number; None if it has none.
        words: what is between determiner or number and end.
        verb: whether the word after it is a verb.
        of: " of water" in "a glass of water".
        portion: "a slice of" in "a slice of pizza".
        group: "row" in "a row of three dogs".
        other: whether it is "the other dog".
        as_many: whether it is "the same number of dogs".
        part: "red hair" in "the woman with red hair".
        noun: what it names, as `find_noun` finds it in the words.
        attributes: what describes that.
    """

    start: int
    end: int
    determiner: str
    count: int | None
    words: list[str]
    verb: bool = False
    of: str = ""
    portion: str = ""
    group: str = ""
    other: bool = False
    as_many: bool = False
    part: str = ""
    noun: str = ""
    attributes: tuple[str, ...] = ()

    @property
    def is_bare(self) -> bool:
        """Whether it has no article and no number."""
        return not self.determiner and self.count is None

    @property
    def is_scenery(self) -> bool:
        """Whether it names where a picture is taken, such as a road or the sky, and no thing."""
        if self.noun in IN_THE_SKY and self.determiner in ("a", "an"):
            return False  # "a red sun", but "in the sun"
        return self.noun in SCENERY or singular_noun(self.noun) in SCENERY_COMPOUNDS

    @property
    def is_alive(self) -> bool:
        """Whether it names people or animals, in one word."""
        return singular_noun(self.noun) in ANIMALS | PEOPLE


def noun_phrase(
    tokens: Sequence[str],
    i: int,
    *,
    joined: bool = False,
    depth: int = 0,
    ends: Mapping[int, int] | None = None,
) -> NounPhrase | None:
    """The noun phrase that begins at position i; None if none does.

    Args:
        tokens: the words of the sentence.
        i: where it begins.
        joined: whether another noun and "and" stand before it, so that a bare verb may follow ("a
            dog and a cat sit").
        depth: how many "of" it stands behind.
        ends: start -> end of all noun phrases, where something other than the words tells.
    """
    n = len(tokens)
    start = i
    end = None if ends is None else ends.get(i, i)
    determiner, count, other = "", None, False
    for _ in range(4):  # "all the other two"
        token = tokens[i] if i < n else ""
        if is_number(token):
            count = number_of(token)
        elif token in ("a", "an") and tokens[i + 1 : i + 2] in (["couple"], ["pair"], ["dozen"]):
            of = tokens[i + 2 : i + 3] == ["of"]
            if not of and tokens[i + 1] != "dozen":
                determiner = token
                i += 1
                break
            count = 12 if tokens[i + 1] == "dozen" else 2
            determiner = tokens[i + 1]
            i += 1 + of
        elif token in DETERMINERS:
            # "the other", "all the", "the three": the definite word says how to read the phrase.
            determiner = token if determiner not in DEFINITE | POSSESSIVES else determiner
            other |= token in ("other", "another", "second")
        else:
            break
        i += 1
    words: list[str] = []
    verb = False
    while len(words) < _MOST_WORDS and (
        not is_boundary(tokens, i) or _joins_adjectives(tokens, i, words, determiner)
    ):
        token = tokens[i]
        if (words and find(tokens, i) is not None) or (end is not None and i >= end):
            break
        if words and tuple(tokens[i : i + 3]) == ("side", "by", "side"):
            break
        if end is None and _ends_phrase(tokens, i, words, determiner, count, joined):
            verb = not is_adverb(token)
            break
        words.append(token)
        i += 1
        if len(words) == 1 and determiner and _has_particle(tokens, i):
            words.append(tokens[i])  # "a broken down car"
            i += 1
    if words and tokens[i : i + 1] in (["one"], ["ones"]) and all(map(is_adjective, words)):
        words.append(tokens[i])  # "a blue one"
        i += 1
    while words and (is_adverb(words[-1]) or _follows_noun(words)):
        words.pop()
        i -= 1
    if not words:
        return None
    phrase = NounPhrase(start, i, determiner, count, words, verb, other=other)
    find_noun(phrase)
    if tokens[i : i + 1] == ["of"] and words[-1] not in PICTURES:
        return _with_of(tokens, i, phrase, depth, ends)
    return phrase


def _follows_noun(words: Sequence[str]) -> bool:
    """ "its mouth open", but "sliced open"."""
    return len(words) > 1 and words[-1] in AFTER_NOUN and not looks_like_participle(words[-2])


def _with_of(
    tokens: Sequence[str],
    i: int,
    phrase: NounPhrase,
    depth: int,
    ends: Mapping[int, int] | None,
) -> NounPhrase:
    """ "a slice of pizza" is a pizza, "the hood of a car" a car, "a glass of water" a glass."""
    if depth >= _DEEPEST:
        return phrase
    inner = noun_phrase(tokens, i + 1, depth=depth + 1, ends=ends)
    if inner is None:
        return phrase
    words, determiner = phrase.words, phrase.determiner
    if words[-1] == "number" and words[0] in ("same", "equal"):
        inner.start, inner.as_many = phrase.start, True
        return inner
    if singular(words[-1]) in PORTIONS and not inner.portion:
        inner.start = phrase.start
        if inner.count is not None and inner.count > 1:
            inner.count *= phrase.count or 1  # "two rows of three apples"
            inner.group = words[-1]
            inner.determiner = determiner if determiner in DEFINITE else ""
            return inner  # "a group of four giraffes"
        amount = " ".join([determiner or article(words[0]), *words, "of"])
        inner.portion = amount if determiner not in DEFINITE else amount.replace("the", "a", 1)
        inner.determiner = determiner or "a"
        inner.count = None
        return inner
    if words[-1] in PARTS and len(words) < 3 and inner.determiner and not inner.portion:
        if inner.noun in SCENERY:
            return phrase
        inner.start = phrase.start
        return inner
    if not inner.determiner and not inner.of and not inner.portion and inner.count is None:
        phrase.of = " of " + " ".join(inner.words)
        phrase.end = inner.end
    return phrase


def _has_particle(tokens: Sequence[str], i: int) -> bool:
    word, particle = tokens[i - 1], tokens[i] if i < len(tokens) else ""
    return (
        particle in ("down", "out", "up", "off", "in")
        and (word.endswith(("ed", "en")) or word in ("run", "walk", "worn"))
        and not is_boundary(tokens, i + 1)
        and find(tokens, i + 1) is None
    )


def _joins_adjectives(tokens: Sequence[str], i: int, words: Sequence[str], determiner: str) -> bool:
    """ "red and white" in "a red and white cat"; "large," in "a large, green field"."""
    if i + 2 >= len(tokens) or tokens[i] not in ("and", ",", "&") or not words:
        return False
    last = words[-1] not in ("and", ",", "&")
    alone = determiner and tokens[i] == "," and len(words) == 1
    if alone and may_be_adjective(words[0]) and words[0] not in SCENERY:
        # "the plump, juicy grapes"
        ends = is_boundary(tokens, i + 1) or is_boundary(tokens, i + 2)
        if not ends and find(tokens, i + 2) is None and not is_verb(tokens[i + 1]):
            return True
    if determiner and tokens[i] == "and" and len(words) == 1 and is_adjective(words[0]):
        # "a warm and inviting glow"
        participle = looks_like_participle(tokens[i + 1]) and not is_boundary(tokens, i + 2)
        if participle and find(tokens, i + 2) is None:
            return True
    known = all(is_adjective(word) or word in ("and", ",", "&") for word in words)
    return (
        known
        and last
        and is_adjective(tokens[i + 1])
        and (not is_boundary(tokens, i + 2) or tokens[i + 2] in ("and", ","))
        and find(tokens, i + 2) is None
    )


def _has_head(words: Sequence[str]) -> bool:
    """Whether the words so far can stand as a noun phrase."""
    if not words or words[-1] in ("and", ",", "&") or is_adverb(words[-1]):
        return False
    return not is_adjective(words[-1]) and (
        words[-1] in NOT_VERBS or not looks_like_participle(words[-1])
    )


def _ends_phrase(
    tokens: Sequence[str],
    i: int,
    words: Sequence[str],
    determiner: str,
    count: int | None,
    joined: bool,
) -> bool:
    """Whether the word at i is no part of the noun phrase `words` but a verb or adverb after it."""
    word = tokens[i]
    after = (
        is_boundary(tokens, i + 1) or is_adverb(tokens[i + 1]) or find(tokens, i + 1) is not None
    )
    bare = not determiner and count is None
    if not words and bare:
        participle = after and looks_like_participle(word)
        comes = bool(i) and tokens[i - 1] in ("with", "without")
        if comes and (word.endswith("s") or (not after and tokens[i + 1] in OWN_PARTS)):
            return False  # "without leaves", "with glowing eyes"
        if i and tokens[i - 1] == "in" and not after and tokens[i + 1] in WORN:
            return False  # "in shining armor"
        return is_known_verb(word) or participle or is_adverb(word)
    if bare and words and is_known_verb(word) and all(map(is_adjective, words)):
        comes = tokens[max(0, i - len(words) - 1)] in ("with", "without") and word.endswith("s")
        return after and not comes  # "dressed in pink sitting on a chair", "with green leaves"
    if not _has_head(words) and not (words and words[-1] == "orange" and is_known_verb(word)):
        return False
    if is_adverb(word):
        return True
    if (word, *tokens[i + 1 : i + 2]) in COMPOUNDS:
        return False
    if word == "looking" and not after and _describes(words[-1]):
        return False  # "an ornate looking bowl"
    if count is not None and count > 1 and not is_plural(words[-1]) and is_plural(word):
        return False  # "two lamp stands"
    if is_known_verb(word):
        return True
    if word in VERB_STEMS and (is_plural(words[-1]) or (joined and find(tokens, i + 1))):
        return True  # "the scissors rest"
    following = tokens[i + 1] if i + 1 < len(tokens) else ""
    if word in VERB_STEMS and (following in ("a", "an") or is_number(following)):
        return True  # "on either side of the door stand two lamps"
    if word.endswith("ing") and following in ("a", "an"):
        return True  # "two children building a sandcastle"
    if word.endswith("ing") and looks_like_participle(word) and _lives(words[-1]):
        return True  # "a chef slicing vegetables"
    verb_after = tokens[i + 1 : i + 2] and is_known_verb(tokens[i + 1])
    if bare and is_plural(words[-1]) and word.endswith("ing") and looks_like_participle(word):
        return True  # "a robot with long arms watering flowers"
    passive = is_plural(words[-1]) and word.endswith("ed")  # "two girls cooked dinner"
    if looks_like_participle(word) and (after or passive or verb_after):
        return True
    one = determiner in ("a", "an", "another") or count == 1
    return one and after and is_plural(word) and word not in ALWAYS_PLURAL | BODY_PARTS


def _lives(word: str) -> bool:
    return singular(word) in PEOPLE or singular(word) in ANIMALS


def _describes(word: str) -> bool:
    """Whether a word before "looking" is an adjective: "ornate looking", not "dog looking"."""
    return is_adjective(word) or word.endswith(("ate", "ed", "ern", "ic", "ing", "ive"))


def find_noun(phrase: NounPhrase) -> None:
    """Splits the words of a phrase into its attributes and its noun, which are set."""
    words = phrase.words
    length = 1
    for size in (3, 2):
        if (*words[-size:-1], singular(words[-1])) in COMPOUNDS and len(words) >= size:
            length = size
            break
    start, end = len(words) - length, len(words)
    if len(words) > 1 and (words[-2], singular(words[-1])) in HEAD_FIRST:
        start, end = end - 2, end - 1
    while end - start == 1 and start > 0:
        # "a toilet seat", "the cars side mirror", "a cats tail": a part stands for its whole.
        part, whole = words[start], words[start - 1]
        owned = part in BODY_PARTS and is_plural(whole) and singular(whole) != whole
        if not owned and whole not in PARTS_OF.get(part, ()):
            break
        start, end = start - 1, start
    if end < len(words):
        words[end - 1] = singular(words[end - 1])
    phrase.noun = " ".join(words[start:end])
    phrase.attributes = tuple(
        word
        for word in [*words[:start], *words[end:]]
        if is_word(word) and word != "and" and not is_adverb(word)
    )


def part_after(tokens: Sequence[str], phrase: NounPhrase) -> str:
    """ "red hair" after "the woman with red hair", which tells which woman; or ""."""
    if phrase.determiner not in DEFINITE or word_at(tokens, phrase.end) != "with":
        return ""
    part = noun_phrase(tokens, phrase.end + 1)
    return " ".join(part.words) if part and is_one_of(part.words[-1], OWN_PARTS) else ""


def ends_there(tokens: Sequence[str], end: int) -> bool:
    """Whether what stands before `end` is no part of a longer noun phrase.

    In "two dogs, one standing on a chair" the "one" is none, in "one standing dog" it is.
    """
    if is_boundary(tokens, end):
        return True
    verb = is_known_verb(tokens[end]) or looks_like_participle(tokens[end])
    return verb and (is_boundary(tokens, end + 1) or find(tokens, end) is not None)


def needs_object(tokens: Sequence[str], i: int) -> bool:
    """Whether what follows can be the object of words of place that end at i."""
    if i >= len(tokens):
        return False
    return (
        tokens[i] in PRONOUNS | DETERMINERS | {"one", "each"} or noun_phrase(tokens, i) is not None
    )


def inverts(tokens: Sequence[str], i: int, *, fronted: bool) -> bool:
    """Whether the subject follows: "above the dog [is a cat]", fronted "to its left [, a cat]".

    A noun phrase right after the place is the subject: "behind the bus [a cyclist]".

    Args:
        tokens: the words of the sentence.
        i: where the words of place and their object end.
        fronted: whether the subject may follow after a comma.
    """
    comma = fronted and tokens[i : i + 1] == [","]
    i += comma
    i += tokens[i : i + 1] == ["there"]
    while i < len(tokens) and is_adverb(tokens[i]):
        i += 1
    if i >= len(tokens) or not (comma or is_verb(tokens[i]) or tokens[i] in ("a", "an")):
        return False
    phrase = noun_phrase(tokens, i + is_verb(tokens[i]))
    return phrase is not None and bool(phrase.determiner or phrase.count)
