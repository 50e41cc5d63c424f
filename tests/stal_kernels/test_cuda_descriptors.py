"""What the CUDA kernel says of its matrices to wgmma, against what Triton says of the same layouts.

Triton's compiler is an oracle of its own for descriptors: how a matrix in panels of 128- or 32-byte
rows is described, K-major and MN-major, and what is added to get from one k16 step to the next.
The kernel's descriptors are those that it hands to the emulator.
"""

import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="needs triton")
gluon = pytest.importorskip("triton.experimental.gluon", reason="needs triton with gluon")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.experimental.gluon import language as gl  # noqa: E402
from triton.experimental.gluon._runtime import GluonASTSource  # noqa: E402
from triton.experimental.gluon.language.nvidia import hopper  # noqa: E402

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "csrc"
PROGRAM = (
    *("cuda/forward", "cuda/forward_driver", "cuda/block", "cuda/product", "cuda/shared_memory"),
    *("cuda/fiber", "case", "exact", "tensors"),
)
KEYS = 80  # rows of the kernel's k and v in shared memory
# Bytes of a row of a panel, by head_dim.
WIDTHS = {40: 32, 64: 128, 80: 32, 128: 128, 160: 32}

pytestmark = [
    pytest.mark.xdist_group("descriptors"),
    pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="needs a checkout"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"),
]


@gluon.jit
def _two_products(q, k, v, out, KEYS: gl.constexpr, D: gl.constexpr, WIDTH: gl.constexpr):
    """(q k^T) v of (64, D), (KEYS, D), (KEYS, D) in panels whose rows have WIDTH bytes."""
    blocked: gl.constexpr = gl.BlockedLayout([1, 8], [8, 4], [4, 1], [1, 0])
    panels: gl.constexpr = gl.NVMMASharedLayout(WIDTH, element_bitwidth=16, rank=2)
    scores: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, KEYS, 16])
    values: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    rows = gl.arange(0, 64, layout=gl.SliceLayout(1, blocked))[:, None] * D
    keys = gl.arange(0, KEYS, layout=gl.SliceLayout(1, blocked))[:, None] * D
    columns = gl.arange(0, D, layout=gl.SliceLayout(0, blocked))[None, :]
    x = gl.allocate_shared_memory(gl.bfloat16, [64, D], panels, gl.load(q + rows + columns))
    y = gl.allocate_shared_memory(gl.bfloat16, [KEYS, D], panels, gl.load(k + keys + columns))
    z = gl.allocate_shared_memory(gl.bfloat16, [KEYS, D], panels, gl.load(v + keys + columns))
    hopper.fence_async_shared()
    zeros = gl.zeros((64, KEYS), gl.float32, scores)
    s = hopper.warpgroup_mma(x, y.permute((1, 0)), zeros, use_acc=False)
    p = gl.convert_layout(s.to(gl.bfloat16), gl.DotOperandLayout(0, values, 2))
    o = hopper.warpgroup_mma(p, z, gl.zeros((64, D), gl.float32, values), use_acc=False)
    gl.store(out + rows + columns, gl.convert_layout(o, blocked))


def low(descriptor: int) -> int:
    """The address / 16."""
    return descriptor & 0x3FFF


def leading(descriptor: int) -> int:
    """The leading offset / 16."""
    return descriptor >> 16 & 0x3FFF


def high(descriptor: int) -> int:
    """The stride offset / 16 and the swizzle."""
    return descriptor >> 32


@cache
def oracle(width: int, columns: int, keys: int) -> list[list[int]]:
    """Triton's descriptors of q, k and v, one for each product, as if each began at address 0."""
    pointers = {"q": "*bf16", "k": "*bf16", "v": "*bf16", "out": "*fp32"}
    constants = {"KEYS": keys, "D": columns, "WIDTH": width}
    signature = pointers | dict.fromkeys(constants, "constexpr")
    positions = {(len(pointers) + i,): value for i, value in enumerate(constants.values())}
    source = GluonASTSource(_two_products, signature, positions)
    target = GPUTarget("cuda", 90, 32)
    ptx = triton.compile(source, target=target, options={"num_warps": 4}).asm["ptx"]
    # A descriptor is made of a register with the address / 16 and of one constant.
    constant_of = {
        register: int(constant) % 2**64
        for register, constant in re.findall(
            r"(?:or\.b64|add\.s64)\s+(%rd\d+), %rd\d+, (-?\d+);", ptx
        )
    }
    of = [[], [], []]
    in_shared = r"wgmma\.mma_async\S+ \{[^}]*\}, (%rd\d+), (%rd\d+), .*, 0, 0;"
    in_registers = r"wgmma\.mma_async\S+ \{[^}]*\}, \{[^}]*\}, (%rd\d+), .*, 1;"
    for q, k in re.findall(in_shared, ptx):
        of[0].append(constant_of[q])
        of[1].append(constant_of[k])
    of[2] = [constant_of[v] for v in re.findall(in_registers, ptx)]
    assert len(of[0]) == columns // 16
    assert len(of[2]) == keys // 16
    return of


