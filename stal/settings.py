"""How to draw, whatever the prompt: settings, a model's defaults for them, and their rules."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from stal import budget
from stal.checked_json import number, read_json, scalar, short, shown, typed
from stal.weights import MODES, RULES, Mode, Rule, check_background, check_reference

UNCONDITIONAL = "unconditional"
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Defaults:
    """What a model is best used with. A folder states its own in `stal.json`.

    steps, guidance_scale: see `Pipeline`.
    reference: what the rule "guidance" moves away from: "unconditional", as the released code
        does, or the text of a prompt; "{}" in it stands for the background that the prompt to draw
        states ("on a black background"), or for nothing.
    background: of the rule "guidance" with a reference prompt, see `stal.weights.weight_maps`.
    local_prompt: how an object's phrase becomes its local prompt; "{}" stands for the phrase.
    words: the words that the model knows; None where it was trained on open text.
    """

    steps: int = 50
    guidance_scale: float = 7.5
    reference: str = UNCONDITIONAL
    background: float = 0.0
    local_prompt: str = "{}"
    words: tuple[str, ...] | None = None

    @staticmethod
    def of(folder: Path) -> Defaults:
        """The defaults of a model folder; null and what is not there are ours.

        Raises ValueError if its `stal.json` holds others.
        """
        path = folder / "stal.json"
        if not path.is_file():
            return Defaults()
        values = {name: value for name, value in read_json(path).items() if value is not None}
        unknown = sorted(set(values) - set(Defaults.__dataclass_fields__))
        if unknown:
            raise ValueError(
                f"{path} must hold known settings, got {', '.join(map(shown, unknown[:3]))}"
            )
        for name, value in values.items():
            where = f"{name} in {path}"
            if name in ("reference", "local_prompt"):
                check_text(where, value)
            elif name == "words":
                for word in typed(value, list, where):
                    check_text(where, word)
                values[name] = tuple(value)
            else:
                finite = number(value, where)
                is_whole = isinstance(value, float) and finite.is_integer() and name == "steps"
                values[name] = int(value) if is_whole else value
        return Defaults(**values)

    def unknown_words(self, texts: Iterable[str]) -> list[str]:
        """The words in lower case that the model was never shown, each once."""
        if self.words is None:
            return []
        known = set(self.words)
        every = (word for text in texts for word in _WORD.findall(text.lower()))
        return list(dict.fromkeys(word for word in every if word not in known))


@dataclass(frozen=True)
class Settings:
    """How to draw, whatever the prompt; None stands for the model's default. See `Pipeline`."""

    attention: Mode = "spatial-temporal"
    rule: Rule = "guidance"
    reference: str | None = None
    background: float | None = None
    sampler: str | None = None
    eta: float = 0.0
    steps: int | None = None
    guidance_scale: float | None = None
    height: int | None = None
    width: int | None = None
    negative_prompt: str = ""
    num_images: int = 1


@dataclass(frozen=True)
class Complete(Settings):
    """Settings that leave nothing open but the sampler."""

    reference: str = UNCONDITIONAL
    background: float = 0.0
    steps: int = 0
    guidance_scale: float = 0.0
    height: int = 0
    width: int = 0


def complete(
    settings: Settings, defaults: Defaults, *, sample_size: int | Sequence[int] | None, unit: int
) -> Complete:
    """The settings with the model's defaults filled in, each value checked.

    Args:
        settings: None stands for the default.
        defaults: of the model.
        sample_size: height and width of the latents that the UNet was trained on, in cells; None
            where its configuration does not say.
        unit: pixels along a side of one cell.

    Raises:
        ValueError: a value breaks its rule.
    """
    rows, columns = sample_size if isinstance(sample_size, Sequence) else [sample_size] * 2
    own: dict[str, Any] = {
        "reference": defaults.reference,
        "steps": defaults.steps,
        "guidance_scale": defaults.guidance_scale,
        "height": rows and rows * unit,
        "width": columns and columns * unit,
    }
    given = {k: scalar(v) for k, v in asdict(settings).items() if v is not None}
    full = Complete(**own | given)
    if settings.background is None and refers_to_prompt(full):
        full = replace(full, background=defaults.background)
    _check(full, unit)
    return full


def refers_to_prompt(settings: Settings) -> bool:
    """Whether the rule moves away from a prompt, not from the unconditional half or nothing."""
    return settings.reference != UNCONDITIONAL and settings.rule != "convex"


def reference_prompt(template: str, background: str) -> str:
    """The reference's text: "{}" in the template stands for what a prompt says of the background.

    background: `Description.background`, like "on a black background", or "".
    """
    return " ".join(template.replace("{}", background).split())


def check_text(name: str, text: object) -> None:
    """Raises ValueError unless it is a text that a tokenizer can read."""
    # Half a surrogate pair, as an undecodable command line gives it, is no text to a tokenizer.
    if not isinstance(text, str) or any("\ud800" <= c <= "\udfff" for c in text):
        raise ValueError(f"{name} must be a text of valid Unicode, got {short(text)}")


def _check(settings: Complete, unit: int) -> None:
    for name, allowed in (("attention", MODES), ("rule", RULES)):
        value = getattr(settings, name)
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {short(value)}")
    for name in ("steps", "num_images", "height", "width"):
        value = getattr(settings, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            why = ": the model states no size of its own" if value is None else ""
            raise ValueError(f"{name} must be a positive integer, got {short(value)}{why}")
    for name in ("height", "width"):
        value = getattr(settings, name)
        if value % unit:
            near = max(round(value / unit), 1) * unit
            raise ValueError(
                f"{name} must be a multiple of {unit}, got {value}; {near} is the nearest"
            )
    if settings.num_images > budget.MOST_IMAGES:
        raise ValueError(
            f"num_images must be at most {budget.MOST_IMAGES}, got {settings.num_images}"
        )
    if settings.height * settings.width > budget.MOST_IMAGE_PIXELS:
        raise ValueError(
            f"height and width must be at most {budget.MOST_IMAGE_PIXELS} pixels together, got"
            f" {settings.height} and {settings.width}"
        )
    for name in ("guidance_scale", "eta", "background"):
        value = getattr(settings, name)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not math.isfinite(value):
            raise ValueError(f"{name} must be a finite number, got {short(value)}")
    if not 0 <= settings.eta <= 1:
        raise ValueError(f"eta must lie in [0, 1], got {settings.eta}")
    for name in ("negative_prompt", "reference"):
        check_text(name, getattr(settings, name))
    if settings.attention != "plain":
        rule, prompt = settings.rule, refers_to_prompt(settings)
        guided = settings.guidance_scale != 1
        check_reference(rule, reference_is_prompt=prompt, guided=guided)
        check_background(settings.background, rule=rule, reference_is_prompt=prompt)
