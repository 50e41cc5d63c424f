"""The noise that pictures are drawn from: by image, so that no picture depends on its batch."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from stal.checked_json import scalar


class ImageNoise:
    """Standard normal noise drawn image by image on the CPU, so that a picture does not depend on
    the batch around it.

    Args:
        prompts, num_images: the batch has num_images images of each prompt, one prompt after the
            other.
        seed: image i of every prompt is drawn from the noise of seed + i; or one seed an image.
        generator: CPU generators to draw from instead, one an image.

    Attributes:
        seeds: one an image of the batch; None where the noise comes from generators.

    Raises:
        ValueError: seeds or generators that are not one an image, a seed that is no integer of 64
            bits, or a generator on another device.
    """

    def __init__(
        self,
        prompts: int,
        num_images: int,
        seed: int | Sequence[int],
        generator: torch.Generator | Sequence[torch.Generator] | None,
    ) -> None:
        total = prompts * num_images
        self.seeds: list[int | None] = [None] * total
        if generator is None:
            seeds = _seeds(seed, prompts, num_images)
            self.seeds = [*seeds]
            self.generators = [torch.Generator("cpu").manual_seed(s) for s in seeds]
        elif isinstance(generator, torch.Generator):
            self.generators = [generator]
        else:
            self.generators = list(generator)
        if len(self.generators) != total:
            name = "seed" if generator is None else "generator"
            raise ValueError(
                f"{name} must be one for each of {total} images, got {len(self.generators)}"
            )
        if any(g.device.type != "cpu" for g in self.generators):
            raise ValueError("generator must be on the CPU: noise is drawn there for every device")
        self._states = [g.get_state() for g in self.generators]

    def rewind(self) -> None:
        """Back to the first draw: the same noise again."""
        for generator, state in zip(self.generators, self._states, strict=True):
            generator.set_state(state)

    def initial(self, channels: int, height: int, width: int) -> Tensor:
        """(images, channels, height, width) float32 on the CPU: the next draw of each image."""
        shape = (1, channels, height, width)
        return torch.cat(
            [
                torch.randn(shape, generator=g, dtype=torch.float32, device="cpu")
                for g in self.generators
            ]
        )

    def __call__(self, x: Tensor) -> Tensor:
        """The next draw, in the shape, dtype and device of x: what samplers call noise."""
        return self.initial(*x.shape[1:]).to(x.device, x.dtype)


def _seeds(seed: int | Sequence[int], prompts: int, num_images: int) -> list[int]:
    seed = scalar(seed)
    try:
        if isinstance(seed, Iterable):
            seeds = [operator.index(s) for s in seed]
        else:
            seeds = [operator.index(seed) + i for i in range(num_images)] * prompts
    except TypeError:
        raise ValueError(f"seed must be an integer or one an image, got {seed!r}") from None
    for value in seeds:
        if not -(2**63) <= value < 2**64:
            raise ValueError(f"seed must lie in [-2**63, 2**64), got {value}")
    return seeds