@pytest.fixture(scope="module")
def products(tmp_path_factory):
    """products(head_dim): (n, descriptors) of each wgmma of one tile and prompt, in order."""
    target = tmp_path_factory.mktemp("descriptors") / "driver"
    sources = [SOURCES / "test" / f"{name}.cpp" for name in PROGRAM]
    flags = ["-std=c++17", "-O1", "-Wno-unknown-pragmas"]
    subprocess.run(["g++", *flags, "-I", SOURCES, *sources, "-o", target], check=True)

    @cache
    def products(head_dim: int) -> list[tuple[int, list[int]]]:
        command = [target, "--products", str(head_dim)]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        words = [line.split() for line in lines.splitlines()]
        return [(int(n), [int(x, 16) for x in descriptors]) for n, *descriptors in words]

    return products


def at_80_keys(of_64: int, of_128: int) -> int:
    """What grows with the number of keys, or stays, at a number that Triton cannot have."""
    step, rest = divmod((of_128 - of_64) * (KEYS - 64), 64)
    assert rest == 0
    return of_64 + step


@pytest.mark.parametrize("head_dim", WIDTHS)
def test_scores_are_described_as_triton_does(head_dim, products):
    width, steps = WIDTHS[head_dim], -(-head_dim // 16)
    columns = max(64, 1 << (16 * steps - 1).bit_length())
    q64, k64, _ = oracle(width, columns, 64)
    _, k128, _ = oracle(width, columns, 128)
    issued = [descriptors for n, descriptors in products(head_dim) if len(descriptors) == 2]
    assert [n for n, d in products(head_dim) if len(d) == 2] == [KEYS] * steps
    for i, (q, k) in enumerate(issued):
        assert (high(q), high(k)) == (high(q64[i]), high(k64[i]))
        assert low(q) - low(issued[0][0]) == low(q64[i]) - low(q64[0])
        expected = at_80_keys(low(k64[i]) - low(k64[0]), low(k128[i]) - low(k128[0]))
        assert low(k) - low(issued[0][1]) == expected


@pytest.mark.parametrize("head_dim", WIDTHS)
def test_values_are_described_as_triton_does(head_dim, products):
    width, padded = WIDTHS[head_dim], 16 * -(-head_dim // 16)
    columns = max(64, 1 << (padded - 1).bit_length())
    v64, v128 = (oracle(width, columns, keys)[2] for keys in (64, 128))
    issued = [(n, d[0]) for n, d in products(head_dim) if len(d) == 1]
    parts = [issued[i : i + KEYS // 16] for i in range(0, len(issued), KEYS // 16)]
    assert sum(part[0][0] for part in parts) == padded
    panel = at_80_keys(leading(v64[0]), leading(v128[0]))
    panels = 0
    for part in parts:
        for i, (n, v) in enumerate(part):
            assert n == part[0][0]
            assert high(v) == high(v64[0])
            # With one panel the offset between panels says nothing.
            if n * 2 > width:
                assert leading(v) == panel
            # Rows further down, behind the panels of the parts before.
            assert low(v) - low(parts[0][0][1]) == panels * panel + low(v128[i]) - low(v128[0])
        panels += part[0][0] * 2 // width


def test_oracle_reads_the_form_that_ran_on_a_gpu():
    """The numbers of a kernel by Triton that was right on an H200: 128-byte rows, 64 of them."""
    q, k, v = oracle(128, 128, 64)
    assert {high(x) for x in (*q, *k, *v)} == {0x40000040}
    assert [low(x) for x in q[:5]] == [0, 2, 4, 6, 0x200]
    assert [low(x) for x in k] == [low(x) for x in q]
    assert [(leading(x), low(x)) for x in v] == [(0x200, 128 * i) for i in range(4)]
