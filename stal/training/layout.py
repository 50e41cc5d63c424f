"""Trains the layout predictor: negative log-likelihood of boxes, and of stated differences.

    L = -mean log p(z_i) - lambda mean_{(i, j) stated} log p(c_i - c_j)

The second term is the relative-position objective after Wu et al. (arXiv 2304.03869): the density
of the difference of two objects' centres, a mixture over all pairs of their components.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from stal import torch_state
from stal.caller import warn
from stal.files import write_atomic
from stal.layout import Box
from stal.layout.network import (
    EXTENTS,
    ONE_WAY,
    SIZES,
    Config,
    Mixture,
    Network,
    PhraseEncoder,
    Tokens,
    flip,
    normal_form,
    tokens_of,
)
from stal.layout.predictor import WEIGHTS, metadata_of
from stal.prompts.things import FLATTERY
from stal.relations import GEOMETRY
from stal.runs import differing, read_checkpoint, write_checkpoint
from stal.runs import held as held_folder
from stal.training.composed import compose
from stal.training.layout_data import LayoutExample, read_coco, read_nsr1k, shapes

FOLDS = 5
SAVE_EVERY = 250  # steps
_STATE = "training.safetensors"
# What a batch consists of: annotated pictures, composed scenes, shapes.
_SHARES = (0.75, 0.1, 0.15)
# Added to the mean of a size's logarithm: a box that is too large by a factor shares more with the
# real one than a box that is too small by it.
_LARGER = 0.08
_BLUR = 0.6  # standard deviation of the error of a size's logarithm


@dataclass(frozen=True)
class LayoutRecipe:
    """How to train.

    Attributes:
        steps, batch, learning_rate: of AdamW; the rate falls to 0 along a cosine.
        relative: lambda, 0 to train without the relative-position objective.
        composed: scenes drawn from the table of everyday things, and as many of shapes.
        fold: pictures whose id is this modulo `FOLDS` are only validated on; None trains on all,
            and validates on what it trains on.
        seed: of everything.
    """

    steps: int = 450
    batch: int = 48
    learning_rate: float = 2e-3
    relative: float = 0.5
    composed: int = 3000
    fold: int | None = None
    seed: int = 0


@torch_state.training()
def train(
    output: Path,
    recipe: LayoutRecipe,
    *,
    nsr1k: Sequence[Path] = (),
    annotations: Path | None = None,
    captions: Path | None = None,
    text_encoder: Path | None = None,
    quiet: bool = False,
) -> dict[str, float]:
    """Trains and writes the weights to a folder; a killed run goes on where it stopped, and a
    finished one is not trained again.

    Args:
        output: folder; it is made.
        recipe: how long, on what share of the pictures, from which seed.
        nsr1k: files in NSR-1K's format.
        annotations: COCO's instances.
        captions: COCO's captions of them; relations of the boxes are described if None.
        text_encoder: diffusers folder whose text encoder embeds the phrases; n-grams if None.
        quiet: without a progress bar.

    Returns:
        "nll" an object and "relations", the share of stated sides that hold between the modes, of
        annotated pictures: those held out if there is a fold.

    Raises:
        ValueError: nothing to train on, a file that is not what it should be, a folder of another
            recipe or other pictures, or a fold or a number of steps that does not exist.
    """
    if recipe.fold is not None and not 0 <= recipe.fold < FOLDS:
        raise ValueError(f"fold must be in 0 .. {FOLDS - 1}, got {recipe.fold}")
    if recipe.steps < 1:
        raise ValueError(f"steps must be positive, got {recipe.steps}")
    encoder: PhraseEncoder | None = None
    if text_encoder is not None:
        from stal.layout.phrase_encoder import TextEncoder

        encoder = TextEncoder.load(text_encoder)
    held, pools = _examples(recipe, nsr1k, annotations, captions)
    torch.manual_seed(recipe.seed)
    network = Network(Config(), encoder)
    identity = _identity(recipe, network, held + pools[0])
    with held_folder(output):
        scores = _finished(output, identity)
        if scores is not None:
            return scores
        _fit(network, recipe, pools, output, identity, quiet=quiet)
        scores = validate(network, held)
        extra = {"fold": recipe.fold, "relative": recipe.relative, "steps": recipe.steps}
        weights = {name: value.contiguous() for name, value in network.state_dict().items()}
        metadata = metadata_of(network, {**extra, **scores, **identity})
        write_atomic(output / WEIGHTS, save(weights, metadata))
        (output / _STATE).unlink(missing_ok=True)
    return scores


def _finished(output: Path, identity: Mapping[str, str]) -> dict[str, float] | None:
    """What a finished run of this identity scored; None where nothing is finished.

    Raises ValueError where another run is.
    """
    from safetensors import safe_open

    path = output / WEIGHTS
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        other = differing(metadata, identity)
        scores = {name: float(metadata[name]) for name in ("nll", "relations")}
    except (SafetensorError, KeyError, ValueError):
        other, scores = ["weights"], {}
    fix = "delete it to train again, or name another output"
    if other:
        got = f"a finished run of other {', '.join(other)}"
        raise ValueError(f"{path} must be of the same run, got {got}: {fix}")
    warn(f"{path} is finished and nothing is trained: {fix}")
    return scores


def _fit(
    network: Network,
    recipe: LayoutRecipe,
    pools: Sequence[list[LayoutExample]],
    output: Path,
    identity: Mapping[str, str],
    *,
    quiet: bool,
) -> None:
    """Trains a network, from the checkpoint in the folder if there is one."""
    from tqdm import tqdm

    optimizer = torch.optim.AdamW(network.parameters(), recipe.learning_rate, weight_decay=0.05)
    start, found = 0, read_checkpoint(output / _STATE, identity)
    if found is not None:
        start, tensors = found
        _restore(network, optimizer, start, tensors)
    with tqdm(range(start, recipe.steps), initial=start, total=recipe.steps, disable=quiet) as bar:
        for step in bar:
            rate = 0.5 * (1 + math.cos(math.pi * step / recipe.steps)) * min(1.0, (step + 1) / 50)
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * rate
            # All that is random follows from the step: a resumed run draws what a whole one does.
            rng = random.Random(recipe.seed * 1_000_003 + step)
            torch.manual_seed(rng.getrandbits(31))
            batch = [_augment(rng.choice(pool), rng) for pool in _choose(pools, recipe.batch, rng)]
            network.train()
            mixtures = network.mixtures([tokens for tokens, _ in batch])
            loss = torch.stack([_loss(each, batch, recipe.relative) for each in mixtures]).sum()
            optimizer.zero_grad()
            loss.backward()
            for member in network.members:
                torch.nn.utils.clip_grad_norm_(member.parameters(), 1.0)
            optimizer.step()
            if (step + 1) % 25 == 0:
                bar.set_postfix(loss=f"{loss.item() / len(mixtures):.3f}")
            if (step + 1) % SAVE_EVERY == 0 and step + 1 < recipe.steps:
                state = _state(network, optimizer)
                write_checkpoint(output / _STATE, identity, step + 1, state)


def _examples(
    recipe: LayoutRecipe, nsr1k: Sequence[Path], annotations: Path | None, captions: Path | None
) -> tuple[list[LayoutExample], list[list[LayoutExample]]]:
    """What to validate on, and what to train on: pictures, composed scenes, shapes."""
    real = [example for path in nsr1k for example in read_nsr1k(path)]
    if annotations is not None:
        real += read_coco(annotations, captions)
    if not real:
        raise ValueError("train-layout must be given annotated pictures: --nsr1k or --annotations")
    fold, n, seed = recipe.fold, recipe.composed, recipe.seed
    held = [each for each in real if fold is None or each.image % FOLDS == fold]
    kept = [each for each in real if fold is None or each.image % FOLDS != fold]
    pools = [kept, compose(n, seed=seed), shapes(n, seed=seed)]
    return held, [pool for pool in pools if pool]


def _choose(
    pools: Sequence[list[LayoutExample]], n: int, rng: random.Random
) -> list[list[LayoutExample]]:
    return rng.choices(pools, _SHARES[: len(pools)], k=n)


def target_of(example: LayoutExample) -> Tensor:
    """z of every object, NaN where the box is not known: (n, 4) float32."""
    z = torch.full((len(example.boxes), 4), math.nan, dtype=torch.float32, device="cpu")
    known = [i for i, box in enumerate(example.boxes) if box is not None]
    if known:
        z[known] = normal_form([box for box in example.boxes if box is not None])
    return z


def _augment(example: LayoutExample, rng: random.Random) -> tuple[Tokens, Tensor]:
    """Tokens and target, mirrored half the time; real pictures are also cut to another aspect.

    The sizes of things are blurred, lest nouns be told apart by them.
    """
    boxes, aspect = example.boxes, example.aspect
    if example.image and rng.random() < 0.3:
        boxes, aspect = _crop(boxes, aspect, rng)
    if aspect != example.aspect:
        example = replace(example, boxes=boxes, aspect=aspect)
        tokens = _tokens(example)
    else:
        tokens = _kept_tokens(example)
    z = target_of(example)
    tokens = replace(tokens, facts=_blur(tokens.facts, rng))
    if rng.random() < 0.5:
        tokens = flip(tokens)
        z[:, 0] = 1 - z[:, 0]
    return tokens, z


def _tokens(example: LayoutExample) -> Tokens:
    return tokens_of(
        example.phrases,
        example.relations,
        aspect=example.aspect,
        scene=example.scene,
        sides=example.sides,
    )


@lru_cache(maxsize=65536)
def _kept_tokens(example: LayoutExample) -> Tokens:
    return _tokens(example)


def _blur(facts: Tensor, rng: random.Random) -> Tensor:
    """The facts, (n, facts), with errors of each thing's size and aspect, and of all sizes."""
    scale = rng.gauss(0, _BLUR)
    errors = [(rng.gauss(0, _BLUR), rng.gauss(0, _BLUR / 2)) for _ in facts]
    rows = [
        (0.0, (size + scale) / EXTENTS, size * FLATTERY, aspect, 0.0) for size, aspect in errors
    ]
    blurred = facts.clone()
    blurred[:, :SIZES] += facts.new_tensor(rows) * facts[:, :1]
    return blurred


