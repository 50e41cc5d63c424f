"""The backend cuda up to its launch, which a recorder takes the place of: no GPU is needed."""

import ctypes
import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from stal_kernels import blended_attention, blended_attention_ragged, plan, why_not
from stal_kernels.backends import choice, cuda, triton
from stal_kernels.testing import Case, example

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results"
CPU, GPU = 1, 2  # kDLCPU, kDLCUDA
MACHINE = {
    "device_type": GPU,
    "driver": 13000,
    "toolkit": 13000,
    "capability": 90,
    "devices": 2,
    "current": 0,
    "refusal": "",
}

pytestmark = pytest.mark.xdist_group("cuda")  # one recorder for all


class DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class DLManagedTensor(ctypes.Structure):
    _fields_ = (
        ("tensor", DLTensor),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    )


CODES = {"int": 0, "float": 2, "bfloat": 4, "bool": 6}


class Fake:
    """A tensor of any address, strides and device, by DLPack; nothing lies there."""

    def __init__(self, shape, data, dtype="bfloat16", strides=None, device=(GPU, 0)):
        kind = dtype.rstrip("0123456789")
        if strides is None:
            strides = torch.empty(shape, device="meta").stride()
        self.shape = (ctypes.c_int64 * len(shape))(*shape)
        self.strides = (ctypes.c_int64 * len(shape))(*strides)
        bits = int(dtype.removeprefix(kind) or 8)
        head = (data, *device, len(shape), CODES[kind], bits, 1)
        self.managed = DLManagedTensor(DLTensor(*head, self.shape, self.strides, 0), None, None)

    def __dlpack__(self, **_):
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = (
            ctypes.py_object,
            (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p),
        )
        return new(ctypes.addressof(self.managed), b"dltensor", None)

    def __dlpack_device__(self):
        return self.managed.tensor.device_type, self.managed.tensor.device_id


@pytest.fixture(scope="module")
def cuda_host():
    """bench/cuda_host.py."""
    if not RESULTS.exists():
        pytest.skip("needs a checkout")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "bench"))
        import cuda_host

        yield cuda_host


@pytest.fixture(scope="module")
def library(cuda_host, tmp_path_factory):
    """csrc/cuda/binding.cpp with a recorder in the place of the kernel and the machine."""
    if not shutil.which("c++"):
        pytest.skip("needs a C++ compiler")
    return cuda_host.build(cuda_host.RECORDER, tmp_path_factory.mktemp("recorder"))


@pytest.fixture
def recorder(library):
    """The recorder on a machine with two Hopper GPUs, of which the first is current."""
    library.configure(*MACHINE.values())
    return library


def on(recorder, **changed):
    """The machine is another one."""
    recorder.configure(*(MACHINE | changed).values())


# ---- through the binding, with tensors that exist nowhere ----


def dense(**changed):
    """The arguments of a dense call in the order of the binding, a name for each."""
    batch, heads, seqlen_q, head_dim, prompts, seqlen_k = 2, 3, 100, 64, 4, 77
    rows = (batch, heads, seqlen_q, head_dim)
    keys = (batch, prompts, heads, seqlen_k, head_dim)
    return {
        "stream": 0x7F00,
        "scale": 0.125,
        "q": Fake(rows, 0x1000, strides=(seqlen_q * 192, 64, 192, 1)),  # a projection's
        "k": Fake(keys, 0x2000),
        "v": Fake(keys, 0x3000),
        "weight": Fake((batch, prompts, seqlen_q), 0x4004, "float32", strides=(1, 2, 8)),
        "prompt_ids": None,
        "offsets": None,
        "region": None,
        "key_lengths": None,
        "order": None,
        "tiles": None,
        "planned": None,
        "out": Fake(rows, 0x5000),
    } | changed


def ragged(**changed):
    """As `dense`, of 5 entries and a table of 3 rows."""
    keys = (3, 3, 77, 64)
    return (
        dense()
        | {
            "k": Fake(keys, 0x2000),
            "v": Fake(keys, 0x3000),
            "weight": Fake((5, 100), 0x4000, "float32"),
            "prompt_ids": Fake((5,), 0x6000, "int32"),
            "offsets": Fake((3,), 0x6100, "int32"),
            "key_lengths": Fake((3,), 0x6200, "int32"),
        }
        | changed
    )


