"""Triton kernels under Triton's interpreter; test_triton.py runs this file in a process of its own.

The interpreter runs the same Python, operation by operation, in NumPy: it shows what is computed,
read and written, not how fast. Sizes are small, since one operation takes about a millisecond.
"""

from dataclasses import replace

import pytest
import torch

from stal_kernels import backends, blended_attention, blended_attention_ragged, plan, why_not
from stal_kernels.backends.triton import kernels, launches, tiles
from stal_kernels.testing import Case, assert_within_twice_plain, example, results

CASES = (
    # Two tiles of pixels; head_dim and keys in one piece and in two.
    Case(heads=1, seqlen_q=70, head_dim=40, prompts=3, region="disjoint"),
    Case(heads=1, seqlen_q=65, head_dim=64, prompts=2),
    Case(batch=2, heads=1, seqlen_q=17, head_dim=80, layout="projection", region="blobs"),
    Case(heads=2, seqlen_q=20, head_dim=160, prompts=1, layout="sliced"),
    Case(heads=1, seqlen_q=9, seqlen_k=128, head_dim=128, prompts=1),
    Case(heads=1, seqlen_q=9, seqlen_k=5, head_dim=256),
    # Keys in tiles.
    Case(heads=1, seqlen_q=9, seqlen_k=300, head_dim=72, region="blobs"),
    Case(heads=1, seqlen_q=5, seqlen_k=512, head_dim=16, prompts=1),
    Case(heads=1, seqlen_q=9, seqlen_k=256, head_dim=64, region="boxes"),
    Case(heads=1, seqlen_q=3, seqlen_k=1024, head_dim=32, prompts=1),
    # Smallest, many prompts, scales, layouts.
    Case(heads=1, seqlen_q=1, seqlen_k=1, head_dim=8, prompts=1),
    Case(heads=1, seqlen_q=3, seqlen_k=2, head_dim=16, prompts=7),
    Case(seqlen_q=20, seqlen_k=9, head_dim=32, scale=-0.3),
    Case(heads=1, seqlen_q=20, seqlen_k=9, head_dim=32, scale=0.0),
    Case(heads=1, seqlen_q=7, seqlen_k=140, head_dim=24, scale=-0.3),
    Case(batch=2, seqlen_q=7, seqlen_k=19, head_dim=48, layout="expanded"),
    Case(batch=2, heads=1, seqlen_q=10, seqlen_k=20, head_dim=40, region="empty", layout="sliced"),
    # Ragged: repeated rows, elements without entries, unused rows, lengths from 0.
    Case(batch=4, heads=2, seqlen_q=5, head_dim=40, prompts=3, ragged=True),
    Case(batch=2, heads=1, seqlen_q=66, seqlen_k=130, head_dim=8, region="blobs", ragged=True),
    Case(batch=6, heads=1, seqlen_q=9, seqlen_k=7, head_dim=96, ragged=True, layout="projection"),
)
# Boxes cut across tiles of pixels; with a plan tiles of several words, and half a word.
PLANNED = (
    *(replace(case, planned=True) for case in CASES if case.region),
    Case(heads=2, seqlen_q=150, seqlen_k=3, head_dim=8, prompts=4, region="boxes", planned=True),
    Case(heads=1, seqlen_q=70, seqlen_k=3, head_dim=16, prompts=3, region="empty", planned=True),
    # The last bit is the sign of a word.
    Case(heads=1, seqlen_q=9, seqlen_k=3, head_dim=8, prompts=64, region="blobs", planned=True),
    # More than a plan has bits for; three words of 32.
    Case(heads=1, seqlen_q=9, seqlen_k=3, head_dim=8, prompts=70, region="blobs", planned=True),
)
# Rows of keys all at once, which float32 has on no GPU's table.
WHOLE = (
    Case(heads=1, seqlen_q=40, head_dim=40, prompts=3),
    Case(heads=1, seqlen_q=40, seqlen_k=20, head_dim=16, prompts=3, region="disjoint"),
    Case(heads=1, seqlen_q=70, seqlen_k=5, head_dim=16, prompts=3, region="boxes", planned=True),
    Case(heads=1, seqlen_q=33, seqlen_k=64, head_dim=8, prompts=33, region="blobs"),
    Case(batch=3, heads=1, seqlen_q=40, seqlen_k=20, head_dim=8, region="blobs", ragged=True),
)


