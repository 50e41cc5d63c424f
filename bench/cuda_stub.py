"""Triton's launches on a machine without a GPU: its own driver and launcher, over cuda_stub.c.

Kernels are compiled for compute capability 9.0 and never run, so tensors may be on the CPU. Install
it before anything asks Triton for its driver, in a process that has no other use for a GPU.
"""

import contextlib
import ctypes
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

_SOURCE = Path(__file__).with_name("cuda_stub.c")
_MOST_BYTES = 2048


class _Record(ctypes.Structure):
    _fields_ = (
        ("function", ctypes.c_uint64),
        ("stream", ctypes.c_uint64),
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("shared", ctypes.c_uint32),
        ("attributes", ctypes.c_uint32),
        ("bytes", ctypes.c_uint32),
        ("parameters", ctypes.c_uint8 * _MOST_BYTES),
    )


class Launched(NamedTuple):
    """What the driver was told. parameters: the arguments' bytes, as a kernel would read them."""

    function: int
    stream: int
    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared: int
    attributes: int
    parameters: bytes


class Stub:
    """The driver that is not there: what it was told, and what it says of itself."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        library.stub_last.restype = ctypes.POINTER(_Record)
        library.stub_launches.restype = ctypes.c_uint64
        self.device, self.stream = 0, 77

    def expect(self, sizes: Sequence[int]) -> None:
        """Tells the bytes of each parameter of what this thread launches next: they are kept."""
        self._library.stub_expect((ctypes.c_uint32 * len(sizes))(*sizes), len(sizes))

    def launches(self) -> int:
        """How many this thread has made."""
        return int(self._library.stub_launches())

    def last(self) -> Launched:
        """This thread's last launch."""
        record = self._library.stub_last().contents
        return Launched(
            record.function,
            record.stream,
            tuple(record.grid),
            tuple(record.block),
            record.shared,
            record.attributes,
            bytes(record.parameters[: record.bytes]),
        )

    def drop_context(self) -> None:
        """Leaves this thread as one that has never called the driver."""
        self._library.stub_drop_context()

    @contextlib.contextmanager
    def on(self, device: int) -> Iterator[None]:
        """Stands for `torch.cuda.device`."""
        before, self.device = self.device, device
        try:
            yield
        finally:
            self.device = before


def install() -> Stub:
    """Builds the stub with the C compiler and makes it Triton's driver for this process."""
    folder = Path(tempfile.mkdtemp(prefix="cuda_stub-"))
    library = folder / "libcuda.so.1"
    options = ["-O2", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", str(library)]
    subprocess.run([os.environ.get("CC", "cc"), *options, str(_SOURCE)], check=True)
    (folder / "libcuda.so").symlink_to(library.name)
    os.environ["TRITON_LIBCUDA_PATH"] = str(folder)
    # By its name Triton then finds what is loaded.
    stub = Stub(ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL))

    import triton
    from triton.backends.nvidia.driver import CudaDriver

    driver: Any = CudaDriver()
    driver.get_device_capability = lambda device=0: (9, 0)
    driver.get_current_device = lambda: stub.device
    driver.get_current_stream = lambda device: stub.stream + device
    triton.runtime.driver.set_active(driver)
    torch.cuda.device = stub.on  # type: ignore[assignment, misc]
    return stub


def parameter_sizes(compiled: Any) -> list[int]:
    """Bytes of each parameter of a kernel that Triton has compiled, from its PTX."""
    entry = compiled.asm["ptx"].partition(".entry")[2].partition(")")[0]
    kinds = [line.split()[1] for line in entry.splitlines() if line.strip().startswith(".param")]
    return [int(kind[2:]) // 8 for kind in kinds]
