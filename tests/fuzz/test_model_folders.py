"""Folders of models from anywhere: config.json, safetensors headers, tokenizers, schedulers."""

import json
import shutil
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from hypothesis import strategies as st
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from stal.layout.network import Config, Network
from stal.layout.predictor import WEIGHTS, LayoutPredictor, metadata_of
from stal.model import clip
from stal.pipeline import Pipeline
from stal.prompts import parse
from stal.settings import Settings
from stal.training.shapes_model import MAX_TOKENS, write_clip_input, write_tokenizer

PROMPT = "a red circle to the left of a blue square"


def _text_config(tokenizer: CLIPTokenizer) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": MAX_TOKENS,
        "projection_dim": 8,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of a few thousand weights, with a CLIP and a layout predictor."""
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("fuzz") / "model"
    write_tokenizer(folder / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    torch.manual_seed(0)
    StableDiffusionPipeline(
        vae=AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8),
            norm_num_groups=4,
        ),
        text_encoder=CLIPTextModel(CLIPTextConfig(**_text_config(tokenizer))),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 8),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1,
            cross_attention_dim=8,
            attention_head_dim=1,
            norm_num_groups=4,
        ),
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    (folder / "stal.json").write_text(json.dumps({"steps": 2, "reference": "an empty scene"}))
    vision = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 8,
        "patch_size": 4,
    }
    config = CLIPConfig(text_config=_text_config(tokenizer), vision_config=vision, projection_dim=8)
    CLIPModel(config).save_pretrained(folder / "clip")
    write_clip_input(folder / "clip")
    (folder / "layout").mkdir()
    network = Network(
        Config(buckets=16, embedding=4, width=8, layers=1, heads=2, components=2, members=1)
    )
    weights = {name: value.contiguous() for name, value in network.state_dict().items()}
    save_file(weights, folder / "layout" / WEIGHTS, metadata_of(network, {}))
    return folder


JSON_FILES = (
    "model_index.json",
    "stal.json",
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/tokenizer.json",
    "scheduler/scheduler_config.json",
    "clip/config.json",
    "clip/preprocessor_config.json",
)
WEIGHT_FILES = (
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
    "clip/model.safetensors",
    f"layout/{WEIGHTS}",
)
NUMBERS = (0, 1, -1, 2, 3, 7, 64.0, 0.5, 1e-300, 1e300, 10**9, 10**30, 2**63, 300_000)
ODD: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(NUMBERS),
    st.sampled_from((float("nan"), float("inf"), -float("inf"))),
    st.sampled_from(("", "64", "\u2028", "\ud800", "DownBlock2D", "v_prediction", "x" * 10_000)),
    st.integers(),
    st.floats(),
    st.recursive(
        st.none() | st.integers(-4, 2000) | st.text(max_size=5),
        lambda each: (
            st.lists(each, max_size=4) | st.dictionaries(st.text(max_size=4), each, max_size=3)
        ),
        max_leaves=6,
    ),
    st.just([8] * 100_000),
)
PLACE = st.integers(0, 10**6)  # of a key, a tensor, a byte: modulo how many there are
CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("value"), st.sampled_from(JSON_FILES), PLACE, ODD),
        st.tuples(st.just("dropped"), st.sampled_from(JSON_FILES), PLACE, st.none()),
        st.tuples(st.just("added"), st.sampled_from(JSON_FILES), st.just(0), ODD),
        st.tuples(
            st.just("text"),
            st.sampled_from(JSON_FILES),
            st.just(0),
            st.sampled_from(("", "[]", "{", "{}", "[" * 20_000, "null", "\x00", "1e999")),
        ),
        st.tuples(st.just("shape"), st.sampled_from(WEIGHT_FILES), PLACE, ODD),
        st.tuples(
            st.just("dtype"),
            st.sampled_from(WEIGHT_FILES),
            PLACE,
            st.sampled_from(("F16", "BF16", "F64", "I64", "I32", "BOOL", "U8", "F8_E4M3", "X", 1)),
        ),
        st.tuples(
            st.just("offsets"),
            st.sampled_from(WEIGHT_FILES),
            PLACE,
            st.lists(st.sampled_from((0, 4, -1, 10**6, 2**63, 2**64)), min_size=1, max_size=3),
        ),
        st.tuples(st.just("renamed"), st.sampled_from(WEIGHT_FILES), PLACE, st.text(max_size=8)),
        st.tuples(st.just("metadata"), st.sampled_from(WEIGHT_FILES), st.just(0), ODD),
        st.tuples(
            st.just("length"),
            st.sampled_from(WEIGHT_FILES),
            st.sampled_from((0, 1, 7, 10**6, 2**31, 2**63, 2**64 - 1)),
            st.none(),
        ),
        st.tuples(st.just("cut"), st.sampled_from(WEIGHT_FILES + JSON_FILES), PLACE, st.none()),
        st.tuples(
            st.just("bytes"),
            st.sampled_from(WEIGHT_FILES + JSON_FILES),
            PLACE,
            st.binary(min_size=1, max_size=8),
        ),
        st.tuples(
            st.just("moved"),
            st.sampled_from(WEIGHT_FILES + JSON_FILES),
            st.just(0),
            st.sampled_from(("bf16", "fp16", "non_ema", "gone")),
        ),
    ),
    min_size=1,
    max_size=3,
)


def _change(folder: Path, kind: str, name: str, place: int, value: Any) -> None:
    file = folder / name
    if not file.is_file():
        return
    if kind == "moved":
        file.rename(file.with_suffix(f".{value}{file.suffix}"))
    elif kind == "cut":
        data = file.read_bytes()
        file.write_bytes(data[: place % (len(data) + 1)])
    elif kind == "bytes":
        data = bytearray(file.read_bytes())
        at = place % (len(data) + 1)
        data[at : at + len(value)] = value
        file.write_bytes(data)
    elif kind == "text":
        file.write_text(value)
    elif name in JSON_FILES:
        _change_json(file, kind, place, value)
    else:
        _change_header(file, kind, place, value)


def _change_json(file: Path, kind: str, place: int, value: Any) -> None:
    """Changes a value at any depth."""
    try:
        whole = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return
    places = [(whole, key) for key in _keys(whole)]
    for parent, key in places:
        if len(places) < 3000:
            places += [(parent[key], each) for each in _keys(parent[key])]
    if kind == "added" and isinstance(whole, dict):
        whole["_use_default_values"] = value
    elif places:
        # Those near the top are drawn as often as all others together.
        top = len(_keys(whole))
        parent, key = places[place // 2 % (top if place % 2 else len(places))]
        if kind == "dropped":
            del parent[key]
        else:
            parent[key] = value
    file.write_text(json.dumps(whole))


def _keys(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value)
    return list(range(len(value))) if isinstance(value, list) else []


def _change_header(file: Path, kind: str, place: int, value: Any) -> None:
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + length])
        names = sorted(header.keys() - {"__metadata__"})
        name = names[place % len(names)]
        if kind == "renamed":
            header[value] = header.pop(name)
        elif kind == "metadata":
            header["__metadata__"] = value if place else {"config": json.dumps(value)}
        elif kind != "length":
            key = {"shape": "shape", "dtype": "dtype", "offsets": "data_offsets"}[kind]
            header[name][key] = value
    except (ValueError, RecursionError, AttributeError, TypeError, KeyError, ZeroDivisionError):
        return
    text = json.dumps(header).encode()
    said = place if kind == "length" else len(text)
    file.write_bytes(said.to_bytes(8, "little") + text + data[8 + length :])


def _drawn(folder: Path) -> None:
    pipe = Pipeline.from_pretrained(folder)
    side = 8 * pipe.model.scale_factor
    pipe.batch([PROMPT], Settings(steps=1, height=side, width=side))
    pipe.prepare([PROMPT])


def _scored(folder: Path) -> None:
    scorer = clip.load(folder / "clip")
    scorer.texts([PROMPT])
    scorer.images(torch.rand(1, 3, 16, 16))


def _placed(folder: Path) -> None:
    with suppress(FileNotFoundError):
        LayoutPredictor.load(folder / "layout").predict([parse(PROMPT)])


def _said(use: Callable[[Path], None], folder: Path) -> str:
    """The words of a refusal, or nothing."""
    try:
        use(folder)
    except (ValueError, NotImplementedError) as error:
        return str(error).strip()
    return ""


def test_a_folder_is_read_or_refused_in_words(
    template: Path, tmp_path: Path, fuzz: Callable[..., None]
):
    def check(changes: list[tuple[str, str, int, Any]]) -> None:
        folder = tmp_path / "model"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(template, folder)
        for change in changes:
            _change(folder, *change)
        # What no change touches reads as it always does.
        touched = {name.split("/")[0] for _, name, *_ in changes}
        uses = {"clip": _scored, "layout": _placed}
        for part in sorted({part if part in uses else "" for part in touched}):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                said = _said(uses.get(part, _drawn), folder)
            assert len(said) < 2000
            assert "\n" not in said

    fuzz(check, CHANGES, examples=12)
