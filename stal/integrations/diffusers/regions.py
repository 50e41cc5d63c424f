"""Regions of a pipeline's prompts: their layouts, encoded phrases and weights, ready to be used."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from stal.caller import warn
from stal.checked_json import number, scalar, short
from stal.fitting import misfits
from stal.integrations.diffusers.adapters import LorasOf, adapters_of, check_adapters
from stal.integrations.diffusers.encoded import Encoded, check_embeds
from stal.integrations.diffusers.refusals import check_pipe
from stal.integrations.diffusers.texts import Encoder
from stal.layout.formats import LayoutLike, as_layout, check_canvas
from stal.layout.keyframes import Keyframes
from stal.layout.layout import Layout
from stal.layout.predictor import predict
from stal.prompts import article, noun_of, parse
from stal.settings import UNCONDITIONAL, check_text
from stal.torch_state import undisturbed
from stal.weights import (
    Rule,
    as_weights,
    check_background,
    check_reference,
    check_weights,
    default_weights,
)

# Of one prompt, or a list with one for each of several.
Weights: TypeAlias = "Tensor | Sequence[Any] | Callable[[int, int], Tensor]"
RegionsOf: TypeAlias = "LayoutLike | Keyframes | Sequence[LayoutLike | Keyframes | None] | None"
WeightsOf: TypeAlias = "Weights | Sequence[Weights | None] | None"
# A number for all regions, or one for each; of several prompts a list with one such for each. None
# is the default.
Dial: TypeAlias = "float | Sequence[Any] | None"
# (prompts, tokens, width), and which of the tokens count, (prompts, tokens), if not all do.
Embeddings: TypeAlias = "Tensor | tuple[Tensor, Tensor]"

MOST_REGIONS = 255
# What None is of a dial.
_DEFAULTS = {"strength": 1.0, "start": 0.0, "stop": 1.0}


@dataclass(frozen=True)
class Regions:
    """What a pipeline's pictures attend to. Made by `prepare`.

    Attributes:
        names: the prompts as messages call them.
        layouts: where the objects of each prompt are.
        rule, background: see `stal.weights.weight_maps`.
        prompts: the encoded prompts, one a layout, by which the rows of a batch are recognised.
        local: the encoded local prompts of all layouts and, last, a reference for each prompt.
        reference: "unconditional" if the rule moves away from that half of the batch alone,
            "prompt" if from the reference prompt, "either" if from that half where there is one.
        weights: of each prompt as the caller gave them, None for the default.
        strength, start, stop: of each prompt, one number a region.
        loras: for each layout the adapters of each of its objects.
    """

    names: tuple[str, ...]
    layouts: tuple[Layout | Keyframes, ...]
    rule: Rule
    background: float
    prompts: Encoded
    local: Encoded
    reference: str
    weights: tuple[Weights | None, ...]
    strength: tuple[tuple[float, ...], ...]
    start: tuple[tuple[float, ...], ...]
    stop: tuple[tuple[float, ...], ...]
    loras: tuple[tuple[tuple[str, ...], ...], ...]

    @property
    def adapters(self) -> tuple[str, ...]:
        """The adapters of all regions, each once."""
        each = (name for layout in self.loras for names in layout for name in names)
        return tuple(dict.fromkeys(each))

    def rows_of(self, prompt: int, reference: bool) -> tuple[int, ...]:
        """A prompt's rows of `local`, with its reference last if it is asked for."""
        counts = [len(layout.objects) for layout in self.layouts]
        first = sum(counts[:prompt])
        own = tuple(range(first, first + counts[prompt]))
        return (*own, sum(counts) + prompt) if reference else own

    def moves_to_prompt(self, *, unconditional: bool) -> bool:
        """Whether the rule moves away from the reference prompt in a call.

        unconditional: whether the call has an unconditional half.

        Raises:
            ValueError: it is to move away from that half and there is none.
        """
        if self.rule != "guidance":
            return False
        if self.reference == UNCONDITIONAL and not unconditional:
            raise ValueError(
                "reference must be a prompt, e.g. 'an empty scene', where the unconditional half"
                " is not in the same batch, as without guidance, got 'unconditional'"
            )
        return self.reference == "prompt" or (self.reference == "either" and not unconditional)

    def weights_of(self, prompt: int, steps: int) -> Tensor:
        """(steps, objects) float32: the weights times the strength, 0 before start and from stop.

        Raises:
            ValueError: weights of another shape, or that the rule does not allow.
        """
        objects = len(self.layouts[prompt].objects)
        given = self.weights[prompt]
        if given is None:
            lam = default_weights(
                steps,
                objects,
                rule=self.rule,
                reference_is_prompt=self.reference == "prompt",
            )
        else:
            values = given(steps, objects) if callable(given) else given
            lam = as_weights(values, steps=steps, objects=objects, rule=self.rule).detach().cpu()
        strength, start, stop = (
            torch.tensor(dial[prompt], dtype=torch.float32, device="cpu").reshape(1, objects)
            for dial in (self.strength, self.start, self.stop)
        )
        # float64, so that a share of the steps that is a step begins with it.
        at = torch.arange(steps, dtype=torch.float64, device="cpu")[:, None] / steps
        inside = (at >= start.double() - 1e-6) & (at < stop.double() - 1e-6)
        lam = torch.where(inside, lam * strength, 0.0)
        try:
            check_weights(lam, rule=self.rule)
        except ValueError as error:
            raise ValueError(f"weights times strength: {error}") from None
        return lam


