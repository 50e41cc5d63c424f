"""Packs: that no bit depends on one, how they are joined, and which are refused."""

import copy
import io
import re
from dataclasses import replace

import pytest
import torch
from torch.func import grad, vmap

from stal_kernels import backends, blended_attention, blended_attention_ragged, pack, plan
from stal_kernels.backends import cpu
from stal_kernels.testing import CASES, DTYPES, Case, example, results

SMALL = Case(batch=2, heads=2, seqlen_q=50, seqlen_k=9, head_dim=24, prompts=3)
RAGGED = Case(batch=4, heads=2, seqlen_q=50, seqlen_k=9, head_dim=24, prompts=3, ragged=True)
FORMS = pytest.mark.parametrize("case", [SMALL, RAGGED], ids=["dense", "ragged"])
PACKING = [name for name in backends.names() if name.startswith("cpu")]

_forward = torch.ops.stal_kernels.blended_attention.default
_pack = torch.ops.stal_kernels.pack.default


def name(dtype):
    return str(dtype).removeprefix("torch.")


def packed(case, backend="auto", dtype=torch.float32, **changed):
    """An example of a case with its pack, made after `changed` has replaced tensors of it."""
    return replace(example(case, dtype), **changed).with_pack(backend)


def assert_unchanged(e, backend):
    assert e.packed is not None
    expected = results(replace(e, packed=None), backend)
    for key, actual in results(e, backend).items():
        assert torch.equal(actual, expected[key]), key


def assert_used(e, backend):
    """That the forward pass reads the pack: another one gives another result."""
    words = e.packed[0]
    assert words.shape[-1] > 0
    other = replace(e, packed=(torch.zeros_like(words), *e.packed[1:]))
    assert not torch.equal(other.run(backend), e.run(backend))


def join(*packs):
    return tuple(torch.cat(three) for three in zip(*packs, strict=True))


# ---- results ----


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("case", [c for c in CASES if not c.planned], ids=repr)
def test_no_bit_depends_on_a_pack(case, dtype, backend):
    assert_unchanged(example(case, dtype).with_pack(backend), backend)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@FORMS
def test_pack_is_what_the_forward_pass_reads(case, dtype, level):
    assert_used(packed(case, f"cpu:{level}", dtype), f"cpu:{level}")


@pytest.mark.parametrize("threads", [1, 3])
def test_pack_made_on_several_threads_is_the_same(threads, level):
    e = packed(SMALL, f"cpu:{level}")
    torch.set_num_threads(threads)
    for actual, right in zip(e.with_pack(f"cpu:{level}").packed, e.packed, strict=True):
        assert torch.equal(actual, right)
    assert_unchanged(e, f"cpu:{level}")


def test_medium_precision_packs_bfloat16_where_it_multiplies_it(level):
    whole = packed(SMALL, f"cpu:{level}").packed[0]
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        e = packed(SMALL, f"cpu:{level}")
        assert_unchanged(e, f"cpu:{level}")
        assert_used(e, f"cpu:{level}")
    finally:
        torch.set_float32_matmul_precision(before)
    pairs = level.startswith(("amx", "avx512_bf16"))
    assert (e.packed[0].shape != whole.shape) == pairs


@pytest.mark.parametrize("region", ["blobs", "boxes"])
def test_pack_and_plan_go_together(region, level):
    e = packed(replace(SMALL, region=region), f"cpu:{level}")
    e = replace(e, plan=plan(e.region))
    assert_unchanged(e, f"cpu:{level}")


def test_absent_prompt_is_not_read(backend):
    e = example(replace(SMALL, region="blobs"), torch.float32)
    region = e.region.clone()
    region[:, 1] = False
    with torch.no_grad():
        e.k[:, 1], e.v[:, 1], e.weight[:, 1] = torch.nan, torch.nan, torch.nan
    e = replace(e, region=region).with_pack(backend)
    assert e.run(backend).isfinite().all()


