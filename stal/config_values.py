"""Numbers and names in the config.json of a network, read so that an error names the key.

Every reader takes the configuration and a key; a key that is not there, or is null, has its
default. A whole number may be written as a float, 64.0. Every reader raises ValueError otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from stal.budget import MOST_LAYERS, MOST_LEVELS, MOST_WIDTH
from stal.checked_json import as_whole, short


def whole(
    config: Mapping[str, Any], key: str, default: int, *, low: int = 1, high: int = MOST_WIDTH
) -> int:
    """An int in [low, high]."""
    value = as_whole(default if config.get(key) is None else config[key])
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{key} must be an integer in [{low}, {high}], got {short(value)}")
    return value


def real(config: Mapping[str, Any], key: str, default: float, *, low: float = -math.inf) -> float:
    """A finite number of at least low."""
    value = default if config.get(key) is None else config[key]
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    # Integers too long for a float are compared, not converted.
    if not is_number or not max(low, -1e300) <= value <= 1e300:
        least = "" if low == -math.inf else f" of at least {low}"
        raise ValueError(f"{key} must be a finite number{least}, got {short(value)}")
    return float(value)


def reals(config: Mapping[str, Any], key: str, count: int) -> tuple[float, ...] | None:
    """So many finite numbers; None where there are none."""
    values = config.get(key)
    if values is None:
        return None
    if not isinstance(values, (list, tuple)) or len(values) != count:
        raise ValueError(f"{key} must be {count} numbers, got {short(values)}")
    return tuple(real({key: value}, key, 0.0) for value in values)


def flag(config: Mapping[str, Any], key: str, default: bool) -> bool:
    """True or False."""
    value = default if config.get(key) is None else config[key]
    if not isinstance(value, bool):
        raise ValueError(f"{key} must be true or false, got {short(value)}")
    return value


def one_of(config: Mapping[str, Any], key: str, allowed: Sequence[str]) -> str:
    """One of the allowed texts, the default first."""
    value = allowed[0] if config.get(key) is None else config[key]
    if value not in allowed:
        raise ValueError(f"{key} must be {' or '.join(allowed)}, got {short(value)}")
    return value


def levels_of(channels: Any) -> int:
    """The number of levels that block_out_channels has an entry for each of."""
    count = len(channels) if isinstance(channels, (list, tuple)) else 1
    if not 1 <= count <= MOST_LEVELS:
        raise ValueError(f"block_out_channels must have 1 to {MOST_LEVELS} levels, got {count}")
    return count


def check_layers(layers: int, tensors: int, where: object) -> None:
    """Raises ValueError where a config.json speaks of more layers than weights lie beside it.

    Asked before anything is built: building takes time with every layer.
    """
    most = min(tensors, MOST_LAYERS)
    if layers > most:
        raise ValueError(
            f"the config.json of {where} must have at most {most} layers, for {tensors} tensors "
            f"beside it, got {layers}"
        )
