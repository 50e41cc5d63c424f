"""The operators, through torch.ops and through the functions, on tensors of any kind.

What one backend refuses every backend refuses, and what they return is equal. A crash of native
code ends the process, and with it pytest.
"""

from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import strategies as st

from stal_kernels import blended_attention, blended_attention_ragged, plan
from stal_kernels.backends import cpu

_ops = torch.ops.stal_kernels
REFUSALS = (ValueError, NotImplementedError, MemoryError)
NAMES = ("q", "k", "v", "weight", "prompt_ids", "offsets", "region", "key_lengths", "dout")
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
DTYPES = (*FLOATS, torch.float64, torch.int32, torch.int64, torch.bool, torch.complex64)
WRONG_PLANS = ("other", "twice", "beyond", "below", "short", "wide", "two", "bytes")


class Call(NamedTuple):
    """A call in words: its sizes, and what is wrong with it."""

    through: str
    ragged: bool
    sizes: dict[str, int]
    dtype: torch.dtype
    with_region: str
    unread: bool
    with_lengths: bool
    with_plan: str
    layouts: dict[str, str]
    indices: dict[str, list[int]]
    wrong: list[tuple[str, str, Any]]
    scale: Any
    needs: tuple[bool, bool, bool]


_index = st.one_of(st.integers(-2, 6), st.sampled_from([2**31 - 1, -(2**31), 1 << 30]))
_wrong = st.tuples(
    st.sampled_from(NAMES),
    st.sampled_from(
        ["none", "dtype", "size", "dims", "stride", "expand", "freed", "sparse", "meta", "other"]
    ),
    st.integers(0, 7),
)
_calls = st.builds(
    Call,
    through=st.sampled_from(["op", "op", "function"]),
    ragged=st.booleans(),
    sizes=st.fixed_dictionaries(
        {
            "batch": st.integers(0, 3),
            "heads": st.sampled_from([1, 2, 3, 2, 1, 0]),
            "seqlen_q": st.sampled_from([5, 1, 0, 17, 49]),
            "seqlen_k": st.sampled_from([3, 1, 0, 16, 33]),
            "head_dim": st.sampled_from([8, 24, 40, 8, 16, 1, 7, 264]),
            "prompts": st.integers(0, 3),
            "entries": st.integers(0, 4),
        }
    ),
    dtype=st.sampled_from([*FLOATS, *FLOATS, *DTYPES]),
    with_region=st.sampled_from(["", "", "some", "boxes", "boxes", "nowhere"]),
    unread=st.booleans(),  # NaN in what may not be read
    with_lengths=st.booleans(),
    with_plan=st.sampled_from(["", "right", "right", *WRONG_PLANS, "apart", "expanded"]),
    layouts=st.dictionaries(st.sampled_from(NAMES), st.sampled_from(["last", "slice", "expand"])),
    # Of the indices that are right, by position, those that are replaced.
    indices=st.dictionaries(
        st.sampled_from(["prompt_ids", "offsets", "key_lengths"]),
        st.lists(_index, max_size=5),
        max_size=1,
    ),
    wrong=st.lists(_wrong, max_size=2),
    scale=st.one_of(
        st.just(0.3), st.floats(), st.sampled_from([0, -1.5, 1e39, float("nan"), "1", None])
    ),
    needs=st.tuples(st.booleans(), st.booleans(), st.booleans()),
)


def _laid_out(x: torch.Tensor, layout: str | None) -> torch.Tensor:
    if layout == "last" and x.dim() >= 4:  # heads beside channels, as a projection leaves them
        return x.transpose(-2, -3).contiguous().transpose(-2, -3)
    if layout == "slice" and x.dim():
        return x.repeat_interleave(2, dim=0)[::2]
    if layout == "expand" and x.dim() and x.shape[0]:
        return x[:1].expand(x.shape)
    return x


