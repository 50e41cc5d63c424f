"""Attention functions against naive loops over batch elements and prompts."""

import pytest
import torch
import torch.nn.functional as F

from stal.attention import Blend, Blended, Plain, Prompts, Recording
from stal.layout import Layout, PlacedObject, masks
from stal.model.unet import Attention
from stal_kernels import pack, plan

NAME = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"
HEADS, HEAD_DIM, WIDTH, SEQLEN_K, TABLE = 2, 8, 6, 11, 9
STEPS = 3
# Boxes whose edges run through cells of the grids below; the first two overlap.
BOXES = [(0.05, 0.1, 0.55, 0.8), (0.4, 0.35, 0.9, 0.6), (0.7, 0.0, 1.0, 0.3)]
SIZES = [(4, 6), (3, 3)]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-6}


def layout_of(count: int) -> Layout:
    return Layout("", tuple(PlacedObject("a thing", "thing", box) for box in BOXES[:count]))


def make(dtype, *, seed=0):
    """A layer and a table of prompts."""
    torch.manual_seed(seed)
    module = Attention(HEADS * HEAD_DIM, HEADS, WIDTH).to(dtype).requires_grad_(False)
    # Softmax far from uniform.
    module.to_k.weight.mul_(4)
    return module, Prompts(torch.randn(TABLE, SEQLEN_K, WIDTH, dtype=dtype))


def make_q(batch, height, width, dtype):
    # As in the UNet: a view of the projection.
    return torch.randn(batch, height * width, HEADS, HEAD_DIM, dtype=dtype).transpose(1, 2)


def attend(module, prompts, row, q):
    """Attention of one element's q (heads, n, head_dim) to one prompt."""
    k, v = (
        layer(prompts.embeddings[row]).view(SEQLEN_K, HEADS, HEAD_DIM).transpose(0, 1)
        for layer in (module.to_k, module.to_v)
    )
    return F.scaled_dot_product_attention(q, k, v, scale=module.scale)


def blend_by_hand(
    module,
    prompts,
    blend,
    weights,
    q,
    step,
    size,
    rule,
    q_unconditional,
    unconditional,
    background=0.0,
):
    """One image, formula for formula: DESIGN's definitions as loops over pixels and prompts."""
    a = [attend(module, prompts, row, q) for row in blend.prompts]
    out = torch.zeros_like(q)
    for n in range(size[0] * size[1]):
        m = masks(blend.layout, *size).flatten(1)[:, n].to(q.dtype)
        lam = weights[step].to(q.dtype)
        s = sum((lam[i] * m[i] for i in range(len(m))), torch.zeros((), dtype=q.dtype))
        if rule == "convex":
            w = [lam[i] * m[i] / max(1.0, float(s)) for i in range(len(m))]
            out[:, n] = (1 - sum(w)) * a[0][:, n] + sum(
                w[i] * a[1 + i][:, n] for i in range(len(m))
            )
            continue
        reference = (
            a[-1]
            if len(blend.prompts) > 1 + len(m)
            else attend(module, prompts, unconditional, q_unconditional)
        )
        out[:, n] = a[0][:, n]
        for i in range(len(m)):
            out[:, n] += lam[i] * m[i] * (a[1 + i][:, n] - reference[:, n])
        if background and len(m):
            left = max(0.0, 1 - float(m.sum()))
            out[:, n] += background * lam.mean() * left * (reference[:, n] - a[0][:, n])
    return out


CASES = [
    # rule, reference prompt, classifier-free guidance
    pytest.param("guidance", False, True, id="guidance-unconditional"),
    pytest.param("guidance", True, True, id="guidance-prompt"),
    pytest.param("guidance", True, False, id="guidance-prompt-unguided"),
    pytest.param("convex", False, True, id="convex"),
    pytest.param("convex", False, False, id="convex-unguided"),
]


