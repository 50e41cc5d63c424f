"""What the operator computes, for every backend."""

import threading

import pytest
import torch
import torch.nn.functional as F

from stal_kernels import blended_attention, blended_attention_ragged
from stal_kernels.testing import CASES, DTYPES, Case, assert_within_twice_plain, example, results

SMALL = Case(batch=2, heads=2, seqlen_q=50, seqlen_k=9, head_dim=24, prompts=3)


def leaves(e):
    return [x.detach().clone().requires_grad_() for x in e.floats()]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("case", CASES, ids=repr)
def test_output_and_gradients_are_within_twice_the_error_of_plain_torch(case, dtype, backend):
    assert_within_twice_plain(case, backend, dtype)


@pytest.mark.parametrize("head_dim", [40, 64, 80, 160])
def test_one_prompt_equals_sdpa(head_dim, backend):
    e = example(Case(batch=2, seqlen_q=40, head_dim=head_dim, prompts=1), torch.float32)
    q, k, v, _ = e.floats()
    out = blended_attention(q, k, v, torch.ones(2, 1, 40), backend=backend)
    torch.testing.assert_close(out, F.scaled_dot_product_attention(q, k[:, 0], v[:, 0]))


def test_blend_equals_the_loop_of_the_docstring(backend):
    q, k, v, weight = example(SMALL, torch.float32).floats()
    out = blended_attention(q, k, v, weight, backend=backend)
    loop = sum(
        F.scaled_dot_product_attention(q, k[:, p], v[:, p]) * weight[:, p, None, :, None]
        for p in range(3)
    )
    torch.testing.assert_close(out, loop)


def test_scale_is_an_argument(backend):
    q, k, v, weight = example(SMALL, torch.float32).floats()
    doubled = blended_attention(q, k, v, weight, scale=2 * 24**-0.5, backend=backend)
    torch.testing.assert_close(doubled, blended_attention(2 * q, k, v, weight, backend=backend))


# ---- structure and value ----


def test_absent_prompt_is_not_read(backend):
    e = example(SMALL, torch.float32)
    q, k, v, weight = leaves(e)
    region = torch.ones(2, 3, 50, dtype=torch.bool)
    region[:, 1] = False
    with torch.no_grad():
        k[:, 1], v[:, 1], weight[:, 1] = torch.nan, torch.nan, torch.nan
    out = blended_attention(q, k, v, weight, region=region, backend=backend)
    dq, dk, dv, dweight = torch.autograd.grad(out, (q, k, v, weight), e.dout)
    kept = [x[:, [0, 2]].detach().requires_grad_() for x in (k, v, weight)]
    without = blended_attention(q, *kept, backend=backend)
    expected = torch.autograd.grad(without, (q, *kept), e.dout)
    torch.testing.assert_close(out, without, rtol=0, atol=0)
    present = (dq, dk[:, [0, 2]], dv[:, [0, 2]], dweight[:, [0, 2]])
    for actual, right in zip(present, expected, strict=True):
        torch.testing.assert_close(actual, right, rtol=0, atol=0)
    for gradient in (dk, dv, dweight):
        assert (gradient[:, 1] == 0).all()


def test_nan_of_a_prompt_stays_inside_its_region(backend):
    e = example(SMALL, torch.float32)
    q, k, v, weight = leaves(e)
    region = torch.ones(2, 3, 50, dtype=torch.bool)
    region[:, 1, ::2] = False
    with torch.no_grad():
        k[:, 1], v[:, 1] = torch.nan, torch.nan
    out = blended_attention(q, k, v, weight, region=region, backend=backend)
    dq, dk, _, dweight = torch.autograd.grad(out, (q, k, v, weight), e.dout)
    assert out[:, :, ::2].isfinite().all()
    assert out[:, :, 1::2].isnan().all()
    assert dq[:, :, ::2].isfinite().all()
    assert dk[:, [0, 2]].isfinite().all()
    assert dweight[:, :, ::2].isfinite().all()


def test_nan_of_a_pixel_stays_out_of_absent_prompts(backend):
    e = example(SMALL, torch.float32)
    q, k, v, weight = leaves(e)
    region = torch.ones(2, 3, 50, dtype=torch.bool)
    region[:, 1, 7] = False
    with torch.no_grad():
        q[:, :, 7] = torch.nan
    dout = e.dout.clone()
    dout[:, :, 7] = torch.nan
    out = blended_attention(q, k, v, weight, region=region, backend=backend)
    _, dk, dv, _ = torch.autograd.grad(out, (q, k, v, weight), dout)
    for gradient in (dk, dv):
        assert gradient[:, 1].isfinite().all()
        assert gradient[:, 0].isnan().all()


