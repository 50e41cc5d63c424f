"""Launches without Triton's Python in between, which takes most of the time of a small call.

The first launch of its kind goes Triton's way (`kernel[grid](...)`), which compiles the kernel.
Later ones write the arguments into memory as the kernel reads them and hand them to the function of
the driver that Triton would call: with the same kernel, grid, stream and arguments. `_direct`
decides which kernels are launched so; all others, and whatever the driver refuses, go Triton's way
each time.
"""

import ctypes
import functools
import operator
import re
import struct
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

# The driver's CUlaunchConfig, as `struct` writes it: grid, block, bytes of shared memory; stream,
# attributes and their number.
_CONFIG = "@7IxxxxQQIxxxx"
# Types of numbers that are passed on. Triton compiles for the width of an integer's value: those
# of 64 bits are left to it.
_NUMBERS = {"i32": "i", "fp32": "f"}
# How PTX declares parameters of each.
_PTX = {"Q": "u64", "i": "u32", "f": "f32"}
# Triton compiles for pointers that are multiples of this, and for others.
_ALIGNMENT = 16
_MOST_KNOWN = 4096


class _Memory(NamedTuple):
    """Where a launch is written: a configuration, then the arguments.

    config, arguments: what the driver is given, addresses in block and of pointers.
    """

    block: ctypes.Array[ctypes.c_char]
    pointers: ctypes.Array[ctypes.c_void_p]
    config: ctypes.c_void_p
    arguments: ctypes.c_void_p


class _Direct(NamedTuple):
    """A compiled kernel as the driver takes it.

    compiled: keeps the function loaded.
    block: of the grid's 1, 1; threads, 1, 1; bytes of shared memory.
    codes: of all arguments as in `struct`; extra: null pointers that follow ours.
    free: memory that no launch is using. A launch takes it out and puts it back, so that neither
        threads nor what interrupts one share it.
    """

    compiled: Any
    function: ctypes.c_void_p
    block: tuple[int, ...]
    codes: str
    extra: tuple[int, ...]
    pack_into: Callable[..., None]
    free: list[_Memory]


class _Known(NamedTuple):
    """What is known of the launches that share a dictionary of options.

    options: kept, so that no other dictionary gets its id.
    tensors: how many arguments are tensors, which come first.
    kernels: by device and alignment of the tensors; a text says why it is left to Triton.
    """

    options: Mapping[str, Any]
    tensors: int
    kernels: dict[Any, _Direct | str]


# By id of the options.
_known: dict[int, _Known] = {}


def launch(
    kernel: Any,
    programs: int,
    arguments: tuple[Any, ...],
    options: Mapping[str, Any],
    device: torch.device,
) -> None:
    """Launches a Triton kernel on the current stream of a device, and does not wait.

    Args:
        kernel: a function under triton.jit.
        programs: of the grid, which has one dimension.
        arguments: by position, tensors on the device, then numbers.
        options: constants and compiler options by name. The dictionary itself stands for the
            kernel and the dtypes of the tensors: it is not changed, and is that of no other ones.
        device: where the tensors are; the CPU under Triton's interpreter.
    """
    if device.type == "cuda":
        driver, index = _triton().runtime.driver.active, device.index
        if driver.get_current_device() != index:
            # Triton launches on the current device.
            with torch.cuda.device(index):
                _launch(driver, kernel, programs, arguments, options, index)
        else:
            _launch(driver, kernel, programs, arguments, options, index)
    else:
        kernel[(programs,)](*arguments, **options)


def left_to_triton() -> list[str]:
    """Why kernels that were launched here are left to Triton; empty if none is."""
    kernels = [kernel for known in list(_known.values()) for kernel in list(known.kernels.values())]
    return sorted({kernel for kernel in kernels if isinstance(kernel, str)})


def _launch(
    driver: Any,
    kernel: Any,
    programs: int,
    arguments: tuple[Any, ...],
    options: Mapping[str, Any],
    index: int,
) -> None:
    if _is_watched(kernel):
        kernel[(programs,)](*arguments, **options)
        return
    _, tensors, kernels = _known.get(id(options)) or _remember(arguments, options)
    pointers = list(map(Tensor.data_ptr, arguments[:tensors]))
    key: Any = index
    if functools.reduce(operator.or_, pointers, 0) % _ALIGNMENT:
        key = index, *[pointer % _ALIGNMENT == 0 for pointer in pointers]
    direct = kernels.get(key)
    if isinstance(direct, _Direct):
        stream = driver.get_current_stream(index)
        if _run(direct, programs, stream, pointers, arguments[tensors:]):
            return
    compiled = kernel[(programs,)](*arguments, **options)
    if direct is None:
        kernels[key] = _direct(kernel, compiled, len(arguments))


