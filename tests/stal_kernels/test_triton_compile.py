"""What Triton's compiler makes of the kernels that are shipped, for GPUs that need not be there.

Every variant is compiled to machine code for compute capability 8.0 and 9.0, as it would be
launched. Asserted are what a GPU cannot do without: no register is spilled, shared memory fits,
products run on tensor cores, and few of their multiply-adds are wasted on padding.
"""

import math
import re
import subprocess
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

from stal_kernels.backends import Inputs, triton

# Bytes a block may use. Consumer GPUs of 8.6 and 8.9 have 99 KiB.
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024}
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
POINTERS = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.bool: "*i1",
    torch.int32: "*i32",
}
# Matrix products of each kernel that no algorithm does without, of (pixels, keys, head_dim) each.
PRODUCTS = {"forward": 2, "pixels": 3, "prompts": 4}


@dataclass(frozen=True)
class Variant:
    kernel: str
    capability: int
    head_dim: int
    seqlen_k: int = 77
    dtype: str = "float16"
    region: bool = False
    ragged: bool = False

    def __repr__(self) -> str:
        marks = ["region"] * self.region + ["ragged"] * self.ragged
        sizes = f"d{self.head_dim}-k{self.seqlen_k}"
        return "-".join([self.kernel, f"sm{self.capability}", self.dtype, sizes, *marks])


HEAD_DIMS = (40, 64, 80, 128, 160)
QUICK = [
    *(Variant(kernel, c, d) for kernel in PRODUCTS for c in (80, 90) for d in (40, 64)),
    *(Variant("forward", c, d) for c in (80, 90) for d in (80, 128, 160)),
    *(Variant("forward", c, 64, region=True) for c in (80, 90)),
    Variant("forward", 80, 64, dtype="float32"),
]
FORMS = ((False, False), (True, False), (True, True))  # region, ragged
ALL = [
    *(
        Variant(kernel, c, d, seqlen_k, "float16", *form)
        for kernel in PRODUCTS
        for c in (80, 90)
        for d in HEAD_DIMS
        for seqlen_k in (77, 300)
        for form in FORMS
    ),
    *(
        Variant(kernel, c, d, dtype=dtype)
        for kernel in PRODUCTS
        for c in (80, 90)
        for d in (40, 64, 160)
        for dtype in ("bfloat16", "float32")
        # These spill, as the table of tiles says.
        if (kernel, d, dtype) != ("pixels", 160, "float32")
    ),
]
SLOW = [variant for variant in ALL if variant not in QUICK]


@dataclass(frozen=True)
class Compiled:
    registers: int
    stack: int
    local: int
    shared: int
    instructions: dict[str, int]
    issued: float  # multiply-adds of tensor cores over the useful ones
    narrow_loads: int  # of 2 bytes


def launch_of(variant: Variant) -> triton.Launch:
    """The launch of Stable Diffusion's layout at 64 x 64; meta tensors, since only sizes matter."""

    def empty(*shape, dtype=DTYPES[variant.dtype]):
        return torch.empty(shape, dtype=dtype, device="meta")

    batch, heads, seqlen_q, prompts = 2, 8, 4096, 5
    q = empty(batch, seqlen_q, heads, variant.head_dim).transpose(1, 2)
    leading, weights = ((7,), (9,)) if variant.ragged else ((batch, prompts), (batch, prompts))
    k = empty(*leading, variant.seqlen_k, heads, variant.head_dim).transpose(-2, -3)
    weight = empty(*weights, seqlen_q, dtype=torch.float32)
    region = empty(*weights, seqlen_q, dtype=torch.bool) if variant.region else None
    indices = [empty(n, dtype=torch.int32) if variant.ragged else None for n in (9, batch + 1, 7)]
    inputs = Inputs(q, k, k, weight, indices[0], indices[1], region, indices[2], 1.0)
    stats = empty(3, heads, *weight.shape, dtype=torch.float32).unbind()
    capability = divmod(variant.capability, 10)
    if variant.kernel == "forward":
        return triton.forward_launch(inputs, q, capability)
    if variant.kernel == "pixels":
        return triton.pixel_launch(inputs, q, q, stats, capability)
    return triton.prompt_launches(inputs, q, stats, k, k, capability)[0]


