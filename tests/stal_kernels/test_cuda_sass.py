"""What nvcc makes of the CUDA kernels, without a GPU.

Of every instance: no register is spilled, descriptors are computed in uniform registers, and the
loop over the prompts of a tile, in which nearly all of the time goes, is as long as it was. The
table beside this file holds what one version of nvcc makes; `python test_cuda_sass.py` prints one
anew, and `--write` replaces it.
"""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

SOURCES = Path(__file__).parents[2] / "csrc"
TABLE = Path(__file__).with_name("cuda_sass.json")
HEAD_DIMS = (40, 64, 80, 128, 160)
DTYPES = ("Float16", "BFloat16")
SLACK = 1.05
SHARED_MEMORY = 227 * 1024


class Figures(NamedTuple):
    """Counted in the machine code of one instance."""

    wgmma: int  # products in the loop: ceil(head_dim / 16) of keys, then 5 of values, or 10
    exp2: int  # in the loop: 80 keys in each of 64 rows, by 128 threads
    spills: int  # loads and stores of local memory, anywhere
    moves: int  # from vector to uniform registers, in the loop
    loop: int  # instructions of the loop, with those that prompts of few keys need
    registers: int  # the most that any instruction names
    shared: int  # bytes


def _tool(name: str) -> str | None:
    """A program of the CUDA toolkit, or of Triton's copy of it."""
    found = shutil.which(name) or shutil.which(name, path="/usr/local/cuda/bin")
    triton = importlib.util.find_spec("triton")
    if found is None and triton is not None and triton.origin is not None:
        found = shutil.which(name, path=str(Path(triton.origin).parent / "backends/nvidia/bin"))
    return found


def _run(*command: str, text: str | None = None) -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout


@cache
def nvcc_version(nvcc: str) -> str:
    version = re.search(r"\bV(\d+\.\d+\.\d+)", _run(nvcc, "--version"))
    assert version is not None
    return version[1]


def disassemble(head_dim: int, folder: Path) -> str:
    """The machine code of the instances of one head_dim."""
    nvcc, nvdisasm = _tool("nvcc"), _tool("nvdisasm")
    assert nvcc is not None
    assert nvdisasm is not None
    cubin = folder / f"forward_{head_dim}.cubin"
    source = SOURCES / "cuda" / f"forward_{head_dim}.cu"
    flags = ("-std=c++17", "-O3", "-arch=sm_90a", "-cubin", f"-I{SOURCES}")
    _run(nvcc, *flags, "-o", str(cubin), str(source))
    return _run(nvdisasm, "-c", str(cubin))


def _instances(code: str) -> Iterator[tuple[str, list[str]]]:
    """The dtype and the lines of each kernel."""
    name, lines = "", list[str]()
    for line in code.splitlines():
        section = re.match(r"\.text\.(\S+):", line)
        if section is None:
            lines.append(line)
            continue
        if name:
            yield name, lines
        dtype = re.search(r"forwardINS0_\d+(\w+?)ELi\d+E", section[1])
        name, lines = dtype[1] if dtype else "", []
    if name:
        yield name, lines


def figures_of(lines: list[str], shared: int) -> Figures:
    """Counts instructions; the loop is the shortest one around all exponentials."""
    code: list[str] = []
    labels: dict[str, int] = {}
    for line in lines:
        label = re.match(r"(\.L_\w+):", line)
        if label:
            labels[label[1]] = len(code)
        instruction = re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?\s*(.*?);", line)
        if instruction:
            code.append(instruction[1])
    exponentials = [i for i, x in enumerate(code) if x.startswith("MUFU.EX2")]
    loops = []
    for i, x in enumerate(code):
        branch = re.search(r"^BRA.*`\((\.L_\w+)\)", x)
        start = labels.get(branch[1], i) if branch else i
        if start <= exponentials[0] and exponentials[-1] < i:
            loops.append(code[start : i + 1])
    loop = min(loops, key=len)

    def count(code: list[str], *names: str) -> int:
        return sum(x.startswith(names) for x in code)

    return Figures(
        wgmma=count(loop, "HGMMA"),
        exp2=count(loop, "MUFU.EX2"),
        spills=count(code, "LDL", "STL"),
        moves=count(loop, "R2UR"),
        loop=len(loop),
        registers=1 + max(int(r) for x in code for r in re.findall(r"\bR(\d+)\b", x)),
        shared=shared,
    )


