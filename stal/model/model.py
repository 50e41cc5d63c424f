"""A text-to-image model: its networks, and what each of them is asked.

model = Model.from_pretrained()
embeddings, pooled = model.encode(["", "a red circle"])
prediction = model.unet(x, t, embeddings)
model.decode(latents)[0].save("circle.png")
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stal.checked_json import first_line
from stal.model.checkpoint import Components, load_components, resolve
from stal.model.unet import UNet

if TYPE_CHECKING:
    from PIL.Image import Image


class Model:
    """The networks of a diffusers folder.

    Args:
        components: the networks, see `stal.model.checkpoint.load_components`.
        name: how the model was named, for the settings of a result.
        folder: where it was read from, if from a folder.

    Raises:
        ValueError: the UNet does not denoise the autoencoder's latents, as for inpainting.
    """

    def __init__(
        self, components: Components, *, name: str = "", folder: Path | None = None
    ) -> None:
        channels = components.vae.config.latent_channels
        unet = components.unet.config
        if (unet.in_channels, unet.out_channels) != (channels, channels):
            raise ValueError(
                f"unet must read and predict the vae's {channels} latent channels, got a UNet of "
                f"{unet.in_channels} input and {unet.out_channels} output channels"
            )
        self.components, self.name, self.folder = components, name, folder

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> Model:
        """Loads a model.

        Args:
            model: None for the bundled model of coloured shapes; a diffusers folder; or the name
                of a model on the hub, which is then downloaded unless it is in the cache.
            dtype, device: where and in which precision the networks run.

        Raises:
            ValueError: the folder is no model that this package implements, or the machine has no
                such device.
            OSError: the hub does not deliver.
        """
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            reason = first_line(error)
            raise ValueError(f"device must be available, got {device}: {reason}") from error
        folder = bundled_model() if model is None else resolve(model)
        components = load_components(folder, dtype=dtype, device=device)
        return cls(components, name=str(model or ""), folder=folder)

    @property
    def unet(self) -> UNet:
        """The denoiser, see `stal.model.unet.UNet.forward`."""
        return self.components.unet

    @property
    def dtype(self) -> torch.dtype:
        """The UNet's: what latents are handed over in."""
        return next(self.unet.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """The UNet's."""
        return next(self.unet.parameters()).device

    @property
    def scale_factor(self) -> int:
        """Pixels along a side of one latent cell."""
        return 2 ** (len(self.components.vae.config.block_out_channels) - 1)

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """The text encoders' output.

        Returns:
            embeddings (texts, seqlen_k, width), and of Stable Diffusion XL the pooled embeddings
            (texts, projection), otherwise None. XL's base model wants zeros for the empty text.
        """
        c = self.components
        with torch.no_grad():
            ids = self._tokens(c.tokenizer, texts)
            if c.text_encoder_2 is None:
                return c.text_encoder(ids).last_hidden_state, None
            first = c.text_encoder(ids, output_hidden_states=True)
            second = c.text_encoder_2(self._tokens(c.tokenizer_2, texts), output_hidden_states=True)
            # XL was trained on the last layer but one of both.
            embeddings = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
            pooled = second.text_embeds
            if c.force_zeros_for_empty_prompt:
                empty = torch.tensor([text == "" for text in texts], device=self.device)
                embeddings = embeddings.masked_fill(empty[:, None, None], 0)
                pooled = pooled.masked_fill(empty[:, None], 0)
            return embeddings, pooled

    def added_conditions(
        self, pooled: Tensor | None, *, height: int, width: int
    ) -> dict[str, Tensor] | None:
        """What Stable Diffusion XL is told besides the text; None for other models.

        pooled: (batch, projection) of `encode`, of each batch element's own text.
        height, width: of the picture in pixels; it is said to be original and not cropped.
        """
        if pooled is None:
            return None
        # The original size, the crop's corner and the target size.
        ids = torch.tensor(
            [[height, width, 0, 0, height, width]], dtype=self.dtype, device=self.device
        )
        return {"text_embeds": pooled, "time_ids": ids.expand(len(pooled), -1)}

    def decode(self, latents: Tensor) -> list[Image]:
        """Latents (images, channels, height, width) as PIL images."""
        from PIL.Image import fromarray

        with torch.no_grad():
            levels = (self.pixels(latents) * 255).round().to(torch.uint8)
        return [fromarray(image) for image in levels.permute(0, 2, 3, 1).cpu().numpy()]

    def pixels(self, latents: Tensor) -> Tensor:
        """Latents as (images, 3, height, width) in [0, 1], at least float32; differentiable."""
        vae = self._autoencoder()
        scaled = latents / vae.config.scaling_factor
        if getattr(vae.config, "shift_factor", None):
            scaled = scaled + vae.config.shift_factor
        pixels = vae.decode(scaled.to(vae.dtype)).sample
        return (pixels.to(torch.promote_types(vae.dtype, torch.float32)) / 2 + 0.5).clamp(0, 1)

    def latents(self, pixels: Tensor) -> Tensor:
        """The means of latents (images, channels, height, width) whose `pixels` look like these.

        pixels: (images, 3, height, width), floating point in [0, 1], of whole latent cells; no
            gradient flows.

        Raises:
            ValueError: pixels of another shape or dtype.
        """
        unit = self.scale_factor
        fits = pixels.ndim == 4 and pixels.shape[1] == 3
        if not fits or any(side % unit for side in pixels.shape[2:]):
            raise ValueError(
                "pixels must be (images, 3, height, width) with sides that are multiples of "
                f"{unit}, got {tuple(pixels.shape)}"
            )
        if not pixels.is_floating_point():
            raise ValueError(f"pixels must be floating point in [0, 1], got {pixels.dtype}")
        vae = self._autoencoder()
        with torch.no_grad():
            mean = vae.encode((2 * pixels - 1).to(self.device, vae.dtype)).latent_dist.mean
        shift = getattr(vae.config, "shift_factor", None) or 0
        return ((mean - shift) * vae.config.scaling_factor).to(self.dtype)

    def _autoencoder(self) -> Any:
        vae = self.components.vae
        if vae.dtype == torch.float16 and vae.config.force_upcast:
            # XL's autoencoder overflows in half precision and says so in its configuration.
            vae.to(torch.float32)
        return vae

    def _tokens(self, tokenizer: Any, texts: Sequence[str]) -> Tensor:
        longest = tokenizer.model_max_length
        whole = tokenizer(list(texts), verbose=False).input_ids
        for text, ids in zip(texts, whole, strict=True):
            if len(ids) > longest:
                warnings.warn(
                    f"the model reads {longest} tokens, the end of this prompt of {len(ids)} is "
                    f"lost: {text!r}",
                    stacklevel=2,
                )
        ids = tokenizer(
            list(texts),
            padding="max_length",
            max_length=longest,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        return ids.to(self.device)


@contextlib.contextmanager
def enough_memory(device: str, fix: str) -> Iterator[None]:
    """Raises MemoryError, which says what to do, where torch finds no memory within."""
    try:
        yield
    except RuntimeError as error:
        # On a CPU torch raises no class of its own.
        lacking = isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)
        if not lacking:
            raise
        raise MemoryError(f"{device} must have more free memory: {fix}") from error


def bundled_model() -> Path:
    """The folder of the model that the package carries."""
    folder = Path(str(files("stal") / "assets" / "shapes"))
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"the package must carry its model, got no {folder}: install it again")
    return folder


def clip_folder(model: Model) -> Path:
    """Where a model that brings its own CLIP has it: the folder clip beside its networks."""
    folder = resolve(model.name) if model.folder is None and model.name else model.folder
    return (folder or bundled_model()) / "clip"
