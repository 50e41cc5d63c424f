"""The prompts of all requests that are being drawn, encoded and projected once each.

Every layer has one slab of keys and one of values, a row for each text; the op's packs of the rows
lie beside them where the CPU computes. Rows are written once, when a request that brings a new text
joins, and stay when the last request that reads them leaves, until another text needs the place.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stal.attention import Pack, Prompts, float32_precision
from stal.model.model import Model
from stal.model.unet import Attention
from stal.torch_state import undisturbed

# Rows by which slabs grow at least, and rows of texts that nobody reads which are kept.
_GROWTH = 16
_KEPT = 64


@dataclass(eq=False)
class Text:
    """A prompt: where its row is, or while it has none what is to be written there.

    users: requests that hold it.
    encoded: the batch in which it was encoded, and its place there.
    pooled: XL's pooled embedding.
    """

    text: str
    users: int = 0
    row: int | None = None
    encoded: tuple[Prompts, int] | None = None
    pooled: Tensor | None = None


class _Slab:
    """Tensors of one layer that grow along their first dimension."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []

    def write(self, row: int, values: Sequence[Tensor]) -> None:
        if not self.tensors or row >= len(self.tensors[0]):
            old = self.tensors or [value.new_empty(0, *value.shape) for value in values]
            more = max(_GROWTH, len(old[0]) // 4)
            self.tensors = [torch.cat([t, t.new_zeros(more, *t.shape[1:])]) for t in old]
        for tensor, value in zip(self.tensors, values, strict=True):
            tensor[row] = value


class Table:
    """See the module. `hold`, `encode` and `release` may be called beside the methods that the
    denoiser calls, which are the others.

    Args:
        model: whose text encoder and UNet.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._layers: dict[str, Any] = {
            module.name: module
            for module in model.unet.modules()
            if isinstance(module, Attention) and module.is_cross
        }
        self._slabs = {name: _Slab() for name in self._layers}
        self._packs = {name: _Slab() for name in self._layers}
        self._precision = float32_precision()
        self._lock = threading.Lock()
        self._texts: dict[str, Text] = {}
        self._idle: OrderedDict[str, Text] = OrderedDict()  # with a row, the longest idle first
        self._rows = 0
        self._pooled: dict[int, Tensor] = {}

    def row_bytes(self, seqlen_k: int) -> int:
        """What a text takes: keys and values of each layer and, where the CPU packs them, a pack,
        which has the size of float32 copies; and a quarter for slabs that have room to grow."""
        numbers = sum(2 * seqlen_k * m.heads * m.head_dim for m in self._layers.values())
        each = self._model.dtype.itemsize + 4 * (self._model.device.type == "cpu")
        return int(numbers * each * 5 // 4)

    def hold(self, texts: Sequence[str]) -> list[Text]:
        """The texts, each with one user more."""
        with self._lock:
            found = []
            for text in texts:
                each = self._texts.setdefault(text, Text(text))
                each.users += 1
                self._idle.pop(text, None)
                found.append(each)
            return found

    def release(self, texts: Sequence[Text]) -> None:
        """What `hold` gave has one user less."""
        with self._lock:
            for each in texts:
                each.users -= 1
                if each.users == 0 and each.row is not None:
                    self._idle[each.text] = each
                elif each.users == 0:
                    del self._texts[each.text]

    @undisturbed()
    @torch.no_grad()
    def encode(self, texts: Sequence[Text]) -> None:
        """Encodes and projects those that are not yet, in one batch.

        Raises: what `Model.encode` does, and then none of them is encoded.
        """
        # In this order: `place` sets the row before it clears what was encoded.
        fresh = [each for each in dict.fromkeys(texts) if not each.encoded and each.row is None]
        if not fresh:
            return
        embeddings, pooled = self._model.encode([each.text for each in fresh])
        prompts = Prompts(embeddings)
        for name, module in self._layers.items():
            prompts.project(name, module)
            prompts.pack(name, module, pixels=1)
        for index, each in enumerate(fresh):
            each.pooled = None if pooled is None else pooled[index]
            each.encoded = prompts, index

    def place(self, each: Text) -> int:
        """The row of an encoded text, where its keys and values are from now on."""
        if each.row is None:
            assert each.encoded is not None
            row = self._free_row()
            prompts, index = each.encoded
            for name, module in self._layers.items():
                self._slabs[name].write(row, [t[index] for t in prompts.project(name, module)])
                pack = prompts.pack(name, module, pixels=1) if self._serve_packs() else None
                if pack is not None:
                    self._packs[name].write(row, [t[index] for t in pack])
            if each.pooled is not None:
                self._pooled[row] = each.pooled
            each.row, each.encoded, each.pooled = row, None, None
        return each.row

    def layer(self, name: str) -> tuple[Tensor, Tensor, Pack | None]:
        """k, v: (rows, heads, seqlen_k, head_dim) of a layer, and their pack."""
        k, v = (tensor[: self._rows] for tensor in self._slabs[name].tensors)
        if not self._serve_packs() or not self._packs[name].tensors:
            return k, v, None
        words, stamp, sample = (tensor[: self._rows] for tensor in self._packs[name].tensors)
        return k, v, (words, stamp, sample)

    def pooled(self, rows: Sequence[int]) -> Tensor | None:
        """(rows, projection) XL's pooled embeddings of the rows; None for other models."""
        return torch.stack([self._pooled[row] for row in rows]) if self._pooled else None

    def _serve_packs(self) -> bool:
        """Packs are for calls of one precision of float32 products: gone once it has changed."""
        if float32_precision() != self._precision:
            self._packs.clear()
        return bool(self._packs)

    def _free_row(self) -> int:
        with self._lock:
            if len(self._idle) > _KEPT:
                text, each = self._idle.popitem(last=False)
                del self._texts[text]
                assert each.row is not None
                return each.row
        self._rows += 1
        return self._rows - 1
