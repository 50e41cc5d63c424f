"""The text encoder of a pipeline as phrase encoder of the layout predictor."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from stal.layout.network import Config, Network
from stal.layout.phrase_encoder import TextEncoder
from stal.layout.predictor import WEIGHTS, LayoutPredictor
from stal.model.model import bundled_model
from stal.prompts import parse
from stal.training.layout import LayoutRecipe, train

PAIRS = [("a red car", "car"), ("a blue circle", "circle"), ("a red car", "car")]
ITEM = {
    "image_id": 1,
    "prompt": "a dog to the left of a car",
    "obj1": ["dog", [0.1, 0.4, 0.2, 0.2]],
    "obj2": ["car", [0.5, 0.3, 0.4, 0.4]],
}


@pytest.fixture(scope="module")
def encoder():
    return TextEncoder.load(bundled_model())


@pytest.fixture
def trained(tmp_path):
    path = tmp_path / "nsr1k.json"
    path.write_text(json.dumps([ITEM]))
    recipe = LayoutRecipe(steps=1, batch=2, composed=0)
    train(tmp_path / "model", recipe, nsr1k=[path], text_encoder=bundled_model(), quiet=True)
    return tmp_path / "model"


def test_equal_phrases_have_equal_embeddings_of_variance_one(encoder):
    found = encoder(PAIRS)
    assert found.shape == (3, encoder.dim)
    torch.testing.assert_close(found[0], found[2])
    assert not torch.allclose(found[0], found[1])
    torch.testing.assert_close(found.std(1, correction=0), torch.ones(3), atol=1e-3, rtol=0)


def test_embedding_is_that_of_transformers(encoder):
    from transformers import CLIPTextModel, CLIPTokenizer

    folder = bundled_model()
    model = CLIPTextModel.from_pretrained(folder / "text_encoder").eval()
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    length = model.config.max_position_embeddings
    ids = tokenizer(["a red car"], padding="max_length", max_length=length, return_tensors="pt")
    pooled = model(ids.input_ids).pooler_output.detach()
    expected = torch.nn.functional.layer_norm(pooled, (encoder.dim,))
    torch.testing.assert_close(encoder(PAIRS[:1]), expected, atol=1e-5, rtol=1e-5)


def test_the_encoder_is_not_trained_nor_stored(trained, encoder):
    names = load_file(trained / WEIGHTS).keys()
    assert not [name for name in names if name.startswith("encoder")]
    assert set(names) == Network(Config(), encoder).state_dict().keys()


def test_weights_need_the_encoder_that_they_were_trained_with(trained, tmp_path):
    predictor = LayoutPredictor.load(trained, text_encoder=bundled_model())
    layout = predictor.predict([parse(ITEM["prompt"])])[0][0]
    assert layout.violated == ()
    with pytest.raises(ValueError, match=r"got clip-text/\w+: name its folder"):
        LayoutPredictor.load(trained)
    with pytest.raises(ValueError, match=r"got ngrams-\S+: name no text encoder"):
        LayoutPredictor.load(text_encoder=bundled_model())

    other = tmp_path / "other"
    for part in ("text_encoder", "tokenizer"):
        shutil.copytree(bundled_model() / part, other / part)
    weights = load_file(other / "text_encoder" / "model.safetensors")
    changed = {name: value + 1 for name, value in weights.items()}
    save_file(changed, other / "text_encoder" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"phrase encoder clip-text/\w+, got clip-text/"):
        LayoutPredictor.load(trained, text_encoder=other)


def test_a_folder_without_encoder_is_named(tmp_path):
    with pytest.raises(ValueError, match="must be a diffusers folder with text_encoder"):
        TextEncoder.load(tmp_path)
