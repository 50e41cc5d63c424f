"""A model's defaults, and what they say of a text."""

import pytest

from stal.pipeline import Pipeline
from stal.settings import Defaults


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"step": 2, "refernce": ""}', "must hold known settings, got refernce, step"),
        ("{", "must be JSON"),
        ("[]", "must be a JSON object"),
    ],
)
def test_a_broken_stal_json_is_named(with_stal_json, text, message):
    folder = with_stal_json(text)
    with pytest.raises(ValueError, match=rf"stal.json {message}"):
        Pipeline.from_pretrained(folder)


def test_unknown_words_are_those_that_the_model_was_never_shown():
    defaults = Defaults(words=("a", "red", "circle"))
    assert defaults.unknown_words(["A red dog, a CIRCLE!", "a dog"]) == ["dog"]
    assert Defaults().unknown_words(["a red dog"]) == []
