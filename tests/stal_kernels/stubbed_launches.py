"""Launches over a driver that runs nothing; test_direct.py runs this file in a process of its own.

Everything above the driver is real: Triton compiles the kernels and its own launcher launches them.
Both ways are compared in what they tell the driver.
"""

import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from stal_kernels.backends import Inputs
from stal_kernels.backends.triton import direct, launches
from stal_kernels.testing import Case, example

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
import cuda_stub

STUB = cuda_stub.install()
DEVICE = torch.device("cuda", 0)
SMALL = Case(batch=2, heads=2, seqlen_q=40, seqlen_k=9, head_dim=16, prompts=3)
CASES = {
    "dense": SMALL,
    "projection": replace(SMALL, layout="projection"),
    "one-prompt": replace(SMALL, batch=1, prompts=1, heads=1),
    "region": replace(SMALL, region="blobs"),
    "plan": replace(SMALL, region="boxes", planned=True),
    "ragged-plan": replace(SMALL, batch=4, ragged=True, region="blobs", planned=True),
}
FORMS = [
    *((name, torch.float16, False) for name in CASES),
    ("dense", torch.bfloat16, False),
    ("dense", torch.float32, False),
    ("dense", torch.float16, True),
    ("ragged-plan", torch.float16, True),
]


def shifted(x, elements=1):
    """The same values and strides, `elements` further on in memory."""
    room = torch.empty(x.numel() * 2 + elements, dtype=x.dtype)
    made = room[elements:].as_strided(x.size(), x.contiguous().stride())
    return made.copy_(x)


def made(case, dtype, misaligned=False):
    """Every launch of a call with gradients, by name."""
    e = example(case, dtype)
    tensors = [x.detach() for x in (e.q, e.k, e.v, e.weight)]
    if misaligned:
        tensors = [shifted(x) for x in tensors]
    inputs = Inputs(*tensors, e.prompt_ids, e.offsets, e.region, e.key_lengths, e.plan, 0.25)
    q, k, v, weight = tensors
    stats = torch.zeros(3, q.shape[1], *weight.shape).unbind()
    capability = (9, 0)
    sums = launches.prompt_launches(
        inputs, e.dout, stats, torch.empty_like(k), torch.empty_like(v), capability
    )
    return {
        "forward": launches.forward_launch(inputs, torch.empty_like(q), capability),
        "pixels": launches.pixel_launch(inputs, e.dout, torch.empty_like(q), stats, capability),
        **dict(zip(("prompts", "sum dk", "sum dv"), sums, strict=False)),
    }


def tensors_of(launch):
    return [x for x in launch.arguments if isinstance(x, torch.Tensor)]


def addresses(launch):
    """As a kernel reads them."""
    return b"".join(x.data_ptr().to_bytes(8, "little") for x in tensors_of(launch))


def by_triton(launch):
    """Triton's own launch: what it compiled, and what the driver was told."""
    grid = (launch.programs,)
    compiled = launch.kernel[grid](*launch.arguments, **launch.options)
    STUB.expect(cuda_stub.parameter_sizes(compiled))
    assert launch.kernel[grid](*launch.arguments, **launch.options) is compiled
    return compiled, STUB.last()


@pytest.fixture
def through_triton(monkeypatch):
    """Counts the launches that go Triton's way."""
    import triton

    calls = []
    original = triton.JITFunction.run

    def run(self, *arguments, **options):
        calls.append(self)
        return original(self, *arguments, **options)

    monkeypatch.setattr(triton.JITFunction, "run", run)
    return calls


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    monkeypatch.setattr(direct, "_known", {})


def run(launch, device=DEVICE):
    launches.run(launch, device)
    return STUB.last()


@pytest.mark.parametrize(("name", "dtype", "misaligned"), FORMS, ids=str)
def test_driver_is_told_what_triton_tells_it(name, dtype, misaligned, through_triton):
    every = made(CASES[name], dtype, misaligned)
    assert {"forward", "pixels", "prompts"} <= every.keys()
    assert {"sum dk", "sum dv"} <= every.keys() or not CASES[name].ragged
    for launch in every.values():
        compiled, told = by_triton(launch)
        assert compiled.name == launch.kernel.__name__
        assert len(told.parameters) > 8 * len(launch.arguments) // 2
        run(launch)  # Triton's way
        through_triton.clear()
        STUB.expect(cuda_stub.parameter_sizes(compiled))
        before = STUB.launches()
        assert run(launch) == told
        assert STUB.launches() == before + 1
        assert not through_triton