VIEWS = {
    "expanded-batch": lambda x: x[:1].expand(x.shape),
    "expanded-prompts": lambda x: x[:, :1].expand(x.shape),
    "expanded-keys": lambda x: x[..., :1, :].expand(x.shape),
    "projection": lambda x: x.transpose(-2, -3).contiguous().transpose(-2, -3),
    "sliced": lambda x: x.repeat_interleave(2, -2)[..., ::2, :],
    "batch-inside": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
}


@pytest.mark.parametrize("case", [SMALL, RAGGED], ids=["dense", "ragged"])
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_keys_may_have_any_strides(view, case, backend):
    e = example(case, torch.float32)
    k, v = (view(x.detach()).requires_grad_() for x in (e.k, e.v))
    e = replace(e, k=k, v=v).with_pack(backend)
    assert_unchanged(e, backend)
    whole = pack(k.contiguous(), v.contiguous(), e.key_lengths, backend=backend)
    assert all(map(torch.equal, e.packed, whole))


def test_expanded_batch_is_packed_once(level):
    e = example(SMALL, torch.float32)
    k, v = (x.detach()[:1].expand(1000, -1, -1, -1, -1) for x in (e.k, e.v))
    words, stamp, sample = pack(k, v, backend=f"cpu:{level}")
    assert words.shape[:3] == (1000, 3, 2)
    assert words.stride(0) == stamp.stride(0) == sample.stride(0) == 0


@pytest.mark.parametrize(
    "sizes",
    [{"batch": 0}, {"prompts": 0}, {"seqlen_k": 0}, {"seqlen_q": 0}, {"batch": 0, "prompts": 0}],
    ids="-".join,
)
def test_dimension_without_an_element_works(sizes, backend):
    assert_unchanged(packed(replace(SMALL, **sizes), backend), backend)


def test_empty_table_works(backend):
    e = example(RAGGED, torch.float32)
    none = torch.zeros(0, dtype=torch.int32)
    made = pack(e.k[:0], e.v[:0], none, backend=backend)
    assert [len(x) for x in made] == [0, 0, 0]
    out = blended_attention_ragged(
        e.q, e.k[:0], e.v[:0], e.weight[:0], none, torch.zeros(5, dtype=torch.int32),
        key_lengths=none, packed=made, backend=backend,
    )  # fmt: skip
    assert (out == 0).all()


@pytest.mark.parametrize("length", [0, 1, 8])
def test_prompts_of_any_length_are_packed(length, backend):
    e = example(RAGGED, torch.float32)
    lengths = torch.full_like(e.key_lengths, length)
    with torch.no_grad():  # what is beyond a length is not read
        e.k[:, :, length:], e.v[:, :, length:] = torch.nan, torch.nan
    e = replace(e, key_lengths=lengths).with_pack(backend)
    assert_unchanged(e, backend)
    assert e.run(backend).isfinite().all()


def test_what_a_pack_does_not_fill_is_zero(level):
    """Packs of equal keys are equal, whatever lay where they are."""
    e = example(RAGGED, torch.float32)
    first = e.with_pack(f"cpu:{level}").packed
    garbage = [torch.full_like(x, 7) for x in first for _ in range(4)]
    del garbage
    assert all(map(torch.equal, first, e.with_pack(f"cpu:{level}").packed))
    empty = int((e.key_lengths == 0).nonzero()[0])
    assert (first[0][empty] == 0).all()


# ---- joined ----


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_packs_are_joined_by_cat(dtype, level):
    e = example(RAGGED, dtype)
    lengths = e.key_lengths
    at_once = pack(e.k, e.v, lengths, backend=f"cpu:{level}")
    parts = [
        pack(e.k[a:b], e.v[a:b], lengths[a:b], backend=f"cpu:{level}")
        for a, b in ((0, 1), (1, 1), (1, 4))
    ]
    assert all(map(torch.equal, join(*parts), at_once))
    assert_unchanged(replace(e, packed=join(*parts)), f"cpu:{level}")
    dense = example(SMALL, dtype)
    parts = [
        pack(k, v, backend=f"cpu:{level}")
        for k, v in zip(dense.k[:, None], dense.v[:, None], strict=True)
    ]
    assert_unchanged(replace(dense, packed=join(*parts)), f"cpu:{level}")


