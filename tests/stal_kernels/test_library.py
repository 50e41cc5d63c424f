"""The operator as torch sees it: gradients, compilation, autocast."""

from dataclasses import replace

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from stal_kernels import blended_attention
from stal_kernels.backends import cpu
from stal_kernels.testing import Case, example, results

SMALL = Case(batch=2, heads=2, seqlen_q=5, seqlen_k=3, head_dim=8, prompts=2)
RAGGED = Case(batch=3, heads=2, seqlen_q=5, seqlen_k=3, head_dim=8, prompts=2, ragged=True)
BLOBS = Case(batch=2, heads=2, seqlen_q=5, seqlen_k=3, head_dim=8, prompts=2, region="blobs")
PLANNED = replace(BLOBS, planned=True)
FORMS = pytest.mark.parametrize(
    "case",
    [SMALL, BLOBS, PLANNED, RAGGED, replace(RAGGED, region="blobs", planned=True)],
    ids=["dense", "region", "planned", "ragged", "ragged-planned"],
)


def call(e, *tensors, backend="auto"):
    q, k, v, weight = tensors or e.floats()
    return replace(e, q=q, k=k, v=v, weight=weight).run(backend)


@FORMS
def test_reference_gradients_equal_finite_differences(case):
    e = example(case, torch.float64)
    assert torch.autograd.gradcheck(lambda *x: call(e, *x, backend="reference"), e.floats())


@FORMS
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_forward_mode_is_refused_and_not_zero(case, backend):
    e = example(case, torch.float32)
    q, k, v, weight = (x.detach() for x in e.floats())
    with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
        torch.func.jvp(
            lambda w: call(e, q, k, v, w, backend=backend), (weight,), (torch.ones_like(weight),)
        )
    with torch.autograd.forward_ad.dual_level():  # without tangents it is as anywhere
        assert call(e, q, k, v, weight, backend=backend).shape == q.shape


@FORMS
def test_operators_pass_opcheck(case):
    e = example(case, torch.float32)
    shared = (*e.floats(), e.prompt_ids, e.offsets, e.region, e.key_lengths, e.plan, 0.3)
    ops = torch.ops.stal_kernels
    torch.library.opcheck(ops.blended_attention.default, (*shared, False, "auto"))
    detached = [x.detach() if isinstance(x, torch.Tensor) else x for x in (e.dout, *shared)]
    torch.library.opcheck(
        ops.blended_attention_backward.default, (*detached, True, True, True, "auto")
    )
    torch.library.opcheck(
        ops.blended_attention_backward.default, (*detached, True, True, False, "auto")
    )


def assert_compiles(case, **options):
    e = example(case, torch.float32)
    expected = results(e, "auto")
    out = torch.compile(lambda *x: call(e, *x), fullgraph=True, **options)(*e.floats())
    gradients = torch.autograd.grad(out, e.floats(), e.dout)
    for name, actual in zip(expected, (out, *gradients), strict=True):
        assert torch.equal(actual, expected[name]), name
        assert actual.stride() == expected[name].stride(), name


@FORMS
def test_operator_is_traced_whole_forward_and_backward(case):
    torch.compiler.reset()
    assert_compiles(case, backend="aot_eager")


@pytest.mark.slow
@FORMS
def test_operator_compiles_whole_forward_and_backward(case):
    torch.compiler.reset()
    assert_compiles(case)


@pytest.mark.slow
def test_compiled_operator_keeps_the_strides_that_it_was_traced_with():
    torch.compiler.reset()

    def block(x, k, v, weight):
        q = (x * 2).unflatten(-1, (2, 8)).transpose(1, 2)
        return blended_attention(q, k, v, weight).transpose(1, 2).flatten(2) + 1

    x, k, v = torch.randn(2, 5, 16), torch.randn(2, 2, 2, 3, 8), torch.randn(2, 2, 2, 3, 8)
    weight = torch.randn(2, 2, 5)
    compiled = torch.compile(block, fullgraph=True)
    torch.testing.assert_close(compiled(x, k, v, weight), block(x, k, v, weight))


@pytest.mark.parametrize("backend", ["reference", "cpu", "cpu:portable"])
def test_named_backend_compiles_whole(backend):
    torch.compiler.reset()
    e = example(Case(seqlen_q=5, seqlen_k=3, head_dim=8), torch.float32)

    def call(*x):
        return blended_attention(*x, backend=backend)

    traced = torch.compile(call, fullgraph=True, backend="aot_eager")
    assert torch.equal(traced(*e.floats()), call(*e.floats()))


def test_unknown_backend_raises_when_compiled():
    torch.compiler.reset()
    e = example(Case(seqlen_q=5, seqlen_k=3, head_dim=8), torch.float32)
    traced = torch.compile(
        lambda *x: blended_attention(*x, backend="cpu:abacus"), backend="aot_eager"
    )
    with pytest.raises(ValueError, match="backend must be one of"):
        traced(*e.floats())


def test_traced_operator_takes_any_size():
    torch.compiler.reset()
    traced = torch.compile(
        lambda *x: blended_attention(*x), fullgraph=True, dynamic=True, backend="aot_eager"
    )
    for seqlen_q in (5, 9, 64):
        e = example(Case(seqlen_q=seqlen_q, seqlen_k=3, head_dim=8), torch.float32)
        assert torch.equal(traced(*e.floats()), blended_attention(*e.floats()))