@undisturbed()
@torch.no_grad()
def prepare(
    pipe: Any,
    prompt: str | Sequence[str] | None = None,
    *,
    layout: RegionsOf = None,
    weights: WeightsOf = None,
    rule: Rule = "guidance",
    reference: str | None = None,
    background: float = 0.0,
    strength: Dial = 1.0,
    start: Dial = 0.0,
    stop: Dial = 1.0,
    loras: LorasOf = None,
    aspect: float | None = None,
    canvas: tuple[float, float] | None = None,
    prompt_embeds: Embeddings | None = None,
    local_embeds: Embeddings | Sequence[Embeddings] | None = None,
    reference_embeds: Embeddings | list[Embeddings] | None = None,
    encode: Mapping[str, Any] | None = None,
) -> Regions:
    """Regions for the prompts that a pipeline is about to be called with.

    Args:
        pipe: a pipeline of diffusers whose denoiser has a row in `models.MODELS`.
        prompt: what the pipeline will be called with; of a list each has its own regions. The
            noun phrases are the local prompts.
        layout: where the objects go, as in `stal.Pipeline.__call__`: a `Layout`, JSON, a file,
            (phrase, box) or (phrase, mask) pairs; predicted if None. Of several prompts a list.
            Of a video also `stal.layout.Keyframes`, whose regions move; others rest.
        weights: (steps, objects) or (objects,), or a function weights(steps, objects); falling
            over the steps if None. steps is the number of the sampler's transitions, also of those
            that a picture to begin with leaves out. No gradient reaches them; one does reach the
            denoiser's sample, outside of compiled code. Of several prompts a list, or a function.
        rule: "guidance" (the released code) or "convex" (the paper), see `stal.weights`.
        reference: what the rule "guidance" moves away from: "unconditional", a prompt, with "{}"
            where the background that `prompt` states belongs, or None: the unconditional half of
            the batch if it has one, otherwise the empty prompt.
        background: how much what lies outside all regions is pulled to the reference prompt.
        strength: multiplies the weights: 0 is the plain model under "guidance". Like the next two
            a number, or one for each region; of several prompts also a list of such. None is the
            default.
        start, stop: the shares of the steps from which and before which regions act.
        loras: from phrases of the layout's objects to adapters that are loaded, a name or a list of
            names: each acts on that phrase and in its region alone, as strongly as set_adapters
            says, whatever the region's strength, start and stop. Of several prompts a list.
        aspect: width / height of the picture, of predicted layouts and those that do not state it;
            that of the canvas if None, or else of the model.
        canvas: (width, height) in pixels that boxes in pixels lie in, such as those of ComfyUI,
            LayoutGPT and LLM-grounded diffusion; see `stal.layout.formats.as_layout`. An aspect
            beside it must be its own.
        prompt_embeds: what the pipeline will be given instead of `prompt`, as it is given; a
            `prompt` beside it is what a layout is predicted for. No gradient reaches these and the
            next two, and no graph of theirs is kept.
        local_embeds: of the layout's objects, in their order; of several prompts a list.
        reference_embeds: of the reference prompt instead of `reference`, (1, tokens, width); of
            several prompts also (prompts, tokens, width), or a list.
        encode: further arguments for the pipeline's `encode_prompt`, the same that the call will
            make it use, such as {"clip_skip": 1}.

    Raises:
        ValueError: an argument breaks its rule, or strings are given where the pipeline has no
            text encoder.
        NotImplementedError: the denoiser has no row in the table, something on it computes
            attention in a way that this does not know, or an adapter cannot act in a region alone.
    """
    denoiser, model = check_pipe(pipe)[0]
    moves_from = _moves_from(rule, reference, reference_embeds, number(background, "background"))
    given = None if prompt_embeds is None else check_embeds("prompt_embeds", prompt_embeds)
    prompts = _prompts(prompt, given)
    count = None if isinstance(prompt, str) or prompts == [None] else len(prompts)
    canvas = check_canvas(canvas)
    aspect = _aspect(aspect, canvas, pipe, denoiser)
    layouts = tuple(
        _layout(each, text, aspect, canvas, videos=model.videos)
        for each, text in zip(_layouts(layout, count), prompts, strict=True)
    )
    phrases = [[placed.phrase for placed in each.objects] for each in layouts]
    adapters = tuple(map(adapters_of, _each("loras", loras, count), phrases))
    every = tuple(dict.fromkeys(n for each in adapters for names in each for n in names))
    check_adapters(pipe, every)
    given_dials = {"strength": strength, "start": start, "stop": stop}
    dials = {name: _dials(name, value, layouts, count) for name, value in given_dials.items()}
    _check_order(dials["start"], dials["stop"])
    given_weights = (
        [weights] * len(layouts) if callable(weights) else _each("weights", weights, count)
    )
    for values, each in zip(given_weights, layouts, strict=True):
        if values is not None and not callable(values):
            _check_weights(values, len(each.objects), rule)
    given_local = _each("local_embeds", local_embeds, count)
    if encode is not None and not isinstance(encode, Mapping):
        raise ValueError(f"encode must map arguments of encode_prompt, got {short(encode)}")
    encoder = Encoder(pipe, model, dict(encode or {}), every)
    known = encoder.encode([text or "" for text in prompts]) if given is None else given
    local = [
        encoder.phrases(embeds, texts, names, known)
        for embeds, texts, names in zip(given_local, phrases, adapters, strict=True)
    ]
    if rule == "guidance" and reference != UNCONDITIONAL:
        local += encoder.references(reference or "", prompts, reference_embeds, known)
    return Regions(
        names=tuple(short(t) if t else f"prompt_embeds[{i}]" for i, t in enumerate(prompts)),
        layouts=layouts,
        rule=rule,
        background=background,
        prompts=model.received(pipe, known),
        local=model.received(pipe, encoder.table(local)),
        reference=moves_from,
        weights=tuple(given_weights),
        loras=adapters,
        **dials,
    )