def test_rows_are_taken_out_of_a_pack(level):
    e = packed(RAGGED, f"cpu:{level}")
    rows = torch.tensor([3, 1, 0, 2])
    taken = replace(
        e,
        k=e.k[rows],
        v=e.v[rows],
        key_lengths=e.key_lengths[rows],
        packed=tuple(x[rows] for x in e.packed),
    )
    assert_unchanged(taken, f"cpu:{level}")
    views = replace(e, k=e.k[1:], v=e.v[1:], key_lengths=e.key_lengths[1:])
    views = replace(views, prompt_ids=(e.prompt_ids - 1).clamp(min=0))
    assert_unchanged(replace(views, packed=tuple(x[1:] for x in e.packed)), f"cpu:{level}")


def test_pack_is_copied_as_any_tensors(level):
    e = packed(SMALL, f"cpu:{level}")
    file = io.BytesIO()
    torch.save(e.packed, file)
    file.seek(0)
    for made in (copy.deepcopy(e.packed), torch.load(file), [x.clone() for x in e.packed]):
        assert_unchanged(replace(e, packed=tuple(made)), f"cpu:{level}")
    # Words may lie at any address.
    words = torch.empty(e.packed[0].numel() + 1, dtype=torch.int32)[1:].view(e.packed[0].shape)
    words.copy_(e.packed[0])
    assert_unchanged(replace(e, packed=(words, *e.packed[1:])), f"cpu:{level}")
    k, v = e.k.detach().clone().requires_grad_(), e.v.detach().clone().requires_grad_()
    assert_unchanged(replace(e, k=k, v=v), f"cpu:{level}")


# ---- as torch sees it ----


@FORMS
def test_operator_that_packs_passes_opcheck(case):
    e = example(case, torch.float32)
    tensors = (e.k.flatten(0, -4), e.v.flatten(0, -4), e.key_lengths)
    torch.library.opcheck(_pack, (*tensors, "auto"))


@FORMS
def test_operator_passes_opcheck_with_a_pack(case):
    e = packed(case)
    inputs = (*e.floats(), e.prompt_ids, e.offsets, e.region, e.key_lengths, e.plan, 0.3)
    torch.library.opcheck(_forward, (*inputs, False, "auto", e.packed))


@FORMS
@pytest.mark.parametrize("inside", [False, True], ids=["given", "made-inside"])
def test_pack_is_traced_with_the_operator(case, inside):
    torch.compiler.reset()
    e = packed(case)

    def attend(q, k, v, weight, *made):
        if inside:
            made = pack(k, v, e.key_lengths)
        return replace(e, q=q, k=k, v=v, weight=weight, packed=made).run("auto")

    traced = torch.compile(attend, fullgraph=True, backend="aot_eager")
    out = traced(*e.floats(), *e.packed)
    gradients = torch.autograd.grad(out, e.floats(), e.dout)
    expected = results(replace(e, packed=None), "auto")
    for key, actual in zip(expected, (out, *gradients), strict=True):
        assert torch.equal(actual, expected[key]), key


def test_pack_of_other_keys_is_refused_inside_a_traced_call():
    torch.compiler.reset()
    e = packed(SMALL)
    traced = torch.compile(
        lambda k, *made: replace(e, k=k, packed=made).run("cpu"),
        fullgraph=True,
        backend="aot_eager",
    )
    assert torch.equal(traced(e.k, *e.packed), e.run("cpu"))
    with pytest.raises(ValueError, match="packed must be made of k and v"):
        traced(2 * e.k, *e.packed)


class Module(torch.nn.Module):
    def forward(self, q, k, v, weight, words, stamp, sample):
        return blended_attention(q, k, v, weight, packed=(words, stamp, sample))


def test_program_with_a_pack_is_exported():
    e = packed(SMALL)
    arguments = (*(x.detach() for x in e.floats()), *e.packed)
    program = torch.export.export(Module(), arguments).module()
    assert torch.equal(program(*arguments), e.run("auto"))


