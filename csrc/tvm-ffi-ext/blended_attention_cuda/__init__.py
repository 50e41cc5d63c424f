"""Blended attention's forward pass on Hopper GPUs, for any framework with DLPack.

out[b,h,n,:] = sum_p weight[b,p,n] * softmax_l(scale * q[b,h,n,:] . k[b,p,h,l,:]) @ v[b,p,h,:,:]
"""

from typing import Any

from ._ops import ops

__all__ = ["blended_attention"]


def blended_attention(
    q: Any,
    k: Any,
    v: Any,
    weight: Any,
    out: Any,
    *,
    region: Any = None,
    scale: float,
    stream: int,
) -> bool:
    """Writes `out`; nothing is allocated and nothing waits for the GPU.

    Args:
        q, out: (batch, heads, seqlen_q, head_dim), float16 or bfloat16, head_dim 40, 64, 80, 128 or
            160, a contiguous last dimension, all other strides and addresses multiples of 16 bytes.
        k, v: (batch, prompts, heads, seqlen_k, head_dim), as q; seqlen_k up to 80.
        weight: (batch, prompts, seqlen_q), float32.
        region: (batch, prompts, seqlen_q), bool: where a prompt exists at all.
        scale: multiplies q . k.
        stream: a cudaStream_t of q's device; 0 is the default one.

    Returns:
        Whether `out` was written; not if a size is 0, where the result is 0 everywhere.

    Raises:
        ValueError: an argument breaks a rule above.
        RuntimeError: the machine cannot run it, or CUDA did not take the launch.
    """
    tail = None, None, region, None, None, None, None, out
    return bool(ops.forward(stream, scale, q, k, v, weight, *tail))
