"""The definition, in plain torch operations: any device, any head_dim, float64 too.

Computes in float32 (float64 for float64), prompt by prompt. The backward pass is written out,
since it is what the fast backends implement:

    A = softmax(S)        G = dout V^T         r = rowsum(A * G)
    dweight = sum_h r     dS = weight * A * (G - r)
    dq = scale * sum_p dS K      dk = scale * dS^T q      dv = (weight * A)^T dout
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stal_kernels.backends.contract import Inputs

LEVELS: tuple[str, ...] = ()
DEVICES: tuple[str, ...] = ()
CHECKS_ARGUMENTS = False
CHECKS_VALUES = False


def missing(level: str) -> str:
    """Nothing: it runs wherever torch does."""
    return ""


def why_not(
    device: torch.device, dtype: torch.dtype, head_dim: int, seqlen_k: int | None
) -> list[str]:
    """Nothing: it runs whatever torch's own operations do."""
    return []


class _Prompt(NamedTuple):
    """One prompt as seen by the batch elements that attend to it, absent parts set to 0."""

    rows: Any  # index of q, out, dout: which batch elements
    keys: Any  # index of k, v
    entry: Any  # index of weight, region
    k: Tensor  # (batch', heads, seqlen_k, head_dim)
    v: Tensor
    weight: Tensor  # (batch', 1, seqlen_q, 1)
    exists: Tensor  # as weight
    valid: Tensor | None  # (batch', 1, 1, seqlen_k)


def packed_words(dtype: torch.dtype, head_dim: int, seqlen_k: int, level: str) -> int:
    """None: it reads K and V as they are."""
    return 0


def pack(
    k: Tensor, v: Tensor, key_lengths: Tensor | None, level: str, packed: Sequence[Tensor]
) -> None:
    """Writes nothing, as `packed_words` says."""


def forward(inputs: Inputs, level: str, out: Tensor) -> None:
    """As `Backend.forward`; level is not read."""
    q = _compute(inputs.q)
    total = torch.zeros_like(q)
    for prompt in _prompts(inputs):
        a = _probabilities(_where(prompt.exists, q[prompt.rows]), prompt, inputs.scale)
        total[prompt.rows] += _where(prompt.exists, prompt.weight * (a @ prompt.v))
    out.copy_(total)


def backward(
    inputs: Inputs,
    level: str,
    dout: Tensor,
    dq: Tensor | None,
    dweight: Tensor | None,
    dk: Tensor | None,
    dv: Tensor | None,
) -> None:
    """As `Backend.backward`; level is not read."""
    q, dout, scale = _compute(inputs.q), _compute(dout), inputs.scale
    dq_sum = torch.zeros_like(q)
    dk_sum = torch.zeros_like(_compute(inputs.k))
    dv_sum = torch.zeros_like(_compute(inputs.v))
    for prompt in _prompts(inputs):
        q_rows = _where(prompt.exists, q[prompt.rows])
        dout_rows = _where(prompt.exists, dout[prompt.rows])
        a = _probabilities(q_rows, prompt, scale)
        g = dout_rows @ prompt.v.mT
        r = _where(prompt.exists, (a * g).sum(-1, keepdim=True))
        ds = _where(prompt.exists, prompt.weight * a * (g - r))
        if dweight is not None:
            dweight[prompt.entry] = r.sum(1).squeeze(-1)
        if dq is not None:
            dq_sum[prompt.rows] += _where(prompt.exists, scale * ds @ prompt.k)
        if dk is not None:
            dk_sum[prompt.keys] += scale * ds.mT @ q_rows
        if dv is not None:
            dv_sum[prompt.keys] += (prompt.weight * a).mT @ dout_rows
    for gradient, total in ((dq, dq_sum), (dk, dk_sum), (dv, dv_sum)):
        if gradient is not None:
            gradient.copy_(total)


def _prompts(inputs: Inputs) -> Iterator[_Prompt]:
    """Every prompt (dense) or entry (ragged), one at a time, without waiting for a GPU."""
    k, v = _compute(inputs.k), _compute(inputs.v)
    if inputs.prompt_ids is None or inputs.offsets is None:
        indices: list[tuple[Any, Any, Any]] = []
        for p in range(k.shape[1]):
            here = (slice(None), p)
            indices.append((slice(None), here, here))
    else:
        entries, batch = inputs.prompt_ids.shape[0], inputs.q.shape[0]
        owner = torch.arange(batch, device=k.device).repeat_interleave(
            inputs.offsets.diff(), output_size=entries
        )
        ids = inputs.prompt_ids.long()
        indices = [(owner[e : e + 1], ids[e : e + 1], slice(e, e + 1)) for e in range(entries)]
    for rows, keys, entry in indices:
        k_rows, v_rows = k[keys], v[keys]
        weight = inputs.weight[entry][:, None, :, None]
        exists = torch.ones_like(weight, dtype=torch.bool)
        if inputs.region is not None:
            exists = inputs.region[entry][:, None, :, None]
        valid = None
        if inputs.key_lengths is not None:
            length = inputs.key_lengths[keys][:, None, None, None]
            valid = torch.arange(k.shape[-2], device=k.device) < length
            k_rows, v_rows = _where(valid.mT, k_rows), _where(valid.mT, v_rows)
            exists = exists & (length > 0)
        yield _Prompt(rows, keys, entry, k_rows, v_rows, _where(exists, weight), exists, valid)


def _probabilities(q: Tensor, prompt: _Prompt, scale: float) -> Tensor:
    scores = q @ prompt.k.mT * scale
    if prompt.valid is not None:
        scores = scores.masked_fill(~prompt.valid, -torch.inf)
    return _where(prompt.exists, scores.softmax(-1))


def _where(condition: Tensor, x: Tensor) -> Tensor:
    # A product with 0 would keep a NaN.
    return torch.where(condition, x, 0.0)


def _compute(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
