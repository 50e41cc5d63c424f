"""The order of rows in which a tile of them meets few prompts, and the prompts that it meets.

Both depend on regions alone. Regions are those of entries here, in the dense form too, of which
the elements have `prompts` entries each. An entry is a bit of an int64: elements that have more
entries than it has bits stay in the order of memory, and each of their tiles may meet all.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

TILE_ROWS = 32
_BITS = 64


def order_of(region: Tensor, offsets: Tensor) -> Tensor:
    """The rows of each element, those where the same prompts exist one after the other.

    A stable sort: the rows where the first prompt exists come first, among equals those where the
    second one does, and so on; then as in memory.

    Args:
        region: (entries, seqlen_q), bool.
        offsets: (batch + 1,): element b has the entries offsets[b] .. offsets[b + 1] - 1.

    Returns:
        (batch, seqlen_q), int32.
    """
    # The first prompt's bit is the sign, which alone says "exists" where it is set.
    keys = _bits_of(~region, offsets, last_first=True) ^ -(2**63)
    keys = keys.masked_fill(_crowded(offsets), 0)
    return keys.sort(dim=1, stable=True).indices.to(torch.int32)


def tiles_of(order: Tensor, region: Tensor, offsets: Tensor) -> Tensor:
    """Which entries of an element exist at any of the rows order[b, 32 t : 32 t + 32], a bit each.

    Args:
        order: (batch, seqlen_q), int32.
        region, offsets: as in `order_of`.

    Returns:
        (batch, ceil(seqlen_q / 32)), int64; all bits are set in elements of more than 64 entries.
    """
    batch, seqlen_q = order.shape
    tiles = -(-seqlen_q // TILE_ROWS)
    bits = _bits_of(region, offsets, last_first=False).gather(1, order.long())
    bits = pad(bits, (0, tiles * TILE_ROWS - seqlen_q)).view(batch, tiles, TILE_ROWS)
    half = TILE_ROWS
    while half > 1:
        half //= 2
        bits = bits[..., :half] | bits[..., half:]
    return bits[..., 0].masked_fill(_crowded(offsets), -1)


def dense_offsets(batch: int, prompts: int, device: torch.device) -> Tensor:
    """The offsets of the dense form, (batch + 1,)."""
    return torch.arange(batch + 1, device=device) * prompts


def _crowded(offsets: Tensor) -> Tensor:
    """(batch, 1) bool: which elements have more entries than there are bits."""
    return offsets.diff()[:, None] > _BITS


def _bits_of(x: Tensor, offsets: Tensor, *, last_first: bool) -> Tensor:
    """(batch, seqlen_q) int64: bit i, or 63 - i, is x (entries, seqlen_q) of an element's entry i.

    Anything in elements that are crowded.
    """
    batch = offsets.shape[0] - 1
    entry = torch.arange(x.shape[0], device=x.device)
    ends = offsets[1:].long()
    # On a GPU nobody has looked at the values of offsets.
    element = torch.searchsorted(ends, entry, right=True).clamp(max=max(batch - 1, 0))
    place = (entry - offsets.long()[element]).clamp(0, _BITS - 1)
    if last_first:
        place = _BITS - 1 - place
    bits = torch.zeros(batch, x.shape[1], dtype=torch.int64, device=x.device)
    return bits.index_add_(0, element, x.long() << place[:, None])
