"""What Triton's compiler makes of a launch, for a GPU that need not be there.

Used by the tests and by bench/tune_triton.py; no call of blended_attention comes here.
"""

import math
import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

from stal_kernels.backends.contract import Inputs
from stal_kernels.backends.triton.launches import (
    Launch,
    forward_launch,
    pixel_launch,
    prompt_launches,
)
from stal_kernels.backends.triton.tiles import Tile

KERNELS = ("forward", "pixels", "prompts")
# Bytes that a block may use. Consumer GPUs of 8.6 and 8.9 have 99 KiB.
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024}
# Matrix products of each kernel that no algorithm does without, of (pixels, keys, head_dim) each.
_PRODUCTS = {"forward": 2, "pixels": 3, "prompts": 4}
_POINTERS = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.bool: "*i1",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
# What a multiprocessor has, of both capabilities.
_REGISTERS, _WARPS = 65536, 64


@dataclass(frozen=True)
class Variant:
    """A kernel as it is compiled. precision: "ieee" or "tf32", of float32 products. plan: only with
    a region.
    """

    kernel: str
    capability: int
    head_dim: int
    seqlen_k: int = 77
    dtype: str = "float16"
    region: bool = False
    ragged: bool = False
    precision: str = "ieee"
    plan: bool = False

    def __repr__(self) -> str:
        marks = ["region"] * self.region + ["ragged"] * self.ragged + ["plan"] * self.plan
        marks += ["tf32"] * (self.precision == "tf32")
        sizes = f"d{self.head_dim}-k{self.seqlen_k}"
        return "-".join([self.kernel, f"sm{self.capability}", self.dtype, sizes, *marks])


@dataclass(frozen=True)
class Compiled:
    """Resources of a kernel.

    registers: of a thread; stack, local: bytes of a thread, above 0 where registers are spilled.
    shared: bytes of a block.
    instructions: how many of each tensor-core shape.
    issued: multiply-adds of tensor cores over the useful ones; 0 where there are none.
    narrow_loads: of 2 bytes.
    occupancy: share of a multiprocessor's warps that registers and shared memory allow.
    loop: instructions that one of a multiprocessor's four schedulers issues for 64 pixels of one
        prompt, where it has more than 128 keys for 64 of those: the innermost loops, counted, not
        timed. 0 where nothing runs on tensor cores.
    undefined: uniform registers that are read before anything is written to them: wrong code.
    """

    registers: int
    stack: int
    local: int
    shared: int
    instructions: dict[str, int]
    issued: float
    narrow_loads: int
    occupancy: float
    loop: float
    undefined: tuple[int, ...]

    def fits(self, capability: int) -> bool:
        """Whether nothing is spilled, a block finds room and the code is not known to be wrong."""
        faults = self.stack or self.local or self.undefined
        return not faults and self.shared <= SHARED_MEMORY[capability]


