"""The operator: attention of each query to several prompts, blended by a weight per pixel."""

from collections.abc import Sequence

import torch
from torch import Tensor

from stal_kernels import library
from stal_kernels.checks import check_dense, check_packable, check_plannable, check_ragged
from stal_kernels.order import dense_offsets, order_of, tiles_of
from stal_kernels.sources import remember

__all__ = ["blended_attention", "blended_attention_ragged", "pack", "plan"]


def blended_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    weight: Tensor,
    *,
    region: Tensor | None = None,
    plan: Sequence[Tensor] | None = None,
    packed: Sequence[Tensor] | None = None,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Attends to every prompt and adds the results with a weight per prompt and query.

        out[b,h,n,:] = sum_p weight[b,p,n] * softmax_l(scale * q[b,h,n,:] . k[b,p,h,l,:]) @ v[b,p,h]

    With one prompt of weight 1 this equals `F.scaled_dot_product_attention(q, k[:, 0], v[:, 0])`.
    In general it equals this loop, in one pass, with float32 scores and sums:

        sum(F.scaled_dot_product_attention(q, k[:, p], v[:, p]) * weight[:, p, None, :, None]
            for p in range(k.shape[1]))

    It is differentiable in q, k, v and weight, once; only the gradients that are asked for are
    computed, and all of them are deterministic. `torch.vmap` folds what it maps into the batch;
    `torch.func.grad`, `vjp` and `jacrev` work in any order with it, forward mode (`jvp`) is
    refused. Under autocast q, k and v are cast and weight stays in float32.

    float32 tensors are multiplied in float32 unless `torch.set_float32_matmul_precision` allows
    less. "medium": on the levels of cpu that multiply bfloat16 (amx, avx512_bf16), q, k, v, dout,
    the probabilities and their gradients are rounded to bfloat16 where they enter a product; sums
    are float32. "high" changes nothing on the cpu. On triton both mean TF32. The setting is read
    whenever a pass runs, in compiled functions too, so a backward pass follows what is set when it
    begins.

    In those products the same levels take factors below 2^-126 in magnitude (subnormals of
    bfloat16) as zero, and sums that small: of q, k and v and, backward, of dout, in the output and
    all gradients. Of v that reaches up to 2^-126 times seqlen_k, rounded up to a
    power of two. float16, and all tensors on other levels, keep their subnormals.

    Args:
        q: (batch, heads, seqlen_q, head_dim), float16, bfloat16 or float32 (float64: reference
            only). Any strides with a contiguous last dimension, so a (batch, seqlen, heads,
            head_dim) projection seen through `transpose(1, 2)` costs no copy, nor does `expand`.
        k, v: (batch, prompts, heads, seqlen_k, head_dim), dtype and device of q.
        weight: (batch, prompts, seqlen_q), float32 (float64 when q is): any real number.
        region: (batch, prompts, seqlen_q), bool: where a prompt exists at all. Where it is False
            nothing of the prompt is read and its weight counts as 0 and has gradient 0. A weight
            of 0 is only a value: its gradient `<dout, attention of the prompt>` is not 0.
        plan: what `plan(region)` returns, for calls that share a region. It saves time and changes
            no result beyond rounding; on the CPU no bit. A plan of another region is refused on the
            CPU, in both passes; on a GPU its values are taken as they are, and must not change
            before the backward pass. Under `torch.vmap` it is not used.
        packed: what `pack(k, v)` returns, for calls that share k and v, which are passed all the
            same. It saves the forward pass on the CPU time and changes no bit; others check its
            shapes and leave it aside, and so does `torch.vmap`. On the CPU one that was made for
            another level, dtype, head_dim, seqlen_k or length is refused, or of other keys or
            values as far as `pack` can tell.
        scale: multiplies q . k; head_dim ** -0.5 by default.
        backend: "auto", "triton" (NVIDIA GPUs), "cuda" (Hopper GPUs; gradients by triton; not run
            on a GPU yet, so auto leaves it out), "cpu" or one level of it such as "cpu:avx2", or
            "reference". auto takes the first one for q's device that `why_not` has no reason
            against; a named one runs or raises.

    Returns:
        (batch, heads, seqlen_q, head_dim), dtype and memory layout of q.

    Raises:
        ValueError: an argument breaks a rule above; the message names it.
        NotImplementedError: the named backend cannot run these inputs, or the derivative does not
            exist; the message says why.
        MemoryError: the sizes, of expanded tensors for instance, are beyond this machine.

    Source: Wu et al., "Harnessing the Spatial-Temporal Attention of Diffusion Models for
    High-Fidelity Text-to-Image Synthesis", ICCV 2023 (arXiv 2304.03869), which blends the
    attention to a global and several local prompts. The weights are not restricted here.
    """
    check_dense(q, k, v, weight, region, plan, scale, backend, packed)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    others = None, None, region, None, plan, scale, False, backend
    return library.blended_attention(q, k, v, weight, *others, packed=packed)


def blended_attention_ragged(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    weight: Tensor,
    prompt_ids: Tensor,
    offsets: Tensor,
    *,
    region: Tensor | None = None,
    key_lengths: Tensor | None = None,
    plan: Sequence[Tensor] | None = None,
    packed: Sequence[Tensor] | None = None,
    scale: float | None = None,
    validate: bool = False,
    backend: str = "auto",
) -> Tensor:
    """`blended_attention` where batch elements attend to different prompts of a shared table.

        out[b,h,n,:] = sum_{e = offsets[b]}^{offsets[b+1] - 1} weight[e,n]
                       * softmax_{l < key_lengths[t]}(scale * q[b,h,n,:] . k[t,h,l,:]) @ v[t,h],
                       with t = prompt_ids[e]

    Images of one prompt, and the empty prompt of all unconditional halves, share one table row.
    A batch element without entries and a prompt of length 0 contribute 0. The dense form is this
    one with k and v flattened to a table, prompt_ids = 0 .. batch * prompts - 1 and
    offsets = 0, prompts, 2 * prompts, ...

    Args:
        q: as in `blended_attention`.
        k, v: (table, heads, seqlen_k, head_dim), dtype and device of q.
        weight: (entries, seqlen_q), float32 (float64 when q is).
        prompt_ids: (entries,), int32: rows of the table; repeats are fine.
        offsets: (batch + 1,), int32: begins at 0, ascends, ends at entries.
        region: (entries, seqlen_q), bool.
        key_lengths: (table,), int32, 0 .. seqlen_k: keys beyond are never read.
        plan: what `plan(region, prompt_ids, offsets)` returns, as in `blended_attention`.
        packed: what `pack(k, v, key_lengths)` returns, as in `blended_attention`.
        scale, backend: as in `blended_attention`.
        validate: check the values of prompt_ids, offsets, key_lengths and plan on a GPU too, which
            waits for the GPU. On the CPU they are always checked, in a backward pass once more.
            On a GPU they must not change before it.

    Returns:
        (batch, heads, seqlen_q, head_dim), dtype and memory layout of q.

    Raises:
        ValueError, NotImplementedError, MemoryError: as in `blended_attention`.
    """
    indices = prompt_ids, offsets, region, key_lengths
    check_ragged(q, k, v, weight, *indices, plan, scale, backend, packed)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    others = *indices, plan, scale, bool(validate), backend
    return library.blended_attention(q, k, v, weight, *others, packed=packed)


def plan(
    region: Tensor, prompt_ids: Tensor | None = None, offsets: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The order of rows in which a tile of them meets few prompts, for calls that share a region.

    Backends compute a prompt for a whole tile of rows where it exists at any of them. Of boxes and
    painted masks a tile of consecutive rows meets several; of rows where the same prompts exist it
    meets its own. Made once, a plan serves all layers of a resolution and all steps:

        made = plan(region)
        out = blended_attention(q, k, v, weight, region=region, plan=made)

    Elements do not depend on each other: three tensors of two plans joined by `torch.cat` along
    dimension 0, each with its like, are the plan of the regions that are joined so.

    Args:
        region: (batch, prompts, seqlen_q), or with prompt_ids and offsets (entries, seqlen_q),
            bool, any strides.
        prompt_ids: (entries,), int32, of `blended_attention_ragged`; only its shape counts.
        offsets: (batch + 1,), int32: begins at 0, ascends, ends at entries; on a GPU its values
            are not looked at.

    Returns:
        order: (batch, seqlen_q), int32: the rows of each element, those where the same prompts
            exist one after the other. A stable sort: rows where the first prompt exists come first,
            among equals those where the second one does, and so on.
        tiles: (batch, ceil(seqlen_q / 32)), int64: bit i is set where prompt i of the element
            exists at any of the rows order[b, 32 t : 32 t + 32].
        region: a copy, contiguous, by which a plan of another region is told.
        An element of more than 64 prompts keeps its order, and has all bits set.

    Raises:
        ValueError: an argument breaks a rule above; the message names it.

    >>> order, tiles, _ = plan(torch.tensor([[[False, True, False], [True, True, True]]]))
    >>> order.tolist(), tiles.tolist()
    ([[1, 0, 2]], [[3]])
    """
    check_plannable(region, prompt_ids, offsets)
    entries = region
    if offsets is None:
        offsets = dense_offsets(region.shape[0], region.shape[1], region.device)
        entries = region.flatten(0, 1)
    order = order_of(entries, offsets)
    copy = region.clone(memory_format=torch.contiguous_format)
    return order, tiles_of(order, entries, offsets), copy


