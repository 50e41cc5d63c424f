"""Other people's kernels that can be made to compute blended attention, for bench/gpu_check.py.

    one SDPA cuDNN   a single plain prompt through cuDNN: what attention costs without the method
    loop cuDNN       one cuDNN SDPA a prompt, blended
    varlen           torch's attention to sequences of different lengths: a sequence is a prompt's
                     rows, packed, so that no row outside a region is computed; then a weighted sum
    FA3              the same through FlashAttention-3
    flex             FlexAttention over batch x prompts, whose BlockMask skips blocks outside a
                     region, compiled together with the weighted sum after it
    flex FLASH       the same through its FlashAttention backend

What depends on the regions alone, a BlockMask or which rows are packed, is made before anything is
timed. Each is made by a function of an example, which raises what keeps it from running here.
"""

import importlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from bench_blended_attention import loop, one_sdpa
from torch import Tensor

from stal_kernels.testing import Example, results

Attend = Callable[..., Any]


def first_line(error: BaseException, limit: int = 200) -> str:
    """What is shown of an error."""
    text = str(error).strip() or type(error).__name__
    return " ".join(text.splitlines()[0].split())[:limit]


# ---- correctness ----


def error_used(out: Tensor, plain: Tensor, right: Tensor) -> float:
    """The larger share of what the two rules allow: twice the root mean square error of plain
    PyTorch, four times its largest. Above 1 a rule is broken.

    Plain PyTorch counts as no closer to `right`, in float64, than the rounding to the dtype.
    """
    rounding = right.abs() * (torch.finfo(out.dtype).eps / 2)
    actual, expected = ((x.double() - right).abs() for x in (out, plain))

    def norm(x: Tensor) -> float:
        return x.square().mean().sqrt().item()

    rms = norm(actual) / (2 * max(norm(expected), norm(rounding)))
    largest = actual.max() / (4 * torch.maximum(expected.max(), rounding.max()))
    # NaN compares with nothing.
    return max(rms, largest.item()) if actual.isfinite().all() else float("inf")


class Reference:
    """The first head of the first element of an example, in float64 and in plain PyTorch."""

    def __init__(self, e: Example) -> None:
        region = None if e.region is None else e.region[:1]
        head = Example(
            e.q[:1, :1],
            e.k[:1, :, :1],
            e.v[:1, :, :1],
            e.weight[:1],
            e.dout[:1, :1],
            None,
            None,
            region,
            None,
            None,
            e.scale,
        )
        self.right = results(head.to(torch.float64), "plain")
        self.plain = results(head.to(e.q.dtype), "plain")

    def error_used(self, actual: Tensor, name: str = "out") -> float:
        """`error_used` of a result of the whole example, by its name in `testing.results`."""
        return error_used(actual[:1, :1].detach(), self.plain[name], self.right[name])


# ---- rivals ----


def weighted(e: Example) -> Tensor:
    """The weights in the dtype of q, 0 where a prompt is absent."""
    weight = e.weight.detach()
    return (weight if e.region is None else weight * e.region).to(e.q.dtype)


