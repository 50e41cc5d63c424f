"""The network of the layout predictor: from tokens of a prompt to a mixture for every box.

    Network(Config())([tokens_of([("a dog", "dog")], [], aspect=1.0)])  # Mixture, (1, 1, k)

A box is z = (cx, cy, log w, log h), fractions of the canvas:

    p(z) = sum_k pi_k N(z; mu_k, diag sigma_k^2)
"""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stal.budget import MOST_ROWS
from stal.checked_json import shown, typed
from stal.config_values import whole
from stal.layout.coverage import Box
from stal.layout.stage import stage
from stal.prompts.scene import SETTINGS, SHOTS, Scene, scene_of
from stal.prompts.things import RESTS_ON, thing_of
from stal.relations import GEOMETRY, Side, Statement

# Real boxes vary: a sharper component is an example learned by heart.
_LEAST_LOG_STD = -2.5
_CONTACTS = ("beside", "apart", "touching", "overlapping", "inside", "around")
# An edge says what `stal.relations.GEOMETRY` says of a pair, then the same of the reversed pair,
# then whether both have the same phrase. The first two columns are a's side along x.
ONE_WAY = 6 + len(_CONTACTS)  # what is said of a pair
EDGE_FEATURES = 2 * ONE_WAY + 1
EXTENTS = 3.0  # what logarithms of metres are divided by
SIZES = 5  # the columns of `_facts` that are measures; what a thing rests on follows
_FACTS = SIZES + len(RESTS_ON)
_SCENE = len(SHOTS) + len(SETTINGS)
# Beside the phrase: facts, the stage's guess (4), twins (2), logarithms of the aspect and of the
# number of objects, the scene.
_CONTEXT = _FACTS + 4 + 4 + _SCENE


@dataclass(frozen=True)
class Config:
    """Sizes of the network.

    Attributes:
        buckets, embedding: rows and columns of the table of n-grams, unless there is another
            phrase encoder.
        width: of an object's token.
        layers, heads: of the transformer.
        components: of each mixture.
        staged: how many of these are about the stage's guess; the others lie on the canvas.
        members: networks of the ensemble.
    """

    buckets: int = 4096
    embedding: int = 48
    width: int = 64
    layers: int = 2
    heads: int = 4
    components: int = 6
    staged: int = 2
    members: int = 3

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """Raises ValueError for sizes that are no sizes."""
        own: dict[str, Any] = {field.name: field.default for field in fields(cls)}
        unknown = sorted(set(typed(values, dict, "config")) - own.keys())
        if unknown:
            raise ValueError(
                f"config must hold known sizes, got {', '.join(map(shown, unknown[:3]))}"
            )
        sizes = {name: whole(values, name, size, high=MOST_ROWS) for name, size in own.items()}
        config = cls(**sizes)
        if config.width % config.heads:
            raise ValueError(f"heads must divide {config.width} features, got {config.heads}")
        if config.staged > config.components:
            raise ValueError(
                f"staged must be at most {config.components} components, got {config.staged}"
            )
        return config


@dataclass(frozen=True)
class Tokens:
    """A prompt as the network reads it.

    Attributes:
        phrases: (phrase, noun) an object.
        edges: (n, n, EDGE_FEATURES) float32.
        facts: (n, facts) float32, what `stal.prompts.things` knows of the nouns.
        staged: (n, 4) float32, z as `stal.layout.stage` has it.
        twins: (n, 2) float32, which of the objects of one phrase it is, in [0, 1] from left to
            right, and 1 / their number.
        aspect: width / height of the canvas.
        scene: the picture as a whole.
    """

    phrases: tuple[tuple[str, str], ...]
    edges: Tensor
    facts: Tensor
    staged: Tensor
    twins: Tensor
    aspect: float
    scene: Scene


