"""LoRAs add what they add in diffusers with PEFT, whoever wrote the file; others are refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import save_file
from torch import nn

from stal.cli.records import read_settings
from stal.model.lora import Adapted
from stal.picture import save
from stal.pipeline import Pipeline

RANK = 3


def layers_of(network: nn.Module) -> dict[str, nn.Module]:
    kinds = nn.Linear | nn.Conv2d
    return {path: each for path, each in network.named_modules() if isinstance(each, kinds)}


def halves(layer: nn.Module, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Of rank 3, about as large as the layer's weight."""
    weight = layer.weight
    size = float(weight.detach().std()) * RANK**-0.5
    down = torch.randn(RANK, *weight.shape[1:], generator=generator)
    up = torch.randn(len(weight), RANK, *[1] * (weight.ndim - 2), generator=generator)
    return down, size * up


def of_layers(pipe: Pipeline, wanted: str, part: str = "unet") -> dict[str, tuple]:
    """Halves for each layer of a network in whose path `wanted` is."""
    network, generator = getattr(pipe.model.components, part), torch.Generator().manual_seed(0)
    layers = layers_of(network)
    return {path: halves(layers[path], generator) for path in layers if wanted in path}


def kohya(pairs: dict[str, tuple], prefix: str, alpha: float) -> dict[str, torch.Tensor]:
    found = {}
    for path, (down, up) in pairs.items():
        name = f"{prefix}_{path.replace('.', '_')}"
        found |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        found[f"{name}.alpha"] = torch.tensor(alpha)
    return found


def dotted(pairs: dict[str, tuple], pattern: str, names: tuple[str, str]) -> dict:
    """pattern: with {path} and {half}, which are down and up by these names."""
    return {
        pattern.format(path=path, half=name): half
        for path, both in pairs.items()
        for name, half in zip(names, both, strict=True)
    }


def original(path: str) -> str:
    """A path of the tiny XL's UNet, of two levels of a resnet down and two up, as kohya has it."""
    for ours, theirs in (
        ("down_blocks.0.resnets.0", "input_blocks.1.0"),
        ("down_blocks.0.attentions.0", "input_blocks.1.1"),
        ("down_blocks.0.downsamplers.0.conv", "input_blocks.2.0.op"),
        ("down_blocks.1.resnets.0", "input_blocks.3.0"),
        ("down_blocks.1.attentions.0", "input_blocks.3.1"),
        ("mid_block.resnets.0", "middle_block.0"),
        ("mid_block.attentions.0", "middle_block.1"),
        ("mid_block.resnets.1", "middle_block.2"),
        ("up_blocks.0.resnets.0", "output_blocks.0.0"),
        ("up_blocks.0.attentions.0", "output_blocks.0.1"),
        ("up_blocks.0.resnets.1", "output_blocks.1.0"),
        ("up_blocks.0.attentions.1", "output_blocks.1.1"),
        ("up_blocks.0.upsamplers.0.conv", "output_blocks.1.2.conv"),
        ("up_blocks.1.resnets.0", "output_blocks.2.0"),
        ("up_blocks.1.attentions.0", "output_blocks.2.1"),
        ("up_blocks.1.resnets.1", "output_blocks.3.0"),
        ("up_blocks.1.attentions.1", "output_blocks.3.1"),
        ("time_embedding.linear_1", "time_embed.0"),
        ("time_embedding.linear_2", "time_embed.2"),
        ("add_embedding.linear_1", "label_emb.0.0"),
        ("add_embedding.linear_2", "label_emb.0.2"),
    ):
        path = path.replace(ours, theirs)
    for ours, theirs in (
        ("conv1", "in_layers.2"),
        ("conv2", "out_layers.3"),
        ("time_emb_proj", "emb_layers.1"),
        ("conv_shortcut", "skip_connection"),
    ):
        path = path.replace(ours, theirs)
    return path


