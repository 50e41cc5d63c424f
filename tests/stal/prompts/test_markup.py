"""The syntax of other tools, which only picture generators read."""

import pytest

from stal.prompts import drawn_text, parse

GIRLS = ["a girl with brown hair", "a girl with white hair"]

# kind -> prompts: text, phrases in order, relations with indices into them.
CASES: dict[str, list[tuple[str, list[str], list[str]]]] = {
    "persons across BREAK": [
        ("1girl, brown hair BREAK 1girl, white hair", GIRLS, []),
        ("masterpiece, park, night BREAK 1girl, brown_hair BREAK 1girl, white_hair", GIRLS, []),
        ("2girls BREAK 1girl, brown hair BREAK 1girl, white hair", GIRLS, []),
        ("2girls, park ADDCOMM 1girl, brown hair ADDCOL 1girl, white hair", GIRLS, []),
        ("2girls | 1girl, brown hair | 1girl, white hair", GIRLS, []),
        ("1girl, brown hair AND 1girl, white hair :0.8", GIRLS, []),
        (
            "a woman with red hair BREAK a woman with black hair",
            ["a woman with red hair", "a woman with black hair"],
            [],
        ),
        (
            "a woman BREAK red hair, blue eyes BREAK a hat",
            ["a woman with red hair and blue eyes", "a hat"],
            [],
        ),
        ("a cat on a mat BREAK the cat is black", ["a black cat", "a mat"], ["0 on 1"]),
        ("a cat BREAK a cat", ["a cat", "a cat"], []),
    ],
    "tags of persons": [
        ("1girl 1boy", ["a girl", "a boy"], []),
        ("1girl 2boys", ["a girl", "a boy", "a boy"], []),
        ("1other, solo", ["a person"], []),
        ("3+girls, no humans", ["a girl", "a girl", "a girl"], []),
        ("multiple girls, indoors", ["multiple girls"], []),
        ("hatsune_miku_(vocaloid), 1girl", ["a hatsune miku", "a girl"], []),
    ],
    "what pages and settings leave": [
        ("a cat left of a dog, steps: 20, cfg: 7", ["a cat", "a dog"], ["0 left of 1"]),
        ("a cat, a dog, Sampler: Euler", ["a cat", "a dog"], None),
        ("<s> a cat left of a dog </s>", ["a cat", "a dog"], ["0 left of 1"]),
        ("a <b>red</b> cat &amp; a dog", ["a red cat", "a dog"], []),
        ("1girl, :d, ^_^, holding cat", ["a girl", "a cat"], ["1 held by 0"]),
        ("a :smile: cat", ["a cat"], []),
    ],
    "what separates parts": [
        ("tree ADDCOL cat", ["a tree", "a cat"], []),
        ("tree ADDROW cat ADDROW dog", ["a tree", "a cat", "a dog"], []),
        ("a park, trees ADDBASE a cat ADDCOL a dog", ["a cat", "a dog"], []),
        ("two cats ADDCOMM a black cat BREAK a white cat", ["a black cat", "a white cat"], []),
        ("a cat AND a dog :1.2", ["a cat", "a dog"], []),
        ("a cat AND a dog :-1 AND a bird", ["a cat", "a bird"], []),
        ("A CAT AND A DOG", ["a cat", "a dog"], []),
        ("cat | dog", ["a cat", "a dog"], []),
        ("cat::2 dog::1", ["a cat", "a dog"], []),
        ("a cat::2 a dog::-0.5", ["a cat"], []),
        ("a cat [SEP] a dog", ["a cat", "a dog"], []),
        ("a cat COUPLE MASK(0 0.5) a dog", ["a cat", "a dog"], []),
        ('("a cat", "a dog").and()', ["a cat", "a dog"], []),
    ],
    "separators among commas and lines": [
        ("a cat,BREAK,a dog", ["a cat", "a dog"], []),
        ("a cat\nBREAK\na dog", ["a cat", "a dog"], []),
        ("(a cat)AND(a dog)", ["a cat", "a dog"], []),
        ("2girls, multiple girls BREAK 1girl, brown hair BREAK 1girl, white_hair", GIRLS, []),
        ("score_9,score_8_up,1girl,brown_hair", GIRLS[:1], []),
    ],
    "weights": [
        ("(a cat:1.3) left of a dog:0.8", ["a cat", "a dog"], ["0 left of 1"]),
        ("a cat++ next to a (dog)-- and a (bird)1.3", ["a cat", "a dog", "a bird"], None),
        ("a cat- left of a (dog)+", ["a cat", "a dog"], ["0 left of 1"]),
        ("((a cat)) left of {{a dog}}", ["a cat", "a dog"], ["0 left of 1"]),
        ("1.5::a cat::, 0.5::a dog::", ["a cat", "a dog"], []),
        ("((a (red:1.1) cat:1.3) left of a dog", ["a red cat", "a dog"], ["0 left of 1"]),
        ("(a cat:1.3 left of a dog", ["a cat", "a dog"], ["0 left of 1"]),
    ],
    "one of several": [
        ("a [cat|dog] next to a tree", ["a cat", "a tree"], ["0 next to 1"]),
        ("a [cat:dog:0.3] next to a tree", ["a dog", "a tree"], ["0 next to 1"]),
        ("a [cat:dog:0.8] next to a tree", ["a cat", "a tree"], ["0 next to 1"]),
        ("a [cat:dog:15] next to a tree", ["a cat", "a tree"], ["0 next to 1"]),
        ("a [cat:0.3] next to a [dog::0.8]", ["a cat", "a dog"], ["0 next to 1"]),
        ("a {red|blue} ball left of a {cat|dog}", ["a red ball", "a cat"], ["0 left of 1"]),
        ("{2$$a cat|a dog|a bird}", ["a cat", "a dog"], []),
        ("a {3::cat|1::dog} on a mat", ["a cat", "a mat"], ["0 on 1"]),
        ("a __animal__ next to a __color__ tree", ["an animal", "a tree"], ["0 next to 1"]),
        ("a cat.swap(dog) on a chair", ["a dog", "a chair"], ["0 on 1"]),
        ('("a cat", "a dog").blend(0.7, 0.3)', ["a cat"], []),
    ],
    "brackets that are words": [
        (r"a fox \(animal\) next to a tree", ["a fox", "a tree"], ["0 next to 1"]),
        (r"saber \(fate\), a sword", ["a saber", "a sword"], []),
        (r"a \[red\] ball next to a \(blue\) tree", ["a red ball", "a blue tree"], ["0 next to 1"]),
        (r"a cat \(on the left\) and a dog (on the right)", ["a cat", "a dog"], ["0 left of 1"]),
    ],
    "what is not drawn": [
        ("a cat, <hypernet:x:1>, <easynegative>, embedding:bad.pt", ["a cat"], []),
        ("https://x.y/z.png a cat --ar 3:2 --no a dog, birds --style raw --v 6", ["a cat"], []),
        ("# a dog\na cat // a bird", ["a cat"], []),
        ("a cat /* a dog */ left of a tree", ["a cat", "a tree"], ["0 left of 1"]),
        ("Prompt: a cat\nNegative prompt: a dog\nSteps: 20, Sampler: Euler", ["a cat"], []),
        ("a cat\nSampler: Euler a\nCFG scale: 7", ["a cat"], []),
        ("a cat #cute #art", ["a cat"], []),
    ],
    "quality tags": [
        ("score_9, absurdres, a cat left of a dog", ["a cat", "a dog"], ["0 left of 1"]),
        ("score_8_up, source_anime, rating_safe, a cat left of a dog", ["a cat", "a dog"], None),
        ("best quality, highres, newest, year 2023, artist:x, a cat", ["a cat"], []),
        (
            "a cat, official art, very aesthetic, 8k wallpaper, trending on artstation",
            ["a cat"],
            [],
        ),
        ("masterpiece best quality 1girl solo absurdres", ["a girl"], []),
        ("a safe next to a newest model", ["a safe", "a newest model"], ["0 next to 1"]),
    ],
}


