"""What the levels of the native library do with inputs at the edge of what tensors can hold."""

import os
from itertools import combinations
from pathlib import Path

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa

from stal_kernels import blended_attention
from stal_kernels.testing import DTYPES, Case, example, results

HALVES = (torch.float16, torch.bfloat16)


def name(dtype):
    return str(dtype).removeprefix("torch.")


def misplaced(x):
    """A copy of x that begins one byte behind where it should."""
    memory = bytearray(x.numel() * x.element_size() + 1)
    y = torch.frombuffer(memory, dtype=x.dtype, offset=1).view(x.shape)
    y.copy_(x.detach())
    return y


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_tensors_at_odd_addresses_give_the_same_result(dtype, level):
    e = example(Case(seqlen_q=53, head_dim=72), dtype)
    expected = results(e, f"cpu:{level}")
    for key in ("q", "k", "v", "weight", "dout"):
        setattr(e, key, misplaced(getattr(e, key)).requires_grad_(key != "dout"))
        assert getattr(e, key).data_ptr() % 2 == 1
    for key, actual in results(e, f"cpu:{level}").items():
        assert torch.equal(actual, expected[key]), key


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_expanded_inputs_equal_their_copies(dtype, level):
    def call(prepare):
        q = torch.linspace(-1, 1, 40).to(dtype).view(1, 1, 1, 40).expand(2, 3, 21, 40)
        k = torch.randn(1, 2, 1, 9, 40, generator=torch.Generator().manual_seed(0))
        k = k.to(dtype).expand(2, 2, 3, 9, 40)
        v = torch.linspace(-2, 2, 40).to(dtype).view(1, 1, 1, 1, 40).expand(2, 2, 3, 9, 40)
        weight = torch.tensor(0.7).expand(2, 2, 21)
        inputs = [prepare(x).detach().requires_grad_() for x in (q, k, v, weight)]
        out = blended_attention(*inputs, backend=f"cpu:{level}")
        return out, *torch.autograd.grad(out.sum(), inputs)

    copies = call(torch.Tensor.contiguous)
    for actual, right in zip(call(lambda x: x), copies, strict=True):
        assert torch.equal(actual, right)


EMPTY = [dict.fromkeys(pair, 0) for pair in combinations(("batch", "seqlen_q", "prompts"), 2)]
EMPTY += [{"seqlen_k": 0, **{other: 0}} for other in ("batch", "seqlen_q", "prompts")]


@pytest.mark.parametrize("ragged", [False, True], ids=["dense", "ragged"])
@pytest.mark.parametrize("sizes", EMPTY, ids="-".join)
def test_several_empty_dimensions_give_zeros(sizes, ragged, level):
    if ragged and sizes.get("prompts") == 0:
        sizes = {**sizes, "prompts": 1, "batch": 1}  # a table without a user
    case = Case(
        **{"batch": 2, "seqlen_q": 5, "seqlen_k": 4, "head_dim": 8, **sizes},
        region="blobs",
        ragged=ragged,
    )
    for key, result in results(example(case, torch.bfloat16), f"cpu:{level}").items():
        assert (result == 0).all(), key


@pytest.mark.parametrize("dtype", HALVES, ids=name)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
def test_special_values_spread_as_in_sdpa(value, dtype, level):
    for which in range(3):
        e = example(Case(seqlen_q=37, prompts=1), dtype)
        q, k, v = (x.detach().clone() for x in (e.q, e.k[:, 0], e.v[:, 0]))
        (q, k, v)[which][0, 1, 3, 5] = value
        out = blended_attention(
            q, k[:, None], v[:, None], torch.ones(1, 1, 37), backend=f"cpu:{level}"
        )
        right = sdpa(q.double(), k.double(), v.double())
        torch.testing.assert_close(out, right.to(dtype), equal_nan=True, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("score", [-1e10, -1e30, -2e37, 1e10, 1e30, 2e37])
def test_equal_scores_of_any_size_share_the_row(score, level):
    for dtype in (torch.float32, torch.bfloat16):
        q = torch.ones(1, 1, 20, 8, dtype=dtype, requires_grad=True)
        k = torch.full((1, 1, 1, 5, 8), score / 8**0.5, dtype=dtype)
        v = torch.arange(5.0)[:, None].expand(1, 1, 1, 5, 8).to(dtype).contiguous()
        weight = torch.ones(1, 1, 20, requires_grad=True)
        out = blended_attention(q, k, v, weight, backend=f"cpu:{level}")
        dweight = torch.autograd.grad(out.sum(), weight)[0]
        assert (out == 2).all()
        torch.testing.assert_close(dweight, torch.full_like(weight, 16))


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_denormal_values_survive_or_are_zero(dtype, level):
    tiny = torch.finfo(dtype).smallest_normal
    v = torch.full((1, 1, 1, 13, 8), tiny / 2, dtype=dtype)
    q, weight = torch.zeros(1, 1, 20, 8, dtype=dtype), torch.ones(1, 1, 20)
    out = blended_attention(q, v, v, weight, backend=f"cpu:{level}")
    # Instructions on pairs of bfloat16 take denormals as zero; those of float16 are normal floats.
    kept = ((out.double() - v[0, 0, 0, 0, 0].double()).abs() <= tiny * 2**-7).all()
    assert kept or (dtype == torch.bfloat16 and (out == 0).all())


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
def test_memory_does_not_grow_over_100000_calls(level):
    def resident_mib():
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    q, k = torch.randn(1, 1, 8, 8).bfloat16(), torch.randn(1, 1, 1, 8, 8).bfloat16()
    weight = torch.ones(1, 1, 8)

    def calls(count):
        for _ in range(count):
            blended_attention(q, k, k, weight, backend=f"cpu:{level}")

    calls(500)
    before = resident_mib()
    calls(100_000)
    # 100 leaked bytes a call would be 10 MiB.
    assert resident_mib() - before < 4
