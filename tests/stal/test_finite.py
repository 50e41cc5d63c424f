"""NaN and infinity are seen where they arise: no black picture, and the part is named."""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from stal.finite import NotFinite, check_finite, is_finite
from stal.layout.predictor import BUNDLED, WEIGHTS, LayoutPredictor
from stal.model import clip as clip_module
from stal.model.clip import Clip, Preprocessing
from stal.model.model import Model, bundled_model
from stal.optimize import Options, online, schedule, trajectory
from stal.pipeline import Pipeline
from stal.prompts import parse
from stal.settings import Settings
from stal.weights.files import WeightSchedule

PROMPT = "a red circle to the left of a blue square"
HALF = [torch.float16, torch.bfloat16]


@pytest.fixture
def edited(sd_folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """edited(file, change): a copy of the folder, the tensors of a file changed in place."""

    def copied(file: str, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
        folder = tmp_path / "model"
        shutil.copytree(sd_folder, folder)
        weights = {key: value.clone() for key, value in load_file(folder / file).items()}
        change(weights)
        save_file(weights, folder / file)
        config = json.loads((folder / "vae" / "config.json").read_text())
        config["force_upcast"] = False
        (folder / "vae" / "config.json").write_text(json.dumps(config))
        return folder

    return copied


def louder(name: str, factor: float) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(weights: dict[str, torch.Tensor]) -> None:
        for key in (f"{name}.weight", f"{name}.bias"):
            weights[key] *= factor

    return change


def test_a_vae_that_overflows_in_half_precision_goes_on_in_float32(edited):
    folder = edited("vae/diffusion_pytorch_model.safetensors", louder("decoder.conv_in", 1e5))
    pipe = Pipeline.from_pretrained(folder, dtype=torch.float16)
    with pytest.warns(UserWarning, match="the vae overflows in float16 and goes on in float32"):
        result = pipe(PROMPT, steps=1)
    assert np.ptp(np.asarray(result.images[0])) > 0
    assert pipe.model.components.vae.dtype == torch.float32
    assert result.latents.dtype == pipe.model.dtype == torch.float16
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels = pipe.model.pixels(result.latents)
    whole = Model.from_pretrained(folder).pixels(result.latents.float())
    assert (pixels - whole).abs().max() < 0.05


def test_a_vae_that_overflows_on_the_way_in_goes_on_in_float32(edited):
    folder = edited("vae/diffusion_pytorch_model.safetensors", louder("encoder.conv_in", 3e5))
    model = Model.from_pretrained(folder, dtype=torch.float16)
    with pytest.warns(UserWarning, match="the vae overflows in float16"):
        latents = model.latents(torch.ones(1, 3, 16, 16))
    assert latents.isfinite().all()
    assert latents.dtype == torch.float16


def test_force_upcast_is_honoured_without_a_word(sd_folder):
    model = Model.from_pretrained(sd_folder, dtype=torch.float16)
    assert model.components.vae.config.force_upcast
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.decode(torch.zeros(1, 4, 8, 8, dtype=torch.float16))
    assert model.components.vae.dtype == torch.float32


@pytest.mark.filterwarnings("ignore:the vae overflows")
@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
def test_a_vae_that_overflows_in_float32_too_is_refused(dtype, sd_folder):
    model = Model.from_pretrained(sd_folder, dtype=dtype)
    bias = model.components.vae.decoder.conv_out.bias
    bias.data.fill_(torch.inf)
    with pytest.raises(NotFinite, match="the picture that the vae decodes must be finite, got NaN"):
        model.decode(torch.zeros(1, 4, 8, 8, dtype=dtype))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_handed_over_is_named_where_it_is_at_fault(value, pipe):
    latents = torch.zeros(1, 4, 8, 8)
    latents[0, 1, 2, 3] = value
    with pytest.raises(NotFinite, match="latents must be finite"):
        pipe.model.decode(latents)
    with pytest.raises(NotFinite, match="pixels must be finite"):
        pipe.model.latents(torch.full((1, 3, 16, 16), value))
    with pytest.raises(ValueError, match=r"latents must be floating point \(images, 4, "):
        pipe.model.decode(torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("name", ["text_encoder", "text_encoder_2"])
def test_a_text_encoder_that_overflows_is_named_with_a_way_out(name, xl_folder):
    model = Model.from_pretrained(xl_folder, dtype=torch.float16)
    encoder: Any = getattr(model.components, name)
    last = [m for m in encoder.modules() if isinstance(m, torch.nn.Linear) and m.bias is not None]
    # The last hidden layer but one is what is read.
    last[0].weight.data.fill_(6e4)
    last[1].bias.data.fill_(6e4)
    expected = f"what {name} gives must be finite, got NaN or infinity in float16, which overflows"
    with pytest.raises(NotFinite, match=f"{expected}.*load the model in float32 or bfloat16"):
        model.encode(["a red circle"])


def test_a_prediction_that_overflows_in_half_precision_names_the_way_out(sd_folder):
    pipe = Pipeline.from_pretrained(sd_folder, dtype=torch.float16)
    pipe.model.unet.conv_out.bias.data.fill_(torch.inf)
    with pytest.raises(NotFinite, match=r"at step 0 .* in float16, which overflows above 65504"):
        pipe(PROMPT, steps=1)


PARTS = {
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
}


@pytest.mark.parametrize("part", PARTS)
def test_a_nan_in_a_file_is_named(part, edited):
    def change(weights: dict[str, torch.Tensor]) -> None:
        next(iter(weights.values())).view(-1)[0] = torch.nan

    folder = edited(PARTS[part], change)
    first = next(iter(load_file(folder / PARTS[part])))
    with pytest.raises(NotFinite, match=f"{first} in .*{part}.* must be .*: the file is broken"):
        Pipeline.from_pretrained(folder)


def test_weights_that_half_precision_cannot_hold_are_refused_with_a_way_out(edited):
    def change(weights: dict[str, torch.Tensor]) -> None:
        weights["conv_in.weight"][0, 0, 0, 0] = 7e4

    folder = edited(PARTS["unet"], change)
    Model.from_pretrained(folder)
    Model.from_pretrained(folder, dtype=torch.bfloat16)
    with pytest.raises(NotFinite, match=r"conv_in\.weight in .* in float16, which overflows"):
        Model.from_pretrained(folder, dtype=torch.float16)


def test_clip_names_features_without_a_direction():
    pixels, texts = torch.zeros(1, 3, 8, 8), ["a red circle"]
    for features, expected in (
        (torch.full((1, 4), torch.nan), "must be finite, got NaN"),
        (torch.full((1, 4), torch.inf), "must be finite, got NaN or infinity"),
        (torch.zeros(1, 4), "must have a direction, got only zeros"),
    ):
        broken = Clip(lambda _, f=features: f, lambda _, f=features: f, Preprocessing(8))
        with pytest.raises(NotFinite, match=f"CLIP's image features {expected}"):
            broken.images(pixels)
        with pytest.raises(NotFinite, match=f"CLIP's text features {expected}"):
            broken.texts(texts)


def test_a_clip_of_zeros_is_named(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(bundled_model() / "clip", folder / "clip")
    shutil.copytree(bundled_model() / "tokenizer", folder / "tokenizer")
    file = folder / "clip" / "model.safetensors"
    save_file({key: torch.zeros_like(value) for key, value in load_file(file).items()}, file)
    with pytest.raises(NotFinite, match="CLIP's text features must have a direction"):
        clip_module.load(folder / "clip").texts(["a red circle"])


def test_a_layout_predictor_that_is_broken_is_named(tmp_path):
    weights = load_file(BUNDLED / WEIGHTS)
    predictor = LayoutPredictor.load()
    predictor.network.members[1].head.bias.data.fill_(torch.inf)
    with pytest.raises(NotFinite, match="what the layout predictor gives must be finite"):
        predictor.predict([parse(PROMPT)])
    name = "members.1.head.bias"
    weights[name][0] = torch.nan
    save_file(weights, tmp_path / WEIGHTS, metadata=predictor.metadata)
    with pytest.raises(ValueError, match=rf"weights of a layout predictor: {name} in .*broken"):
        LayoutPredictor.load(tmp_path)


class _BrokenBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, dout: torch.Tensor) -> torch.Tensor:
        return dout * torch.nan


def test_a_gradient_that_is_not_finite_is_seen(pipe, clip, monkeypatch):
    drawing = pipe.prepare([PROMPT], Settings(steps=2))
    encode = clip._encode_images
    monkeypatch.setattr(clip, "_encode_images", lambda x: _BrokenBackward.apply(encode(x)))
    with pytest.warns(UserWarning, match="gradient must be finite, got NaN .* keeps its weights"):
        found = online(drawing, clip)
    assert torch.equal(found.weights[0], drawing.weights[0])
    with pytest.raises(ValueError, match="gradient must be finite, got NaN or infinity in step 0"):
        trajectory(drawing, clip, Options(epochs=2))
    with pytest.raises(ValueError, match="gradient of 2 objects' knots must be finite"):
        schedule([drawing], clip, Options(epochs=1), start=WeightSchedule({2: (1.0, 0.5)}))


def test_finite_is_told_of_every_value():
    values = torch.zeros(5)
    assert is_finite(values)
    assert is_finite(values[:0])
    assert check_finite("x", values, values.dtype) is values
    for value in (torch.nan, torch.inf, -torch.inf):
        for index in range(5):
            assert not is_finite(values.index_fill(0, torch.tensor([index]), value))
