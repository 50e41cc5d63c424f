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
from stal.layout.predictor import LayoutPredictor
from stal.training.layout import FOLDS, log_probs, modes, target_of
from stal.training.layout_data import LayoutExample, read_nsr1k

RESAMPLES = 2000


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
    sums = torch.stack(list(by_image.values()))  # (pictures, 5)
    generator = torch.Generator("cpu").manual_seed(0)
    picks = torch.randint(len(sums), (RESAMPLES, len(sums)), generator=generator, device="cpu")
    draws = sums[picks].sum(1)  # (RESAMPLES, 5)

    def estimate(*signs: float) -> Estimate:
        each = (draws[:, :4] @ sums.new_tensor(signs)) / draws[:, 4]
        low, high = each.quantile(each.new_tensor([0.025, 0.975])).tolist()
        total = sums.sum(0)
        return Estimate(float((total[:4] @ sums.new_tensor(signs)) / total[4]), low, high)

    return Realism(
        int(sums[:, 4].sum()),
        nll=estimate(1.0, 0.0, 0.0, 0.0),
        gaussian=estimate(0.0, 1.0, 0.0, 0.0),
        gain=estimate(-1.0, 1.0, 0.0, 0.0),
        overlap=estimate(0.0, 0.0, 1.0, 0.0),
        constant=estimate(0.0, 0.0, 0.0, 1.0),
        overlap_gain=estimate(0.0, 0.0, 1.0, -1.0),
    )


def _sums(
    examples: Sequence[LayoutExample], fold: int, predictor: LayoutPredictor
) -> list[tuple[int, Tensor]]:
    """(image, sums over its boxes) of each example of a fold.

    Sums are (5,): -log p, the Gaussian's, the overlap of the likeliest size, that of the mean size,
    and the number of boxes.
    """
    seen = torch.cat([target_of(each) for each in examples if each.image % FOLDS != fold])
    seen = seen[~seen.isnan().any(1)]
    normal = torch.distributions.MultivariateNormal(seen.mean(0), seen.T.cov())
    held = [each for each in examples if each.image % FOLDS == fold]
    ours = log_probs(predictor.network, held)
    found = []
    for example, logs, mode in zip(held, ours, modes(predictor.network, held), strict=True):
        z = target_of(example)
        known = ~z.isnan().any(1)
        real = z[known]
        columns = (
            -real.new_tensor(logs),
            -normal.log_prob(real),
            _overlap(mode[known, 2:], real[:, 2:]),
            _overlap(normal.loc[2:].expand(len(real), 2), real[:, 2:]),
            real.new_ones(len(real)),
        )
        found.append((example.image, torch.stack(columns, dim=1).sum(0)))
    return found


def _overlap(sizes: Tensor, real: Tensor) -> Tensor:
    """Of boxes (n, 2) of log width and log height at one centre: (n,)."""
    shared = torch.minimum(sizes, real).sum(1).exp()
    return shared / (sizes.sum(1).exp() + real.sum(1).exp() - shared)


def realism_table(rows: dict[str, Realism]) -> str:
    """Held-out likelihood and sizes, a row a predictor, all of the same boxes: Markdown."""
    first = next(iter(rows.values()))
    head = [
        *(f"{first.boxes} held-out boxes", "NLL", "gain over one Gaussian"),
        *("overlap of sizes", "gain over the mean size"),
    ]
    lines = [["one Gaussian, the mean size", str(first.gaussian), "-", str(first.constant), "-"]]
    for name, r in rows.items():
        lines.append([name, *map(str, (r.nll, r.gain, r.overlap, r.overlap_gain))])
    return "\n".join(markdown_table(head, lines))
