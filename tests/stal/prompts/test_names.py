"""Abbreviations, numbers in names, line breaks and odd characters."""

import pytest

from stal.prompts import parse

LEFT = (["a red circle", "a blue square"], ["0 left of 1"])

CASES: dict[str, list[tuple[str, list[str], list[str]]]] = {
    "times and prices": [
        ("a cat at 3 o'clock, a dog at 9 o'clock", ["a cat", "a dog"], []),
        ("a clock at 5 o’clock left of a lamp", ["a clock", "a lamp"], ["0 left of 1"]),
        ("a $5 bill on a table", ["a bill", "a table"], ["0 on 1"]),
        ("a €20.50 coin next to a cat.", ["a coin", "a cat"], ["0 next to 1"]),
        ("a Ph.D. student beside a robot", ["a ph.d. student", "a robot"], ["0 next to 1"]),
    ],
    "abbreviations": [
        ("a St. Bernard next to a cat", ["a St. Bernard", "a cat"], ["0 next to 1"]),
        ("two St. Bernards next to a cat", ["a St. Bernard", "a St. Bernard", "a cat"], None),
        ("Mr. Bean next to Mt. Fuji", ["a Mr. Bean", "a Mt. Fuji"], ["0 next to 1"]),
        (
            "Dr. Who's car left of J. R. R. Tolkien",
            ["a Dr. Who", "a car", "a J. R. R. Tolkien"],
            None,
        ),
        ("a U.S. flag next to a tree", ["a U.S. flag", "a tree"], ["0 next to 1"]),
        ("animals, e.g. a cat and a dog", ["animals", "a cat", "a dog"], []),
        ("a cat vs. a dog", ["a cat", "a dog"], []),
        (
            "a cat next to approx. 2 dogs",
            ["a cat", "a dog", "a dog"],
            ["0 next to 1", "0 next to 2"],
        ),
        ("cats, dogs, etc. next to a tree", ["cats", "dogs", "a tree"], None),
        ("Cats, dogs, etc. The cat is on a mat.", ["cats", "dogs", "a mat"], ["0 on 2"]),
        ("a cat with plan B. The cat is on a mat.", ["a cat", "a plan b", "a mat"], None),
        ("The cat sleeps at 5 p.m. The dog is on a mat.", ["a cat", "a dog", "a mat"], ["1 on 2"]),
    ],
    "numbers that count nothing": [
        ("a bottle of No. 5 perfume", ["a bottle of No. 5 perfume"], []),
        ("a no. 7 bus left of a #5 ball", ["a no. 7 bus", "a #5 ball"], ["0 left of 1"]),
        ("a Boeing 747 next to an iPhone 15", ["a boeing 747", "an iphone 15"], ["0 next to 1"]),
        (
            "Boeing 747 plane next to a route 66 sign",
            ["a boeing 747 plane", "a route 66 sign"],
            None,
        ),
        ("a Chanel 5 perfume", ["a chanel 5 perfume"], []),
        ("a car from the 1950s next to a tree", ["a car", "a tree"], ["0 next to 1"]),
        ("R2-D2 next to a 4x4 and a 3.5 inch disk", ["a r2-d2", "a 4x4", "a 3.5 inch disk"], None),
        ("a cat at 5:30pm next to a dog, 16:9", ["a cat", "a dog"], ["0 next to 1"]),
        ("a picture of 64 x 64 tiles", ["64 x 64 tiles"], []),
        ("a 2 m tall man next to a cat", ["a 2 m tall man", "a cat"], ["0 next to 1"]),
    ],
    "numbers that count": [
        ("two cats 3 dogs", ["a cat", "a cat", "a dog", "a dog", "a dog"], []),
        ("Holding 2 cups", ["a cup", "a cup"], []),
        ("a photo 2 cats", ["a photo", "a cat", "a cat"], []),
        ("1,000 dogs", ["1000 dogs"], []),
    ],
    "line breaks": [
        ("a red circle to the left\nof a blue square", *LEFT),
        ("a red circle to the left\r\nof a blue square", *LEFT),
        ("a red circle to the left\rof a\rblue square", *LEFT),
        ("a red\ncircle left\tof a\u2028blue square", *LEFT),
        ("A dog is on a sofa\nA cat is under it", ["a dog", "a sofa", "a cat"], None),
        ("tree\ncat", ["a tree", "a cat"], []),
        ("1girl, solo\nlong hair, blue eyes", ["a girl with long hair and blue eyes"], []),
        ("- a cat\n- a dog\n2. a bird", ["a cat", "a dog", "a bird"], []),
        ("a cat\n\na dog", ["a cat", "a dog"], []),
    ],
    "characters": [
        ("a red\u00a0circle left\u00a0of a\u200b blue square", *LEFT),
        ("a red cir\u00adcle left of a \u200fblue\u200e squ\u2060are", *LEFT),
        ("a red circle\x0bleft\x0cof\x85a\x1cblue\x1esquare", *LEFT),
        ("ａ ｒｅｄ　circle， left of a blue square。", *LEFT),
        ("a red circle — left of a blue square…", *LEFT),
        ("a cafe\u0301 table, ２ cats", ["a café table", "a cat", "a cat"], []),
        ("a 𝐫𝐞𝐝 circle", ["a red circle"], []),
        ("a cat’s bowl", ["a cat", "a bowl"], []),
        ("“a red circle” left of “a blue square”", *LEFT),
    ],
    "words after a place": [
        (
            "the dog on the left with long ears, the cat on the right with short ears",
            ["a dog with long ears", "a cat with short ears"],
            ["0 left of 1"],
        ),
        (
            "the cat at the top with green eyes, the dog in the middle with brown fur,"
            " the bird at the bottom with red wings",
            ["a cat with green eyes", "a dog with brown fur", "a bird with red wings"],
            ["0 above 1", "1 above 2"],
        ),
        (
            "a dog in the foreground with a hat, a man in the background with a beard",
            ["a dog", "a hat", "a man with a beard"],
            ["1 worn by 0", "2 behind 0"],
        ),
        (
            "a man to the left wearing a scarf, a woman to the right with red hair",
            ["a man", "a scarf", "a woman with red hair"],
            ["1 worn by 0", "0 left of 2"],
        ),
        (
            "a dog on the left with a hat and a cat on the right with a scarf",
            ["a dog", "a hat", "a cat", "a scarf"],
            ["1 worn by 0", "3 worn by 2", "0 left of 2"],
        ),
        (
            "the cat on top with a red hat, the dog below with a blue hat",
            ["a cat", "a red hat", "a dog", "a blue hat"],
            None,
        ),
        (
            "the one on the left is a dog with long ears, the one on the right is a cat",
            ["a dog with long ears", "a cat"],
            ["0 left of 1"],
        ),
    ],
}


@pytest.mark.parametrize(
    ("text", "phrases", "relations"),
    [pytest.param(*case, id=f"{name}: {case[0]!r}") for name in CASES for case in CASES[name]],
)
def test_wording_gives_objects_and_relations(
    text: str, phrases: list[str], relations: list[str] | None
) -> None:
    found = parse(text)
    assert [thing.phrase for thing in found.objects] == phrases
    if relations is not None:
        assert [f"{r.subject} {r.predicate} {r.object}" for r in found.relations] == relations
