"""Prompts, and files of prompts, of any making."""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import strategies as st

from stal.budget import MOST_PROMPT_CHARS
from stal.evaluation.labelled import read_captions, read_counting, read_gpt, read_spatial
from stal.evaluation.prompt_files import read_cases
from stal.files import read_lines
from stal.prompts import PREDICATES, drawn_text, parse
from stal.training.layout_data import read_nsr1k


def _split(text: str, separator: str | None = None) -> list[str]:
    return text.split(separator)


_WORDS = _split(
    "a an the two 3 20 no some several every his its their cat dogs woman men 1girl 2boys 1other"
    " long_hair red blue big shiny hair ears hat dress table vase left of right top bottom above"
    " below under on in inside next to between behind front middle background foreground with"
    " without wearing holding is are sits standing it them she which that and or but while , . ;"
    " : ! ? St. Mr. U.S. e.g. vs. etc. No. #5 747 3.5 1/2 4x4 5 p.m. 16:9 1,000 one other both"
    " former each row draw you can see not isn't cat's dogs' number more than photo painting"
    " masterpiece score_9 absurdres artist:x solo 8k"
)
_SYNTAX = _split(
    "BREAK ADDCOL ADDROW ADDBASE ADDCOMM AND COUPLE [SEP] | :: ::2 ::-1 1.5:: :1.3 :-1 ( ) (( ))"
    " [ ] { } {2$$ $$ \\( \\) \\[ <lora:x:1> <x> embedding:x __animal__ --ar --no --v ++ -- .swap("
    " .and() .blend(1) \" ' # // /* */ https://x.y/z MASK(0) :0.5] [a:b:0.5] [a|b] {a|b} _ ^_^ “ ’"
    " … — ａ ２ ， \U0001f431"
)
_SYNTAX += ["Negative prompt:", "Steps: 20, ", "Prompt:", "--no a cat", "--ar 16:9", "a cat AND b"]
_SYNTAX += ["\r\n", "\n\n", *"\n\r\t\x00\x0b\x0c\x1c\x1d\x1e\x85\xa0\xad\u200b\u200f\u2028\u2029"]
_SYNTAX += [*"\ufeff\u0301\ufe0f\ud800"]
_PIECE = st.one_of(
    st.sampled_from(_WORDS),
    st.sampled_from(_SYNTAX),
    st.text(max_size=8),
    st.tuples(st.sampled_from([*_WORDS, *_SYNTAX]), st.integers(2, 400)).map(
        lambda pair: pair[0] * pair[1]
    ),
)
_TEXT = st.tuples(st.lists(_PIECE, max_size=24), st.sampled_from([" ", " ", "", ", "])).map(
    lambda pair: pair[1].join(pair[0])
)
_PROMPT = st.one_of(
    _TEXT,
    st.tuples(_TEXT, st.integers(1, MOST_PROMPT_CHARS)).map(
        lambda pair: (pair[0] * (pair[1] // (len(pair[0]) + 1)))[: MOST_PROMPT_CHARS + 1]
    ),
)


def check_prompt(text: str) -> None:
    refusal = ""
    try:
        found = parse(text)
    except ValueError as error:
        refusal = str(error)
    if refusal:
        assert refusal.startswith("prompt must")
        return
    drawn = drawn_text(text)
    assert drawn_text(text) == drawn
    assert parse(text) == found if len(text) < 2000 else True
    assert found.background == found.background
    for thing in found.objects[:50]:
        assert thing.phrase.strip() == thing.phrase != ""
        assert thing.noun in thing.phrase or thing.noun
        assert 0 <= thing.span[0] < thing.span[1] <= len(text)
        assert 1 <= thing.count[0] <= thing.count[1]
        parse(thing.phrase)
    for relation in found.relations:
        assert relation.predicate in PREDICATES
        assert relation.subject != relation.object
        assert {relation.subject, relation.object} <= set(range(len(found.objects)))


def test_any_prompt_is_read(fuzz: Callable[..., None]) -> None:
    fuzz(check_prompt, _PROMPT, examples=40)


_NUMBER = st.one_of(
    st.integers(-3, 30), st.just(10**9), st.just(10**400), st.floats(allow_nan=True)
)
_SCALAR = st.one_of(st.none(), st.booleans(), _NUMBER, _TEXT, st.lists(_NUMBER, max_size=3))
_CLASS = st.fixed_dictionaries(
    {"class": st.sampled_from(["cat", "dog", "", 3])},
    optional={
        "count": st.one_of(st.integers(0, 4), _SCALAR),
        "color": st.one_of(st.sampled_from(["red", "blue"]), _SCALAR),
        "position": st.one_of(
            st.tuples(st.sampled_from(["left of", "x", 3]), st.integers(-1, 3)), _SCALAR
        ),
    },
)
_GENEVAL = st.fixed_dictionaries(
    {"prompt": st.one_of(_TEXT, _SCALAR), "include": st.one_of(st.lists(_CLASS), _SCALAR)},
    optional={"tag": _SCALAR},
)
_COCO = st.fixed_dictionaries(
    {
        "annotations": st.one_of(
            st.lists(
                st.fixed_dictionaries({"caption": _TEXT}, optional={"image_id": _SCALAR}),
                max_size=4,
            ),
            _SCALAR,
        )
    }
)
_NSR1K = st.lists(
    st.fixed_dictionaries(
        {
            "prompt": st.one_of(_TEXT, _SCALAR),
            "obj1": st.one_of(st.just(["cat", [0.1, 0.1, 0.2, 0.2]]), _SCALAR),
            "obj2": st.just(["dog", [0.5, 0.1, 0.2, 0.2]]),
            "relation": st.one_of(st.sampled_from(["left", "top"]), _SCALAR),
            "type": st.just("natural"),
            "sub-type": st.just("x"),
            "num_object": st.one_of(st.just([["cat", 2]]), _SCALAR),
        },
        optional={"image_id": _SCALAR, "object_list": _SCALAR},
    ),
    max_size=3,
)
_JSON = st.one_of(
    st.lists(_GENEVAL, max_size=4).map(lambda items: "\n".join(map(json.dumps, items))),
    _COCO.map(json.dumps),
    _NSR1K.map(json.dumps),
    st.sampled_from(["[" * 100_000, '{"a":' * 100_000, '{"prompt": ' + "9" * 5000 + "}"]),
)
_CSV = st.lists(st.lists(st.one_of(_TEXT, st.just("0,0,9,9").map(json.dumps)), max_size=5)).map(
    lambda rows: "\n".join(["prompt,obj1,bbox1,obj2,bbox2", *map(",".join, rows)])
)
_GPT = st.lists(
    st.tuples(_TEXT, _TEXT, _TEXT).map(
        "Objects: {0[0]}\nRelation: {0[1]}\nSentence: {0[2]}\n".format
    )
).map("\n".join)
_LINES = st.lists(_TEXT, max_size=6).map("\n".join)
_FILE = st.tuples(
    st.one_of(_JSON, _CSV, _GPT, _LINES), st.integers(0, 400), st.sampled_from(["", "\xff", "\0"])
)


def check_file(path: Path, file: tuple[str, int, str]) -> None:
    text, cut, strange = file
    text = text[:cut] + strange + text[cut:] if strange else text
    data = text.encode("utf-8", errors="surrogatepass")
    path.write_bytes(data if cut % 3 else data[:cut])
    for read in (read_gpt, read_spatial, read_counting, read_captions, read_nsr1k):
        with suppress(ValueError):
            read(path)
    with suppress(ValueError):
        read_lines(path, name="prompts")
    refusal, cases = "", []
    try:
        cases = read_cases(str(path))
    except ValueError as error:
        refusal = str(error)
    assert not refusal or str(path) in refusal
    for case in cases:
        indices = {i for subject, _, thing in case.relations for i in (subject, thing)}
        assert indices <= set(range(len(case.objects)))


def test_any_prompt_file_is_read(fuzz: Callable[..., None], tmp_path: Path) -> None:
    fuzz(lambda file: check_file(tmp_path / "prompts", file), _FILE, examples=40)


@pytest.mark.parametrize("unit", ["{a|", "red, "])
def test_longest_prompt_of_one_thing_is_read(fuzz: Callable[..., None], unit: str) -> None:
    text = (unit * MOST_PROMPT_CHARS)[:MOST_PROMPT_CHARS]
    fuzz(check_prompt, st.just(text), examples=1)
