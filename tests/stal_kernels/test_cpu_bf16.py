"""Products of pairs of bfloat16: the models against the processor, and against the definition."""

import re
from pathlib import Path

import pytest
import torch

from stal_kernels import blended_attention, why_not
from stal_kernels.backends import cpu
from stal_kernels.testing import CASES, Case, example, results

PAIR_LEVELS = ("amx", "avx512_bf16", "avx512_bf16_model", "amx_model")
# Biased exponents of both factors and of the sum, by what they reach.
RANGES = {
    "anything": ((0, 255), (0, 255)),
    "ordinary": ((118, 136), (115, 137)),
    "products-far-below-denormals": ((50, 70), (0, 12)),
    "products-around-denormals": ((60, 68), (0, 3)),
    "factors-around-denormals": ((0, 3), (0, 3)),
    "overflow": ((180, 200), (245, 255)),
    "infinity-and-nan": ((253, 255), (253, 255)),
}


def draw(count, exponents, fraction_bits, generator):
    """Bits of `count` x 16 floats of that many fraction bits, as int64."""
    shape = (count, 16)
    sign = torch.randint(0, 2, shape, generator=generator)
    exponent = torch.randint(exponents[0], exponents[1] + 1, shape, generator=generator)
    fraction = torch.randint(0, 1 << fraction_bits, shape, generator=generator)
    return ((sign << 8 | exponent) << fraction_bits) | fraction


def words(bits):
    return torch.where(bits >= 2**31, bits - 2**32, bits).to(torch.int32)


def dot(level, total, a, b):
    out, rounded = torch.empty(16), torch.empty(16, dtype=torch.int32)
    cpu._library().dot(level, total.view(torch.float32), a, b, out, rounded)
    return out, rounded.view(torch.bfloat16)


def pair_level(level):
    reasons = why_not(f"cpu:{level}")
    if any("this CPU lacks" in reason for reason in reasons):
        pytest.skip("; ".join(reasons))
    assert not reasons
    return level


@pytest.mark.parametrize("name", RANGES)
def test_models_of_instructions_equal_the_processor(name):
    pair_level("avx512_bf16")
    factors, sums = RANGES[name]
    generator = torch.Generator().manual_seed(0)
    count = 1000

    def pairs():
        low, high = (draw(count, factors, 7, generator) for _ in range(2))
        return words(high << 16 | low)

    a, b, total = pairs(), pairs(), words(draw(count, sums, 23, generator))
    for i in range(count):
        native = dot("avx512_bf16", total[i], a[i], b[i])
        model = dot("avx512_bf16_model", total[i], a[i], b[i])
        for x, y in zip(native, model, strict=True):
            integers = torch.int32 if x.dtype == torch.float32 else torch.int16
            same = (x.view(integers) == y.view(integers)) | (x.isnan() & y.isnan())
            assert same.all(), (total[i], a[i], b[i], x, y)


@pytest.mark.parametrize("level", PAIR_LEVELS)
def test_dot_adds_the_product_of_high_halves_first(level):
    # 1 - 1 + 2^-30 keeps the small term only if the large ones meet first.
    low, high = torch.tensor([2.0**-30, 1.0]).to(torch.bfloat16).view(torch.int16).tolist()
    a = torch.full((16,), high << 16 | low, dtype=torch.int32)
    ones = torch.ones(32, dtype=torch.bfloat16).view(torch.int32)
    out, _ = dot(pair_level(level), torch.full((16,), -1.0).view(torch.int32), a, ones)
    assert (out == 2.0**-30).all()


def test_native_level_and_its_model_agree_on_a_call():
    pair_level("avx512_bf16")
    e = example(Case(heads=2, seqlen_q=70, head_dim=40, prompts=3, region="blobs"), torch.bfloat16)
    # The exponential is fused in one of them only: equal up to the rounding of the output.
    native, model = e.run("cpu:avx512_bf16"), e.run("cpu:avx512_bf16_model")
    torch.testing.assert_close(native, model, rtol=2**-7, atol=2**-9)


@pytest.mark.parametrize("level", PAIR_LEVELS)
@pytest.mark.parametrize("keys", [1, 5, 12, 77])
def test_keys_that_fill_up_a_tile_do_not_count(level, keys):
    # Scores around -10000: 2^x of their distance from a score of 0 is 0.
    q = torch.full((1, 1, 50, 16), 20.0, dtype=torch.bfloat16)
    k = torch.linspace(-32, -30, keys).view(1, 1, 1, keys, 1).expand(-1, -1, -1, -1, 16).bfloat16()
    v = torch.linspace(-1, 1, keys).view(1, 1, 1, keys, 1).expand(-1, -1, -1, -1, 16).bfloat16()
    inputs = q, k.contiguous(), v.contiguous(), torch.ones(1, 1, 50)
    out, expected = (
        blended_attention(*inputs, scale=1.0, backend=backend)
        for backend in (f"cpu:{pair_level(level)}", "reference")
    )
    torch.testing.assert_close(out, expected)


