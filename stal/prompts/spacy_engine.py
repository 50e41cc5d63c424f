"""The "spacy" engine of `stal.prompts`: spaCy's syntax, read as `stal.prompts.grammar` reads.

spaCy says which words are a noun phrase, which are verbs and what words of place are attached to;
relations, counting, pronouns and what is no object are those of the grammar engine. It knows verbs
that no list of ours has ("a cat devours a fish"), and it is as good as the English pipeline that is
installed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from stal.prompts import grammar
from stal.prompts.mentions import Mention
from stal.prompts.nouns import NounPhrase, noun_phrase
from stal.prompts.places import Place
from stal.relations import Span, Statement

if TYPE_CHECKING:
    from spacy.language import Language
    from spacy.tokens import Doc

_INSTALL = 'pip install "stal[spacy]" && python -m spacy download en_core_web_sm'
_SIZES = ("sm", "md", "lg", "trf")
_SUBJECTS = ("nsubj", "nsubjpass")
# How a verb depends on what its subject is to be found at: the noun that it modifies, or a verb.
_NOUN_OF_VERB = ("acl", "relcl")
_VERB_OF_VERB = ("conj", "xcomp", "advcl", "ccomp", "aux", "auxpass", "pcomp")


@dataclass(frozen=True)
class Syntax:
    """A sentence of n words.

    Attributes:
        phrases: start -> end of noun phrases, in words.
        heads: (n,) the word that each depends on; itself where there is none in the sentence.
        labels: (n,) how it depends on it, e.g. "nsubj".
        verbs: (n,) whether it is a verb or an auxiliary.
    """

    phrases: dict[int, int]
    heads: tuple[int, ...]
    labels: tuple[str, ...]
    verbs: tuple[bool, ...]


def read(text: str) -> tuple[list[Mention], dict[Statement, Span]]:
    """The objects of a text, and its relations with the spans of the words that state them.

    Args:
        text: one or more sentences.

    Raises:
        ImportError: spaCy or an English pipeline is not installed.
        ValueError: the pipeline has no parser.
    """
    doc = pipeline()(text)
    if text.strip() and not doc.has_annotation("DEP"):
        raise ValueError(f"the spaCy pipeline must have a parser, got {pipeline().pipe_names}")
    return grammar.read(text, Reader(lambda spans: align(doc, spans)))


@cache
def pipeline() -> Language:
    """The installed English pipeline, the largest if there are several.

    Raises:
        ImportError: spaCy or an English pipeline is not installed.
    """
    try:
        import spacy
    except ImportError as error:
        raise ImportError(f"engine='spacy' needs spaCy: {_INSTALL}") from error
    names = [name for name in spacy.util.get_installed_models() if name.startswith("en_")]
    if not names:
        raise ImportError(f"engine='spacy' needs an English pipeline of spaCy: {_INSTALL}")
    sizes = {name: [size in name.split("_") for size in _SIZES] for name in names}
    return spacy.load(max(names, key=lambda name: (sizes[name][::-1], name)), exclude=["ner"])


def align(doc: Doc, spans: Sequence[Span]) -> Syntax:
    """The syntax of the words at these places of the text, whatever tokens spaCy made of them.

    Args:
        doc: the text as a pipeline with a parser read it.
        spans: of the n words of a sentence.
    """
    word_of: dict[int, int] = {}
    roots = []
    for k, (start, end) in enumerate(spans):
        here = doc.char_span(start, end, alignment_mode="expand")
        roots.append(here.root)
        word_of.update((token.i, k) for token in here)
    phrases = {}
    for chunk in doc.noun_chunks:
        words = [word_of[token.i] for token in chunk if token.i in word_of]
        if words and chunk.root.pos_ != "PRON":
            phrases[words[0]] = words[-1] + 1
    return Syntax(
        phrases,
        tuple(word_of.get(root.head.i, k) for k, root in enumerate(roots)),
        tuple(root.dep_ for root in roots),
        tuple(root.pos_ in ("VERB", "AUX") for root in roots),
    )


class Reader(grammar.Reader):
    """Reads sentences with the syntax that `analyse` gives for the places of their words."""

    def __init__(self, analyse: Callable[[Sequence[Span]], Syntax]) -> None:
        super().__init__()
        self._analyse = analyse

    def _begin_sentence(self) -> None:
        self.syntax = self._analyse(self.sentence.spans)
        self.named: dict[int, list[int]] = {}  # word -> objects of the noun phrase that it is in

    def _noun_phrase(self, tokens: Sequence[str], i: int) -> NounPhrase | None:
        return noun_phrase(tokens, i, ends=self.syntax.phrases)

    def _is_verb(self, token: str, i: int) -> bool:
        return self.syntax.verbs[i]

    def _mention(self, phrase: NounPhrase) -> list[int]:
        ids = super()._mention(phrase)
        self.named.update(dict.fromkeys(range(phrase.start, phrase.end), ids))
        return ids

    def _spoken_of(
        self, place: Place, i: int, *, bare: bool = False, pronoun: bool = False
    ) -> list[int]:
        ours = super()._spoken_of(place, i, bare=bare, pronoun=pronoun)
        found = self._attached(i, place.end)
        # The grammar knows what goes with a rider, a container or a list.
        goes_with = set(found) <= set(ours) or self.sentence.contents.bearer_of(found) == ours
        return ours if goes_with else found

    def _attached(self, i: int, end: int) -> list[int]:
        """The objects that words [i, end) depend on; none if syntax does not say."""
        heads, labels = self.syntax.heads, self.syntax.labels
        word = i
        for _ in heads:
            head = heads[word]
            if head == word:
                return []
            word = head
            if word in self.named:
                return self.named[word]
            if i <= word < end:
                continue
            if self.clause.role == "object":
                return []  # "holds a cup in her hand" says that of the cup
            subjects = [k for k, h in enumerate(heads) if h == word and labels[k] in _SUBJECTS]
            for subject in subjects:
                if subject in self.named:
                    return self.named[subject]
            if subjects or labels[word] not in _NOUN_OF_VERB + _VERB_OF_VERB:
                return []
        return []
