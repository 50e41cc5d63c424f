"""How much of what a prompt says `stal.prompts` finds, on labelled sets of prompts.

    python -m stal.evaluation.layout --gpt gpt_dev.txt --nsr1k nsr1k_spatial_train.json \\
        --counting nsr1k_counting_dev.json --captions vsr_dev.txt --captions t2i_spatial_train.txt

For each set: objects found; relations found where both objects are (given found) and out of all
(end to end); relations that hold between the centres of the boxes that `stal.layout.place` gives,
which may be by chance; and prompts of which everything is right. Intervals are exact
(Clopper-Pearson), 95%.

Formats:
    gpt: blocks of `Objects: a, b`, `Relation: a left of b, ...`, `Sentence: ...`.
    nsr1k, counting: the JSON lists of NSR-1K (LayoutGPT, arXiv 2305.15393).
    captions: a line each, either "the A is R the B" (VSR) or "a A R a B" (T2I-CompBench), where R
        is one of `WORDINGS`; other lines are not labelled and are passed over.
"""

from __future__ import annotations

import difflib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated

import typer

from stal.layout import Box, place
from stal.prompts import Description, Object, parse
from stal.relations import GEOMETRY

# Relations of one-relation captions -> predicate.
WORDINGS = {
    "left of": "left of",
    "on the left of": "left of",
    "to the left of": "left of",
    "at the left side of": "left of",
    "right of": "right of",
    "on the right of": "right of",
    "to the right of": "right of",
    "at the right side of": "right of",
    "above": "above",
    "on the top of": "above",
    "on top of": "above",
    "below": "below",
    "under": "below",
    "on the bottom of": "below",
    "next to": "next to",
    "near": "next to",
    "on side of": "next to",
    "in front of": "in front of",
    "behind": "behind",
    "hidden by": "behind",
}
_NSR1K = {"left": "left of", "right": "right of", "top": "above", "bottom": "below"}
_INVERSE = {"in front of": "behind", "behind": "in front of"}
_SAME = {"television": "tv", "hair dryer": "hair drier", "hairdryer": "hair drier", "sofa": "couch"}


@dataclass(frozen=True)
class Labelled:
    """A prompt and what is known of it.

    Attributes:
        prompt: the text.
        objects: names of objects, e.g. "silver bed".
        relations: (name, predicate, name).
        counts: (name, number) of all objects of a class, where numbers are what is labelled.
        kind: the part of the set, e.g. "3 objects" or "natural".
    """

    prompt: str
    objects: tuple[str, ...]
    relations: tuple[tuple[str, str, str], ...] = ()
    counts: tuple[tuple[str, int], ...] = ()
    kind: str = ""


def read_gpt(path: Path) -> list[Labelled]:
    """Blocks of `Objects:`, `Relation:`, `Sentence:`; the kind is the number of objects.

    Raises:
        ValueError: a block lacks one of the three; the message names its line.
    """
    cases = []
    line = 1
    for block in re.split(r"\n(?=\s*\n)", path.read_text(encoding="utf-8")):
        if block.strip():
            parts = dict(re.findall(r"^(Objects|Relation|Sentence): *(.*)$", block, re.MULTILINE))
            if len(parts) != 3:
                first = line + len(block) - len(block.lstrip())
                raise ValueError(
                    f"{path} must consist of blocks of Objects, Relation and Sentence,"
                    f" got {sorted(parts)} near line {first}"
                )
            names = tuple(name.strip() for name in parts["Objects"].split(","))
            relations = tuple(_split(text, path) for text in parts["Relation"].split(","))
            cases.append(
                Labelled(parts["Sentence"], names, relations, kind=f"{len(names)} objects")
            )
        line += block.count("\n") + 1
    return cases


def _split(text: str, path: Path) -> tuple[str, str, str]:
    found = re.fullmatch(r"(.+?) (left of|right of|above|below) (.+)", text.strip())
    if found is None:
        raise ValueError(f"{path} must state relations as `A left of B`, got {text.strip()!r}")
    return found[1], found[2], found[3]