def make_blends(rule, reference, dtype, counts=(2, 0, 3)):
    """Images of different numbers of objects, and the weights of each."""
    blends, every = [], []
    for image, count in enumerate(counts):
        rows = tuple((image + 2 * i) % (TABLE - 2) for i in range(count + 1))
        weights = torch.rand(STEPS, count, dtype=dtype)
        if rule == "guidance":
            weights = 6 * weights - 2
        blends.append(Blend((*rows, TABLE - 2) if reference else rows, layout_of(count)))
        every.append(weights)
    return blends, every


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_plain_equals_sdpa_with_each_rows_prompt(dtype):
    module, prompts = make(dtype)
    rows = [3, 0, 3, 8]
    for height, width in SIZES:
        q = make_q(len(rows), height, width, dtype)
        out = Plain(prompts, rows)(NAME, q, module, height, width)
        expected = torch.stack(
            [attend(module, prompts, r, x) for r, x in zip(rows, q, strict=True)]
        )
        torch.testing.assert_close(out, expected, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("rule", "reference", "guided"), CASES)
def test_blended_equals_a_loop_over_prompts(rule, reference, guided, dtype):
    module, prompts = make(dtype)
    blends, weights = make_blends(rule, reference, dtype)
    unconditional = TABLE - 1 if guided else None
    attention = Blended(prompts, blends, unconditional=unconditional, rule=rule)
    images = len(blends)
    for step in (0, 2, 1):
        attend_at = attention.at(step, weights)
        for height, width in SIZES:
            q = make_q(2 * images if guided else images, height, width, dtype)
            out = attend_at(NAME, q, module, height, width)
            assert out.shape == q.shape
            for image, (blend, own) in enumerate(zip(blends, weights, strict=True)):
                mine = images + image if guided else image
                expected = blend_by_hand(
                    *(module, prompts, blend, own, q[mine], step, (height, width), rule),
                    *(q[image], unconditional),
                )
                torch.testing.assert_close(out[mine], expected, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("guided", [True, False])
def test_background_equals_a_loop_over_prompts(guided):
    dtype = torch.float64
    module, prompts = make(dtype)
    blends, weights = make_blends("guidance", True, dtype)
    unconditional = TABLE - 1 if guided else None
    attention = Blended(prompts, blends, unconditional=unconditional, background=0.6)
    images = len(blends)
    q = make_q(2 * images if guided else images, 4, 6, dtype)
    out = attention.at(0, weights)(NAME, q, module, 4, 6)
    cases = zip(blends, weights, out[-images:], strict=True)
    for image, (blend, own, result) in enumerate(cases):
        mine = images + image if guided else image
        expected = blend_by_hand(
            *(module, prompts, blend, own, q[mine], 0, (4, 6), "guidance"),
            *(q[image], unconditional),
            background=0.6,
        )
        torch.testing.assert_close(result, expected, rtol=0, atol=TOLERANCE[dtype])


def test_background_needs_a_reference_prompt():
    _, prompts = make(torch.float32)
    blends, _ = make_blends("guidance", False, torch.float32)
    with pytest.raises(ValueError, match="background must be 0 unless"):
        Blended(prompts, blends, unconditional=TABLE - 1, background=0.5)


@pytest.mark.parametrize(("rule", "reference", "guided"), [c for c in CASES if c.values[2]])
def test_unconditional_half_is_never_blended(rule, reference, guided):
    module, prompts = make(torch.float32)
    blends, weights = make_blends(rule, reference, torch.float32)
    attention = Blended(prompts, blends, unconditional=TABLE - 1, rule=rule)
    q = make_q(6, 4, 6, torch.float32)
    plain = Plain(prompts, [TABLE - 1] * 6)(NAME, q, module, 4, 6)
    assert torch.equal(attention.at(0, weights)(NAME, q, module, 4, 6)[:3], plain[:3])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("rule", "reference", "guided"), CASES)
def test_blended_in_half_precision(rule, reference, guided, dtype):
    module, prompts = make(torch.float32)
    blends, weights = make_blends(rule, reference, torch.float32)
    unconditional = TABLE - 1 if guided else None
    q = make_q(6 if guided else 3, 4, 6, torch.float32)
    # What rounding the inputs alone does, in float32 from there on.
    module, prompts = module.to(dtype), Prompts(prompts.embeddings.to(dtype))
    attention = Blended(prompts, blends, unconditional=unconditional, rule=rule)
    out = attention.at(0, weights)(NAME, q.to(dtype), module, 4, 6)
    assert out.dtype == dtype
    k, v = prompts.project(NAME, module)
    single = Prompts(prompts.embeddings.float())
    single._projected[NAME] = (k.float(), v.float())
    attention = Blended(single, blends, unconditional=unconditional, rule=rule)
    expected = attention.at(0, weights)(NAME, q.to(dtype).float(), module, 4, 6)
    # Weights reach 6 in sum: the two halves are each rounded, then multiplied by that.
    bound = 16 * torch.finfo(dtype).eps * v.float().abs().max()
    assert (out.float() - expected).abs().max() <= bound