def _crop(
    boxes: Sequence[Box | None], aspect: float, rng: random.Random
) -> tuple[tuple[Box | None, ...], float]:
    """A strip of the picture, along one axis, that holds every known box."""
    axis = rng.randrange(2)
    known = [box for box in boxes if box is not None]
    low = rng.uniform(0, min(box[axis] for box in known))
    high = rng.uniform(max(box[axis + 2] for box in known), 1)

    def cut(box: Box) -> Box:
        edges = list(box)
        for k in (axis, axis + 2):
            edges[k] = (edges[k] - low) / (high - low)
        return edges[0], edges[1], edges[2], edges[3]

    scaled = aspect * (high - low) if axis == 0 else aspect / (high - low)
    return tuple(box and cut(box) for box in boxes), scaled


def _loss(mixture: Mixture, batch: Sequence[tuple[Tokens, Tensor]], relative: float) -> Tensor:
    z = torch.nn.utils.rnn.pad_sequence(
        [each for _, each in batch], batch_first=True, padding_value=float("nan")
    )
    known = ~z.isnan().any(-1)
    filled = z.nan_to_num()
    loss = -mixture.log_prob(filled)[known].mean()
    if not relative:
        return loss
    # A pair is stated where an edge says anything of it but that the two are twins.
    pairs = [
        (row, i, j)
        for row, (tokens, _) in enumerate(batch)
        for i, j in tokens.edges[:, :, :ONE_WAY].any(-1).nonzero().tolist()
        if known[row, i] and known[row, j]
    ]
    if pairs:
        row, i, j = torch.tensor(pairs).unbind(1)
        delta = (filled[row, i] - filled[row, j])[:, :2]
        loss = loss - relative * mixture.log_prob_difference(row, i, j, delta).mean()
    return loss