TINY, LARGE = 2.0**-130, 2.0**127  # a subnormal, and what makes it count
# q, k and v of each key, dout: numbers that all channels share. What a level returns that takes
# subnormals as zero, by name: what it returns with zeros in their place.
SUBNORMALS = {
    "q": ((TINY, (LARGE, 0), (1, 0), 1), {"out", "dweight", "dk", "dv"}),
    "k": ((LARGE, (TINY, 0), (1, 0), 1), {"out", "dweight", "dq", "dk", "dv"}),
    "v": ((0, (0,), (TINY,), 2.0**120), {"out", "dweight"}),
    "dout": ((0, (1, 0), (2.0**120, 0), TINY), {"dq", "dweight", "dv"}),
    "sums": ((0, (0, 0), (2.0**-126, 2.0**-126), 2.0**120), {"out"}),
}


def gradients_of_constants(constants, dtype, backend):
    def rows(*values):
        return torch.tensor(values).view(1, 1, -1, 1).expand(-1, -1, -1, 8).to(dtype).contiguous()

    q, k, v, dout = constants
    tensors = [rows(q), rows(*k)[None], rows(*v)[None], torch.ones(1, 1, 1)]
    tensors = [x.requires_grad_() for x in tensors]
    out = blended_attention(*tensors, scale=0.125, backend=backend)
    gradients = torch.autograd.grad(out, tensors, rows(dout))
    return dict(zip(("out", "dq", "dk", "dv", "dweight"), (out, *gradients), strict=True))


@pytest.mark.parametrize("which", SUBNORMALS)
@pytest.mark.parametrize("level", cpu.LEVELS)
def test_subnormals_count_where_the_docstring_says(level, which, set_precision):
    backend = f"cpu:{pair_level(level)}"
    constants, lost = SUBNORMALS[which]

    def without(x):
        if isinstance(x, tuple):
            return tuple(map(without, x))
        return 0 if x == TINY or (which == "sums" and x == 2.0**-126) else x

    zeros = tuple(map(without, constants))
    # "medium" rounds float32 to the same factors.
    for dtype, precision in ((torch.bfloat16, "highest"), (torch.float32, "medium")):
        set_precision("highest")
        right = gradients_of_constants(constants, dtype, "reference")
        flushed = gradients_of_constants(zeros, dtype, "reference")
        set_precision(precision)
        for name, actual in gradients_of_constants(constants, dtype, backend).items():
            if which == "q" and name == "dq":
                continue  # overflows before it is scaled on some levels
            expected = flushed if level in PAIR_LEVELS and name in lost else right
            torch.testing.assert_close(actual, expected[name], rtol=0.02, atol=0)


@pytest.mark.parametrize("keys", [1, 2, 5, 77])
@pytest.mark.parametrize("level", PAIR_LEVELS)
def test_smallest_value_that_survives_depends_on_the_number_of_keys(level, keys):
    smallest = 2.0**-126 * 2.0 ** (keys - 1).bit_length()
    for value, expected in ((smallest, smallest), (smallest / 2, 0)):
        out = gradients_of_constants(
            (0, (0,) * keys, (value,) * keys, 1), torch.bfloat16, f"cpu:{pair_level(level)}"
        )["out"]
        torch.testing.assert_close(out, torch.full_like(out, expected), rtol=0.02, atol=0)


@pytest.mark.parametrize("level", PAIR_LEVELS)
@pytest.mark.parametrize("threads", [2, 3])
def test_threads_do_not_change_a_bit(level, threads):
    e = example(Case(heads=3, seqlen_q=150, head_dim=40, prompts=3), torch.bfloat16)

    def run(count):
        torch.set_num_threads(count)
        out = e.run(f"cpu:{pair_level(level)}")
        return out, *torch.autograd.grad(out, e.floats(), e.dout)

    for one, other in zip(run(1), run(threads), strict=True):
        assert torch.equal(one, other)


@pytest.mark.skipif(not why_not("cpu:amx"), reason="this CPU has AMX")
def test_level_that_the_cpu_lacks_is_an_error_that_names_the_flag(monkeypatch):
    if "could not build" in why_not("cpu:amx")[0] or "x86-64" in why_not("cpu:amx")[0]:
        pytest.skip(why_not("cpu:amx")[0])
    monkeypatch.setenv("STAL_KERNELS_BACKEND", "cpu:amx")
    q = torch.zeros(1, 1, 4, 8, dtype=torch.bfloat16)
    k, weight = torch.zeros(1, 1, 1, 4, 8, dtype=torch.bfloat16), torch.ones(1, 1, 4)
    with pytest.raises(NotImplementedError, match=r"this CPU lacks .*amx_tile"):
        blended_attention(q, k, k, weight)


