"""The operators of torch.ops, whose callers may have checked nothing, in both passes."""

import multiprocessing
import re
import threading
from contextlib import suppress

import pytest
import torch

from stal_kernels import blended_attention, blended_attention_ragged
from stal_kernels.backends import cpu

_forward = torch.ops.stal_kernels.blended_attention.default
_backward = torch.ops.stal_kernels.blended_attention_backward.default


def ints(*values):
    return torch.tensor(values, dtype=torch.int32)


def dense():
    tensors = {
        "q": torch.ones(2, 3, 4, 8),
        "k": torch.ones(2, 5, 3, 6, 8),
        "v": torch.ones(2, 5, 3, 6, 8),
        "weight": torch.ones(2, 5, 4),
    }
    return {**tensors, **dict.fromkeys(("prompt_ids", "offsets", "region", "key_lengths", "plan"))}


def ragged():
    tensors = {
        "q": torch.ones(2, 3, 4, 8),
        "k": torch.ones(7, 3, 6, 8),
        "v": torch.ones(7, 3, 6, 8),
        "weight": torch.ones(3, 4),
        "prompt_ids": ints(6, 0, 6),
        "offsets": ints(0, 1, 3),
    }
    return {**tensors, "region": None, "key_lengths": None, "plan": None}


def forward(arguments, scale, backend):
    return _forward(*arguments.values(), scale, False, backend)


def backward(arguments, scale, backend, dout=None):
    dout = torch.ones(arguments["q"].shape) if dout is None else dout
    return _backward(dout, *arguments.values(), scale, True, True, True, backend)


