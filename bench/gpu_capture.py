"""Steps of gpu_check.py about captured and compiled calls."""

from functools import partial

import torch
from gpu_work import Work, half, on_gpu
from step_batching import StepBatch, random_requests
from timing import captured

from stal_kernels import blended_attention, blended_attention_ragged
from stal_kernels.testing import Case, example, results


def cuda_graph(work: Work) -> None:
    on_gpu(work, "cuda graph", _cuda_graph)


def _cuda_graph(work: Work, backend: str) -> str:
    """Captures forward and backward, replays on other values, compares with a direct call."""
    case = Case(batch=4, heads=2, seqlen_q=65, prompts=3, ragged=True)
    e = example(case, torch.float16, work.device)
    assert e.prompt_ids is not None
    assert e.offsets is not None
    prompt_ids, offsets = e.prompt_ids, e.offsets
    kept: dict[str, torch.Tensor] = {}

    def call() -> None:
        # Without validate=True: it would read the indices on the host, which capture forbids.
        out = blended_attention_ragged(
            e.q,
            e.k,
            e.v,
            e.weight,
            prompt_ids,
            offsets,
            key_lengths=e.key_lengths,
            backend=backend,
        )
        grads = torch.autograd.grad(out, e.floats(), e.dout)
        kept.update(zip(("out", "dq", "dk", "dv", "dweight"), (out, *grads), strict=True))

    graph = captured(call)
    with torch.no_grad():
        for x in e.floats():
            x.mul_(0.5)
    graph.replay()
    torch.cuda.synchronize()
    direct = results(e, backend)
    different = [name for name in direct if not torch.equal(direct[name], kept[name])]
    assert not different, f"{', '.join(different)} differ between replay and call"
    return "forward and all gradients captured and replayed on new values"


def step_batching(work: Work) -> None:
    for backend in work.backends:
        work.check("step batching", backend, partial(_step_batching, work, backend))


def _step_batching(work: Work, backend: str) -> str:
    """Captures the operator on the buffers of examples/step_batching.py, then replays it.

    On the CPU it is called where a GPU replays it.
    """
    rows, requests = (2, 3) if work.dry_run else (4, 7)
    batch = StepBatch(rows, 2 * rows + 2, half(work), work.device, backend)
    kept: dict[str, torch.Tensor] = {}

    def call() -> None:
        kept["out"] = batch.attend()

    batch.pack()
    replay = captured(call).replay if work.device == "cuda" else call
    waiting = random_requests()[:requests]
    counts: list[int] = []
    while waiting or any(batch.requests):
        while waiting and batch.join(waiting[0]):
            del waiting[0]
        batch.pack()
        replay()
        out, direct = kept["out"], batch.attend()
        assert torch.equal(out, direct), f"step {len(counts)} differs between replay and call"
        there = [request is not None for request in batch.requests]
        drawn = out.flatten(1).any(1).tolist()
        assert drawn == there, f"step {len(counts)} must draw the rows {there}, got {drawn}"
        counts.append(batch.advance(out))
    how = "replayed" if work.device == "cuda" else "called"
    return f"{len(counts)} steps of {min(counts)} to {max(counts)} rows {how}, empty rows are 0"


def compiled(work: Work) -> None:
    for backend in work.backends:
        work.check("torch.compile", backend, partial(_compiled, work, backend))


def _compiled(work: Work, backend: str) -> str:
    size = {"seqlen_q": 20, "seqlen_k": 9, "head_dim": 8} if work.dry_run else {"seqlen_q": 65}
    e = example(Case(heads=2, region="blobs", **size), half(work), work.device)

    def function(*tensors: torch.Tensor) -> torch.Tensor:
        return blended_attention(*tensors, region=e.region, backend=backend)

    out = torch.compile(function, fullgraph=True)(*e.floats())
    grads = torch.autograd.grad(out, e.floats(), e.dout)
    direct = results(e, backend)
    for name, actual in zip(("out", "dq", "dk", "dv", "dweight"), (out, *grads), strict=True):
        assert torch.equal(actual, direct[name]), f"{name} differs from the call without compile"
    return "fullgraph, forward and all gradients equal"
