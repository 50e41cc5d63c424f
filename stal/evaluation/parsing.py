"""How much of what a prompt says is found and placed, on labelled sets of prompts.

    stal evaluate-layout --gpt gpt_dev.txt --nsr1k nsr1k_spatial_train.json \\
        --counting nsr1k_counting_dev.json --captions vsr_dev.txt --captions t2i_spatial_train.txt

For each set: objects found; relations found where both objects are (given found) and out of all
(end to end); relations that hold between the centres of the boxes that `stal.layout.place` gives,
which may be by chance; and prompts of which everything is right. Intervals are exact
(Clopper-Pearson), 95%.

A second table compares ways of placing by the labelled relations that hold between the boxes, end
to end: random boxes, these projected (no learning), the predictor as it is and projected. NSR-1K's
sets are scored by their own rule (`in_cone`, the first object that resembles the name).

With --folds DIR, where `stal train-layout --fold K --output DIR/K` wrote K = 0 .. 4, every picture
is placed by the predictor that was not trained on it (its id modulo 5 is K; prompts of no picture
are spread alike), and a third table has the likelihood of boxes that training did not see, against
one Gaussian fitted to the others, and how well sizes agree. --ablation DIR are such folders of
`stal train-layout --no-relative`.

Formats:
    gpt: blocks of `Objects: a, b`, `Relation: a left of b, ...`, `Sentence: ...`.
    nsr1k, counting: the JSON lists of NSR-1K (LayoutGPT, arXiv 2305.15393).
    captions: a line each, either "the A is R the B" (VSR) or "a A R a B" (T2I-CompBench), where R
        is one of `WORDINGS`; other lines are not labelled and are passed over.
"""

from __future__ import annotations

import difflib
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stal.layout import Box, Layout, PlacedObject, place
from stal.prompts import Description, Object, parse
from stal.relations import GEOMETRY

if TYPE_CHECKING:
    from stal.layout.predictor import LayoutPredictor

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
        image: id of the picture that the prompt describes; 0 if there is none.
    """

    prompt: str
    objects: tuple[str, ...]
    relations: tuple[tuple[str, str, str], ...] = ()
    counts: tuple[tuple[str, int], ...] = ()
    kind: str = ""
    image: int = 0


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
        relations = ((names[0], predicate, names[1]),)
        image = int(item.get("image_id", 0))
        cases.append(Labelled(item["prompt"], names, relations, kind=item["type"], image=image))
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
    stated = set(found.statements)
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


def in_cone(a: Box, predicate: str, b: Box) -> bool:
    """NSR-1K's rule: a lies within 45 degrees of where it should, in fractions of the canvas."""
    dx = (a[0] + a[2]) - (b[0] + b[2])
    dy = (a[1] + a[3]) - (b[1] + b[3])
    if predicate == "next to":
        return abs(dx) > abs(dy)
    geometry = GEOMETRY[predicate]
    if geometry.dx:
        return dx * geometry.dx > abs(dy)
    return dy * geometry.dy > abs(dx) if geometry.dy else True


# Layouts of prompts, given also the ids of the pictures that they describe.
Placer = Callable[[Sequence[Description], Sequence[int]], list[Layout]]


