"""A learned guess of where the objects of a prompt are: a Gaussian mixture for every box.

    predict(parse("a dog to the left of a bicycle"), aspect=16 / 9)

After the layout predictor of Wu et al. (arXiv 2304.03869): a transformer over object tokens gives
each object a mixture over its box, trained on absolute and on relative positions. Differences: the
phrase encoder is a bag of character n-grams, so that any noun has an embedding and nothing is
downloaded; stated relations are typed edges, which bias attention; the canvas has any aspect ratio;
and `stal.layout.projection` makes what is stated hold. `stal.layout.network` has the density.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from stal import budget
from stal.checked_json import first_line, number, shown, typed
from stal.files import open_regular
from stal.finite import check_finite
from stal.layout.coverage import Box
from stal.layout.grid import place
from stal.layout.layout import Contour, Layout, PlacedObject
from stal.layout.network import (
    Config,
    Mixture,
    Network,
    PhraseEncoder,
    Tokens,
    boxes_from,
    normal_form,
    tokens_of,
)
from stal.layout.projection import project
from stal.layout.stage import Part, parts_of
from stal.prompts import Description
from stal.prompts.things import worn_at
from stal.prompts.words import PEOPLE, singular_noun
from stal.torch_state import undisturbed

BUNDLED = Path(__file__).parents[1] / "assets" / "layout"
_UNEQUAL = 0.5  # of the differences in size within a counted plural, what is kept
_REACH = 0.2  # what is worn at the very top or bottom of somebody is at most so high
WEIGHTS = "layout_predictor.safetensors"
# Larger crowds go to `stal.layout.place`: nothing like them was trained on.
MAX_OBJECTS = 24
# Sides of figures, and how far they are drawn towards this one: the bundled model, which draws over
# boxes that are larger and leaves some of those that are smaller, does best with about a third.
_FIGURE, _TOWARDS = math.log(0.35), 0.6
# Boxes are drawn this many times as often as asked for; the likeliest are kept.
_DRAWS = 4


def _text_encoder(folder: str | os.PathLike[str]) -> PhraseEncoder:
    from stal.layout.phrase_encoder import TextEncoder

    return TextEncoder.load(folder)


class LayoutPredictor:
    """A trained network and what was stored with it.

    Attributes:
        network: in evaluation mode.
        metadata: strings; "encoder" is the identity of the phrase encoder.
    """

    def __init__(self, network: Network, metadata: Mapping[str, str] | None = None) -> None:
        self.network = network.eval()
        self.metadata = dict(metadata or {})

    @classmethod
    @undisturbed()
    def load(
        cls,
        folder: str | os.PathLike[str] | None = None,
        *,
        text_encoder: str | os.PathLike[str] | None = None,
    ) -> LayoutPredictor:
        """Reads the weights in a folder that `stal train-layout` wrote, or the bundled ones.

        Args:
            folder: of the weights; the bundled ones if None.
            text_encoder: the diffusers folder whose text encoder they were trained with, if any.

        Raises:
            ValueError: not such weights, or weights for another phrase encoder.
            OSError: the file cannot be read.
        """
        import json

        from safetensors import SafetensorError, safe_open

        from stal.config_values import check_layers
        from stal.model.tensors import Weights

        path = Path(folder or BUNDLED) / WEIGHTS
        open_regular(path, name="weights of a layout predictor").close()
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
            weights = Weights.of(path, dtype=torch.float32)
            config = Config.from_dict(json.loads(metadata["config"]))
            check_layers(config.layers, len(weights.shapes), path)
        except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(
                f"{path} must be weights of a layout predictor: {first_line(error)}"
            ) from error
        encoder = None if text_encoder is None else _text_encoder(text_encoder)
        with torch.device("meta"):
            network = Network(config, encoder)
        if metadata.get("encoder") != network.encoder.identity:
            other = str(metadata.get("encoder")).startswith("clip-text/")
            fix = "name its folder as the text encoder" if other else "name no text encoder"
            raise ValueError(
                f"{path} must be for the phrase encoder {network.encoder.identity}, got"
                f" {shown(metadata.get('encoder'))}: {fix}, or train again with `stal train-layout`"
            )
        try:
            weights.into(network)
        except ValueError as error:
            raise ValueError(
                f"{path} must be weights of a layout predictor: {first_line(error)}"
            ) from error
        return cls(network, metadata)

    @undisturbed()
    @torch.inference_mode()
    def mixture(self, descriptions: Sequence[Description], *, aspect: float = 1.0) -> Mixture:
        """The density of every object's box, for a batch of prompts.

        Args:
            descriptions: one or more that `stal.prompts.parse` gave, each with at least one object.
            aspect: width / height of the canvas.

        Returns:
            Mixtures (prompts, n) for the n of the prompt with the most objects, in inference mode;
            those beyond a prompt's own are padding.

        Raises:
            ValueError: a description has no object; `stal.finite.NotFinite`, no finite mixture.
        """
        for index, each in enumerate(descriptions):
            if not each.objects:
                raise ValueError(f"descriptions[{index}] must have an object, got none")
        mixture = self.network([_tokens(each, aspect) for each in descriptions])
        for values in (mixture.log_weight, mixture.mean, mixture.log_std):
            check_finite("what the layout predictor gives", values, torch.float32)
        return mixture

    @undisturbed()
    def contours(self, description: Description, *, aspect: float = 1.0) -> list[list[Contour]]:
        """Where each object's centre may be: an ellipse of one standard deviation a component.

        Args:
            description: what `stal.prompts.parse` gives.
            aspect: width / height of the canvas.

        Returns:
            The ellipses of each object, in order, as `stal.layout.sketch` draws them. Components
            of less than a tenth are left out; large crowds (`MAX_OBJECTS`) have none.
        """
        if not 0 < len(description.objects) <= MAX_OBJECTS:
            return [[] for _ in description.objects]
        mixture = self.mixture([description], aspect=aspect)
        columns = (
            mixture.log_weight.exp()[0, ..., None],
            mixture.mean[0, ..., :2],
            mixture.log_std[0, ..., :2].exp(),
        )
        return [
            [(share, x, y, rx, ry) for share, x, y, rx, ry in each if share >= 0.1]
            for each in torch.cat(columns, dim=-1).tolist()
        ]

    @undisturbed()
    @torch.inference_mode()
    def predict(
        self,
        descriptions: Sequence[Description],
        *,
        aspect: float = 1.0,
        seed: int | None = None,
        samples: int = 1,
        fixed: Mapping[int, Box] | None = None,
        projected: bool = True,
    ) -> list[list[Layout]]:
        """Layouts of a batch of prompts.

        Args:
            descriptions: what `stal.prompts.parse` gives.
            aspect: width / height of the canvas.
            seed: of sampled boxes; None gives the most likely ones first, and the further samples
                are drawn with seed 0.
            samples: layouts a prompt, which differ; the most likely first (after projection).
            fixed: boxes of objects by index, which are kept exactly; for a single prompt.
            projected: without, the boxes are the mixture's own, cut at the border of the canvas,
                and relations need not hold.

        Returns:
            samples layouts a prompt. `PlacedObject.score` is p(box) as a share of p at the
            likeliest mean, at most 1.

        Raises:
            ValueError: aspect is not in [1/64, 64], samples is not positive, or fixed names an
                object that is not there or a box outside the canvas.
        """
        aspect, samples = number(aspect, "aspect"), typed(samples, int, "samples")
        seed = None if seed is None else typed(seed, int, "seed")
        if not 1 / 64 <= aspect <= 64:
            raise ValueError(f"aspect must lie in [1/64, 64], got {aspect}")
        if not 1 <= samples <= budget.MOST_SAMPLES:
            rule = "be positive" if samples < 1 else f"be at most {budget.MOST_SAMPLES}"
            raise ValueError(f"samples must {rule}, got {samples}")
        if fixed and len(descriptions) != 1:
            raise ValueError(f"fixed must come with one prompt, got {len(descriptions)}")
        for index, box in (fixed or {}).items():
            if not 0 <= index < len(descriptions[0].objects):
                raise ValueError(
                    f"fixed must name objects of the prompt, which has"
                    f" {len(descriptions[0].objects)}, got {index}"
                )
            Layout("", (PlacedObject("", "", box),))
        ready = [i for i, d in enumerate(descriptions) if 0 < len(d.objects) <= MAX_OBJECTS]
        found: dict[int, list[Layout]] = {}
        if ready:
            batch = [descriptions[i] for i in ready]
            mixture = self.mixture(batch, aspect=aspect)
            boxes = self._draw(mixture, batch, aspect, seed, samples)
            deviations = deviations_of(mixture)
            placed = [
                _placed(each, of_row, raw, aspect, fixed, projected)
                for each, of_row, raw in zip(batch, deviations, boxes, strict=True)
            ]
            found = dict(zip(ready, _ranked(mixture, placed), strict=True))
        return [
            found[i]
            if i in found
            else [place(each, aspect=aspect, seed=(seed or 0) + k) for k in range(samples)]
            for i, each in enumerate(descriptions)
        ]

    def _draw(
        self,
        mixture: Mixture,
        batch: Sequence[Description],
        aspect: float,
        seed: int | None,
        samples: int,
    ) -> Tensor:
        """Boxes to begin with, the likeliest or drawn by chance: (batch, samples, n, 4)."""
        n = mixture.mean.shape[1]
        shown = torch.tensor([each.scene.setting != "flat" for each in batch], dtype=torch.bool)
        apart = _figures(mixture.mode())
        drawn = torch.where(shown[:, None, None], mixture.scene(), apart)[None]
        if seed is None and samples == 1:
            return drawn.transpose(0, 1)
        more = samples - (seed is None)
        figures = self._drawn_figures(mixture, batch, seed or 0, more)
        scenes = []
        for k in range(more if shown.any() else 0):
            # Another arrangement of the same scene.
            chance = [
                random.Random(((seed or 0) * budget.MOST_SAMPLES + k) * 9973 + 1) for _ in batch
            ]
            tokens = [_tokens(d, aspect, rng) for d, rng in zip(batch, chance, strict=True)]
            scenes.append(self.network(tokens).scene()[:, :n])
        found = (
            torch.where(shown[:, None, None], torch.stack(scenes), figures) if scenes else figures
        )
        return torch.cat((drawn, found) if seed is None else (found,)).transpose(0, 1)

    def _drawn_figures(
        self, mixture: Mixture, batch: Sequence[Description], seed: int, samples: int
    ) -> Tensor:
        """The likeliest of several draws, of every object alone: (samples, batch, n, 4)."""
        counts = torch.tensor([len(each.objects) for each in batch], dtype=torch.long)
        n = mixture.mean.shape[1]
        present = torch.arange(n, dtype=torch.long) < counts[:, None]
        generator = torch.Generator("cpu").manual_seed(seed)
        drawn = mixture.sample(_DRAWS * samples, generator)
        logs = torch.stack([(mixture.log_prob(z) * present).sum(1) for z in drawn])
        best = logs.argsort(0, descending=True)[:samples]
        return drawn.gather(0, best[:, :, None, None].expand(-1, -1, n, 4))


def _tokens(description: Description, aspect: float, rng: random.Random | None = None) -> Tokens:
    phrases = [(each.phrase, each.noun) for each in description.objects]
    sides = [each.position for each in description.objects]
    scene = description.scene
    return tokens_of(
        phrases, description.statements, aspect=aspect, scene=scene, sides=sides, rng=rng
    )


def _figures(z: Tensor) -> Tensor:
    """z of things that are no scene, (..., 4), with sizes that are easier to draw."""
    centre, size = z[..., :2], z[..., 2:]
    return torch.cat((centre, size + _TOWARDS * (_FIGURE - size)), dim=-1)


def _aligned(z: Tensor, description: Description) -> Tensor:
    """Makes the members of a counted plural more equal in size than they were drawn.

    Those of a row ("five penguins in a row") are put on one line, and of a column too.
    """
    z = z.clone()
    objects = description.objects
    for span in {each.span for each in objects}:
        group = [index for index, each in enumerate(objects) if each.span == span]
        if len(group) == 1:
            continue
        sizes = z[group, 2:]
        z[group, 2:] = sizes.mean(0) + (sizes - sizes.mean(0)) * _UNEQUAL
    for axis, names in enumerate((("above", "below"), ("left of", "right of"))):
        rows: dict[tuple[int, int], set[int]] = {}
        for relation in description.relations:
            span = objects[relation.subject].span
            if relation.predicate in names and span == objects[relation.object].span:
                rows.setdefault(span, set()).update((relation.subject, relation.object))
        for row in rows.values():
            z[list(row), axis] = z[list(row), axis].mean()
    return z


def _placed(
    description: Description,
    deviations: Sequence[tuple[float, float]],
    samples: Tensor,
    aspect: float,
    fixed: Mapping[int, Box] | None,
    projected: bool,
) -> list[Layout]:
    """Layouts from raw boxes (samples, n, 4), in their order.

    deviations: of the objects, and maybe of more, see `deviations_of`.
    """
    n = len(description.objects)
    relations = description.statements
    sides = [each.position for each in description.objects]
    parts = _parts(description)
    layouts = []
    for z in samples[:, :n].clone():
        for thing, box in (fixed or {}).items():
            z[thing] = normal_form([box])[0]
        boxes = boxes_from(_aligned(z, description) if projected else z)
        if projected:
            boxes = project(
                boxes,
                relations,
                aspect=aspect,
                fixed=fixed,
                sides=sides,
                parts=parts,
                deviations=deviations[:n] if parts else (),
            )
        else:
            boxes = [(fixed or {}).get(i, _cut(box)) for i, box in enumerate(boxes)]
        layout = Layout(
            description.text,
            tuple(
                PlacedObject(each.phrase, each.noun, box)
                for each, box in zip(description.objects, boxes, strict=True)
            ),
            relations,
            aspect,
        )
        layouts.append(_dressed(layout, fixed or {}) if projected else layout)
    return layouts


def _ranked(mixture: Mixture, placed: Sequence[Sequence[Layout]]) -> list[list[Layout]]:
    """Those of each prompt of a batch with the scores of their boxes, the likeliest first."""
    n = mixture.mean.shape[1]
    peaks = mixture.peak()
    ranked: list[list[tuple[float, Layout]]] = [[] for _ in placed]
    for layouts in zip(*placed, strict=True):  # a sample of each prompt
        z = torch.stack(
            [
                F.pad(normal_form([o.box for o in each.objects]), (0, 0, 0, n - len(each.objects)))
                for each in layouts
            ]
        )
        logs = mixture.log_prob(z)
        scores = (logs - peaks).clamp(max=0.0).exp().tolist()
        for row, (layout, each, own) in enumerate(zip(layouts, logs, scores, strict=True)):
            objects = tuple(
                replace(thing, score=score)
                for thing, score in zip(layout.objects, own[: len(layout.objects)], strict=True)
            )
            likely = float(each[: len(objects)].sum())
            ranked[row].append((likely, replace(layout, objects=objects)))
    return [[layout for _, layout in sorted(each, key=lambda pair: -pair[0])] for each in ranked]


def _parts(description: Description) -> list[Part]:
    """What each thing does in its scene; none where there is no scene but figures."""
    scene = description.scene
    if scene.setting == "flat":
        return []
    phrases = [(each.phrase, each.noun) for each in description.objects]
    return parts_of(phrases, description.statements, scene)


def deviations_of(mixture: Mixture) -> list[list[tuple[float, float]]]:
    """(x, y) standard deviations of the centres of the objects of each prompt, of the staged
    components."""
    share = mixture.log_weight[..., : mixture.staged].softmax(-1)
    std = mixture.log_std[..., : mixture.staged, :2].exp()
    every = (share[..., None] * std).sum(2).tolist()
    return [[(x, y) for x, y in each] for each in every]


def _dressed(layout: Layout, fixed: Container[int]) -> Layout:
    """Moves what is worn to where it is worn, a hat to the head, if what holds still does."""
    wearers: dict[int, list[int]] = {}
    for i, name, j in layout.relations:
        if name == "worn by" and i not in fixed:
            wearers.setdefault(i, []).append(j)
    for i, (j, *more) in wearers.items():
        worn, wearer = layout.objects[i], layout.objects[j]
        share = worn_at(worn.noun)
        if share is None or more:
            continue
        (a0, b0, a1, b1), (x0, y0, x1, y1) = worn.box, wearer.box
        reach = min(1.0, _REACH + 2 * min(share, 1 - share))  # shares of the wearer's height
        scale = min(1.0, (x1 - x0) / (a1 - a0), reach * (y1 - y0) / (b1 - b0))
        width, height = scale * (a1 - a0), scale * (b1 - b0)
        upright = singular_noun(wearer.noun).split(" ")[-1] in PEOPLE
        left = (x0 + x1 - width) / 2 if upright else min(max(a0, x0), x1 - width)
        top = min(max(y0 + share * (y1 - y0) - height / 2, y0), y1 - height)
        objects = list(layout.objects)
        objects[i] = replace(worn, box=(left, top, left + width, top + height))
        moved = replace(layout, objects=tuple(objects))
        if set(moved.violated) <= set(layout.violated):
            layout = moved
    return layout


def _cut(box: Box) -> Box:
    """The part of a box on the canvas, at least a sliver at its border."""
    (x0, x1), (y0, y1) = (
        (min(max(low, 0.0), 0.99), max(min(high, 1.0), 0.01))
        for low, high in ((box[0], box[2]), (box[1], box[3]))
    )
    return x0, y0, x1, y1


@cache
def bundled() -> LayoutPredictor:
    """The predictor that comes with the package, read once."""
    return LayoutPredictor.load()


def predict(description: Description, *, aspect: float = 1.0, seed: int | None = None) -> Layout:
    """The bundled predictor's layout of one prompt; the counterpart of `stal.layout.place`.

    Args:
        description: what `stal.prompts.parse` gives.
        aspect: width / height of the canvas.
        seed: None for the most likely boxes, else of sampled ones; equal seeds, equal layouts.

    Returns:
        A layout with the description's objects and statements, in order.

    Raises:
        ValueError: aspect is not in [1/64, 64].
    """
    return bundled().predict([description], aspect=aspect, seed=seed)[0][0]


def metadata_of(network: Network, extra: Mapping[str, Any]) -> dict[str, str]:
    """What is stored with the weights, and what `LayoutPredictor.load` reads again.

    Args:
        network: whose sizes and phrase encoder are stored.
        extra: beside them; values become strings.
    """
    import json

    own = {"config": json.dumps(asdict(network.config)), "encoder": network.encoder.identity}
    return {**own, **{name: str(value) for name, value in extra.items()}}
