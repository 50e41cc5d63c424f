"""What language models answer with: the objects in it, or words about what is wrong."""

import pytest

from stal.layout import formats
from stal.prompts import article, noun_of

CAT = "a cat", (67, 243, 120, 126)
DOG = "a dog", (300, 200, 100, 50)


@pytest.fixture
def read(tmp_path):
    def read(text, **options):
        path = tmp_path / "answer.txt"
        path.write_text(text, encoding="utf-8")
        return formats.read_layout(path, noun_of=noun_of, article=article, **options)

    return read


def in_pixels(layout, side):
    return [
        (o.phrase, tuple(round(v * side, 6) for v in (x0, y0, x1 - x0, y1 - y0)))
        for o in layout.objects
        for x0, y0, x1, y1 in [o.box]
    ]


A, B = "[67, 243, 120, 126]", "[300, 200, 100, 50]"
LISTS = {
    "plain": f"[('a cat', {A}), ('a dog', {B})]",
    "label": f"Objects: [('a cat', {A}), ('a dog', {B})]",
    "brackets in the caption": f"Caption: a [watercolor] cat\n"
    f"Objects: [('a cat', {A}), ('a dog', {B})]",
    "brackets before": f"A sketch [see (1) and [2]]:\n[('a cat', {A}), ('a dog', {B})]",
    "braces in the prompt": f"Prompt: a {{red}} cat\n[('a cat', {A}), ('a dog', {B})]",
    "all in one line": f"Caption: a cat. Objects: [('a cat', {A}), ('a dog', {B})]",
    "prose after": f"[('a cat', {A}), ('a dog', {B})]\n\nI put the cat [left] of the 'dog'. {{}}",
    "lines of LMD": f"Caption: x\nObjects: [('a cat', {A}), ('a dog', {B})]\n"
    "Background prompt: a [dim] room\nNegative prompt: None",
    "fence": f"Sure!\n```python\nobjects = [('a cat', {A}), ('a dog', {B})]\n```\nDone [1].",
    "open fence": f"```\n[('a cat', {A}), ('a dog', {B})]",
    "typographic quotes": f"[(‘a cat’, {A}), (“a dog”, {B})]",
    "json": f'[["a cat", {A}], ["a dog", {B}]]',
    "lists": f"[['a cat', {A}], ['a dog', {B}]]",
    "tuples": f"(('a cat', {A.replace('[', '(').replace(']', ')')}), ('a dog', {B}))",
    "flat": "[('a cat', 67, 243, 120, 126), ('a dog', 300, 200, 100, 50)]",
    "in turn": f"['a cat', {A}, 'a dog', {B}]",
    "lines": f"[\n  ('a cat', {A}),\n  ('a dog', {B}),\n]\n",
    "no commas between": f"[('a cat', {A})\n ('a dog', {B})]",
    "no list around": f"('a cat', {A}), ('a dog', {B})",
    "bullets of pairs": f"- ('a cat', {A})\n- ('a dog', {B})",
    "dict": f"{{'a cat': {A}, 'a dog': {B}}}",
    "assigned dict": f"layout = {{'a cat': {A}, 'a dog': {B}}}",
    "labelled dict": f'Objects: {{"a cat": {A}, "a dog": {B}}}',
    "json object": f'{{"a cat": {A}, "a dog": {B}}}',
    "fenced object": f'```json\n{{"a cat": {A}, "a dog": {B}}}\n```',
    "named list": f'{{"layout": [["a cat", {A}], ["a dog", {B}]]}}',
    "objects": f'[{{"name": "a cat", "bbox": {A}}}, {{"label": "a dog", "box": {B}}}]',
    "objects of one key": f'[{{"a cat": {A}}}, {{"a dog": {B}}}]',
    "objects a line": f'{{"phrase": "a cat", "box": {A}}}\n{{"phrase": "a dog", "box": {B}}}',
    "objects with sides": '[{"object": "a cat", "x": 67, "y": 243, "width": 120, "height": 126},'
    ' {"object": "a dog", "box": {"y": 200, "x": 300, "w": 100, "h": 50}}]',
    "units": "[('a cat', [67px, '243px', 120 px, 126.0]), ('a dog', [300.0, 2e2, 100, 50])]",
    "lines of boxes": f"a cat: {A}\na dog: {B}",
    "bullets": f"* **a cat**: {A}\n* `a dog`: {B}",
    "sentences": f"- a cat at {A}.\n- a dog at {B}.",
    "numbers": f"1. a cat {A}\n2) a dog {B}",
    "in a line": f"a cat: {A}, a dog: {B}",
    "parentheses": "a cat (67, 243, 120, 126); a dog (300, 200, 100, 50)",
    "year in prose": f"The cat (2020) is old.\na cat: {A}\na dog: {B}",
    "comments": f"[('a cat', {A}),  # on the left\n // and\n ('a dog', {B})  # a [dog]\n]",
    "stars": f"[('**a cat**', {A}), ('a  dog ', {B})]",
    "byte order mark inside": f"\n\ufeff[('a cat', {A}), ('a dog', {B})]",
}