def cudnn(function: Callable[..., Tensor], e: Example) -> Callable[[], Tensor]:
    """One of the functions of bench_blended_attention.py, its SDPA through cuDNN."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    tensors = e.q.detach(), e.k.detach(), e.v.detach(), weighted(e)

    def run() -> Tensor:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return function(*tensors)

    return run


def packed(attend: Attend, e: Example) -> Callable[[], Tensor]:
    """Attention to the packed rows of each element and prompt, then their weighted sum.

    Args:
        attend: q, k, v of (rows or keys, heads, head_dim), where each sequence of queries and of
            keys begins and the last ends, int32, and the most queries and keys of a sequence; it
            returns out as q.
    """
    batch, prompts, _, seqlen_k, _ = e.k.shape
    seqlen_q = e.q.shape[2]
    weight = weighted(e)
    exists = torch.ones_like(weight, dtype=torch.bool) if e.region is None else e.region
    element, prompt, pixel = exists.nonzero(as_tuple=True)
    row = element * seqlen_q + pixel
    counts = exists.sum(-1).flatten()
    begin_q = F.pad(counts.cumsum(0), (1, 0)).int()
    begin_k = torch.arange(batch * prompts + 1, device=row.device, dtype=torch.int32) * seqlen_k
    most = int(counts.max())
    # Models have their rows in this order: it is no work of the rival's.
    q = e.q.detach().transpose(1, 2).flatten(0, 1).contiguous()
    k, v = (x.detach().transpose(2, 3).flatten(0, 2).contiguous() for x in (e.k, e.v))
    of_row = weight[element, prompt, pixel][:, None, None]

    def run() -> Tensor:
        out = attend(q[row], k, v, begin_q, begin_k, most, seqlen_k)
        if e.region is None:
            parts = (out * of_row).unflatten(0, (batch, prompts, seqlen_q))
            total = parts.sum(1)
        else:
            total = torch.zeros_like(q).index_add_(0, row, out * of_row)
            total = total.unflatten(0, (batch, seqlen_q))
        return total.transpose(1, 2)

    return run


def varlen(e: Example) -> Callable[[], Tensor]:
    from torch.nn.attention.varlen import varlen_attn

    return packed(varlen_attn, e)


def fa3(e: Example) -> Callable[[], Tensor]:
    function = importlib.import_module("flash_attn_interface").flash_attn_varlen_func

    def attend(*arguments: Any) -> Tensor:
        out = function(*arguments)
        return out[0] if isinstance(out, tuple) else out

    return packed(attend, e)


def flex(e: Example, **kernel_options: str) -> Callable[[], Tensor]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    batch, prompts = e.k.shape[:2]
    seqlen_q, seqlen_k, region = e.q.shape[2], e.k.shape[3], e.region
    # Not expand and flatten: Inductor takes no 5-dimensional view for an input of this attention.
    owner = torch.arange(batch, device=e.q.device).repeat_interleave(prompts)
    block_mask = None
    if region is not None:
        exists = region.flatten(0, 1).contiguous()

        def mask(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return exists[b, q]

        where = str(region.device)
        block_mask = create_block_mask(mask, len(exists), None, seqlen_q, seqlen_k, device=where)

    def blended(q: Tensor, k: Tensor, v: Tensor, weight: Tensor) -> Tensor:
        options: Any = kernel_options or None
        out = flex_attention(q[owner], k, v, block_mask=block_mask, kernel_options=options)
        return (out.unflatten(0, (batch, prompts)) * weight[:, :, None, :, None]).sum(1)

    # What was compiled for other sizes counts towards torch's limit of recompilations.
    torch.compiler.reset()
    function = torch.compile(blended, dynamic=False)
    k, v = (x.detach().flatten(0, 1) for x in (e.k, e.v))
    tensors = e.q.detach(), k, v, weighted(e)
    return lambda: function(*tensors)


# Those whose kernels are there, and those that are compiled first, which takes long.
READY: dict[str, Callable[[Example], Callable[[], Tensor]]] = {
    "one SDPA cuDNN": lambda e: cudnn(one_sdpa, e),
    "loop cuDNN": lambda e: cudnn(loop, e),
    "varlen": varlen,
    "FA3": fa3,
}
COMPILED: dict[str, Callable[[Example], Callable[[], Tensor]]] = {
    "flex": flex,
    "flex FLASH": lambda e: flex(e, BACKEND="FLASH"),
}


def prepared(
    rivals: dict[str, Callable[[Example], Callable[[], Tensor]]],
    e: Example,
    reference: Reference,
    doing: Callable[[str], object] = lambda name: None,
) -> tuple[dict[str, Callable[[], Tensor]], dict[str, str]]:
    """The rivals that run here and are right, and of the others why not, by name.

    Args:
        doing: told the name of each before it is tried.
    """
    found, reasons = {}, {}
    for name, make in rivals.items():
        doing(name)
        try:
            function = make(e)
            out = function()
            # Of one SDPA there is nothing to compare.
            used = 0.0 if name.startswith("one SDPA") else reference.error_used(out)
        except Exception as error:  # Of as many kinds as there are libraries.
            reasons[name] = f"{type(error).__name__}: {first_line(error)}"
            if e.q.is_cuda:
                torch.cuda.synchronize()  # raises where the error has spoiled all later calls
            continue
        if used > 1:
            reasons[name] = f"wrong: {used:.2f} times the error that is allowed"
        else:
            found[name] = function
    return found, reasons
