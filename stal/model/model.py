"""A text-to-image model: its networks, and what each of them is asked.

model = Model.from_pretrained()
embeddings, pooled = model.encode(["", "a red circle"])
prediction = model.unet(x, t, embeddings)
model.decode(latents)[0].save("circle.png")
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from stal.caller import warn
from stal.checked_json import first_line, short
from stal.diffusers_names import hinted
from stal.finite import check_finite, is_finite
from stal.model.checkpoint import Components, load_components, prompt_length, resolve
from stal.model.lora import adapted
from stal.model.unet import UNet
from stal.openmp import releasing_team
from stal.torch_state import undisturbed

if TYPE_CHECKING:
    from PIL.Image import Image

# What networks compute in.
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Model:
    """The networks of a diffusers folder.

    Args:
        components: the networks, see `stal.model.checkpoint.load_components`.
        name: how the model was named, for the settings of a result.
        folder: where it was read from, if from a folder.
        loras: what `with_lora` was given, for the settings of a result.

    Raises:
        ValueError: the UNet does not denoise the autoencoder's latents, as for inpainting.
    """

    def __init__(
        self,
        components: Components,
        *,
        name: str = "",
        folder: Path | None = None,
        loras: Sequence[tuple[str, float]] = (),
    ) -> None:
        channels = components.vae.config.latent_channels
        unet = components.unet.config
        if (unet.in_channels, unet.out_channels) != (channels, channels):
            raise ValueError(
                f"unet must read and predict the vae's {channels} latent channels, got a UNet of "
                f"{unet.in_channels} input and {unet.out_channels} output channels"
            )
        self.components, self.name, self.folder = components, name, folder
        self.loras = tuple(loras)

    @classmethod
    @hinted
    @releasing_team()
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
            dtype, device: where and in which precision the networks run: float16, bfloat16,
                float32 or float64, whatever torch's defaults and the caller's autocast.

        Raises:
            ValueError: the folder is no model that this package implements, or the machine has no
                such device.
            OSError: the hub does not deliver.
        """
        check_dtype(dtype)
        check_device(device)
        folder = bundled_model() if model is None else resolve(model)
        components = load_components(folder, dtype=dtype, device=device)
        return cls(components, name=str(model or ""), folder=folder)

    @undisturbed()
    def with_lora(self, source: str | Path, scale: float = 1.0) -> Model:
        """The model with a LoRA on it, or with one more; this one stays as it is.

            pipe = stal.Pipeline(model.with_lora("ink.safetensors", 0.8))

        Both share their weights: move the model to its device and dtype before.

        Args:
            source: a safetensors file as diffusers, PEFT or kohya's scripts save it, or a folder of
                the first two with one. LoRAs of the UNet and of the text encoders are read.
            scale: multiplies what the LoRA adds.

        Raises:
            ValueError: no such file, keys that are no LoRA's or of layers that the model does not
                have, or tensors that do not go with their layer.
            NotImplementedError: another kind of adapter, such as DoRA or LoHa.
        """
        changed = adapted(self.components, source, scale=scale)
        loras = (*self.loras, (str(source), float(scale)))
        return Model(changed, name=self.name, folder=self.folder, loras=loras)

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

    @undisturbed()
    def to(self, *, device: str | torch.device | None = None, dtype: Any = None) -> Model:
        """Moves every network there, into that precision; None leaves it. Returns itself.

        What half precision has rounded stays rounded: load a model again to have its weights whole.

        Raises:
            ValueError: no such device here, or a dtype that networks do not compute in.
        """
        if dtype is not None:
            check_dtype(dtype)
        if device is not None:
            check_device(device)
        c = self.components
        parts: list[Any] = [c.unet, c.vae, c.text_encoder, c.text_encoder_2]
        for module in parts:
            if module is not None:
                _move(module, device=device, dtype=dtype)
        return self

    @property
    def scale_factor(self) -> int:
        """Pixels along a side of one latent cell."""
        return 2 ** (len(self.components.vae.config.block_out_channels) - 1)

    @undisturbed()
    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """The text encoders' output.

        Returns:
            embeddings (texts, seqlen_k, width), and of Stable Diffusion XL the pooled embeddings
            (texts, projection), otherwise None. XL's base model wants zeros for the empty text.

        Raises:
            ValueError: a tokenizer that is not the encoder's; `stal.finite.NotFinite`, an encoder
                whose output is not finite, as where half precision overflows.
        """
        c = self.components
        longest = prompt_length(c.tokenizer, c.text_encoder.config.max_position_embeddings)
        if c.text_encoder_2 is None:
            ids = self._tokens(c.tokenizer, c.text_encoder, texts, longest)
            embeddings = c.text_encoder(ids).last_hidden_state
            return check_finite("what text_encoder gives", embeddings, self.dtype), None
        other = prompt_length(c.tokenizer_2, c.text_encoder_2.config.max_position_embeddings)
        # Both encoders' embeddings lie side by side.
        longest = min(longest, other)
        ids = self._tokens(c.tokenizer, c.text_encoder, texts, longest)
        first = c.text_encoder(ids, output_hidden_states=True)
        ids = self._tokens(c.tokenizer_2, c.text_encoder_2, texts, longest)
        second = c.text_encoder_2(ids, output_hidden_states=True)
        # XL was trained on the last layer but one of both.
        parts = [first.hidden_states[-2], second.hidden_states[-2]]
        for name, part in zip(("text_encoder", "text_encoder_2"), parts, strict=True):
            check_finite(f"what {name} gives", part, self.dtype)
        embeddings = torch.cat(parts, dim=-1)
        pooled = check_finite("what text_encoder_2 gives", second.text_embeds, self.dtype)
        if c.force_zeros_for_empty_prompt:
            empty = torch.tensor(
                [text == "" for text in texts], dtype=torch.bool, device=self.device
            )
            embeddings = embeddings.masked_fill(empty[:, None, None], 0)
            pooled = pooled.masked_fill(empty[:, None], 0)
        return embeddings, pooled

    @undisturbed()
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

    @torch.no_grad()
    def decode(self, latents: Tensor) -> list[Image]:
        """Latents (images, channels, height, width) as PIL images. Errors are `pixels`'."""
        from PIL.Image import fromarray

        levels = (self.pixels(latents) * 255).round().to(torch.uint8)
        return [fromarray(image) for image in levels.permute(0, 2, 3, 1).cpu().numpy()]

    @undisturbed()
    def pixels(self, latents: Tensor) -> Tensor:
        """Latents as (images, 3, height, width) in [0, 1], at least float32; differentiable.

        Where the autoencoder overflows in half precision it goes on in float32, with a warning.

        Raises:
            ValueError: latents of another shape; `stal.finite.NotFinite`, latents or a picture
                with NaN or infinity.
        """
        channels = self.components.vae.config.latent_channels
        if latents.ndim != 4 or latents.shape[1] != channels or not latents.is_floating_point():
            got = f"{latents.dtype} {tuple(latents.shape)}"
            rule = f"be floating point (images, {channels}, height, width)"
            raise ValueError(f"latents must {rule}, got {got}")
        check_finite("latents", latents, latents.dtype)
        scale, shift = self._latent_units(latents)

        def decode(vae: Any) -> Tensor:
            return vae.decode((latents / scale + shift).to(vae.dtype)).sample

        pixels = self._by_autoencoder(decode, "the picture that the vae decodes")
        return (pixels.to(torch.promote_types(pixels.dtype, torch.float32)) / 2 + 0.5).clamp(0, 1)

    @undisturbed()
    @torch.no_grad()
    def latents(self, pixels: Tensor) -> Tensor:
        """The means of latents (images, channels, height, width) whose `pixels` look like these.

        pixels: (images, 3, height, width), floating point in [0, 1], of whole latent cells; no
            gradient flows.

        Raises:
            ValueError: pixels of another shape or dtype; `stal.finite.NotFinite`, pixels or latents
                with NaN or infinity.
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
        check_finite("pixels", pixels, pixels.dtype)

        def encode(vae: Any) -> Tensor:
            return vae.encode((2 * pixels - 1).to(self.device, vae.dtype)).latent_dist.mean

        mean = self._by_autoencoder(encode, "what the vae encodes")
        scale, shift = self._latent_units(mean)
        return ((mean - shift) * scale).to(self.dtype)

    def _latent_units(self, like: Tensor) -> tuple[Any, Any]:
        """(scale, shift): what the UNet reads, times 1 / scale, plus shift, is what the vae reads.

        Source: StableDiffusionXLPipeline of diffusers, for latents_mean and latents_std.
        """
        config = self.components.vae.config
        mean, std = (getattr(config, f"latents_{name}", None) for name in ("mean", "std"))
        if mean is None or std is None:
            return config.scaling_factor, getattr(config, "shift_factor", None) or 0
        shift, deviation = (like.new_tensor(each).view(1, -1, 1, 1) for each in (mean, std))
        return config.scaling_factor / deviation, shift

    def _by_autoencoder(self, call: Callable[[Any], Tensor], what: str) -> Tensor:
        """What call(vae) gives, finite: in float32 from here on if half precision overflows."""
        vae = self.components.vae
        if vae.dtype == torch.float16 and vae.config.force_upcast:
            # XL's autoencoder overflows in half precision and says so in its configuration.
            _move(vae, dtype=torch.float32)
        found = call(vae)
        if vae.dtype in (torch.float16, torch.bfloat16) and not is_finite(found):
            half = str(vae.dtype).removeprefix("torch.")
            warn(f"the vae overflows in {half} and goes on in float32")
            _move(vae, dtype=torch.float32)
            found = call(vae)
        return check_finite(what, found, vae.dtype)

    def _tokens(self, tokenizer: Any, encoder: Any, texts: Sequence[str], longest: int) -> Tensor:
        whole = tokenizer(list(texts), verbose=False).input_ids
        for text, ids in zip(texts, whole, strict=True):
            if len(ids) > longest:
                warn(
                    f"the model reads {longest} tokens, the end of this prompt of {len(ids)} is "
                    f"lost: {short(text)}"
                )
        ids = tokenizer(
            list(texts),
            padding="max_length",
            max_length=longest,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        most = encoder.config.vocab_size
        if int(ids.max()) >= most:
            rule = f"give numbers below the text encoder's vocab_size {most}"
            raise ValueError(f"tokenizer must {rule}, got {int(ids.max())}")
        return ids.to(self.device)


def _move(module: nn.Module, *, device: Any = None, dtype: torch.dtype | None = None) -> None:
    # Past diffusers' own method, which warns of every change of dtype.
    nn.Module.to(module, device=device, dtype=dtype)


def check_dtype(dtype: object) -> None:
    """Raises ValueError unless networks compute in it."""
    if dtype not in DTYPES:
        names = ", ".join(map(str, DTYPES))
        raise ValueError(f"dtype must be one of {names}, got {short(dtype)}")


def check_device(device: Any) -> None:
    """Raises ValueError unless it is a device of this machine."""
    try:
        torch.zeros((), dtype=torch.float32, device=device).item()
    except (RuntimeError, AssertionError, TypeError, ValueError, NotImplementedError) as error:
        reason = first_line(error)
        raise ValueError(f"device must be available, got {device}: {reason}") from error


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
