"""Microseconds from the call in Python to the launch of the CUDA kernel, without a GPU.

    python bench/cuda_host.py [--output FILE.json]

The kernel and the machine are those of csrc/test/cuda/recorder.cpp, whose launch does nothing, and
tensors lie on the CPU. Not in these figures: torch's current stream (a look-up), cudaGetDevice,
three attributes of the device, cudaLaunchKernel, and an allocation by torch's CUDA allocator
instead of the CPU's. "torch.library" is an operator of the same schema, defined as ours is, whose
implementation is `empty_like(q)`: what torch itself takes of a call. Times are those that the
thread has a core; differences are of the 20% quantile, which other programs disturb least.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from timing import Table, cpu_details, interleave

from stal_kernels import backends, blended_attention, blended_attention_ragged, library
from stal_kernels.backends import cuda
from stal_kernels.checks import check_dense
from stal_kernels.testing import Case, example

ROOT = Path(__file__).resolve().parents[1]
# Take the place of the kernel and the machine.
RECORDER = ("recorder",)


def build(sources: Sequence[str], folder: Path, compiler: str = "c++") -> Any:
    """A library of csrc/cuda/binding.cpp and `sources` in csrc/test/cuda, which need no CUDA."""
    import tvm_ffi

    installed, target = Path(tvm_ffi.__file__).parent, folder / "library.so"
    flags = ["-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-Wno-unknown-pragmas"]
    flags += [f"-I{ROOT / 'csrc'}", "-isystem", str(installed / "include")]

    def compile_file(source: Path) -> Path:
        output = folder / f"{source.stem}.o"
        subprocess.run([compiler, *flags, "-c", source, "-o", output], check=True)
        return output

    names = ["cuda/binding.cpp", *(f"test/cuda/{name}.cpp" for name in sources)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_file, [ROOT / "csrc" / name for name in names]))
    link = [f"-L{installed / 'lib'}", "-ltvm_ffi", f"-Wl,-rpath,{installed / 'lib'}"]
    subprocess.run([compiler, "-shared", *objects, *link, "-o", target], check=True)
    return tvm_ffi.load_module(target)


@contextmanager
def on_the_cpu(library: Any, stream: int = 0) -> Iterator[None]:
    """Backend cuda runs on such a library, and takes tensors of the CPU for those of a GPU."""
    against = cuda.why_not
    with mock.patch.multiple(
        cuda,
        _library=lambda: library,
        _stream=lambda device: stream,
        _capability=lambda device: (9, 0),
        missing=lambda level: "",
        why_not=lambda device, *call: against(torch.device("cuda", 0), *call),
    ):
        yield


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--output", type=Path, help="JSON file; Markdown goes beside it")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        recorder = build(RECORDER, Path(folder))
    recorder.keeps(False)
    # On a GPU values are checked only when asked for; here tensors are the CPU's.
    with on_the_cpu(recorder), mock.patch.object(cuda, "CHECKS_VALUES", True):
        times = interleave(calls(), rounds=arguments.rounds, sample_s=4e-3, clock=time.thread_time)
    command = "python bench/cuda_host.py"
    report = Table({"call": 34, "us median (p20-p80)": 24}, command=command)
    for name, t in times.items():
        text = f"{t.median * 1e6:.1f} ({t.p20 * 1e6:.1f}-{t.p80 * 1e6:.1f})"
        report.add({"call": name, "us median (p20-p80)": text}, seconds=t)
    for kind in ("", ", gradient recorded"):
        own = times[f"ours{kind}"].p20 - times[f"torch.library{kind}"].p20
        name = f"ours beside torch.library{kind}"
        report.add({"call": name, "us median (p20-p80)": f"{own * 1e6:.1f}"})
    if arguments.output:
        report.merge(arguments.output, ("call",), lambda row: True, **cpu_details())
    return 0


def calls() -> dict[str, Callable[[], object]]:
    """What is timed, by name."""
    e = example(Case(seqlen_q=64, seqlen_k=77, head_dim=40, prompts=3), torch.bfloat16)
    q, k, v, weight = (x.detach() for x in e.floats())
    region = torch.ones_like(weight, dtype=torch.bool)
    table = k[0], v[0], weight[0]
    prompt_ids, offsets = (torch.tensor(x, dtype=torch.int32) for x in ([0, 1, 2], [0, 3]))
    inputs = backends.Inputs(q, k, v, weight, None, None, None, None, None, 1.0)
    out, weight_grad = torch.empty_like(q), weight.clone().requires_grad_()
    op = _empty_operator()
    rest = None, None, None, None, None, 1.0, False, "cuda"
    return {
        "torch.library": lambda: op(q, k, v, weight, *rest),
        "ours": lambda: blended_attention(q, k, v, weight, backend="cuda"),
        "  checks": lambda: check_dense(q, k, v, weight, None, None, None, "cuda"),
        "  choice": lambda: backends.choose(inputs, "cuda"),
        "  binding": lambda: cuda.forward(inputs, "", out),
        "ours, region": lambda: blended_attention(q, k, v, weight, region=region, backend="cuda"),
        "ours, ragged": lambda: blended_attention_ragged(
            q, *table, prompt_ids, offsets, backend="cuda"
        ),
        "torch.library, gradient recorded": lambda: op(q, k, v, weight_grad, *rest),
        "ours, gradient recorded": lambda: blended_attention(q, k, v, weight_grad, backend="cuda"),
    }


def _empty_operator() -> Callable[..., torch.Tensor]:
    """An operator that does nothing, of our schema, with autograd by torch.library."""
    schema = f"nothing({library._ARGUMENTS}, bool validate, str backend) -> Tensor"
    _empty.define(schema)
    _empty.impl("nothing", lambda q, *_: torch.empty_like(q), "CompositeExplicitAutograd")
    op = torch.ops.stal_bench.nothing.default
    torch.library.register_autograd(op, lambda ctx, *_: None, lib=_empty)
    call: Callable[..., torch.Tensor] = op
    return call


_empty = torch.library.Library("stal_bench", "DEF")

if __name__ == "__main__":
    sys.exit(main())