DENSE = {
    "scalar-q": ({"q": torch.ones(())}, "q must have shape"),
    "rank-q": ({"q": torch.ones(3, 4, 8)}, "q must have shape"),
    "vector-k": ({"k": torch.ones(8)}, "k must have shape"),
    "rank-k": ({"k": torch.ones(2, 3, 6, 8)}, "k must have shape"),
    "short-k": ({"k": torch.ones(2, 5, 3, 5, 8)}, "must have shape"),
    "short-v": ({"v": torch.ones(2, 5, 3, 5, 8)}, "v must have shape"),
    "scalar-weight": ({"weight": torch.ones(())}, "weight must have shape"),
    "short-weight": ({"weight": torch.ones(1)}, "weight must have shape"),
    "short-region": ({"region": torch.ones(2, 5, 3).bool()}, "region must have"),
    "half-weight": ({"weight": torch.ones(2, 5, 4).half()}, "weight must be float32"),
    "double-weight": ({"weight": torch.ones(2, 5, 4).double()}, "weight must be float32"),
    "float-region": ({"region": torch.ones(2, 5, 4)}, "region must be bool, got float32"),
    "half-q": ({"q": torch.ones(2, 3, 4, 8).half()}, "k must "),
    "half-v": ({"v": torch.ones(2, 5, 3, 6, 8).half()}, "v must "),
    "int-q": ({"q": torch.ones(2, 3, 4, 8).int()}, "q must be float16"),
    "complex-q": ({"q": torch.ones(2, 3, 4, 8, dtype=torch.complex64)}, "q must be float16"),
    "transposed-q": ({"q": torch.ones(2, 3, 8, 4).mT}, "q must have a contiguous last dimension"),
    "expanded-k": (
        {"k": torch.ones(2, 5, 3, 6, 1).expand(2, 5, 3, 6, 8)},
        "k must have a contiguous last dimension",
    ),
    "every-second-of-v": (
        {"v": torch.ones(2, 5, 3, 6, 16)[..., ::2]},
        "v must have a contiguous last dimension",
    ),
    "expanded-q-without-batch": (
        {
            "q": torch.ones(1, 3, 4, 1).expand(1, 3, 4, 8)[:0],
            "k": torch.ones(0, 5, 3, 6, 8),
            "v": torch.ones(0, 5, 3, 6, 8),
            "weight": torch.ones(0, 5, 4),
        },
        "q must have a contiguous last dimension",
    ),
    "ids-alone": ({"prompt_ids": ints(0)}, "prompt_ids must come with offsets"),
    "offsets-alone": ({"offsets": ints(0, 1, 2)}, "prompt_ids must come with offsets"),
    "lengths-alone": ({"key_lengths": ints(*[6] * 10)}, "key_lengths must come with prompt_ids"),
    "no-heads": (
        {
            "q": torch.ones(2, 0, 4, 8),
            "k": torch.ones(2, 5, 0, 6, 8),
            "v": torch.ones(2, 5, 0, 6, 8),
        },
        "q must have heads",
    ),
    "sparse-weight": ({"weight": torch.ones(2, 5, 4).to_sparse()}, "must be dense"),
    "sparse-q-and-meta-k": (
        {"q": torch.ones(2, 3, 4, 8).to_sparse(), "k": torch.ones(2, 5, 3, 6, 8, device="meta")},
        "must be dense",
    ),
    "mkldnn-k": ({"k": torch.ones(2, 5, 3, 6, 8).to_mkldnn()}, "must be dense"),
    "scale-nan": ({"scale": float("nan")}, "scale must be finite in float32, got nan"),
    "scale-1e39": ({"scale": 1e39}, "scale must be finite in float32, got 1e+"),
}
RAGGED = {
    "id-too-large": ({"prompt_ids": ints(7, 0, 6)}, r"prompt_ids must be in 0 \.\. 6 \(rows of k"),
    "id-negative": ({"prompt_ids": ints(6, -1, 6)}, "got -1 at entry 1"),
    "begin": ({"offsets": ints(1, 1, 3)}, "offsets must begin at 0, got 1"),
    "descend": ({"offsets": ints(0, 9, 3)}, "offsets must ascend, got 9 before 3 at element 1"),
    "end": ({"offsets": ints(0, 1, 2)}, "offsets must end at the number of entries 3, got 2"),
    "lowest": ({"offsets": ints(0, -(2**31), 3)}, "offsets must ascend"),
    "short-offsets": ({"offsets": ints(0, 3)}, "offsets must have shape"),
    "short-ids": ({"prompt_ids": ints(6, 0)}, "weight must have shape"),
    "long-ids": ({"prompt_ids": torch.tensor([6, 0, 6])}, "prompt_ids must be int32"),
    "rank-ids": ({"prompt_ids": ints(6, 0, 6)[None]}, "prompt_ids must have shape"),
    "float-offsets": ({"offsets": torch.tensor([0.0, 1, 3])}, "offsets must be int32"),
    "lengths-too-large": ({"key_lengths": ints(6, 6, 7, 6, 6, 6, 6)}, "got 7 at row 2"),
    "lengths-negative": ({"key_lengths": ints(6, 6, 6, -1, 6, 6, 6)}, "got -1 at row 3"),
    "short-lengths": ({"key_lengths": ints(6)}, "key_lengths must have shape"),
    "ids-alone": ({"offsets": None}, "prompt_ids must come with offsets"),
    "offsets-alone": ({"prompt_ids": None}, "prompt_ids must come with offsets"),
    "rank-k": ({"k": torch.ones(1, 7, 3, 6, 8)}, "k must have shape"),
}


@pytest.mark.parametrize("case", DENSE)
def test_dense_argument_is_refused_in_both_passes(case, backend):
    changed, message = DENSE[case]
    assert_refused({**dense(), "scale": 0.3, **changed}, message, backend)


@pytest.mark.parametrize("case", RAGGED)
def test_ragged_argument_is_refused_in_both_passes(case, backend):
    changed, message = RAGGED[case]
    assert_refused({**ragged(), "scale": 0.3, **changed}, message, backend)


def assert_refused(arguments, message, backend):
    scale = arguments.pop("scale")
    # A backend names what it computes before it looks at anything else.
    unknown = arguments["q"].dtype not in (torch.float16, torch.float32)
    unknown = unknown or not arguments["q"].dim() or arguments["k"].dim() < 2
    for run in (forward, backward):
        if unknown and backend != "reference":
            with pytest.raises((ValueError, NotImplementedError), match=r"q must|k must|needs"):
                run(arguments, scale, backend)
        else:
            with pytest.raises(ValueError, match=message):
                run(arguments, scale, backend)