def launch_of(variant: Variant, tile: Tile | None = None, *, device: str = "meta") -> Launch:
    """The launch of Stable Diffusion's layout: 2 x 8 heads, 64 x 64 pixels, 5 prompts.

    Args:
        tile: instead of the table's.
        device: "meta" to compile, where only sizes matter; "cuda" to run it.
    """
    dtype = getattr(torch, variant.dtype)

    def tensor(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        x = torch.empty(shape, dtype=dtype, device=device)
        return x if device == "meta" or not dtype.is_floating_point else x.normal_()

    batch, heads, seqlen_q, prompts = 2, 8, 4096, 5
    q = tensor(batch, seqlen_q, heads, variant.head_dim).transpose(1, 2)
    leading, weights = ((7,), (9,)) if variant.ragged else ((batch, prompts), (batch, prompts))
    k = tensor(*leading, variant.seqlen_k, heads, variant.head_dim).transpose(-2, -3)
    weight = tensor(*weights, seqlen_q, dtype=torch.float32)
    region = tensor(*weights, seqlen_q, dtype=torch.bool) if variant.region else None
    indices = [tensor(n, dtype=torch.int32) if variant.ragged else None for n in (9, batch + 1, 7)]
    plan = None
    if variant.plan and region is not None:
        order = torch.arange(seqlen_q, dtype=torch.int32, device=device).repeat(batch, 1)
        # Every tile meets all prompts.
        plan = order, torch.full((batch, seqlen_q // 32), -1, device=device), region
    if device != "meta":
        _fill(region, *indices, seqlen_k=variant.seqlen_k)
    inputs = Inputs(q, k, k, weight, indices[0], indices[1], region, indices[2], plan, 1.0)
    stats = tensor(3, heads, *weight.shape, dtype=torch.float32).unbind()
    capability = divmod(variant.capability, 10)
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest" if variant.precision == "ieee" else "high")
    try:
        if variant.kernel == "forward":
            return forward_launch(inputs, torch.empty_like(q), capability, tile)
        if variant.kernel == "pixels":
            dq = torch.empty_like(q)
            return pixel_launch(inputs, q, dq, stats, capability, tile)
        dk, dv = torch.empty_like(k), torch.empty_like(k)
        return prompt_launches(inputs, q, stats, dk, dv, capability, tile)[0]
    finally:
        torch.set_float32_matmul_precision(precision)


def _fill(
    region: torch.Tensor | None,
    prompt_ids: torch.Tensor | None,
    offsets: torch.Tensor | None,
    key_lengths: torch.Tensor | None,
    *,
    seqlen_k: int,
) -> None:
    """Disjoint bands as regions, an even split of the entries, all keys."""
    if region is not None:
        seqlen_q = region.shape[-1]
        entries = region.view(-1, seqlen_q).shape[0]
        owner = torch.arange(seqlen_q, device=region.device) * 5 // seqlen_q
        entry = torch.arange(entries, device=region.device) % 5
        region.copy_((owner == entry[:, None]).view_as(region))
    if prompt_ids is not None and offsets is not None and key_lengths is not None:
        prompt_ids.copy_(torch.arange(len(prompt_ids)) % len(key_lengths))
        offsets.copy_(torch.tensor([0, 4, len(prompt_ids)]))
        key_lengths.fill_(seqlen_k)


def compile_variant(variant: Variant, tile: Tile | None = None) -> Compiled:
    """Compiles to machine code, in seconds; Triton keeps the result on disk.

    Args:
        tile: instead of the table's.

    Raises:
        Exception: Triton, LLVM or ptxas refuse the tile; each has errors of its own.
    """
    import triton as compiler
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    launch = launch_of(variant, tile)
    options = {n: launch.options[n] for n in ("num_warps", "num_stages", "maxnreg")}
    constants = {n: value for n, value in launch.options.items() if n not in options}
    names = launch.kernel.arg_names
    values = dict(zip(names, launch.arguments, strict=False))
    assert {*values, *constants} == {*names}
    signature = {}
    for name in names:
        value = values.get(name)
        kind = "fp32" if isinstance(value, float) else "i32"
        kind = _POINTERS[value.dtype] if isinstance(value, torch.Tensor) else kind
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
        usage, sass = (
            subprocess.run(
                [str(tool), option, file.name], capture_output=True, text=True, check=True
            ).stdout
            for option in ("-res-usage", "-sass")
        )
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
    keys = sum(constants["K_PIECES"])
    key_tiles = -(-variant.seqlen_k // keys)
    walks = key_tiles if variant.seqlen_k <= 128 else 64 / keys
    issues = sum(map(len, loops_with_products(sass))) * walks * 16 * warps / constants["BLOCK_Q"]
    useful = constants["BLOCK_Q"] * variant.seqlen_k * variant.head_dim * _PRODUCTS[variant.kernel]
    (resources,) = re.findall(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    registers, stack, local = map(int, resources)
    shared = binary.metadata.shared
    # Registers are given out in units of 8 a thread.
    blocks = _REGISTERS // (-(-registers // 8) * 8 * warps * 32)
    blocks = min(blocks, SHARED_MEMORY[variant.capability] // max(shared, 1))
    return Compiled(
        registers,
        stack,
        local,
        shared,
        dict(instructions),
        key_tiles * work / useful,
        len(re.findall(r"ld\.global\S*\.b16|ld\.global\S*\.u16", ptx)),
        min(1.0, blocks * warps / _WARPS),
        issues,
        undefined_registers(sass),
    )


def loops_with_products(sass: str) -> list[list[str]]:
    """Instructions of each innermost loop that has products of matrices, as cuobjdump shows them.

    A loop is what lies between a branch to an address before it and that address.
    """
    found = re.findall(r"^\s*/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;", sass, re.MULTILINE)
    code = [(int(address, 16), text) for address, text in found]
    ends: dict[int, int] = {}
    for address, text in code:
        branch = re.search(r"\bBRA\b.*\b0x([0-9a-f]+)$", text)
        if branch and int(branch[1], 16) < address:
            ends[int(branch[1], 16)] = address
    bodies = {
        (first, last): [text for address, text in code if first <= address <= last]
        for first, last in ends.items()
    }
    loops = {i: body for i, body in bodies.items() if any("MMA." in text for text in body)}
    starts = [first for first, _ in loops]
    return [
        body
        for (first, last), body in loops.items()
        if not any(first < start <= last for start in starts)
    ]


def undefined_registers(sass: str) -> tuple[int, ...]:
    """Uniform registers whose first appearance, in the order of addresses, is a read.

    ptxas of CUDA 12.8, which Triton 3.5 to 3.7 bring, loses the first value of some descriptors of
    matrices in shared memory (UIADD3 UR18, UP0, UR18, 0x20 with nothing before it that writes
    UR18). On an H200 such a kernel wrote garbage or read beyond its memory. That of 12.9 does not.
    """
    written: set[int] = set()
    undefined = set()
    for text in re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?\S+\s+)?(.*?);", sass, re.MULTILINE):
        operation, _, operands = text.partition(" ")
        first, *others = (operand.strip() for operand in operands.split(","))
        pair = operation[0] == "U" and (".64" in operation or ".WIDE" in operation)
        target = re.fullmatch(r"UR(\d+)", first)
        read: set[int] = set()
        for i, operand in enumerate(others if target else [first, *others]):
            group = re.match(r"gdesc\[UR(\d+)\]", operand)
            if group:
                # Two descriptors of two registers; the first is unused where the factor is in
                # registers.
                begin, in_registers = int(group[1]), re.match(r"R\d", others[0]) is not None
                read |= {*range(begin + 2 * in_registers, begin + 4)}
                continue
            for number in re.findall(r"\bUR(\d+)", operand):
                # The factors of a wide multiply-add have one register each.
                wide = "desc[" in operand or (pair and not (".WIDE" in operation and i < 2))
                read |= {int(number), int(number) + wide}
        undefined |= read - written
        written |= undefined
        if target:
            begin = int(target[1])
            written |= {*range(begin, begin + (2 if pair else 1))}
    return tuple(sorted(undefined))