@FORMS
def test_autocast_packs_what_it_computes_with(case):
    e = example(case, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        e = e.with_pack("auto")
        assert e.packed[2].dtype == torch.bfloat16
        out = e.run("auto")
        assert torch.equal(out, replace(e, packed=None).run("auto"))
    outside = e.to(torch.bfloat16).with_pack("auto")
    assert all(map(torch.equal, e.packed, outside.packed))
    single = packed(case)
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(ValueError, match="packed's sample must be bfloat16, got float32"),
    ):
        single.run("auto")


def test_pack_has_no_gradient_and_keys_have_theirs(backend):
    e = packed(SMALL, backend)
    assert not any(x.requires_grad for x in e.packed)
    out = e.run(backend)
    assert all(x is not None for x in torch.autograd.grad(out, (e.k, e.v), e.dout))
    # A pack that changes is none of autograd's business: the backward pass reads k and v.
    expected = results(e, backend)
    out = e.run(backend)
    e.packed[0].zero_()
    gradients = torch.autograd.grad(out, e.floats(), e.dout)
    for x, right in zip(gradients, list(expected.values())[1:], strict=True):
        assert torch.equal(x, right)


def test_pack_is_not_kept_for_the_backward_pass():
    seen = []
    e = packed(SMALL)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: seen.append(x) or x, lambda x: x):
        e.run("auto")
    assert len(seen) == 4


def test_functional_gradient_takes_a_pack():
    e = packed(SMALL)
    q, *others = (x.detach() for x in e.floats())

    def loss(q, made=None):
        return blended_attention(q, *others, packed=made).sin().sum()

    assert torch.equal(grad(loss)(q, e.packed), grad(loss)(q))
    with pytest.raises(ValueError, match="packed must be made of k and v"):
        grad(loss)(q, pack(2 * e.k, e.v))

    def of_keys(k):
        return blended_attention(q, k, *others[1:], packed=pack(k, others[1])).sin().sum()

    def alone(k):
        return blended_attention(q, k, *others[1:]).sin().sum()

    assert torch.equal(grad(of_keys)(others[0]), grad(alone)(others[0]))


def test_mapped_calls_need_no_pack():
    e = packed(SMALL)
    q, *others = (x.detach() for x in e.floats())

    def attend(q, *made):
        return blended_attention(q, *others, packed=made or None)

    many = torch.stack([q, 2 * q, -q])
    expected = vmap(attend)(many)
    assert torch.equal(vmap(attend, (0, None, None, None))(many, *e.packed), expected)
    each = [x.expand(3, *x.shape) for x in e.packed]
    assert torch.equal(vmap(attend)(many, *each), expected)


def test_inference_mode_takes_a_pack():
    e = packed(SMALL)
    expected = e.run("auto")
    with torch.inference_mode():
        assert torch.equal(e.run("auto"), expected)
        k, v = e.k.clone(), e.v.clone()
        inside = replace(e, k=k, v=v).with_pack("auto")
        assert torch.equal(inside.run("auto"), expected)


# ---- backends and levels ----


def test_pack_chooses_as_the_operator_does(monkeypatch):
    e = packed(SMALL)
    assert all(map(torch.equal, e.packed, e.with_pack(f"cpu:{cpu._best_level()}").packed))
    wide = example(SMALL, torch.float64)
    assert wide.with_pack("auto").packed[0].shape == (2, 3, 2, 0)
    assert_unchanged(wide.with_pack("auto"), "auto")
    monkeypatch.setenv(backends.VARIABLE, "cpu:portable")
    here = example(SMALL, torch.float32).with_pack("auto")
    assert all(map(torch.equal, here.packed, here.with_pack("cpu:portable").packed))
    assert_unchanged(here, "auto")
    with pytest.raises(NotImplementedError, match="cpu needs float16, bfloat16 or float32"):
        wide.with_pack("cpu")


def test_backends_that_pack_nothing_leave_every_pack_aside():
    e = example(SMALL, torch.float32)
    expected = e.run("reference")
    for backend in ("reference", "cpu:portable", "cpu:amx_model"):
        assert torch.equal(e.with_pack(backend).run("reference"), expected)
    with pytest.raises(ValueError, match="packed must be made for level portable, got one made"):
        e.with_pack("reference").run("cpu:portable")


