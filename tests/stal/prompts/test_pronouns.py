"""What pronouns stand for, in states of the reading set by hand."""

import pytest

from stal.prompts.clause import Clause, Sentence
from stal.prompts.contents import Contents
from stal.prompts.mentions import Mentions
from stal.prompts.nouns import noun_phrase
from stal.prompts.pronouns import after_list, latest_two, other_than, resolve
from stal.prompts.statements import Link, Statements


def read(*phrases: str) -> tuple[Sentence, Mentions]:
    """A sentence about the first of these phrases that just named the last one."""
    known = Mentions()
    ids: list[int] = []
    subject: list[int] = []
    for phrase in phrases:
        found = noun_phrase(phrase.split(), 0)
        assert found is not None
        ids = known.take(found, (len(known.items), 0), sentence=1, subject=[], latest=[])
        subject = subject or ids
    clause = Clause(subject, subject, ids, ids, "adjunct")
    said = Statements(known.items)
    return Sentence([], Contents(known.items, said), 1, [], subject, clause), known


@pytest.mark.parametrize(
    ("pronoun", "besides", "expected"),
    [
        ("it", [], [3]),
        ("it", [3], [2]),
        ("him", [], [0]),
        ("she", [], [1]),
        ("them", [], [0, 1, 2, 3]),
        ("them", [3], [0, 1, 2]),
        ("he", [0], [3]),  # for want of another man
    ],
)
def test_what_a_pronoun_stands_for(pronoun: str, besides: list[int], expected: list[int]) -> None:
    sentence, known = read("a man", "a woman", "a box", "a lamp")
    before = repr((sentence.clause, sentence.main, known.items))
    assert resolve(pronoun, besides, sentence, known) == expected
    assert repr((sentence.clause, sentence.main, known.items)) == before


def test_one_of_a_counted_plural_is_never_it() -> None:
    sentence, known = read("a box", "two dogs")
    assert resolve("it", [], sentence, known) == [0]
    sentence.clause.subject = [1, 2]
    assert resolve("it", [], sentence, known) == [0]
    assert resolve("they", [], sentence, known) == [1, 2]


def test_what_fits_comes_first_if_it_is_named() -> None:
    sentence, known = read("a box", "a lamp", "a man")
    assert resolve("it", [], sentence, known) == [0]
    assert resolve("it", [], sentence, known, first=[1]) == [1]
    assert resolve("his", [], sentence, known, first=[1]) == [2]


def test_a_pronoun_after_a_list_leaves_the_relation_to_its_caller() -> None:
    sentence, known = read("a cat", "a dog")
    sentence.clause.role = "subject"
    link = Link(("behind",), [0, 1], (0, 0))
    assert after_list("it", link, sentence, known) == [0]
    assert link.subjects == [0, 1]
    sentence.clause.verb = "sits"
    assert after_list("it", link, sentence, known) == []


def test_two_and_the_others() -> None:
    sentence, known = read("a cat", "a dog", "a mat")
    assert latest_two([], sentence, known) == [1, 2]
    assert latest_two([2], sentence, known) == [0, 1]
    sentence.main = [0, 2]
    assert latest_two([], sentence, known) == [0, 2]
    assert other_than([0], sentence) == [2]
    assert other_than([0, 2], sentence) == []
