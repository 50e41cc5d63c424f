"""Texts as sentences of words, each with its place in the text."""

import pytest

from stal.prompts.sentences import sentences


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [[]]),
        ("A cat. The cat's bowl", [["a", "cat"], ["the", "cat", "'s", "bowl"]]),
        ("a cat\n\na dog", [["a", "cat"], [], ["a", "dog"]]),
        ("two banana's, a cat’s tail", [["two", "bananas", ",", "a", "cat", "'s", "tail"]]),
        ("it's tail is up, it's red", [["its", "tail", "is", "up", ",", "it", "red"]]),
        ("a cup upside down", [["a", "cup", "upside-down"]]),
        ("2girls, golden hour, f/1.8", [["2", "girls", ","]]),
        ("you can see a dog", [["there", "is", "a", "dog"]]),
    ],
)
def test_tokens_of_sentences(text: str, expected: list[list[str]]) -> None:
    assert [tokens for tokens, _ in sentences(text)] == expected


@pytest.mark.parametrize("text", ["A (red:1.2) cat's bowl. Two dogs, both asleep", "a cat left of"])
def test_spans_are_where_the_words_stand(text: str) -> None:
    for tokens, spans in sentences(text):
        assert [text[start:end].lower() for start, end in spans] == tokens