def test_weight_of_zero_has_a_gradient(backend):
    e = example(SMALL, torch.float32)
    q, k, v, _ = e.floats()
    weight = torch.zeros(2, 3, 50, requires_grad=True)
    out = blended_attention(q, k, v, weight, backend=backend)
    (dweight,) = torch.autograd.grad(out, weight, e.dout)
    attention = torch.stack(
        [F.scaled_dot_product_attention(q, k[:, p], v[:, p]) for p in range(3)], dim=1
    )
    torch.testing.assert_close(dweight, (attention * e.dout[:, None]).sum((2, 4)))
    assert (out == 0).all()


# ---- ragged ----


def test_dense_equals_ragged(backend):
    e = example(Case(batch=3, prompts=2, seqlen_q=40, region="blobs"), torch.float32)
    q, k, v, weight = leaves(e)
    assert e.region is not None
    dense = blended_attention(q, k, v, weight, region=e.region, backend=backend)
    ragged = blended_attention_ragged(
        q,
        k.flatten(0, 1),
        v.flatten(0, 1),
        weight.flatten(0, 1),
        torch.arange(6, dtype=torch.int32),
        torch.tensor([0, 2, 4, 6], dtype=torch.int32),
        region=e.region.flatten(0, 1),
        backend=backend,
    )
    assert torch.equal(dense, ragged)
    for one, other in zip(
        torch.autograd.grad(dense, (q, k, v, weight), e.dout),
        torch.autograd.grad(ragged, (q, k, v, weight), e.dout),
        strict=True,
    ):
        assert torch.equal(one, other)


def test_keys_beyond_the_length_are_not_read(backend):
    e = example(Case(batch=3, prompts=3, seqlen_k=10, ragged=True), torch.float32)
    expected = results(e, backend)
    assert e.key_lengths is not None
    lengths = e.key_lengths.tolist()
    with torch.no_grad():
        for row, length in enumerate(lengths):
            e.k[row, :, length:], e.v[row, :, length:] = torch.nan, torch.nan
    actual = results(e, backend)
    for name, right in expected.items():
        assert torch.equal(actual[name], right), name
    for row, length in enumerate(lengths):
        assert (actual["dk"][row, :, length:] == 0).all()
        assert (actual["dv"][row, :, length:] == 0).all()


def test_element_without_entries_is_zero(backend):
    q, k, v, _ = example(SMALL, torch.float32).floats()
    out = blended_attention_ragged(
        q,
        k[0],
        v[0],
        torch.ones(1, 50),
        torch.tensor([2], dtype=torch.int32),
        torch.tensor([0, 0, 1], dtype=torch.int32),
        backend=backend,
    )
    assert (out[0] == 0).all()
    torch.testing.assert_close(out[1], F.scaled_dot_product_attention(q[1], k[0, 2], v[0, 2]))


def test_unused_row_has_gradient_zero(backend):
    q, k, v, _ = example(SMALL, torch.float32).floats()
    ids, offsets = torch.tensor([2, 2], dtype=torch.int32), torch.tensor([0, 1, 2]).int()
    k, v = k[0].detach().requires_grad_(), v[0].detach().requires_grad_()
    out = blended_attention_ragged(q, k, v, torch.ones(2, 50), ids, offsets, backend=backend)
    for gradient in torch.autograd.grad(out.sum(), (k, v)):
        assert (gradient[:2] == 0).all()
        assert gradient[2].isfinite().all()


# ---- sizes and layouts ----


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param({"batch": 0}, id="batch"),
        pytest.param({"seqlen_q": 0}, id="seqlen_q"),
        pytest.param({"prompts": 0}, id="prompts"),
        pytest.param({"seqlen_k": 0}, id="seqlen_k"),
    ],
)
def test_empty_dimension_gives_zeros(sizes, backend):
    case = Case(**{"batch": 2, "heads": 1, "seqlen_q": 5, "seqlen_k": 4, "head_dim": 8, **sizes})
    for name, result in results(example(case, torch.float32), backend).items():
        assert (result == 0).all(), name


def test_empty_ragged_call_gives_zeros(backend):
    q = torch.ones(2, 1, 5, 8, requires_grad=True)
    k = torch.ones(0, 1, 4, 8, requires_grad=True)
    none = torch.zeros(0, dtype=torch.int32)
    offsets = torch.zeros(3, dtype=torch.int32)
    out = blended_attention_ragged(q, k, k, torch.ones(0, 5), none, offsets, backend=backend)
    assert (out == 0).all()
    dq, dk = torch.autograd.grad(out.sum(), (q, k))
    assert (dq == 0).all()
    assert dk.shape == k.shape


@pytest.mark.parametrize("layout", ["contiguous", "projection"])
def test_output_and_gradients_have_the_layout_of_their_inputs(layout, backend):
    case = Case(batch=2, heads=3, seqlen_q=20, seqlen_k=9, layout=layout)
    e = example(case, torch.float32)
    out = e.run(backend)
    gradients = torch.autograd.grad(out, e.floats(), e.dout)
    for actual, like in zip((out, *gradients), (e.q, *e.floats()), strict=True):
        assert actual.stride() == like.stride()