def compiled(variant: Variant) -> Compiled:
    import triton as compiler
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    launch = launch_of(variant)
    options = {n: launch.options[n] for n in ("num_warps", "num_stages", "maxnreg")}
    constants = {n: value for n, value in launch.options.items() if n not in options}
    names = launch.kernel.arg_names
    values = dict(zip(names, launch.arguments, strict=False))
    assert {*values, *constants} == {*names}
    signature = {}
    for name in names:
        value = values.get(name)
        kind = "fp32" if isinstance(value, float) else "i32"
        kind = POINTERS[value.dtype] if isinstance(value, torch.Tensor) else kind
        signature[name] = "constexpr" if name in constants else kind
    aligned = {
        (i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if signature[n][0] == "*"
    }
    source = ASTSource(launch.kernel, signature, constants, aligned)
    target = GPUTarget("cuda", variant.capability, 32)
    binary = compiler.compile(source, target=target, options=options)

    tool = Path(compiler.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        command = [str(tool), "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    ptx = binary.asm["ptx"]
    instructions = Counter(re.findall(r"(?:mma\.sync|wgmma\.mma_async)\S*?\.(m\d+n\d+k\d+)", ptx))
    warps = options["num_warps"]
    # A wgmma (m64) is of four warps, an mma.sync of one.
    work = sum(
        count
        * math.prod(map(int, re.findall(r"\d+", shape)))
        * warps
        // (4 if "m64" in shape else 1)
        for shape, count in instructions.items()
    )
    key_tiles = -(-variant.seqlen_k // sum(constants["K_PIECES"]))
    useful = constants["BLOCK_Q"] * variant.seqlen_k * variant.head_dim * PRODUCTS[variant.kernel]
    (resources,) = re.findall(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    return Compiled(
        *map(int, resources),
        binary.metadata.shared,
        dict(instructions),
        key_tiles * work / useful,
        len(re.findall(r"ld\.global\S*\.b16|ld\.global\S*\.u16", ptx)),
    )


@pytest.fixture(scope="module")
def results(request):
    """Futures of all variants that this run asks for, two at a time."""
    items = [item for item in request.session.items if item.path == Path(__file__)]
    variants = {
        item.callspec.params["variant"]: None for item in items if hasattr(item, "callspec")
    }
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        yield {variant: pool.submit(compiled, variant) for variant in variants}


def check(variant: Variant, result: Compiled) -> None:
    print(f"{variant}: {result}")
    assert (result.stack, result.local) == (0, 0)
    assert result.registers <= 255
    assert result.shared <= SHARED_MEMORY[variant.capability]
    # A corner of 16 x 16 has one element for each thread of eight warps.
    assert result.narrow_loads <= 4
    if variant.dtype == "float32":
        assert not result.instructions
    else:
        # wgmma is an instruction of four warps.
        whole_groups = launch_of(variant).options["num_warps"] % 4 == 0
        expected = "m64n" if variant.capability == 90 and whole_groups else "m16n8k16"
        assert any(shape.startswith(expected) for shape in result.instructions)


@pytest.mark.parametrize("variant", QUICK, ids=repr)
def test_kernel_compiles_without_spills(variant, results):
    check(variant, results[variant].result())


@pytest.mark.slow
@pytest.mark.parametrize("variant", SLOW, ids=repr)
def test_every_variant_compiles_without_spills(variant, results):
    check(variant, results[variant].result())


@pytest.mark.parametrize(
    "variant",
    [Variant("forward", c, d) for c in (80, 90) for d in HEAD_DIMS],
    ids=repr,
)
def test_forward_wastes_few_multiply_adds(variant, results):
    assert results[variant].result().issued <= (1.25 if variant.head_dim == 40 else 1.05)
