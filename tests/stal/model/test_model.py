"""Where a model comes from, and which ones are refused."""

import pytest
import torch

from stal.model import model as model_module
from stal.model.model import Model
from stal.pipeline import Pipeline


@pytest.mark.parametrize("device", ["cuda:99", "nonsense"])
def test_an_absent_device_is_found_before_the_model_is_read(monkeypatch, sd_folder, device):
    monkeypatch.setattr(model_module, "load_components", None)
    with pytest.raises(ValueError, match=f"device must be available, got {device}: "):
        Pipeline.from_pretrained(sd_folder, device=device)


def test_an_absent_bundled_model_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(model_module, "files", lambda package: tmp_path)
    with pytest.raises(ValueError, match="the package must carry its model"):
        Pipeline.from_pretrained()


def test_an_inpainting_unet_is_refused(pipe):
    components = pipe.model.components
    config = components.unet.config
    nine = type(config)(**{**vars(config), "in_channels": 9})
    original, components.unet.config = config, nine
    try:
        with pytest.raises(ValueError, match="the vae's 4 latent channels, got a UNet of 9 input"):
            Model(components)
    finally:
        components.unet.config = original


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (torch.zeros(3, 16, 16), r"\(images, 3, height, width\) .* got \(3, 16, 16\)"),
        (torch.zeros(1, 4, 16, 16), r"got \(1, 4, 16, 16\)"),
        (torch.zeros(1, 3, 15, 16), "multiples of 2, got"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), "floating point in .* got torch.uint8"),
    ],
    ids=["image", "rgba", "odd", "levels"],
)
def test_pixels_that_have_no_latents_are_refused(pipe, pixels, message):
    with pytest.raises(ValueError, match=message):
        pipe.model.latents(pixels)


def test_latents_are_those_whose_pixels_these_are(pipe):
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    latents = pipe.model.latents(pixels)
    assert latents.shape == (2, 4, 8, 8)
    vae = pipe.model.components.vae
    mean = vae.encode(2 * pixels - 1).latent_dist.mean
    torch.testing.assert_close(latents, mean * vae.config.scaling_factor)
    expected = (vae.decode(mean).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(pipe.model.pixels(latents), expected, rtol=1e-4, atol=1e-4)