def pack(
    k: Tensor, v: Tensor, key_lengths: Tensor | None = None, *, backend: str = "auto"
) -> tuple[Tensor, Tensor, Tensor]:
    """K and V of one layer as the CPU's forward pass reads them, for calls that share them.

    Every call on the CPU first copies K and V to a layout of its level. Those of a layer's prompts
    are the same at all steps of a denoising loop, so the copy may be made once:

        made = pack(k, v)
        out = blended_attention(q, k, v, weight, packed=made)

    The backward pass reads K and V in other layouts and packs them itself. A pack takes as many
    bytes as float32 copies of k and v (and less than 5% more for 77 keys), so twice those of
    float16 and bfloat16 tensors; where a level multiplies bfloat16 (amx, avx512_bf16) that of
    bfloat16 tensors takes 1.1 to 1.6 times their bytes. Backends that pack nothing return no words.

    Rows do not depend on each other: three tensors of two packs joined by `torch.cat` along
    dimension 0, each with its like, are the pack of k and v that are joined so.

    A pack is for the keys and values that it is made of, and serves as long as they do not change.
    Every call on the CPU compares the last key and value of each prompt and head with the pack's,
    which tells the pack of another layer or of rows in another order. A change in place that leaves
    those alone is noticed where torch counts it: by calls that are not compiled, of tensors that
    were not made in inference mode, with the tensors that this function returned. Elsewhere, in
    CUDA graphs and in copies of a pack, it is not noticed. A pack is not for files: another version
    may have another layout.

    Args:
        k, v: (batch, prompts, heads, seqlen_k, head_dim) or (table, heads, seqlen_k, head_dim), as
            the calls are given them. A batch that is expanded is packed once.
        key_lengths: (table,), int32, of `blended_attention_ragged`.
        backend: of the calls; "auto" chooses as they do. The float32 matmul precision of the calls
            must be that of now, see `blended_attention`.

    Returns:
        words: (.., heads, words), int32: K and V, where .. is (batch, prompts) or (table,).
        stamp: (.., 6), int32: what the pack is made for.
        sample: (.., heads, 2, head_dim), dtype of k: the last key of each prompt and its value.
        None of them has a gradient; k and v of the calls have theirs.

    Raises:
        ValueError: an argument breaks a rule above; the message names it.
        NotImplementedError: the named backend cannot run calls with such keys.
        MemoryError: the sizes, of expanded tensors for instance, are beyond this machine.
    """
    check_packable(k, v, key_lengths, backend)
    table_k, table_v = k.detach(), v.detach()
    if k.dim() == 4:
        words, stamp, sample = library.pack(table_k, table_v, key_lengths, backend)
    else:
        batch, prompts = k.shape[:2]
        expanded = batch > 1 and k.stride(0) == v.stride(0) == 0
        if expanded:
            table_k, table_v = table_k[0], table_v[0]
        else:
            table_k, table_v = table_k.flatten(0, 1), table_v.flatten(0, 1)
        words, stamp, sample = (
            x.expand(batch, *x.shape) if expanded else x.view(batch, prompts, *x.shape[1:])
            for x in library.pack(table_k, table_v, None, backend)
        )
    packed = words, stamp, sample
    remember(packed, k, v)
    return packed
