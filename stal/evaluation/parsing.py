"""How much of what a prompt says the parser finds, on labelled sets of prompts.

    score_table({"gpt": score(read_gpt(path))})

Of each set: objects found; relations found where both objects are (given found) and out of all
(end to end); relations that hold between the centres of the boxes that `stal.layout.place` gives,
which may be by chance; and prompts of which everything is right.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, fields

from stal.echo import markdown_table
from stal.evaluation.agreement import candidates, lies, states
from stal.evaluation.intervals import share_cell
from stal.evaluation.labelled import Labelled
from stal.layout import place
from stal.prompts import parse


@dataclass
class Score:
    """Counts of one kind of prompt.

    Attributes:
        prompts, right: prompts, and those of which everything is found.
        objects, objects_found: labelled objects, and those that the parser found.
        relations: labelled relations.
        relations_possible: of those, the ones whose two objects are found.
        relations_found: of those, the ones that are read or follow from what is read.
        relations_placed: of all, the ones that hold between the boxes of `stal.layout.place`.
        failures: (kind of failure, what, prompt).
    """

    prompts: int = 0
    right: int = 0
    objects: int = 0
    objects_found: int = 0
    relations: int = 0
    relations_possible: int = 0
    relations_found: int = 0
    relations_placed: int = 0
    failures: list[tuple[str, str, str]] = field(default_factory=list)


def score(
    cases: Iterable[Labelled], *, loosely: bool = False, engine: str = "grammar"
) -> dict[str, Score]:
    """Parses every prompt; a score by kind.

    Args:
        cases: what `read_gpt`, `read_spatial` or `read_captions` gives.
        loosely: match objects as NSR-1K does (`resembles`) instead of by noun and attributes.
        engine: of `stal.prompts.parse`.

    Raises:
        ImportError, ValueError: the engine cannot be had.
    """
    scores: dict[str, Score] = {}
    for case in cases:
        found = parse(case.prompt, engine=engine)
        boxes = [placed.box for placed in place(found).objects]
        total = scores.setdefault(case.kind, Score())
        failures = []
        names = {*case.objects}.union(*((first, second) for first, _, second in case.relations))
        named = {name: candidates(name, found.objects, loosely=loosely) for name in names}
        for name, wanted in Counter(case.objects).items():
            total.objects += wanted
            here = min(wanted, len(named[name]))
            total.objects_found += here
            if here < wanted:
                failures.append(("object", name))
        for first, predicate, second in case.relations:
            pairs = [(i, j) for i in named[first] for j in named[second] if i != j]
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


def score_counting(cases: Iterable[Labelled], *, engine: str = "grammar") -> dict[str, Score]:
    """NSR-1K's counting rule: a prompt is right if every class has its exact number of objects.

    A predicted noun belongs to the class that contains it or is contained in it. In comparisons
    ("a few dogs, more than ...") the first number must be exact and the second on the right side.
    Here `objects` counts instances, `objects_found` those that are there.

    Args:
        cases: what `read_counting` gives.
        engine: of `stal.prompts.parse`.

    Returns:
        a score by kind.
    """
    scores: dict[str, Score] = {}
    for case in cases:
        found = parse(case.prompt, engine=engine)
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


def score_table(scores: dict[str, dict[str, Score]]) -> str:
    """The scores of several sets as a Markdown table; a set of several kinds has a total."""
    head = [
        *("set", "kind", "objects", "relations, given found", "relations, end to end"),
        *("placed", "prompts right"),
    ]
    lines = []
    for name, kinds in scores.items():
        rows = list(kinds.items())
        if len(rows) > 1:
            rows.append(("all", summed(kinds.values())))
        for kind, s in rows:
            cells = [
                share_cell(s.objects_found, s.objects),
                share_cell(s.relations_found, s.relations_possible),
                share_cell(s.relations_found, s.relations),
                share_cell(s.relations_placed, s.relations),
                share_cell(s.right, s.prompts),
            ]
            lines.append([name, kind, *cells])
    return "\n".join(markdown_table(head, lines))


def summed(scores: Iterable[Score]) -> Score:
    """The counts of several kinds together, and all their failures."""
    total = Score()
    for part in scores:
        for column in fields(Score):
            setattr(total, column.name, getattr(total, column.name) + getattr(part, column.name))
    return total