@cache
def sizes() -> dict[int, tuple[int, int]]:
    """By head_dim: bytes of shared memory, and the registers of a thread that computes."""
    prints = "".join(
        f"show(Traits<{d}>::kSharedBytes, Traits<{d}>::kConsumerRegisters);" for d in HEAD_DIMS
    )
    program = (
        '#include <cstdio>\n#include "cuda/traits.h"\nusing namespace stal::cuda;\n'
        'void show(int shared, int registers) { std::printf("%d %d\\n", shared, registers); }\n'
        f"int main() {{ {prints} }}"
    )
    compiler = shutil.which("c++")
    assert compiler is not None
    with tempfile.TemporaryDirectory() as folder:
        binary = str(Path(folder) / "sizes")
        _run(compiler, "-std=c++17", f"-I{SOURCES}", "-x", "c++", "-o", binary, "-", text=program)
        pairs = [line.split() for line in _run(binary).splitlines()]
    return {d: (int(s), int(r)) for d, (s, r) in zip(HEAD_DIMS, pairs, strict=True)}


def measure(head_dim: int) -> dict[str, Figures]:
    """The figures of the instances of one head_dim, by dtype."""
    with tempfile.TemporaryDirectory() as folder:
        code = disassemble(head_dim, Path(folder))
    return {dtype: figures_of(x, sizes()[head_dim][0]) for dtype, x in _instances(code)}


@pytest.mark.slow
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_instance_compiles_as_well_as_it_did(head_dim):
    table = json.loads(TABLE.read_text())
    for name in ("nvcc", "nvdisasm", "c++"):
        if _tool(name) is None:
            pytest.skip(f"{name} is not installed")
    nvcc = _tool("nvcc")
    assert nvcc is not None
    if nvcc_version(nvcc) != table["nvcc"]:
        pytest.skip(f"the table is of nvcc {table['nvcc']}, this is {nvcc_version(nvcc)}")
    made = measure(head_dim)
    assert sorted(made) == sorted(DTYPES)
    for dtype, figures in made.items():
        known = Figures(**table["instances"][f"{dtype} {head_dim}"])
        assert figures.exp2 == 40, figures
        assert figures.spills == figures.moves == 0, figures
        assert figures.wgmma == known.wgmma, figures
        assert figures.loop <= known.loop * SLACK, (figures, known)
        assert figures.registers <= sizes()[head_dim][1], figures
        assert figures.shared <= SHARED_MEMORY, figures


def main() -> None:
    """Prints the table, and replaces it where asked to."""
    nvcc = _tool("nvcc")
    assert nvcc is not None
    with ThreadPoolExecutor(2) as pool:
        made = dict(zip(HEAD_DIMS, pool.map(measure, HEAD_DIMS), strict=True))
    instances = {f"{dtype} {d}": made[d][dtype] for d in HEAD_DIMS for dtype in DTYPES}
    print("instance".ljust(14), *(x.rjust(9) for x in Figures._fields))
    for name, figures in instances.items():
        print(name.ljust(14), *(str(x).rjust(9) for x in figures))
    if "--write" in sys.argv:
        lines = (f"  {json.dumps(k)}: {json.dumps(v._asdict())}" for k, v in instances.items())
        TABLE.write_text(
            f'{{"nvcc": "{nvcc_version(nvcc)}", "instances": {{\n' + ",\n".join(lines) + "\n}}\n"
        )


if __name__ == "__main__":
    main()