def read_nsr1k(path: Path) -> list[Labelled]:
    """NSR-1K's spatial set; the kind is "template" or "natural".

    Raises:
        ValueError: not such a file.
    """
    cases = []
    for item in _read_list(path, ("prompt", "obj1", "obj2", "relation", "type")):
        names = (item["obj1"][0], item["obj2"][0])
        predicate = _NSR1K.get(item["relation"], item["relation"])
        cases.append(
            Labelled(item["prompt"], names, ((names[0], predicate, names[1]),), kind=item["type"])
        )
    return cases


def read_counting(path: Path) -> list[Labelled]:
    """NSR-1K's counting set; the kind is its sub-type.

    Raises:
        ValueError: not such a file.
    """
    cases = []
    for item in _read_list(path, ("prompt", "num_object", "sub-type")):
        counts = tuple((name, int(number)) for name, number in item["num_object"])
        names = tuple(name for name, _ in counts)
        cases.append(Labelled(item["prompt"], names, (), counts, item["sub-type"]))
    return cases


def _read_list(path: Path, keys: Sequence[str]) -> list[dict]:
    try:
        items = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} must be JSON, got {error.msg} in line {error.lineno}") from None
    for index, item in enumerate(items if isinstance(items, list) else [None]):
        if not isinstance(item, dict) or not set(keys) <= item.keys():
            raise ValueError(f"{path} must be a list of objects with {keys}, got item {index}")
    return items


def read_captions(path: Path) -> list[Labelled]:
    """One-relation captions, a line each; lines of another form are left out."""
    wordings = "|".join(sorted(map(re.escape, WORDINGS), key=len, reverse=True))
    form = re.compile(
        rf"(?:the|an?) (.+?)(?: is)? ({wordings}) (?:the|an?) (.+?)\.?", re.IGNORECASE
    )
    cases = []
    for line in path.read_text(encoding="utf-8").splitlines():
        found = form.fullmatch(line.strip())
        if found is not None:
            first, wording, second = found[1], found[2].lower(), found[3]
            relation = (first, WORDINGS[wording], second)
            cases.append(Labelled(line.strip(), (first, second), (relation,), kind=wording))
    return cases


@dataclass
class Score:
    """Counts of one kind of prompt, and its failures by kind of failure."""

    prompts: int = 0
    right: int = 0
    objects: int = 0
    objects_found: int = 0
    relations: int = 0
    relations_possible: int = 0
    relations_found: int = 0
    relations_placed: int = 0
    failures: list[tuple[str, str, str]] = field(default_factory=list)


def matches(name: str, thing: Object) -> bool:
    """Whether a parsed object is the labelled one: same noun, and every attribute of the label."""
    words, noun = _same(name), _same(thing.noun)
    have = _same(thing.phrase).split()
    return (words == noun or words.endswith(f" {noun}")) and set(words.split()) <= set(have)


def _same(name: str) -> str:
    name = name.lower()
    for word, other in _SAME.items():
        name = re.sub(rf"\b{word}\b", other, name)
    return name


def resembles(name: str, things: Sequence[Object]) -> list[int]:
    """NSR-1K's own rule: the closest noun by `difflib`, and all objects of that noun."""
    close = difflib.get_close_matches(name, [thing.noun for thing in things])[:1]
    return [index for index, thing in enumerate(things) if thing.noun in close]


def states(found: Description, i: int, predicate: str, j: int) -> bool:
    """Whether "i predicate j" is stated or follows from what is stated.

    "a left of b" follows from "b right of a", and from a chain of these; "a next to b" from either
    side; of what is between two things, the first lies to the left.
    """
    if i == j:
        return False
    if predicate in ("left of", "right of", "above", "below"):
        first, second = (i, j) if predicate in ("left of", "above") else (j, i)
        following = _orders(found)[predicate in ("above", "below")]
        seen, stack = {first}, [first]
        while stack:
            for k in following.get(stack.pop(), set()) - seen:
                seen.add(k)
                stack.append(k)
        return second in seen
    stated = {(r.subject, r.predicate, r.object) for r in found.relations}
    if predicate == "next to":
        names = ("next to", "left of", "right of", "between", "touching")
        return any((a, name, b) in stated for name in names for a, b in ((i, j), (j, i)))
    return (i, predicate, j) in stated or (j, _INVERSE[predicate], i) in stated


