"""From a sentence to the objects that it names and the relations that it states.

    parse("a red circle to the left of a blue square")

gives the objects "a red circle" and "a blue square" and the relation (0, "left of", 1): the global
description D and the local descriptions L_1..L_K of Wu et al. (arXiv 2304.03869), and what a
layout has to satisfy.

To teach the parser a wording or a relation, extend the table of `stal.relations`; a noun of several
words, `stal.prompts.words.COMPOUNDS`.
"""

from __future__ import annotations

from stal.budget import MOST_PROMPT_CHARS
from stal.prompts import grammar
from stal.prompts.description import Description, Object, Relation

ENGINES = ("grammar", "spacy")


def parse(text: str, *, engine: str = "grammar") -> Description:
    """Reads a prompt of one or more English sentences.

    Counted plurals become several objects ("two red circles" is twice "a red circle"); a second
    definite mention ("... The circle is ...") and a pronoun refer to an object that is already
    there; parts belong to their whole ("a woman with red hair" is one object), and clothes come one
    for each ("two women wearing red dresses" are four). Backgrounds, scenery
    ("in a field"), the picture itself ("a photo of"), style tags ("golden hour, film grain, 4k"; at
    the end of a prompt, unknown words between commas that have no article count as such), what only
    generators read ("--ar 16:9", "(a cat:1.3)": `stal.prompts.markup`) and what is said to be
    absent ("no dog", "without a hat") are no objects. Where such syntax separates parts, as BREAK
    does, a part names other things than those before it, unless it says "the" or a pronoun. Any
    text that is not too long gives a description, at worst one without objects.

    Args:
        text: the prompt.
        engine: "grammar", which needs nothing else, or "spacy", which takes noun phrases, verbs and
            what depends on what from the English pipeline of spaCy that is installed.

    Returns:
        The text with its objects, in order of mention, and its relations, in order of statement.

    Raises:
        ValueError: an unknown engine, or more characters, objects or relations than
            `stal.budget` allows.
        ImportError: "spacy" without spaCy or an English pipeline; the message says how to get them.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}, got {engine!r}")
    if len(text) > MOST_PROMPT_CHARS:
        raise ValueError(
            f"prompt must have at most {MOST_PROMPT_CHARS} characters, got {len(text)}"
        )
    if engine == "spacy":
        from stal.prompts import spacy_engine

        mentions, relations = spacy_engine.read(text)
    else:
        mentions, relations = grammar.read(text)
    objects = (
        Object(m.whole, m.noun, tuple(m.attributes), m.count, m.index, m.position, m.span)
        for m in mentions
    )
    return Description(
        text,
        tuple(objects),
        tuple(Relation(i, name, j, span) for (i, name, j), span in relations.items()),
    )


def noun_of(phrase: str) -> str:
    """The noun of a phrase, "car" of "a green car"; its last word where none is found."""
    objects = parse(phrase).objects
    return objects[0].noun if objects else phrase.split()[-1] if phrase.split() else ""
