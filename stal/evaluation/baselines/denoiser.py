"""What every baseline starts from: a plain drawing, and its UNet asked about texts of one's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from stal.attention import Plain, Prompts
from stal.drawing import Drawing
from stal.layout import Layout
from stal.model.model import Model
from stal.pipeline import Pipeline
from stal.settings import Complete, Settings


def plain_drawing(
    pipe: Pipeline,
    prompts: Sequence[str],
    *,
    layouts: Sequence[Layout | None],
    seeds: Sequence[int],
    settings: Settings,
) -> Drawing:
    """Plain attention, one image a prompt, image i from the noise of seeds[i].

    Raises:
        ValueError: settings of several images a prompt, or what `Pipeline.prepare` refuses.
    """
    if settings.num_images != 1:
        raise ValueError(
            f"settings.num_images must be 1, got {settings.num_images}; repeat the prompt instead"
        )
    plain = replace(settings, attention="plain")
    return pipe.prepare(prompts, plain, layouts=layouts, seed=list(seeds))


class Denoiser:
    """A model's UNet, unguided, for any texts.

    Args:
        model: the networks.
        settings: give the negative prompt, the guidance scale and the picture's size.
        texts: what will be asked about; the negative prompt is always among them.

    Attributes:
        rows: the table row of each text.
        embeddings: (table, seqlen_k, width).
        prompts: the table.
    """

    def __init__(self, model: Model, settings: Complete, texts: Iterable[str]) -> None:
        self.model, self.settings, self.scale = model, settings, settings.guidance_scale
        self.rows = {
            text: row for row, text in enumerate(dict.fromkeys([settings.negative_prompt, *texts]))
        }
        self.negative = self.rows[settings.negative_prompt]
        self.embeddings, self._pooled = model.encode(list(self.rows))
        self.prompts = Prompts(self.embeddings)

    def __call__(
        self,
        x: Tensor,
        t: float,
        rows: Sequence[int],
        attention: Callable[..., Tensor] | None = None,
    ) -> Tensor:
        """The UNet's prediction for latents x (batch, channels, height, width), in its dtype.

        rows: table row of each batch element's text, which also says what XL is told of it.
        attention: plain attention to these rows if None.
        """
        model, settings = self.model, self.settings
        own = None if self._pooled is None else self._pooled[list(rows)]
        added = model.added_conditions(own, height=settings.height, width=settings.width)
        attend = attention or Plain(self.prompts, rows)
        return model.unet(x.to(model.dtype), t, None, added, attention=attend)

    def guided(
        self,
        x: Tensor,
        t: float,
        rows: Sequence[int],
        attention: Callable[..., Tensor] | None = None,
    ) -> Tensor:
        """e_0 + g (e_row - e_0) of each element of x, e_0 for the negative prompt.

        attention: of the batch (unconditional half, conditional half), or of the conditional one
            alone where the guidance scale g is 1.
        """
        if self.scale == 1:
            return self(x, t, rows, attention)
        both = [self.negative] * len(rows) + list(rows)
        unconditional, conditional = self(torch.cat([x, x]), t, both, attention).chunk(2)
        return unconditional + self.scale * (conditional - unconditional)

    def composed(
        self, x: Tensor, t: float, images: Sequence[int], rows: Sequence[int], weights: Tensor
    ) -> Tensor:
        """e_0 + g sum_j weights_j (e_j - e_0) of each image, over the terms j that are its own.

        images, rows: the image and the table row of each term.
        weights: (terms, 1 or channels, 1 or height, 1 or width) in the dtype of x.
        """
        n, mine = len(x), torch.tensor(images, dtype=torch.long, device=x.device)
        predictions = self(torch.cat([x, x[mine]]), t, [self.negative] * n + list(rows))
        unconditional, conditional = predictions[:n], predictions[n:]
        terms = weights * (conditional - unconditional[mine])
        return unconditional + self.scale * torch.zeros_like(x).index_add(0, mine, terms)