def test_layout_does_not_change_the_result(backend):
    base = results(example(Case(batch=2, heads=3), torch.float32), backend)
    for layout in ("projection", "sliced"):
        other = results(example(Case(batch=2, heads=3, layout=layout), torch.float32), backend)
        for name, right in base.items():
            assert torch.equal(other[name], right), (layout, name)


def test_expanded_gradient_of_the_output_is_accepted(backend):
    e = example(SMALL, torch.float32)
    out = e.run(backend)
    expanded = torch.autograd.grad(out.sum(), e.floats(), retain_graph=True)
    dense = torch.autograd.grad(out, e.floats(), torch.ones_like(out))
    for actual, right in zip(expanded, dense, strict=True):
        assert torch.equal(actual, right)


def test_unaligned_tensors_give_the_same_result(backend):
    e = example(SMALL, torch.bfloat16)

    def shifted(x):
        return torch.cat([x.new_zeros(1), x.detach().flatten()])[1:].view(x.shape)

    moved = blended_attention(*(shifted(x) for x in e.floats()), backend=backend)
    assert torch.equal(moved, e.run(backend))


# ---- numbers ----


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_large_scores_do_not_overflow(dtype, backend):
    q = torch.full((1, 1, 20, 8), 200.0).to(dtype)
    k = torch.linspace(-100, 100, 11)[:, None].expand(1, 1, 1, 11, 8).to(dtype).contiguous()
    v = torch.arange(11.0)[:, None].expand(1, 1, 1, 11, 8).to(dtype).contiguous()
    out = blended_attention(q, k, v, torch.ones(1, 1, 20), backend=backend)
    assert (out == 10).all()


def test_nan_in_q_stays_in_its_row(backend):
    q, k, v, weight = leaves(example(SMALL, torch.float32))
    with torch.no_grad():
        q[0, 1, 33, 5] = torch.nan
    out = blended_attention(q, k, v, weight, backend=backend)
    assert out[0, 1, 33].isnan().all()
    out = out.detach()
    out[0, 1, 33] = 0
    assert out.isfinite().all()


def test_infinity_in_q_gives_nan_as_sdpa_does(backend):
    q, k, v, _ = leaves(example(SMALL, torch.float32))
    with torch.no_grad():
        q[0, 0, 0, 0] = torch.inf
    out = blended_attention(q, k[:, :1], v[:, :1], torch.ones(2, 1, 50), backend=backend)
    sdpa = F.scaled_dot_product_attention(q, k[:, 0], v[:, 0])
    assert sdpa[0, 0, 0].isnan().all()
    torch.testing.assert_close(out, sdpa, equal_nan=True)


def test_result_overflows_to_infinity_in_float16(backend):
    q = torch.zeros(1, 1, 1, 8, dtype=torch.float16)
    v = torch.full((1, 1, 1, 2, 8), 60000.0, dtype=torch.float16)
    weight = torch.tensor([[[2.0]]])
    assert (blended_attention(q, v, v, weight, backend=backend) == torch.inf).all()
    assert (blended_attention(q, v, v, -weight, backend=backend) == -torch.inf).all()


# ---- determinism ----


def test_result_does_not_depend_on_the_number_of_threads(backend):
    case = Case(batch=3, heads=3, seqlen_q=200, prompts=3, region="blobs", ragged=True)
    e = example(case, torch.float32)
    torch.set_num_threads(1)
    one = results(e, backend)
    for threads in (2, 3):
        torch.set_num_threads(threads)
        for name, right in results(e, backend).items():
            # torch's own matrix products may change with the number of threads.
            torch.testing.assert_close(one[name], right)
            assert backend == "reference" or torch.equal(one[name], right)


def test_result_is_the_same_every_time(backend):
    e = example(CASES[0], torch.float32)
    first = results(e, backend)
    for _ in range(3):
        for name, right in results(e, backend).items():
            assert torch.equal(first[name], right), name


def test_calls_from_several_threads_do_not_disturb_each_other(backend):
    examples = [example(CASES[i], torch.float32) for i in range(4)]
    expected = [results(e, backend) for e in examples]
    failures = []

    def work(i):
        for _ in range(5):
            for name, right in results(examples[i], backend).items():
                if not torch.equal(expected[i][name], right):
                    failures.append((i, name))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_scratch_of_an_earlier_call_is_not_read(backend):
    case = Case(batch=2, seqlen_q=300, seqlen_k=200, head_dim=256, prompts=3)
    poison = example(case, torch.float32)
    with torch.no_grad():
        for x in (*poison.floats(), poison.dout):
            x.fill_(torch.nan)
    for small in (SMALL, Case(seqlen_q=1, seqlen_k=1, head_dim=8)):
        e = example(small, torch.float32)
        expected = results(e, "reference")
        results(poison, backend)
        for name, right in results(e, backend).items():
            torch.testing.assert_close(right, expected[name], msg=name)
