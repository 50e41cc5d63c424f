"""The operator inside torch.func's transforms and whatever else stands between it and autograd."""

import copy
import pickle
from itertools import product

import pytest
import torch
from torch.func import functionalize, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

from stal_kernels import blended_attention, blended_attention_ragged

pytestmark = pytest.mark.filterwarnings("error:There is a performance drop")
COUNT = 3
DENSE = ("q", "k", "v", "weight")
RAGGED = (*DENSE, "prompt_ids", "offsets", "key_lengths")
NOT_AGAIN = "blended_attention can be differentiated once"
NO_TANGENTS = "blended_attention has no forward-mode derivative"


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def ints(*values):
    return torch.tensor(values, dtype=torch.int32)


def many():
    """Inputs of several dense calls, one behind another."""
    keys = normal(COUNT, 2, 3, 2, 4, 8)
    return normal(COUNT, 2, 2, 5, 8), keys, keys.flip(0), normal(COUNT, 2, 3, 5)


def many_ragged():
    q, keys, values, _ = many()
    ids = torch.stack([ints(0, 2, 1), ints(1, 1, 0), ints(2, 0, 0)])
    offsets = torch.stack([ints(0, 2, 3), ints(0, 0, 3), ints(0, 3, 3)])
    lengths = torch.stack([ints(4, 2, 0), ints(1, 4, 4), ints(0, 0, 3)])
    return q, keys[:, 0], values[:, 0], normal(COUNT, 3, 5), ids, offsets, lengths


def one():
    return [x[0].clone() for x in many()]


def call(*tensors):
    if len(tensors) == len(DENSE):
        return blended_attention(*tensors)
    return blended_attention_ragged(*tensors[:-1], key_lengths=tensors[-1])


def loss(*tensors):
    return call(*tensors).sin().sum()


def loop(function, tensors, in_dims):
    def of_call(i):
        return [
            x if dim is None else x.select(dim, i) for x, dim in zip(tensors, in_dims, strict=True)
        ]

    return torch.stack([function(*of_call(i)) for i in range(COUNT)])


def mapped(names):
    """Every way to map some of the tensors and leave the others alone."""
    ways = [way for way in product((0, None), repeat=len(names)) if 0 in way]
    if len(ways) > 20:  # each alone, each left out, all
        ways = [way for way in ways if way.count(0) in (1, len(way) - 1, len(way))]
    return [
        pytest.param(way, id="-".join(n for n, dim in zip(names, way, strict=True) if dim == 0))
        for way in ways
    ]


def leaves(tensors, in_dims):
    tensors = [x if dim == 0 else x[0] for x, dim in zip(tensors, in_dims, strict=True)]
    return [x.clone().requires_grad_(x.is_floating_point()) for x in tensors]


def assert_mapped_equals_loop(tensors, in_dims):
    tensors = leaves(tensors, in_dims)
    out, expected = vmap(call, in_dims)(*tensors), loop(call, tensors, in_dims)
    assert torch.equal(out, expected)
    gradients = (torch.autograd.grad(x.sin().sum(), tensors[:4]) for x in (out, expected))
    for actual, right in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, right)
    for i in range(4):
        gradient = grad(loss, argnums=i)
        right = loop(gradient, tensors, in_dims)
        torch.testing.assert_close(vmap(gradient, in_dims)(*tensors), right)


@pytest.mark.parametrize("in_dims", mapped(DENSE))
def test_vmap_equals_a_loop_with_gradients_outside_and_inside(in_dims):
    assert_mapped_equals_loop(many(), in_dims)


@pytest.mark.parametrize("in_dims", mapped(RAGGED))
def test_vmap_of_ragged_equals_a_loop_with_gradients_outside_and_inside(in_dims):
    assert_mapped_equals_loop(many_ragged(), in_dims)


def test_gradient_of_a_sum_inside_vmap_is_whole():
    # The other summand requires a gradient too: without the attention's there is no error.
    q, *others = leaves(many(), (0, None, None, None))
    vmap(lambda q: q + blended_attention(q, *others))(q).sum().backward()
    expected = torch.autograd.grad(loop(call, [q, *others], (0, None, None, None)).sum(), q)[0]
    torch.testing.assert_close(q.grad, 1 + expected)


