"""Bad input is named, with what was expected and what came."""

import re

import pytest
import torch

from stal_kernels import blended_attention, blended_attention_ragged


def ints(*values):
    return torch.tensor(values, dtype=torch.int32)


def dense(**changed):
    arguments = {
        "q": torch.zeros(2, 3, 4, 8),
        "k": torch.zeros(2, 5, 3, 6, 8),
        "v": torch.zeros(2, 5, 3, 6, 8),
        "weight": torch.zeros(2, 5, 4),
        **changed,
    }
    tensors = [arguments.pop(name) for name in ("q", "k", "v", "weight")]
    return blended_attention(*tensors, **arguments)


def ragged(**changed):
    arguments = {
        "q": torch.zeros(2, 3, 4, 8),
        "k": torch.zeros(7, 3, 6, 8),
        "v": torch.zeros(7, 3, 6, 8),
        "weight": torch.zeros(3, 4),
        "prompt_ids": ints(6, 0, 6),
        "offsets": ints(0, 1, 3),
        **changed,
    }
    names = ("q", "k", "v", "weight", "prompt_ids", "offsets")
    tensors = [arguments.pop(name) for name in names]
    return blended_attention_ragged(*tensors, **arguments)


def test_good_arguments_pass():
    assert dense().shape == (2, 3, 4, 8)
    assert ragged(key_lengths=ints(0, 6, 1, 2, 3, 4, 5)).shape == (2, 3, 4, 8)