def planned(**changed):
    """As `dense`, with regions and a plan."""
    return (
        dense()
        | {
            "region": Fake((2, 4, 100), 0x7001, "bool", strides=(1, 200, 2)),
            "order": Fake((2, 100), 0x8004, "int32", strides=(128, 1)),
            "tiles": Fake((2, 4), 0x9000, "int64"),
            "planned": Fake((2, 4, 100), 0xA000, "bool"),
        }
        | changed
    )


def launches(recorder, arguments):
    import tvm_ffi

    return recorder.forward(
        *(tvm_ffi.from_dlpack(x) if isinstance(x, Fake) else x for x in arguments.values())
    )


def forward(recorder, arguments):
    """What arrives at the launch."""
    assert launches(recorder, arguments)
    return dict(recorder.call())


def strides(call, name):
    return [call[f"{name}.{dimension}"] for dimension in ("batch", "prompt", "head", "row")]


def test_dense_arguments_arrive_as_given(recorder):
    call = forward(recorder, dense())
    sizes = {"batch": 2, "heads": 3, "seqlen_q": 100, "head_dim": 64, "prompts": 4, "seqlen_k": 77}
    assert {name: call[name] for name in sizes} == sizes
    assert (call["stream"], call["scale"], call["ragged"]) == (0x7F00, 128, 0)  # scale * 1024
    addresses = {"q": 0x1000, "k": 0x2000, "v": 0x3000, "weight": 0x4004, "out": 0x5000}
    assert {name: call[name] for name in addresses} == addresses
    assert strides(call, "q") == [19200, 0, 64, 192]
    assert strides(call, "k") == [4 * 3 * 77 * 64, 3 * 77 * 64, 77 * 64, 64]
    assert strides(call, "v") == strides(call, "k")
    assert strides(call, "weight") == [1, 2, 0, 8]
    assert strides(call, "out") == [3 * 100 * 64, 0, 100 * 64, 64]
    absent = ("region", "order", "tiles", "prompt_ids", "offsets", "key_lengths")
    assert not any(call[name] for name in absent)


@pytest.mark.parametrize(("dtype", "number"), [("bfloat16", 1), ("float16", 2)])
def test_dtype_arrives(dtype, number, recorder):
    names = ("q", "k", "v", "out")
    shapes = {name: list(dense()[name].shape) for name in names}
    tensors = {name: Fake(shape, 0x1000, dtype) for name, shape in shapes.items()}
    assert forward(recorder, dense(**tensors))["dtype"] == number


def test_ragged_arguments_arrive_as_given(recorder):
    call = forward(recorder, ragged())
    assert (call["ragged"], call["prompts"], call["entries"]) == (1, 3, 5)
    assert strides(call, "k") == [0, 3 * 77 * 64, 77 * 64, 64]
    assert strides(call, "weight") == [0, 100, 0, 1]
    assert (call["prompt_ids"], call["offsets"], call["key_lengths"]) == (0x6000, 0x6100, 0x6200)


def test_regions_and_plan_arrive_as_given(recorder):
    call = forward(recorder, planned())
    assert (call["region"], call["order"], call["tiles"]) == (0x7001, 0x8004, 0x9000)
    assert strides(call, "region") == [1, 200, 0, 2]
    assert strides(call, "order") == [128, 0, 0, 1]


def test_strides_of_single_elements_do_not_count(recorder):
    keys = (1, 1, 1, 1, 64)
    one = {name: Fake(keys, 0x2000, strides=(3, 5, 7, 9, 1)) for name in ("k", "v")}
    rows = {name: Fake((1, 1, 1, 64), 0x1000, strides=(3, 5, 7, 1)) for name in ("q", "out")}
    weight = Fake((1, 1, 1), 0x4000, "float32", strides=(3, 5, 7))
    call = forward(recorder, dense(**one, **rows, weight=weight))
    for name in ("q", "k", "v", "out", "weight"):
        assert strides(call, name) == [0, 0, 0, 0]


def test_expanded_keys_arrive_with_stride_0(recorder):
    keys = (2, 4, 3, 77, 64)
    call = forward(recorder, dense(k=Fake(keys, 0x2000, strides=(0, 77 * 64, 0, 64, 1))))
    assert strides(call, "k") == [0, 77 * 64, 0, 64]