def _check_weights(given: Any, objects: int, rule: Rule) -> None:
    """Raises ValueError unless the weights may be those of so many objects, whatever the steps."""
    shape = getattr(given, "shape", None)
    nested = isinstance(given, Sequence) and any(isinstance(row, Sequence) for row in given)
    by_step = len(shape) > 1 if isinstance(shape, tuple) else nested
    as_weights(given, steps=len(given) if by_step else 1, objects=objects, rule=rule)


def _moves_from(rule: Rule, reference: str | None, embeds: Any, background: float) -> str:
    """`Regions.reference`; embeds: the caller's of the reference prompt, or None.

    Raises:
        ValueError: the rule does not go with the reference or the background, or there are two
            references.
    """
    check_reference(rule, reference_is_prompt=True, guided=True)
    if embeds is not None and rule != "guidance":
        raise ValueError(f"reference_embeds must come with the rule guidance, got {short(rule)}")
    if rule == "convex" and reference is not None:
        raise ValueError(f"reference must come with the rule guidance, got {short(reference)}")
    if embeds is not None and reference is not None:
        raise ValueError("reference_embeds must come without reference, got both")
    is_prompt = embeds is not None or reference not in (None, UNCONDITIONAL)
    to_prompt = rule == "guidance" and is_prompt
    check_background(background, rule=rule, reference_is_prompt=to_prompt)
    if to_prompt:
        return "prompt"
    return "either" if reference is None else UNCONDITIONAL