@pytest.mark.parametrize("text", LISTS.values(), ids=LISTS)
def test_lists_are_found_in_what_surrounds_them(read, text):
    layout = read(text)
    assert in_pixels(layout, 512) == [CAT, DOG]
    assert [o.noun for o in layout.objects] == ["cat", "dog"]
    assert layout.aspect == 1


P = "width: 30px; height: 40px; left: 5px; top: 10px;"
Q = "width: 9px; height: 9px; left: 50px; top: 10px;"
RULES = {
    "plain": f"cat {{{P} }}\ndog {{{Q} }}",
    "bullets and numbers": f"- cat {{{P} }}\n1. dog {{{Q} }}",
    "stars": f"* **cat** {{{P}}}\n• **dog**: {{{Q}}}",
    "numbers": f"(1) cat {{{P}}}\n2) dog {{{Q}}}",
    "quotes": f"'cat' {{{P}}}\n“dog” {{{Q}}}",
    "backticks": f"`cat` {{{P}}}\n`dog` {{{Q}}}",
    "colons": f"cat: {{{P}}}\nObjects: dog: {{{Q}}}",
    "articles": f"a cat {{{P}}}\na dog {{{Q}}}",
    "selectors": f".cat {{{P}}}\n#dog {{{Q}}}",
    "numbers after": f"cat #1 {{{P}}}\ndog (2) {{{Q}}}",
    "commas": f"cat {{{P.replace(';', ',')}}},\ndog {{{Q}}},",
    "numbered": f"cat1 {{{P}}}\ndog-2 {{{Q}}}",
    "one line": f"Layout: cat {{{P}}} dog {{{Q}}}",
    "a rule over lines": "cat\n{\n  width: 30px;\n  height: 40px;\n  left: 5px;\n  top: 10px\n}\n"
    f"dog {{\n{Q}\n}}",
    "no semicolons": f"cat {{width: 30px\nheight: 40px\nleft: 5px\ntop: 10px}}\ndog {{{Q}}}",
    "other order": f"cat {{top: 10px; left: 5px; height: 40px; width: 30px}}\ndog {{{Q}}}",
    "upper case": f"cat {{WIDTH: 30PX; Height: 40px; Left: 5px; Top: 10px}}\ndog {{{Q.upper()}}}",
    "no units": f"cat {{width: 30; height: 40; left: 5; top: 10}}\ndog {{{Q.replace('px', '')}}}",
    "decimals": f"cat {{width: 30.0px; height: 40.px; left: 5.0px; top: 1e1px}}\ndog {{{Q}}}",
    "percent": f"cat {{width: 46.875%; height: 62.5%; left: 7.8125%; top: 15.625%}}\ndog {{{Q}}}",
    "comments": f"/* the {{cat}} */ cat {{{P} /* tall\n */ }}\ndog {{{Q}}}",
    "decorations": f"cat {{position: absolute; {P} background-color: rgb(1, 2, 3); z-index: 1}}\n"
    f"dog {{{Q} color: red !important}}",
    "wide": f"cat {{{P.replace(':', '：').replace(';', '；')}}}\ndog {{{Q}}}",
    "important": f"cat {{{P.replace('30px', '30px !important')}}}\ndog {{{Q}}}",
    "fence": f"Here it is:\n```css\ncat {{{P}}}\ndog {{{Q}}}\n```\nEnjoy {{it}}!",
    "prose": f"Sure [1], a layout ('nice'):\n\ncat {{{P}}}\ndog {{{Q}}}\n\nThe dog is right.",
    "windows": f"cat {{{P} }}\r\ndog {{{Q} }}\r\n",
    "keys": f'"cat": {{"width": "30px", "height": 40, "left": "5px", "top": "10px"}},\ndog {{{Q}}}',
    "braces in the prompt": f"**Prompt:** a {{cat}}\ncat {{{P}}}\ndog {{{Q}}}",
}