def test_backend_is_available():
    assert why_not("triton") == []
    assert why_not("triton", torch.zeros(1, 1, 4, 8)) == []


@pytest.mark.parametrize("case", [*CASES, *PLANNED], ids=repr)
def test_output_and_gradients_are_within_twice_the_error_of_plain_torch(case):
    assert_within_twice_plain(case, "triton", torch.float32, draws=1)


@pytest.fixture
def whole_rows(monkeypatch):
    """whole_rows(fold): from then on tiles whose rows of keys come all at once."""
    drafts = (launches._forward_draft, launches._pixel_draft, launches._prompt_drafts)

    def choose(fold):
        tile = tiles.Tile(256, 32, 4, 1, fold=fold)
        monkeypatch.setattr(tiles, "tile_of", lambda *_: tile)
        for draft in drafts:
            draft.cache_clear()

    yield choose
    for draft in drafts:
        draft.cache_clear()


@pytest.mark.parametrize(
    ("case", "fold"),
    [*((case, False) for case in WHOLE), (WHOLE[0], True)],
    ids=lambda x: repr(x) if isinstance(x, Case) else "fold" if x else "own",
)
def test_rows_of_keys_all_at_once_are_within_twice_the_error_of_plain_torch(case, fold, whole_rows):
    whole_rows(fold)
    assert_within_twice_plain(case, "triton", torch.float32, draws=1)


# The interpreter multiplies bfloat16 matrices as if their bits were integers.
@pytest.mark.parametrize("case", [CASES[2], CASES[-1]], ids=repr)
def test_float16_is_within_twice_the_error_of_plain_torch(case):
    assert_within_twice_plain(case, "triton", torch.float16, draws=1)


@pytest.mark.parametrize("seqlen_k", [1, 2, 16, 17, 48, 49, 76, 80, 97, 127, 129, 257])
def test_every_number_of_keys_works(seqlen_k):
    case = Case(heads=1, seqlen_q=64, seqlen_k=seqlen_k, head_dim=8, prompts=1)
    assert_within_twice_plain(case, "triton", torch.float32, draws=1)


@pytest.mark.parametrize("head_dim", [8, 24, 40, 56, 64, 72, 80, 96, 136, 160, 200, 256])
def test_every_head_dim_works(head_dim):
    case = Case(heads=1, seqlen_q=16, seqlen_k=3, head_dim=head_dim, prompts=1)
    assert_within_twice_plain(case, "triton", torch.float32, draws=1)


@pytest.fixture
def tf32():
    """Lets float32 products be tf32, which the interpreter rounds to where the kernels do."""
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(
    "case",
    [
        Case(heads=1, seqlen_q=17, seqlen_k=40, head_dim=80, region="blobs"),
        Case(heads=1, seqlen_q=9, seqlen_k=150, head_dim=24, region="blobs"),
        CASES[-1],
    ],
    ids=repr,
)
def test_tf32_rounds_the_factors_of_products_to_nearest(case, tf32):
    # Cutting digits off instead would make twice the error.
    shares = assert_within_twice_plain(case, "triton", torch.float32, draws=1, plain="plain tf32")
    assert 0.3 < shares["out"] < 0.7
    with pytest.raises(AssertionError, match="error"):
        assert_within_twice_plain(case, "triton", torch.float32, draws=1)


def test_tf32_keeps_nan_and_infinity(tf32):
    e = example(Case(heads=1, seqlen_q=4, seqlen_k=3, head_dim=8, prompts=1), torch.float32)
    v = torch.ones_like(e.v)
    # A NaN of ones alone, which a carry would make 0, and the largest number.
    v.view(torch.int32)[..., 0, 0] = 0x7FFFFFFF
    v[..., 1] = torch.inf
    v[..., 2] = torch.finfo(torch.float32).max
    out = blended_attention(e.q, e.k, v, torch.ones_like(e.weight), backend="triton")
    assert out[..., 0].isnan().all()
    assert out[..., 1:3].isinf().all()
    torch.testing.assert_close(out[..., 3:], torch.ones_like(out[..., 3:]), rtol=1e-3, atol=0)


