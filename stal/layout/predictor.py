"""A learned guess of where the objects of a prompt are: a Gaussian mixture for every box.

    predict(parse("a dog to the left of a bicycle"), aspect=16 / 9)

After the layout predictor of Wu et al. (arXiv 2304.03869): a transformer over object tokens gives
each object a mixture over its box, trained on absolute and on relative positions. Differences: the
phrase encoder is a bag of character n-grams, so that any noun has an embedding and nothing is
downloaded; stated relations are typed edges, which bias attention; the canvas has any aspect ratio;
and `stal.layout.projection` makes what is stated hold.

A box is z = (cx, cy, log w, log h), fractions of the canvas:

    p(z) = sum_k pi_k N(z; mu_k, diag sigma_k^2)
"""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stal.layout.layout import Box, Contour, Layout, PlacedObject, Statement, place
from stal.layout.projection import project
from stal.prompts import Description
from stal.prompts.things import thing_of, worn_at
from stal.prompts.words import PEOPLE, singular_noun
from stal.relations import GEOMETRY

BUNDLED = Path(__file__).parents[1] / "assets" / "layout"
_UNEQUAL = 0.5  # of the differences in size within a counted plural, what is kept
_REACH = 0.2  # what is worn at the very top or bottom of somebody is at most so high
WEIGHTS = "layout_predictor.safetensors"
# Larger crowds go to `stal.layout.place`: nothing like them was trained on.
MAX_OBJECTS = 24
# Boxes are drawn this many times as often as asked for; the likeliest are kept.
_DRAWS = 4
# Real boxes vary: a sharper component is an example learned by heart.
_LEAST_LOG_STD = -2.5

_CONTACTS = ("beside", "apart", "touching", "overlapping", "inside", "around")
# An edge says what `stal.relations.GEOMETRY` says of a pair, then the same of the reversed pair,
# then whether both have the same phrase. The first two columns are a's side along x.
_ONE_WAY = 6 + len(_CONTACTS)
EDGE_FEATURES = 2 * _ONE_WAY + 1
EXTENTS = 3.0  # what logarithms of metres are divided by
_SIZES = 5  # what `_sizes` says of an object
_CONTEXT = 4 + _SIZES  # beside the phrase: sizes, twins (2), log aspect, log number of objects


@dataclass(frozen=True)
class Config:
    """Sizes of the network."""

    buckets: int = 4096
    embedding: int = 48
    width: int = 64
    layers: int = 2
    heads: int = 4
    components: int = 5


@dataclass(frozen=True)
class Tokens:
    """A prompt as the network reads it.

    Attributes:
        phrases: (phrase, noun) an object.
        edges: (n, n, EDGE_FEATURES) float32.
        sizes: (n, 5) float32, what `stal.prompts.things` knows of the nouns.
        twins: (n, 2) float32, which of the objects of one phrase it is, in [0, 1] from left to
            right, and 1 / their number.
        aspect: width / height of the canvas.
    """

    phrases: tuple[tuple[str, str], ...]
    edges: Tensor
    sizes: Tensor
    twins: Tensor
    aspect: float


def tokens_of(
    phrases: Sequence[tuple[str, str]], relations: Sequence[Statement], *, aspect: float
) -> Tokens:
    """What the network reads of objects, as (phrase, noun), and of their relations."""
    n = len(phrases)
    edges = torch.zeros(n, n, EDGE_FEATURES)
    for i, name, j in relations:
        one_way = torch.tensor(_features(name))
        edges[i, j, :_ONE_WAY] = torch.maximum(edges[i, j, :_ONE_WAY], one_way)
        edges[j, i, _ONE_WAY:-1] = edges[i, j, :_ONE_WAY]
    same: dict[str, list[int]] = {}
    for index, (phrase, _) in enumerate(phrases):
        same.setdefault(phrase, []).append(index)
    twins = torch.zeros(n, 2)
    for group in same.values():
        for rank, index in enumerate(group):
            place_in_row = rank / (len(group) - 1) if len(group) > 1 else 0.5
            twins[index] = torch.tensor([place_in_row, 1 / len(group)])
            edges[index, group, -1] = 1.0
    return Tokens(tuple(phrases), edges, _sizes(phrases), twins, aspect)