@pytest.mark.parametrize("text", RULES.values(), ids=RULES)
def test_rules_are_found_in_what_surrounds_them(read, text):
    layout = read(text)
    assert in_pixels(layout, 64) == [("a cat", (5, 10, 30, 40)), ("a dog", (50, 10, 9, 9))]
    assert [o.noun for o in layout.objects] == ["cat", "dog"]


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("Caption: a [red] cat\n", "a [red] cat"),
        ("**Prompt:** a cat\n", "a cat"),
        ("- prompt: a cat\r\nBackground prompt: a room\n", "a cat"),
        ("Negative prompt: a cat\n", ""),
    ],
)
def test_the_repeated_prompt_is_kept(read, text, prompt):
    assert read(text + LISTS["plain"]).prompt == prompt
    assert read(text + LISTS["plain"], prompt="mine").prompt == "mine"


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        (f"[('a boy's hat', {A})]", "a boy's hat"),
        (f"[('a boy\\'s hat', {A})]", "a boy's hat"),
        (f"[(‘a boy’s hat’, {A})]", "a boy’s hat"),
        (f'[("a \\"red\\" hat", {A})]', 'a "red" hat'),
        (f'[("a caf\\u00e9 \\ud83d\\ude00", {A})]', "a café 😀"),
        (f"[('a hat [red] (big)', {A})]", "a hat [red] (big)"),
        (f"[('a hat {{red}}', {A})]", "a hat {red}"),
        (f"Café: {{{P}}}", "a Café"),
        (f"t-shirt {{{P}}}", "a t shirt"),
        (f"7up can {{{P}}}", "a 7up can"),
        (f"No smoking sign {{{P}}}", "a No smoking sign"),
        (f"[('a cat #2', {A})]", "a cat"),
        (f"<think>\n[('a dog', {A})]\n</think>\n[('a cat', {A})]", "a cat"),
        (f"[('a dog', {A})]</think>\n[('a cat', {A})]", "a cat"),
    ],
)
def test_phrases_keep_what_belongs_to_them(read, text, phrase):
    assert [o.phrase for o in read(text).objects] == [phrase]


@pytest.mark.parametrize(
    "mark",
    [
        *("a. ", "A) ", "ii. ", "[1] ", "1- ", "#1 ", "No. 1 ", "Step 1. ", "Item 3 - "),
        *("→ ", "☐ ", "✅ ", "<b>"),
    ],
)
def test_marks_before_a_name_are_none_of_it(read, mark):
    assert [o.phrase for o in read(f"{mark}cat {{{P}}}").objects] == ["a cat"]


OWN = '{"objects": [{"phrase": "a cat", "box": [0.1, 0.2, 0.3, 0.4]}]}'


