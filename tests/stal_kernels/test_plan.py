"""Plans: what they hold, that no result depends on one, and which are refused."""

import re
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch.func import grad, vmap

from stal_kernels import blended_attention, blended_attention_ragged, plan
from stal_kernels.testing import CASES, Case, example, results

PLANNED = [case for case in CASES if case.planned]
SMALL = Case(batch=2, heads=2, seqlen_q=50, seqlen_k=9, head_dim=24, prompts=3, region="blobs")
RAGGED = Case(batch=3, heads=2, seqlen_q=50, seqlen_k=9, head_dim=24, region="blobs", ragged=True)
FORMS = pytest.mark.parametrize("case", [SMALL, RAGGED], ids=["dense", "ragged"])

_forward = torch.ops.stal_kernels.blended_attention.default
_backward = torch.ops.stal_kernels.blended_attention_backward.default


def ints(*values):
    return torch.tensor(values, dtype=torch.int32)


def planned(case, **changed):
    """An example of a case with the plan of its region, which `changed` may replace."""
    e = replace(example(replace(case, planned=False), torch.float32), **changed)
    return replace(e, plan=plan(e.region, e.prompt_ids, e.offsets))


def elements(e):
    """The regions of each batch element, (entries, seqlen_q)."""
    if e.offsets is None:
        return list(e.region)
    return list(e.region.split(e.offsets.diff().tolist()))


# ---- what it holds ----


@pytest.mark.parametrize("case", [SMALL, RAGGED, *PLANNED], ids=repr)
def test_rows_are_sorted_by_the_prompts_that_exist_and_then_as_in_memory(case):
    e = planned(case)
    order, _, _ = e.plan
    assert (order.dtype, order.shape) == (torch.int32, (case.batch, case.seqlen_q))
    for rows, region in zip(order.tolist(), elements(e), strict=True):
        expected = sorted(range(case.seqlen_q), key=lambda n, r=region: (~r[:, n]).tolist())
        assert rows == expected


