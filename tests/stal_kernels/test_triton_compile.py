"""What Triton's compiler makes of the kernels that are shipped, for GPUs that need not be there.

Variants are compiled to machine code for compute capability 8.0 and 9.0, as they would be
launched. Asserted are what a GPU cannot do without: no register is spilled, shared memory fits,
products run on tensor cores, and few of their multiply-adds are wasted on padding.

All variants take twenty minutes of a processor, those of QUICK and TIGHTEST three. After a change
of the kernels or of their tiles,

    pytest -n 1 tests/stal_kernels/test_triton_compile.py --every-variant

compiles all of them, and

    python tests/stal_kernels/test_triton_compile.py

does too and writes TIGHTEST, triton_tightest.json, anew: in the order of registers, then of shared
memory, the largest first, each variant that has one of `properties` that none before it has.
"""

import json
import sys
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from stal_kernels.backends.triton.compile import (
    KERNELS,
    SHARED_MEMORY,
    Compiled,
    Variant,
    compile_variant,
    launch_of,
    undefined_registers,
)

TIGHTEST = Path(__file__).with_name("triton_tightest.json")
HEAD_DIMS = (40, 64, 80, 128, 160)
QUICK = [
    *(Variant("forward", c, d) for c in (80, 90) for d in HEAD_DIMS),
    *(Variant(kernel, c, 64) for kernel in ("pixels", "prompts") for c in (80, 90)),
    Variant("forward", 90, 64, region=True, plan=True),
    # More keys than those for which registers are few, all at once.
    Variant("forward", 90, 64, 128),
]
FORMS = ((False, False), (True, False), (True, True))  # region, ragged
# (head_dim, seqlen_k): PixArt, Sana, HunyuanDiT, Kolors, LTX, Wan and Cosmos, LTX-2.
LONG = (
    *((72, 120), (72, 300), (112, 300), (88, 333), (64, 128), (64, 256), (64, 1024)),
    *((128, 256), (128, 512), (128, 1024)),
)
ALL = [
    *(
        Variant(kernel, c, d, seqlen_k, "float16", *form)
        for kernel in KERNELS
        for c in (80, 90)
        for d in HEAD_DIMS
        for seqlen_k in (77, 300)
        for form in FORMS
    ),
    *(
        Variant(kernel, c, d, dtype=dtype)
        for kernel in KERNELS
        for c in (80, 90)
        for d in (40, 64, 160)
        for dtype in ("bfloat16", "float32")
    ),
    *(
        Variant(kernel, c, d, dtype="float32", region=True, precision="tf32")
        for kernel in KERNELS
        for c in (80, 90)
        for d in (40, 64, 160)
    ),
    *(Variant("pixels", c, d, dtype="float32") for c in (80, 90) for d in (80, 128)),
    *(
        Variant(kernel, c, d, seqlen_k, dtype, True, ragged, plan=True)
        for kernel in ("forward", "pixels")
        for c in (80, 90)
        for d in HEAD_DIMS
        for seqlen_k in (77, 300)
        for dtype, ragged in (("float16", False), ("bfloat16", True), ("float32", False))
        # The others make no use of a plan.
        if kernel == "forward" or dtype != "float32" or d <= 64
    ),
    *(
        Variant("forward", c, *sizes, dtype, region)
        for c in (80, 90)
        for sizes in LONG
        for dtype in ("float16", "bfloat16")
        for region in (False, True)
    ),
]
EVERY = list(dict.fromkeys([*QUICK, *ALL]))


def properties(v: Variant) -> set[tuple[object, ...]]:
    """What each variant stands for, all of which the variants of TIGHTEST have among them."""
    of_kernel = (
        (v.capability, v.head_dim),
        (v.dtype, v.precision),
        (v.region, v.ragged, v.plan),
        v.seqlen_k > 128,
    )
    return {(v.kernel, x) for x in of_kernel}


def union(variants: Iterable[Variant]) -> set[tuple[object, ...]]:
    """Properties of any of them."""
    return set().union(*map(properties, variants))


def tightest(results: dict[Variant, Compiled]) -> list[Variant]:
    """The variants of TIGHTEST."""
    chosen, seen = [], set()
    order = sorted(results, key=lambda v: (-results[v].registers, -results[v].shared, repr(v)))
    for variant in order:
        if properties(variant) - seen:
            seen |= properties(variant)
            chosen.append(variant)
    return chosen


def grouped(variants: list[Variant]) -> list[Any]:
    """Parameters of which one worker has all tests of a variant, so that it is compiled once."""
    return [pytest.param(v, id=repr(v), marks=pytest.mark.xdist_group(repr(v))) for v in variants]


