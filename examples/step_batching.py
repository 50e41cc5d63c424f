"""Step batching: requests of one batch are at different steps, and join and leave between steps.

    python examples/step_batching.py

Whatever the operator reads lies in buffers that are allocated once and written in place, so a CUDA
graph of `attend` stays valid whoever joins or leaves: replay it where `attend` is called here. A
model has k and v once a layer and the rest once a resolution; this one moves x to its attention.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from stal_kernels import blended_attention_ragged

HEADS, PIXELS, TOKENS, HEAD_DIM = 2, 35, 9, 16


@dataclass(eq=False)
class Request:
    x: Tensor  # (HEADS, PIXELS, HEAD_DIM), what is drawn
    prompts: list[tuple[Tensor, Tensor]]  # k and v, each (HEADS, at most TOKENS, HEAD_DIM)
    weights: Tensor  # (steps, prompts, PIXELS), float32
    region: Tensor  # (prompts, PIXELS), bool
    step: int = 0


class StepBatch:
    """Room for `rows` requests at a time, with `entries` prompts in all."""

    def __init__(
        self,
        rows: int,
        entries: int,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        backend: str = "auto",
    ) -> None:
        self.q = torch.zeros(rows, HEADS, PIXELS, HEAD_DIM, dtype=dtype, device=device)
        self.k = torch.zeros(entries, HEADS, TOKENS, HEAD_DIM, dtype=dtype, device=device)
        self.v = torch.zeros_like(self.k)
        self.weight = torch.zeros(entries, PIXELS, device=device)
        self.region = torch.zeros(entries, PIXELS, dtype=torch.bool, device=device)
        self.key_lengths = torch.zeros(entries, dtype=torch.int32, device=device)
        self.prompt_ids = torch.zeros(entries, dtype=torch.int32, device=device)
        self.offsets = torch.zeros(rows + 1, dtype=torch.int32, device=device)
        self.backend = backend
        self.requests: list[Request | None] = [None] * rows
        self.table: list[list[int]] = [[] for _ in range(rows)]  # rows of k and v that each holds
        self.free = list(range(entries))

    def join(self, request: Request) -> bool:
        """Whether there is room. The prompts stay where they are put until the request is done."""
        count = len(request.prompts)
        if None not in self.requests or count > len(self.free):
            return False
        row = self.requests.index(None)
        self.requests[row], self.q[row] = request, request.x
        self.table[row], self.free = self.free[:count], self.free[count:]
        for t, (k, v) in zip(self.table[row], request.prompts, strict=True):
            length = k.shape[1]
            self.k[t, :, :length], self.v[t, :, :length], self.key_lengths[t] = k, v, length
        return True

    def pack(self) -> None:
        """Writes which prompts each row has, and the weights of its own step."""
        ids: list[int] = []
        offsets = [0]
        self.region.zero_()
        for request, table in zip(self.requests, self.table, strict=True):
            if request is not None:
                here = slice(len(ids), len(ids) + len(table))
                self.weight[here] = request.weights[request.step]
                self.region[here] = request.region
            ids += table
            offsets.append(len(ids))
        # Offsets end at the number of entries: spare ones go to the last row and are in no region.
        offsets[-1] = len(self.prompt_ids)
        self.prompt_ids[: len(ids)] = torch.tensor(ids, dtype=torch.int32)
        self.offsets.copy_(torch.tensor(offsets, dtype=torch.int32))

    def attend(self) -> Tensor:
        """(rows, HEADS, PIXELS, HEAD_DIM); 0 in an empty row."""
        return blended_attention_ragged(
            self.q,
            self.k,
            self.v,
            self.weight,
            self.prompt_ids,
            self.offsets,
            region=self.region,
            key_lengths=self.key_lengths,
            backend=self.backend,
        )

    def advance(self, out: Tensor) -> int:
        """One step of every request; who is done leaves. Returns how many there were."""
        here = [(row, request) for row, request in enumerate(self.requests) if request is not None]
        for row, request in here:
            self.q[row] += (out[row] - self.q[row]) / len(request.weights)
            request.step += 1
            if request.step == len(request.weights):
                request.x = self.q[row].clone()
                self.free += self.table[row]
                self.requests[row], self.table[row] = None, []
        return len(here)


def alone(request: Request) -> Tensor:
    """What a request that has not begun draws by itself, in plain PyTorch."""
    x = request.x
    for weights in (request.weights * request.region)[..., None]:
        each = (F.scaled_dot_product_attention(x, k, v) for k, v in request.prompts)
        x = x + (sum(a * w for a, w in zip(each, weights, strict=True)) - x) / len(request.weights)
    return x


def random_requests() -> list[Request]:
    """Seven, of 1 to 4 prompts and 2 to 6 steps."""
    requests = []
    for i, prompts in enumerate((2, 4, 1, 3, 2, 1, 3)):
        lengths = [1 + (3 * i + 2 * p) % TOKENS for p in range(prompts)]
        kv = [(torch.randn(HEADS, n, HEAD_DIM), torch.randn(HEADS, n, HEAD_DIM)) for n in lengths]
        weights = torch.randn(2 + 2 * i % 5, prompts, PIXELS)
        region = torch.rand(prompts, PIXELS) > 0.5
        requests.append(Request(torch.randn(HEADS, PIXELS, HEAD_DIM), kv, weights, region))
    return requests


if __name__ == "__main__":
    torch.manual_seed(0)
    requests = random_requests()
    expected = [alone(request) for request in requests]
    batch, waiting, counts = StepBatch(rows=4, entries=8), list(requests), []
    while waiting or any(batch.requests):
        while waiting and batch.join(waiting[0]):
            del waiting[0]
        batch.pack()
        counts.append(batch.advance(batch.attend()))
    for request, x in zip(requests, expected, strict=True):
        torch.testing.assert_close(request.x, x)
    print(f"{len(requests)} requests, each as alone, in {len(counts)} steps of {counts} rows")
