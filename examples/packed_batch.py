"""Pictures with different numbers of objects as one ragged batch, each prompt encoded once.

    python examples/packed_batch.py

A table holds the keys and values of all prompts; ids and offsets say which of its rows a picture
attends to. It equals one picture after the other, each prompt in its own length.
"""

from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from stal_kernels import blended_attention_ragged

HEADS, PIXELS, WIDTH = 4, 35, 32
PICTURES = (  # the prompts of each: the global one, then one an object
    ("a cat beside a dog", "a cat", "a dog"),
    ("a lake",),
    ("",),
    ("two birds above a lake with a cat", "two birds", "a lake", "a cat"),
    ("a lake",),
)


def split(x: Tensor) -> Tensor:
    """(..., tokens, width) -> (..., heads, tokens, head_dim)"""
    return x.unflatten(-1, (HEADS, -1)).transpose(-2, -3)


torch.manual_seed(0)
texts = list(dict.fromkeys(text for prompts in PICTURES for text in prompts))
encoded = [torch.randn(len(text.split()) + 2, WIDTH) for text in texts]  # by a text encoder
to_k, to_v = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
q = torch.randn(len(PICTURES), HEADS, PIXELS, WIDTH // HEADS)
weights = [torch.randn(len(prompts), PIXELS) for prompts in PICTURES]
regions = [torch.rand(len(prompts), PIXELS) > 0.3 for prompts in PICTURES]

# What lies beyond a prompt's length is never read, so NaN will do as padding.
table = pad_sequence(encoded, batch_first=True, padding_value=float("nan"))
ids = [[texts.index(text) for text in prompts] for prompts in PICTURES]
out = blended_attention_ragged(
    q,
    split(to_k(table)),
    split(to_v(table)),
    weight=torch.cat(weights),
    prompt_ids=torch.tensor(list(chain(*ids)), dtype=torch.int32),
    offsets=torch.tensor([0, *map(len, ids)]).cumsum(0).int(),
    region=torch.cat(regions),
    key_lengths=torch.tensor([len(prompt) for prompt in encoded], dtype=torch.int32),
)

for i, rows in enumerate(ids):
    alone = torch.zeros_like(q[i])
    for row, weight in zip(rows, weights[i] * regions[i], strict=True):
        k, v = split(to_k(encoded[row])), split(to_v(encoded[row]))
        alone += F.scaled_dot_product_attention(q[i], k, v) * weight[:, None]
    torch.testing.assert_close(out[i], alone)
entries = sum(map(len, ids))
print(f"{len(ids)} pictures of {entries} prompts, {len(texts)} different: each as by itself")