@pytest.fixture(scope="module")
def theirs(sd_folder: Path, xl_folder: Path) -> dict:
    return {
        "sd": StableDiffusionPipeline.from_pretrained(sd_folder, local_files_only=True),
        "xl": StableDiffusionXLPipeline.from_pretrained(xl_folder, local_files_only=True),
    }


def of_unet(model: str, unet: nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    width, added = (32, True) if model == "xl" else (16, False)
    sample = torch.randn(2, 4, 8, 8, generator=generator)
    context = torch.randn(2, 7, width, generator=generator)
    given = {}
    if added:
        given["text_embeds"] = torch.randn(2, 20, generator=generator)
        given["time_ids"] = torch.tensor([[16, 16, 0, 0, 16, 16]] * 2, dtype=torch.float32)
    with torch.no_grad():
        out = unet(sample, torch.tensor([500, 20]), context, added_cond_kwargs=given or None)
    return getattr(out, "sample", out)


FILES = {
    "kohya": ("sd", lambda p: kohya(of_layers(p, "attn"), "lora_unet", 1.5)),
    "kohya, convolutions": ("sd", lambda p: kohya(of_layers(p, "conv"), "lora_unet", 2.0)),
    "kohya, XL": (
        "xl",
        lambda p: kohya(
            {original(path): pair for path, pair in of_layers(p, "blocks").items()},
            "lora_unet",
            1.5,
        ),
    ),
    "diffusers": (
        "sd",
        lambda p: dotted(
            of_layers(p, "transformer_blocks"),
            "unet.{path}.{half}.weight",
            ("lora_A", "lora_B"),
        ),
    ),
    "diffusers, old": (
        "xl",
        lambda p: dotted(
            of_layers(p, "attn"), "unet.{path}.{half}.weight", ("lora.down", "lora.up")
        ),
    ),
}


@pytest.mark.needs("peft")
@pytest.mark.parametrize("kind", FILES)
def test_a_lora_adds_what_it_adds_in_diffusers(pipe, xl_pipe, theirs, tmp_path, kind):
    model, made = FILES[kind]
    ours, other = {"sd": pipe, "xl": xl_pipe}[model].model, theirs[model]
    tensors = made({"sd": pipe, "xl": xl_pipe}[model])
    save_file(tensors, tmp_path / "ink.safetensors")
    before = of_unet(model, ours.unet)
    changed = ours.with_lora(tmp_path / "ink.safetensors", 0.7)
    found = of_unet(model, changed.unet)
    other.load_lora_weights(tmp_path, weight_name="ink.safetensors", adapter_name="ink")
    try:
        other.set_adapters("ink", 0.7)
        expected = of_unet(model, other.unet)
    finally:
        other.unload_lora_weights()
    scale = expected.abs().max()
    assert (found - expected).abs().max() <= 1e-4 * scale
    assert (before - expected).abs().max() > 0.05 * scale  # it does change something
    assert torch.equal(of_unet(model, ours.unet), before)
    count = sum(isinstance(each, Adapted) for each in changed.unet.modules())
    assert count == len({key.rsplit(".lora", 1)[0] for key in tensors if "alpha" not in key})


def test_every_layer_has_its_name_in_the_files_of_kohya(xl_pipe, tmp_path):
    layers = of_layers(xl_pipe, "")
    del layers["conv_in"], layers["conv_out"]
    named = {original(path): pair for path, pair in layers.items()}
    ends = {"input_blocks.0.0": xl_pipe.model.unet.conv_in, "out.2": xl_pipe.model.unet.conv_out}
    generator = torch.Generator().manual_seed(0)
    named |= {name: halves(layer, generator) for name, layer in ends.items()}
    save_file(kohya(named, "lora_unet", 3.0), tmp_path / "ink.safetensors")
    changed = xl_pipe.model.with_lora(tmp_path / "ink.safetensors")
    adapted = {p for p, each in changed.unet.named_modules() if isinstance(each, Adapted)}
    assert adapted == {*layers, "conv_in", "conv_out"}


@pytest.mark.needs("peft")
@pytest.mark.parametrize("model", ["sd", "xl"])
def test_a_lora_of_text_encoders_encodes_as_in_diffusers(pipe, xl_pipe, theirs, tmp_path, model):
    ours, other = {"sd": pipe, "xl": xl_pipe}[model], theirs[model]
    tensors = kohya(of_layers(ours, "self_attn", "text_encoder"), "lora_te1_text_model", 1.0)
    if model == "sd":
        tensors = {key.replace("lora_te1", "lora_te"): value for key, value in tensors.items()}
    else:
        of_second = of_layers(ours, "self_attn", "text_encoder_2")
        tensors |= kohya(
            {path.removeprefix("text_model."): pair for path, pair in of_second.items()},
            "lora_te2_text_model",
            1.0,
        )
    tensors = {key.replace("text_model_text_model", "text_model"): v for key, v in tensors.items()}
    save_file(tensors, tmp_path / "ink.safetensors")
    texts = ["a red circle", "a blue square above a green star"]
    before, changed = ours.model.encode(texts), ours.model.with_lora(tmp_path / "ink.safetensors")
    found = changed.encode(texts)
    other.load_lora_weights(tmp_path, weight_name="ink.safetensors", adapter_name="ink")
    try:
        options = {"device": "cpu", "num_images_per_prompt": 1}
        options["do_classifier_free_guidance"] = False
        expected = [other.encode_prompt(text, **options) for text in texts]
    finally:
        other.unload_lora_weights()
    embeddings = torch.cat([each[0] for each in expected])
    assert (found[0] - embeddings).abs().max() <= 1e-4 * embeddings.abs().max()
    assert (before[0] - embeddings).abs().max() > 0.05 * embeddings.abs().max()
    if model == "xl":
        pooled = torch.cat([each[2] for each in expected])
        assert (found[1] - pooled).abs().max() <= 1e-4 * pooled.abs().max()
    for again, own in zip(ours.model.encode(texts), before, strict=True):
        assert own is None or torch.equal(again, own)


@pytest.mark.needs("peft")
@pytest.mark.parametrize("rslora", [False, True])
def test_a_folder_of_peft_has_its_own_scale(pipe, theirs, tmp_path, rslora):
    import peft

    config = peft.LoraConfig(
        r=RANK,
        lora_alpha=5,
        use_rslora=rslora,
        init_lora_weights=False,
        target_modules=["to_q", "to_k", "proj_in"],
        alpha_pattern={"mid_block.attentions.0.proj_in": 2},
    )
    torch.manual_seed(0)
    trained = peft.get_peft_model(copy.deepcopy(theirs["sd"].unet), config)
    trained.save_pretrained(tmp_path)
    found = of_unet("sd", pipe.model.with_lora(tmp_path).unet)
    expected = of_unet("sd", trained.base_model.model)
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert (of_unet("sd", pipe.model.unet) - expected).abs().max() > 0.05 * expected.abs().max()


def test_a_file_of_diffusers_says_its_alpha(pipe, tmp_path):
    tensors = dotted(of_layers(pipe, "attn2"), "unet.{path}.{half}.weight", ("lora_A", "lora_B"))
    said = json.dumps({"unet.r": RANK, "unet.lora_alpha": 1.5})
    save_file(tensors, tmp_path / "with.safetensors", {"lora_adapter_metadata": said})
    save_file(tensors, tmp_path / "without.safetensors")
    models = [
        pipe.model.with_lora(tmp_path / "with.safetensors"),
        pipe.model.with_lora(tmp_path / "without.safetensors", 0.5),
        pipe.model.with_lora(tmp_path / "without.safetensors"),
    ]
    one, two, three = (of_unet("sd", model.unet) for model in models)
    assert torch.equal(one, two)
    assert (one - three).abs().max() > 0.01 * three.abs().max()


def test_loras_add_up_and_scale_0_is_the_model(pipe, tmp_path):
    path = tmp_path / "ink.safetensors"
    save_file(kohya(of_layers(pipe, "conv1"), "lora_unet", 3.0), path)
    both = pipe.model.with_lora(path, 0.25).with_lora(path, 0.5)
    once = pipe.model.with_lora(path, 0.75)
    expected = of_unet("sd", once.unet)
    assert (of_unet("sd", both.unet) - expected).abs().max() <= 1e-4 * expected.abs().max()
    none = pipe.model.with_lora(path, 0.0)
    assert torch.equal(of_unet("sd", none.unet), of_unet("sd", pipe.model.unet))
    assert both.loras == ((str(path), 0.25), (str(path), 0.5))


def test_weights_are_shared_and_pictures_say_their_loras(pipe, tmp_path):
    path = tmp_path / "ink.safetensors"
    save_file(kohya(of_layers(pipe, "attn2"), "lora_unet", 3.0), path)
    model = pipe.model.with_lora(path, 0.5)
    own = {id(p) for p in pipe.model.unet.parameters()}
    assert {id(p) for p in model.unet.parameters()} == own
    result = Pipeline(model)("a red circle", steps=1)
    assert result.settings["loras"] == [{"source": str(path), "scale": 0.5}]
    plain = pipe("a red circle", steps=1)
    assert "loras" not in plain.settings
    assert not torch.equal(result.latents, plain.latents)
    save(result.images[0], tmp_path / "one.png", result.settings)
    with pytest.warns(UserWarning, match="was drawn with a LoRA, and this is without: give"):
        read_settings(tmp_path / "one.png", with_loras=False)


A, B = "lora_A.weight", "lora_B.weight"
LAYER = "unet.mid_block.attentions.0.proj_in"  # a convolution of 32 channels


@pytest.mark.parametrize(
    ("tensors", "error", "message"),
    [
        ({f"{LAYER}.{A}": (2, 32)}, ValueError, "must hold both halves of each LoRA"),
        (
            {f"{LAYER}.{A}": (2, 16), f"{LAYER}.{B}": (32, 2)},
            ValueError,
            r"\(rank, 32, 1, 1\) and \(32, rank\) there, got \(2, 16, 1, 1\)",
        ),
        (
            {f"{LAYER}.{A}": (2, 32), f"{LAYER}.{B}": (32, 3)},
            ValueError,
            "must have a LoRA of",
        ),
        (
            {f"unet.other.{A}": (2, 32), f"unet.other.{B}": (32, 2)},
            ValueError,
            "must be of layers that the model has, got unet.other",
        ),
        ({"lora_unet_x.hada_w1_a": (2, 2)}, NotImplementedError, "must be a LoRA, got .* of LoHa"),
        ({"lora_unet_x.lokr_w1": (2, 2)}, NotImplementedError, "must be a LoRA, got .* of LoKr"),
        ({"lora_unet_x.dora_scale": (2, 2)}, NotImplementedError, "must be a LoRA, got .* of DoRA"),
        ({"unet.conv_in.weight": (2, 2)}, ValueError, "alone, got unet.conv_in.weight"),
        ({}, ValueError, "must hold a LoRA, got no tensors"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_lora_of_the_model_is_refused(pipe, tmp_path, tensors, error, message):
    path = tmp_path / "ink.safetensors"
    save_file({name: torch.ones(shape) for name, shape in tensors.items()}, path)
    with pytest.raises(error, match=message):
        pipe.model.with_lora(path)


def test_a_pickle_and_a_scale_that_is_none_are_refused(pipe, tmp_path):
    (tmp_path / "ink.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"must hold safetensors, got only ink\.pt"):
        pipe.model.with_lora(tmp_path / "ink.pt")
    with pytest.raises(ValueError, match="scale must be finite, got nan"):
        pipe.model.with_lora(tmp_path, float("nan"))
