"""Detectors behind one interface: exact for shapes, zero-shot ones from folders made here."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    BertConfig,
    BertTokenizer,
    CLIPTokenizer,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessor,
    GroundingDinoProcessor,
    Owlv2Config,
    Owlv2ForObjectDetection,
    Owlv2ImageProcessor,
    Owlv2Processor,
    SwinConfig,
)

from stal.evaluation import detectors
from stal.evaluation.detectors import COLOURS, pixels, shapes, shapes_background, zero_shot
from stal.evaluation.metrics import Detection
from stal.model import clip
from stal.model.model import bundled_model
from stal.prompts import Object, parse
from stal.shapes.scenes import BACKGROUND_NAMES, draw_scenes, render
from stal.training.shapes_model import write_tokenizer

TWO = parse("a red circle and a blue square").objects


def picture(width: int = 48, height: int = 32) -> Image.Image:
    levels = np.random.default_rng(0).integers(0, 256, (height, width, 3))
    return Image.fromarray(levels.astype(np.uint8))


@pytest.fixture(scope="module")
def owlv2(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("owlv2")
    write_tokenizer(folder)
    tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    tokenizer.model_max_length = 16
    small = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    ids = {
        name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")
    }
    torch.manual_seed(0)
    model = Owlv2ForObjectDetection(
        Owlv2Config(
            text_config={
                "vocab_size": len(tokenizer),
                "max_position_embeddings": 16,
                **small,
                **ids,
            },
            vision_config={"image_size": 32, "patch_size": 8, **small},
            projection_dim=16,
        )
    )
    model.save_pretrained(folder)
    processor = Owlv2ImageProcessor(size={"height": 32, "width": 32})
    Owlv2Processor(processor, tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def grounding_dino(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dino")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "circle", "square"]
    (folder / "vocab.txt").write_text("\n".join(words))
    torch.manual_seed(0)
    model = GroundingDinoForObjectDetection(
        GroundingDinoConfig(
            backbone_config=SwinConfig.from_dict(
                {
                    "image_size": 32,
                    "patch_size": 4,
                    "embed_dim": 8,
                    "depths": [1, 1, 1],
                    "num_heads": [1, 1, 1],
                    "window_size": 4,
                    "out_features": ["stage2", "stage3"],
                }
            ),
            text_config=BertConfig(
                vocab_size=len(words),
                hidden_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=32,
                max_position_embeddings=64,
            ),
            d_model=32,
            encoder_layers=1,
            decoder_layers=2,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            num_queries=12,
            num_feature_levels=3,
            max_text_len=32,
        )
    )
    model.save_pretrained(folder)
    processor = GroundingDinoImageProcessor(size={"shortest_edge": 32, "longest_edge": 64})
    tokenizer = BertTokenizer(str(folder / "vocab.txt"))
    GroundingDinoProcessor(processor, tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def scorer() -> clip.Clip:
    return clip.load(bundled_model() / "clip")


@pytest.fixture(params=["owlv2", "grounding_dino"])
def folder(request) -> Path:
    return request.getfixturevalue(request.param)


def test_shapes_sees_what_was_drawn():
    scenes = draw_scenes(6, seed=3, counts=(1, 2, 3))
    levels = (render(scenes) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    found = shapes([Image.fromarray(image) for image in levels], [()] * 6)
    for i, seen in enumerate(found):
        count = int(scenes.count[i])
        drawn = [scenes.phrase(i, k).split()[1:] for k in range(count)]
        assert sorted([*d.attributes, d.noun] for d in seen) == sorted(drawn)
        background = BACKGROUND_NAMES[int(scenes.background[i])]
        assert shapes_background(Image.fromarray(levels[i])) == background


def test_pixels_are_channels_first_in_0_to_1():
    image = Image.new("RGBA", (3, 2), (255, 0, 51, 255))
    assert pixels(image).shape == (3, 2, 3)
    assert pixels(image)[:, 0, 0].tolist() == pytest.approx([1.0, 0.0, 0.2])


def test_a_zero_shot_detector_finds_nouns_of_the_prompt_with_attributes(folder, scorer):
    detector = zero_shot(folder, scorer, min_score=0.0)
    found, nothing, other = detector(
        [picture(), picture(), picture(32, 64)], [TWO, (), (Object("a circle", "circle"),)]
    )
    assert nothing == []
    assert found
    assert other
    for each in found:
        assert each.noun in ("circle", "square")
        (colour,) = each.attributes
        assert colour in COLOURS
    assert {(d.noun, d.attributes) for d in other} == {("circle", ())}
    for each in found + other:
        x0, y0, x1, y1 = each.box
        assert 0 <= x0 < x1 <= 1
        assert 0 <= y0 < y1 <= 1
        assert 0 < each.score < 1
    assert detector([picture()], [TWO]) == [found]


def test_min_score_keeps_what_is_above(folder, scorer):
    (every,) = zero_shot(folder, scorer, min_score=0.0)([picture()], [TWO])
    scores = sorted(each.score for each in every)
    limit = scores[len(scores) // 2]
    (some,) = zero_shot(folder, scorer, min_score=limit)([picture()], [TWO])
    assert some == [each for each in every if each.score > limit]


def test_owlv2_agrees_with_the_librarys_boxes_and_scores(owlv2, scorer, monkeypatch):
    monkeypatch.setattr(detectors, "_SAME_NOUN", 1.0)
    monkeypatch.setattr(detectors, "_SAME_THING", 1.0)
    (found,) = zero_shot(owlv2, scorer, min_score=0.0)([picture()], [TWO])
    processor = Owlv2Processor.from_pretrained(owlv2, local_files_only=True)
    model = Owlv2ForObjectDetection.from_pretrained(owlv2, local_files_only=True)
    texts = [["a photo of a circle", "a photo of a square"]]
    inputs = processor(images=[picture()], text=texts, return_tensors="pt")
    with torch.inference_mode():
        outputs = model(**inputs)
    (theirs,) = processor.post_process_grounded_object_detection(
        outputs, threshold=0.0, target_sizes=[(32, 48)]
    )
    boxes = (theirs["boxes"] / torch.tensor([48, 32, 48, 32])).clamp(0, 1)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    order = theirs["scores"].argsort(descending=True)
    order = order[areas[order] > 0]
    assert len(found) == len(order)
    assert torch.allclose(torch.tensor([f.box for f in found]), boxes[order], atol=1e-5)
    nouns = [("circle", "square")[int(k)] for k in theirs["labels"][order]]
    assert [f.noun for f in found] == nouns


def test_a_phrase_of_grounding_dino_has_its_best_tokens_score():
    # [CLS] circle . teddy bear . [SEP]: numbers, and padding
    ids = torch.tensor([2, 6, 5, 8, 9, 5, 3])
    scores = torch.tensor([[9.0, 0.1, 9.0, 0.2, 0.7, 9.0, 9.0, 0.0]])
    tokenizer = SimpleNamespace(convert_tokens_to_ids=lambda token: 5)
    found = detectors._scores_of_phrases(scores, ids, tokenizer, 2)
    assert found.tolist() == [pytest.approx([0.1, 0.7])]
    # A phrase that was cut off is not found.
    assert detectors._scores_of_phrases(scores, ids[:3], tokenizer, 2)[0, 1] == 0


def finds(boxes, nouns, scores):
    """What is kept of these finds of a model that answers so, whatever the picture."""
    corners = torch.tensor(boxes)
    centre, side = (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]
    names = list(dict.fromkeys(nouns))
    logits = torch.full((len(boxes), len(names)), -20.0)
    for row, (noun, score) in enumerate(zip(nouns, scores, strict=True)):
        logits[row, names.index(noun)] = torch.logit(torch.tensor(score))

    class Inputs(dict):
        def to(self, device):
            return self

    outputs = SimpleNamespace(logits=logits[None], pred_boxes=torch.cat([centre, side], 1)[None])

    class Model:
        device = "cpu"

        def __call__(self, **inputs):
            return outputs

    return detectors._find("owlvit", lambda **inputs: Inputs(), Model(), picture(), names, 0.3)


def test_overlapping_finds_of_one_noun_are_one():
    boxes = [(0.0, 0.0, 0.5, 1.0), (0.02, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)]
    kept = finds(boxes, ["cat"] * 3, [0.6, 0.8, 0.5])
    assert [round(f.score, 4) for f in kept] == [0.8, 0.5]


def test_one_thing_goes_by_its_likelier_noun_but_things_may_overlap():
    boxes = [(0.0, 0.0, 0.5, 1.0), (0.0, 0.0, 0.5, 0.99), (0.0, 0.0, 0.5, 0.6)]
    kept = finds(boxes, ["dog", "cat", "hat"], [0.6, 0.8, 0.5])
    assert [f.noun for f in kept] == ["cat", "hat"]


def test_what_scores_too_low_is_no_find():
    assert finds([(0.0, 0.0, 0.5, 1.0)], ["dog"], [0.2]) == []


class Judge(clip.Clip):
    """A CLIP to which every crop looks like one text."""

    def __init__(self, best: str) -> None:
        self.best, self.preprocessing = best, clip.Preprocessing(8)

    def texts(self, texts):
        return torch.tensor([[float(text == self.best)] for text in texts])

    def images(self, images):
        return torch.ones(len(images), 1)


@pytest.mark.parametrize(
    ("prompt", "best", "attributes"),
    [
        ("a red cat", "a photo of a green cat", ("green",)),
        ("a turquoise cat", "a photo of a turquoise cat", ("turquoise",)),
        ("a fluffy cat", "a photo of a fluffy cat", ("fluffy",)),
        ("a fluffy cat", "a photo of a cat", ()),
        ("a fluffy red cat", "a photo of a red cat", ("red",)),
        ("a cat", "a photo of a red cat", ()),
    ],
)
def test_clip_tells_attributes(prompt, best, attributes):
    find = Detection("cat", (), (0.1, 0.1, 0.9, 0.9), 0.5)
    objects = parse(prompt).objects
    (found,) = detectors._with_attributes([find], picture(), objects, Judge(best))
    assert found == Detection("cat", attributes, find.box, find.score)


def test_a_folder_without_a_detector_is_refused(tmp_path, scorer):
    with pytest.raises(ValueError, match="detector must be shapes or a folder"):
        zero_shot(tmp_path / "absent", scorer)
    with pytest.raises(ValueError, match=r"config.json must be a JSON file"):
        zero_shot(tmp_path, scorer)
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(ValueError, match=r"must hold a detector \(owlv2, owlvit, .*, got clip"):
        zero_shot(tmp_path, scorer)


def test_a_detector_without_all_its_weights_is_refused(tmp_path, owlv2, scorer):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "part"
    shutil.copytree(owlv2, folder)
    state = load_file(folder / "model.safetensors")
    name = next(key for key in state if "box_head" in key)
    del state[name]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=f"must hold every weight of the detector, got none of {name}"
    ):
        zero_shot(folder, scorer)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="must hold a whole detector"):
        zero_shot(folder, scorer)


def test_a_detector_without_its_processor_is_refused(tmp_path, owlv2, scorer):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(owlv2 / name, tmp_path / name)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "owlv2"
    with pytest.raises(ValueError, match="must hold a whole detector"):
        zero_shot(tmp_path, scorer)


@pytest.mark.parametrize("score", [-0.1, 1.5, float("nan")])
def test_min_score_must_be_a_share(owlv2, scorer, score):
    with pytest.raises(ValueError, match=r"min_score must lie in \[0, 1\]"):
        zero_shot(owlv2, scorer, min_score=score)