LEVELS = ("portable", "avx512_bf16_model", "amx_model")


@pytest.mark.parametrize("made_for", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_pack_for_another_level_is_refused(made_for, dtype, level):
    e = packed(SMALL, f"cpu:{made_for}", dtype)
    if made_for == level:
        e.run(f"cpu:{level}")
        return
    message = f"packed must be made for level {level}, got one made for level {made_for} at prompt"
    with pytest.raises(ValueError, match=f"^{message} 0$"):
        e.run(f"cpu:{level}")


@pytest.mark.parametrize("made_with", ["medium", "highest"])
def test_pack_made_at_another_precision_is_refused(made_with, level):
    before = torch.get_float32_matmul_precision()
    pairs = level.startswith(("amx", "avx512_bf16"))
    try:
        torch.set_float32_matmul_precision(made_with)
        e = packed(SMALL, f"cpu:{level}")
        half = packed(SMALL, f"cpu:{level}", torch.bfloat16)
        torch.set_float32_matmul_precision("medium" if made_with == "highest" else "high")
        half.run(f"cpu:{level}")
        if pairs:
            with pytest.raises(ValueError, match=r"^packed must be made with.* precision medium"):
                e.run(f"cpu:{level}")
        else:
            assert_unchanged(e, f"cpu:{level}")
    finally:
        torch.set_float32_matmul_precision(before)


# ---- what is refused ----


def spoilt(which, x):
    """The pack of SMALL with another tensor in one place."""

    def make(backend):
        made = list(packed(SMALL, backend).packed)
        made[which] = x(made[which])
        return tuple(made)

    return make


def of(**changed):
    """The pack of other sizes."""
    return lambda backend: packed(replace(SMALL, **changed), backend).packed


THREE = "packed must be the three tensors that stal_kernels.pack returns, got "
WORDS = "packed's words must have shape (.., heads, words) = (2, 3, 2) and any number, got "
WRONG = {
    "empty": (lambda backend: (), THREE + "tuple of 0"),
    "two": (lambda backend: packed(SMALL, backend).packed[:2], THREE + "tuple of 2"),
    "tensor": (lambda backend: packed(SMALL, backend).packed[0], THREE + "Tensor"),
    "number": (spoilt(1, lambda x: 3), THREE + "tuple of 3 with int in it"),
    "float-words": (spoilt(0, lambda x: x.float()), "packed's words must be int32, got float32"),
    "int64-stamp": (spoilt(1, lambda x: x.long()), "packed's stamp must be int32, got int64"),
    "half-sample": (
        spoilt(2, lambda x: x.bfloat16()),
        "packed's sample must have q's dtype float32, got bfloat16",
    ),
    "words-of-one-element": (spoilt(0, lambda x: x[:1]), WORDS + "(1, 3, 2, "),
    "more-heads": (of(heads=3), WORDS + "(2, 3, 3, "),
    "more-prompts": (of(prompts=4), WORDS + "(2, 4, 2, "),
    "ragged": (lambda backend: packed(RAGGED, backend).packed, WORDS + "(4, 2, "),
    "shorter-stamp": (
        spoilt(1, lambda x: x[..., :5]),
        "packed's stamp must have shape (.., 6) = (2, 3, 6), got (2, 3, 5)",
    ),
    "larger-head_dim": (
        of(head_dim=32),
        "packed's sample must have shape (.., heads, 2, head_dim) = (2, 3, 2, 2, 24), "
        "got (2, 3, 2, 2, 32)",
    ),
    "other-device": (
        spoilt(0, lambda x: x.to("meta")),
        "packed's words must be on q's device cpu, got meta",
    ),
    "sparse": (
        spoilt(1, lambda x: x.to_sparse()),
        "packed's stamp must be a dense tensor (torch.strided), got sparse_coo",
    ),
}
# What the native library looks at.
STALE = {
    "more-keys": (
        of(seqlen_k=12),
        "packed must be made with seqlen_k 9, got one made with seqlen_k 12 at prompt 0",
    ),
    "fewer-words": (
        spoilt(0, lambda x: x[..., :-16]),
        "packed's words must be ",
    ),
    "other-keys": (
        lambda backend: pack(*(2 * x for x in example(SMALL, torch.float32).floats()[1:3]),
                             backend=backend),
        "packed must be made of k and v, got one made of others at prompt 0",
    ),
    "other-values": (
        lambda backend: pack(example(SMALL, torch.float32).k, example(SMALL, torch.float32).k,
                             backend=backend),
        "packed must be made of k and v, got one made of others at prompt 0",
    ),
    "rows-swapped": (
        lambda backend: [x.flip(0) for x in packed(SMALL, backend).packed],
        "packed must be made of k and v, got one made of others at prompt 0",
    ),
    "zeros": (
        lambda backend: [torch.zeros_like(x) for x in packed(SMALL, backend).packed],
        "got one made for level none at prompt 0",
    ),
    "unknown-level": (
        spoilt(1, lambda x: x + 100),
        "got one made for level unknown at prompt 0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_pack_is_refused(case, backend):
    make, message = WRONG[case]
    e = example(SMALL, torch.float32)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        blended_attention(*e.floats(), packed=make(backend), backend=backend)


@pytest.mark.parametrize("case", STALE)
def test_pack_of_another_call_is_refused(case, level):
    make, message = STALE[case]
    e = example(SMALL, torch.float32)
    with pytest.raises(ValueError, match=re.escape(message)):
        blended_attention(*e.floats(), packed=make(f"cpu:{level}"), backend=f"cpu:{level}")


@pytest.mark.parametrize("case", [n for n in WRONG if n not in ("tensor", "number")])
def test_operator_refuses_a_wrong_pack(case, backend):
    make, message = WRONG[case]
    message = message.partition(" must ")[0] + " must "
    e = example(SMALL, torch.float32)
    inputs = (*(x.detach() for x in e.floats()), None, None, None, None, None, 0.3)
    with pytest.raises(ValueError, match=re.escape(message)):
        _forward(*inputs, False, backend, make(backend))


def test_pack_of_other_lengths_is_refused(level):
    e = packed(RAGGED, f"cpu:{level}")
    lengths = e.key_lengths.clone()
    lengths[2] -= 1
    message = r"packed must be made with key length 8, got one made with key length 9 at prompt 2"
    with pytest.raises(ValueError, match=message):
        replace(e, key_lengths=lengths).run(f"cpu:{level}")


def test_head_that_differs_is_noticed(level):
    e = packed(SMALL, f"cpu:{level}")
    for tensor in ("k", "v"):
        other = getattr(e, tensor).detach().clone()
        other[1, 2, 1, -1, -1] += 1
        with pytest.raises(ValueError, match="got one made of others at prompt 5"):
            replace(e, **{tensor: other}).run(f"cpu:{level}")


@pytest.mark.parametrize("tensor", ["k", "v"])
@pytest.mark.parametrize("through", ["it", "view", "base", "detached"])
def test_keys_that_change_in_place_have_another_pack(tensor, through, backend):
    e = example(SMALL, torch.float32)
    base = {"k": e.k.detach().clone(), "v": e.v.detach().clone()}
    k, v = (x[:] for x in base.values())
    e = replace(e, k=k, v=v).with_pack(backend)
    expected = e.run(backend)
    changed = {
        "it": getattr(e, tensor),
        "view": getattr(e, tensor)[0],
        "base": base[tensor],
        "detached": getattr(e, tensor).detach(),
    }[through]
    with torch.no_grad():
        changed[0, 0].mul_(2) if through != "view" else changed[0].mul_(2)
        # What the sample holds is as it was.
        last = e.packed[2][..., 0 if tensor == "k" else 1, :]
        getattr(e, tensor)[..., -1, :] = last
    message = f"packed must be made of {tensor} as it is, got one made before {tensor}"
    with pytest.raises(ValueError, match=message):
        e.run(backend)
    with pytest.raises(ValueError, match=message):  # another view of what has changed
        replace(e, k=e.k[:], v=e.v[:]).run(backend)
    assert not torch.equal(e.with_pack(backend).run(backend), expected)


def test_parameter_that_an_optimizer_changes_has_another_pack():
    e = example(SMALL, torch.float32)
    k = torch.nn.Parameter(e.k.detach())
    e = replace(e, k=k).with_pack("auto")
    e.run("auto").sum().backward()
    torch.optim.SGD([k], 0.1).step()
    with pytest.raises(ValueError, match="packed must be made of k as it is"):
        e.run("auto")


def test_keys_at_the_address_of_others_are_not_taken_for_them():
    """A pack keeps its keys alive, so nothing else comes to lie there."""
    e = example(SMALL, torch.float32)
    k, v = e.k.detach().clone(), e.v.detach().clone()
    made = pack(k, v)
    address = k.data_ptr()
    values = k.clone()
    del k
    others = [torch.zeros_like(values).copy_(values) for _ in range(8)]
    assert address not in [x.data_ptr() for x in others]
    for other in others:  # each has changed in place, and holds what is packed
        blended_attention(e.q, other, v, e.weight, packed=made)


def test_fake_operator_refuses_a_wrong_pack():
    e = example(SMALL, torch.float32)
    tensors = [x.detach().to("meta") for x in e.floats()]
    for case in ("two", "float-words", "more-heads", "shorter-stamp", "larger-head_dim"):
        make, message = WRONG[case]
        made = tuple(x.to("meta") for x in make("cpu"))
        message = message.removesuffix("tuple of 2")
        with pytest.raises(ValueError, match=re.escape(message)):
            _forward(*tensors, None, None, None, None, None, 0.3, False, "auto", made)


def ints(*values):
    return torch.tensor(values, dtype=torch.int32)


K = torch.ones(3, 2, 4, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0], K), "k must be a tensor, got list"),
        ((K, None), "v must be a tensor, got NoneType"),
        ((K, K, [1, 2, 3]), "key_lengths must be a tensor, got list"),
        ((K.to_sparse(), K), "k must be a dense tensor (torch.strided), got sparse_coo"),
        ((K[0], K[0]), "k must have shape (batch, prompts, heads, seqlen_k, head_dim) or (table, "),
        ((K, K[1:]), "v must have shape of k = (3, 2, 4, 8), got (2, 2, 4, 8)"),
        ((K[:, :0], K[:, :0]), "k must have heads and head_dim of at least 1, got (3, 0, 4, 8)"),
        ((K.int(), K.int()), "k must be float16, bfloat16, float32 or float64, got int32"),
        ((K, K.half()), "v must have k's dtype float32, got float16"),
        ((K, K.to("meta")), "v must be on k's device cpu, got meta"),
        ((K.transpose(-1, -2), K.transpose(-1, -2)), "k must have a contiguous last dimension"),
        ((K[None], K[None], ints(1)), "key_lengths must come with a table (table, heads, seqlen_k"),
        ((K, K, ints(1, 2)), "key_lengths must have shape (table,) = (3,), got (2,)"),
        ((K, K, torch.ones(3)), "key_lengths must be int32, got float32"),
        ((K, K, ints(1, 2, 3).to("meta")), "key_lengths must be on k's device cpu, got meta"),
        ((K, K, ints(1, -1, 3)), "key_lengths must be in 0 .. 4 (seqlen_k), got -1 at row 1"),
        ((K, K, ints(1, 2, 5)), "key_lengths must be in 0 .. 4 (seqlen_k), got 5 at row 2"),
    ],
)  # fmt: skip
def test_wrong_argument_of_pack_is_refused(arguments, message, backend):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        pack(*arguments, backend=backend)


@pytest.mark.parametrize("wrong", ["lengths", "dims", "dtype"])
def test_operator_that_packs_refuses_wrong_arguments(wrong, backend):
    arguments = {
        "lengths": (K, K, ints(1, 2, 5)),
        "dims": (K[None], K[None], None),
        "dtype": (K, K.half(), None),
    }[wrong]
    with pytest.raises(ValueError, match=" must "):
        _pack(*arguments, backend)


def test_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="backend must be"):
        pack(K, K, backend="cpu:none")