def test_meta_tensors_give_shape_and_layout():
    e = example(Case(batch=2, heads=3, layout="projection"), torch.float32)
    out = blended_attention(*(x.to("meta") for x in e.floats()))
    assert out.shape == e.q.shape
    assert out.stride() == e.q.stride()


@pytest.mark.parametrize("wanted", ["q", "k", "v", "weight"])
def test_only_the_gradients_that_are_asked_for_are_computed(wanted, monkeypatch):
    asked: dict = {}

    def spy(inputs, level, dout, dq, dweight, dk, dv):
        asked.update(q=dq, weight=dweight, k=dk, v=dv)
        original(inputs, level, dout, dq, dweight, dk, dv)

    original = cpu.backward
    monkeypatch.setattr(cpu, "backward", spy)
    e = example(SMALL, torch.float32)
    expected = dict(zip("qkv", e.floats(), strict=False), weight=e.weight)
    tensors = {name: x.detach() for name, x in expected.items()}
    tensors[wanted].requires_grad_()
    call(e, *tensors.values(), backend="cpu").sum().backward()
    computed = {name for name, gradient in asked.items() if gradient is not None}
    assert computed == ({"k", "v"} if wanted in "kv" else {wanted})
    assert tensors[wanted].grad is not None


def test_no_graph_is_kept_when_nothing_requires_a_gradient():
    e = example(SMALL, torch.float32)
    assert not call(e, *(x.detach() for x in e.floats())).requires_grad
    with torch.no_grad():
        assert not call(e).requires_grad


def test_graph_recorded_without_gradients_can_be_differentiated():
    e = example(SMALL, torch.float32)
    q, *others = (x.detach() for x in e.floats())
    graph = make_fx(lambda q: call(e, q, *others))(q)
    (dq,) = torch.autograd.grad(graph(e.q), e.q, e.dout)
    assert torch.equal(dq, torch.autograd.grad(call(e, e.q, *others), e.q, e.dout)[0])


def test_mode_and_profiler_see_the_call_without_gradients():
    e = example(SMALL, torch.float32)
    seen = []

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(function)
            return function(*args, **(kwargs or {}))

    with torch.no_grad(), Mode():
        call(e)
    assert torch.ops.stal_kernels.blended_attention.default in seen
    with torch.no_grad(), torch.autograd.profiler.profile() as profile:
        call(e)
    assert "stal_kernels::blended_attention" in [event.key for event in profile.key_averages()]


def test_vmap_equals_a_loop():
    e = example(SMALL, torch.float32)
    q, *others = (x.detach() for x in e.floats())
    many = torch.stack([q, 2 * q])
    out = torch.func.vmap(lambda q: call(e, q, *others))(many)
    assert torch.equal(out, torch.stack([call(e, q, *others) for q in many]))


def test_inference_mode_gives_the_same_result():
    e = example(SMALL, torch.float32)
    with torch.inference_mode():
        out = call(e)
    assert torch.equal(out, call(e))


def test_second_derivative_is_refused():
    e = example(SMALL, torch.float32)
    (dq,) = torch.autograd.grad(call(e).sum(), e.q, create_graph=True)
    with pytest.raises(NotImplementedError, match="can be differentiated once"):
        dq.sum().backward()


def test_output_shares_no_memory_with_the_inputs():
    e = example(SMALL, torch.float32)
    out = call(e)
    assert out.data_ptr() not in {x.data_ptr() for x in e.floats()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_autocast_casts_q_k_v_and_leaves_weight(dtype):
    e = example(SMALL, torch.float32)
    q, k, v, weight = e.floats()
    with torch.autocast("cpu", dtype=dtype):
        out = blended_attention(q, k.to(dtype), v, weight)
    assert out.dtype == dtype
    # A weight of 1/3 cast to half precision would differ.
    expected = blended_attention(q.to(dtype), k.to(dtype), v.to(dtype), weight)
    assert torch.equal(out, expected)
    gradients = torch.autograd.grad(out, e.floats(), e.dout.to(dtype))
    assert all(gradient.dtype == torch.float32 for gradient in gradients)


def test_autocast_leaves_float64_alone():
    e = example(SMALL, torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert call(e).dtype == torch.float64


def test_autocast_works_when_traced():
    torch.compiler.reset()
    e = example(SMALL, torch.float32)

    def forward(*tensors):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return call(e, *tensors)

    traced = torch.compile(forward, fullgraph=True, backend="aot_eager")
    assert torch.equal(traced(*e.floats()), forward(*e.floats()))


@pytest.mark.filterwarnings("error")
def test_operator_exists_without_the_native_library(monkeypatch):
    monkeypatch.setattr(cpu, "missing", lambda level: "cpu is missing: it was not built: why")
    e = example(SMALL, torch.float32)
    with pytest.warns(UserWarning, match="slow reference backend: cpu is missing: it was not"):
        out = call(e)
    assert torch.equal(out, call(e, backend="reference"))
    assert torch.equal(out, call(e))  # and warns no second time
