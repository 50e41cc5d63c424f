"""The state of the reading: what a new clause and a bracket keep, and what they do not."""

from stal.prompts.clause import Clause, Sentence
from stal.prompts.contents import Contents
from stal.prompts.statements import Statements


def sentence() -> Sentence:
    return Sentence([(0, 1), (2, 5)], Contents([], Statements([])))


def test_the_first_subject_stays_what_the_sentence_is_about() -> None:
    here = sentence()
    here.begin_clause([0])
    assert (here.main, here.second) == ([0], False)
    here.begin_clause([1])
    assert (here.main, here.second) == ([0], True)
    here.begin_clause([])
    assert (here.main, here.second) == ([0], False)


def test_a_new_clause_keeps_only_what_comes_with_something() -> None:
    here = sentence()
    before = here.clause = Clause([0], [0], [1], [1], "object", "has", True, True, True, [0])
    here.negated = here.relative = here.fronted = True
    here.begin_clause([2])
    assert here.clause == Clause([2], [2], [2], [2], joined=True, bearer=[0])
    assert [here.negated, here.relative, here.fronted] == [False] * 3
    assert before.role == "object"


def test_a_bracket_leaves_the_clause_as_it_was() -> None:
    here = sentence()
    here.begin_clause([0])
    here.open_bracket()
    here.clause.verb, here.clause.role = "wearing", "object"
    here.begin_clause([1])
    here.close_bracket()
    assert here.clause == Clause([0], [0], [0], [0])
    assert here.main == [0]
    here.begin_clause([2])
    here.close_bracket()  # of no bracket
    assert here.clause.subject == [2]


def test_sentences_share_no_lists() -> None:
    assert sentence().sided is not sentence().sided
    assert sentence().clause.last is not sentence().clause.last


def test_spans_of_several_words() -> None:
    assert sentence().span(0, 2) == (0, 5)
