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

from stal.model.checkpoint import load_tokenizer

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
    def load(cls, folder: str | os.PathLike[str]) -> TextEncoder:
        """From a folder in diffusers' layout.

        Raises:
            ValueError: no text encoder with safetensors weights, or no tokenizer, in it.
        """
        from transformers import CLIPTextModel

        root = Path(folder)
        weights = root / "text_encoder" / "model.safetensors"
        if not weights.is_file():
            raise ValueError(
                f"text encoder must be a diffusers folder with {weights.relative_to(root)}, got"
                f" {os.fspath(folder)}"
            )
        with weights.open("rb") as file:
            digest = (
                hashlib.file_digest(file, "sha256") if hasattr(hashlib, "file_digest") else None
            )
            if digest is None:  # Python 3.10
                digest = hashlib.sha256(file.read())
        model = CLIPTextModel.from_pretrained(weights.parent, local_files_only=True)
        tokenizer = load_tokenizer(root / "tokenizer")
        return cls(model, tokenizer, f"clip-text/{digest.hexdigest()[:16]}")

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
            rows = F.layer_norm(pooled.float(), (self.dim,))
            self._known.update(zip(part, rows, strict=True))
        return torch.stack([self._known[text] for text in texts])