# ---- skipping ----


@pytest.fixture
def walked(monkeypatch):
    """How many pairs of a tile and a prompt each function computed."""
    counts = {}
    for name in ("_attend", "_differentiate", "_add_pixels"):
        original = getattr(kernels, name)

        def spy(*args, name=name, original=original):
            counts[name] = counts.get(name, 0) + 1
            return original(*args)

        monkeypatch.setattr(kernels, name, spy)
    return counts


def test_tile_walks_only_prompts_that_exist_in_it(walked):
    # Each prompt exists in one tile alone, tiles being of 32 to 128 pixels; the last one nowhere.
    e = example(Case(heads=1, seqlen_q=130, seqlen_k=5, head_dim=8, prompts=4), torch.float32)
    region = torch.zeros(1, 4, 130, dtype=torch.bool)
    for p, pixels in enumerate((slice(0, 32), slice(70, 71), slice(128, 130))):
        region[:, p, pixels] = True
    results(replace(e, region=region), "triton")
    assert walked == {"_attend": 3, "_differentiate": 3, "_add_pixels": 3}


def forward_with(e, made, block_q):
    """The output, computed in tiles of so many pixels."""
    tensors = [x.detach() for x in e.floats()]
    inputs = backends.Inputs(*tensors, None, None, e.region, None, made, 0.3)
    out = torch.empty_like(e.q)
    tile = tiles.Tile(256, block_q, 4, 1)
    launches.run(launches.forward_launch(inputs, out, (8, 0), tile), out.device)
    return out


@pytest.mark.parametrize("block_q", [16, 32, 64, 128])
def test_tile_of_a_plan_walks_only_prompts_that_exist_in_it(block_q, walked):
    e = example(Case(heads=1, seqlen_q=130, seqlen_k=5, head_dim=8, prompts=3), torch.float32)
    # Of three pixels two have a prompt of their own; all of them have the first one.
    pixel, prompt = torch.arange(130), torch.arange(3)[:, None]
    e = replace(e, region=((pixel % 3 == prompt) | (prompt == 0))[None])
    expected = forward_with(e, None, block_q)
    walked.clear()
    made = plan(e.region)
    torch.testing.assert_close(forward_with(e, made, block_q), expected)
    # A word of bits is of 32 pixels.
    parts = made[0][0].long().split(max(block_q, 32))
    met = [int(e.region[0][:, n].any(1).sum()) for n in parts for _ in range(0, 32, block_q)]
    blocks = -(-130 // block_q)
    assert walked["_attend"] == sum(met[:blocks]) < 3 * blocks


def test_bits_of_prompts_that_are_not_there_lead_nowhere(walked):
    e = example(Case(heads=1, seqlen_q=40, seqlen_k=5, head_dim=8, prompts=3), torch.float32)
    e = replace(e, region=torch.ones(1, 3, 40, dtype=torch.bool))
    order, _, copy = plan(e.region)
    forward_with(e, (order, torch.full((1, 2), -1), copy), 32)
    assert walked["_attend"] == 3 * 2


def test_region_that_is_nowhere_gives_zeros_and_walks_nothing(walked):
    e = example(Case(heads=1, seqlen_q=9, seqlen_k=5, head_dim=8, region="blobs"), torch.float32)
    with torch.no_grad():
        e.k.fill_(torch.nan), e.v.fill_(torch.nan), e.weight.fill_(torch.nan)
    for name, result in results(replace(e, region=torch.zeros_like(e.region)), "triton").items():
        assert (result == 0).all(), name
    assert not walked


def test_prompt_of_length_zero_is_not_walked(walked):
    q, k = torch.zeros(1, 1, 3, 8), torch.full((1, 1, 4, 8), torch.nan)
    ids, offsets, lengths = (torch.tensor(x, dtype=torch.int32) for x in ([0], [0, 1], [0]))
    out = blended_attention_ragged(
        q, k, k, torch.ones(1, 3), ids, offsets, key_lengths=lengths, backend="triton"
    )
    assert (out == 0).all()
    assert not walked


@pytest.mark.parametrize("seqlen_k", [200, 5], ids=["tiles", "whole"])
def test_nan_stays_in_the_pixels_of_its_prompt(seqlen_k, whole_rows):
    if seqlen_k < 128:
        whole_rows(fold=True)
    e = example(Case(heads=1, seqlen_q=9, seqlen_k=seqlen_k, head_dim=8), torch.float32)
    region = torch.ones(1, 2, 9, dtype=torch.bool)
    region[:, 1, ::2] = False
    with torch.no_grad():
        e.k[:, 1], e.v[:, 1], e.weight[~region] = torch.nan, torch.nan, torch.nan
    actual = results(replace(e, region=region), "triton")
    for name in ("out", "dq"):
        assert actual[name][:, :, ::2].isfinite().all()
        assert actual[name][:, :, 1::2].isnan().all()
    assert actual["dk"][:, 0].isfinite().all()


# ---- what is launched ----


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("q", ["pixel_gradients"]),
        ("weight", ["pixel_gradients"]),
        ("k", ["pixel_gradients", "prompt_gradients"]),
        ("v", ["pixel_gradients", "prompt_gradients"]),
    ],
)
def test_only_kernels_that_are_needed_are_launched(wanted, expected, monkeypatch):
    launched = []
    original = launches.run

    def spy(launch, device):
        launched.append(launch)
        original(launch, device)

    monkeypatch.setattr(launches, "run", spy)
    e = example(Case(heads=1, seqlen_q=3, seqlen_k=3, head_dim=8), torch.float32)
    leaves = dict(zip(("q", "k", "v", "weight"), (x.detach() for x in e.floats()), strict=True))
    leaves[wanted].requires_grad_()
    blended_attention(*leaves.values(), backend="triton").sum().backward()
    names = [launch.kernel.__name__ for launch in launched]
    assert names == ["forward", *expected]
    options = launched[1].options
    assert options["WANT_DQ"] == (wanted == "q")
    assert options["WANT_R"] == (wanted != "q")
    assert options["WANT_ROWS"] == (wanted in "kv")