@pytest.mark.parametrize("case", [SMALL, RAGGED, *PLANNED], ids=repr)
def test_tile_has_the_bits_of_the_prompts_that_it_meets(case):
    e = planned(case)
    order, tiles, _ = e.plan
    assert (tiles.dtype, tiles.shape) == (torch.int64, (case.batch, -(-case.seqlen_q // 32)))
    for rows, bits, region in zip(order.long(), tiles.tolist(), elements(e), strict=True):
        for tile, there in zip(rows.split(32), bits, strict=True):
            assert there == sum(1 << i for i, r in enumerate(region) if r[tile].any())


@FORMS
def test_region_is_a_copy(case):
    e = planned(case)
    copy = e.plan[2]
    assert torch.equal(copy, e.region)
    assert copy.data_ptr() != e.region.data_ptr()


@pytest.mark.parametrize(
    "view",
    [
        pytest.param(lambda x: x[:1, :1].expand(2, 3, 50), id="expanded"),
        pytest.param(lambda x: x.repeat_interleave(2, -1)[..., ::2], id="strided"),
        pytest.param(lambda x: x.transpose(0, 2).contiguous().transpose(0, 2), id="transposed"),
    ],
)
def test_region_may_have_any_strides(view, backend):
    e = example(SMALL, torch.float32)
    e = planned(SMALL, region=view(e.region))
    for actual, right in zip(e.plan, plan(e.region.contiguous()), strict=True):
        assert actual.is_contiguous()
        assert torch.equal(actual, right)
    assert_unchanged(e, backend)


@pytest.mark.parametrize("prompts", [1, 63, 64])
def test_every_bit_is_used(prompts):
    generator = torch.Generator().manual_seed(0)
    region = torch.rand(1, prompts, 90, generator=generator) < 0.5
    order, tiles, _ = plan(region)
    assert order[0].tolist() == sorted(range(90), key=lambda n: (~region[0, :, n]).tolist())
    for rows, bits in zip(order[0].long().split(32), tiles[0].tolist(), strict=True):
        there = region[0][:, rows].any(1).tolist()
        assert [bool(bits >> p & 1) for p in range(prompts)] == there


def test_element_of_more_than_64_prompts_is_left_as_it_is(backend):
    case = Case(heads=1, seqlen_q=40, seqlen_k=3, head_dim=8, prompts=65, region="blobs")
    e = planned(case)
    order, tiles, _ = e.plan
    assert order.tolist() == [list(range(40))]
    assert tiles.tolist() == [[-1, -1]]
    assert_unchanged(e, backend)


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [((0, 3, 5), (0, 1)), ((2, 0, 5), (2, 1)), ((2, 3, 0), (2, 0)), ((0, 0, 0), (0, 0))],
)
def test_dimension_without_an_element_works(shape, sizes):
    region = torch.ones(shape, dtype=torch.bool)
    order, tiles, copy = plan(region)
    assert (order.shape, tiles.shape, copy.shape) == ((shape[0], shape[2]), sizes, shape)
    assert (tiles == 0).all()
    entries = region.flatten(0, 1)
    offsets = torch.arange(shape[0] + 1, dtype=torch.int32) * shape[1]
    ragged = plan(entries, torch.zeros(len(entries), dtype=torch.int32), offsets)
    assert torch.equal(ragged[0], order)
    assert torch.equal(ragged[1], tiles)


def test_dense_equals_ragged():
    e = planned(SMALL)
    ids, offsets = torch.arange(6, dtype=torch.int32), ints(0, 3, 6)
    order, tiles, copy = plan(e.region.flatten(0, 1), ids, offsets)
    assert torch.equal(order, e.plan[0])
    assert torch.equal(tiles, e.plan[1])
    assert torch.equal(copy, e.plan[2].flatten(0, 1))


def test_plans_are_joined_by_cat():
    region = torch.rand(5, 3, 70, generator=torch.Generator().manual_seed(0)) < 0.5
    parts = [plan(part) for part in region.split((2, 1, 2))]
    for joined, at_once in zip(map(torch.cat, zip(*parts, strict=True)), plan(region), strict=True):
        assert torch.equal(joined, at_once)
    # Rows of a batch join one of others: each brings its entries, of any number.
    entries = region.flatten(0, 1)
    bounds = (0, 4, 4, 11, 15)
    parts = [
        plan(entries[a:b], torch.zeros(b - a, dtype=torch.int32), ints(0, b - a))
        for a, b in pairwise(bounds)
    ]
    at_once = plan(entries, torch.zeros(15, dtype=torch.int32), ints(*bounds))
    for joined, right in zip(map(torch.cat, zip(*parts, strict=True)), at_once, strict=True):
        assert torch.equal(joined, right)


def test_joined_plan_gives_the_result_of_each(backend):
    whole, parts = planned(SMALL), []
    for b in range(2):
        tensors = [x[b : b + 1].detach() for x in whole.floats()]
        region = whole.region[b : b + 1]
        parts.append((tensors, region, plan(region)))
    joined = [torch.cat(x) for x in zip(*(made for _, _, made in parts), strict=True)]
    out = replace(whole, plan=joined).run(backend)
    for b, (tensors, region, made) in enumerate(parts):
        alone = blended_attention(*tensors, region=region, plan=made, backend=backend)
        torch.testing.assert_close(out[b : b + 1], alone)


# ---- results ----


def assert_unchanged(e, backend):
    expected = results(replace(e, plan=None), backend)
    for name, actual in results(e, backend).items():
        if backend == "triton":
            torch.testing.assert_close(actual, expected[name])
        else:
            assert torch.equal(actual, expected[name]), name


@FORMS
def test_small_call_with_a_plan_is_as_without(case, backend):
    assert_unchanged(planned(case), backend)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("case", PLANNED, ids=repr)
def test_no_bit_depends_on_a_plan(case, dtype, level):
    assert_unchanged(example(case, dtype), f"cpu:{level}")


def test_order_of_a_plan_need_not_be_the_best(level):
    e = planned(SMALL)
    order = torch.stack([torch.randperm(50, generator=torch.Generator()) for _ in range(2)]).int()
    assert_unchanged(replace(e, plan=(order, *e.plan[1:])), f"cpu:{level}")


def test_absent_prompt_is_not_read(backend):
    e = planned(SMALL)
    region = e.region.clone()
    region[:, 1] = False
    with torch.no_grad():
        e.k[:, 1], e.v[:, 1], e.weight[:, 1] = torch.nan, torch.nan, torch.nan
    e = replace(e, region=region, plan=plan(region))
    for name, result in results(e, backend).items():
        assert result.isfinite().all(), name
        if name in ("dk", "dv", "dweight"):
            assert (result[:, 1] == 0).all(), name


def test_nan_stays_in_rows_where_its_prompt_exists(backend):
    e = planned(SMALL)
    region = torch.ones(2, 3, 50, dtype=torch.bool)
    region[:, 1, ::2] = False
    with torch.no_grad():
        e.k[:, 1], e.v[:, 1] = torch.nan, torch.nan
    found = results(replace(e, region=region, plan=plan(region)), backend)
    for name in ("out", "dq"):
        assert found[name][:, :, ::2].isfinite().all()
        assert found[name][:, :, 1::2].isnan().all()
    assert found["dweight"][:, :, ::2].isfinite().all()


# ---- as torch sees it ----


@FORMS
def test_plan_is_traced_with_the_operator(case):
    torch.compiler.reset()
    e = planned(case)

    def attend(*tensors):
        q, k, v, weight, region = tensors
        made = plan(region, e.prompt_ids, e.offsets)
        if e.offsets is None:
            return blended_attention(q, k, v, weight, region=region, plan=made)
        indices = e.prompt_ids, e.offsets
        options = {"region": region, "key_lengths": e.key_lengths, "plan": made}
        return blended_attention_ragged(q, k, v, weight, *indices, **options)

    traced = torch.compile(attend, fullgraph=True, backend="aot_eager")
    out = traced(*e.floats(), e.region)
    expected = results(e, "auto")
    gradients = torch.autograd.grad(out, e.floats(), e.dout)
    for name, actual in zip(expected, (out, *gradients), strict=True):
        assert torch.equal(actual, expected[name]), name


def test_plan_of_another_region_is_refused_inside_a_traced_call():
    torch.compiler.reset()
    e = planned(SMALL)
    traced = torch.compile(
        lambda region, *made: replace(e, region=region, plan=made).run("cpu"),
        fullgraph=True,
        backend="aot_eager",
    )
    assert torch.equal(traced(e.region, *e.plan), e.run("cpu"))
    with pytest.raises(ValueError, match="plan's region must equal region"):
        traced(~e.region, *e.plan)


class Module(torch.nn.Module):
    def forward(self, q, k, v, weight, region, order, tiles, copy):
        return blended_attention(q, k, v, weight, region=region, plan=(order, tiles, copy))


def test_program_with_a_plan_is_exported():
    e = planned(SMALL)
    arguments = (*(x.detach() for x in e.floats()), e.region, *e.plan)
    program = torch.export.export(Module(), arguments).module()
    assert torch.equal(program(*arguments), e.run("auto"))


@FORMS
def test_autocast_leaves_a_plan_alone(case):
    e = planned(case)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = e.run("auto")
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, e.to(torch.bfloat16).run("auto"))


def test_functional_gradient_takes_a_plan():
    e = planned(SMALL)
    q, *others = (x.detach() for x in e.floats())

    def loss(q, made=None):
        return blended_attention(q, *others, region=e.region, plan=made).sin().sum()

    assert torch.equal(grad(loss)(q, e.plan), grad(loss)(q))
    stale = plan(~e.region)
    with pytest.raises(ValueError, match="plan's region must equal region"):
        grad(loss)(q, stale)


def test_mapped_calls_need_no_plan():
    e = planned(SMALL)
    q, *others = (x.detach() for x in e.floats())

    def attend(q, *made):
        return blended_attention(q, *others, region=e.region, plan=made or None)

    many = torch.stack([q, 2 * q, -q])
    expected = vmap(attend)(many)
    assert torch.equal(vmap(attend, (0, None, None, None))(many, *e.plan), expected)
    each = [x.expand(3, *x.shape) for x in e.plan]
    assert torch.equal(vmap(attend)(many, *each), expected)
    out = e.run("auto")
    directions = torch.stack([e.dout, -e.dout])
    (at_once,) = torch.autograd.grad(out, e.q, directions, retain_graph=True, is_grads_batched=True)
    (single,) = torch.autograd.grad(out, e.q, e.dout)
    torch.testing.assert_close(at_once[0], single)


def test_plan_is_kept_for_the_backward_pass_as_tensors():
    seen = []
    e = planned(SMALL)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: seen.append(x) or x, lambda x: x):
        e.run("auto")
    assert len(seen) == 4 + 1 + 3


