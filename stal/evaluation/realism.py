"""How likely real boxes are to predictors that did not see them, and how well sizes agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from stal.echo import markdown_table
from stal.evaluation.intervals import Estimate
from stal.evaluation.placing import load_folds
from stal.layout.network import Mixture, Network, boxes_from, normal_form, tokens_of
from stal.layout.predictor import LayoutPredictor, deviations_of
from stal.layout.projection import project
from stal.layout.stage import parts_of
from stal.training.layout import FOLDS, log_probs, modes, target_of
from stal.training.layout_data import LayoutExample, read_nsr1k

RESAMPLES = 2000
_COLUMNS = ("nll", "projected", "cost", "gaussian", "overlap", "constant")


@dataclass(frozen=True)
class Realism:
    """Real boxes under predictors that did not see them.

    Attributes:
        boxes: how many.
        nll: mean -log p a box, of (cx, cy, log w, log h), and its 95% interval.
        projected: the same where each density is moved as the projection moves its box.
        cost: mean log p lost by moving the boxes that the predictor begins with.
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
    projected: Estimate
    cost: Estimate
    gaussian: Estimate
    gain: Estimate
    overlap: Estimate
    constant: Estimate
    overlap_gain: Estimate


def realism_of(paths: Sequence[Path], folds: Path) -> Realism:
    """Scores NSR-1K's boxes by the predictor of the fold that each was held out of.

    Args:
        paths: files in NSR-1K's format.
        folds: see `load_folds`.

    Raises:
        ValueError: a folder is of another fold, or a file is not of that format.
        OSError: a predictor cannot be read.
    """
    examples = [each for path in paths for each in read_nsr1k(path)]
    by_image: dict[int, Tensor] = {}
    for fold, predictor in enumerate(load_folds(folds)):
        for image, sums in _sums(examples, fold, predictor):
            by_image[image] = by_image.get(image, 0) + sums
    sums = torch.stack(list(by_image.values()))  # (pictures, 7)
    generator = torch.Generator("cpu").manual_seed(0)
    picks = torch.randint(len(sums), (RESAMPLES, len(sums)), generator=generator, device="cpu")
    draws = sums[picks].sum(1)  # (RESAMPLES, 7)

    def estimate(**signs: float) -> Estimate:
        by = sums.new_tensor([signs.get(name, 0.0) for name in _COLUMNS])
        each = (draws[:, :-1] @ by) / draws[:, -1]
        low, high = each.quantile(each.new_tensor([0.025, 0.975])).tolist()
        total = sums.sum(0)
        return Estimate(float((total[:-1] @ by) / total[-1]), low, high)

    return Realism(
        int(sums[:, -1].sum()),
        nll=estimate(nll=1.0),
        projected=estimate(projected=1.0),
        cost=estimate(cost=1.0),
        gaussian=estimate(gaussian=1.0),
        gain=estimate(nll=-1.0, gaussian=1.0),
        overlap=estimate(overlap=1.0),
        constant=estimate(constant=1.0),
        overlap_gain=estimate(overlap=1.0, constant=-1.0),
    )


def _sums(
    examples: Sequence[LayoutExample], fold: int, predictor: LayoutPredictor
) -> list[tuple[int, Tensor]]:
    """(image, sums over its boxes) of each example of a fold.

    Sums are (7,): those of `_COLUMNS` and the number of boxes.
    """
    seen = torch.cat([target_of(each) for each in examples if each.image % FOLDS != fold])
    seen = seen[~seen.isnan().any(1)]
    normal = torch.distributions.MultivariateNormal(seen.mean(0), seen.T.cov())
    held = [each for each in examples if each.image % FOLDS == fold]
    ours = log_probs(predictor.network, held)
    found = []
    likely = modes(predictor.network, held)
    for example, logs, mode in zip(held, ours, likely, strict=True):
        z = target_of(example)
        known = ~z.isnan().any(1)
        real = z[known]
        mixture, before, after = projected(predictor.network, example)
        shifted = mixture.log_prob((z.nan_to_num() - (after - before))[None])[0, known]
        cost = (mixture.log_prob(before[None]) - mixture.log_prob(after[None]))[0, known]
        columns = (
            -real.new_tensor(logs),
            -shifted,
            cost,
            -normal.log_prob(real),
            _overlap(mode[known, 2:], real[:, 2:]),
            _overlap(normal.loc[2:].expand(len(real), 2), real[:, 2:]),
            real.new_ones(len(real)),
        )
        found.append((example.image, torch.stack(columns, dim=1).sum(0)))
    return found


@torch.inference_mode()
def projected(network: Network, example: LayoutExample) -> tuple[Mixture, Tensor, Tensor]:
    """The density of an example's boxes, and the z that a layout begins and ends with, (n, 4)."""
    tokens = tokens_of(
        example.phrases,
        example.relations,
        aspect=example.aspect,
        scene=example.scene,
        sides=example.sides,
    )
    mixture = network([tokens])
    before = mixture.scene()[0]
    boxes = project(
        boxes_from(before),
        example.relations,
        aspect=example.aspect,
        sides=example.sides,
        parts=parts_of(example.phrases, example.relations, example.scene),
        deviations=deviations_of(mixture)[0],
    )
    return mixture, before, normal_form(boxes)


def _overlap(sizes: Tensor, real: Tensor) -> Tensor:
    """Of boxes (n, 2) of log width and log height at one centre: (n,)."""
    shared = torch.minimum(sizes, real).sum(1).exp()
    return shared / (sizes.sum(1).exp() + real.sum(1).exp() - shared)


def realism_table(rows: dict[str, Realism]) -> str:
    """Held-out likelihood and sizes, a row a predictor, all of the same boxes: Markdown."""
    first = next(iter(rows.values()))
    head = [
        *(f"{first.boxes} held-out boxes", "NLL", "gain over one Gaussian"),
        *("NLL after projection", "log p that projection costs"),
        *("overlap of sizes", "gain over the mean size"),
    ]
    lines = [["one Gaussian, the mean size", str(first.gaussian), "-", "-", "-"]]
    lines[0] += [str(first.constant), "-"]
    for name, r in rows.items():
        likelihood = (r.nll, r.gain, r.projected, r.cost)
        lines.append([name, *map(str, (*likelihood, r.overlap, r.overlap_gain))])
    return "\n".join(markdown_table(head, lines))