def _prompts(prompt: str | Sequence[str] | None, embeds: Encoded | None) -> list[str | None]:
    """The texts; None of a prompt that is given as embeddings alone."""
    if prompt is None:
        if embeds is None:
            raise ValueError("prompt or prompt_embeds must be given, got neither")
        if not len(embeds.embeds):
            raise ValueError("prompt_embeds must be of at least one prompt, got none")
        return [None] * len(embeds.embeds)
    if isinstance(prompt, bytes) or not isinstance(prompt, Sequence):
        raise ValueError(f"prompt must be a text or a list of texts, got {short(prompt)}")
    texts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not texts:
        raise ValueError("prompt must hold at least one text, got an empty list")
    for text in texts:
        check_text("prompt", text)
    if embeds is not None and len(embeds.embeds) != len(texts):
        got = len(embeds.embeds)
        raise ValueError(f"prompt_embeds must be of {len(texts)} prompts, got {got}")
    return list(texts)


def _each(name: str, value: Any, count: int | None) -> list[Any]:
    """One value a prompt; count: of a list of prompts, None of a single one."""
    if count is None:
        return [value]
    if value is None:
        return [None] * count
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != count:
        listed = isinstance(value, Sequence) and not isinstance(value, str)
        got = len(value) if listed else short(value)
        raise ValueError(
            f"{name} must be a list of {count}, one a prompt, got {got}: [x] * {count} has the"
            " same for each"
        )
    return list(value)


def _layouts(given: Any, count: int | None) -> list[Any]:
    """One layout a prompt; count as in `_each`."""
    some = isinstance(given, list | tuple) and len(given) > 0
    if count is not None and some and all(map(_is_pair, given)):
        raise ValueError(
            f"layout must be a list of {count} layouts, one a prompt, got one of {len(given)}"
            f" pairs: [layout] * {count} has the same for each"
        )
    if count is None and some and all(isinstance(one, Layout) or _is_layout(one) for one in given):
        raise ValueError(
            f"layout must be one layout for one prompt, got a list of {len(given)}: leave out the"
            " outer list"
        )
    return _each("layout", given, count)


def _is_layout(value: Any) -> bool:
    """Whether it is a list of phrases and their places."""
    return isinstance(value, list | tuple) and len(value) > 0 and all(map(_is_pair, value))


def _is_pair(value: Any) -> bool:
    """Whether it is of a phrase and its place, and so no layout itself."""
    return isinstance(value, tuple | list) and len(value) == 2 and isinstance(value[0], str)


