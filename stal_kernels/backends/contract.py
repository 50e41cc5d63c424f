"""What a backend is handed and what it has, whichever it is."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

# What all fast backends compute; float64 has none by design.
FAST_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
STAMP_SIZE = 6  # numbers by which a pack is told; csrc/check_arguments.h has their names


class Inputs(NamedTuple):
    """The arguments of one call, which have passed checks.py unless the backend checks them.

    q: (batch, heads, seqlen_q, head_dim).
    k, v: (batch, prompts, heads, seqlen_k, head_dim), ragged (table, heads, seqlen_k, head_dim).
    weight: (batch, prompts, seqlen_q), ragged (entries, seqlen_q), as region.
    prompt_ids, offsets: (entries,) and (batch + 1,), int32; both None in the dense form.
    key_lengths: (table,), int32, or None; ragged only.
    plan: order (batch, seqlen_q) int32, tiles (batch, ceil(seqlen_q / 32)) int64 and region as
        `stal_kernels.plan` returns them, or None; only with region. No result depends on it.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    weight: Tensor
    prompt_ids: Tensor | None
    offsets: Tensor | None
    region: Tensor | None
    key_lengths: Tensor | None
    plan: Sequence[Tensor] | None
    scale: float
    # words (.., heads, any) int32, stamp (.., STAMP_SIZE) int32 and sample (.., heads, 2, head_dim)
    # of q's dtype as `stal_kernels.pack` returns them, .. as k's, or None; of a forward pass. A
    # backend may make use of its own; no result depends on it.
    packed: Sequence[Tensor] | None = None


class ForwardBackend(Protocol):
    """What a backend has; one without a backward pass has no more.

    LEVELS: names that may follow "<backend>:".
    DEVICES: types of device that auto uses it for; none: all.
    CHECKS_ARGUMENTS: whether its passes refuse with a ValueError whatever breaks the rules of
        `Inputs` and of the arguments below, but for values of index tensors and plans.
    CHECKS_VALUES: whether they refuse those too.
    """

    LEVELS: tuple[str, ...]
    DEVICES: tuple[str, ...]
    CHECKS_ARGUMENTS: bool
    CHECKS_VALUES: bool

    def missing(self, level: str) -> str:
        """Why it, or one of its levels, cannot run on this machine; "" if it can."""

    def why_not(
        self, device: torch.device, dtype: torch.dtype, head_dim: int, seqlen_k: int | None
    ) -> list[str]:
        """Reasons why it cannot run a call with such q and k; seqlen_k None: unknown.

        Nothing else may decide, since choices are kept.
        """

    def packed_words(self, dtype: torch.dtype, head_dim: int, seqlen_k: int, level: str) -> int:
        """Words of 4 bytes that K and V of one prompt and head take in a pack; 0: it packs nothing.

        Args:
            level: as in `forward`.
        """

    def pack(
        self,
        k: Tensor,
        v: Tensor,
        key_lengths: Tensor | None,
        level: str,
        packed: Sequence[Tensor],
    ) -> None:
        """Writes K and V as `forward` reads them.

        Args:
            k, v, key_lengths: as in `Inputs`, ragged.
            level: as in `forward`.
            packed: as in `Inputs`, all zeros, with as many words as `packed_words` says.
        """

    def forward(self, inputs: Inputs, level: str, out: Tensor) -> None:
        """Writes all of out, which has the shape, dtype and device of q.

        Args:
            level: one of LEVELS that `missing` has nothing against; "": the best one.
            out: any strides with a contiguous last dimension.
        """


class Backend(ForwardBackend, Protocol):
    """A backend with a backward pass."""

    def backward(
        self,
        inputs: Inputs,
        level: str,
        dout: Tensor,
        dq: Tensor | None,
        dweight: Tensor | None,
        dk: Tensor | None,
        dv: Tensor | None,
    ) -> None:
        """Writes all of the gradients that are not None.

        Args:
            level: as in `forward`.
            dout: gradient of the output, shape, dtype and device of q.
            dq, dweight, dk, dv: shape, dtype and device of q, weight, k, v; dk and dv are both
                there or neither. Any strides with a contiguous last dimension, as dout.
        """


def fast_limits(backend: str, dtype: torch.dtype, head_dim: int) -> list[str]:
    """Reasons of the fast backends against a call, as far as they have them in common."""
    reasons = []
    if dtype not in FAST_DTYPES:
        reasons.append(f"{backend} needs float16, bfloat16 or float32, got {dtype}")
    if head_dim % 8 or head_dim > 256:
        reasons.append(
            f"{backend} needs a head_dim that is a multiple of 8 and at most 256, got {head_dim}"
        )
    return reasons