@pytest.mark.parametrize("with_plan", [False, True], ids=["plain", "plan"])
def test_result_is_the_same_every_time_whatever_was_in_memory(with_plan, monkeypatch):
    case = Case(batch=4, heads=1, seqlen_q=130, seqlen_k=5, head_dim=8, ragged=True)
    if with_plan:
        case = replace(case, region="blobs", planned=True)
    e = example(case, torch.float32)
    first = results(e, "triton")
    original = torch.Tensor.new_empty

    def poisoned(self, *args, **kwargs):
        memory = original(self, *args, **kwargs)
        return memory.fill_(torch.nan) if memory.is_floating_point() else memory

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)
    for name, right in results(e, "triton").items():
        assert torch.equal(first[name], right), name


def test_pixels_are_split_and_the_parts_are_summed():
    e = example(Case(heads=1, seqlen_q=130, seqlen_k=5, head_dim=8, prompts=1), torch.float32)
    inputs = backends.Inputs(*(x.detach() for x in e.floats()), *[None] * 5, 1.0)
    stats = torch.empty(3, 1, 1, 1, 130).unbind()
    found = launches.prompt_launches(
        inputs, e.dout, stats, torch.empty_like(e.k), torch.empty_like(e.v), (8, 0)
    )
    assert [launch.kernel.__name__ for launch in found] == [
        "prompt_gradients",
        "sum_parts",
        "sum_parts",
    ]
    assert found[0].programs > 1
    assert_within_twice_plain(
        Case(heads=1, seqlen_q=130, seqlen_k=5, head_dim=8, prompts=1), "triton", torch.float32
    )


def test_layout_and_alignment_do_not_change_the_result():
    e = example(Case(heads=1, seqlen_q=9, seqlen_k=5, head_dim=8), torch.float16)
    expected = results(e, "triton")

    def apart(x):  # odd strides, and 2 bytes off every alignment
        return x.new_empty(*x.shape[:-1], x.shape[-1] + 3)[..., 1:-2].copy_(x)

    moved = [apart(x.detach()).requires_grad_() for x in e.floats()]
    changed = dict(zip(("q", "k", "v", "weight"), moved, strict=True))
    # With v alone its rows are not as far from one another as those of k.
    for some in (changed, {"v": changed["v"]}):
        for name, right in results(replace(e, **some), "triton").items():
            assert torch.equal(right, expected[name]), name