def _sizes(phrases: Sequence[tuple[str, str]]) -> Tensor:
    """Of each object: 1 if its size is known, how large it is and as a share of the largest one,
    its aspect, and its height over the ground; in logarithms, 0 where nothing is known."""
    known = [thing_of(noun, phrase) for phrase, noun in phrases]
    largest = max((thing.extent for thing in known if thing), default=1.0)
    rows = [
        (
            1.0,
            math.log(thing.extent) / EXTENTS,
            math.log(thing.share(largest)),
            math.log(thing.width / thing.height),
            math.log1p(thing.over_ground),
        )
        if thing
        else (0.0,) * _SIZES
        for thing in known
    ]
    return torch.tensor(rows)


@lru_cache
def _features(predicate: str) -> list[float]:
    g = GEOMETRY[predicate]
    signs = [float(value == sign) for value in (g.dx, g.dy, g.depth) for sign in (-1, 1)]
    return signs + [float(g.contact == contact) for contact in _CONTACTS]


def flip(tokens: Tokens) -> Tokens:
    """The tokens of the mirrored scene: left is right."""
    order = list(range(EDGE_FEATURES))
    for start in (0, _ONE_WAY):
        order[start], order[start + 1] = order[start + 1], order[start]
    twins = torch.stack((1 - tokens.twins[:, 0], tokens.twins[:, 1]), dim=1)
    return Tokens(tokens.phrases, tokens.edges[:, :, order], tokens.sizes, twins, tokens.aspect)


class NGramEncoder(nn.Module):
    """Embeds an object as the mean embedding of its phrase's character n-grams, and its noun's.

    N-grams of 3 to 5 characters and whole words, hashed (CRC-32) into a table. A phrase encoder
    has a `dim`, an `identity` that is stored with the weights, and this `forward`.
    """

    def __init__(self, buckets: int, embedding: int) -> None:
        super().__init__()
        self.identity = f"ngrams-3-5/{buckets}x{embedding}"
        self.dim = 2 * embedding
        self.table = nn.EmbeddingBag(buckets, embedding, mode="mean")
        nn.init.normal_(self.table.weight, std=0.5)

    def forward(self, phrases: Sequence[tuple[str, str]]) -> Tensor:
        """(n, dim) float32 for n pairs (phrase, noun)."""
        texts = [text for pair in phrases for text in pair]
        ids = [_ngrams(text, self.table.num_embeddings) for text in texts]
        lengths = torch.tensor([0, *(len(each) for each in ids[:-1])])
        flat = torch.tensor([index for each in ids for index in each], dtype=torch.long)
        return self.table(flat, lengths.cumsum(0)).reshape(len(phrases), self.dim)


class PhraseEncoder(Protocol):
    """What embeds phrases: `NGramEncoder` or `stal.layout.phrase_encoder.TextEncoder`."""

    dim: int
    identity: str

    def __call__(self, phrases: Sequence[tuple[str, str]]) -> Tensor: ...


def _text_encoder(folder: str | os.PathLike[str]) -> PhraseEncoder:
    from stal.layout.phrase_encoder import TextEncoder

    return TextEncoder.load(folder)


@lru_cache(maxsize=65536)
def _ngrams(text: str, buckets: int) -> tuple[int, ...]:
    words = [word for word in text.lower()[:200].split() if word not in ("a", "an", "the")]
    grams = []
    for word in words or [""]:
        edged = f"<{word}>"
        grams.append(edged)
        grams += [edged[i : i + k] for k in (3, 4, 5) for i in range(len(edged) - k + 1)]
    return tuple(zlib.crc32(gram.encode("utf-8", "replace")) % buckets for gram in grams)


