"""From a sentence to the objects that it names and the relations that it states."""

from stal.prompts.description import Description, Object, Relation
from stal.prompts.languages import looks_english
from stal.prompts.parser import ENGINES, noun_of, parse
from stal.prompts.sentences import drawn_text
from stal.prompts.words import article
from stal.relations import PREDICATES

__all__ = [
    "ENGINES",
    "PREDICATES",
    "Description",
    "Object",
    "Relation",
    "article",
    "drawn_text",
    "looks_english",
    "noun_of",
    "parse",
]