@pytest.mark.parametrize("form", [dense, ragged], ids=["dense", "ragged"])
def test_good_arguments_pass(form, backend):
    arguments = form()
    out = forward(arguments, 0.3, backend)
    torch.testing.assert_close(out[1], torch.full_like(out[1], 5.0 if form is dense else 2.0))
    dq, dk, dv, dweight = backward(arguments, 0.3, backend)
    for gradient, name in ((dq, "q"), (dk, "k"), (dv, "v"), (dweight, "weight")):
        assert gradient.shape == arguments[name].shape


@pytest.mark.parametrize(
    "dout",
    [torch.ones(2, 3, 4), torch.ones(()), torch.ones(2, 3, 4, 8).half(), torch.ones(2, 3, 4, 9)],
    ids=["rank", "scalar", "half", "wide"],
)
def test_gradient_of_the_output_is_checked(dout, backend):
    with pytest.raises(ValueError, match="dout must"):
        backward(dense(), 0.3, backend, dout)


def test_gradient_of_the_output_may_have_any_strides(backend):
    dout = torch.randn(2, 3, 8, 4, generator=torch.Generator().manual_seed(0)).mT
    expected = backward(dense(), 0.3, backend, dout.contiguous())
    for actual, right in zip(backward(dense(), 0.3, backend, dout), expected, strict=True):
        assert torch.equal(actual, right)


@pytest.mark.parametrize("name", ["q", "k", "weight"])
def test_tensor_whose_memory_was_freed_is_refused(name, level):
    arguments = dense()
    arguments[name].untyped_storage().resize_(0)
    for run in (forward, backward):
        with pytest.raises(ValueError, match=f"{name} must lie in memory, got an empty storage"):
            run(arguments, 0.3, f"cpu:{level}")


# ---- index tensors that change between the passes ----


def through_data(x, values):
    x.data.copy_(values)


def through_numpy(x, values):
    x.numpy()[:] = values.numpy()


def through_memory(x, values):
    x.untyped_storage().copy_(values.untyped_storage())


@pytest.mark.parametrize("change", [through_data, through_numpy, through_memory])
@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("prompt_ids", ints(0, 1 << 30, 0)),
        ("prompt_ids", ints(-7, 0, 0)),
        ("offsets", ints(0, 1 << 30, 3)),
        ("offsets", ints(0, 3, 1 << 30)),
        ("key_lengths", ints(*[1 << 30] * 7)),
    ],
)
def test_index_that_changes_before_the_backward_pass_is_refused(name, values, change, backend):
    arguments = {**ragged(), "key_lengths": ints(*[6] * 7)}
    del arguments["region"], arguments["plan"]
    lengths = arguments.pop("key_lengths")
    weight = arguments["weight"].requires_grad_()
    out = blended_attention_ragged(*arguments.values(), key_lengths=lengths, backend=backend)
    change({**arguments, "key_lengths": lengths}[name], values)
    with pytest.raises(ValueError, match=f"{name} must"):
        torch.autograd.grad(out.sum(), weight)


def test_index_that_changes_in_place_is_noticed_by_autograd(backend):
    arguments = ragged()
    del arguments["region"], arguments["key_lengths"], arguments["plan"]
    arguments["weight"].requires_grad_()
    out = blended_attention_ragged(*arguments.values(), backend=backend)
    arguments["prompt_ids"].zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_index_that_changes_during_calls_is_right_or_refused():
    arguments = ragged()
    values = arguments["prompt_ids"].numpy()
    stopped = threading.Event()

    def change():
        while not stopped.is_set():
            values[1] = 1 << 30
            values[1] = 0

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(300):
            with suppress(ValueError):
                assert (forward(arguments, 0.3, "cpu")[0] == 1).all()
    finally:
        stopped.set()
        thread.join()


# ---- programs that others have recorded ----


class Module(torch.nn.Module):
    def forward(self, q, k, v, weight):
        return blended_attention(q, k, v, weight)


def test_exported_program_refuses_what_it_was_not_exported_for():
    good = list(dense().values())[:4]
    program = torch.export.export(Module(), tuple(good)).module()
    assert torch.equal(program(*good), blended_attention(*good))
    for i, wrong in ((3, good[3].half()), (0, torch.ones(2, 3, 8, 4).mT), (1, good[1].double())):
        with pytest.raises(ValueError, match="must"):
            program(*[wrong if j == i else x for j, x in enumerate(good)])