@pytest.mark.parametrize("dim", [1, 2, -2, -1])
def test_vmap_over_any_dimension_equals_a_loop(dim):
    moved = [x.movedim(0, dim) for x in many()]
    assert torch.equal(vmap(call, dim)(*moved), loop(call, many(), (0,) * 4))


def test_vmap_takes_regions_chunks_and_nothing():
    q, others, region = many()[0], one()[1:], normal(COUNT, 2, 3, 5) > 0

    def with_region(q, region):
        return blended_attention(q, *others, region=region)

    expected = loop(with_region, (q, region), (0, 0))
    assert torch.equal(vmap(with_region)(q, region), expected)
    assert torch.equal(vmap(with_region, chunk_size=2)(q, region), expected)
    assert vmap(with_region)(q[:0], region[:0]).shape == (0, *q.shape[1:])
    assert vmap(call)(*[x[:0] for x in many_ragged()]).shape == (0, *q.shape[1:])


def test_nested_vmap_equals_two_loops():
    q, *others = many()
    over_q = vmap(call, (0, None, None, None))
    expected = loop(lambda *x: loop(call, [q, *x], (0, None, None, None)), others, (0, 0, 0))
    assert torch.equal(vmap(over_q, (None, 0, 0, 0))(q, *others), expected)


@pytest.mark.parametrize("backend", ["reference", "cpu:portable"])
def test_vmap_works_on_a_named_backend(backend):
    def named(*tensors):
        return blended_attention(*tensors, backend=backend)

    assert torch.equal(vmap(named)(*many()), loop(named, many(), (0,) * 4))


def test_vmap_works_for_the_operators_themselves():
    none, ops = (None,) * 5, torch.ops.stal_kernels
    tensors, options = many(), (0.3, False, "auto")
    expected = vmap(lambda *x: blended_attention(*x, scale=0.3))(*tensors)
    out = vmap(lambda *x: ops.blended_attention.default(*x, *none, *options))(*tensors)
    assert torch.equal(out, expected)
    dq, *_ = vmap(
        lambda q, k, v, weight: ops.blended_attention_backward.default(
            q, q, k, v, weight, *none, 0.3, True, False, False, "auto"
        )
    )(*tensors)
    assert dq.shape == tensors[0].shape


@pytest.mark.parametrize(
    ("which", "value", "message"),
    [
        (4, ints(0, 3, 0), "prompt_ids must be in 0 .. "),  # 3 is row 0 of the next call
        (5, ints(0, 1, 2), "offsets must ascend"),
        (5, ints(1, 1, 3), "offsets must ascend"),
        (6, ints(4, 5, 0), "key_lengths must be in 0 .. 4"),
    ],
)
def test_vmap_lets_no_index_reach_into_another_call(which, value, message):
    tensors = list(many_ragged())
    tensors[which] = torch.stack([tensors[which][0], value, tensors[which][0]])
    in_dims = [0 if i in (0, which) else None for i in range(7)]
    inputs = [x if dim == 0 else x[0] for x, dim in zip(tensors, in_dims, strict=True)]
    with pytest.raises(ValueError, match=message):
        vmap(call, tuple(in_dims))(*inputs)


@pytest.mark.parametrize("i", range(4), ids=DENSE)
def test_functional_gradients_equal_those_of_autograd(i):
    tensors = one()

    def of_one(x):
        return call(*[x if j == i else y for j, y in enumerate(tensors)])

    x = tensors[i].clone().requires_grad_()
    (expected,) = torch.autograd.grad(of_one(x).sin().sum(), x)
    torch.testing.assert_close(grad(lambda x: of_one(x).sin().sum())(tensors[i]), expected)
    out, back = vjp(of_one, tensors[i])
    torch.testing.assert_close(back(out.cos())[0], expected)
    jacobian = torch.autograd.functional.jacobian(of_one, x)
    torch.testing.assert_close(jacrev(of_one)(tensors[i]), jacobian)
    vectorised = torch.autograd.functional.jacobian(of_one, x, vectorize=True)
    torch.testing.assert_close(vectorised, jacobian)


@pytest.mark.parametrize("transform", [grad, vmap], ids=["grad", "vmap"])
def test_autocast_casts_inside_a_transform_too(transform):
    q, *others = one()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        if transform is grad:
            (expected,) = torch.autograd.grad(loss(q.requires_grad_(), *others), q)
            actual = grad(loss)(q.detach(), *others)
        else:
            expected = call(q, *others)[None]
            actual = vmap(call, (0, None, None, None))(q[None], *others)
            assert actual.dtype == torch.bfloat16
    assert torch.equal(actual, expected)