def placers(
    model: Path | None,
    *,
    folds: Path | None = None,
    ablation: Path | None = None,
    seed: int = 0,
) -> dict[str, Placer]:
    """Ways of placing, by name: baselines without learning, then predictors.

    Args:
        model: folder of one predictor for all prompts; the bundled one if None.
        folds, ablation: folders of predictors by fold, used instead of it; see `load_folds`.
        seed: of random boxes.

    Raises:
        ValueError: model and folds are both given, or a folder is of another fold.
    """
    from stal.layout.predictor import LayoutPredictor
    from stal.layout.projection import project

    if model is not None and folds is not None:
        raise ValueError(f"model must not be given with folds, got {model}")
    predictors = [LayoutPredictor.load(model)] if folds is None else load_folds(folds)
    others = [] if ablation is None else load_folds(ablation)

    def scattered(found: Description, *, projected: bool) -> Layout:
        rng = random.Random(f"{seed} {found.text}")
        boxes: list[Box] = []
        for _ in found.objects:
            w, h = rng.uniform(0.1, 0.5), rng.uniform(0.1, 0.5)
            x, y = rng.uniform(0, 1 - w), rng.uniform(0, 1 - h)
            boxes.append((x, y, x + w, y + h))
        relations = found.statements
        if projected:
            boxes = project(boxes, relations)
        objects = (
            PlacedObject(o.phrase, o.noun, b) for o, b in zip(found.objects, boxes, strict=True)
        )
        return Layout(found.text, tuple(objects), relations)

    def predicted(by_fold: Sequence[LayoutPredictor], *, projected: bool) -> Placer:
        def way(many: Sequence[Description], images: Sequence[int]) -> list[Layout]:
            out: dict[int, Layout] = {}
            for fold, predictor in enumerate(by_fold):
                mine = [k for k, image in enumerate(images) if image % len(by_fold) == fold]
                found = predictor.predict([many[k] for k in mine], projected=projected)
                out.update((k, each[0]) for k, each in zip(mine, found, strict=True))
            return [out[k] for k in range(len(many))]

        return way

    ways: dict[str, Placer] = {
        "random boxes": lambda many, _: [scattered(each, projected=False) for each in many],
        "projection alone": lambda many, _: [scattered(each, projected=True) for each in many],
        "grid (`place`)": lambda many, _: [place(each) for each in many],
    }
    if others:
        ways["no relative objective, not projected"] = predicted(others, projected=False)
        ways["no relative objective"] = predicted(others, projected=True)
    ways["predictor, not projected"] = predicted(predictors, projected=False)
    ways["predictor"] = predicted(predictors, projected=True)
    return ways


def load_folds(folder: Path) -> list[LayoutPredictor]:
    """The predictors in folder/0 .. folder/4, each of which `train-layout --fold` wrote.

    Raises:
        ValueError: a predictor holds out another fold than its folder is named after.
        OSError: one cannot be read.
    """
    from stal.layout.predictor import LayoutPredictor
    from stal.training.layout import FOLDS

    found = []
    for fold in range(FOLDS):
        predictor = LayoutPredictor.load(folder / str(fold))
        if predictor.metadata.get("fold") != str(fold):
            raise ValueError(
                f"{folder / str(fold)} must hold out fold {fold}, got"
                f" {predictor.metadata.get('fold')}: train it with --fold {fold}"
            )
        found.append(predictor)
    return found


def placed(
    cases: Sequence[Labelled], placer: Placer, *, loosely: bool = False, engine: str = "grammar"
) -> dict[str, tuple[int, int]]:
    """By kind of prompt, labelled relations that hold between the boxes, and all of them.

    A relation of an object that was not found does not hold. loosely scores as NSR-1K does.
    """
    counts: dict[str, tuple[int, int]] = {}
    for start in range(0, len(cases), 64):
        part = cases[start : start + 64]
        found = [parse(case.prompt, engine=engine) for case in part]
        # Prompts of no picture are spread over the folds.
        images = [case.image or start + k for k, case in enumerate(part)]
        for case, description, layout in zip(part, found, placer(found, images), strict=True):
            boxes = [each.box for each in layout.objects]
            right = 0
            for first, predicate, second in case.relations:
                if loosely:
                    ends = [resembles(name, description.objects) for name in (first, second)]
                    pairs = [(i, j) for i in ends[0] for j in ends[1] if i != j][:1]
                    right += any(in_cone(boxes[i], predicate, boxes[j]) for i, j in pairs)
                else:
                    ends = [
                        [k for k, thing in enumerate(description.objects) if matches(name, thing)]
                        for name in (first, second)
                    ]
                    pairs = [(i, j) for i in ends[0] for j in ends[1] if i != j]
                    right += any(lies(boxes[i], predicate, boxes[j]) for i, j in pairs)
            old = counts.get(case.kind, (0, 0))
            counts[case.kind] = (old[0] + right, old[1] + len(case.relations))
    return counts