def test_fake_operator_refuses_what_the_real_one_does():
    def fake(arguments):
        return {name: None if x is None else x.to("meta") for name, x in arguments.items()}

    skipped = ("transposed", "expanded", "every", "scale", "sparse", "mkldnn")
    cases = [(dense, c) for n, c in DENSE.items() if not n.startswith(skipped)]
    cases += [(ragged, c) for n, c in RAGGED.items() if n.startswith(("short", "long", "rank"))]
    for form, (changed, _) in cases:
        arguments = fake({**form(), **changed})
        with pytest.raises(ValueError, match="must"):
            forward(arguments, 0.3, "auto")
        with pytest.raises(ValueError, match="must"):
            backward(arguments, 0.3, "auto", torch.ones(2, 3, 4, 8, device="meta"))


# ---- the library itself ----


def call_library(**changed):
    arguments = {"level": "portable", "threads": 1, "scale": 0.3, "bf16": False, **dense()}
    del arguments["plan"]
    arguments |= dict.fromkeys(("order", "tiles", "planned", "words", "stamp", "sample"))
    arguments |= {"out": torch.ones(2, 3, 4, 8), **changed}
    cpu._library().forward(*arguments.values())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"threads": 0}, "threads must be a positive int, got 0"),
        ({"threads": -3}, "threads must be a positive int, got -3"),
        ({"threads": 1 << 40}, "threads must be a positive int"),
        ({"scale": float("inf")}, "scale must be finite"),
        ({"level": "sse9"}, "level must be one that runs on this machine, got sse9"),
        ({"out": torch.ones(2, 3, 4, 16)}, "out must have shape"),
        ({"out": torch.ones(2, 3, 4, 8).half()}, "out must be float32, got float16"),
        ({"out": torch.ones(2, 3, 8, 4).mT}, "out must have a contiguous last dimension"),
        ({"out": torch.ones(1, 3, 4, 8).expand(2, 3, 4, 8)}, "out must have elements that share"),
        (
            {"out": torch.ones(200).as_strided((2, 3, 4, 8), (96, 32, 7, 1))},
            "out must have elements that share no memory",
        ),
        ({"weight": torch.ones(2, 5, 4).int()}, "weight must be float32, got int32"),
        ({"region": torch.ones(2, 5, 4).to(torch.int8)}, "region must be bool, got int8"),
        (
            {"region": torch.ones(2, 5, 4).bool(), "order": torch.zeros(2, 4).int()},
            "plan must have order, tiles and region, got some of them",
        ),
        (
            {"words": torch.zeros(2, 5, 3, 96).int()},
            "packed must have words, stamp and sample, got some of them",
        ),
    ],
)
def test_library_checks_what_python_never_hands_it(changed, message):
    with pytest.raises(ValueError, match=message):
        call_library(**changed)


def call_packing(**changed):
    arguments = {"level": "portable", "threads": 1, "bf16": False}
    arguments |= {"k": torch.ones(7, 3, 6, 8), "v": torch.ones(7, 3, 6, 8), "lengths": None}
    arguments |= {"words": torch.zeros(7, 3, 112).int(), "stamp": torch.zeros(7, 6).int()}
    arguments |= {"sample": torch.zeros(7, 3, 2, 8), **changed}
    cpu._library().pack(*arguments.values())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"threads": 0}, "threads must be a positive int, got 0"),
        ({"level": "sse9"}, "level must be one that runs on this machine, got sse9"),
        ({"k": torch.ones(7, 3, 6, 7)}, "k must have heads and a head_dim that is a multiple of 8"),
        ({"k": torch.ones(7, 3, 6, 8).double()}, "k must be float16, bfloat16 or float32"),
        ({"v": torch.ones(7, 3, 5, 8)}, "v must have shape (7, 3, 6, 8), got (7, 3, 5, 8)"),
        ({"lengths": ints(*range(6))}, "key_lengths must have shape (7,), got (6,)"),
        ({"lengths": ints(*range(1, 8))}, "key_lengths must be in 0 .. 6 (seqlen_k), got 7"),
        ({"words": torch.zeros(7, 3, 96).int()}, "packed's words must be 112 of a prompt and head"),
        ({"words": torch.zeros(7, 3, 112)}, "packed's words must be int32, got float32"),
        ({"words": torch.zeros(1, 3, 112).int().expand(7, 3, 112)}, "packed's words must have ele"),
        ({"stamp": torch.zeros(7, 5).int()}, "packed's stamp must have shape (7, 6), got (7, 5)"),
        ({"stamp": torch.zeros(1, 6).int().expand(7, 6)}, "packed's stamp must have elements"),
        ({"sample": torch.zeros(7, 3, 2, 9)}, "packed's sample must have shape (7, 3, 2, 8), got"),
        ({"sample": torch.zeros(7, 3, 2, 8).half()}, "packed's sample must be float32, got float1"),
    ],
)
def test_library_packs_nothing_that_is_wrong(changed, message):
    call_packing()
    with pytest.raises(ValueError, match=re.escape(message)):
        call_packing(**changed)