def _orders(found: Description) -> tuple[dict[int, set[int]], dict[int, set[int]]]:
    """What comes directly after what along x and y."""
    after: tuple[dict[int, set[int]], dict[int, set[int]]] = ({}, {})
    flanked: set[int] = set()
    for r in found.relations:
        geometry = GEOMETRY[r.predicate]
        for axis, sign in enumerate((geometry.dx, geometry.dy)):
            if sign:
                first, second = (r.subject, r.object) if sign < 0 else (r.object, r.subject)
                after[axis].setdefault(first, set()).add(second)
        if r.predicate == "between":
            first, second = (r.subject, r.object) if r.subject in flanked else (r.object, r.subject)
            after[0].setdefault(first, set()).add(second)
            flanked.add(r.subject)
    return after


def lies(a: Box, predicate: str, b: Box) -> bool:
    """Whether a relation holds between the centres of two boxes.

    "next to" holds if the centres lie beside each other within 45 degrees, as NSR-1K has it. Depth
    cannot be seen from boxes: "behind" and "in front of" always hold.
    """
    dx = (a[0] + a[2]) - (b[0] + b[2])
    dy = (a[1] + a[3]) - (b[1] + b[3])
    if predicate == "next to":
        return abs(dx) > abs(dy)
    geometry = GEOMETRY[predicate]
    return dx * geometry.dx > 0 if geometry.dx else dy * geometry.dy > 0 if geometry.dy else True


def score(cases: Iterable[Labelled], *, loosely: bool = False) -> dict[str, Score]:
    """Parses every prompt; a score by kind.

    Args:
        cases: what `read_gpt`, `read_nsr1k` or `read_captions` gives.
        loosely: match objects as NSR-1K does (`resembles`) instead of by noun and attributes.
    """
    scores: dict[str, Score] = {}
    for case in cases:
        found = parse(case.prompt)
        boxes = [placed.box for placed in place(found).objects]
        total = scores.setdefault(case.kind, Score())
        failures = []

        def candidates(name: str, found: Description = found) -> list[int]:
            if loosely:
                return resembles(name, found.objects)
            return [i for i, thing in enumerate(found.objects) if matches(name, thing)]

        for name, wanted in Counter(case.objects).items():
            total.objects += wanted
            here = min(wanted, len(candidates(name)))
            total.objects_found += here
            if here < wanted:
                failures.append(("object", name))
        for first, predicate, second in case.relations:
            pairs = [(i, j) for i in candidates(first) for j in candidates(second) if i != j]
            total.relations += 1
            total.relations_possible += bool(pairs)
            total.relations_placed += any(lies(boxes[i], predicate, boxes[j]) for i, j in pairs)
            if any(states(found, i, predicate, j) for i, j in pairs):
                total.relations_found += 1
            elif pairs:
                opposite = predicate != "next to" and any(
                    states(found, j, predicate, i) for i, j in pairs
                )
                kind = "relation reversed" if opposite else "relation"
                failures.append((kind, f"{first} {predicate} {second}"))
            else:
                failures.append(("relation of a missing object", f"{first} {predicate} {second}"))
        total.prompts += 1
        total.right += not failures
        total.failures += [(kind, what, case.prompt) for kind, what in failures]
    return scores