@pytest.mark.parametrize(
    ("message", "function"),
    [
        (NO_TANGENTS, lambda q: jvp(loss, (q, *one()[1:]), (q, *one()[1:]))),
        (NO_TANGENTS, lambda q: jacfwd(loss)(q, *one()[1:])),
        (NO_TANGENTS, lambda q: hessian(loss)(q, *one()[1:])),
        (NO_TANGENTS, lambda q: jvp(lambda x: vmap(call)(*x), (many(),), (many(),))),
        (NO_TANGENTS, lambda q: vmap(lambda *x: jvp(call, x, x))(*many())),
        (NO_TANGENTS, lambda q: jvp(lambda q: grad(loss)(q, *one()[1:]), (q,), (q,))),
        (NOT_AGAIN, lambda q: grad(lambda q: grad(loss)(q, *one()[1:]).sum())(q)),
        (NOT_AGAIN, lambda q: jacrev(jacrev(loss))(q, *one()[1:])),
    ],
    ids=["jvp", "jacfwd", "hessian", "jvp-vmap", "vmap-jvp", "jvp-grad", "grad-grad", "jacrev2"],
)
def test_derivative_that_does_not_exist_is_refused_in_our_words(message, function):
    with pytest.raises(NotImplementedError, match=message):
        function(one()[0])


def test_forward_mode_passes_an_operator_without_tangents():
    tensors, x = one(), torch.tensor(2.0)
    _, tangent = jvp(lambda x: x * call(*tensors), (x,), (torch.tensor(1.0),))
    assert torch.equal(tangent, call(*tensors))


@pytest.mark.parametrize(
    "transform",
    [
        pytest.param(functionalize, id="functionalize"),
        pytest.param(lambda f: make_fx(f)(one()[0]), id="make_fx"),
        pytest.param(lambda f: torch.compile(f, backend="aot_eager", fullgraph=True), id="compile"),
        pytest.param(lambda f: lambda q: checkpoint(f, q, use_reentrant=False), id="checkpoint"),
        pytest.param(lambda f: lambda q: checkpoint(f, q, use_reentrant=True), id="reentrant"),
        pytest.param(copy.deepcopy, id="deepcopy"),
    ],
)
def test_whoever_calls_it_gets_the_gradient(transform):
    torch.compiler.reset()
    q, *others = one()
    q.requires_grad_()
    expected = torch.autograd.grad(call(q, *others).sum(), q)[0]
    out = transform(lambda q: call(q, *others))(q)
    out.sum().backward()
    assert torch.equal(q.grad, expected)


def test_gradients_of_several_directions_at_once_equal_single_ones():
    tensors = [x.requires_grad_() for x in one()]
    out, directions = call(*tensors), normal(COUNT, 2, 2, 5, 8)
    at_once = torch.autograd.grad(
        out, tensors, directions, retain_graph=True, is_grads_batched=True
    )
    for i, direction in enumerate(directions):
        single = torch.autograd.grad(out, tensors, direction, retain_graph=True)
        for actual, right in zip(at_once, single, strict=True):
            torch.testing.assert_close(actual[i], right)


def test_saved_tensors_are_seen_by_hooks():
    seen = []
    q, *others = one()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: seen.append(x) or x, lambda x: x):
        call(q.requires_grad_(), *others)
    assert len(seen) == 4


class Wrapper(torch.Tensor):
    """A tensor that hides another one."""

    @staticmethod
    def __new__(cls, inner):
        wrapped = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, dtype=inner.dtype, strides=inner.stride()
        )
        wrapped.inner = inner
        return wrapped

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        assert function is torch.ops.stal_kernels.blended_attention.default
        return function(*[x.inner if isinstance(x, Wrapper) else x for x in args])


@pytest.mark.parametrize("which", range(4), ids=DENSE)
def test_subclass_meets_the_operator_as_autograd_left_it(which):
    tensors = one()
    expected = call(*tensors)
    tensors[which] = Wrapper(tensors[which])
    assert torch.equal(call(*tensors), expected)
    tensors[which].requires_grad_()
    assert call(*tensors).requires_grad


def test_operator_is_pickled_by_name():
    for function in (blended_attention, blended_attention_ragged):
        assert pickle.loads(pickle.dumps(function)) is function
        assert copy.deepcopy(function) is function