@pytest.mark.parametrize("guided", [True, False], ids=["guided", "unguided"])
def test_keys_and_values_are_projected_once_a_layer(guided):
    module, prompts = make(torch.float32)
    other, _ = make(torch.float32, seed=1)
    calls = []
    for layer in (module.to_k, module.to_v, other.to_k, other.to_v):
        layer.register_forward_hook(lambda layer, *_: calls.append(layer))
    blends, weights = make_blends("guidance", True, torch.float32)
    blended = Blended(prompts, blends, unconditional=TABLE - 1 if guided else None)
    batch = 6 if guided else 3
    for step in range(STEPS):
        attention = blended.at(step, weights)
        for height, width in SIZES:
            q = make_q(batch, height, width, torch.float32)
            attention("first", q, module, height, width)
            attention("second", q, other, height, width)
            Plain(prompts, [0] * batch)("first", q, module, height, width)
    assert calls == [module.to_k, module.to_v, other.to_k, other.to_v]


@pytest.mark.parametrize(("rule", "reference", "guided"), CASES)
def test_regions_are_planned_once_a_resolution(rule, reference, guided, monkeypatch):
    """As on a GPU. On the CPU the op refuses a plan of another step's regions, were there any."""
    module, prompts = make(torch.float32)
    unconditional = TABLE - 1 if guided else None
    blends, weights = make_blends(rule, reference, torch.float32)
    for each in weights:
        each[1] = 0
    made = []

    def drawn():
        blended = Blended(prompts, blends, unconditional=unconditional, rule=rule)
        torch.manual_seed(1)
        for step in range(STEPS):
            attention = blended.at(step, weights)
            for height, width in SIZES:
                q = make_q(6 if guided else 3, height, width, torch.float32)
                yield from (attention(name, q, module, height, width) for name in "ab")

    def counted(region, ids, offsets):
        made.append(plan(region, ids, offsets))
        return made[-1]

    expected = list(drawn())
    monkeypatch.setattr("stal.attention.plan_of", counted)
    assert all(map(torch.equal, drawn(), expected))
    assert len(made) == len(SIZES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_keys_are_packed_once_a_layer(dtype, monkeypatch):
    module, _ = make(dtype)
    blends, weights = make_blends("convex", False, torch.float32)
    made = []

    def drawn():
        _, prompts = make(dtype)
        blended = Blended(prompts, blends, unconditional=TABLE - 1, rule="convex")
        plain = Plain(prompts, [0, 3])
        torch.manual_seed(1)
        for step in range(STEPS):
            attention = blended.at(step, weights)
            for height, width in SIZES:
                q = make_q(6, height, width, dtype)
                yield from (attention(name, q, module, height, width) for name in "ab")
                yield plain("a", q[:2], module, height, width)

    def counted(k, v):
        made.append(pack(k, v))
        return made[-1]

    monkeypatch.setattr(Prompts, "pack", lambda *_: None)
    expected = list(drawn())
    monkeypatch.undo()
    monkeypatch.setattr("stal.attention.pack", counted)
    assert all(map(torch.equal, drawn(), expected))
    assert len(made) == 2


def test_keys_of_large_layers_are_not_packed():
    module, prompts = make(torch.float32)
    assert prompts.pack("small", module, 32 * 32) is not None
    assert prompts.pack("large", module, 64 * 64) is None


def test_what_calls_compute_with_may_change_between_them():
    module, prompts = make(torch.float32)
    attention = Plain(prompts, [3, 0])
    q = make_q(2, 4, 6, torch.float32)

    def out():
        return attention(NAME, q, module, 4, 6)

    expected = out()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert out().dtype == torch.bfloat16
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        torch.testing.assert_close(out(), expected, rtol=0.02, atol=0.02)
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(out(), expected)


@pytest.mark.parametrize(("rule", "reference", "guided"), CASES)
def test_gradients_reach_the_weights_of_the_step(rule, reference, guided):
    module, prompts = make(torch.float64)
    unconditional = TABLE - 1 if guided else None
    blends, weights = make_blends(rule, reference, torch.float64, counts=(2,))
    q = make_q(2 if guided else 1, 4, 6, torch.float64)
    attention = Blended(prompts, blends, unconditional=unconditional, rule=rule)

    def out(own):
        return attention.at(1, [own])(NAME, q, module, 4, 6)

    own = weights[0].requires_grad_()
    assert torch.autograd.gradcheck(out, (own,))
    gradient = torch.autograd.grad(out(own).square().sum(), own)[0]
    assert bool((gradient[1] != 0).all())
    assert not gradient[[0, 2]].any()


def test_each_call_of_at_reads_the_weights_again():
    module, prompts = make(torch.float32)
    weights = torch.ones(STEPS, 1, requires_grad=True)
    attention = Blended(prompts, [Blend((0, 1, 2), layout_of(1))], unconditional=None)
    q = make_q(1, 4, 6, torch.float32)
    first = attention.at(0, [weights])(NAME, q, module, 4, 6)
    first.sum().backward()
    with torch.no_grad():
        weights.mul_(2)
    second = attention.at(0, [weights])(NAME, q, module, 4, 6)
    second.sum().backward()
    plain = Plain(prompts, [0])(NAME, q, module, 4, 6)
    torch.testing.assert_close(second - plain, 2 * (first - plain), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("rule", "reference", "guided"), CASES)
def test_outside_its_region_a_local_prompt_has_no_effect(rule, reference, guided):
    module, prompts = make(torch.float32)
    rows = (0, 1, 2) if reference else (0, 1)
    blend, weights = Blend(rows, layout_of(1)), torch.full((STEPS, 1), 0.8)
    q = make_q(2 if guided else 1, 4, 6, torch.float32)
    out = []
    for fill in (None, float("nan")):
        table = prompts.embeddings.clone()
        if fill is not None:
            table[1:] = fill
            table[TABLE - 1] = prompts.embeddings[TABLE - 1]
        attention = Blended(
            Prompts(table), [blend], unconditional=TABLE - 1 if guided else None, rule=rule
        )
        out.append(attention.at(0, [weights])(NAME, q, module, 4, 6)[-1])
    outside = masks(blend.layout, 4, 6).flatten() == 0
    assert 0 < int(outside.sum()) < 24
    assert torch.equal(out[0][:, outside], out[1][:, outside])
    assert bool(out[1][:, ~outside].isnan().all())


def test_absent_objects_have_weights_without_effect():
    """An empty layout is plain attention to the global prompt."""
    module, prompts = make(torch.float32)
    attention = Blended(prompts, [Blend((4,), layout_of(0))], unconditional=5)
    q = make_q(2, 3, 3, torch.float32)
    out = attention.at(0, [torch.zeros(STEPS, 0)])(NAME, q, module, 3, 3)
    plain = Plain(prompts, [5, 4])(NAME, q, module, 3, 3)
    torch.testing.assert_close(out, plain, rtol=0, atol=1e-6)


def test_twenty_objects():
    module, prompts = make(torch.float32)
    boxes = [(x / 5, y / 4, (x + 1) / 5, (y + 1) / 4) for x in range(5) for y in range(4)]
    layout = Layout("", tuple(PlacedObject("a thing", "thing", box) for box in boxes))
    rows = (0, *(1 + i % 7 for i in range(20)), 8)
    blend, weights = Blend(rows, layout), 2 * torch.rand(STEPS, 20)
    q = make_q(1, 4, 6, torch.float32)
    out = Blended(prompts, [blend], unconditional=None).at(0, [weights])(NAME, q, module, 4, 6)
    expected = blend_by_hand(
        module, prompts, blend, weights, q[0], 0, (4, 6), "guidance", None, None
    )
    torch.testing.assert_close(out[0], expected, rtol=0, atol=TOLERANCE[torch.float32])


def test_unconditional_reference_needs_guidance():
    _, prompts = make(torch.float32)
    blends, _ = make_blends("guidance", False, torch.float32)
    with pytest.raises(ValueError, match="reference must be a prompt"):
        Blended(prompts, blends, unconditional=None)


ONE = Blend((0, 1), layout_of(1))


@pytest.mark.parametrize(
    ("blends", "options", "message"),
    [
        ([], {}, "blends must hold at least one"),
        ([Blend((0,), layout_of(1))], {}, "prompts must be .* 1 local ones"),
        ([Blend((0, 1, 2, 3), layout_of(1))], {}, "got 4"),
        (
            [Blend((0, 1, 2), layout_of(1))],
            {"rule": "convex"},
            r"1 local ones, one an object of the layout, got 3",
        ),
        ([ONE, Blend((0, 1, 2), layout_of(1))], {}, "a reference prompt or none"),
        ([Blend((0, TABLE), layout_of(1))], {}, "prompt must be one of 9 rows"),
        ([ONE], {"unconditional": -1}, "prompt must be one of 9 rows, got -1"),
        ([ONE], {"rule": "concave"}, "rule must be one of"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_blends_that_do_not_fit_are_refused(blends, options, message):
    _, prompts = make(torch.float32)
    with pytest.raises(ValueError, match=message):
        Blended(prompts, blends, **{"unconditional": 8, **options})


@pytest.mark.parametrize(
    ("weights", "rule", "message"),
    [
        ([torch.ones(3)], "guidance", r"weights must be .* got \(3,\)"),
        ([torch.ones(3, 2)], "guidance", r"= \(any, 1\) .* got \(3, 2\)"),
        ([], "guidance", "weights must be one for each of 1 images, got 0"),
        ([torch.full((3, 1), torch.nan)], "guidance", "finite, got nan"),
        ([torch.full((3, 1), 2.0)], "convex", r"in \[0, 1\] under the rule convex, got 2.0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_weights_that_do_not_fit_are_refused(weights, rule, message):
    _, prompts = make(torch.float32)
    attention = Blended(prompts, [ONE], unconditional=8, rule=rule)
    with pytest.raises(ValueError, match=message):
        attention.at(0, weights)


@pytest.mark.parametrize("step", [-1, STEPS, torch.tensor(STEPS), torch.tensor([STEPS])], ids=str)
def test_step_outside_the_weights_is_refused(step):
    _, prompts = make(torch.float32)
    attention = Blended(prompts, [ONE], unconditional=8)
    with pytest.raises(ValueError, match=rf"step must lie in \[0, 3\), got {int(step)}"):
        attention.at(step, [torch.ones(STEPS, 1)])


@pytest.mark.parametrize(
    "step",
    [
        torch.tensor([0, 1]),
        torch.tensor([0.0]),
        torch.tensor([True]),
        torch.tensor(1.0),
        1.0,
        True,
        "1",
        None,
        [0],
    ],
    ids=repr,
)
def test_steps_that_are_not_one_an_image_are_refused(step):
    _, prompts = make(torch.float32)
    attention = Blended(prompts, [ONE], unconditional=8)
    with pytest.raises(ValueError, match=r"step must be an integer or \(1,\) integers"):
        attention.at(step, [torch.ones(STEPS, 1)])


def test_only_the_weights_that_are_read_must_be_right():
    _, prompts = make(torch.float32)
    attention = Blended(prompts, [ONE], unconditional=8, rule="convex")
    weights = torch.tensor([[0.5], [torch.nan], [2.0]])
    attention.at(0, [weights])
    with pytest.raises(ValueError, match=r"got 2\.0 at step 2, object 0"):
        attention.at(2, [weights])


@pytest.mark.parametrize("batch", [1, 3])
def test_a_batch_of_another_size_is_refused(batch):
    module, prompts = make(torch.float32)
    q = make_q(batch, 4, 6, torch.float32)
    weights = torch.ones(STEPS, 1)
    blended = Blended(prompts, [ONE], unconditional=8).at(0, [weights])
    for attention in (blended, Plain(prompts, [0, 1])):
        with pytest.raises(ValueError, match=f"q must have a batch of 2, .* got {batch}"):
            attention(NAME, q, module, 4, 6)


@pytest.mark.parametrize(("rule", "reference", "guided"), CASES)
def test_images_at_different_steps_equal_each_alone(rule, reference, guided):
    module, prompts = make(torch.float64)
    blends, weights = make_blends(rule, reference, torch.float64)
    weights[2] = torch.cat([weights[2], 0.5 * weights[2]])  # of more steps than the others
    steps = torch.tensor([2, 0, 5])
    unconditional = TABLE - 1 if guided else None
    together = Blended(prompts, blends, unconditional=unconditional, rule=rule)
    images = len(blends)
    q = make_q(2 * images if guided else images, 4, 6, torch.float64)
    out = together.at(steps, weights)(NAME, q, module, 4, 6)
    for i, (blend, own) in enumerate(zip(blends, weights, strict=True)):
        mine = [i, images + i] if guided else [i]
        alone = Blended(prompts, [blend], unconditional=unconditional, rule=rule)
        expected = alone.at(int(steps[i]), [own])(NAME, q[mine], module, 4, 6)
        torch.testing.assert_close(out[mine], expected, rtol=0, atol=1e-12)
        # One image's step means something.
        other = alone.at(1, [own])(NAME, q[mine], module, 4, 6)
        assert torch.equal(other, expected) == (len(blend.layout.objects) == 0)


def test_prompts_of_another_rank_and_rows_outside_are_refused():
    with pytest.raises(ValueError, match=r"\(table, seqlen_k, width\), got \(11, 6\)"):
        Prompts(torch.zeros(SEQLEN_K, WIDTH))
    _, prompts = make(torch.float32)
    for attention in (lambda: Plain(prompts, [0, 9]), lambda: Recording(prompts, [0, 9], [0])):
        with pytest.raises(ValueError, match="prompt must be one of 9 rows, got 9"):
            attention()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_recording_keeps_probabilities_and_attends_as_plain(dtype):
    module, prompts = make(dtype)
    q = make_q(2, 4, 6, dtype)
    recording = Recording(prompts, [3, 0], range(SEQLEN_K))
    out = recording(NAME, q, module, 4, 6)
    assert out.dtype == dtype
    tolerance = TOLERANCE.get(dtype, 4 * torch.finfo(dtype).eps)
    plain = Plain(prompts, [3, 0])(NAME, q, module, 4, 6)
    torch.testing.assert_close(out, plain, rtol=tolerance, atol=tolerance)
    a = recording.probabilities[NAME]
    assert a.shape == (2, HEADS, 4, 6, SEQLEN_K)
    assert a.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(a.sum(-1), torch.ones_like(a[..., 0]), rtol=0, atol=1e-6)
    _, v = prompts.project(NAME, module)
    again = (a.flatten(2, 3) @ v[[3, 0]].to(a.dtype)).to(dtype)
    torch.testing.assert_close(out, again, rtol=tolerance, atol=tolerance)


def test_recording_keeps_chosen_tokens_in_their_order():
    module, prompts = make(torch.float32)
    q = make_q(1, 3, 3, torch.float32)
    every, some = Recording(prompts, [2], range(SEQLEN_K)), Recording(prompts, [2], [7, 1])
    every(NAME, q, module, 3, 3)
    some(NAME, q, module, 3, 3)
    assert torch.equal(some.probabilities[NAME], every.probabilities[NAME][..., [7, 1]])


def test_recording_lets_gradients_through():
    module, prompts = make(torch.float32)
    q = make_q(1, 3, 3, torch.float32).requires_grad_()
    recording = Recording(prompts, [2], [4])
    recording(NAME, q, module, 3, 3)
    recording.probabilities[NAME].square().sum().backward()
    assert bool((q.grad != 0).any())


@pytest.mark.parametrize("token", [-1, SEQLEN_K])
def test_recording_refuses_tokens_outside_the_prompt(token):
    _, prompts = make(torch.float32)
    with pytest.raises(ValueError, match=f"tokens must be in 0 .. 10 .*got {token}"):
        Recording(prompts, [0], [0, token])