def _tensors(call: Call) -> dict[str, Any]:
    n, draw = call.sizes, torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw)

    rows = n["batch"], n["heads"], n["seqlen_q"], n["head_dim"]
    keys = n["prompts"], n["heads"], n["seqlen_k"], n["head_dim"]
    entries = n["entries"] if n["batch"] and n["prompts"] else 0
    leading = (entries,) if call.ragged else (n["batch"], n["prompts"])
    if not call.ragged:
        keys = (n["batch"], *keys)
    wide = torch.float64 if call.dtype == torch.float64 else torch.float32
    tensors: dict[str, Any] = dict.fromkeys(NAMES)
    tensors |= {name: normal(*rows).to(call.dtype) for name in ("q", "dout")}
    tensors |= {name: normal(*keys).to(call.dtype) for name in ("k", "v")}
    tensors["weight"] = normal(*leading, n["seqlen_q"]).to(wide)
    if call.with_region:
        tensors["region"] = _region(call.with_region, (*leading, n["seqlen_q"]), draw)
    if call.ragged:
        bounds = [min(entries, 2 * b) for b in range(n["batch"])]
        lists = {
            "prompt_ids": [e % max(n["prompts"], 1) for e in range(entries)],
            "offsets": [*bounds, entries],
            "key_lengths": [max(0, n["seqlen_k"] - t) for t in range(n["prompts"])],
        }
        for name, values in call.indices.items():
            lists[name] = [*values, *lists[name][len(values) :]][: len(lists[name])]
        for name in lists:
            if name != "key_lengths" or call.with_lengths:
                tensors[name] = torch.tensor(lists[name], dtype=torch.int32)
    if call.unread and "expand" not in call.layouts.values():  # which moves elements
        _spoil_unread(tensors, call.ragged)
    return {n: x if x is None else _laid_out(x, call.layouts.get(n)) for n, x in tensors.items()}


def _region(kind: str, shape: tuple[int, ...], draw: torch.Generator) -> torch.Tensor:
    """Of so many rows, which are the pixels of an image 7 wide."""
    if kind == "some":
        return torch.randn(shape, generator=draw) > 0
    y, x = torch.arange(shape[-1]) // 7, torch.arange(shape[-1]) % 7
    low, high = torch.randint(0, 9, (2, 2, *shape[:-1], 1), generator=draw)
    inside = (x >= low[0]) & (x < high[0]) & (y >= low[1]) & (y < high[1])
    return inside & (kind == "boxes")


def _spoil_unread(tensors: dict[str, Any], ragged: bool) -> None:
    """NaN in weights where the prompt does not exist, in keys and values of a dense prompt that
    exists nowhere, and in those of a table beyond their lengths."""
    region, lengths = tensors["region"], tensors["key_lengths"]
    nan = float("nan")
    if region is not None:
        tensors["weight"] = tensors["weight"].masked_fill(~region, nan)
    for name in ("k", "v") if tensors["k"].is_floating_point() else ():
        x = tensors[name]
        if region is not None and not ragged:
            x = x.masked_fill(~region.any(-1)[:, :, None, None, None], nan)
        if lengths is not None:
            beyond = torch.arange(x.shape[-2]) >= lengths[:, None]
            x = x.masked_fill(beyond[:, None, :, None], nan)
        tensors[name] = x


def _plan(call: Call, tensors: dict[str, Any]) -> Any:
    """The plan of these tensors, or one that is wrong; None where there can be none."""
    region, ids, offsets = (tensors[name] for name in ("region", "prompt_ids", "offsets"))
    if not call.with_plan or region is None:
        return None
    try:
        order, tiles, planned = plan(~region if call.with_plan == "other" else region, ids, offsets)
    except REFUSALS:
        return None
    if order.numel():
        if call.with_plan == "twice":
            order[0, -1] = order[0, 0]
        if call.with_plan in ("beyond", "below"):
            order[0, 0] = 1 << 30 if call.with_plan == "beyond" else -1
    if call.with_plan == "short":
        order = order[:, 1:]
    if call.with_plan == "wide":
        order = order.long()
    if call.with_plan == "apart":
        order = order.repeat_interleave(2, -1)[:, ::2]
    if call.with_plan == "expanded":
        order = order[:1].expand(order.shape) if len(order) else order
    if call.with_plan == "two":
        return order, tiles
    return order, tiles, planned.to(torch.uint8) if call.with_plan == "bytes" else planned


