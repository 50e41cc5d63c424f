"""Diffusers folders, whole and broken, made on the spot."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from stal.model import checkpoint
from stal.model.tensors import load_safetensors

UNET_WEIGHTS = "diffusion_pytorch_model.safetensors"


def make_tokenizer(folder: Path) -> CLIPTokenizer:
    letters = [chr(ord("a") + i) for i in range(26)]
    tokens = [*letters, *(f"{x}</w>" for x in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=16)


def make_text_encoder(model_class: Any) -> Any:
    config = CLIPTextConfig(
        vocab_size=54,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        projection_dim=20,
        bos_token_id=52,
        eos_token_id=53,
        pad_token_id=53,
    )
    return model_class(config).eval()


def make_unet(**changes: Any) -> Any:
    config = {
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "cross_attention_dim": 16,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    }
    return UNet2DConditionModel(**config | changes)


def make_vae() -> Any:
    return AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, layers_per_block=1)


@pytest.fixture(scope="module")
def sd_pipeline(tmp_path_factory) -> Any:
    torch.manual_seed(0)
    return StableDiffusionPipeline(
        vae=make_vae(),
        text_encoder=make_text_encoder(CLIPTextModel),
        tokenizer=make_tokenizer(tmp_path_factory.mktemp("tokenizer") / "files"),
        unet=make_unet(),
        scheduler=DDIMScheduler(prediction_type="v_prediction", steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@pytest.fixture(scope="module")
def xl_pipeline(sd_pipeline, tmp_path_factory) -> Any:
    return StableDiffusionXLPipeline(
        vae=make_vae(),
        text_encoder=sd_pipeline.text_encoder,
        tokenizer=sd_pipeline.tokenizer,
        text_encoder_2=make_text_encoder(CLIPTextModelWithProjection),
        tokenizer_2=make_tokenizer(tmp_path_factory.mktemp("tokenizer_2") / "files"),
        unet=make_unet(
            cross_attention_dim=32,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=20 + 6 * 8,
        ),
        scheduler=DDIMScheduler(),
    )


@pytest.fixture
def sd_folder(sd_pipeline, tmp_path) -> Path:
    sd_pipeline.save_pretrained(tmp_path / "sd")
    return tmp_path / "sd"


@pytest.fixture
def xl_folder(xl_pipeline, tmp_path) -> Path:
    xl_pipeline.save_pretrained(tmp_path / "xl")
    return tmp_path / "xl"


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(path: Path, edit) -> None:
    """edit takes the state dict and changes it in place or returns another."""
    state = {key: value.clone() for key, value in load_file(path).items()}
    save_file(edit(state) or state, path)


def assert_same_weights(ours: torch.nn.Module, theirs: Any) -> None:
    expected = theirs.state_dict()
    assert ours.state_dict().keys() == expected.keys()
    for key, value in ours.state_dict().items():
        assert torch.equal(value, expected[key].to(value.dtype)), key
    assert not ours.training
    assert not any(parameter.requires_grad for parameter in ours.parameters())


def assert_same_text(ours: Any, theirs: Any, tokenizer: Any) -> None:
    ids = tokenizer(["a red cat", ""], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        mine, other = (model(ids, output_hidden_states=True) for model in (ours, theirs))
    for a, b in zip(mine.hidden_states, other.hidden_states, strict=True):
        torch.testing.assert_close(a, b)


def test_components_of_a_stable_diffusion_folder(sd_folder, sd_pipeline):
    parts = checkpoint.load_components(sd_folder)
    assert parts.pipeline_class == "StableDiffusionPipeline"
    assert_same_weights(parts.unet, sd_pipeline.unet)
    assert_same_weights(parts.vae, sd_pipeline.vae)
    assert_same_weights(parts.text_encoder, sd_pipeline.text_encoder)
    assert_same_text(parts.text_encoder, sd_pipeline.text_encoder, parts.tokenizer)
    assert parts.tokenizer.model_max_length == 16
    assert parts.tokenizer("a red cat") == sd_pipeline.tokenizer("a red cat")
    assert parts.scheduler_config["_class_name"] == "DDIMScheduler"
    assert parts.scheduler_config["prediction_type"] == "v_prediction"
    assert parts.tokenizer_2 is parts.text_encoder_2 is None
    assert parts.force_zeros_for_empty_prompt is False
    image = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(
        parts.vae.encode(image).latent_dist.mean, sd_pipeline.vae.encode(image).latent_dist.mean
    )


def test_components_of_an_xl_folder(xl_folder, xl_pipeline):
    parts = checkpoint.load_components(xl_folder)
    assert parts.pipeline_class == "StableDiffusionXLPipeline"
    assert parts.unet.config.addition_embed_type == "text_time"
    assert_same_weights(parts.unet, xl_pipeline.unet)
    assert parts.text_encoder_2 is not None
    assert_same_weights(parts.text_encoder_2, xl_pipeline.text_encoder_2)
    assert_same_text(parts.text_encoder_2, xl_pipeline.text_encoder_2, parts.tokenizer_2)
    assert parts.force_zeros_for_empty_prompt is True
    edit_json(xl_folder / "model_index.json", force_zeros_for_empty_prompt=False)
    assert checkpoint.load_components(xl_folder).force_zeros_for_empty_prompt is False


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_half_precision_folder_is_loaded_in_the_dtype_asked_for(sd_pipeline, tmp_path, dtype):
    sd_pipeline.save_pretrained(tmp_path / "sd")
    for part in ("unet", "vae", "text_encoder"):
        for file in (tmp_path / "sd" / part).glob("*.safetensors"):
            edit_weights(file, lambda state: {key: v.half() for key, v in state.items()})
    parts = checkpoint.load_components(tmp_path / "sd", dtype=dtype)
    for module in (parts.unet, parts.vae, parts.text_encoder):
        assert {p.dtype for p in module.parameters()} == {dtype}
    assert parts.text_encoder(torch.tensor([[52, 1, 53]])).last_hidden_state.dtype is dtype


def test_fp16_variant_is_read_where_it_is_the_only_one(sd_folder, tmp_path):
    plain = load_file(sd_folder / "unet" / UNET_WEIGHTS)
    for file in [*sd_folder.glob("*/*.safetensors")]:
        name = file.name.replace(".safetensors", ".fp16.safetensors")
        save_file({key: value.half() for key, value in load_file(file).items()}, file.parent / name)
    state = load_safetensors(sd_folder / "unet")
    assert all(torch.equal(state[key], plain[key]) for key in plain)
    for file in sd_folder.glob("*/*.safetensors"):
        if ".fp16." not in file.name:
            file.unlink()
    parts = checkpoint.load_components(sd_folder)
    for key, value in parts.unet.state_dict().items():
        assert torch.equal(value, plain[key].half().float())


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_sharded_weights_are_read(variant, tmp_path):
    model = make_unet()
    model.save_pretrained(tmp_path, max_shard_size="30KB", variant=variant)
    assert len([*tmp_path.glob("*.safetensors")]) > 1
    state = checkpoint.load_unet(tmp_path).state_dict()
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


def with_prefix(state: dict) -> dict:
    prefix = "text_model."
    return {
        key if key == "text_projection.weight" else prefix + key.removeprefix(prefix): value
        for key, value in state.items()
    }


def without_prefix(state: dict) -> dict:
    return {key.removeprefix("text_model."): value for key, value in state.items()}


def with_position_ids(state: dict) -> dict:
    return with_prefix(state) | {"text_model.embeddings.position_ids": torch.arange(16)[None]}


@pytest.mark.parametrize("spelling", [with_prefix, without_prefix, with_position_ids])
def test_text_encoder_is_read_with_and_without_the_prefix(spelling, xl_folder, xl_pipeline):
    for part in ("text_encoder", "text_encoder_2"):
        edit_weights(xl_folder / part / "model.safetensors", spelling)
    parts = checkpoint.load_components(xl_folder)
    assert_same_weights(parts.text_encoder, xl_pipeline.text_encoder)
    assert parts.text_encoder_2 is not None
    assert_same_weights(parts.text_encoder_2, xl_pipeline.text_encoder_2)
    assert_same_text(parts.text_encoder, xl_pipeline.text_encoder, parts.tokenizer)


def test_text_encoder_without_a_weight_is_refused_not_initialized(sd_folder):
    edit_weights(
        sd_folder / "text_encoder" / "model.safetensors",
        lambda state: {key: v for key, v in state.items() if "final_layer_norm" not in key},
    )
    with pytest.raises(ValueError, match=r"CLIPTextModel .*2 missing \(.*final_layer_norm\.weight"):
        checkpoint.load_components(sd_folder)


def test_autoencoder_with_the_old_names_of_its_attention_is_read(sd_folder, sd_pipeline):
    new = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(state):
        old = {}
        for key, value in state.items():
            for after, before in new.items():
                key = key.replace(f".{after}.", f".{before}.")
            old[key] = value
        assert old.keys() != state.keys()
        return old

    edit_weights(sd_folder / "vae" / UNET_WEIGHTS, rename)
    assert_same_weights(checkpoint.load_components(sd_folder).vae, sd_pipeline.vae)


def test_missing_and_unexpected_weights_are_named_and_counted(sd_folder):
    def edit(state):
        for key in [key for key in state if key.startswith("down_blocks.0.resnets.0")]:
            state["lora." + key] = state.pop(key)

    edit_weights(sd_folder / "unet" / UNET_WEIGHTS, edit)
    with pytest.raises(ValueError, match="must hold the weights of UNet") as caught:
        checkpoint.load_unet(sd_folder / "unet")
    message = str(caught.value)
    assert "got 10 missing (down_blocks.0.resnets.0.norm1.weight, " in message
    assert ", ...) and 10 unexpected (lora.down_blocks.0.resnets.0." in message
    assert "\n" not in message


def test_weights_of_another_architecture_are_refused_with_both_shapes(sd_folder):
    edit_json(sd_folder / "unet" / "config.json", cross_attention_dim=24)
    expected = r"attn2\.to_k\.weight \(and 7 more\) must have shape \(16, 24\) .*got \(16, 16\)"
    with pytest.raises(ValueError, match=expected):
        checkpoint.load_unet(sd_folder / "unet")


@pytest.mark.parametrize("keep", [0, 4, 100, 2000, -1], ids=lambda n: f"{n}-bytes")
def test_truncated_safetensors_is_named(keep, sd_folder):
    file = sd_folder / "unet" / UNET_WEIGHTS
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(
        ValueError, match=f"{UNET_WEIGHTS} must be a complete safetensors file, got"
    ):
        checkpoint.load_components(sd_folder)


def test_git_lfs_pointer_is_no_safetensors_file(sd_folder):
    (sd_folder / "unet" / UNET_WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match="must be a complete safetensors file, got"):
        checkpoint.load_unet(sd_folder / "unet")


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "model.ckpt", "unet.pt"])
def test_pickles_are_refused_with_the_way_to_convert_them(name, sd_folder):
    folder = sd_folder / "unet"
    (folder / UNET_WEIGHTS).unlink()
    (folder / name).write_bytes(b"cos\nsystem\n(S'touch never'\ntR.")
    with pytest.raises(
        ValueError, match=f"must hold safetensors, got only {name}: .*save_pretrained"
    ):
        checkpoint.load_components(sd_folder)
    with pytest.raises(ValueError, match=r"got only .*save_pretrained"):
        load_safetensors(folder / name)
    with pytest.raises(ValueError, match=r"got only .*save_pretrained"):
        checkpoint.resolve(folder / name)


def test_pickle_beside_safetensors_is_left_alone(sd_folder):
    (sd_folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"not even a pickle")
    checkpoint.load_components(sd_folder)


def test_folder_without_weights_is_named(sd_folder):
    (sd_folder / "vae" / UNET_WEIGHTS).unlink()
    with pytest.raises(ValueError, match=f"vae must hold {UNET_WEIGHTS} .*got no such file"):
        checkpoint.load_components(sd_folder)


def test_missing_shard_is_named(tmp_path):
    make_unet().save_pretrained(tmp_path, max_shard_size="30KB")
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ValueError, match=f"must hold the shard {shard.name} that .*index"):
        checkpoint.load_unet(tmp_path)


def test_index_may_not_name_files_outside_its_folder(sd_folder):
    folder = sd_folder / "unet"
    (folder / UNET_WEIGHTS).rename(sd_folder / "weights.safetensors")
    index = {"weight_map": {"conv_in.weight": "../weights.safetensors"}}
    (folder / f"{UNET_WEIGHTS}.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"must hold the shard \.\./weights\.safetensors"):
        checkpoint.load_unet(folder)


def test_folder_without_a_model_index_is_no_diffusers_folder(sd_folder, tmp_path):
    with pytest.raises(
        ValueError, match=r"diffusers folder \(one that holds model_index.json\), got"
    ):
        checkpoint.load_components(tmp_path)
    with pytest.raises(ValueError, match="unet; give the folder above it"):
        checkpoint.load_components(sd_folder / "unet")


@pytest.mark.parametrize("name", ["StableDiffusion3Pipeline", "FluxPipeline", None])
def test_unsupported_pipeline_is_named(name, sd_folder):
    edit_json(sd_folder / "model_index.json", _class_name=name)
    expected = f"must be a StableDiffusionPipeline or StableDiffusionXLPipeline, got {name} in"
    with pytest.raises(ValueError, match=expected):
        checkpoint.load_components(sd_folder)


@pytest.mark.parametrize(
    ("part", "entry", "message"),
    [
        (
            "vae",
            ["diffusers", "AutoencoderTiny"],
            r"vae must be of class AutoencoderKL .*AutoencoderTiny",
        ),
        ("text_encoder", [None, None], "text_encoder must be of class CLIPTextModel"),
        ("tokenizer", None, "tokenizer must be present"),
        ("text_encoder_2", ["transformers", "T5EncoderModel"], "WithProjection .*T5EncoderModel"),
    ],
)
def test_unsupported_part_is_named(part, entry, message, xl_folder):
    edit_json(xl_folder / "model_index.json", **{part: entry})
    with pytest.raises(ValueError, match=message):
        checkpoint.load_components(xl_folder)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder_2", "tokenizer", "scheduler"])
def test_missing_part_is_named(part, xl_folder):
    shutil.rmtree(xl_folder / part)
    with pytest.raises(ValueError, match=f"must hold the folder {part}, which its index names"):
        checkpoint.load_components(xl_folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [('{"a":', "config.json must be JSON, got"), ("[]", "must be a JSON object, got list")],
    ids=["truncated", "list"],
)
@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_broken_json_is_named(part, text, message, sd_folder):
    (sd_folder / part / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        checkpoint.load_components(sd_folder)


def test_tokenizer_without_a_vocabulary_is_refused(sd_folder):
    for file in (sd_folder / "tokenizer").iterdir():
        file.unlink()
    with pytest.raises(ValueError, match=r"tokenizer must hold tokenizer\.json or vocab\.json"):
        checkpoint.load_components(sd_folder)


def test_tokenizer_that_transformers_does_not_read_is_named(sd_folder):
    (sd_folder / "tokenizer" / "tokenizer.json").write_text('{"model":')
    with pytest.raises(ValueError, match=r"tokenizer must hold a CLIP tokenizer, got [^\n]+$"):
        checkpoint.load_components(sd_folder)


def test_resolve_gives_a_local_folder_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    assert checkpoint.resolve(tmp_path) == checkpoint.resolve(str(tmp_path)) == tmp_path
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "model").mkdir(parents=True)
    assert checkpoint.resolve("owner/model") == Path("owner/model")


@pytest.mark.parametrize("name", ["", "model", "/no/such/folder", "./a/b", "a/b/c", "owner/mo del"])
def test_resolve_asks_the_hub_for_nothing_but_a_hub_name(name, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    with pytest.raises(ValueError, match="an existing folder or a hub name owner/model, got"):
        checkpoint.resolve(name)


def test_resolve_refuses_a_single_file(tmp_path):
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(
        ValueError, match=r"must be a diffusers folder, got the file .*from_single_file"
    ):
        checkpoint.resolve(file)


def fake_hub(monkeypatch, source: Path, target: Path) -> list[set[str]]:
    """snapshot_download that copies from source; returns, per call, what it copied."""
    calls: list[set[str]] = []

    def snapshot_download(name, *, allow_patterns, ignore_patterns):
        assert name == "owner/model"
        files = [p.relative_to(source).as_posix() for p in source.rglob("*") if p.is_file()]
        wanted = huggingface_hub.utils.filter_repo_objects(
            files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
        )
        calls.append(set(wanted))
        for file in calls[-1]:
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / file, target / file)
        return str(target)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return calls


def test_resolve_downloads_what_is_needed_and_no_pickle(xl_folder, tmp_path, monkeypatch):
    for name in (
        "sd_xl.safetensors",
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "unet/model.onnx",
        "safety_checker/model.safetensors",
    ):
        (xl_folder / name).parent.mkdir(exist_ok=True)
        (xl_folder / name).write_bytes(b"never read")
    calls = fake_hub(monkeypatch, xl_folder, tmp_path / "cache")
    folder = checkpoint.resolve("owner/model")
    assert folder == tmp_path / "cache"
    assert len(calls) == 1
    assert {name for name in calls[0] if not name.endswith(".json")} == {
        f"unet/{UNET_WEIGHTS}",
        f"vae/{UNET_WEIGHTS}",
        "text_encoder/model.safetensors",
        "text_encoder_2/model.safetensors",
    }
    checkpoint.load_components(folder)


@pytest.mark.parametrize("variant", ["fp16", "bf16", "non_ema"])
def test_resolve_downloads_a_variant_where_it_is_the_only_one(
    variant, sd_folder, tmp_path, monkeypatch
):
    file = sd_folder / "unet" / UNET_WEIGHTS
    file.rename(file.parent / f"diffusion_pytorch_model.{variant}.safetensors")
    calls = fake_hub(monkeypatch, sd_folder, tmp_path / "cache")
    folder = checkpoint.resolve("owner/model")
    weights = [{name for name in call if name.endswith("safetensors")} for call in calls[1:]]
    assert weights[-1] == {f"unet/diffusion_pytorch_model.{variant}.safetensors"}
    assert not any(weights[:-1])
    checkpoint.load_components(folder)


def test_hub_that_cannot_be_reached_gives_one_sentence(monkeypatch):
    def snapshot_download(name, **kwargs):
        raise huggingface_hub.errors.LocalEntryNotFoundError(
            "Cannot find it.\nLong advice\nfollows."
        )

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(OSError, match=r"^'owner/model' is no local folder, and .*find it\.$"):
        checkpoint.resolve("owner/model")


def test_checkpoint_and_unet_import_neither_diffusers_nor_transformers():
    code = (
        "import sys, stal.model.checkpoint, stal.model.unet\n"
        "print({'diffusers', 'transformers', 'huggingface_hub'} & sys.modules.keys())"
    )
    root = Path(checkpoint.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root
    )
    assert done.stdout == "set()\n"