def test_inference_mode_takes_a_plan():
    e = planned(SMALL)
    with torch.inference_mode():
        assert torch.equal(e.run("auto"), e.run("auto"))
        inside = replace(e, plan=plan(e.region)).run("auto")
    assert torch.equal(inside, e.run("auto"))


# ---- what is refused ----


def spoilt(which, x):
    """The plan of SMALL with another tensor in one place."""
    made = list(planned(SMALL).plan)
    made[which] = x
    return made


META = torch.zeros(2, 50, dtype=torch.int32, device="meta")
THREE = "plan must be the three tensors that stal_kernels.plan returns, got "
WRONG = {
    "empty": (lambda: (), THREE + "tuple of 0"),
    "two": (lambda: planned(SMALL).plan[:2], THREE + "tuple of 2"),
    "tensor": (lambda: planned(SMALL).plan[0], THREE + "Tensor"),
    "number": (lambda: spoilt(1, 3), THREE + "list of 3 with int in it"),
    "int64-order": (
        lambda: spoilt(0, torch.zeros(2, 50, dtype=torch.int64)),
        "plan's order must be int32, got int64",
    ),
    "int32-tiles": (
        lambda: spoilt(1, torch.zeros(2, 2, dtype=torch.int32)),
        "plan's tiles must be int64, got int32",
    ),
    "float-region": (
        lambda: spoilt(2, torch.ones(2, 3, 50)),
        "plan's region must be bool, got float32",
    ),
    "order-of-fewer-rows": (
        lambda: spoilt(0, torch.zeros(2, 49, dtype=torch.int32)),
        "plan's order must have shape (batch, seqlen_q) = (2, 50), got (2, 49)",
    ),
    "fewer-tiles": (
        lambda: spoilt(1, torch.zeros(2, 1, dtype=torch.int64)),
        "plan's tiles must have shape (batch, ceil(seqlen_q / 32)) = (2, 2), got (2, 1)",
    ),
    "region-of-fewer-prompts": (
        lambda: spoilt(2, torch.ones(2, 2, 50, dtype=torch.bool)),
        "plan's region must have shape of region = (2, 3, 50), got (2, 2, 50)",
    ),
    "plan-of-one-element": (
        lambda: plan(example(SMALL, torch.float32).region[:1]),
        "plan's order must have shape (batch, seqlen_q) = (2, 50), got (1, 50)",
    ),
    "other-device": (lambda: spoilt(0, META), "plan's order must be on q's device cpu, got meta"),
    "sparse": (
        lambda: spoilt(0, torch.zeros(2, 50, dtype=torch.int32).to_sparse()),
        "plan's order must be a dense tensor (torch.strided), got sparse_coo",
    ),
}
# In the values, which the operator itself looks at.
STALE = {
    "other-region": (
        lambda: plan(~example(SMALL, torch.float32).region),
        "plan's region must equal region, of which the plan is made, got another at entry 0",
    ),
    "row-twice": (
        lambda: spoilt(0, torch.arange(50).clamp(max=48).int().repeat(2, 1)),
        "plan's order must hold each of the rows 0 .. 49 of an element once, got others at "
        "element 0",
    ),
    "row-beyond": (
        lambda: spoilt(0, torch.arange(1, 51).int().repeat(2, 1)),
        "plan's order must hold each of the rows 0 .. 49",
    ),
    "row-before": (
        lambda: spoilt(0, torch.arange(-1, 49).int().repeat(2, 1)),
        "plan's order must hold each of the rows 0 .. 49",
    ),
}


