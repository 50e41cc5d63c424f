"""How operators of torch, which take tensors and numbers alone, find an object again."""

from __future__ import annotations

from itertools import count
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

import torch
from torch import Tensor

T = TypeVar("T")


class Registry(Generic[T]):
    """Objects by a number, for as long as somebody else holds them."""

    def __init__(self) -> None:
        self._objects: WeakValueDictionary[int, T] = WeakValueDictionary()
        self._numbers = count()

    def add(self, item: T) -> Tensor:
        """Its number, () int64: a tensor, since torch.compile makes numbers part of the code."""
        number = next(self._numbers)
        self._objects[number] = item
        return torch.tensor(number, dtype=torch.int64, device="cpu")

    def __getitem__(self, number: Tensor) -> T:
        return self._objects[int(number)]
