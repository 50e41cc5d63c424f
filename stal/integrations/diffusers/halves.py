"""Which rows of a denoiser's batch are of which prompt, and which are its unconditional half.

Pipelines differ: [negative, positive], [positive, negative], [positive, negative, negative], the
two in calls of their own, or no guidance at all. The rows say it themselves: those of the positive
half are the encoded prompt, which is known.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# How far each token of a row may be from that of the prompt that it is, as a share of its norm:
# half precision and the batch that it was encoded in move it; some of another prompt's are farther.
_NEAR = 0.2
# Of the rows of a prompt: conditional, unconditional, and one with or without an input image.
_MOST_BLOCKS = 4


@dataclass(frozen=True)
class Halves:
    """How a batch is made up of blocks, each of `images` pictures of every prompt in turn.

    conditional: for each block, whether it is of the prompts.
    images: rows of one prompt in one block.
    prompts: in one block.
    """

    conditional: tuple[bool, ...]
    images: int
    prompts: int

    @property
    def block(self) -> int:
        """Rows of one block."""
        return self.images * self.prompts

    @property
    def rows(self) -> int:
        """Rows of the batch."""
        return self.block * len(self.conditional)

    def is_conditional(self, row: int) -> bool:
        return self.conditional[row // self.block]

    def prompt_of(self, row: int) -> int:
        """The prompt of whose pictures a row is, in any block."""
        return row % self.block // self.images

    @property
    def unconditional(self) -> int | None:
        """The first block that is of no prompt."""
        return self.conditional.index(False) if False in self.conditional else None


@torch.no_grad()
def halves_of(rows: Tensor, prompts: Tensor) -> Halves | None:
    """The blocks of a batch.

    On a GPU this waits for it: ask once a run.

    Args:
        rows: (batch, seqlen_k, width), what the denoiser was given.
        prompts: (prompts, seqlen_k, width), what the conditional rows are.

    Returns:
        The fewest blocks that are each wholly of the prompts or of none of them, the latter all
        alike; None if the batch has no such blocks. Where no row is of the prompts there is one
        block.
    """
    count, batch = len(prompts), len(rows)
    if batch % count:
        return None
    if rows.shape[1:] != prompts.shape[1:]:
        return Halves((False,), batch // count, count)
    near = torch.stack([_near(rows, prompt) for prompt in prompts], dim=1).tolist()
    found = None
    for blocks in range(1, _MOST_BLOCKS + 1):
        if batch % (blocks * count):
            continue
        images = batch // (blocks * count)
        each = [
            [near[block * images * count + i][i // images] for i in range(images * count)]
            for block in range(blocks)
        ]
        others = [i for i, block in enumerate(each) if not any(block)]
        if all(all(block) or not any(block) for block in each) and _alike(rows, others, blocks):
            found = Halves(tuple(all(block) for block in each), images, count)
            break
    if found is None or any(found.conditional) or not any(any(row) for row in near):
        return found
    return None


def _alike(rows: Tensor, which: list[int], blocks: int) -> bool:
    """Whether these of so many blocks hold the same prompts: one of others is none of guidance."""
    parts = rows.chunk(blocks)
    return all(
        bool(_near(row[None], first))
        for i in which[1:]
        for row, first in zip(parts[i], parts[which[0]], strict=True)
    )


def _near(rows: Tensor, prompt: Tensor) -> Tensor:
    """(batch,) bool: which rows are a prompt (seqlen_k, width), but for rounding.

    Prompts may be apart in a few of a thousand tokens, and the norm of one token, such as that of
    the beginning, may be larger than all others': each token is compared on its own.
    """
    prompt = prompt.to(rows.device, torch.float32)
    apart = torch.linalg.vector_norm(rows.to(torch.float32) - prompt, dim=2)
    sizes = torch.linalg.vector_norm(prompt, dim=1)
    # Tokens of zeros have no norm of their own.
    allowed = _NEAR * sizes + 1e-3 * sizes.square().mean().sqrt()
    return (apart <= allowed).all(1)