@pytest.mark.parametrize("case", [*WRONG, *STALE])
def test_wrong_plan_is_refused(case, backend):
    make, message = {**WRONG, **STALE}[case]
    e = example(SMALL, torch.float32)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        blended_attention(*e.floats(), region=e.region, plan=make(), backend=backend)


@pytest.mark.parametrize("case", [n for n in [*WRONG, *STALE] if n not in ("tensor", "number")])
def test_operators_refuse_a_wrong_plan_in_both_passes(case, backend):
    make, message = {**WRONG, **STALE}[case]
    message = message.partition(" must ")[0] + " must "
    e = example(SMALL, torch.float32)
    inputs = (*(x.detach() for x in e.floats()), None, None, e.region, None, make(), 0.3)
    with pytest.raises(ValueError, match=re.escape(message)):
        _forward(*inputs, False, backend)
    with pytest.raises(ValueError, match=re.escape(message)):
        _backward(e.dout, *inputs, True, True, True, backend)


def test_entry_that_differs_is_named(backend):
    e = planned(RAGGED)
    region = e.region.clone()
    region[2, 7] ^= True
    with pytest.raises(ValueError, match="got another at entry 2"):
        replace(e, region=region).run(backend)
    e = planned(SMALL)
    region = e.region.clone()
    region[1, 1, 49] ^= True
    with pytest.raises(ValueError, match="got another at entry 4"):
        replace(e, region=region).run(backend)


