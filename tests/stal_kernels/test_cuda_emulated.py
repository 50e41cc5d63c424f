"""The backend cuda whole, from the call in Python to the kernel, which an emulator runs.

csrc/test/cuda says what it models; test_cuda_emulator.py tests it and the kernel by itself. Here
the operator's own case table meets the kernel by way of the checks, the strides and the binding.
"""

import shutil
from pathlib import Path

import pytest
import torch

from stal_kernels import blended_attention
from stal_kernels.backends import choice, cuda
from stal_kernels.testing import CASES, Case, assert_within_twice_plain, example

ROOT = Path(__file__).parents[2]
EMULATOR = ("operator", "fiber", "shared_memory", "block", "product", "forward")
HALVES = (torch.bfloat16, torch.float16)

pytestmark = [
    pytest.mark.xdist_group("emulated"),  # one library for all
    pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="needs a checkout"),
    pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler"),
]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "bench"))
        import cuda_host

        library = cuda_host.build(EMULATOR, tmp_path_factory.mktemp("emulated"))
        with cuda_host.on_the_cpu(library):
            yield library


@pytest.fixture(autouse=True)
def emulated(library, monkeypatch):
    """Gradients, which triton computes on a GPU, are those of the reference."""
    monkeypatch.setattr(choice, "_GRADIENTS_BY", {"cuda": "reference"})
    library.configure(2, 0)
    return library


# Those that the backend has nothing against but the device.
TAKEN = [
    case
    for case in CASES
    if len(cuda.why_not(torch.device("cpu"), HALVES[0], case.head_dim, case.seqlen_k)) == 1
]


@pytest.mark.parametrize("dtype", HALVES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("case", TAKEN, ids=repr)
def test_emulated_kernel_is_within_twice_plain(case, dtype):
    assert_within_twice_plain(case, "cuda", dtype)


def test_cases_are_of_every_kind():
    assert {case.head_dim for case in TAKEN} == {40, 64, 80, 128, 160}
    for kind in ("ragged", "planned", "region", "layout"):
        assert len({getattr(case, kind) for case in TAKEN}) >= 2, kind


@pytest.mark.parametrize("prompts", [9, 17])
def test_more_prompts_than_fit_give_the_same(prompts):
    case = Case(batch=2, heads=1, seqlen_q=70, prompts=prompts, ragged=True)
    assert_within_twice_plain(case, "cuda", torch.bfloat16, draws=1)


def test_absent_prompt_is_not_read():
    e = example(Case(batch=1, heads=1, seqlen_q=70, prompts=3, region="empty"), torch.bfloat16)
    q, k, v, weight = (x.detach() for x in e.floats())
    before = blended_attention(q, k, v, weight, region=e.region, backend="cuda")
    k[:, -1] = v[:, -1] = weight[:, -1] = torch.nan
    assert before.isfinite().all()
    after = blended_attention(q, k, v, weight, region=e.region, backend="cuda")
    assert torch.equal(before, after)


def test_result_does_not_depend_on_the_order_of_lanes(emulated):
    e = example(Case(batch=2, heads=1, seqlen_q=200, prompts=3, region="blobs"), torch.float16)
    outs = []
    for order in range(4):
        emulated.configure(2, order)
        outs.append(e.run("cuda").detach())
    assert all(torch.equal(out, outs[0]) for out in outs)


def test_what_is_not_aligned_gives_the_same():
    e = example(Case(heads=1, seqlen_q=50), torch.bfloat16)
    q, k, v, weight = (x.detach() for x in e.floats())
    odd = torch.empty(*k.shape[:-1], k.shape[-1] + 1, dtype=k.dtype)[..., 1:]
    odd.copy_(k)
    expected = blended_attention(q, k, v, weight, backend="cuda")
    assert torch.equal(blended_attention(q, odd, v, weight, backend="cuda"), expected)