@dataclass(frozen=True)
class Realism:
    """Real boxes under predictors that did not see them.

    Attributes:
        boxes: how many.
        nll: mean -log p a box, of (cx, cy, log w, log h), and its 95% interval.
        gaussian: the same of one Gaussian fitted to the boxes that training saw.
        gain: gaussian - nll, and the interval of this difference, paired by picture.
        overlap: mean overlap (intersection over union at one centre) of the likeliest and the real
            size of a box, and its interval.
        constant: the same of the mean size of the boxes that training saw.
        overlap_gain: overlap - constant, paired likewise.

    Intervals are by bootstrap over pictures.
    """

    boxes: int
    nll: Estimate
    gaussian: Estimate
    gain: Estimate
    overlap: Estimate
    constant: Estimate
    overlap_gain: Estimate


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95% interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def realism(paths: Sequence[Path], folds: Path) -> Realism:
    """Scores NSR-1K's boxes by the predictor of the fold that each was held out of.

    Args:
        paths: files in NSR-1K's format.
        folds: see `load_folds`.

    Raises:
        ValueError: a folder is of another fold.
    """
    import torch
    from torch import Tensor

    from stal.training.layout import FOLDS, log_probs, modes, target_of
    from stal.training.layout_data import read_nsr1k as read_examples

    def overlap(sizes: Tensor, real: Tensor) -> Tensor:
        shared = torch.minimum(sizes, real).sum(1).exp()
        return shared / (sizes.sum(1).exp() + real.sum(1).exp() - shared)

    examples = [each for path in paths for each in read_examples(path)]
    # By picture: sums of -log p, of the Gaussian's, of both overlaps, and the number of boxes.
    by_image: dict[int, Tensor] = {}
    for fold, predictor in enumerate(load_folds(folds)):
        seen = torch.cat([target_of(each) for each in examples if each.image % FOLDS != fold])
        seen = seen[~seen.isnan().any(1)]
        normal = torch.distributions.MultivariateNormal(seen.mean(0), seen.T.cov())
        held = [each for each in examples if each.image % FOLDS == fold]
        ours = log_probs(predictor.network, held)
        for example, logs, mode in zip(held, ours, modes(predictor.network, held), strict=True):
            z = target_of(example)
            known = ~z.isnan().any(1)
            real = z[known]
            columns = (
                -torch.tensor(logs),
                -normal.log_prob(real),
                overlap(mode[known, 2:], real[:, 2:]),
                overlap(normal.loc[2:].expand(len(real), 2), real[:, 2:]),
                torch.ones(len(real)),
            )
            sums = torch.stack(columns, dim=1).sum(0)
            by_image[example.image] = by_image.get(example.image, 0) + sums
    sums = torch.stack(list(by_image.values()))
    generator = torch.Generator().manual_seed(0)
    draws = sums[torch.randint(len(sums), (2000, len(sums)), generator=generator)].sum(1)

    def estimate(*signs: float) -> Estimate:
        each = (draws[:, :4] @ torch.tensor(signs)) / draws[:, 4]
        low, high = each.quantile(torch.tensor([0.025, 0.975])).tolist()
        total = sums.sum(0)
        return Estimate(float((total[:4] @ torch.tensor(signs)) / total[4]), low, high)

    return Realism(
        int(sums[:, 4].sum()),
        nll=estimate(1.0, 0.0, 0.0, 0.0),
        gaussian=estimate(0.0, 1.0, 0.0, 0.0),
        gain=estimate(-1.0, 1.0, 0.0, 0.0),
        overlap=estimate(0.0, 0.0, 1.0, 0.0),
        constant=estimate(0.0, 0.0, 0.0, 1.0),
        overlap_gain=estimate(0.0, 0.0, 1.0, -1.0),
    )


def realism_table(rows: dict[str, Realism]) -> str:
    """Held-out likelihood and sizes, a row a predictor: Markdown."""
    first = next(iter(rows.values()))
    lines = [
        f"| {first.boxes} held-out boxes | NLL | gain over one Gaussian | overlap of sizes"
        " | gain over the mean size |",
        "|---|---|---|---|---|",
        f"| one Gaussian, the mean size | {first.gaussian} | - | {first.constant} | - |",
    ]
    lines += [
        f"| {name} | {r.nll} | {r.gain} | {r.overlap} | {r.overlap_gain} |"
        for name, r in rows.items()
    ]
    return "\n".join(lines)


def score(
    cases: Iterable[Labelled], *, loosely: bool = False, engine: str = "grammar"
) -> dict[str, Score]:
    """Parses every prompt; a score by kind.

    Args:
        cases: what `read_gpt`, `read_nsr1k` or `read_captions` gives.
        loosely: match objects as NSR-1K does (`resembles`) instead of by noun and attributes.
        engine: of `stal.prompts.parse`.
    """
    scores: dict[str, Score] = {}
    for case in cases:
        found = parse(case.prompt, engine=engine)
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