def _run(
    direct: _Direct, programs: int, stream: int, pointers: list[int], numbers: tuple[float, ...]
) -> bool:
    """Whether the driver has taken the launch."""
    _, function, block, _, extra, pack_into, free = direct
    try:
        memory = free.pop()
    except IndexError:
        memory = _new_memory(direct)
    try:
        pack_into(memory[0], 0, programs, *block, stream, 0, 0, *pointers, *numbers, *extra)
    except struct.error:
        # An integer of more than 32 bits, for which Triton has another kernel.
        return False
    refused = _driver_launch()(memory[2], function, memory[3], None)
    free.append(memory)
    # A thread that has no context yet gets one from Triton, which also tells of other errors.
    return not refused


def _remember(arguments: tuple[Any, ...], options: Mapping[str, Any]) -> _Known:
    if len(_known) >= _MOST_KNOWN:
        _known.clear()
    tensors = sum(isinstance(x, Tensor) for x in arguments)
    return _known.setdefault(id(options), _Known(options, tensors, {}))


def _is_watched(kernel: Any) -> bool:
    """Whether somebody wants Triton to tell of launches, or to compile other code."""
    knobs = _triton().knobs
    runtime = knobs.runtime
    enter, leave = runtime.launch_enter_hook, runtime.launch_exit_hook
    return bool(
        # A chain of hooks, a hook or none.
        (enter is not None and getattr(enter, "calls", True))
        or (leave is not None and getattr(leave, "calls", True))
        or kernel.pre_run_hooks
        or runtime.debug
        or getattr(runtime, "add_stages_inspection_hook", None)
        or getattr(knobs.compilation, "instrumentation_mode", "")
    )


def _direct(kernel: Any, compiled: Any, count: int) -> _Direct | str:
    """A compiled kernel of so many arguments as the driver takes it, or why Triton launches it.

    Holds for Triton 3.5 to 3.8. Where one of its internals is missing or other than in these, that
    is the reason.
    """
    try:
        if against := _against(kernel, compiled, count):
            return against
        types = list(compiled.src.signature.values())[:count]
        codes = "".join("Q" if kind[0] == "*" else _NUMBERS[kind] for kind in types)
        entry = re.search(r"\.entry\s+(\w+)\((.*?)\)", compiled.asm["ptx"], re.DOTALL)
        if entry is None or entry[1] != compiled.name:
            return "its PTX has no such entry"
        taken = re.findall(r"\.param\s+\.(\w+)", entry[2])
        # Behind ours come pointers to memory of Triton's own, of which the kernel needs none.
        extra = (0,) * (len(taken) - count)
        codes += "Q" * len(extra)
        if taken != [_PTX[code] for code in codes]:
            return f"its parameters are {', '.join(taken)}"
        _driver_launch()
        block = 1, 1, 32 * compiled.metadata.num_warps, 1, 1, compiled.metadata.shared
        function = ctypes.c_void_p(compiled.function)
        pack_into = struct.Struct(_CONFIG + codes).pack_into
        return _Direct(compiled, function, block, codes, extra, pack_into, [])
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"


def _against(kernel: Any, compiled: Any, count: int) -> str:
    """What a launch needs beyond a grid, a block, a stream and `count` arguments; "" if nothing."""
    metadata = compiled.metadata
    plain = {
        "num_ctas": 1,
        "launch_cooperative_grid": False,
        "launch_pdl": False,
        "global_scratch_size": 0,
        "profile_scratch_size": 0,
    }
    if metadata.target.backend != "cuda":
        return f"it is for {metadata.target.backend}"
    if needed := [name for name, value in plain.items() if getattr(metadata, name) != value]:
        return f"it needs {', '.join(needed)}"
    for i, (name, kind) in enumerate(compiled.src.signature.items()):
        pointer = kind[0] == "*"
        if (kind == "constexpr") != (i >= count) or not (i >= count or pointer or kind in _NUMBERS):
            return f"{name} is {kind}"
        # Otherwise it is compiled for 1 and for multiples of 16.
        if kind == "i32" and not kernel.params[i].do_not_specialize:
            return f"it is compiled for the value of {name}"
    return ""


def _new_memory(direct: _Direct) -> _Memory:
    block = ctypes.create_string_buffer(struct.calcsize(_CONFIG + direct.codes))
    begin = ctypes.addressof(block)
    places = [
        begin + struct.calcsize(_CONFIG + direct.codes[: i + 1]) - struct.calcsize(code)
        for i, code in enumerate(direct.codes)
    ]
    pointers = (ctypes.c_void_p * len(places))(*places)
    address = ctypes.addressof(pointers)
    return _Memory(block, pointers, ctypes.c_void_p(begin), ctypes.c_void_p(address))


@functools.cache
def _driver_launch() -> Any:
    """The driver's function, of the library that torch has loaded.

    It lets other threads run meanwhile, since it waits where the GPU is far behind. Its arguments
    are values of ctypes already, so it need not be told their types.
    """
    return ctypes.CDLL("libcuda.so.1").cuLaunchKernelEx


@functools.cache
def _triton() -> Any:
    import triton

    return triton
