"""Instructions of the Triton kernels' main loops, against a table of those that are shipped.

    python tests/stal_kernels/test_triton_instructions.py

writes the table, triton_instructions.json, anew. Its figures are counted in the machine code of the
version of Triton that it names, for a GPU that need not be there; none of them is a time.
"""

import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from stal_kernels.backends.triton.compile import (
    Compiled,
    Variant,
    compile_variant,
    loops_with_products,
)

TABLE = Path(__file__).with_name("triton_instructions.json")
FORMS = ((False, False), (True, False), (True, True))  # region, plan
VARIANTS = [
    Variant(kernel, 90, d, keys, "bfloat16", region, plan=plan)
    for kernel, head_dims, keys, forms in (
        ("forward", (40, 64, 80), 77, FORMS),
        ("forward", (128,), 77, FORMS[::2]),
        ("forward", (160,), 77, FORMS[:1]),
        ("forward", (64, 128), 256, FORMS),
        ("forward", (64, 160), 300, FORMS[:1]),
        ("forward", (128,), 300, FORMS[:2]),
        ("pixels", (80, 128), 77, FORMS[1:]),
        ("pixels", (160,), 77, FORMS[:2]),
    )
    for d in head_dims
    for region, plan in forms
] + [
    # Of these the tiles are cut by registers: ragged, with a plan.
    Variant("forward", c, d, 77, "bfloat16", True, True, plan=True)
    for c, d in ((80, 40), (80, 64), (80, 80), (80, 160), (90, 160))
]
QUICK = [v for v in VARIANTS if (v.kernel, v.head_dim, v.seqlen_k) == ("forward", 64, 77)]
_GROWTH = 1.05


def figures(result: Compiled) -> dict[str, int]:
    """loop, registers, shared: as in `Compiled`; spilled: bytes of a thread."""
    return {
        "loop": round(result.loop),
        "registers": result.registers,
        "shared": result.shared,
        "spilled": result.stack + result.local,
    }


def check(variant: Variant) -> None:
    triton = pytest.importorskip("triton")
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    if triton.__version__ != table["triton"]:
        pytest.skip(f"the table is of triton {table['triton']}, got {triton.__version__}")
    old, new = table["variants"][repr(variant)], figures(compile_variant(variant))
    print(f"{variant}: {old} -> {new}")
    assert 0 < new["loop"] <= _GROWTH * old["loop"], f"{old} -> {new}"
    assert new["spilled"] <= old["spilled"], f"{old} -> {new}"


@pytest.mark.parametrize("variant", QUICK, ids=repr)
def test_main_loop_has_not_grown(variant):
    check(variant)


@pytest.mark.slow
@pytest.mark.parametrize("variant", [v for v in VARIANTS if v not in QUICK], ids=repr)
def test_no_main_loop_has_grown(variant):
    check(variant)


def test_table_has_each_variant_and_no_other():
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    assert list(table["variants"]) == [repr(v) for v in VARIANTS]


def lines(*instructions: str) -> str:
    """Machine code as cuobjdump shows it."""
    return "".join(
        f"        /*{16 * i:04x}*/  {x} ; /* 0x0 */\n" for i, x in enumerate(instructions)
    )


@pytest.mark.parametrize(
    ("code", "lengths"),
    [
        (["HGMMA.64x64x16.F32 R24, gdesc[UR28], R24", "BRA 0x10"], []),
        (["NOP", "HMMA.16816.F32 R4, R8, R12, R4", "@P0 BRA 0x10", "EXIT"], [2]),
        (["MOV R1, R2", "NOP", "@P0 BRA 0x0", "EXIT"], []),
        # The inner loop of two; two one after the other; a branch forwards and one to itself.
        (["NOP", "HGMMA.64x8 R0", "@!UP0 BRA 0x10", "@P1 BRA 0x0"], [2]),
        (["HGMMA.64x8 R0", "BRA.U UP0, 0x0", "NOP", "HGMMA.64x8 R0", "@P0 BRA 0x20"], [2, 3]),
        (["HGMMA.64x8 R0", "BRA 0x30", "NOP", "BRA 0x30"], []),
        # Two ways back to the same beginning.
        (["HGMMA.64x8 R0", "@P0 BRA 0x0", "NOP", "@P1 BRA 0x0"], [4]),
    ],
)
def test_innermost_loops_are_found(code, lengths):
    assert [len(loop) for loop in loops_with_products(lines(*code))] == lengths


def main() -> None:
    import triton

    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=context) as pool:
        results = pool.map(compile_variant, VARIANTS)
        rows = [
            f"  {json.dumps(repr(v))}: {json.dumps(figures(r))}"
            for v, r in zip(VARIANTS, results, strict=True)
        ]
    text = f'{{"triton": {json.dumps(triton.__version__)}, "variants": {{\n'
    TABLE.write_text(text + ",\n".join(rows) + "\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
