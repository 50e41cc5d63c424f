"""Which keys and values a pack is made of, as far as torch counts their changes.

Torch counts the changes in place of a tensor and of all that shares its memory. A pack is three
plain tensors, which cannot say that what they are made of has changed since; this table can, of
packs that are as `stal_kernels.pack` returned them. It knows nothing of copies, of tensors made in
inference mode, whose changes nobody counts, and of what a compiled function or a CUDA graph does.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_PLAIN = (Tensor, torch.nn.Parameter)

# The first tensor of a pack -> k and v, each with its count. They live as long as the pack does,
# so that no other tensor comes to lie where they are.
_SOURCES = WeakTensorKeyDictionary()


def remember(packed: Sequence[Tensor], k: Tensor, v: Tensor) -> None:
    """Notes that a pack is made of k and v as they are."""
    if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None:
        return
    if all(type(x) in _PLAIN and not x.is_inference() for x in (k, v)):
        _SOURCES[packed[0]] = [(x.detach(), x._version) for x in (k, v)]


def check_unchanged(packed: Sequence[Tensor], k: Tensor, v: Tensor) -> None:
    """Raises ValueError if k or v is what the pack is made of and has changed since."""
    made_of = _SOURCES.get(packed[0])
    if made_of is None:
        return
    for name, x, (source, count) in zip("kv", (k, v), made_of, strict=True):
        if source._version != count and type(x) in _PLAIN and x.data_ptr() == source.data_ptr():
            raise ValueError(
                f"packed must be made of {name} as it is, got one made before {name}, or what "
                "shares its memory, changed in place; use stal_kernels.pack again"
            )
