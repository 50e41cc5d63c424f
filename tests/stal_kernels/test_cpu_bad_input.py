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


# Text encoders of videos fill up a prompt with zeros, which count: hundreds of equal terms, each
# rounded to the same side.
def test_padding_rounds_as_in_sdpa(level):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, n, 16, generator=generator) for n in (48, 512, 512))
    k = 4 * k
    k[:, :, 7:] = v[:, :, 7:] = 0
    out = blended_attention(q, k[:, None], v[:, None], torch.ones(1, 1, 48), backend=f"cpu:{level}")
    right = sdpa(q.double(), k.double(), v.double())
    error, plain = ((x.double() - right).abs().max() for x in (out, sdpa(q, k, v)))
    assert error <= 2 * plain


# The value of v, the weights of the prompts, the number of keys. Each prompt's own term is finite.
LARGE = {
    "mean-of-many": (1e38, (1,), 77),
    "almost-the-largest": (3.38e38, (1,), 64),
    "negative-weight": (3.38e38, (-1,), 512),
    "large-weight": (1e4, (2e34,), 77),
    "largest-weight-of-small-value": (1e-30, (3e38, -1e38), 77),
    "small-weight-of-large-value": (3e38, (1e-30,), 77),
    "prompts-that-cancel": (1e38, (2, -2, 1), 77),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("case", LARGE)
def test_large_values_overflow_only_where_the_result_does(case, dtype, level):
    value, weights, keys = LARGE[case]
    value = min(value, 0.99 * torch.finfo(dtype).max)
    v = torch.full((1, len(weights), 1, keys, 8), value, dtype=dtype)
    q, k = torch.zeros(1, 1, 50, 8, dtype=dtype), torch.zeros_like(v)
    weight = torch.tensor(weights).float().view(1, -1, 1).expand(-1, -1, 50)
    out = blended_attention(q, k, v, weight, backend=f"cpu:{level}")
    right = (v[0, 0, 0, 0, 0].double() * weight[0, :, 0].double().sum()).to(dtype)
    rtol = {torch.float32: 1e-5}.get(dtype, torch.finfo(dtype).eps)
    torch.testing.assert_close(out, right.expand_as(out), rtol=rtol, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_gradients_of_large_values_are_finite(dtype, level):
    # 60 keys pull one way and 17 the other, so both rowsum(A * G) and dS K are sums of many
    # large terms of one sign.
    sign = torch.where(torch.arange(77) < 60, 1.0, -1.0)[:, None].expand(1, 1, 1, 77, 8)
    k = sign.to(dtype)
    v = (sign * min(1e38, 0.99 * torch.finfo(dtype).max)).to(dtype)
    q = torch.full((1, 1, 50, 8), 0.01, dtype=dtype)
    weight = torch.linspace(-1, 2, 50).view(1, 1, 50)
    inputs = [x.detach().clone().requires_grad_() for x in (q, k, v, weight)]
    dout = torch.full_like(q, 0.125)

    def gradients(inputs, backend):
        out = blended_attention(*inputs, backend=backend)
        return torch.autograd.grad(out, inputs, dout.to(out.dtype))

    exact = gradients([x.detach().double().requires_grad_() for x in inputs], "reference")
    rtol = {torch.float32: 1e-4, torch.float16: 0.01, torch.bfloat16: 0.03}[dtype]
    for actual, right in zip(gradients(inputs, f"cpu:{level}"), exact, strict=True):
        assert actual.isfinite().all()
        atol = 1e-5 * right.abs().max().item()
        torch.testing.assert_close(actual.double(), right, rtol=rtol, atol=atol)


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
def test_memory_does_not_grow_over_many_calls(level):
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
    calls(50_000)
    # 100 leaked bytes a call would be 4.8 MiB.
    assert resident_mib() - before < 4