def tokens_of(
    phrases: Sequence[tuple[str, str]],
    relations: Sequence[Statement],
    *,
    aspect: float,
    scene: Scene | None = None,
    sides: Sequence[Side] = (),
    rng: random.Random | None = None,
) -> Tokens:
    """What the network reads of a prompt.

    Args:
        phrases: (phrase, noun) an object.
        relations: (subject, predicate, object) with indices into phrases.
        aspect: width / height of the canvas.
        scene: the picture as a whole; what the nouns tell of it if None.
        sides: an object's position on the canvas, as `stal.prompts.Object.position`; or none.
        rng: of a stage by chance.

    Returns:
        Tokens of n = len(phrases) objects.
    """
    n = len(phrases)
    edges = np.zeros((n, n, EDGE_FEATURES), dtype=np.float32)
    for i, name, j in relations:
        edges[i, j, :ONE_WAY] = np.maximum(edges[i, j, :ONE_WAY], _features(name))
        edges[j, i, ONE_WAY:-1] = edges[i, j, :ONE_WAY]
    same: dict[str, list[int]] = {}
    for index, (phrase, _) in enumerate(phrases):
        same.setdefault(phrase, []).append(index)
    twins = np.zeros((n, 2), dtype=np.float32)
    for group in same.values():
        for rank, index in enumerate(group):
            place_in_row = rank / (len(group) - 1) if len(group) > 1 else 0.5
            twins[index] = place_in_row, 1 / len(group)
            edges[index, group, -1] = 1.0
    scene = scene_of("", [noun for _, noun in phrases]) if scene is None else scene
    guess = stage(phrases, relations, scene, aspect=aspect, sides=sides, rng=rng)
    staged = torch.tensor(guess, dtype=torch.float32, device="cpu").reshape(n, 4)
    of_pairs, of_twins = torch.from_numpy(edges), torch.from_numpy(twins)
    return Tokens(tuple(phrases), of_pairs, _facts(phrases), staged, of_twins, aspect, scene)


def _facts(phrases: Sequence[tuple[str, str]]) -> Tensor:
    """Of each object: 1 if it is known, how large it is and as a share of the largest one, its
    aspect, its height over the ground, in logarithms, and what it rests on; 0 where nothing is
    known."""
    known = [thing_of(noun, phrase) for phrase, noun in phrases]
    largest = max((thing.extent for thing in known if thing), default=1.0)
    rows = [
        (
            1.0,
            math.log(thing.extent) / EXTENTS,
            math.log(thing.share(largest)),
            math.log(thing.width / thing.height),
            math.log1p(thing.over_ground),
            *(float(thing.rests_on == kind) for kind in RESTS_ON),
        )
        if thing
        else (0.0,) * _FACTS
        for thing in known
    ]
    return torch.tensor(rows, dtype=torch.float32, device="cpu")


@lru_cache
def _features(predicate: str) -> list[float]:
    g = GEOMETRY[predicate]
    signs = [float(value == sign) for value in (g.dx, g.dy, g.depth) for sign in (-1, 1)]
    return signs + [float(g.contact == contact) for contact in _CONTACTS]


def _of_scene(scene: Scene) -> list[float]:
    shots = [float(scene.shot == shot) for shot in SHOTS]
    return shots + [float(scene.setting == setting) for setting in SETTINGS]


def flip(tokens: Tokens) -> Tokens:
    """The tokens of the mirrored scene, in which left is right; the given ones are kept."""
    order = list(range(EDGE_FEATURES))
    for start in (0, ONE_WAY):
        order[start], order[start + 1] = order[start + 1], order[start]
    twins = torch.stack((1 - tokens.twins[:, 0], tokens.twins[:, 1]), dim=1)
    staged = tokens.staged.clone()
    staged[:, 0] = 1 - staged[:, 0]
    return replace(tokens, edges=tokens.edges[:, :, order], staged=staged, twins=twins)