def score_counting(cases: Iterable[Labelled], *, engine: str = "grammar") -> dict[str, Score]:
    """NSR-1K's counting rule: a prompt is right if every class has its exact number of objects.

    A predicted noun belongs to the class that contains it or is contained in it. In comparisons
    ("a few dogs, more than ...") the first number must be exact and the second on the right side.
    Here `objects` counts instances, `objects_found` those that are there.
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


def placement_table(
    sets: Sequence[tuple[str, Sequence[Labelled], bool]],
    ways: dict[str, Placer],
    *,
    engine: str = "grammar",
) -> str:
    """Relations that hold between boxes, end to end, a row a way of placing: Markdown.

    sets are (name, cases, whether to score as NSR-1K does); one of several kinds has a column each
    for "template" and "natural", else one for all.
    """
    cells: dict[str, list[str]] = {way: [] for way in ways}
    head: list[str] = []
    for name, cases, loosely in sets:
        apart = loosely and len({case.kind for case in cases}) > 1
        for way, placer in ways.items():
            counts = placed(cases, placer, loosely=loosely, engine=engine)
            kinds = sorted(counts) if apart else []
            columns = [counts[kind] for kind in kinds] or [
                (sum(a for a, _ in counts.values()), sum(b for _, b in counts.values()))
            ]
            cells[way] += [_share(*column) for column in columns]
        head += [f"{name}, {kind}" for kind in kinds] or [name]
    lines = ["| | " + " | ".join(head) + " |", "|---" * (len(head) + 1) + "|"]
    return "\n".join([*lines, *(f"| {way} | {' | '.join(row)} |" for way, row in cells.items())])


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
    model: Annotated[
        Path | None, typer.Option(help="Folder of a layout predictor; the bundled one if absent.")
    ] = None,
    folds: Annotated[
        Path | None, typer.Option(help="Folder of `train-layout --fold K --output DIR/K`, K 0..4.")
    ] = None,
    ablation: Annotated[
        Path | None, typer.Option(help="The same, trained with --no-relative.")
    ] = None,
    failures: Annotated[int, typer.Option(help="How many failures to list of a set.")] = 0,
    engine: Annotated[
        str, typer.Option(help="How prompts are read: grammar or spacy.")
    ] = "grammar",
) -> None:
    """Scores parser and layout predictor on labelled sets and lists what is missed by kind."""
    readers: list[tuple[list[Path] | None, Callable[[Path], dict[str, Score]]]] = [
        (gpt, lambda path: score(read_gpt(path), engine=engine)),
        (nsr1k, lambda path: score(read_nsr1k(path), loosely=True, engine=engine)),
        (counting, lambda path: score_counting(read_counting(path), engine=engine)),
        (captions, lambda path: score(read_captions(path), engine=engine)),
    ]
    if not (gpt or nsr1k or counting or captions):
        raise typer.BadParameter("name at least one set, e.g. --gpt FILE")
    try:
        parse("", engine=engine)
    except (ImportError, ValueError) as error:
        raise typer.BadParameter(str(error)) from None
    ways = placers(model, folds=folds, ablation=ablation)
    scores = {path.name: read(path) for paths, read in readers for path in paths or []}
    print(table(scores))
    sets = [(path.name, read_gpt(path), False) for path in gpt or []]
    sets += [(path.name, read_nsr1k(path), True) for path in nsr1k or []]
    sets += [(path.name, read_captions(path), False) for path in captions or []]
    print(f"\n{placement_table(sets, ways, engine=engine)}")
    real = [*(nsr1k or []), *(counting or [])]
    named = {"no relative objective": ablation, "predictor": folds}
    held = {name: realism(real, each) for name, each in named.items() if each and real}
    if held:
        print(f"\n{realism_table(held)}")
    for name, kinds in scores.items():
        found = _sum(kinds.values()).failures
        for kind, number in Counter(kind for kind, _, _ in found).most_common():
            print(f"\n{name}: {kind}: {number}")
            for _, what, prompt in [item for item in found if item[0] == kind][:failures]:
                print(f"    {what} | {prompt}")


if __name__ == "__main__":
    typer.run(main)