@torch_state.undisturbed()
@torch.inference_mode()
def log_probs(network: Network, examples: Sequence[LayoutExample]) -> list[list[float]]:
    """log p of each known box's (cx, cy, log w, log h), in nats, by example."""
    network.eval()
    out: list[list[float]] = []
    for start in range(0, len(examples), 64):
        part = examples[start : start + 64]
        mixture = network([_tokens(e) for e in part])
        targets = [target_of(each) for each in part]
        z = torch.nn.utils.rnn.pad_sequence(targets, batch_first=True, padding_value=float("nan"))
        logs = mixture.log_prob(z.nan_to_num())
        for row, target in enumerate(targets):
            out.append(logs[row, : len(target)][~target.isnan().any(-1)].tolist())
    return out


@torch_state.undisturbed()
@torch.inference_mode()
def modes(network: Network, examples: Sequence[LayoutExample]) -> list[Tensor]:
    """The z of each object that shares most with real ones, by example: (n, 4) float32."""
    network.eval()
    out: list[Tensor] = []
    for start in range(0, len(examples), 64):
        part = examples[start : start + 64]
        mixture = network([_tokens(e) for e in part])
        mode = mixture.mode()
        mode[..., 2:] += _LARGER
        out += [z[: len(e.boxes)] for z, e in zip(mode, part, strict=True)]
    return out


def validate(network: Network, examples: Sequence[LayoutExample]) -> dict[str, float]:
    """ "nll" an object, and "relations", the share of stated sides that the modes fulfil."""
    logs = [value for each in log_probs(network, examples) for value in each]
    held = stated = 0
    for example, mode in zip(examples, modes(network, examples), strict=True):
        for i, name, j in example.relations:
            g = GEOMETRY[name]
            delta = mode[i] - mode[j]
            if g.dx or g.dy:
                stated += 1
                held += bool((delta[0] * g.dx > 0) if g.dx else (delta[1] * g.dy > 0))
    return {
        "nll": -sum(logs) / max(len(logs), 1),
        "relations": held / stated if stated else float("nan"),
    }


def _identity(
    recipe: LayoutRecipe, network: Network, real: Sequence[LayoutExample]
) -> dict[str, str]:
    """What a run that goes on must agree with."""
    values = {f"recipe {name}": repr(value) for name, value in asdict(recipe).items()}
    pictures = hashlib.sha256(repr(real).encode()).hexdigest()[:16]
    return {**values, "encoder": network.encoder.identity, "pictures": pictures}


def _state(network: Network, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Every parameter with its two moments, "<name>/first" and "<name>/second"."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in network.named_parameters():
        state = optimizer.state[parameter]
        tensors[name] = parameter.detach()
        tensors[f"{name}/first"] = state["exp_avg"]
        tensors[f"{name}/second"] = state["exp_avg_sq"]
    return tensors


def _restore(
    network: Network,
    optimizer: torch.optim.Optimizer,
    step: int,
    tensors: Mapping[str, Tensor],
) -> None:
    for name, parameter in network.named_parameters():
        parameter.data.copy_(tensors[name])
        optimizer.state[parameter] = {
            "step": torch.tensor(float(step)),
            "exp_avg": tensors[f"{name}/first"],
            "exp_avg_sq": tensors[f"{name}/second"],
        }
