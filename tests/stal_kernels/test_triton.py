"""The triton backend without a GPU: why it refuses, and its kernels under Triton's interpreter."""

import builtins
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stal_kernels import blended_attention, why_not
from stal_kernels.backends import Inputs, choice, triton
from stal_kernels.backends.triton import geometry, launches, tiles

FOLDER = Path(__file__).parent
# Too many programs for the interpreter, which triton_interpreted.py replaces by smaller cases;
# several threads and products of bfloat16, both of which the interpreter gets wrong.
NOT = "within_twice or every_time or scratch or layout_does or ragged or threads or bfloat16"

# triton_interpreted.py has smaller ones of the first; one way to stride is enough here.
SLOW = "more_than_64 or strided or transposed"

CHECKED = "ragged_argument or before_the_backward or gradient_of_the_output"


@pytest.mark.parametrize(
    ("file", "least", "options"),
    [
        pytest.param("triton_interpreted.py", 90, [], id="kernels"),
        pytest.param(
            "test_blended_attention.py", 20, ["-k", f"not ({NOT} or unaligned)"], id="operator"
        ),
        pytest.param("test_operator.py", 35, ["-k", CHECKED], id="checks"),
        pytest.param("test_plan.py", 44, ["-k", f"triton and not ({SLOW})"], id="plans"),
    ],
)
def test_triton_passes_under_the_interpreter(file, least, options):
    options = [*options, "-n", "0"]  # this process has its share of the cores
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(FOLDER / file)]
    result = subprocess.run(
        [*command, *options],
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=FOLDER.parents[1],
    )
    assert result.returncode == 0, result.stdout + result.stderr
    summary = result.stdout.splitlines()[-1]
    outcomes = {name: int(count) for count, name in re.findall(r"(\d+) ([a-z]+)", summary)}
    assert outcomes["passed"] >= least
    assert not outcomes.keys() & {"skipped", "xfailed", "xpassed"}


# ---- reasons ----


def tensors(head_dim=8, dtype=torch.float32, device="cpu"):
    q = torch.zeros(1, 2, 4, head_dim, dtype=dtype, device=device)
    k = torch.zeros(1, 3, 2, 5, head_dim, dtype=dtype, device=device)
    return q, k


def test_why_not_names_every_reason():
    reasons = "; ".join(why_not("triton", *tensors(36, torch.float64)))
    for reason in ("tensors on a CUDA GPU", "TRITON_INTERPRET=1", "multiple of 8", "got 36"):
        assert reason in reasons
    assert "float16, bfloat16 or float32, got torch.float64" in reasons


def test_named_backend_raises_with_its_reasons_before_a_launch(monkeypatch):
    monkeypatch.setattr(launches, "run", lambda *_: pytest.fail("launched"))
    q, k = tensors(36)
    weight = torch.ones(1, 3, 4)
    with pytest.raises(NotImplementedError, match=r"triton cannot run this: .*GPU.*; .*got 36"):
        blended_attention(q, k, k, weight, backend="triton")


def test_why_not_says_that_triton_is_not_installed(monkeypatch):
    original = builtins.__import__

    def without_triton(name, *rest):
        if name == "triton":
            raise ModuleNotFoundError("No module named 'triton'", name="triton")
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_triton)
    monkeypatch.setattr(choice, "_missing", choice._missing.__wrapped__)
    assert why_not("triton")[0] == "triton is missing: No module named 'triton'"
    assert len(why_not("triton", *tensors())) == 2  # and still says where tensors belong


def test_why_not_says_which_capability_is_too_low(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    reasons = triton._against_gpu.__wrapped__(0)
    assert reasons == ["triton needs a compute capability of 8.0 or more, got 7.5"]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (8, 0))
    assert triton._against_gpu.__wrapped__(0) == []


def test_auto_never_takes_the_interpreter(monkeypatch):
    monkeypatch.setattr(triton, "why_not", lambda q, k: pytest.fail("asked"))
    q, k = tensors()
    assert (blended_attention(q, k, k, torch.ones(1, 3, 4)) == 0).all()


# ---- choices ----


@pytest.mark.parametrize("size", range(1, 257))
def test_pieces_hold_the_size_with_little_waste(size):
    pieces = tiles.pieces(size)
    assert len(pieces) <= 2
    assert all(piece >= 16 and piece & (piece - 1) == 0 for piece in pieces)
    assert size <= sum(pieces) < max(2 * 16, 1.34 * size + 16)
    assert sum(pieces) - size < max(16, pieces[-1])


@pytest.mark.parametrize("ragged", [False, True], ids=["dense", "ragged"])
def test_launches_depend_on_no_values(ragged):
    # Meta tensors have none: nothing waits for a GPU, nothing is allocated by what is on it.
    def empty(*shape, dtype=torch.float16):
        return torch.empty(shape, dtype=dtype, device="meta")

    q, float32 = empty(4, 8, 4096, 40), torch.float32
    k = empty(6, 8, 77, 40) if ragged else empty(4, 3, 8, 77, 40)
    weight = empty(12, 4096, dtype=float32) if ragged else empty(4, 3, 4096, dtype=float32)
    indices = [empty(n, dtype=torch.int32) if ragged else None for n in (12, 5, 6)]
    ids, offsets, lengths = indices
    inputs = Inputs(q, k, k, weight, ids, offsets, None, lengths, None, 1.0)
    stats = empty(3, 8, *weight.shape, dtype=float32).unbind()
    found = [
        launches.forward_launch(inputs, q, (9, 0)),
        launches.pixel_launch(inputs, q, q, stats, (9, 0)),
        *launches.prompt_launches(inputs, q, stats, k, k, (9, 0)),
    ]
    assert [launch.kernel.fn.__name__ for launch in found][:3] == [
        "forward",
        "pixel_gradients",
        "prompt_gradients",
    ]
    for launch in found:
        assert 0 < launch.programs < 2**31


@pytest.fixture
def newer_settings():
    """torch's precisions by backend, put back at the end."""
    settings = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    if not all(hasattr(each, "fp32_precision") for each in settings):
        pytest.skip("this torch has the older setting alone")
    before = [each.fp32_precision for each in settings]
    yield settings
    for each, value in zip(settings, before, strict=True):
        each.fp32_precision = value


@pytest.mark.parametrize(("precision", "exact"), [("tf32", False), ("ieee", True)])
def test_newer_precision_that_the_older_one_cannot_tell_is_followed(
    newer_settings, precision, exact
):
    cuda, cpu = newer_settings
    cuda.fp32_precision, cpu.fp32_precision = precision, "bf16"
    with pytest.raises(RuntimeError):
        torch.get_float32_matmul_precision()
    assert geometry._full_precision() is exact