@pytest.fixture(scope="module")
def compiled():
    """compiled(variant), each once, in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        yield cache(lambda variant: pool.submit(compile_variant, variant).result())


def check(variant: Variant, result: Compiled) -> None:
    print(f"{variant}: {result}")
    assert (result.stack, result.local, result.undefined) == (0, 0, ())
    assert result.registers <= 255
    assert result.shared <= SHARED_MEMORY[variant.capability]
    # A corner of 16 x 16 has one element for each thread of eight warps.
    assert result.narrow_loads <= 4
    if variant.precision == "tf32":
        assert any(shape.endswith("k8") for shape in result.instructions)
    elif variant.dtype == "float32":
        assert not result.instructions
    else:
        # wgmma is an instruction of four warps.
        whole_groups = launch_of(variant).options["num_warps"] % 4 == 0
        expected = "m64n" if variant.capability == 90 and whole_groups else "m16n8k16"
        assert any(shape.startswith(expected) for shape in result.instructions)


@pytest.mark.parametrize("variant", grouped(QUICK))
def test_kernel_compiles_without_spills(variant, compiled):
    check(variant, compiled(variant))


def pytest_generate_tests(metafunc):
    if "slow_variant" in metafunc.fixturenames:
        every = metafunc.config.getoption("--every-variant")
        names = json.loads(TIGHTEST.read_text(encoding="utf-8"))["variants"]
        chosen = [v for v in EVERY if v not in QUICK and (every or repr(v) in names)]
        metafunc.parametrize("slow_variant", grouped(chosen))


@pytest.mark.slow
def test_tight_variant_compiles_without_spills(slow_variant, compiled):
    check(slow_variant, compiled(slow_variant))


def test_tight_variants_have_every_property():
    names = json.loads(TIGHTEST.read_text(encoding="utf-8"))["variants"]
    chosen = [v for v in EVERY if repr(v) in names]
    assert len(chosen) == len(names)
    assert union(chosen) == union(EVERY)


@pytest.mark.parametrize(
    "variant", grouped([Variant("forward", c, d) for c in (80, 90) for d in HEAD_DIMS])
)
def test_forward_wastes_few_multiply_adds(variant, compiled):
    assert compiled(variant).issued <= (1.25 if variant.head_dim == 40 else 1.05)


def lines(*instructions: str) -> str:
    """Machine code as cuobjdump shows it."""
    return "".join(
        f"        /*{16 * i:04x}*/  {x} ; /* 0x0 */\n" for i, x in enumerate(instructions)
    )


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        # As ptxas 12.8 wrote it: the copy of UR14 to UR18 is missing.
        (lines("UMOV UR14, 0x400", "UIADD3 UR18, UP0, UR18, 0x20, URZ"), (18,)),
        (lines("UMOV UR18, UR14", "UMOV UR14, 0x400"), (14,)),
        (lines("UMOV UR4, 0x1", "UIADD3 UR4, UR4, 0x1, URZ"), ()),
        (lines("ULDC.64 UR4, c[0x0][0x208]", "@!P0 LDG.E R0, desc[UR4][R2.64]"), ()),
        (lines("ULDC UR4, c[0x0][0x208]", "@!P0 LDG.E R0, desc[UR4][R2.64]"), (5,)),
        (lines("STS.64 [R3+UR6+0x800], R24"), (6,)),
        # The first descriptor of two is unused where the factor is in registers.
        (lines("UMOV UR22, 0x1", "HGMMA.64x16x16.F32 R24, R44, gdesc[UR20].tnspB, R24"), (23,)),
        (lines("UMOV UR22, 0x1", "HGMMA.64x16x16.F32 R24, gdesc[UR20], RZ, !UPT"), (20, 21, 23)),
        (lines("S2UR UR4, SR_CTAID.X", "UIMAD.WIDE.U32 UR6, UR4, UR4, URZ", "UMOV UR8, UR7"), ()),
        (lines("UMOV UR4, 0x1", "UIADD3.64 UR6, UR4, 0x2, URZ"), (5,)),
    ],
)
def test_undefined_registers_are_found(code, expected):
    assert undefined_registers(code) == expected


def main() -> None:
    import triton

    results = {}
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        for variant, result in zip(EVERY, pool.map(compile_variant, EVERY), strict=True):
            results[variant] = result
            print(f"{variant}: {result}", file=sys.stderr, flush=True)
    rows = [
        f"  {json.dumps(repr(v))}: "
        + json.dumps({"registers": results[v].registers, "shared": results[v].shared})
        for v in tightest(results)
    ]
    text = f'{{"triton": {json.dumps(triton.__version__)}, "variants": {{\n'
    TIGHTEST.write_text(text + ",\n".join(rows) + "\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
