"""Previews of drawings on their way: small pictures of the latest step, made by a thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from io import BytesIO

import torch
from torch import Tensor
from torch.nn import functional as F

from stal.model.model import Model

# Latent cells along the longer side of a preview, 256 pixels of Stable Diffusion.
_MOST_CELLS = 32


class Previewer:
    """A thread that decodes the latest latents of each drawing, and passes over older ones.

    Args:
        model: whose autoencoder.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._changed = threading.Condition()
        self._wanted: dict[Hashable, tuple[Tensor, bool, Callable[[bytes], object]]] = {}
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="stal.app previews", daemon=True)
        self._thread.start()

    def want(
        self, key: Hashable, latents: Tensor, then: Callable[[bytes], object], *, whole: bool
    ) -> None:
        """Hands over latents (1, channels, height, width), in place of older ones of the key.

        then: called by the thread with the picture: a JPEG, or if `whole` a PNG of full size.
        """
        with self._changed:
            self._wanted[key] = latents, whole, then
            self._changed.notify()

    def forget(self, key: Hashable) -> None:
        with self._changed:
            self._wanted.pop(key, None)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._wanted or self._closed):
                    self._changed.wait()
                if self._closed:
                    return
                key = next(iter(self._wanted))
                latents, whole, then = self._wanted.pop(key)
            start = time.perf_counter()
            try:
                made = preview(self._model, latents, whole=whole)
            except Exception:  # the drawing itself says what is wrong
                continue
            then(made)
            # As much time for the drawings themselves, which share the processor.
            time.sleep(min(1.0, time.perf_counter() - start))


@torch.no_grad()
def preview(model: Model, latents: Tensor, *, whole: bool) -> bytes:
    """Latents (1, channels, height, width) as a JPEG, at most 32 cells a side; whole, as a PNG."""
    longest = max(latents.shape[2:])
    if not whole and longest > _MOST_CELLS:
        size = [max(1, round(side * _MOST_CELLS / longest)) for side in latents.shape[2:]]
        latents = F.interpolate(latents.float(), size, mode="area").to(latents.dtype)
    buffer = BytesIO()
    (image,) = model.decode(latents)
    image.save(buffer, "PNG" if whole else "JPEG")
    return buffer.getvalue()