def _aspect(
    aspect: float | None, canvas: tuple[float, float] | None, pipe: Any, denoiser: Any
) -> float:
    """The caller's, that of the canvas, or that of the pictures that the model was trained on."""
    of_canvas = None if canvas is None else canvas[0] / canvas[1]
    if aspect is not None:
        aspect = number(aspect, "aspect")
        if of_canvas is not None and not math.isclose(aspect, of_canvas, rel_tol=0.01):
            raise ValueError(
                f"aspect must be that of the canvas, {of_canvas:.4g}, got {aspect:.4g}"
            )
        return aspect
    if of_canvas is not None:
        return of_canvas
    size = getattr(denoiser.config, "sample_size", None)
    if isinstance(size, Sequence) and len(size) == 2:
        return size[1] / size[0]
    # A transformer of videos does not say it; its pipeline's arguments do.
    arguments = inspect.signature(type(pipe).__call__).parameters if callable(pipe) else {}
    height, width = (getattr(arguments.get(name), "default", None) for name in ("height", "width"))
    return width / height if isinstance(width, int) and isinstance(height, int) else 1.0


def _layout(
    given: LayoutLike | Keyframes | None,
    text: str | None,
    aspect: float,
    canvas: tuple[float, float] | None,
    *,
    videos: bool,
) -> Layout | Keyframes:
    """A prompt's layout, warned of if it will not do what one may expect.

    aspect, canvas: as in `as_layout`.
    videos: whether the model draws frames, over which regions may move.
    """
    layout: Layout | Keyframes
    if given is None:
        if text is None:
            raise ValueError("layout must be given with prompt_embeds alone, got None")
        layout = predict(parse(text), aspect=aspect)
    elif isinstance(given, Keyframes):
        if not videos:
            raise ValueError(
                "layout must be of one picture where the model draws pictures, got Keyframes: give"
                " one of its layouts"
            )
        layout = given
    else:
        layout = as_layout(
            given,
            prompt=text or "",
            aspect=aspect,
            noun_of=noun_of,
            article=article,
            canvas=canvas,
        )
    if len(layout.objects) > MOST_REGIONS:
        raise ValueError(
            f"layout must have at most {MOST_REGIONS} objects, got {len(layout.objects)}"
        )
    for index, placed in enumerate(layout.objects):
        check_text(f"objects[{index}].phrase of the layout", placed.phrase)
    for sentence in misfits(text, layout, given=given is not None):
        warn(sentence)
    return layout


def _dials(
    name: str, value: Any, layouts: Sequence[Layout | Keyframes], count: int | None
) -> tuple[tuple[float, ...], ...]:
    """Numbers for each region of each prompt; count as in `_each`."""
    value = _listed(value)
    each = _each(name, value, count) if isinstance(value, list) else [value] * len(layouts)
    return tuple(_dial(name, v, len(of.objects)) for v, of in zip(each, layouts, strict=True))


def _dial(name: str, value: Any, objects: int) -> tuple[float, ...]:
    """One number for each region of a prompt; None is the default.

    Raises:
        ValueError: no number and no list, or one of another length, or a number that is not finite
            or, of a share, not in [0, 1].
    """
    values = _DEFAULTS[name] if value is None else _listed(value)
    if isinstance(values, int | float) and not isinstance(values, bool):
        values = [values] * objects
    if not isinstance(values, list) or len(values) != objects:
        rule = f"be a number, or one for each of {objects} regions"
        raise ValueError(f"{name} must {rule}, got {short(value)}")
    found = tuple(number(each, name) for each in values)
    for each in found:
        if not (math.isfinite(each) if name == "strength" else 0 <= each <= 1):
            rule = "finite" if name == "strength" else "a share of the steps, in [0, 1]"
            raise ValueError(f"{name} must be {rule}, got {each}")
    return found


def _check_order(start: Sequence[Sequence[float]], stop: Sequence[Sequence[float]]) -> None:
    """Raises ValueError if a region would stop before it starts."""
    for begins, ends in zip(start, stop, strict=True):
        for begin, end in zip(begins, ends, strict=True):
            if begin > end:
                raise ValueError(f"start must be at most stop, got {begin:g} and {end:g}")


def _listed(value: Any) -> Any:
    """A sequence, array or tensor as a list, a number of any kind as Python's; others as is."""
    value = scalar(value)
    is_array = isinstance(getattr(value, "shape", None), tuple) and len(value.shape) > 0
    is_list = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    return list(value) if is_array or is_list else value