def test_misaligned_tensor_never_meets_a_kernel_for_aligned_ones():
    launch = made(CASES["dense"], torch.float16)["forward"]
    for _ in range(2):
        aligned = run(launch)
    for position in range(len(tensors_of(launch))):
        arguments = list(launch.arguments)
        arguments[position] = shifted(arguments[position])
        moved = launch._replace(arguments=tuple(arguments))
        assert moved.arguments[position].data_ptr() % 16
        functions = {run(moved).function for _ in range(3)}
        compiled, _ = by_triton(moved)
        assert functions == {compiled.function}
        assert aligned.function not in functions
        assert run(launch).function == aligned.function


def test_tensors_of_other_calls_are_not_remembered():
    first, second = (made(CASES["dense"], torch.float16)["forward"] for _ in range(2))
    assert first.options is second.options
    compiled, told = by_triton(second)
    for _ in range(2):
        run(first)
    STUB.expect(cuda_stub.parameter_sizes(compiled))
    assert run(second) == told
    assert told.parameters.startswith(addresses(second))


def test_stream_is_the_current_one_of_the_device(monkeypatch):
    launch = made(CASES["dense"], torch.float16)["forward"]
    for stream in (77, 77, 5, 9):
        monkeypatch.setattr(STUB, "stream", stream)
        assert run(launch).stream == stream


def test_each_device_has_its_own_kernel(monkeypatch):
    launch = made(CASES["dense"], torch.float16)["forward"]
    current = []
    get_stream = direct._triton().runtime.driver.active.get_current_stream
    monkeypatch.setattr(
        direct._triton().runtime.driver.active,
        "get_current_stream",
        lambda index: (current.append((STUB.device, index)), get_stream(index))[1],
    )
    told = {i: [run(launch, torch.device("cuda", i)) for _ in range(3)] for i in (0, 1)}
    assert {x.function for x in told[0]}.isdisjoint(x.function for x in told[1])
    assert [x.stream for x in told[1]] == [78] * 3
    assert current == [(0, 0)] * 3 + [(1, 1)] * 3
    assert STUB.device == 0


def test_hooks_see_every_launch(through_triton):
    from triton import knobs

    launch = made(CASES["dense"], torch.float16)["forward"]
    for _ in range(2):
        run(launch)
    seen = []

    def hook(metadata):
        seen.append(metadata.get()["name"])

    for chain in (knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook):
        through_triton.clear()
        chain.add(hook)
        for _ in range(3):
            run(launch)
        chain.remove(hook)
        assert seen == ["forward"] * 3
        assert len(through_triton) == 3
        seen.clear()
    # As programs set one before there were chains.
    kept, knobs.runtime.launch_enter_hook = knobs.runtime.launch_enter_hook, hook
    run(launch)
    knobs.runtime.launch_enter_hook = kept
    assert seen == ["forward"]
    launch.kernel.pre_run_hooks.append(lambda *_, **options: seen.append(options["BLOCK_Q"]))
    run(launch)
    launch.kernel.pre_run_hooks.clear()
    assert seen == ["forward", launch.options["BLOCK_Q"]]
    through_triton.clear()
    run(launch)
    assert not through_triton


@pytest.mark.parametrize(
    ("owner", "name", "value"),
    [
        ("runtime", "debug", True),
        ("compilation", "instrumentation_mode", "consan"),
        ("runtime", "add_stages_inspection_hook", lambda *_: ("", "")),
    ],
)
def test_what_makes_triton_compile_other_code_is_left_to_it(monkeypatch, owner, name, value):
    launch = made(CASES["dense"], torch.float16)["forward"]
    settings = getattr(direct._triton().knobs, owner)
    if not hasattr(settings, name):
        pytest.skip("this Triton has no such setting")
    kernel = SimpleNamespace(pre_run_hooks=[])
    assert not direct._is_watched(launch.kernel)
    assert not direct._is_watched(kernel)
    monkeypatch.setattr(settings, name, value)
    assert direct._is_watched(kernel)


def test_threads_do_not_share_what_they_launch():
    every = [made(CASES["dense"], torch.float16)["forward"] for _ in range(8)]
    compiled, _ = by_triton(every[0])
    sizes, wrong = cuda_stub.parameter_sizes(compiled), []
    run(every[0])
    barrier = threading.Barrier(len(every))

    def many(launch):
        expected = addresses(launch)
        barrier.wait()
        for _ in range(300):
            STUB.expect(sizes)
            if not run(launch).parameters.startswith(expected):
                wrong.append(launch)

    threads = [threading.Thread(target=many, args=(launch,)) for launch in every]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong
    (known,) = direct._known.values()
    (kernel,) = known.kernels.values()
    assert 1 <= len(kernel.free) <= len(every)


