"""The backends, and which of them computes a call.

A backend is a module or package in this folder that has what `Backend` lists, and two rows in
choice.py: in `_ORDER` and in `_differentiable`. It is imported when it is first asked for. It
imports neither another backend nor anything but torch, contract.py and what it calls.
"""

from stal_kernels.backends.choice import (
    VARIABLE,
    BackwardChoice,
    Choice,
    check_name,
    choose,
    choose_backward,
    choose_for,
    is_proven,
    names,
    why_not,
)
from stal_kernels.backends.contract import STAMP_SIZE, Backend, Inputs

__all__ = [
    "STAMP_SIZE",
    "VARIABLE",
    "Backend",
    "BackwardChoice",
    "Choice",
    "Inputs",
    "check_name",
    "choose",
    "choose_backward",
    "choose_for",
    "is_proven",
    "names",
    "why_not",
]
