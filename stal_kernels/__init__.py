"""Blended attention for PyTorch: one operator, several backends.

`blended_attention` and `blended_attention_ragged` are the operator, `plan` is what it can know of
regions beforehand and `pack` of keys and values, `why_not` says what keeps a backend from running
something, and `python -m stal_kernels` prints what a bug report needs.
"""

from stal_kernels.backends import why_not
from stal_kernels.interface import blended_attention, blended_attention_ragged, pack, plan

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "blended_attention",
    "blended_attention_ragged",
    "pack",
    "plan",
    "why_not",
]