@pytest.mark.parametrize("wrong", [("sse9", 6, 8), ("portable", -1, 8), ("portable", 6, 1 << 40)])
def test_library_tells_no_size_of_what_it_does_not_pack(wrong):
    level, *sizes = wrong
    with pytest.raises(ValueError, match="must"):
        cpu._library().packed_words(level, "float32", False, *sizes)


def test_library_takes_a_region_of_bytes():
    call_library(region=torch.ones(2, 5, 4, dtype=torch.uint8))


def test_functions_for_tests_check_their_tensors_too():
    library, x = cpu._library(), torch.ones(16)
    for wrong in (torch.ones(15), torch.ones(16).double(), torch.ones(32)[::2], torch.ones(1, 16)):
        with pytest.raises(ValueError, match="out must"):
            library.exp2("portable", x, wrong)
    words = x.view(torch.int32)
    with pytest.raises(ValueError, match="a must"):
        library.dot("amx_model", x, words[:8], words, x.clone(), words.clone())
    with pytest.raises(ValueError, match="level must be one that multiplies pairs"):
        library.dot("portable", x, words, words, x.clone(), words.clone())


# ---- sizes that no memory bears out ----


def test_expanded_prompts_beyond_memory_are_an_error():
    one, prompts = torch.ones(1, 1, 1, 8), 10**12
    keys, weight = one[None].expand(1, prompts, 1, 1, 8), torch.ones(1, 1, 1).expand(1, prompts, 1)
    with pytest.raises(MemoryError):
        blended_attention(one, keys, keys, weight, backend="cpu")


def test_expanded_keys_beyond_memory_are_an_error():
    one = torch.ones(1, 1, 1, 8)
    keys = one[None].expand(1, 1, 1, 10**18, 8)
    with pytest.raises(MemoryError):
        blended_attention(one, keys, keys, torch.ones(1, 1, 1), backend="cpu")


def test_expanded_batch_without_pixels_beyond_memory_is_an_error():
    q, keys = torch.ones(1, 1, 0, 8).expand(10**12, 1, 0, 8), torch.ones(1, 1, 1, 1, 8)
    keys, weight = keys.expand(10**12, 1, 1, 1, 8), torch.ones(1, 1, 0).expand(10**12, 1, 0)
    with pytest.raises(MemoryError):
        blended_attention(q, keys, keys, weight, backend="cpu")


def test_more_threads_than_tasks_take_no_more_memory():
    arguments = {"threads": (1 << 31) - 1, "out": torch.zeros(2, 3, 4, 8)}
    call_library(**arguments)
    assert torch.equal(arguments["out"], forward(dense(), 0.3, "cpu:portable"))


# ---- processes ----


def _attend(queue, inputs):
    queue.put(blended_attention(*inputs, backend="cpu").flatten().tolist())


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_forked_child_works_whatever_its_number_of_threads():
    draw = torch.Generator().manual_seed(0)
    shapes = (1, 4, 300, 40), (1, 2, 4, 77, 40), (1, 2, 4, 77, 40), (1, 2, 300)
    inputs = [torch.randn(shape, generator=draw) for shape in shapes]
    torch.set_num_threads(2)
    expected = blended_attention(*inputs, backend="cpu").flatten().tolist()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_attend, args=(queue, inputs))
    child.start()
    try:
        assert queue.get(timeout=60) == expected
    finally:
        child.kill()
        child.join()