@pytest.mark.parametrize(
    ("text", "phrases", "relations"),
    [pytest.param(*case, id=f"{name}: {case[0]}") for name in CASES for case in CASES[name]],
)
def test_syntax_is_no_words(text: str, phrases: list[str], relations: list[str] | None) -> None:
    found = parse(text)
    assert [thing.phrase for thing in found.objects] == phrases
    if relations is not None:
        assert [f"{r.subject} {r.predicate} {r.object}" for r in found.relations] == relations


@pytest.mark.parametrize(
    ("text", "drawn"),
    [
        ("a cat (on the left), a—dog", "a cat (on the left), a—dog"),
        ("  two\u2028lines ", "  two\u2028lines "),
        ("1girl, brown hair BREAK 1girl, white hair", "1girl, brown hair, 1girl, white hair"),
        ("(a cat:1.3) <lora:x:1> --ar 16:9", "a cat"),
        (r"a fox \(animal\), ((red)) tree", "a fox (animal), red tree"),
        ("a [cat:dog:0.3] and a {red|blue} ball", "a dog and a red ball"),
        ("long_hair, masterpiece", "long_hair, masterpiece"),
        ("a café AND a “dog” :1.2", "a café, a “dog”"),
        ("a cat::2 a dog::-1", "a cat"),
    ],
)
def test_text_encoder_reads_the_words_alone(text: str, drawn: str) -> None:
    assert drawn_text(text) == drawn
    assert drawn_text(drawn) == drawn


def test_spans_index_the_text_with_its_syntax() -> None:
    text = "((a RED cat:1.2)) BREAK <lora:x:1> a big\u00addog, cafe\u0301 table"
    assert [text[slice(*each.span)] for each in parse(text).objects] == [
        "a RED cat",
        "a big\u00addog",
        "cafe\u0301 table",
    ]


@pytest.mark.parametrize("text", ["a " * 30_000, "20 dogs " * 1200, "20 dogs left of " * 400])
def test_too_much_is_refused_in_words(text: str) -> None:
    with pytest.raises(ValueError, match=r"prompt must .* at most"):
        parse(text)