@dataclass(frozen=True)
class Mixture:
    """p(z) of a batch of objects: log weights (batch, n, k), mean and log_std (batch, n, k, 4)."""

    log_weight: Tensor
    mean: Tensor
    log_std: Tensor

    def log_prob(self, z: Tensor) -> Tensor:
        """log p of z (batch, n, 4): (batch, n)."""
        each = _log_normal(z[:, :, None], self.mean, 2 * self.log_std)
        return (self.log_weight + each).logsumexp(-1)

    def log_prob_difference(self, batch: Tensor, i: Tensor, j: Tensor, delta: Tensor) -> Tensor:
        """log p of c_i - c_j = delta (pairs, 2), the mixture of all differences of components."""
        mean = (self.mean[batch, i, :, None] - self.mean[batch, j, None])[..., :2]
        variance = (2 * self.log_std[batch, i, :, None]).exp() + (
            2 * self.log_std[batch, j, None]
        ).exp()
        weight = self.log_weight[batch, i, :, None] + self.log_weight[batch, j, None]
        each = _log_normal(delta[:, None, None], mean, variance[..., :2].log())
        return (weight + each).flatten(1).logsumexp(1)

    def mode(self) -> Tensor:
        """Each object's likely z: (batch, n, 4).

        The centre is that of the heaviest component, since between two places there may be none;
        the size is the mean of all, which is nearer to real ones.
        """
        best = self.log_weight.argmax(-1)[:, :, None, None].expand(-1, -1, 1, 2)
        centre = self.mean[..., :2].gather(2, best).squeeze(2)
        size = (self.log_weight.exp()[..., None] * self.mean[..., 2:]).sum(2)
        return torch.cat((centre, size), dim=-1)

    def sample(self, draws: int, generator: torch.Generator) -> Tensor:
        """(draws, batch, n, 4)."""
        weight = self.log_weight.exp()
        batch, n, k = weight.shape
        index = torch.multinomial(
            weight.reshape(-1, k), draws, replacement=True, generator=generator
        )
        index = index.T.reshape(draws, batch, n, 1, 1).expand(-1, -1, -1, 1, 4)
        mean, log_std = (
            each.expand(draws, -1, -1, -1, -1).gather(3, index).squeeze(3)
            for each in (self.mean, self.log_std)
        )
        return mean + log_std.exp() * torch.randn(mean.shape, generator=generator)