def test_thread_without_a_context_gets_one(through_triton):
    launch = made(CASES["dense"], torch.float16)["forward"]
    for _ in range(2):
        run(launch)
    STUB.drop_context()
    through_triton.clear()
    before = STUB.launches()
    for _ in range(3):
        run(launch)
    assert len(through_triton) == 1
    assert STUB.launches() == before + 3


def test_number_that_triton_compiles_for_is_left_to_it(through_triton):
    launch = made(CASES["dense"], torch.float16)["forward"]
    for _ in range(2):
        run(launch)
    names = launch.kernel.arg_names
    for name, value, same in (
        ("stride_qb", 2**31, False),  # 64 bits, another kernel
        ("scale", 1e39, True),  # infinite in float32, the same kernel
    ):
        arguments = list(launch.arguments)
        arguments[names.index(name)] = value
        other = launch._replace(arguments=tuple(arguments))
        compiled, told = by_triton(other)
        through_triton.clear()
        for _ in range(2):
            STUB.expect(cuda_stub.parameter_sizes(compiled))
            assert run(other) == told
        assert len(through_triton) == (0 if same else 2)
        assert (run(launch).function == told.function) is same


def test_first_kernel_of_wide_numbers_is_left_to_triton(through_triton):
    launch = made(CASES["dense"], torch.float16)["forward"]
    arguments = list(launch.arguments)
    arguments[launch.kernel.arg_names.index("stride_qb")] = 2**31
    wide = launch._replace(arguments=tuple(arguments))
    for _ in range(3):
        run(wide)
    assert len(through_triton) == 3
    (known,) = direct._known.values()
    assert list(known.kernels.values()) == direct.left_to_triton() == ["stride_qb is i64"]
    assert known.options is launch.options


def test_launch_with_attributes_is_left_to_triton(through_triton):
    launch = made(CASES["dense"], torch.float16)["forward"]
    launch = launch._replace(options={**launch.options, "launch_pdl": True})
    for _ in range(3):
        assert run(launch).attributes == 1
    assert len(through_triton) == 3
    (known,) = direct._known.values()
    assert list(known.kernels.values()) == ["it needs launch_pdl"]


class Changed:
    """A compiled kernel with attributes that are other ones or, None, missing."""

    def __init__(self, compiled, **attributes):
        self._compiled, self._attributes = compiled, attributes

    def __getattr__(self, name):
        value = self._attributes.get(name, getattr(self._compiled, name))
        if value is None:
            raise AttributeError(f"no {name}")
        return value


def test_triton_with_other_internals_is_left_its_launches():
    launch = made(CASES["dense"], torch.float16)["forward"]
    compiled, _ = by_triton(launch)
    count = len(launch.arguments)
    assert isinstance(direct._direct(launch.kernel, compiled, count), direct._Direct)
    ptx = compiled.asm["ptx"]
    for attributes, reason in (
        ({"asm": {}}, "KeyError: 'ptx'"),
        ({"function": None}, "AttributeError: no function"),
        ({"metadata": None}, "AttributeError: no metadata"),
        ({"asm": {"ptx": ptx.replace(".param .f32", ".param .u32", 1)}}, "its parameters are u64"),
        ({"asm": {"ptx": ptx.replace(".param .u32", ".param .u64", 1)}}, "its parameters are u64"),
        ({"name": "other"}, "its PTX has no such entry"),
    ):
        found = direct._direct(launch.kernel, Changed(compiled, **attributes), count)
        assert isinstance(found, str)
        assert found.startswith(reason)
    assert direct._direct(launch.kernel, compiled, count - 1) == "stride_on is i32"
    for param in launch.kernel.params:
        if param.name == "tiles":
            free = SimpleNamespace(name="tiles", do_not_specialize=False)
            params = [free if p is param else p for p in launch.kernel.params]
            kernel = SimpleNamespace(params=params)
    assert direct._direct(kernel, compiled, count) == "it is compiled for the value of tiles"


def test_what_is_known_is_bounded(monkeypatch):
    monkeypatch.setattr(direct, "_MOST_KNOWN", 3)
    launch = made(CASES["dense"], torch.float16)["forward"]
    for _ in range(10):
        run(launch._replace(options=dict(launch.options)))
        assert len(direct._known) <= 3
