"""Prompt files of every format, told apart by content; what is wrong is named with its line."""

import json
import re
from pathlib import Path

import pytest

from stal.evaluation.prompt_files import boxes_of, parsed, read_cases
from stal.layout import Layout, place
from stal.prompts import parse

GPT = """\
Objects: silver bed, couch
Relation: silver bed left of couch
Sentence: The couch is to the right of the silver bed.
"""
COCO = {
    "images": [],
    "annotations": [
        {"image_id": 7, "id": 1, "caption": "A dog on\n a bed. "},
        {"image_id": 7, "id": 2, "caption": "A bed with a dog"},
        {"image_id": 8, "id": 3, "caption": "two cats"},
    ],
}
GENEVAL = [
    {
        "tag": "color_attr",
        "include": [
            {"class": "bench", "count": 1, "color": "red"},
            {"class": "wine glass", "count": 2, "color": "black"},
        ],
        "prompt": "a photo of a red bench and two black wine glasses",
    },
    {
        "tag": "position",
        "include": [
            {"class": "teddy bear", "count": 2},
            {"class": "dog", "count": 1, "position": ["right of", 0]},
        ],
        "prompt": "a photo of a dog right of two teddy bears",
    },
]
SEVEN = """\
id,category,prompt,obj1,bbox1,obj2,bbox2,obj3,bbox3,obj4,bbox4
000,object_binding,A rose,rose,"128,0,256,512",,,,,,
001,color_binding,A green worm to the left of a car,car,"256,0,512,256",worm,"(0,0,128,64)",,,,
002,object_binding,A table,table,"485,474,485,474",,,,,,
"""


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str, name: str = "prompts.any") -> str:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def test_a_prompt_a_line_is_labelled_by_the_parser(write):
    path = write("\ufeffa red circle above a blue ring\n\n  two dogs  \n")
    one, two = read_cases(path)
    assert (one.prompt, one.kind, one.where) == (
        "a red circle above a blue ring",
        "2 objects",
        f"{path}:1",
    )
    assert [(o.noun, o.attributes) for o in one.objects] == [
        ("circle", ("red",)),
        ("ring", ("blue",)),
    ]
    assert one.relations == ((0, "above", 1),)
    assert (two.prompt, two.where, len(two.objects)) == ("two dogs", f"{path}:3", 2)
    assert one.layout is None


def test_gpt_blocks_bring_their_labels(write):
    (case,) = read_cases(write(GPT))
    assert case.prompt == "The couch is to the right of the silver bed."
    assert [(o.phrase, o.noun, o.attributes) for o in case.objects] == [
        ("a silver bed", "bed", ("silver",)),
        ("a couch", "couch", ()),
    ]
    assert case.relations == ((0, "left of", 1),)


def test_coco_gives_the_first_caption_of_each_picture(write):
    cases = read_cases(write(json.dumps(COCO)))
    assert [case.prompt for case in cases] == ["A dog on a bed.", "two cats"]


@pytest.mark.parametrize("count", [1, 2], ids=["one line, a JSON object too", "two lines"])
def test_geneval_brings_classes_counts_colours_and_positions(write, count):
    text = "\n".join(map(json.dumps, GENEVAL[:count]))
    cases = read_cases(write(text))
    assert [case.kind for case in cases] == ["color_attr", "position"][:count]
    assert [(o.phrase, o.noun, o.attributes) for o in cases[0].objects] == [
        ("a red bench", "bench", ("red",)),
        ("a black wine glass", "wine glass", ("black",)),
        ("a black wine glass", "wine glass", ("black",)),
    ]
    if count == 2:
        assert [o.noun for o in cases[1].objects] == ["teddy bear", "teddy bear", "dog"]
        assert cases[1].relations == ((2, "right of", 0),)


def test_7bench_brings_boxes_and_the_prompt_the_attributes(write):
    rose, worm, table = read_cases(write(SEVEN))
    assert all(isinstance(case.layout, Layout) for case in (rose, worm, table))
    assert rose.layout.objects[0].box == (0.25, 0.0, 0.5, 1.0)
    assert (rose.kind, worm.kind) == ("object_binding", "color_binding")
    assert [(o.phrase, o.box) for o in worm.layout.objects] == [
        ("a car", (0.5, 0.0, 1.0, 0.5)),
        ("a green worm", (0.0, 0.0, 0.25, 0.125)),
    ]
    assert worm.relations == worm.layout.relations == ((1, "left of", 0),)
    # The published file has a box without area.
    (x0, y0, x1, y1) = table.layout.objects[0].box
    assert (x1 - x0, y1 - y0) == (1 / 512, 1 / 512)


def test_shapes_are_of_the_test_split_with_the_scenes_boxes():
    cases = read_cases("shapes:2:1,3")
    assert [case.kind for case in cases] == ["1 object"] * 2 + ["3 objects"] * 2
    for case in cases:
        assert isinstance(case.layout, Layout)
        assert boxes_of(case, case.layout) == [placed.box for placed in case.layout.objects]
    again, others = read_cases("shapes:2:1,3:1"), read_cases("shapes:2:1,3:2")
    assert [case.layout for case in cases] == [case.layout for case in again]
    assert [case.layout for case in cases] != [case.layout for case in others]


