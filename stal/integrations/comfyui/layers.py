"""One cross-attention layer of a network, with the keys and values of the local prompts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from stal.attention import blend
from stal.integrations.comfyui.models import Size
from stal.integrations.comfyui.run import Call, Run

# From (prompts, seqlen_k, width) to k and v, (prompts, heads, seqlen_k, head_dim).
Project = Callable[[Tensor], tuple[Tensor, Tensor]]


class Layer:
    """What one layer attends to.

    The keys and values of local prompts depend on neither the latents nor the step: they are
    projected when the layer is first called in a run, which is when its weights are where they are
    needed, and kept until the run is over if there is room.
    """

    def __init__(self) -> None:
        self._run: Run | None = None
        self._kept: tuple[Tensor, Tensor] | None = None

    def forget(self) -> None:
        self._run, self._kept = None, None

    def local(self, run: Run, project: Project, *, may_change: bool) -> tuple[Tensor, Tensor]:
        """k, v of the local prompts.

        Args:
            run: that is under way.
            project: makes them.
            may_change: whether the layer's weights may be others at the next call.
        """
        if may_change:
            return project(run.prompts.embeds)
        if self._run is not run or self._kept is None:
            self.forget()
            k, v = project(run.prompts.embeds)
            if not run.may_keep(k.nbytes + v.nbytes):
                return k, v
            self._run, self._kept = run, (k, v)
        return self._kept

    def __call__(
        self,
        call: Call,
        level: Size,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        local: tuple[Tensor, Tensor],
        own: Callable[[], Tensor] | None = None,
        scale: float | None = None,
    ) -> Tensor:
        """Attends to the rows' own prompts and to the local ones in their regions.

        Args:
            call: of the network.
            level: frames, height and width of q's pixels.
            q: (rows, heads, n, head_dim).
            k, v: (rows, heads, seqlen_k, head_dim) of the rows' own prompts.
            local: k and v of the local prompts, see `Layer.local`.
            own: gives the attention to the rows' own prompts, (rows, n, heads * head_dim), if it
                is more than softmax(scale q k^T) v.

        Raises:
            ValueError: q is not of the call's rows, or not of the level's pixels.
        """
        frames, height, width = level
        if len(q) != call.rows or q.shape[2] != frames * height * width:
            raise ValueError(
                f"model must attend to {call.rows} x {frames * height * width} pixels, got"
                f" {len(q)} x {q.shape[2]}: take out the node that adds others"
            )
        first, second = local
        at = call.attended(level, fused=own is None)
        if own is None:
            first, second = _joined(first, k), _joined(second, v)
            lengths = call.run.key_lengths(len(k), k.shape[2])
        else:
            lengths = call.run.key_lengths(0, 0)
        out = blend(q, first, second, at.ids, at.offsets, at.maps, scale=scale, key_lengths=lengths)
        joined = out.transpose(1, 2).flatten(2)
        if own is None:
            return joined
        found = own()
        return joined + (found if at.own is None else found * at.own[..., None].to(found.dtype))


def _joined(local: Tensor, own: Tensor) -> Tensor:
    """One table of both, with the longer one's number of keys."""
    most = max(local.shape[2], own.shape[2])
    parts = (F.pad(each, (0, 0, 0, most - each.shape[2])) for each in (local, own))
    return torch.cat(list(parts))


def heads_apart(x: Tensor, heads: int) -> Tensor:
    """(rows, n, heads * head_dim) to (rows, heads, n, head_dim)."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)
