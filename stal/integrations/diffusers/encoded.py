"""Encoded prompts as a denoiser receives them, and how pipelines are asked for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stal.checked_json import short
from stal.finite import check_finite


@dataclass(frozen=True)
class Encoded:
    """A table of encoded prompts.

    embeds: (prompts, seqlen_k, width), what the denoiser takes as encoder_hidden_states.
    mask: (prompts, seqlen_k) bool, which tokens count; None if all do.
    pooled: (prompts, width), another encoder's one embedding of each, where the text needs it.
    """

    embeds: Tensor
    mask: Tensor | None = None
    pooled: Tensor | None = None

    def rows(self, which: slice) -> Encoded:
        """The table of these prompts alone."""
        parts = (part if part is None else part[which] for part in (self.mask, self.pooled))
        return Encoded(self.embeds[which], *parts)

    def counted(self) -> Tensor:
        """(prompts, seqlen_k) bool: which tokens count."""
        if self.mask is not None:
            return self.mask
        return torch.ones(self.embeds.shape[:2], dtype=torch.bool, device=self.embeds.device)

    def compact(self) -> tuple[Tensor, Tensor | None]:
        """(embeds, lengths): the tokens that count first, (prompts,) int32 of them, or None.

        Attention does not care for the order of keys.
        """
        if self.mask is None:
            return self.embeds, None
        order = (~self.mask).to(torch.uint8).argsort(dim=1, stable=True)
        embeds = self.embeds.gather(1, order[..., None].expand_as(self.embeds))
        return embeds, self.mask.sum(1, dtype=torch.int32)


def joined(parts: Sequence[Encoded]) -> Encoded:
    """One table of several, of the longest one's number of tokens."""
    most = max(part.embeds.shape[1] for part in parts)
    masked = any(p.mask is not None or p.embeds.shape[1] != most for p in parts)
    embeds, masks = [], []
    for part in parts:
        missing = most - part.embeds.shape[1]
        embeds.append(nn.functional.pad(part.embeds, (0, 0, 0, missing)).to(parts[0].embeds))
        masks.append(nn.functional.pad(part.counted(), (0, missing)).to(parts[0].embeds.device))
    pooled = [part.pooled for part in parts if len(part.embeds)]
    whole = [each for each in pooled if each is not None]
    return Encoded(
        torch.cat(embeds),
        torch.cat(masks) if masked else None,
        torch.cat(whole) if whole and len(whole) == len(pooled) else None,
    )


def check_embeds(
    name: str,
    value: Any,
    *,
    prompts: Sequence[int] = (),
    like: Encoded | None = None,
    of: str = "prompts",
) -> Encoded:
    """The caller's embeddings, a tensor or a pair (embeds, mask), as a table.

    Detached: no gradient reaches them, and what they were computed from can be freed.

    Args:
        name: what errors call them.
        value: the embeddings.
        prompts: how many they may be of; any number if not given.
        like: the embeddings whose width they must have.
        of: what errors call that which each row is of.

    Raises:
        ValueError: another type, shape, number or width, or a prompt without a token that counts.
        NotFinite: NaN or infinity.
    """
    parts = value if isinstance(value, tuple) else ()
    if len(parts) > 2 or sum(isinstance(part, Tensor) and part.ndim == 3 for part in parts) > 1:
        raise ValueError(
            f"{name} must be a tensor or a pair (embeds, mask), got {len(parts)} parts, as"
            " encode_prompt returns them: give the first, with its mask if it has one"
        )
    embeds, mask = parts if len(parts) == 2 else (value, None)
    if not isinstance(embeds, Tensor) or embeds.ndim != 3 or not embeds.is_floating_point():
        got = tuple(embeds.shape) if isinstance(embeds, Tensor) else short(embeds)
        raise ValueError(f"{name} must be a (prompts, tokens, width) tensor, got {got}")
    if prompts and len(embeds) not in prompts:
        allowed = " or ".join(map(str, prompts))
        raise ValueError(f"{name} must be of {allowed} {of}, got {len(embeds)}")
    if like is not None and embeds.shape[2] != like.embeds.shape[2]:
        width = like.embeds.shape[2]
        raise ValueError(
            f"{name} must have the width of prompt_embeds, {width}, got {embeds.shape[2]}"
        )
    if mask is not None:
        if not isinstance(mask, Tensor) or mask.shape != embeds.shape[:2]:
            got = tuple(mask.shape) if isinstance(mask, Tensor) else short(mask)
            raise ValueError(f"{name} must have a mask {tuple(embeds.shape[:2])}, got {got}")
        mask = mask.to(embeds.device) > 0
        if not bool(mask.any(1).all()):
            raise ValueError(
                f"{name} must have a token that counts in each row, got a mask without"
            )
    check_finite(name, embeds, embeds.dtype)
    return Encoded(embeds.detach(), mask)


def by_encode_prompt(pipe: Any, texts: Sequence[str], options: Mapping[str, Any]) -> Encoded:
    """What `pipe.encode_prompt` gives first, without classifier-free guidance.

    InstructPix2Pix has but a private one, which gives nothing else.
    """
    public = getattr(pipe, "encode_prompt", None)
    encode = pipe._encode_prompt if public is None else public
    found = encode(
        list(texts),
        device=pipe._execution_device,
        num_images_per_prompt=1,
        do_classifier_free_guidance=False,
        **options,
    )
    return Encoded(found if isinstance(found, Tensor) else found[0])