# vdpbf16ps takes Intel's cores twice as long as a fused multiply-add, and AMD's no longer.
@pytest.mark.parametrize(
    ("vendor", "best"),
    [
        ("GenuineIntel", ["amx", "avx512", "avx512_bf16", "avx2"]),
        ("AuthenticAMD", ["amx", "avx512_bf16", "avx512", "avx2"]),
        ("", ["amx", "avx512_bf16", "avx512", "avx2"]),
    ],
)
def test_order_of_levels_depends_on_the_vendor(vendor, best):
    order = list(cpu._library().level_order(vendor))
    assert order[:4] == best
    assert order[-2:] == ["avx512_bf16_model", "amx_model"]
    assert sorted(order) == sorted(cpu.LEVELS)


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="Linux tells the vendor")
def test_levels_are_in_the_order_of_this_vendor():
    vendor = re.search(r"^vendor_id\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    library = cpu._library()
    assert list(library.levels()) == list(library.level_order(vendor[1] if vendor else ""))


def test_best_level_is_not_a_model():
    assert not cpu._best_level().endswith("_model")


@pytest.fixture
def set_precision():
    """torch.set_float32_matmul_precision, undone at the end with what it set beside itself."""
    newer = torch.backends.mkldnn.matmul
    before, kept = newer.fp32_precision, torch.get_float32_matmul_precision()
    yield torch.set_float32_matmul_precision
    torch.set_float32_matmul_precision(kept)
    newer.fp32_precision = before


def rms(errors):
    return torch.cat(errors).square().mean().sqrt().item()


@pytest.mark.parametrize("level", PAIR_LEVELS)
@pytest.mark.parametrize("case", CASES, ids=repr)
def test_medium_float32_is_within_twice_plain_bfloat16(case, level, set_precision):
    errors, plain = {}, {}
    for seed in range(3):
        e = example(case, torch.float32, seed=seed)
        exact = results(e.to(torch.float64), "plain")
        rounded = results(e.to(torch.bfloat16), "plain")
        set_precision("medium")
        actual = results(e, f"cpu:{pair_level(level)}")
        set_precision("highest")
        for name in exact:
            assert actual[name].dtype == torch.float32
            errors.setdefault(name, []).append((actual[name] - exact[name]).flatten())
            plain.setdefault(name, []).append((rounded[name].double() - exact[name]).flatten())
    for name, found in errors.items():
        if torch.cat(found).numel():
            assert rms(found) <= 2 * rms(plain[name]), name
            largest = torch.cat(plain[name]).abs().max()
            assert torch.cat(found).abs().max() <= 4 * largest, name


SMALL = Case(heads=2, seqlen_q=70, head_dim=40, prompts=3, region="blobs")


def out_and_gradients(backend):
    return results(example(SMALL, torch.float32), backend)


@pytest.mark.parametrize("level", PAIR_LEVELS)
def test_medium_float32_equals_bfloat16_inputs_before_rounding(level, set_precision):
    # Inputs that bfloat16 can hold: the same products, and only the outputs differ in dtype.
    e = example(SMALL, torch.bfloat16)
    expected = results(e, f"cpu:{pair_level(level)}")
    set_precision("medium")
    actual = results(e.to(torch.float32), f"cpu:{level}")
    for name in ("out", "dq", "dweight"):
        assert torch.equal(actual[name].to(expected[name].dtype), expected[name]), name
    assert not torch.equal(actual["out"].bfloat16().float(), actual["out"])


@pytest.mark.parametrize("level", PAIR_LEVELS)
def test_high_float32_is_float32(level, set_precision):
    expected = out_and_gradients(f"cpu:{pair_level(level)}")
    set_precision("high")
    for name, actual in out_and_gradients(f"cpu:{level}").items():
        assert torch.equal(actual, expected[name]), name


@pytest.mark.parametrize("level", [x for x in cpu.LEVELS if x not in PAIR_LEVELS])
def test_medium_changes_nothing_without_products_of_pairs(level, set_precision):
    expected = out_and_gradients(f"cpu:{pair_level(level)}")
    set_precision("medium")
    for name, actual in out_and_gradients(f"cpu:{level}").items():
        assert torch.equal(actual, expected[name]), name


def test_compiled_function_follows_the_precision_of_the_moment(set_precision):
    torch.compiler.reset()
    e = example(SMALL, torch.float32)
    backend = f"cpu:{pair_level('avx512_bf16_model')}"
    compiled = torch.compile(lambda: e.run(backend), backend="aot_eager", fullgraph=True)
    outs = {}
    for precision in ("highest", "medium", "highest"):
        set_precision(precision)
        out, expected = compiled(), e.run(backend)
        assert torch.equal(out, expected)
        gradients = (torch.autograd.grad(x, e.floats(), e.dout) for x in (out, expected))
        assert all(map(torch.equal, *gradients))
        outs[precision] = out
    assert not torch.equal(outs["medium"], outs["highest"])


def test_newer_setting_that_the_older_one_cannot_tell_is_followed(set_precision):
    backend = f"cpu:{pair_level('avx512_bf16_model')}"
    exact = example(SMALL, torch.float32).run(backend)
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    with pytest.raises(RuntimeError):
        torch.get_float32_matmul_precision()
    assert not torch.equal(example(SMALL, torch.float32).run(backend), exact)