@pytest.mark.parametrize(
    "text",
    [OWN, f"\n{OWN}\n", f"```json\n{OWN}\n```", f"Here it is:\n{OWN}\nDone.", f"```\n{OWN}"],
    ids=["plain", "blank lines", "fence", "prose", "open fence"],
)
def test_our_own_format_in_an_answer_is_read(read, text):
    (cat,) = read(text).objects
    assert (cat.phrase, cat.noun, cat.box) == ("a cat", "cat", (0.1, 0.2, 0.3, 0.4))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"[('a cat', {A}), ('a dog', [1, 2, 3])]", "item 1 must be (phrase, [x, y,"),
        (f"[('a cat', {A}), ('a dog', None)]", "item 1 must be (phrase, [x, y,"),
        (f"[('a cat', {A}), (None, {B})]", "item 1 must be (phrase, [x, y,"),
        (f"[('a cat', {A}), 'a dog']", "item 1 must be (phrase, [x, y,"),
        (f"[('a cat', {A}), ('a dog', [1, 2, True, 4])]", "item 1 must be (phrase, [x, y,"),
        (f"[('a cat', {A}), ('a dog', [1, 2, 3, 4pt])]", "list must be of pairs"),
        (f"('a cat', {A}), ('a dog', [1, 2, 3])", "item 1 must be (phrase, [x, y,"),
        (f"a cat: {A}\na dog: [1, 2, 3]", "item 1 must be (phrase, [x, y,"),
        (f"a cat: {A}\na dog: [1, 2, 3, wide]", "item 1 must be (phrase, [x, y,"),
        (f"{A}, {B}", "item 0 must be (phrase, [x, y,"),
        (f"[('a cat', {A}), ('a dog', {B}", "list must be closed by ]"),
        ("[('a cat, [1, 2, 3, 4])]", "list must be closed by ]"),
        (
            "[('a cat', [0.1, 0.2, 0.3, 0.4])]",
            "boxes must be in pixels of 512 x 512, got fractions",
        ),
        ("cat {left: .1; top: .1; width: .5; height: .5}", "boxes must be in pixels of 64 x 64"),
        (f"[{'[' * 50}'a cat'", "list must be closed by ]"),
        (f"{{'a cat': {A}, 'a cat': {B}}}", "list must name each key of an object once"),
        ("[('a cat', [1, 2, __import__('os'), 4])]", "list must be of pairs"),
        (
            '{"cat": {"left": 1, "top": 2, "width": 3, "height": 4}}',
            "item 0 must lie in a canvas that is named",
        ),
        (f"cat {{{P}}}\ndog {{{Q}", "line 2 must be like `cat"),
        (f"cat {{{P}}}\n}}", "line 2 must be like `cat"),
        (f"cat {{ dog {{{P}}}}}", "line 1 must be like `cat"),
        (f"cat {{{P} right: 5px}}", "left, top, width, height only, got 'right'"),
        (f"cat {{{P} transform: scale(2)}}", "left, top, width, height only, got 'transform'"),
        ("cat {width: 3em; height: 4px; left: 5px; top: 6px}", "must have width in px, got '3em'"),
        ("\n\ncat {\nwidth: 3px}", "line 3 must have left, top, width, height, got width"),
        (f"**1.** {{{P}}}", "line 1 must name its object"),
        (f"{'a' * 5001} {{{P}}}", "must have at most 5000 characters"),
        (f"cat {{{P}}}\n" * 1001, "layout must have at most 1000 objects, got 1001"),
        ("a" * (1 << 20) + "b", "must have at most 1048576 characters, got 1048577"),
        ("cat {" + "a" * 100_000, "line 1 must be like"),
        ("[" * 100_000, "deep nesting"),
        ("(" * 100_000, "layout must be JSON, LayoutGPT's lines"),
        ("[('" * 100_000, "list must be closed"),
        ("{" * 100_000, "layout must be valid JSON"),
        ("a" + "{" * 100_000, "line 1 must be like"),
        ("a" + "}" * 100_000, "layout must be JSON, LayoutGPT's lines"),
        (" _" * 100_000 + "{", "line 1 must be like"),
        ("[('a', [" + "9" * 100_000 + ", 1, 1, 1])]", "item 0 must be"),
    ],
    ids=lambda value: value[:40],
)
def test_what_is_not_read_is_told(read, text, message):
    with pytest.raises(ValueError, match=r"answer\.txt: ") as caught:
        read(text)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 400


def test_fractions_are_read_on_a_canvas_of_one(read):
    layout = read("[('a cat', [0.25, 0.5, 0.5, 0.25])]", canvas=(1, 1))
    assert layout.objects[0].box == (0.25, 0.5, 0.75, 0.75)


@pytest.mark.parametrize("canvas", [(0, 64), (64,), 64, ("64", 64), (True, 64), (float("nan"), 1)])
def test_canvas_is_two_positive_numbers(read, canvas):
    with pytest.raises(ValueError, match="canvas must be"):
        read(LISTS["plain"], canvas=canvas)