def test_limit_keeps_the_first(write):
    path = write("a dog\na cat\na cow\n")
    assert [case.prompt for case in read_cases(path, limit=2)] == ["a dog", "a cat"]


def test_boxes_of_a_predicted_layout_are_matched_by_noun_and_attributes(write):
    (case,) = read_cases(write(GPT.replace("silver bed, couch", "silver bed, zebra, couch")))
    layout = place(parse(case.prompt))
    boxes = {o.noun: o.box for o in layout.objects}
    assert boxes_of(case, layout) == [boxes["bed"], None, boxes["couch"]]


def test_an_equal_noun_is_used_once():
    case = parsed("a dog, a cat and a dog")
    layout = place(parse("a dog and a cat"))
    assert boxes_of(case, layout) == [layout.objects[0].box, layout.objects[1].box, None]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "prompts must hold at least one"),
        ("\n \n", "prompts must hold at least one"),
        ("[1, 2]", ":1 must be a line of GenEval"),
        ('{"prompt": "a dog"}', ":1 must be a line of GenEval"),
        ('{"prompt": "a", "include": []}\n{"prompt": 3}', ":2 must be a line of GenEval"),
        ('{"prompt": "a", "include": []}\n{"prompt', ":2 must be a line of GenEval"),
        ('{"prompt": "a", "include": [{"count": 1}]}', ":1: include must consist of"),
        (
            '{"prompt": "a", "include": [{"class": "a", "count": 0}]}',
            ":1: count must be a positive",
        ),
        (
            '{"prompt": "a", "include": [{"class": "a", "position": ["left of", 3]}]}',
            ":1: position must be like",
        ),
        (
            '{"prompt": "a", "include": [{"class": "a", "position": ["astride", 0]}]}',
            ":1: position must be like",
        ),
        ('{"annotations": 3}', '"annotations" must be a list, got int'),
        ('{"annotations": [{"id": 1}]}', 'annotations[0] must have a "caption"'),
        ("Objects: a dog\nSentence: a dog\n", "blocks of Objects, Relation and Sentence"),
        (
            GPT.replace("bed left of couch", "bed left of dog"),
            "block 1: Relation must name Objects",
        ),
        ("prompt,obj1,bbox1\n,rose,1\n", ":2: prompt must not be empty"),
        ("prompt,obj1,bbox1\nA rose,,\n", ":2: obj1 must name an object"),
        ("prompt,obj1,bbox1\nA rose,rose,here\n", ":2: bbox1 must be x0,y0,x1,y1 in pixels"),
        ('prompt,obj1,bbox1\nA rose,rose,"0,0,nan,9"\n', ":2: bbox1 must lie in 0 .. 512"),
        ('prompt,obj1,bbox1\nA rose,rose,"9,0,1,9"\n', ":2: bbox1 must lie in 0 .. 512"),
        ('prompt,obj1,bbox1\nA rose,rose,"0,0,1,513"\n', ":2: bbox1 must lie in 0 .. 512"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(write, text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        read_cases(write(text))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("absent.txt", "prompts must be a file of prompts, or shapes:N"),
        (".", "prompts must be a file of prompts"),
        ("shapes:", "prompts must be like shapes:100:2,3,4, got shapes:"),
        ("shapes:0", "prompts must be like shapes"),
        ("shapes:2:9", "prompts must be of 1 to 4 objects"),
        ("shapes:2:0", "prompts must be of 1 to 4 objects"),
    ],
)
def test_other_sources_are_refused(source, message):
    with pytest.raises(ValueError, match=message):
        read_cases(source)


def test_a_file_that_is_no_text_is_refused_with_its_line(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes(b"a dog\n\xff\xfe\n")
    with pytest.raises(
        ValueError,
        match=r"prompts must be text in UTF-8, got other bytes in line 2 of .*prompts\.txt",
    ):
        read_cases(str(path))


@pytest.mark.parametrize("limit", [0, -1])
def test_limit_must_be_positive(limit):
    with pytest.raises(ValueError, match="limit must be positive"):
        read_cases("shapes:1", limit=limit)


@pytest.mark.parametrize(
    "mark", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e"]
)
def test_only_line_ends_end_a_prompt(write, mark):
    prompt = f"a cat left of{mark}a dog"
    case = {"tag": "x", "include": [{"class": "cat"}], "prompt": prompt}
    lines = json.dumps(case, ensure_ascii=False)
    assert [each.prompt for each in read_cases(write(f"{lines}\r\n{lines}\r"))] == [prompt] * 2
    (found,) = read_cases(write(f"{prompt}\n"))
    assert (found.prompt, found.relations) == (prompt, ((0, "left of", 1),))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "must be a line of GenEval"),
        ('{"prompt": ' + "9" * 5000 + "}", "must be a line of GenEval"),
        ('{"prompt": "", "include": [{"class": "cat", "count": 1000000000}]}', "at most"),
        ('{"prompt": "", "include": [{"class": "cat", "color": [1]}]}', "color must be a string"),
        ('{"annotations": [{"caption": ["a cat"], "image_id": []}]}', 'must have a "caption"'),
        ("a " * 30_000, "prompt must have at most"),
    ],
    ids=["deep", "long number", "many", "colour", "id", "long"],
)
def test_files_made_to_harm_are_refused(write, text, message):
    with pytest.raises(ValueError, match=message):
        read_cases(write(text))
