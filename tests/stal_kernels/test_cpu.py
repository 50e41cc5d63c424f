"""What only the native library has: its exponential, its conversions, its threads."""

import multiprocessing
import os
from pathlib import Path

import pytest
import torch

from stal_kernels import blended_attention
from stal_kernels.backends import cpu
from stal_kernels.testing import DTYPES, Case, example


def exp2(level, x):
    out = torch.empty_like(x)
    cpu._library().exp2(level, x, out)
    return out


def test_exp2_is_accurate_over_its_range(level):
    # Every 997th float of [-126, 1].
    bits = torch.arange(0, 0x42FC0001, 997, dtype=torch.int32)
    x = torch.cat([-bits.view(torch.float32), bits[bits <= 0x3F800000].view(torch.float32)])
    exact = x.double().exp2()
    ulp = 2.0 ** (exact.log2().floor() - 23)
    error = ((exp2(level, x).double() - exact).abs() / ulp).max().item()
    fused = level not in ("portable", "avx512_bf16_model", "amx_model")
    assert error <= (1.0 if fused else 1.2)


def test_exp2_of_special_values(level):
    x = torch.tensor([0.0, -0.0, -126.0, -126.001, -1e30, -torch.inf, torch.nan, 1.0])
    expected = torch.tensor([1.0, 1.0, 2.0**-126, 0.0, 0.0, 0.0, torch.nan, 2.0])
    torch.testing.assert_close(exp2(level, x), expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_every_half_value_is_read_and_written_as_torch_does(dtype, level):
    # One key and weight 1: the output is v, through float32 and back.
    v = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype).view(256, 1, 1, 1, 256)
    q, k, weight = torch.zeros_like(v[:, 0]), torch.zeros_like(v), torch.ones(256, 1, 1)
    out = blended_attention(q, k, v, weight, backend=f"cpu:{level}")
    if dtype == torch.bfloat16 and level.startswith(("amx", "avx512_bf16")):
        # The instructions that multiply pairs take denormals as zero.
        v = torch.where(v.float().abs() < torch.finfo(dtype).smallest_normal, 0, v)
    torch.testing.assert_close(out, v[:, 0], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_float32_is_rounded_as_torch_does(dtype, level):
    # One key of value 1: the output is the weight, rounded to the dtype.
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31 - 1, (20000,), dtype=torch.int64, generator=generator)
    weight = bits.to(torch.int32).view(torch.float32)
    halves = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.float16).float()
    between = halves + torch.tensor(2.0**-12) * halves.abs()  # ties and near ties
    weight = torch.cat([weight[weight.isfinite()], between[between.isfinite()]])
    n = weight.numel()
    q, ones = torch.zeros(1, 1, n, 8, dtype=dtype), torch.ones(1, 1, 1, 1, 8, dtype=dtype)
    out = blended_attention(q, ones, ones, weight.view(1, 1, n), backend=f"cpu:{level}")
    assert torch.equal(out[0, 0, :, 0], weight.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("region", ["blobs", "boxes"])
def test_order_of_rows_changes_no_bit(region, dtype, level):
    # Blocks hold rows where the same prompts exist, so another order makes other blocks.
    case = Case(batch=2, seqlen_q=289, seqlen_k=20, head_dim=24, prompts=4, region=region)
    e = example(case, dtype)
    order = torch.randperm(289, generator=torch.Generator().manual_seed(1))

    def attend(rows):
        q, weight = (x.detach()[:, :, rows].requires_grad_() for x in (e.q, e.weight))
        region = e.region[:, :, rows]
        out = blended_attention(q, e.k, e.v, weight, region=region, backend=f"cpu:{level}")
        return out, *torch.autograd.grad(out, (q, weight), e.dout[:, :, rows])

    for as_given, other in zip(attend(torch.arange(289)), attend(order), strict=True):
        assert torch.equal(as_given[:, :, order], other)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
def test_memory_does_not_grow_over_calls():
    def resident_mib():
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    q = torch.randn(1, 2, 64, 40, requires_grad=True)
    k, v = torch.randn(1, 2, 2, 77, 40), torch.randn(1, 2, 2, 77, 40)
    weight = torch.rand(1, 2, 64, requires_grad=True)

    def calls(count):
        for _ in range(count):
            blended_attention(q, k, v, weight, backend="cpu").sum().backward()

    calls(50)
    before = resident_mib()
    calls(1000)
    # One leaked output a call would be 20 MiB.
    assert resident_mib() - before < 4


def _attend(queue, inputs):
    torch.set_num_threads(1)
    queue.put(blended_attention(*inputs, backend="cpu").flatten().tolist())


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_forked_child_with_one_thread_works_after_the_parent_used_the_pool():
    inputs = (
        torch.randn(1, 4, 300, 40),
        torch.randn(1, 2, 4, 77, 40),
        torch.randn(1, 2, 4, 77, 40),
        torch.randn(1, 2, 300),
    )
    torch.set_num_threads(2)
    expected = blended_attention(*inputs, backend="cpu").flatten().tolist()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_attend, args=(queue, inputs))
    child.start()
    result = queue.get(timeout=60)
    child.join(timeout=60)
    assert child.exitcode == 0
    assert result == expected