def test_dense_equals_ragged():
    e = example(Case(batch=2, heads=1, seqlen_q=9, seqlen_k=5, head_dim=8), torch.float32)
    expected = results(e, "triton")
    tables = {name: getattr(e, name).flatten(0, 1) for name in ("k", "v", "weight")}
    ids, offsets = (torch.tensor(x, dtype=torch.int32) for x in ([0, 1, 2, 3], [0, 2, 4]))
    ragged = replace(e, **tables, prompt_ids=ids, offsets=offsets)
    for name, right in results(ragged, "triton").items():
        assert torch.equal(right, expected[name].view_as(right)), name


@pytest.fixture
def told_of_overflow(monkeypatch):
    """The interpreter raises where an integer of 32 bits is too small."""
    from triton.runtime.interpreter import interpreter_builder as builder

    monkeypatch.setattr(builder, "options", replace(builder.options, sanitize_overflow=True))


@pytest.mark.usefixtures("told_of_overflow")
@pytest.mark.parametrize("with_plan", [False, True], ids=["plain", "plan"])
def test_addresses_beyond_32_bits_are_right(with_plan):
    # Rows 2**30 elements apart; memory that is never touched takes no room.
    apart = 2**30
    memory = torch.empty(3 * apart + 8, dtype=torch.float16)
    far = memory.as_strided((1, 1, 4, 8), (0, 0, apart, 1))
    near = torch.randn(1, 1, 4, 8, generator=torch.Generator().manual_seed(0)).half()
    far.copy_(near)
    weight = torch.ones(1, 1, 4)
    region = torch.tensor([[[False, True, True, False]]]) if with_plan else None
    made = None if region is None else plan(region)
    options = {"region": region, "plan": made, "backend": "triton"}
    expected = blended_attention(near, near[None], near[None], weight, **options)
    keys = memory.as_strided((1, 1, 1, 4, 8), (0, 0, 0, apart, 1))
    assert torch.equal(blended_attention(far, keys, keys, weight, **options), expected)


# ---- as torch sees it ----

SMALL = Case(batch=2, heads=1, seqlen_q=5, seqlen_k=3, head_dim=8, region="blobs")
RAGGED = Case(batch=3, heads=1, seqlen_q=5, seqlen_k=3, head_dim=8, ragged=True)
FORMS = pytest.mark.parametrize(
    "case",
    [SMALL, replace(SMALL, planned=True), RAGGED],
    ids=["dense", "planned", "ragged"],
)


@FORMS
def test_operators_pass_opcheck(case):
    e = example(case, torch.float32)
    shared = (*e.floats(), e.prompt_ids, e.offsets, e.region, e.key_lengths, e.plan, 0.3)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    ops = torch.ops.stal_kernels
    torch.library.opcheck(
        ops.blended_attention.default, (*shared, False, "triton"), test_utils=checks
    )
    detached = [x.detach() if isinstance(x, torch.Tensor) else x for x in (e.dout, *shared)]
    torch.library.opcheck(
        ops.blended_attention_backward.default,
        (*detached, True, True, True, "triton"),
        test_utils=checks,
    )


@FORMS
def test_operator_is_traced_whole_forward_and_backward(case):
    torch.compiler.reset()
    e = example(case, torch.float32)
    expected = results(e, "triton")

    def call(*tensors):
        named = dict(zip(("q", "k", "v", "weight"), tensors, strict=True))
        return replace(e, **named).run("triton")

    out = torch.compile(call, fullgraph=True, backend="aot_eager")(*e.floats())
    gradients = torch.autograd.grad(out, e.floats(), e.dout)
    for name, actual in zip(expected, (out, *gradients), strict=True):
        assert torch.equal(actual, expected[name]), name


def test_autocast_casts_q_k_v_and_leaves_weight():
    q, k, v, weight = (x.detach() for x in example(SMALL, torch.float32).floats())
    with torch.autocast("cpu", dtype=torch.float16):
        out = blended_attention(q, k, v, weight, backend="triton")
    halves = (x.half() for x in (q, k, v))
    assert torch.equal(out, blended_attention(*halves, weight, backend="triton"))