class NGramEncoder(nn.Module):
    """Embeds an object as the mean embedding of its phrase's character n-grams, and its noun's.

    N-grams of 3 to 5 characters and whole words, hashed (CRC-32) into a table. A phrase encoder
    has a `dim`, an `identity` that is stored with the weights, and this `forward`.

    Attributes:
        dim: of an embedding, twice that of the table.
        identity: names the n-grams and the size of the table.
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
        lengths = torch.tensor([0, *map(len, ids[:-1])], dtype=torch.long, device="cpu")
        every = [index for each in ids for index in each]
        flat = torch.tensor(every, dtype=torch.long, device="cpu")
        return self.table(flat, lengths.cumsum(0)).reshape(len(phrases), self.dim)


class PhraseEncoder(Protocol):
    """What embeds phrases: `NGramEncoder` or `stal.layout.phrase_encoder.TextEncoder`.

    Attributes:
        dim: of an embedding.
        identity: stored with what is trained with it, and compared when that is loaded.
    """

    dim: int
    identity: str

    def __call__(self, phrases: Sequence[tuple[str, str]]) -> Tensor:
        """(n, dim) float32 for n pairs (phrase, noun)."""
        ...


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
    """p(z) of a batch of objects, each a mixture of k components.

    Attributes:
        log_weight: (batch, n, k) float32; their exponentials add up to 1.
        mean: (batch, n, k, 4) float32.
        log_std: (batch, n, k, 4) float32.
        staged: how many components, the first, are about the stage's guess.
    """

    log_weight: Tensor
    mean: Tensor
    log_std: Tensor
    staged: int = 0

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z).

        Args:
            z: (batch, n, 4), a box an object, or one of the batch for all.

        Returns:
            (batch, n).
        """
        each = _log_normal(z[:, :, None], self.mean, 2 * self.log_std)
        return (self.log_weight + each).logsumexp(-1)

    def peak(self) -> Tensor:
        """log p at the likeliest of each object's means.

        Returns:
            (batch, n).
        """
        mean, log_variance = self.mean[:, :, None], 2 * self.log_std[:, :, None]
        each = _log_normal(self.mean[:, :, :, None], mean, log_variance)
        return (self.log_weight[:, :, None] + each).logsumexp(-1).amax(-1)

    def log_prob_difference(self, batch: Tensor, i: Tensor, j: Tensor, delta: Tensor) -> Tensor:
        """log p(c_i - c_j = delta), by the mixture of all differences of components.

        Args:
            batch: (pairs,) int64, of which prompt each pair is.
            i, j: (pairs,) int64, the two objects.
            delta: (pairs, 2), the difference of their centres.

        Returns:
            (pairs,).
        """
        mean = (self.mean[batch, i, :, None] - self.mean[batch, j, None])[..., :2]
        variance = (2 * self.log_std[batch, i, :, None]).exp() + (
            2 * self.log_std[batch, j, None]
        ).exp()
        weight = self.log_weight[batch, i, :, None] + self.log_weight[batch, j, None]
        each = _log_normal(delta[:, None, None], mean, variance[..., :2].log())
        return (weight + each).flatten(1).logsumexp(1)

    def mode(self) -> Tensor:
        """Each object's likely z.

        The centre is that of the heaviest component, since between two places there may be none;
        the size is the mean of all, which is nearer to real ones.

        Returns:
            (batch, n, 4).
        """
        best = self.log_weight.argmax(-1)[:, :, None, None].expand(-1, -1, 1, 2)
        centre = self.mean[..., :2].gather(2, best).squeeze(2)
        size = (self.log_weight.exp()[..., None] * self.mean[..., 2:]).sum(2)
        return torch.cat((centre, size), dim=-1)

    def scene(self) -> Tensor:
        """The z of each object that agree with each other: the mean of the staged components.

        Returns:
            (batch, n, 4).
        """
        share = self.log_weight[..., : self.staged].softmax(-1)
        return (share[..., None] * self.mean[..., : self.staged, :]).sum(2)

    def sample(self, draws: int, generator: torch.Generator) -> Tensor:
        """Draws z of every object, independently.

        Returns:
            (draws, batch, n, 4).
        """
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
        noise = torch.randn(mean.shape, generator=generator, dtype=torch.float32, device="cpu")
        return mean + log_std.exp() * noise


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


class _Member(nn.Module):
    """One network of the ensemble: from what `Network` reads of a batch to a mixture an object."""

    def __init__(self, config: Config, encoder: PhraseEncoder) -> None:
        super().__init__()
        self.config, self.encoder = config, encoder
        self.drop, self.forget = nn.Dropout(0.5), nn.Dropout(0.15)
        self.embed = nn.Linear(encoder.dim + _CONTEXT, config.width)
        self.roles = nn.Linear(EDGE_FEATURES, config.width)
        self.layers = nn.ModuleList(
            _Layer(config.width, config.heads) for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, 9 * config.components)
        # At first components are the stage's guess, or spread over the canvas, a quarter of its
        # side wide.
        with torch.no_grad():
            self.head.weight.mul_(0.1)
            start = self.head.bias.new_zeros(config.components, 9)
            start[:, 1:3] = 0.5 + 0.2 * torch.randn_like(start[:, 1:3])
            start[:, 3:5] = -1.3 + 0.3 * torch.randn_like(start[:, 3:5])
            start[: config.staged, 1:5] = 0.0
            start[:, 5:7], start[:, 7:] = -1.5, -0.7
            start[: config.staged, 5:] = -1.8
            self.head.bias.copy_(start.flatten())

    def forward(self, batch: _Batch) -> Mixture:
        present = ~batch.absent
        phrases = self.drop(self.encoder(batch.phrases))
        x = phrases.new_zeros(*batch.absent.shape, self.config.width)
        context = self.forget(batch.context[present])
        x[present] = self.embed(torch.cat((phrases, context), dim=1))
        x = x + self.roles(batch.edges.sum(2))
        for layer in self.layers:
            x = layer(x, batch.edges, batch.absent)
        out = self.head(self.norm(x)).unflatten(-1, (self.config.components, 9))
        k, staged = self.config.staged, batch.staged[:, :, None]
        return Mixture(
            out[..., 0].log_softmax(-1),
            torch.cat((out[..., :k, 1:5] + staged, out[..., k:, 1:5]), dim=2),
            out[..., 5:].clamp(min=_LEAST_LOG_STD, max=1.0),
            k,
        )