def test_kernel_runs_on_the_tensors_device_and_the_current_one_is_restored(recorder):
    everywhere = {
        name: Fake(list(x.shape), x.managed.tensor.data, dtype, device=(GPU, 1))
        for name, x in dense().items()
        if isinstance(x, Fake) and (dtype := "float32" if name == "weight" else "bfloat16")
    }
    call = forward(recorder, dense(**everywhere))
    assert (call["device"], call["multiprocessors"]) == (1, 133)
    assert recorder.current_device() == 0
    on(recorder, refusal="invalid resource handle")
    with pytest.raises(RuntimeError, match="not launched on cuda:1"):
        forward(recorder, dense(**everywhere))
    assert recorder.current_device() == 0


ROWS, KEYS = (2, 3, 100, 64), (2, 4, 3, 77, 64)
HUGE = 2**31
TOO_LARGE = r"batch \* heads \* ceil\(seqlen_q / 64\) must be below"
REFUSED = {
    "wrong-device": (
        dense(k=Fake(KEYS, 0x2000, device=(GPU, 1))),
        "k must be on cuda:0, got cuda:1",
    ),
    "cpu": (dense(q=Fake(ROWS, 0x1000, device=(CPU, 0))), "q must be on a CUDA device, got cpu:0"),
    "weight-on-cpu": (
        dense(weight=Fake((2, 4, 100), 0x4000, "float32", device=(CPU, 0))),
        "weight must be on cuda:0, got cpu:0",
    ),
    "offsets-on-cpu": (
        ragged(offsets=Fake((3,), 0x6100, "int32", device=(CPU, 0))),
        "offsets must be on cuda:0, got cpu:0",
    ),
    "no-such-device": (
        dense(q=Fake(ROWS, 0x1000, device=(GPU, 2))),
        "q must be on a GPU of this machine, got cuda:2",
    ),
    "dtype": (dense(v=Fake(KEYS, 0x3000, "float16")), "v must be bfloat16, got float16"),
    "float32": (
        dense(**{n: Fake(ROWS if n in ("q", "out") else KEYS, 0x1000, "float32") for n in "qkv"})
        | {"out": Fake(ROWS, 0x5000, "float32")},
        "q must be float16 or bfloat16, got float32",
    ),
    "weight-dtype": (
        dense(weight=Fake((2, 4, 100), 0x4000, "bfloat16")),
        "weight must be float32, got bfloat16",
    ),
    "head_dim": (
        dense(
            q=Fake((2, 3, 100, 72), 0x1000),
            out=Fake((2, 3, 100, 72), 0x5000),
            k=Fake((2, 4, 3, 77, 72), 0x2000),
            v=Fake((2, 4, 3, 77, 72), 0x3000),
        ),
        "q must have a head_dim of 40, 64, 80, 128 or 160, got 72",
    ),
    "seqlen_k": (
        dense(k=Fake((2, 4, 3, 81, 64), 0x2000), v=Fake((2, 4, 3, 81, 64), 0x3000)),
        "k must have a seqlen_k of at most 80, got 81",
    ),
    "shape": (dense(v=Fake((2, 4, 3, 76, 64), 0x3000)), r"v must have shape \(2, 4, 3, 77, 64\)"),
    "address": (dense(q=Fake(ROWS, 0x1008)), "q must begin at a multiple of 16 bytes, got 0x1008"),
    "address-of-k": (dense(k=Fake(KEYS, 0x2002)), "k must begin at a multiple of 16 bytes"),
    "address-of-v": (dense(v=Fake(KEYS, 0x3002)), "v must begin at a multiple of 16 bytes"),
    "address-of-out": (dense(out=Fake(ROWS, 0x5002)), "out must begin at a multiple of 16 bytes"),
    "address-of-weight": (
        dense(weight=Fake((2, 4, 100), 0x4002, "float32")),
        "weight must begin at a multiple of 4 bytes, got 0x4002",
    ),
    "address-of-ids": (
        ragged(prompt_ids=Fake((5,), 0x6001, "int32")),
        "prompt_ids must begin at a multiple of 4 bytes, got 0x6001",
    ),
    "stride": (
        dense(k=Fake(KEYS, 0x2000, strides=(4 * 3 * 77 * 68, 3 * 77 * 68, 77 * 68, 68, 1))),
        "k must have strides of multiples of 16 bytes, got 68 elements of 2 bytes",
    ),
    "last-dimension": (
        dense(q=Fake(ROWS, 0x1000, strides=(19200, 64, 1, 300))),
        "q must have a contiguous last dimension, got stride 300",
    ),
    "negative-stride": (
        dense(q=Fake(ROWS, 0x1000, strides=(19200, 64, -192, 1))),
        "q must have no negative stride",
    ),
    "overlapping-out": (
        dense(out=Fake(ROWS, 0x5000, strides=(0, 6400, 64, 1))),
        "out must have elements that share no memory",
    ),
    "null": (dense(q=Fake(ROWS, 0)), "q must lie in memory"),
    "strides-overflow": (
        dense(q=Fake(ROWS, 0x1000, strides=(2**62, 64, 192, 1))),
        "q must lie in memory",
    ),
    "scale": (dense(scale=1e39), "scale must be finite in float32, got 1e\\+39"),
    "offsets-alone": (dense(offsets=Fake((3,), 0x6100, "int32")), "prompt_ids must come with"),
    "offsets-shape": (ragged(offsets=Fake((2,), 0x6100, "int32")), r"offsets must have shape \(3,"),
    "ids-dtype": (ragged(prompt_ids=Fake((5,), 0x6000, "int64")), "prompt_ids must be int32"),
    "plan-in-parts": (planned(tiles=None), "plan must have order, tiles and region"),
    "plan-alone": (planned(region=None), "plan must come with region"),
    "plan-strides": (
        planned(tiles=Fake((2, 4), 0x9000, "int64", strides=(8, 1))),
        r"plan's tiles must be contiguous, got \(8, 1\)",
    ),
    "rows": (
        dense(
            q=Fake((1, 1, HUGE, 64), 0x1000),
            out=Fake((1, 1, HUGE, 64), 0x5000),
            k=Fake((1, 1, 1, 77, 64), 0x2000),
            v=Fake((1, 1, 1, 77, 64), 0x3000),
            weight=Fake((1, 1, HUGE), 0x4000, "float32"),
        ),
        TOO_LARGE + r".*got \(1, 1, 2147483648, 64\)",
    ),
    "tiles": (
        dense(
            q=Fake((2**14, 2**12, 2000, 64), 0x1000, strides=(0, 0, 64, 1)),
            out=Fake((2**14, 2**12, 2000, 64), 0x5000),
            k=Fake((2**14, 1, 2**12, 77, 64), 0x2000, strides=(0, 0, 0, 64, 1)),
            v=Fake((2**14, 1, 2**12, 77, 64), 0x3000, strides=(0, 0, 0, 64, 1)),
            weight=Fake((2**14, 1, 2000), 0x4000, "float32"),
        ),
        TOO_LARGE,
    ),
    "entries": (
        ragged(
            weight=Fake((HUGE, 100), 0x4000, "float32"),
            prompt_ids=Fake((HUGE,), 0x6000, "int32"),
        ),
        TOO_LARGE + ".*and 2147483648 entries",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_argument_is_refused_before_the_launch(case, recorder):
    arguments, message = REFUSED[case]
    before = recorder.calls()
    with pytest.raises(ValueError, match=message):
        forward(recorder, arguments)
    assert recorder.calls() == before
    assert recorder.current_device() == 0


@pytest.mark.parametrize(
    ("machine", "error", "message"),
    [
        pytest.param(
            {"capability": 80},
            ValueError,
            "q's GPU must be of compute capability 9.0, got 8.0",
            id="ampere",
        ),
        pytest.param({"capability": 100}, ValueError, "got 10.0", id="blackwell"),
        pytest.param(
            {"driver": 12040},
            RuntimeError,
            r"the NVIDIA driver must support CUDA 13.0 or later, got CUDA 12.4; update it, or",
            id="old-driver",
        ),
        pytest.param({"driver": 0}, RuntimeError, "no NVIDIA driver was found", id="no-driver"),
        pytest.param(
            {"refusal": "invalid resource handle"},
            RuntimeError,
            "not launched on cuda:0, to which stream 0x7f00 must belong: invalid resource handle",
            id="stream-of-another-device",
        ),
    ],
)
def test_machine_that_cannot_run_it_is_refused(machine, error, message, recorder):
    on(recorder, **machine)
    with pytest.raises(error, match=message):
        forward(recorder, dense())


def test_driver_of_the_same_major_version_runs_what_a_newer_toolkit_built(recorder):
    on(recorder, driver=12000, toolkit=12090)
    assert forward(recorder, dense())
    assert recorder.missing() == ""


def emptied(name, at):
    """A dense call in which a dimension of a tensor, and of all that share it, is 0."""
    size = dense()[name].shape[at]
    dtypes = {"weight": "float32"}
    return {
        n: Fake([s * (s != size) for s in x.shape], 0x1000, dtypes.get(n, "bfloat16"))
        for n, x in dense().items()
        if isinstance(x, Fake)
    }


@pytest.mark.parametrize(
    "sizes",
    [emptied("q", 0), emptied("q", 2), emptied("k", 1), emptied("k", 3)],
    ids=["batch", "seqlen_q", "prompts", "seqlen_k"],
)
def test_empty_call_launches_nothing(sizes, recorder):
    before = recorder.calls()
    assert not launches(recorder, dense(**sizes))
    assert recorder.calls() == before


# ---- through the operator, with tensors of the CPU that count as those of a GPU ----

STREAM = 0xABC0


@pytest.fixture
def stub(cuda_host, recorder):
    """The backend on the recorder; its tensors lie on the CPU."""
    on(recorder, device_type=CPU)
    with cuda_host.on_the_cpu(recorder, STREAM):
        yield recorder


def tensors(**sizes):
    """q, k, v, weight in bfloat16."""
    case = Case(**{"seqlen_q": 50, "seqlen_k": 77, "head_dim": 40, **sizes})
    e = example(case, torch.bfloat16)
    return [x.detach() for x in e.floats()]


def test_operator_hands_its_tensors_and_the_current_stream_to_the_kernel(stub):
    q, k, v, weight = tensors()
    region = torch.rand(weight.shape) > 0.5
    order, tiles, planned = plan(region)
    out = blended_attention(
        q, k, v, weight, region=region, plan=(order, tiles, planned), scale=0.5, backend="cuda"
    )
    call = dict(stub.call())
    named = {"q": q, "k": k, "v": v, "weight": weight, "region": region, "order": order}
    for name, tensor in (named | {"tiles": tiles, "out": out}).items():
        assert call[name] == tensor.data_ptr(), name
    assert call["stream"] == STREAM
    assert call["scale"] == 512


def test_ragged_operator_hands_over_contiguous_index_tensors(stub):
    q, k, v, weight = tensors(batch=2, prompts=3)
    ids = torch.arange(6, dtype=torch.int32).repeat_interleave(2)[::2]
    offsets = torch.tensor([0, 9, 3, 9, 6], dtype=torch.int32)[::2]
    lengths = torch.full((6,), 77, dtype=torch.int32)
    blended_attention_ragged(
        q, k.flatten(0, 1), v.flatten(0, 1), weight.flatten(0, 1), ids, offsets,
        key_lengths=lengths, backend="cuda",
    )  # fmt: skip
    call = dict(stub.call())
    assert call["key_lengths"] == lengths.data_ptr()
    assert call["prompt_ids"] not in (0, ids.data_ptr())


def test_values_of_index_tensors_are_checked_when_asked_for(stub):
    q, k, v, weight = tensors(batch=2, prompts=3)
    ids = torch.full((6,), 6, dtype=torch.int32)
    offsets = torch.tensor([0, 3, 6], dtype=torch.int32)
    table = k.flatten(0, 1), v.flatten(0, 1), weight.flatten(0, 1)
    with pytest.raises(ValueError, match=r"prompt_ids must be in 0 .. 5"):
        blended_attention_ragged(q, *table, ids, offsets, validate=True, backend="cuda")


@pytest.mark.parametrize("which", ["address", "stride"])
def test_what_is_not_aligned_is_copied(which, stub):
    q, k, v, weight = tensors()
    odd = torch.empty(k.numel() * 2)
    if which == "address":
        odd = torch.empty(k.numel() + 4, dtype=k.dtype)[4:].view(k.shape)
    else:
        odd = torch.empty(*k.shape[:-1], k.shape[-1] + 4, dtype=k.dtype)[..., :-4]
    odd.copy_(k)
    before = stub.calls()
    blended_attention(q, odd, v, weight, backend="cuda")
    call = dict(stub.call())
    assert stub.calls() == before + 1
    assert call["k"] != odd.data_ptr()
    assert call["k"] % 16 == 0
    assert call["k.row"] == k.shape[-1]
    assert (call["q"], call["v"]) == (q.data_ptr(), v.data_ptr())


def test_what_copying_does_not_mend_is_refused(stub):
    q, k, v, weight = tensors()
    inputs = cuda.Inputs(q, k, v, weight[:, :1], None, None, None, None, None, 1.0)
    with pytest.raises(ValueError, match="weight must have shape"):
        cuda.forward(inputs, "", torch.empty_like(q))


def test_empty_call_gives_zeros(stub):
    q, k, v, weight = tensors()
    none = torch.full_like(q, 7), k[:, :0], v[:, :0], weight[:, :0]
    assert (blended_attention(*none, backend="cuda") == 0).all()


def test_gradients_are_triton_s(stub, monkeypatch):
    asked = []

    def backward(inputs, level, dout, *gradients):
        asked.append((inputs.q.data_ptr(), level, [x is not None for x in gradients]))
        for gradient in gradients:
            if gradient is not None:
                gradient.fill_(3)

    monkeypatch.setattr(triton, "missing", lambda level: "")
    monkeypatch.setattr(triton, "why_not", lambda *call: [])
    monkeypatch.setattr(triton, "backward", backward)
    q, k, v, weight = tensors()
    weight.requires_grad_()
    before = stub.calls()
    blended_attention(q, k, v, weight, backend="cuda").sum().backward()
    assert stub.calls() == before + 1
    assert asked == [(q.data_ptr(), "", [False, True, False, False])]
    assert (weight.grad == 3).all()


def test_gradients_that_triton_cannot_compute_are_refused(stub, monkeypatch):
    monkeypatch.setattr(triton, "missing", lambda level: "triton is missing: no such thing")
    q, k, v, weight = tensors()
    out = blended_attention(q.requires_grad_(), k, v, weight, backend="cuda")
    with pytest.raises(
        NotImplementedError,
        match="backend triton, which computes the gradients of cuda, cannot run this: triton is",
    ):
        out.sum().backward()


def test_variable_names_it(stub, monkeypatch):
    monkeypatch.setenv("STAL_KERNELS_BACKEND", "cuda")
    before = stub.calls()
    blended_attention(*tensors())
    assert stub.calls() == before + 1


# ---- what keeps it from running ----


@pytest.mark.parametrize(
    ("changed", "rule"),
    [
        ({"dtype": torch.float32}, "float16 or bfloat16, got torch.float32"),
        ({"head_dim": 72}, "a head_dim of 40, 64, 80, 128 or 160, got 72"),
        ({"seqlen_k": 81}, "a seqlen_k of at most 80, got 81"),
        ({"capability": (8, 0)}, "a GPU of compute capability 9.0, got 8.0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_why_not_names_each_limit_and_triton(changed, rule, monkeypatch):
    def against(capability=(9, 0), dtype=torch.bfloat16, head_dim=64, seqlen_k=77):
        monkeypatch.setattr(cuda, "_capability", lambda device: capability)
        return cuda.why_not(torch.device("cuda", 0), dtype, head_dim, seqlen_k)

    monkeypatch.setattr(cuda, "missing", lambda level: "")
    assert against() == []
    assert against(**changed) == [f"cuda needs {rule}; use triton"]


def test_named_backend_raises_with_all_reasons():
    q = torch.zeros(1, 1, 4, 36)
    k = torch.zeros(1, 1, 1, 100, 36)
    with pytest.raises(NotImplementedError) as raised:
        blended_attention(q, k, k, torch.ones(1, 1, 4), backend="cuda")
    said = str(raised.value)
    assert said.startswith("backend cuda cannot run this: cuda is missing")
    for reason in ("a CUDA GPU, got cpu", "float16 or bfloat16", "head_dim of 40", "at most 80"):
        assert reason in said


def test_why_not_says_what_the_machine_lacks(recorder, monkeypatch):
    monkeypatch.setattr(cuda, "_library", lambda: recorder)
    on(recorder, driver=0)
    assert cuda.missing("") == "cuda is missing: no NVIDIA driver was found"
    on(recorder, driver=12080)
    assert "must support CUDA 13.0 or later, got CUDA 12.8" in cuda.missing("")
    on(recorder)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cuda.missing("").startswith("cuda is missing a GPU")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert cuda.missing("") == ""


def test_why_not_says_why_the_library_was_not_built(monkeypatch, tmp_path):
    monkeypatch.setattr(cuda, "_FOLDER", tmp_path)
    monkeypatch.setattr(cuda, "_library", cuda._library.__wrapped__)
    (tmp_path / "not_built_cuda.txt").write_text("no nvcc was found\n")
    assert why_not("cuda") == ["cuda is missing: it was not built: no nvcc was found"]


# ---- auto ----


def auto(monkeypatch, name):
    """The backend that auto takes on a GPU where nothing is in the way of any."""
    monkeypatch.setattr(choice, "_against", lambda *call: [])
    call = ("auto", torch.device("cuda", 0), torch.bfloat16, 64, 77)
    return getattr(choice, name).__wrapped__(*call).backend


def test_auto_takes_cuda_only_after_a_run_on_a_gpu(monkeypatch):
    monkeypatch.setattr(choice, "CUDA_RESULT", None)
    assert auto(monkeypatch, "_choose") is triton
    assert not choice.is_proven("cuda")
    monkeypatch.setattr(choice, "CUDA_RESULT", "gpu.json")
    assert auto(monkeypatch, "_choose") is cuda
    assert auto(monkeypatch, "_choose_backward") is triton


def proof(result):
    """What the result of bench/gpu_check.py lacks for auto to take cuda."""
    checks = {row["check"]: row["result"] for row in result["checks"] if row["backend"] == "cuda"}
    needed = ("correctness float16", "correctness bfloat16", "cuda graph", "determinism")
    lacking = [name for name in needed if checks.get(name) != "ok"]
    return lacking + [name for name, found in checks.items() if found not in ("ok", "not run")]


@pytest.mark.skipif(not RESULTS.exists(), reason="needs a checkout")
def test_auto_takes_cuda_only_by_a_result_in_which_it_passed():
    if choice.CUDA_RESULT is not None:
        assert proof(json.loads((RESULTS / choice.CUDA_RESULT).read_text())) == []
    of_triton = json.loads((RESULTS / "gpu_h200.json").read_text())
    assert len(proof(of_triton)) == 4
    for row in of_triton["checks"]:
        row["backend"] = "cuda"
    assert proof(of_triton) == []
    of_triton["checks"][0]["result"] = "failed"
    assert proof(of_triton)


# ---- the recipe of kernel-builder ----


@pytest.mark.skipif(not RESULTS.exists(), reason="needs a checkout")
def test_recipe_lists_every_source_and_what_it_includes():
    tomllib = pytest.importorskip("tomllib")
    csrc = ROOT / "csrc"
    recipe = tomllib.loads((csrc / "build.toml").read_text())
    binding, kernel = recipe["tvm-ffi"]["src"], recipe["kernel"]["blended_attention_cuda"]["src"]
    for sources in (binding, kernel):
        for source in sources:
            # g++ alone takes test/, where there is no nvcc.
            pattern = r'^#include "(?!test/)(.*)"'
            included = re.findall(pattern, (csrc / source).read_text(), re.MULTILINE)
            assert set(included) <= set(sources), source
    compiled = {str(p.relative_to(csrc)) for p in (csrc / "cuda").iterdir()} - set(binding)
    assert {name for name in compiled if name.endswith((".cu", ".cpp"))} <= set(kernel)
    assert (csrc / "tvm-ffi-ext" / recipe["general"]["name"].replace("-", "_")).is_dir()


@pytest.mark.skipif(not RESULTS.exists(), reason="needs a checkout")
def test_recipe_is_one_for_kernel_builder():
    reader = pytest.importorskip("kernels._rust", reason="needs Hugging Face's kernels")
    assert reader.Build.open(ROOT / "csrc").general.backends == [reader.Backend.CUDA]
