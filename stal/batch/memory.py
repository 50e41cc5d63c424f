"""Bytes: what there is, and what a network takes, by what it takes for a small picture."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stal.model.model import Model

# Of what the tensors of a network take at their peak, for what its operators take besides and what
# the heaps of the threads keep: a process took up to 2.15 times as much.
_MARGIN = 2.2
# Of what is free now, for tickets; the rest is for whatever else the process does.
_SHARE = 0.8


def available(device: torch.device) -> int:
    """Bytes that requests may take on a device: 80% of what is free now.

    On a CPU as Linux and its control groups say, elsewhere half of the machine's memory.
    """
    if device.type == "cuda":
        return int(_SHARE * torch.cuda.mem_get_info(device)[0])
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    lines = dict(line.split(":", 1) for line in meminfo.read_text(encoding="utf-8").splitlines())
    free = int(lines["MemAvailable"].split()[0]) * 1024
    group = Path("/sys/fs/cgroup")
    most, used = group / "memory.max", group / "memory.current"
    if most.exists() and used.exists() and (limit := most.read_text().strip()) != "max":
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        # What is cached of files gives way, as in MemAvailable.
        held = int(used.read_text()) - int(stat.get("inactive_file", 0))
        free = min(free, int(limit) - held)
    return int(_SHARE * free)


def unet_bytes_a_cell(model: Model) -> float:
    """Bytes that one row of a call of the UNet takes at its peak, over its latent cells."""
    config = model.unet.config
    side = 1 << len(config.block_out_channels)

    def call(new: Callable[..., Tensor]) -> object:
        text = new(1, 77, config.cross_attention_dim[-1])
        added = None
        if config.addition_embed_type is not None:
            width = config.projection_class_embeddings_input_dim
            pooled = width - 6 * config.addition_time_embed_dim
            added = {"text_embeds": new(1, pooled), "time_ids": new(1, 6)}
        return model.unet(new(1, config.in_channels, side, side), 1.0, text, added)

    return _MARGIN * peak_bytes(call, model.dtype, model.device) / side**2


def vae_bytes_a_cell(model: Model) -> float:
    """Bytes that decoding a picture takes at its peak, over its latent cells."""
    vae: Any = model.components.vae
    side = 8

    def call(new: Callable[..., Tensor]) -> object:
        return vae.decode(new(1, vae.config.latent_channels, side, side)).sample

    # XL's autoencoder goes on in float32 where half precision overflows.
    dtype = torch.promote_types(vae.dtype, torch.float32)
    return (
        _MARGIN
        * peak_bytes(call, vae.dtype, model.device)
        / side**2
        * (dtype.itemsize / vae.dtype.itemsize)
    )


@torch.no_grad()
def peak_bytes(
    call: Callable[[Callable[..., Tensor]], object], dtype: torch.dtype, device: torch.device
) -> int:
    """The most bytes of tensors that are alive at once in call(new).

    new(*shape): a tensor of the dtype on the device. What the networks hold is not counted.
    """
    with _Alive() as alive:
        call(lambda *shape: torch.zeros(shape, dtype=dtype, device=device))
    return alive.peak


class _Alive(TorchDispatchMode):
    """Counts the storages that operators return for as long as they live."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._storages: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        # Views take nothing, whatever they are views of.
        aliases = any(result.alias_info is not None for result in func._schema.returns)
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and not aliases:
                storage = tensor.untyped_storage()
                self._storages[StorageWeakRef(storage)] = storage.nbytes()
        self._storages = {ref: n for ref, n in self._storages.items() if not ref.expired()}
        self.peak = max(self.peak, sum(self._storages.values()))
        return out