def score_counting(cases: Iterable[Labelled]) -> dict[str, Score]:
    """NSR-1K's counting rule: a prompt is right if every class has its exact number of objects.

    A predicted noun belongs to the class that contains it or is contained in it. In comparisons
    ("a few dogs, more than ...") the first number must be exact and the second on the right side.
    Here `objects` counts instances, `objects_found` those that are there.
    """
    scores: dict[str, Score] = {}
    for case in cases:
        found = parse(case.prompt)
        total = scores.setdefault(case.kind, Score())
        numbers = [
            sum(name in thing.noun or thing.noun in name for thing in found.objects)
            for name, _ in case.counts
        ]
        wanted = [number for _, number in case.counts]
        if case.kind == "comparison":
            sign = (wanted[0] > wanted[1]) - (wanted[0] < wanted[1])
            right = numbers[0] == wanted[0] and sign == (
                (numbers[0] > numbers[1]) - (numbers[0] < numbers[1])
            )
        else:
            right = numbers == wanted
            total.objects += sum(wanted)
            total.objects_found += sum(map(min, numbers, wanted))
        total.prompts += 1
        total.right += right
        if not right:
            got = ", ".join(
                f"{name} {number}" for (name, _), number in zip(case.counts, numbers, strict=True)
            )
            total.failures.append(("count", got, case.prompt))
    return scores


def interval(successes: int, trials: int) -> tuple[float, float]:
    """The exact (Clopper-Pearson) 95% interval of a share."""
    from scipy.stats import binomtest

    if trials == 0:
        return 0.0, 1.0
    low, high = binomtest(successes, trials).proportion_ci(method="exact")
    return float(low), float(high)


def _share(successes: int, trials: int) -> str:
    if trials == 0:
        return "-"
    low, high = interval(successes, trials)
    return f"{successes}/{trials} {successes / trials:.1%} [{low:.1%}, {high:.1%}]"


def table(scores: dict[str, dict[str, Score]]) -> str:
    """The scores of several sets as a Markdown table; a set of several kinds has a total."""
    lines = [
        "| set | kind | objects | relations, given found | relations, end to end | placed"
        " | prompts right |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, kinds in scores.items():
        rows = list(kinds.items())
        if len(rows) > 1:
            rows.append(("all", _sum(kinds.values())))
        for kind, s in rows:
            cells = [
                _share(s.objects_found, s.objects),
                _share(s.relations_found, s.relations_possible),
                _share(s.relations_found, s.relations),
                _share(s.relations_placed, s.relations),
                _share(s.right, s.prompts),
            ]
            lines.append(f"| {name} | {kind} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _sum(scores: Iterable[Score]) -> Score:
    total = Score()
    for part in scores:
        for column in fields(Score):
            setattr(total, column.name, getattr(total, column.name) + getattr(part, column.name))
    return total


_Paths = Annotated[list[Path] | None, typer.Option(exists=True, dir_okay=False)]


def main(
    gpt: _Paths = None,
    nsr1k: _Paths = None,
    counting: _Paths = None,
    captions: _Paths = None,
    failures: Annotated[int, typer.Option(help="How many failures to list of a set.")] = 0,
) -> None:
    """Scores the prompt parser on labelled sets and lists what it misses by kind."""
    readers: list[tuple[list[Path] | None, Callable[[Path], dict[str, Score]]]] = [
        (gpt, lambda path: score(read_gpt(path))),
        (nsr1k, lambda path: score(read_nsr1k(path), loosely=True)),
        (counting, lambda path: score_counting(read_counting(path))),
        (captions, lambda path: score(read_captions(path))),
    ]
    scores = {path.name: read(path) for paths, read in readers for path in paths or []}
    if not scores:
        raise typer.BadParameter("name at least one set, e.g. --gpt FILE")
    print(table(scores))
    for name, kinds in scores.items():
        found = _sum(kinds.values()).failures
        for kind, number in Counter(kind for kind, _, _ in found).most_common():
            print(f"\n{name}: {kind}: {number}")
            for _, what, prompt in [item for item in found if item[0] == kind][:failures]:
                print(f"    {what} | {prompt}")


if __name__ == "__main__":
    typer.run(main)
