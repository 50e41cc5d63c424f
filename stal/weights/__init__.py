"""Combination weights: how much each prompt counts, at each pixel and step."""

from stal.weights.rules import (
    MODES,
    RULES,
    Mode,
    Rule,
    WeightMaps,
    as_weights,
    check_background,
    check_reference,
    check_weights,
    default_weights,
    falling_weights,
    weight_maps,
)

__all__ = [
    "MODES",
    "RULES",
    "Mode",
    "Rule",
    "WeightMaps",
    "as_weights",
    "check_background",
    "check_reference",
    "check_weights",
    "default_weights",
    "falling_weights",
    "weight_maps",
]