def test_plan_without_a_region_is_refused(backend):
    e = planned(SMALL)
    message = "plan must come with region, got it alone"
    with pytest.raises(ValueError, match=message):
        blended_attention(*e.floats(), plan=e.plan, backend=backend)
    inputs = (*(x.detach() for x in e.floats()), None, None, None, None, e.plan, 0.3)
    with pytest.raises(ValueError, match=message):
        _forward(*inputs, False, backend)
    with pytest.raises(ValueError, match=message):
        _backward(e.dout, *inputs, True, True, True, backend)


def test_fake_operator_refuses_a_wrong_plan():
    e = example(SMALL, torch.float32)
    tensors = [x.detach().to("meta") for x in e.floats()]
    region = e.region.to("meta")
    for name in ("two", "int64-order", "fewer-tiles", "region-of-fewer-prompts"):
        make, message = WRONG[name]
        made = tuple(x.to("meta") for x in make())
        message = message.removesuffix("tuple of 2")
        with pytest.raises(ValueError, match=re.escape(message)):
            _forward(*tensors, None, None, region, None, made, 0.3, False, "auto")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_plan_on_another_device_is_refused():
    e = planned(SMALL)
    made = [x.cuda() for x in e.plan]
    with pytest.raises(ValueError, match="plan's order must be on q's device cpu, got cuda"):
        blended_attention(*e.floats(), region=e.region, plan=made)


@pytest.mark.parametrize("name", ["region", "order"])
def test_what_changes_before_the_backward_pass_is_refused(name, backend):
    e = planned(SMALL)
    out = e.run(backend)
    # Through .data autograd does not see it.
    changed = e.region if name == "region" else e.plan[0]
    changed.data[1] = changed.data[1].flip(-1) if name == "region" else 0
    with pytest.raises(ValueError, match=f"plan's {name} must"):
        torch.autograd.grad(out.sum(), e.q)


def test_plan_that_changes_in_place_is_noticed_by_autograd(backend):
    e = planned(SMALL)
    out = e.run(backend)
    e.plan[0].zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_region_that_changes_in_place_has_another_plan(backend):
    e = planned(SMALL)
    assert e.run(backend).shape == e.q.shape
    e.region[0, 0] ^= True
    with pytest.raises(ValueError, match="got another at entry 0"):
        e.run(backend)
    replace(e, plan=plan(e.region)).run(backend)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([True],), "region must be a tensor, got list"),
        ((torch.ones(2, 3, 4),), "region must be bool, got float32"),
        ((torch.ones(2, 3, 4).bool().to_sparse(),), "region must be a dense tensor"),
        ((torch.ones(3, 4).bool(),), "region must have shape (batch, prompts, seqlen_q), got"),
        (
            (torch.ones(2, 3, 4).bool(), ints(0, 0), ints(0, 2)),
            "region must have shape (entries, seqlen_q), got (2, 3, 4)",
        ),
        ((torch.ones(3, 4).bool(), ints(0, 0, 0)), "prompt_ids must come with offsets, got one"),
        ((torch.ones(3, 4).bool(), None, ints(0, 3)), "prompt_ids must come with offsets, got one"),
        (
            (torch.ones(3, 4).bool(), [0, 0, 0], ints(0, 3)),
            "prompt_ids must be a tensor, got list",
        ),
        (
            (torch.ones(3, 4).bool(), ints(0, 0), ints(0, 3)),
            "prompt_ids must have shape (entries,) = (3,), got (2,)",
        ),
        (
            (torch.ones(3, 4).bool(), ints(0, 0, 0), ints()),
            "offsets must have shape (batch + 1,), got (0,)",
        ),
        (
            (torch.ones(3, 4).bool(), ints(0, 0, 0), torch.tensor([0, 3])),
            "offsets must be int32, got int64; use .int()",
        ),
        (
            (torch.ones(3, 4).bool(), ints(0, 0, 0), ints(0, 3).to("meta")),
            "offsets must be on region's device cpu, got meta",
        ),
        ((torch.ones(3, 4).bool(), ints(0, 0, 0), ints(1, 3)), "offsets must begin at 0, got 1"),
        (
            (torch.ones(3, 4).bool(), ints(0, 0, 0), ints(0, 2, 1, 3)),
            "offsets must ascend, got 2 before 1 at element 1",
        ),
        (
            (torch.ones(3, 4).bool(), ints(0, 0, 0), ints(0, 4)),
            "offsets must end at the number of entries 3, got 4",
        ),
    ],
)
def test_wrong_argument_of_plan_is_refused(arguments, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        plan(*arguments)