KEYS = "(batch, prompts, heads, seqlen_k, head_dim)"
TABLE = "(table, heads, seqlen_k, head_dim)"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        pytest.param(
            {"q": torch.zeros(3, 4, 8)},
            "q must have shape (batch, heads, seqlen_q, head_dim), got (3, 4, 8)",
            id="rank-q",
        ),
        pytest.param(
            {"k": torch.zeros(2, 3, 6, 8)},
            f"k must have shape {KEYS}, got (2, 3, 6, 8)",
            id="rank-k",
        ),
        pytest.param(
            {"v": torch.zeros(2, 3, 6, 8)},
            f"v must have shape {KEYS} = (2, 5, 3, 6, 8), got (2, 3, 6, 8)",
            id="rank-v",
        ),
        pytest.param(
            {"weight": torch.zeros(2, 5)},
            "weight must have shape (batch, prompts, seqlen_q) = (2, 5, 4), got (2, 5)",
            id="rank-weight",
        ),
        pytest.param(
            {"k": torch.zeros(2, 5, 4, 6, 8)},
            f"k must have shape {KEYS} = (2, 5, 3, 6, 8), got (2, 5, 4, 6, 8)",
            id="heads-of-k",
        ),
        pytest.param(
            {"k": torch.zeros(1, 5, 3, 6, 8)},
            f"k must have shape {KEYS} = (2, 5, 3, 6, 8), got (1, 5, 3, 6, 8)",
            id="batch-of-k",
        ),
        pytest.param(
            {"v": torch.zeros(2, 5, 3, 7, 8)},
            f"v must have shape {KEYS} = (2, 5, 3, 6, 8), got (2, 5, 3, 7, 8)",
            id="seqlen-of-v",
        ),
        pytest.param(
            {"v": torch.zeros(2, 5, 3, 6, 16)},
            f"v must have shape {KEYS} = (2, 5, 3, 6, 8), got (2, 5, 3, 6, 16)",
            id="head_dim-of-v",
        ),
        pytest.param(
            {"weight": torch.zeros(2, 5, 1)},
            "weight must have shape (batch, prompts, seqlen_q) = (2, 5, 4), got (2, 5, 1)",
            id="seqlen-of-weight",
        ),
        pytest.param(
            {"q": torch.zeros(2, 3, 4, 8).int()},
            "q must be float16, bfloat16, float32 or float64, got int32",
            id="int-q",
        ),
        pytest.param(
            {"k": torch.zeros(2, 5, 3, 6, 8).half()},
            "k must have q's dtype float32, got float16",
            id="dtype-of-k",
        ),
        pytest.param(
            {"v": torch.zeros(2, 5, 3, 6, 8).double()},
            "v must have q's dtype float32, got float64",
            id="dtype-of-v",
        ),
        pytest.param(
            {"weight": torch.zeros(2, 5, 4).int()},
            "weight must be float32 when q is float32, got int32",
            id="int-weight",
        ),
        pytest.param(
            {"weight": torch.zeros(2, 5, 4).bfloat16()},
            "weight must be float32 when q is float32, got bfloat16",
            id="bfloat16-weight",
        ),
        pytest.param(
            {
                "q": torch.zeros(2, 3, 4, 8).double(),
                "k": torch.zeros(2, 5, 3, 6, 8).double(),
                "v": torch.zeros(2, 5, 3, 6, 8).double(),
            },
            "weight must be float64 when q is float64, got float32",
            id="float32-weight-of-float64",
        ),
        pytest.param(
            {"region": torch.ones(2, 5, 4)}, "region must be bool, got float32", id="float-region"
        ),
        pytest.param(
            {"region": torch.ones(2, 5, 3).bool()},
            "region must have weight's shape (2, 5, 4), got (2, 5, 3)",
            id="shape-of-region",
        ),
        pytest.param(
            {"k": torch.zeros(2, 5, 3, 6, 8, device="meta")},
            "k must be on q's device cpu, got meta",
            id="device-of-k",
        ),
        pytest.param(
            {"weight": torch.zeros(2, 5, 4, device="meta")},
            "weight must be on q's device cpu, got meta",
            id="device-of-weight",
        ),
        pytest.param(
            {"region": torch.ones(2, 5, 4, device="meta").bool()},
            "region must be on q's device cpu, got meta",
            id="device-of-region",
        ),
        pytest.param(
            {"q": torch.zeros(2, 3, 8, 4).mT},
            "q must have a contiguous last dimension, got stride 4; use .contiguous()",
            id="stride-of-q",
        ),
        pytest.param(
            {"k": torch.zeros(2, 5, 3, 6, 1).expand(2, 5, 3, 6, 8)},
            "k must have a contiguous last dimension, got stride 0; use .contiguous()",
            id="expanded-head_dim-of-k",
        ),
        pytest.param(
            {"v": torch.zeros(2, 5, 3, 6, 16)[..., ::2]},
            "v must have a contiguous last dimension, got stride 2; use .contiguous()",
            id="stride-of-v",
        ),
        pytest.param(
            {
                "q": torch.zeros(2, 0, 4, 8),
                "k": torch.zeros(2, 5, 0, 6, 8),
                "v": torch.zeros(2, 5, 0, 6, 8),
            },
            "q must have heads and head_dim of at least 1, got (2, 0, 4, 8)",
            id="no-heads",
        ),
        pytest.param(
            {
                "q": torch.zeros(2, 3, 4, 0),
                "k": torch.zeros(2, 5, 3, 6, 0),
                "v": torch.zeros(2, 5, 3, 6, 0),
            },
            "q must have heads and head_dim of at least 1, got (2, 3, 4, 0)",
            id="no-head_dim",
        ),
        pytest.param(
            {"scale": float("nan")}, "scale must be finite in float32, got nan", id="scale-nan"
        ),
        pytest.param(
            {"scale": float("-inf")}, "scale must be finite in float32, got -inf", id="scale-inf"
        ),
        pytest.param({"scale": 1e39}, "scale must be finite in float32, got 1e", id="scale-1e39"),
        pytest.param(
            {"backend": "gpu"},
            "backend must be one of auto, cpu, cpu:amx, cpu:avx512_bf16, cpu:avx512, cpu:avx2, "
            "cpu:neon, cpu:portable, cpu:avx512_bf16_model, cpu:amx_model, cuda, triton, "
            "reference, got 'gpu'",
            id="backend",
        ),
        pytest.param({"backend": "cpu:sse9"}, "got 'cpu:sse9'", id="level"),
    ],
)
def test_dense_argument_is_refused(changed, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        dense(**changed)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        pytest.param(
            {"k": torch.zeros(1, 7, 3, 6, 8)},
            f"k must have shape {TABLE}, got (1, 7, 3, 6, 8)",
            id="rank-k",
        ),
        pytest.param(
            {"v": torch.zeros(6, 3, 6, 8)},
            f"v must have shape {TABLE} = (7, 3, 6, 8), got (6, 3, 6, 8)",
            id="rows-of-v",
        ),
        pytest.param(
            {"weight": torch.zeros(2, 4)},
            "weight must have shape (entries, seqlen_q) = (3, 4), got (2, 4)",
            id="entries-of-weight",
        ),
        pytest.param(
            {"prompt_ids": ints(6, 0, 6)[:, None]},
            "prompt_ids must have shape (entries,), got (3, 1)",
            id="rank-prompt_ids",
        ),
        pytest.param(
            {"prompt_ids": torch.tensor([6, 0, 6])},
            "prompt_ids must be int32, got int64; use .int()",
            id="int64-prompt_ids",
        ),
        pytest.param(
            {"offsets": ints(0, 3)},
            "offsets must have shape (batch + 1,) = (3,), got (2,)",
            id="shape-of-offsets",
        ),
        pytest.param(
            {"offsets": torch.tensor([0.0, 1.0, 3.0])},
            "offsets must be int32, got float32; use .int()",
            id="float-offsets",
        ),
        pytest.param(
            {"key_lengths": ints(6)},
            "key_lengths must have shape (table,) = (7,), got (1,)",
            id="shape-of-key_lengths",
        ),
        pytest.param(
            {"prompt_ids": torch.zeros(3, dtype=torch.int32, device="meta")},
            "prompt_ids must be on q's device cpu, got meta",
            id="device-of-prompt_ids",
        ),
        pytest.param(
            {"region": torch.ones(3, 5).bool()},
            "region must have weight's shape (3, 4), got (3, 5)",
            id="shape-of-region",
        ),
        pytest.param({"offsets": ints(1, 1, 3)}, "offsets must begin at 0, got 1", id="begin"),
        pytest.param(
            {"offsets": ints(0, 4, 3)},
            "offsets must ascend, got 4 before 3 at element 1",
            id="descend",
        ),
        pytest.param(
            {"offsets": ints(0, 1, 2)},
            "offsets must end at the number of entries 3, got 2",
            id="end",
        ),
        pytest.param(
            {"prompt_ids": ints(6, 7, 0)},
            "prompt_ids must be in 0 .. 6 (rows of k), got 7 at entry 1",
            id="id-too-large",
        ),
        pytest.param(
            {"prompt_ids": ints(6, 0, -1)},
            "prompt_ids must be in 0 .. 6 (rows of k), got -1 at entry 2",
            id="id-negative",
        ),
        pytest.param(
            {"key_lengths": ints(6, 6, 7, 6, 6, 6, 6)},
            "key_lengths must be in 0 .. 6 (seqlen_k), got 7 at row 2",
            id="length-too-large",
        ),
        pytest.param(
            {"key_lengths": ints(6, 6, 6, -1, 6, 6, 6)},
            "key_lengths must be in 0 .. 6 (seqlen_k), got -1 at row 3",
            id="length-negative",
        ),
    ],
)
def test_ragged_argument_is_refused(changed, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ragged(**changed)


def test_values_are_checked_inside_a_traced_call():
    torch.compiler.reset()
    traced = torch.compile(
        lambda offsets: ragged(offsets=offsets), fullgraph=True, backend="aot_eager"
    )
    assert traced(ints(0, 1, 3)).shape == (2, 3, 4, 8)
    with pytest.raises(ValueError, match="offsets must begin at 0, got 1"):
        traced(ints(1, 1, 3))


def test_head_dim_of_one_has_no_stride_to_speak_of():
    q = torch.zeros(2, 3, 1, 4).mT
    k = torch.zeros(2, 5, 3, 6, 1)
    assert dense(q=q, k=k, v=k, backend="reference").shape == (2, 3, 4, 1)
