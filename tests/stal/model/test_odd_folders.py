"""Model folders as other programs leave them, and as nobody should: read, or refused in words."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from stal.layout.phrase_encoder import TextEncoder
from stal.layout.predictor import BUNDLED, WEIGHTS, LayoutPredictor
from stal.model import checkpoint
from stal.model import clip as clip_module
from stal.model.checkpoint import prompt_length
from stal.model.model import Model, bundled_model
from stal.pipeline import Pipeline

PROMPT = "a red circle to the left of a blue square"
MODEL = "diffusion_pytorch_model"


@pytest.fixture
def model(sd_folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(sd_folder, tmp_path / "model")
    return tmp_path / "model"


def edit(file: Path, *without: str, **changes: Any) -> None:
    values = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in values.items() if k not in without}))


def draw(folder: Path) -> torch.Tensor:
    return Pipeline.from_pretrained(folder)(PROMPT, seed=1, steps=1).latents


@pytest.fixture(scope="module")
def plain(sd_folder: Path) -> torch.Tensor:
    return draw(sd_folder)


# Tokenizers.


@pytest.mark.parametrize("value", [None, 0, -1, 10**30, 1000, 40.0, math.nan], ids=str)
def test_a_tokenizer_of_another_length_reads_what_the_encoder_reads(value, model, plain):
    edit(model / "tokenizer" / "tokenizer_config.json", model_max_length=value)
    assert torch.equal(draw(model), plain)


def test_a_tokenizer_without_a_length_reads_what_the_encoder_reads(model, plain):
    edit(model / "tokenizer" / "tokenizer_config.json", "model_max_length")
    assert torch.equal(draw(model), plain)
    parts = checkpoint.load_components(model)
    assert parts.tokenizer.model_max_length == parts.text_encoder.config.max_position_embeddings


def test_a_tokenizer_shorter_than_the_encoder_says_what_is_lost(model):
    edit(model / "tokenizer" / "tokenizer_config.json", model_max_length=7)
    with pytest.warns(UserWarning, match="the model reads 7 tokens, the end of this prompt"):
        embeddings, _ = Model.from_pretrained(model).encode([PROMPT])
    assert embeddings.shape[1] == 7


@pytest.mark.parametrize("value", ["40", [40], {"length": 40}], ids=str)
def test_a_length_that_is_no_number_is_named(value, model):
    edit(model / "tokenizer" / "tokenizer_config.json", model_max_length=value)
    with pytest.raises(ValueError, match=r"model_max_length must be a number in .*tokenizer, got"):
        Model.from_pretrained(model)


@pytest.mark.parametrize(("said", "length"), [(77, 77), (20, 20), (77.0, 77), (78, 77), (2, 77)])
def test_prompt_length_is_the_tokenizers_where_that_makes_sense(said, length):
    class Tokenizer:
        model_max_length = said

    assert prompt_length(Tokenizer(), 77) == length


def test_encoders_of_unequal_length_read_the_shorter_one(xl_folder, tmp_path):
    shutil.copytree(xl_folder, tmp_path / "xl")
    edit(tmp_path / "xl" / "tokenizer_2" / "tokenizer_config.json", model_max_length=20)
    embeddings, _ = Model.from_pretrained(tmp_path / "xl").encode([PROMPT])
    assert embeddings.shape[1] == 20


@pytest.mark.parametrize("missing", ["null", "absent"])
def test_a_tokenizer_without_padding_pads_with_the_end(missing, model, plain):
    file = model / "tokenizer" / "tokenizer_config.json"
    edit(file, *(["pad_token"] if missing == "absent" else []), pad_token=None)
    assert torch.equal(draw(model), plain)


def test_a_padding_that_the_encoder_does_not_know_is_named(model):
    edit(model / "tokenizer" / "tokenizer_config.json", pad_token="<pad>")
    with pytest.raises(ValueError, match="tokenizer must give numbers below the text encoder's"):
        Model.from_pretrained(model).encode([PROMPT])


def only_tokenizer_json(folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()


def vocabulary_and_merges(folder: Path) -> None:
    whole = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(whole["vocab"]))
    merges = (m if isinstance(m, str) else " ".join(m) for m in whole["merges"])
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()


@pytest.mark.parametrize("change", [only_tokenizer_json, vocabulary_and_merges])
def test_a_tokenizer_of_few_files_is_read(change, model, plain):
    change(model / "tokenizer")
    assert torch.equal(draw(model), plain)


# Variants.


def half(file: Path, variant: str, *, keep: bool = False) -> None:
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(variant, torch.float32)
    target = file.with_name(f"{file.name.removesuffix('.safetensors')}.{variant}.safetensors")
    save_file({key: value.to(dtype) for key, value in load_file(file).items()}, target)
    if not keep:
        file.unlink()


@pytest.mark.parametrize("variant", ["bf16", "fp16", "fp32", "non_ema", "ema-only"])
def test_a_folder_of_one_variant_is_read(variant, model, plain, recwarn):
    for part in ("unet", "vae"):
        half(model / part / f"{MODEL}.safetensors", variant)
    half(model / "text_encoder" / "model.safetensors", variant)
    assert (draw(model) - plain).abs().max() < (0.3 if variant[:2] in ("bf", "fp") else 1e-6)
    assert not [w for w in recwarn if "variant" in str(w.message)]
    encoder = TextEncoder.load(model)
    assert encoder([("a red circle", "circle")]).isfinite().all()


def test_a_variant_in_shards_is_read(model):
    unet = checkpoint.load_unet(model / "unet").state_dict()
    (model / "unet" / f"{MODEL}.safetensors").unlink()
    names = list(unet)
    files = [f"{MODEL}.bf16-{i:05}-of-00002.safetensors" for i in (1, 2)]
    for i, file in enumerate(files):
        part = {key: unet[key].bfloat16().contiguous() for key in names[i::2]}
        save_file(part, model / "unet" / file)
    index = {"weight_map": {key: files[names.index(key) % 2] for key in names}}
    (model / "unet" / f"{MODEL}.safetensors.index.bf16.json").write_text(json.dumps(index))
    found = checkpoint.load_unet(model / "unet").state_dict()
    assert all(torch.equal(found[key], unet[key].bfloat16().float()) for key in names)
    (model / "unet" / f"{MODEL}.safetensors.index.bf16.json").write_text('{"weight_map": 5}')
    with pytest.raises(ValueError, match="must have a weight_map of tensors and files"):
        checkpoint.load_unet(model / "unet")


@pytest.mark.parametrize(
    ("dtype", "chosen"),
    [(torch.float16, "fp16"), (torch.bfloat16, "bf16"), (torch.float32, "fp16")],
    ids=str,
)
def test_of_several_variants_the_nearest_is_read_and_said(dtype, chosen, model):
    file = model / "unet" / f"{MODEL}.safetensors"
    whole = load_file(file)
    for variant in ("non_ema", "fp16", "bf16"):
        half(file, variant, keep=True)
    plain = checkpoint.load_unet(model / "unet", dtype=dtype).state_dict()
    assert all(torch.equal(plain[key], value.to(dtype)) for key, value in whole.items())
    file.unlink()
    with pytest.warns(UserWarning, match=f"the variant {chosen} is read, not .*, non_ema"):
        found = checkpoint.load_unet(model / "unet", dtype=dtype).state_dict()
    stored = load_file(file.with_name(f"{MODEL}.{chosen}.safetensors"))
    assert all(torch.equal(found[key], value.to(dtype)) for key, value in stored.items())


def test_weights_of_another_name_are_named(model):
    file = model / "unet" / f"{MODEL}.safetensors"
    file.rename(file.with_name("mine.safetensors"))
    with pytest.raises(ValueError, match=rf"must hold {MODEL}.* got only mine\.safetensors"):
        Model.from_pretrained(model)


# Values of config.json.

SAME_VALUES = [
    ("unet", {"sample_size": 8.0}),
    ("unet", {"sample_size": [8, 8.0]}),
    ("unet", {"in_channels": 4.0, "out_channels": None, "norm_eps": None, "dropout": None}),
    ("unet", {"block_out_channels": [16.0, 32.0], "layers_per_block": 1.0}),
    ("unet", {"attention_head_dim": [2, 2.0], "cross_attention_dim": [16, 16]}),
    ("unet", {"downsample_padding": 1.0, "conv_in_kernel": 3.0, "flip_sin_to_cos": None}),
    ("unet", {"something_of_tomorrow": {"a": [1]}}),
    ("vae", {"scaling_factor": None, "shift_factor": None, "force_upcast": None}),
    ("vae", {"latent_channels": 4.0, "layers_per_block": 1.0, "sample_size": [7, None]}),
    ("vae", {"latents_mean": [0, 0, 0, 0.0], "latents_std": [1, 1.0, 1, 1]}),
    ("vae", {"latents_mean": None, "something_of_tomorrow": 1}),
    ("text_encoder", {"hidden_size": 16.0, "num_hidden_layers": 2.0, "layer_norm_eps": None}),
    ("text_encoder", {"quantization_config": {"quant_method": "x"}, "auto_map": {"A": "b.C"}}),
]


@pytest.mark.parametrize(("part", "changes"), SAME_VALUES, ids=str)
def test_another_spelling_of_a_configuration_is_the_same_model(part, changes, model, plain):
    edit(model / part / "config.json", **changes)
    assert torch.equal(draw(model), plain)


def test_a_mean_and_deviation_of_latents_are_undone_as_in_diffusers(model, sd_folder):
    mean, std = [0.5, -1.0, 0.0, 2.0], [1.0, 2.0, 0.5, 1.5]
    plain = Model.from_pretrained(sd_folder)
    edit(model / "vae" / "config.json", latents_mean=mean, latents_std=std)
    scaled = Model.from_pretrained(model)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    factor = plain.components.vae.config.scaling_factor
    columns = [torch.tensor(each).view(1, -1, 1, 1) for each in (mean, std)]
    # StableDiffusionXLPipeline: latents * std / scaling_factor + mean.
    same = (x * columns[1] / factor + columns[0]) * factor
    torch.testing.assert_close(scaled.pixels(x), plain.pixels(same))
    pixels = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        scaled.latents(pixels),
        (plain.latents(pixels) - columns[0] * factor) / columns[1],
        rtol=1e-4,
        atol=1e-4,
    )


REFUSED = [
    ("unet", {"sample_size": "8"}, "sample_size must be an integer"),
    ("unet", {"sample_size": [8, 8, 8]}, "sample_size must be a side or height and width"),
    ("unet", {"sample_size": 10**9}, "sample_size must be an integer in"),
    ("unet", {"block_out_channels": [10**9, 32]}, "block_out_channels must be at most"),
    ("unet", {"block_out_channels": [-16, 32]}, "block_out_channels must be a positive int"),
    ("unet", {"block_out_channels": [16.5, 32]}, "block_out_channels must be a positive int"),
    ("unet", {"block_out_channels": ["16", 32]}, "block_out_channels must be a positive int"),
    ("unet", {"block_out_channels": [18, 32]}, "norm_num_groups must divide 18 channels"),
    ("unet", {"block_out_channels": [16] * 10**4}, "block_out_channels must have 1 to 16 levels"),
    ("unet", {"block_out_channels": [1, 32]}, "norm_num_groups must divide 1 channels"),
    ("unet", {"attention_head_dim": 0}, "num_attention_heads must be a positive int"),
    ("unet", {"attention_head_dim": [2, 2, 2]}, "num_attention_heads must be a positive int"),
    ("unet", {"in_channels": 10**30}, "in_channels must be an integer in"),
    ("unet", {"norm_eps": math.nan}, "norm_eps must be a finite number"),
    ("unet", {"norm_eps": 0}, "norm_eps must be positive"),
    ("unet", {"mid_block_scale_factor": 0}, "mid_block_scale_factor must be positive"),
    ("unet", {"flip_sin_to_cos": "yes"}, "flip_sin_to_cos must be true or false"),
    ("unet", {"cross_attention_dim": 10**12}, "cross_attention_dim must be at most"),
    ("unet", {"layers_per_block": 300_000}, "must have at most .* layers, for .* tensors"),
    ("unet", {"transformer_layers_per_block": 300_000}, "must have at most .* layers"),
    ("vae", {"layers_per_block": 300_000}, "config.json of .*vae must have at most .* layers"),
    ("vae", {"block_out_channels": [0, 8]}, "block_out_channels must be an integer in"),
    ("vae", {"block_out_channels": [8] * 10**4}, "block_out_channels must have 1 to 16 levels"),
    ("vae", {"block_out_channels": [10, 8]}, "norm_num_groups must divide 10 channels"),
    ("vae", {"down_block_types": ["DownBlock3D"] * 2}, "down_block_types must be"),
    ("vae", {"scaling_factor": 0}, "scaling_factor and latents_std must not be 0"),
    ("vae", {"scaling_factor": "1"}, "scaling_factor must be a finite number"),
    ("vae", {"latents_mean": [0.0]}, "latents_mean must be 4 numbers"),
    ("vae", {"_class_name": "AutoencoderTiny"}, "_class_name must be AutoencoderKL"),
    ("vae", {"latent_channels": 5}, "must have shape"),
    ("text_encoder", {"num_hidden_layers": 300_000}, "must have at most .* layers"),
    ("text_encoder", {"vocab_size": 10**9}, "vocab_size must be an integer in"),
    ("text_encoder", {"vocab_size": 10**7}, "must have shape"),
    ("text_encoder", {"hidden_size": 17}, "num_attention_heads must divide 17 features"),
    ("text_encoder", {"num_attention_heads": 0}, "num_attention_heads must be an integer in"),
    ("text_encoder", {"hidden_act": "os.system"}, "must be of one network, got"),
    ("text_encoder", {"max_position_embeddings": 2}, "max_position_embeddings must be an integer"),
]


@pytest.mark.parametrize(("part", "changes", "message"), REFUSED, ids=lambda v: str(v)[:40])
def test_a_configuration_that_lies_is_refused_before_anything_is_built(
    part, changes, message, model
):
    edit(model / part / "config.json", **changes)
    with pytest.raises(ValueError, match=message) as caught:
        checkpoint.load_components(model)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_stal_json_of_another_kind_is_refused(model):
    for values, message in (
        ({"words": 5}, "words in .* must be a list"),
        ({"words": [1]}, "words in .* must be a text"),
        ({"local_prompt": 3}, "local_prompt in .* must be a text"),
        ({"guidance_scale": "7"}, "guidance_scale in .* must be a number"),
        ({"steps": 2.5}, "steps must be a positive integer"),
    ):
        (model / "stal.json").write_text(json.dumps(values))
        with pytest.raises(ValueError, match=message):
            Pipeline.from_pretrained(model)(PROMPT)
    (model / "stal.json").write_text(json.dumps({"steps": 1.0, "reference": None, "words": None}))
    assert Pipeline.from_pretrained(model)(PROMPT).settings["steps"] == 1


@pytest.fixture
def clip_folder(tmp_path: Path) -> Path:
    shutil.copytree(bundled_model() / "clip", tmp_path / "clip")
    shutil.copytree(bundled_model() / "tokenizer", tmp_path / "tokenizer")
    return tmp_path / "clip"


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("config.json", {"text_config": 5}, "text_config must be an object"),
        ("config.json", {"vision_config": {"num_hidden_layers": 10**6}}, "must have at most"),
        ("config.json", {"vision_config": {"image_size": -1}}, "image_size must be an integer"),
        ("config.json", {"projection_dim": 0}, "projection_dim must be an integer"),
        ("preprocessor_config.json", {"image_mean": 5}, "image_mean must be 3 numbers"),
        ("preprocessor_config.json", {"image_std": [0, 1, 1]}, "image_std must be positive"),
        ("preprocessor_config.json", {"resample": []}, "resample must be a finite number"),
    ],
    ids=str,
)
def test_a_clip_folder_that_lies_is_refused(file, changes, message, clip_folder):
    edit(clip_folder / file, **changes)
    with pytest.raises(ValueError, match=message):
        clip_module.load(clip_folder)


def test_a_clip_folder_of_one_variant_is_read(clip_folder):
    half(clip_folder / "model.safetensors", "bf16")
    edit(clip_folder / "preprocessor_config.json", size=64, resample=None)
    texts = clip_module.load(clip_folder).texts(["a red circle"])
    torch.testing.assert_close(
        texts, clip_module.load(bundled_model() / "clip").texts(["a red circle"]), rtol=0, atol=0.02
    )


# Weights that lie.


def header_of(file: Path) -> tuple[dict[str, Any], bytes]:
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def write(file: Path, header: Any, body: bytes, *, length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    said = len(text) if length is None else length
    file.write_bytes(said.to_bytes(8, "little") + text + body)


def lying(change: Callable[[dict[str, Any]], Any], *, length: int | None = None) -> Any:
    def apply(file: Path) -> None:
        header, body = header_of(file)
        changed = change(header)
        write(file, header if changed is None else changed, body, length=length)

    return apply


LIES = {
    "long-header": lying(lambda header: None, length=2**63),
    "header-past-the-end": lying(lambda header: None, length=10**6),
    "empty-header": lying(lambda header: b""),
    "garbage": lying(lambda header: b"{garbage"),
    "list": lying(lambda header: b"[]"),
    "dtype": lying(lambda header: header["conv_in.bias"].update(dtype="F7")),
    "shape": lying(lambda header: header["conv_in.bias"].update(shape=[2**62, 8])),
    "overlap": lying(lambda header: header["conv_out.bias"].update(data_offsets=[0, 16])),
    "negative": lying(lambda header: header["conv_in.bias"].update(data_offsets=[-64, 0])),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_safetensors_header_that_lies_names_the_file(lie, model):
    file = model / "unet" / f"{MODEL}.safetensors"
    LIES[lie](file)
    with pytest.raises(ValueError, match=f"{MODEL}.safetensors must be a complete safetensors"):
        checkpoint.load_unet(model / "unet")


def test_integers_where_numbers_should_be_are_named(model):
    file = model / "unet" / f"{MODEL}.safetensors"
    weights = load_file(file)
    weights["conv_in.bias"] = weights["conv_in.bias"].int()
    save_file(weights, file)
    with pytest.raises(ValueError, match=r"conv_in\.bias must be floating point in .*unet, got"):
        checkpoint.load_unet(model / "unet")


@pytest.mark.parametrize(
    "sizes", [{"layers": 10**6}, {"width": -1}, {"heads": 3}, {"depth": 1}, []]
)
def test_a_layout_predictor_that_lies_is_refused(sizes, tmp_path):
    predictor = LayoutPredictor.load()
    own = json.loads(predictor.metadata["config"])
    config = json.dumps(own | sizes if isinstance(sizes, dict) else sizes)
    weights = load_file(BUNDLED / WEIGHTS)
    save_file(weights, tmp_path / WEIGHTS, metadata={**predictor.metadata, "config": config})
    with pytest.raises(ValueError, match="must be weights of a layout predictor"):
        LayoutPredictor.load(tmp_path)
