"""The spacy engine of the prompt parser, mostly on syntax set by hand, which needs no spaCy."""

import subprocess
import sys
import types

import pytest

from stal.prompts import grammar, parse, spacy_engine
from stal.prompts.spacy_engine import Reader, Syntax

# A sentence as rows: word, head, label, part of speech; "[" begins and "]" ends a noun phrase.
LAMP = (
    "[a 1 det DET|lamp] 1 ROOT NOUN|next 1 advmod ADV|to 2 prep ADP|[a 5 det DET|vase] 3 pobj NOUN"
    "|behind {} prep ADP|[a 8 det DET|clock] 6 pobj NOUN"
)
FISH = (
    "[a 1 det DET|cat] 2 nsubj NOUN|devours 2 ROOT VERB|[a 4 det DET|fish] 2 dobj NOUN"
    "|beside 4 prep ADP|[a 7 det DET|mat] 5 pobj NOUN"
)
BOWL = (
    "[the 1 det DET|dog 3 poss NOUN|'s 1 case PART|bowl] 4 nsubj NOUN|is 4 ROOT AUX"
    "|n't 4 neg PART|under 4 prep ADP|[a 8 det DET|rug] 6 pobj NOUN"
)


def rows(sentence: str) -> list[list[str]]:
    return [row.split() for row in sentence.split("|")]


def syntax(sentence: str) -> Syntax:
    parts = rows(sentence)
    starts = [k for k, row in enumerate(parts) if row[0].startswith("[")]
    ends = [k + 1 for k, row in enumerate(parts) if row[0].endswith("]")]
    return Syntax(
        dict(zip(starts, ends, strict=True)),
        tuple(int(row[1]) for row in parts),
        tuple(row[2] for row in parts),
        tuple(row[3] in ("VERB", "AUX") for row in parts),
    )


def said(text: str, reader: grammar.Reader | None = None) -> tuple[list[str], list[str]]:
    mentions, relations = grammar.read(text, reader)
    nouns = [mention.noun for mention in mentions]
    return nouns, [f"{nouns[i]} {name} {nouns[j]}" for i, name, j in relations]


@pytest.mark.parametrize(("head", "relation"), [(1, "lamp behind clock"), (5, "vase behind clock")])
def test_words_of_place_are_said_of_what_they_depend_on(head: int, relation: str) -> None:
    reader = Reader(lambda spans: syntax(LAMP.format(head)))
    nouns, relations = said("a lamp next to a vase behind a clock", reader)
    assert nouns == ["lamp", "vase", "clock"]
    assert relations == ["lamp next to vase", relation]


@pytest.mark.parametrize("verb", ["devours", "inspects"])
def test_verbs_that_no_list_has_are_verbs(verb: str) -> None:
    text = f"a cat {verb} a fish beside a mat"
    assert said(text, Reader(lambda spans: syntax(FISH))) == (
        ["cat", "fish", "mat"],
        ["fish next to mat"],
    )
    assert said(text.replace("a fish", "fish"))[0] != ["cat", "fish", "mat"]


@pytest.mark.parametrize("text", ["two red circles above a square", "a vase with flowers"])
def test_counts_and_containers_are_those_of_the_grammar(text: str) -> None:
    words = text.split()
    start = words.index("a") if words[0] == "two" else 3
    first = 3 if words[0] == "two" else 2
    unattached = Syntax(
        {0: first, start: len(words)},
        tuple(range(len(words))),
        ("dep",) * len(words),
        (False,) * len(words),
    )
    assert said(text, Reader(lambda spans: unattached)) == said(text)


def test_circular_heads_end() -> None:
    parts = syntax(LAMP.format(6))
    circle = Syntax(parts.phrases, (3, 2, 3, 2, 5, 4, 7, 6, 7), ("conj",) * 9, (True,) * 9)
    nouns, _ = said("a lamp next to a vase behind a clock", Reader(lambda spans: circle))
    assert nouns == ["lamp", "vase", "clock"]


def test_without_spacy_the_error_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spacy", None)
    spacy_engine.pipeline.cache_clear()
    with pytest.raises(ImportError, match=r'needs spaCy: pip install "stal\[spacy\]"'):
        parse("a dog", engine="spacy")


def test_without_a_pipeline_the_error_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = types.ModuleType("spacy")
    empty.util = types.SimpleNamespace(get_installed_models=lambda: ["de_core_news_sm"])  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "spacy", empty)
    spacy_engine.pipeline.cache_clear()
    with pytest.raises(ImportError, match=r"English pipeline.*spacy download en_core_web_sm"):
        parse("a dog", engine="spacy")


def test_the_largest_pipeline_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = types.ModuleType("spacy")
    names = ["en_core_web_sm", "en_core_web_trf", "en_core_web_md", "fr_core_news_lg"]
    fake.util = types.SimpleNamespace(get_installed_models=lambda: names)  # type: ignore[attr-defined]
    fake.load = lambda name, exclude: name  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "spacy", fake)
    spacy_engine.pipeline.cache_clear()
    assert spacy_engine.pipeline() == "en_core_web_trf"
    spacy_engine.pipeline.cache_clear()


def test_importing_prompts_loads_neither_spacy_nor_torch() -> None:
    code = "import sys, stal.prompts; print([m for m in ('spacy', 'torch') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("text", "sentence", "expected"),
    [
        (
            "A lamp next to a vase behind a clock",
            LAMP.format(5),
            ["lamp next to vase", "vase behind clock"],
        ),
        ("The dog's bowl isn't under a rug", BOWL, []),
    ],
)
def test_parse_reads_a_spacy_document(
    monkeypatch: pytest.MonkeyPatch, text: str, sentence: str, expected: list[str]
) -> None:
    spacy = pytest.importorskip("spacy", reason="spaCy is not installed")
    parts = rows(sentence)
    words = [row[0].strip("[]") for row in parts]

    name = f"by_hand_{words[1]}"

    @spacy.language.Language.component(name)
    def by_hand(doc):  # type: ignore[no-untyped-def]
        assert [token.lower_ for token in doc] == words
        return spacy.tokens.Doc(
            doc.vocab,
            words=[token.text for token in doc],
            spaces=[bool(token.whitespace_) for token in doc],
            heads=[int(row[1]) for row in parts],
            deps=[row[2] for row in parts],
            pos=[row[3] for row in parts],
        )

    nlp = spacy.blank("en")
    nlp.add_pipe(name)
    monkeypatch.setattr(spacy_engine, "pipeline", lambda: nlp)
    found = parse(text, engine="spacy")
    nouns = [each.noun for each in found.objects]
    assert [f"{nouns[r.subject]} {r.predicate} {nouns[r.object]}" for r in found.relations] == (
        expected
    )
    assert all(text[slice(*each.span)] for each in found.objects)


def test_a_pipeline_without_a_parser_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    spacy = pytest.importorskip("spacy", reason="spaCy is not installed")
    monkeypatch.setattr(spacy_engine, "pipeline", lambda: spacy.blank("en"))
    with pytest.raises(ValueError, match="must have a parser"):
        parse("a dog", engine="spacy")
