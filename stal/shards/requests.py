"""A row of a prompts file as a request of the engine, each value checked for its kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from stal.batch import Request
from stal.checked_json import integer, loads, number, quoted, typed
from stal.pipeline import Pipeline
from stal.schedule import schedule_from_config
from stal.settings import Settings, complete
from stal.shards.rows import PromptRow

_INT64 = 2**63


def request_of(row: PromptRow, settings: Settings, seed: int) -> Request:
    """What a row asks for.

    Args:
        row: without an error.
        settings: where the row says nothing else.
        seed: of row 0; row n without a seed of its own is drawn from seed + n.

    Raises:
        ValueError: no prompt, or a value of another kind. Whether a value can be drawn is not
            looked at.
    """
    values = row.values
    if "prompt" not in values:
        raise ValueError("a row must have a prompt, got none")
    own = {name: read(values[name], name) for name, read in _SETTINGS.items() if name in values}
    return Request(
        prompt=typed(values["prompt"], str, "prompt"),
        settings=replace(settings, **own),
        layout=_json(values, "layout"),
        weights=_json(values, "weights"),
        seed=seed_of(row, seed),
    )


def check_settings(pipe: Pipeline, settings: Settings) -> None:
    """Raises ValueError for settings that no prompt could be drawn with."""
    model = pipe.model
    full = complete(
        settings,
        pipe.defaults,
        sample_size=model.unet.config.sample_size,
        unit=model.scale_factor,
    )
    schedule_from_config(model.components.scheduler_config, full.steps, sampler=full.sampler)


def seed_of(row: PromptRow, seed: int) -> int:
    """The seed that a row is drawn from. Raises ValueError if its own is no integer of 64 bits."""
    own = integer(row.values.get("seed", seed + row.number), "seed")
    if not -_INT64 <= own < _INT64:
        raise ValueError(f"seed must lie in [-2**63, 2**63), got {own}")
    return own


def _text(value: Any, name: str) -> str:
    text: str = typed(value, str, name)
    return text


def _number(value: Any, name: str) -> float:
    """A number, which a cell of a CSV file has as a text."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            pass
    return number(value, name)


def _json(values: Mapping[str, Any], name: str) -> Any:
    """JSON, as such or in a text. A file's name would be one of the machine that draws: no."""
    value = values.get(name)
    if not isinstance(value, str):
        return value
    try:
        value = loads(value)
    except ValueError as error:
        raise ValueError(f"{name} must be JSON, got {error}") from None
    if isinstance(value, str):
        raise ValueError(f"{name} must be an object or a list, got the text {quoted(value)}")
    return value


_SETTINGS: dict[str, Callable[[Any, str], Any]] = {
    **dict.fromkeys(("attention", "rule", "reference", "sampler", "negative_prompt"), _text),
    **dict.fromkeys(("steps", "height", "width"), integer),
    **dict.fromkeys(("guidance_scale", "background", "eta"), _number),
}