@dataclass(frozen=True)
class _Batch:
    """Prompts of up to n objects.

    Attributes:
        phrases: (phrase, noun) of the objects of all.
        context: (batch, n, context) float32, what is known beside the phrases.
        edges: (batch, n, n, EDGE_FEATURES) float32.
        staged: (batch, n, 4) float32.
        absent: (batch, n) bool, which are padding.
    """

    phrases: list[tuple[str, str]]
    context: Tensor
    edges: Tensor
    staged: Tensor
    absent: Tensor


def _stacked(batch: Sequence[Tokens]) -> _Batch:
    n = max(len(tokens.phrases) for tokens in batch)
    context = torch.zeros(len(batch), n, _CONTEXT, dtype=torch.float32, device="cpu")
    edges = context.new_zeros(len(batch), n, n, EDGE_FEATURES)
    staged = context.new_zeros(len(batch), n, 4)
    absent = torch.ones(len(batch), n, dtype=torch.bool, device="cpu")
    for row, tokens in enumerate(batch):
        count = len(tokens.phrases)
        edges[row, :count, :count] = tokens.edges
        absent[row, :count] = False
        staged[row, :count] = tokens.staged
        whole = [math.log(tokens.aspect), math.log(count), *_of_scene(tokens.scene)]
        own = (tokens.facts, tokens.staged, tokens.twins)
        context[row, :count] = torch.cat(
            (*own, tokens.facts.new_tensor(whole).expand(count, -1)), dim=1
        )
    phrases = [pair for tokens in batch for pair in tokens.phrases]
    return _Batch(phrases, context, edges, staged, absent)


class Network(nn.Module):
    """From tokens to mixtures: an ensemble, whose density is the mean of its members'."""

    def __init__(self, config: Config, encoder: PhraseEncoder | None = None) -> None:
        """Random weights, of torch's global generator.

        encoder: of phrases; for each member one of n-grams, which is trained too, if None.
        """
        super().__init__()
        self.config = config
        self.members = nn.ModuleList(
            _Member(config, encoder or NGramEncoder(config.buckets, config.embedding))
            for _ in range(config.members)
        )

    @property
    def encoder(self) -> PhraseEncoder:
        """What embeds phrases, of the first member."""
        member = self.members[0]
        assert isinstance(member, _Member)
        return member.encoder

    def mixtures(self, batch: Sequence[Tokens]) -> list[Mixture]:
        """Each member's mixtures; see `forward`."""
        stacked = _stacked(batch)
        return [member(stacked) for member in self.members]

    def forward(self, batch: Sequence[Tokens]) -> Mixture:
        """A mixture an object.

        Args:
            batch: tokens of prompts, each with at least one object.

        Returns:
            Mixtures (len(batch), n) for the n of the prompt with the most objects; those beyond
            a prompt's own are padding.
        """
        every, k = self.mixtures(batch), self.config.staged

        def joined(parts: Sequence[Tensor]) -> Tensor:
            return torch.cat([p[:, :, :k] for p in parts] + [p[:, :, k:] for p in parts], dim=2)

        return Mixture(
            joined([each.log_weight for each in every]) - math.log(len(every)),
            joined([each.mean for each in every]),
            joined([each.log_std for each in every]),
            k * len(every),
        )


def normal_form(boxes: Sequence[Box]) -> Tensor:
    """Boxes (x0, y0, x1, y1) as z = (cx, cy, log w, log h): (n, 4) float32."""
    x0, y0, x1, y1 = torch.tensor(boxes, dtype=torch.float64, device="cpu").reshape(-1, 4).unbind(1)
    columns = ((x0 + x1) / 2, (y0 + y1) / 2, (x1 - x0).log(), (y1 - y0).log())
    return torch.stack(columns, dim=1).float()


def boxes_from(z: Tensor) -> list[Box]:
    """The inverse of `normal_form` for z (n, 4); sides above 1 become 1."""
    centre, side = z[:, :2].double(), z[:, 2:].double().exp().clamp(max=1.0)
    return [
        (x0, y0, x1, y1)
        for x0, y0, x1, y1 in torch.cat((centre - side / 2, centre + side / 2), dim=1).tolist()
    ]