def _spoilt(x: Any, how: str, i: int, through: str) -> Any:
    if how == "none" or x is None:
        return None if how == "none" else torch.tensor([0], dtype=torch.int32)
    if not isinstance(x, torch.Tensor) or x.layout != torch.strided:
        return x
    if how == "dtype":
        return x.to(DTYPES[i])
    if how == "other" and through == "function":
        return (1, [1.0], "x", {}, x.size, object(), 2.5, ())[i]
    if how == "meta":
        return x.to("meta")
    if not x.dim():
        return x
    dim = i % x.dim()
    if how == "size":
        return x.repeat_interleave(2, dim) if i > 3 else x.narrow(dim, 0, x.shape[dim] // 2)
    if how == "dims":
        return x.unsqueeze(dim) if i > 3 or not x.shape[dim] else x.select(dim, 0)
    if how == "stride":
        return x.mT.contiguous().mT if x.dim() > 1 else x.repeat_interleave(2)[::2]
    if how == "expand":
        return x.narrow(dim, 0, min(1, x.shape[dim])).expand(x.shape)
    if how == "sparse" and not x.is_meta and x.dtype != torch.bool:
        return x.to_sparse()
    return x


def _free(x: Any) -> None:
    # What is not contiguous may be copied first, by torch, which does not look.
    plain = isinstance(x, torch.Tensor) and x.layout == torch.strided and not x.is_meta
    if plain and x.is_contiguous():
        x.untyped_storage().resize_(0)


def _run(call: Call, tensors: dict[str, Any], made: Any, backend: str) -> tuple[torch.Tensor, ...]:
    *inputs, dout = tensors.values()
    if call.through == "op":
        scale = call.scale if isinstance(call.scale, (int, float)) else 0.3
        out = _ops.blended_attention.default(*inputs, made, scale, False, backend)
        q_and_weight, kv = call.needs[:2], call.needs[2]
        arguments = dout, *inputs, made, scale, *q_and_weight, kv, backend
        return (out, *_ops.blended_attention_backward.default(*arguments))
    options = {"region": tensors["region"], "plan": made}
    options |= {"scale": call.scale, "backend": backend}
    if call.ragged:
        lengths = tensors["key_lengths"]
        return (blended_attention_ragged(*inputs[:6], key_lengths=lengths, **options),)
    return (blended_attention(*inputs[:4], **options),)


def _check(call: Call) -> None:
    tensors = _tensors(call)
    made = _plan(call, tensors)
    freed = []
    for name, how, i in call.wrong:
        if how == "freed":
            freed.append(name)
        else:
            tensors[name] = _spoilt(tensors[name], how, i, call.through)
    if call.through == "op" and any(tensors[n] is None for n in ("q", "k", "v", "weight", "dout")):
        return  # the schema's own words
    for name in freed:
        _free(tensors[name])
    backends = [f"cpu:{cpu._best_level()}", "cpu:portable"]
    if not freed:  # torch's own operations would read whatever lies at address 0
        backends += ["reference", "auto"]
    results, refusals = {}, {}
    for backend in backends:
        try:
            results[backend] = _run(call, tensors, made, backend)
        except REFUSALS as error:
            refusals[backend] = error
    # Fast backends have limits of their own, which auto gets around.
    answers = {b: e for b, e in refusals.items() if not isinstance(e, NotImplementedError)}
    assert not (results and answers), (results, answers)
    for backend, found in results.items():
        assert found[0].shape == tensors["q"].shape
        expected = results[next(iter(results))]
        for actual, right in zip(found, expected, strict=True):
            assert actual.shape == right.shape, backend
            if call.dtype == torch.float32 and call.scale == 0.3 and not actual.is_meta:
                torch.testing.assert_close(actual, right, rtol=1e-3, atol=1e-3, equal_nan=True)


@pytest.mark.filterwarnings("ignore:blended_attention runs on the slow reference backend")
def test_call_is_answered_or_refused_by_all_backends_alike(fuzz):
    fuzz(_check, _calls, examples=150)
