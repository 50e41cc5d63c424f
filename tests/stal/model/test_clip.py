"""CLIP scores: equal to each library's own, differentiable, and clear about what is missing."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from stal.model import clip as clips
from stal.training.shapes_model import MAX_TOKENS

TEXTS = ["a red circle", "a photo of a blue square", "a green star above a pink ring"]


@pytest.fixture(scope="module")
def folder(sd_folder, tmp_path_factory):
    """A tiny CLIP with random weights beside the tokenizer of a model."""
    root = tmp_path_factory.mktemp("clip")
    shutil.copytree(sd_folder / "tokenizer", root / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(root / "tokenizer", local_files_only=True)
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    size |= {"num_attention_heads": 2, "projection_dim": 16}
    text = {
        **size,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": MAX_TOKENS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {**size, "image_size": 32, "patch_size": 8}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    model.save_pretrained(root / "clip")
    CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(root / "clip")
    return root / "clip"


@pytest.fixture(scope="module")
def clip(folder):
    return clips.load(folder)


def picture(height: int, width: int) -> Image.Image:
    """Smooth colours with a sharp square."""
    y, x = np.mgrid[:height, :width]
    channels = [
        np.sin(x / 5) * 99 + 128,
        np.cos(y / 7) * 99 + 128,
        (x + y) * 255 / (height + width),
    ]
    array = np.stack(channels, -1).astype(np.uint8)
    array[height // 4 : height // 2, width // 4 : width // 2] = (255, 0, 0)
    return Image.fromarray(array)


def pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None] / 255


SIZES = [(32, 32), (64, 64), (57, 131), (200, 77), (20, 31)]


@pytest.mark.parametrize(("height", "width"), SIZES, ids=str)
def test_clip_scores_equal_those_of_transformers(clip, folder, height, width):
    image = picture(height, width)
    model = CLIPModel.from_pretrained(folder, local_files_only=True).eval()
    processor = CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True)
    tokenizer = CLIPTokenizer.from_pretrained(folder.parent / "tokenizer", local_files_only=True)
    ids = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        out = model(pixel_values=processor(image, return_tensors="pt").pixel_values, **ids)
    expected = out.image_embeds @ out.text_embeds.T
    ours = clip.images(pixels(image)) @ clip.texts(TEXTS).T
    assert (ours - expected).abs().max() <= 1e-3


@pytest.mark.parametrize(("height", "width"), SIZES, ids=str)
def test_clip_scores_equal_those_of_open_clip(height, width, tmp_path):
    import open_clip
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model, _, preprocess = open_clip.create_model_and_transforms("ViT-S-32-alt", pretrained=None)
    save_file(
        {k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "m.safetensors"
    )
    clip = clips.load_open_clip("ViT-S-32-alt", str(tmp_path / "m.safetensors"))
    image = picture(height, width)
    with torch.no_grad():
        theirs = model.eval().encode_image(preprocess(image)[None], normalize=True)
        texts = model.encode_text(open_clip.get_tokenizer("ViT-S-32-alt")(TEXTS), normalize=True)
    ours = clip.images(pixels(image)) @ clip.texts(TEXTS).T
    assert (ours - theirs @ texts.T).abs().max() <= 1e-3


def test_clip_gradients_reach_the_pixels(clip):
    image = pixels(picture(48, 40)).requires_grad_()
    parts = clips.crops(image[0], [(0.1, 0.2, 0.6, 0.9)], size=32)
    (clip.images(parts) * clip.texts(TEXTS[:1])).sum().backward()
    inside = torch.zeros(48, 40, dtype=torch.bool)
    inside[6:47, 2:26] = True
    assert bool((image.grad[0].abs().sum(0)[inside] > 0).all())
    assert bool((image.grad[0].abs().sum(0)[~inside] == 0).all())


def test_clip_encodes_a_text_once(clip, monkeypatch):
    first = clip.texts(TEXTS)
    monkeypatch.setattr(clip, "_encode_texts", None)
    assert torch.equal(clip.texts(TEXTS[::-1]), first.flip(0))
    assert first.norm(dim=-1).tolist() == pytest.approx([1, 1, 1])


def test_crops_of_the_whole_are_the_picture_and_margins_end_at_its_edge():
    image = torch.rand(3, 8, 8)
    for margin in (0.0, 2.0):
        whole = clips.crops(image, [(0, 0, 1, 1)], size=8, margin=margin)
        assert torch.allclose(whole[0], image)
    part = clips.crops(image, [(0.25, 0.5, 0.75, 1)], size=4, margin=0)
    assert torch.allclose(part[0], image[:, 4:8, 2:6])
    assert clips.crops(image, [], size=4).shape == (0, 3, 4, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: shutil.rmtree(f), "clip must be a folder with a CLIP model"),
        (lambda f: (f / "config.json").unlink(), "/config.json must be a JSON file"),
        (lambda f: (f / "model.safetensors").unlink(), "must hold model.safetensors"),
        (
            lambda f: (f / "preprocessor_config.json").unlink(),
            "preprocessor_config.json must be a JSON file",
        ),
        (lambda f: (f / "config.json").write_text('{"model_type": "siglip"}'), "got siglip"),
        (lambda f: shutil.rmtree(f.parent / "tokenizer"), "must hold tokenizer.json"),
    ],
    ids=["folder", "config", "weights", "preprocessor", "model", "tokenizer"],
)
def test_clip_names_what_is_missing(folder, tmp_path, change, message):
    shutil.copytree(folder.parent, tmp_path / "copy")
    change(tmp_path / "copy" / "clip")
    with pytest.raises(ValueError, match=message):
        clips.load(tmp_path / "copy" / "clip")


def test_clip_of_other_sizes_is_refused(folder, tmp_path):
    shutil.copytree(folder.parent, tmp_path / "copy")
    path = tmp_path / "copy" / "clip" / "config.json"
    config = json.loads(path.read_text())
    config["projection_dim"] = 8
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="must have shape"):
        clips.load(path.parent)


@pytest.mark.parametrize(
    ("text", "message"),
    [("a red " * 40, "at most 40 of CLIP's tokens, got"), ("a \u4e00 circle", "CLIP's tokens")],
    ids=["long", "strange"],
)
def test_clip_refuses_texts_that_it_cannot_read(clip, text, message):
    with pytest.raises(ValueError, match=message):
        clip.texts([text])


def test_open_clip_is_asked_for_by_name_of_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ValueError, match=r"pip install 'stal\[clip\]'"):
        clips.load_open_clip("ViT-B-32", "openai")


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 1, 8, 8)], ids=str)
def test_clip_refuses_what_is_no_picture(clip, shape):
    with pytest.raises(ValueError, match="images must be"):
        clip.images(torch.zeros(shape))
