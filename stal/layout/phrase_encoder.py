"""Phrases through the text encoder of a pipeline, as the paper has it, for the layout predictor.

encoder = TextEncoder.load("stable-diffusion-v1-5")
encoder([("a red car", "car")])   # (1, dim)
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stal.finite import check_finite
from stal.model.checkpoint import load_text_encoder, load_tokenizer
from stal.model.tensors import weight_files
from stal.torch_state import undisturbed

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer

_BATCH = 64


class TextEncoder(nn.Module):
    """Embeds an object as its phrase's pooled text embedding, normalised to variance 1; frozen.

    Attributes:
        dim: of the embedding.
        identity: "clip-text/" and a digest of the encoder's weights, stored with what is trained.
    """

    def __init__(self, model: CLIPTextModel, tokenizer: CLIPTokenizer, identity: str) -> None:
        super().__init__()
        self.dim: int = model.config.hidden_size
        self.identity = identity
        # In a list, so that its weights are not this module's: they are not stored twice.
        self._parts = [(model.eval().requires_grad_(False), tokenizer)]
        self._known: dict[str, Tensor] = {}

    @classmethod
    @undisturbed()
    def load(cls, folder: str | os.PathLike[str]) -> TextEncoder:
        """From a folder in diffusers' layout.

        Raises:
            ValueError: no text encoder with safetensors weights, or no tokenizer, in it.
        """
        from transformers import CLIPTextModel

        root = Path(folder)
        part = root / "text_encoder"
        if not part.is_dir():
            raise ValueError(
                f"text encoder must be a diffusers folder with {part.name}, got {os.fspath(folder)}"
            )
        digest = hashlib.sha256()
        for weights in weight_files(part, "model", torch.float32):
            with weights.open("rb") as file:
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
        model = load_text_encoder(part, CLIPTextModel)
        tokenizer = load_tokenizer(root / "tokenizer")
        return cls(model, tokenizer, f"clip-text/{digest.hexdigest()[:16]}")

    @undisturbed()
    @torch.no_grad()
    def forward(self, phrases: Sequence[tuple[str, str]]) -> Tensor:
        """(n, dim) float32 for n pairs (phrase, noun); the noun is in the phrase already."""
        model, tokenizer = self._parts[0]
        texts = [phrase for phrase, _ in phrases]
        new = sorted(set(texts) - self._known.keys())
        for start in range(0, len(new), _BATCH):
            part = new[start : start + _BATCH]
            tokens = tokenizer(
                part,
                padding="max_length",
                truncation=True,
                max_length=model.config.max_position_embeddings,
                return_tensors="pt",
            )
            pooled = model(tokens.input_ids).pooler_output
            check_finite("what text_encoder gives", pooled, torch.float32)
            rows = F.layer_norm(pooled.float(), (self.dim,))
            self._known.update(zip(part, rows, strict=True))
        return torch.stack([self._known[text] for text in texts])