def _log_normal(z: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    squares = (z - mean) ** 2 * (-log_variance).exp()
    return -0.5 * (squares + log_variance + math.log(2 * math.pi)).sum(-1)


class _Layer(nn.Module):
    """A pre-norm transformer layer whose attention scores are biased by the edges."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.bias = nn.Linear(EDGE_FEATURES, heads)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(0.1), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor, edges: Tensor, absent: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).unbind(2)
        bias = self.bias(edges).movedim(-1, 1).masked_fill(absent[:, None, None], -1e4)
        q, k, v = (each.transpose(1, 2) for each in (q, k, v))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class Network(nn.Module):
    """From tokens to mixtures."""

    def __init__(self, config: Config, encoder: PhraseEncoder | None = None) -> None:
        """encoder: of phrases; one of n-grams, which is trained too, if None."""
        super().__init__()
        self.config = config
        self.encoder = encoder or NGramEncoder(config.buckets, config.embedding)
        self.drop = nn.Dropout(0.3)
        self.embed = nn.Linear(self.encoder.dim + _CONTEXT, config.width)
        self.roles = nn.Linear(EDGE_FEATURES, config.width)
        self.layers = nn.ModuleList(
            _Layer(config.width, config.heads) for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, 9 * config.components)
        # At first components spread over the canvas, each a quarter of its side wide.
        with torch.no_grad():
            self.head.weight.mul_(0.1)
            start = torch.zeros(config.components, 9)
            start[:, 1:3] = 0.5 + 0.2 * torch.randn(config.components, 2)
            start[:, 3:5] = -1.3 + 0.3 * torch.randn(config.components, 2)
            start[:, 5:] = torch.tensor([-1.5, -1.5, -0.7, -0.7])
            self.head.bias.copy_(start.flatten())

    def forward(self, batch: Sequence[Tokens]) -> Mixture:
        """A mixture an object; objects beyond a prompt's own are padding."""
        n = max(len(tokens.phrases) for tokens in batch)
        x = self.embed.weight.new_zeros(len(batch), n, self.embed.in_features)
        edges = x.new_zeros(len(batch), n, n, EDGE_FEATURES)
        absent = torch.ones(len(batch), n, dtype=torch.bool)
        for row, tokens in enumerate(batch):
            count = len(tokens.phrases)
            edges[row, :count, :count] = tokens.edges
            absent[row, :count] = False
            x[row, :count, -_CONTEXT:-4] = tokens.sizes
            x[row, :count, -4:-2] = tokens.twins
            x[row, :count, -2] = math.log(tokens.aspect)
            x[row, :count, -1] = math.log(count)
        present = ~absent
        phrases = self.encoder([pair for tokens in batch for pair in tokens.phrases])
        context = x[present][:, -_CONTEXT:]
        x = x.new_zeros(len(batch), n, self.config.width)
        x[present] = self.embed(torch.cat((self.drop(phrases), context), dim=1))
        x = x + self.roles(edges.sum(2))
        for layer in self.layers:
            x = layer(x, edges, absent)
        out = self.head(self.norm(x)).unflatten(-1, (self.config.components, 9))
        return Mixture(
            out[..., 0].log_softmax(-1),
            out[..., 1:5],
            out[..., 5:].clamp(min=_LEAST_LOG_STD, max=1.0),
        )


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

        path = Path(folder or BUNDLED) / WEIGHTS
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            config = Config(**json.loads(metadata["config"]))
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} must be weights of a layout predictor: {error}") from error
        encoder = None if text_encoder is None else _text_encoder(text_encoder)
        network = Network(config, encoder)
        if metadata.get("encoder") != network.encoder.identity:
            other = str(metadata.get("encoder")).startswith("clip-text/")
            fix = "name its folder as the text encoder" if other else "name no text encoder"
            raise ValueError(
                f"{path} must be for the phrase encoder {network.encoder.identity}, got"
                f" {metadata.get('encoder')}: {fix}, or train again with `stal train-layout`"
            )
        try:
            network.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(f"{path} must be weights of a layout predictor: {error}") from error
        return cls(network, metadata)

    @torch.inference_mode()
    def mixture(self, descriptions: Sequence[Description], *, aspect: float = 1.0) -> Mixture:
        """The mixtures of the objects of a batch of prompts, each with at least one object."""
        return self.network([_tokens(each, aspect) for each in descriptions])

    def contours(self, description: Description, *, aspect: float = 1.0) -> list[list[Contour]]:
        """Where each object's centre may be: an ellipse of one standard deviation a component.

        Components of less than a tenth are left out; large crowds (`MAX_OBJECTS`) have none.
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
        if not 1 / 64 <= aspect <= 64:
            raise ValueError(f"aspect must lie in [1/64, 64], got {aspect}")
        if samples < 1:
            raise ValueError(f"samples must be positive, got {samples}")
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
            boxes = self._draw(mixture, batch, seed, samples)
            for row, index in enumerate(ready):
                one = Mixture(
                    mixture.log_weight[row : row + 1],
                    mixture.mean[row : row + 1],
                    mixture.log_std[row : row + 1],
                )
                found[index] = _finish(
                    descriptions[index], one, boxes[row], aspect, fixed, projected
                )
        return [
            found[i]
            if i in found
            else [place(each, aspect=aspect, seed=(seed or 0) + k) for k in range(samples)]
            for i, each in enumerate(descriptions)
        ]

    def _draw(
        self, mixture: Mixture, batch: Sequence[Description], seed: int | None, samples: int
    ) -> Tensor:
        """The likeliest of several draws: (batch, samples, n, 4)."""
        counts = torch.tensor([len(each.objects) for each in batch])
        n = mixture.mean.shape[1]
        present = torch.arange(n) < counts[:, None]
        draws = []
        if seed is None:
            draws.append(mixture.mode()[None])
        if seed is not None or samples > 1:
            generator = torch.Generator().manual_seed(seed or 0)
            drawn = mixture.sample(_DRAWS * samples, generator)
            logs = torch.stack([(mixture.log_prob(z) * present).sum(1) for z in drawn])
            best = logs.argsort(0, descending=True)[: samples - len(draws)]
            draws.append(drawn.gather(0, best[:, :, None, None].expand(-1, -1, n, 4)))
        return torch.cat(draws).transpose(0, 1)


def _tokens(description: Description, aspect: float) -> Tokens:
    phrases = [(each.phrase, each.noun) for each in description.objects]
    return tokens_of(phrases, description.statements, aspect=aspect)


def _aligned(z: Tensor, description: Description) -> Tensor:
    """Makes the members of a counted plural more equal in size than they were drawn.

    Those of a row ("five penguins in a row") are put on one line, and of a column too.
    """
    z = z.clone()
    objects = description.objects
    for span in {each.span for each in objects}:
        group = [index for index, each in enumerate(objects) if each.span == span]
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


def _finish(
    description: Description,
    mixture: Mixture,
    samples: Tensor,
    aspect: float,
    fixed: Mapping[int, Box] | None,
    projected: bool,
) -> list[Layout]:
    """Layouts from raw boxes (samples, n, 4), the likeliest first."""
    n = len(description.objects)
    relations = description.statements
    sides = [each.position for each in description.objects]
    ranked: list[tuple[float, int, Layout]] = []
    for index, z in enumerate(samples[:, :n].clone()):
        for thing, box in (fixed or {}).items():
            z[thing] = normal_form([box])[0]
        boxes = boxes_of(_aligned(z, description) if projected else z)
        if projected:
            boxes = project(boxes, relations, aspect=aspect, fixed=fixed, sides=sides)
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
        if projected:
            layout = _dressed(layout, fixed or {})
        logs, scores = _scores(mixture, layout)
        objects = tuple(
            PlacedObject(o.phrase, o.noun, o.box, score)
            for o, score in zip(layout.objects, scores, strict=True)
        )
        ranked.append((-logs, index, Layout(layout.prompt, objects, relations, aspect)))
    return [layout for _, _, layout in sorted(ranked, key=lambda item: item[:2])]


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


def _scores(mixture: Mixture, layout: Layout) -> tuple[float, list[float]]:
    n = len(layout.objects)
    z = normal_form([placed.box for placed in layout.objects])
    pad = mixture.mean.shape[1] - n
    logs = mixture.log_prob(F.pad(z, (0, 0, 0, pad))[None])[0, :n]
    means = mixture.mean[0, :n].transpose(0, 1)  # (k, n, 4)
    peaks = mixture.log_prob(F.pad(means, (0, 0, 0, pad)))[:, :n].amax(0)
    return float(logs.sum()), (logs - peaks).clamp(max=0.0).exp().tolist()


def normal_form(boxes: Sequence[Box]) -> Tensor:
    """Boxes (x0, y0, x1, y1) as z = (cx, cy, log w, log h): (n, 4) float32."""
    x0, y0, x1, y1 = torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4).unbind(1)
    columns = ((x0 + x1) / 2, (y0 + y1) / 2, (x1 - x0).log(), (y1 - y0).log())
    return torch.stack(columns, dim=1).float()


def boxes_of(z: Tensor) -> list[Box]:
    """The inverse of `normal_form`; sides above 1 become 1."""
    centre, side = z[:, :2].double(), z[:, 2:].double().exp().clamp(max=1.0)
    return [
        (x0, y0, x1, y1)
        for x0, y0, x1, y1 in torch.cat((centre - side / 2, centre + side / 2), dim=1).tolist()
    ]


def _cut(box: Box) -> Box:
    """The part of a box on the canvas, at least a sliver at its border."""
    (x0, x1), (y0, y1) = (
        (min(max(low, 0.0), 0.99), max(min(high, 1.0), 0.01))
        for low, high in ((box[0], box[2]), (box[1], box[3]))
    )
    return x0, y0, x1, y1


@cache
def bundled() -> LayoutPredictor:
    """The predictor that comes with the package."""
    return LayoutPredictor.load()


def predict(description: Description, *, aspect: float = 1.0, seed: int | None = None) -> Layout:
    """The bundled predictor's layout of one prompt; the counterpart of `stal.layout.place`.

    Args:
        description: what `stal.prompts.parse` gives.
        aspect: width / height of the canvas.
        seed: None for the most likely boxes, else of sampled ones; equal seeds, equal layouts.

    Raises:
        ValueError: aspect is not in [1/64, 64].
    """
    return bundled().predict([description], aspect=aspect, seed=seed)[0][0]


def metadata_of(network: Network, extra: Mapping[str, Any]) -> dict[str, str]:
    """What is stored with the weights; values become strings."""
    import json

    own = {"config": json.dumps(asdict(network.config)), "encoder": network.encoder.identity}
    return {**own, **{name: str(value) for name, value in extra.items()}}
