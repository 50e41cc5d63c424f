"""Training in a few steps of small batches: the folder that comes out, and resuming."""

import json
import os
import random
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
from transformers import CLIPModel, CLIPTokenizer

from stal.pipeline import Pipeline
from stal.shapes.captions import caption, words
from stal.shapes.detector import detect
from stal.shapes.scenes import draw_scenes
from stal.training import shapes as training
from stal.training import shapes_model
from stal.training.shapes import STAGES, ShapesRecipe, export_unet, train
from stal.training.shapes_model import MAX_TOKENS, tokenizer_of, write_tokenizer

pytestmark = pytest.mark.xdist_group("training")  # one trained model for all

RECIPE = ShapesRecipe(
    vae_steps=3,
    vae_batch=2,
    vae_check=8,
    unet_steps=4,
    unet_batch=3,
    unet_scenes=12,
    clip_steps=3,
    clip_batch=6,
    save_every_s=0.0,
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    output = tmp_path_factory.mktemp("trained")
    train(output, recipe=RECIPE)
    return output


def weights_of(output):
    """Every tensor of every checkpoint and model, by file and name."""
    return {
        f"{path.relative_to(output)} {name}": tensor
        for path in sorted(output.rglob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def assert_equal(one, other):
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def test_the_folder_is_an_ordinary_diffusers_folder(trained):
    theirs = StableDiffusionPipeline.from_pretrained(trained / "model", local_files_only=True)
    theirs.set_progress_bar_config(disable=True)
    ours = Pipeline.from_pretrained(trained / "model")
    prompt = "a red circle to the left of a blue square"
    picture = ours(prompt, attention="plain", steps=2, guidance_scale=3.0, seed=1).images[0]
    assert picture.size == (64, 64)
    generator = torch.Generator().manual_seed(1)
    expected = theirs(prompt, num_inference_steps=2, guidance_scale=3.0, generator=generator)
    difference = np.asarray(picture).astype(int) - np.asarray(expected.images[0])
    assert np.abs(difference).max() <= 3


def test_weights_are_stored_in_half_precision_and_run_in_single(trained):
    for part in ("vae", "unet", "text_encoder", "clip"):
        (path,) = (trained / "model" / part).glob("*.safetensors")
        floats = {t.dtype for t in load_file(path).values() if t.is_floating_point()}
        assert floats == {torch.float16}, part
    config = json.loads((trained / "model" / "text_encoder" / "config.json").read_text())
    assert config["dtype"] == "float32"


def test_what_is_stored_is_the_average_of_the_weights(trained):
    checkpoint = load_file(trained / "checkpoints" / "unet.safetensors")
    stored = load_file(trained / "model" / "unet" / "diffusion_pytorch_model.safetensors")
    name = "conv_in.weight"
    average = checkpoint[f"average.unet.{name}"]
    assert torch.equal(stored[name], average.half())
    assert not torch.equal(average, checkpoint[f"model.unet.{name}"])


def test_the_scale_of_the_latents_is_written_down(trained):
    config = json.loads((trained / "model" / "vae" / "config.json").read_text())
    latents = load_file(trained / "checkpoints" / "latents.safetensors")["latents"]
    assert latents.shape == (12, 4, 16, 16)
    assert config["scaling_factor"] != 0.18215
    assert 0.8 < latents.float().std() < 1.25


def test_clip_scores_pictures_and_texts(trained):
    clip = CLIPModel.from_pretrained(trained / "model" / "clip", local_files_only=True)
    images, texts = training.clip_batch(4, seed=0)
    with torch.no_grad():
        tokens = tokenizer_of(trained / "model")(texts)
        out = clip(input_ids=tokens, pixel_values=2 * images - 1)
    assert out.logits_per_text.shape == (4, 4)
    assert bool(out.logits_per_text.isfinite().all())


def test_nothing_partial_is_left(trained):
    left = [p.name for p in trained.rglob("*") if "partial" in p.name or p.suffix == ".tmp"]
    assert left == []


def test_the_same_seed_gives_the_same_weights_in_any_surroundings(trained, tmp_path):
    state = torch.get_rng_state()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"), torch.autocast("cpu"), torch.inference_mode():
            train(tmp_path, recipe=RECIPE)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.get_rng_state(), state)
    assert_equal(weights_of(tmp_path), weights_of(trained))


@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_run_resumes_as_if_nothing_had_happened(trained, tmp_path, monkeypatch, stage):
    update = training._Run.update

    def killed(self, step, loss):
        if self.stage == stage and step == 2:
            raise KeyboardInterrupt
        update(self, step, loss)

    with monkeypatch.context() as patch:
        patch.setattr(training._Run, "update", killed)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, recipe=RECIPE)
    steps = []
    monkeypatch.setattr(
        *(training._Run, "update"),
        lambda self, step, loss: (steps.append((self.stage, step)), update(self, step, loss)),
    )
    train(tmp_path, recipe=RECIPE)
    assert steps[0] == (stage, 2)
    assert_equal(weights_of(tmp_path), weights_of(trained))


def test_every_word_is_one_token_and_the_longest_caption_fits(tmp_path):
    write_tokenizer(tmp_path)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path, local_files_only=True)
    ids = [tokenizer(word).input_ids for word in words()]
    assert {len(i) for i in ids} == {3}
    assert len({i[1] for i in ids}) == len(words())
    assert tokenizer.unk_token_id not in {i[1] for i in ids}
    scenes, rng = draw_scenes(4000, seed=8), random.Random(0)
    captions = [caption(scenes, i, rng) for i in range(len(scenes))]
    thing = "a purple triangle"
    beside = f"{thing} on the right side of {thing}"
    longest = [
        f"a picture of {beside} and {beside} on a white background",
        f"a picture of {beside}, with {thing} and {thing} on a white background",
    ]
    most = max(len(i) for i in tokenizer(longest).input_ids)
    assert max(len(i) for i in tokenizer(captions).input_ids) <= most <= MAX_TOKENS


def test_the_tokenizer_takes_any_text(tmp_path):
    write_tokenizer(tmp_path)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path, local_files_only=True)
    upper, lower = tokenizer("A RED circle").input_ids, tokenizer("a red circle").input_ids
    assert upper == lower
    for text in ("", "an elephant", "2 circles!", "ёлка 円"):
        ids = tokenizer(text).input_ids
        assert ids[0] == tokenizer.bos_token_id
        assert ids[-1] == tokenizer.eos_token_id


def test_clip_batches_are_whole_scenes_and_crops():
    images, texts = training.clip_batch(9, seed=3)
    assert images.shape == (9, 3, 64, 64)
    assert len(texts) == 9
    again, same = training.clip_batch(9, seed=3)
    assert torch.equal(images, again)
    assert texts == same
    # A crop shows the object that it is described by.
    found = detect(images[4:])
    for text, detections in zip(texts[4:], found, strict=True):
        colour, _ = text.split()[-2:]
        assert colour in {d.colour for d in detections}, text


def test_the_tokenizer_is_always_the_same_and_one_that_is_there_stays(tmp_path):
    for name in ("one", "two"):
        write_tokenizer(tmp_path / name)
    one, two = (tmp_path / name / "tokenizer.json" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    # Weights that were trained with other numbers for the words would be worth nothing.
    train(tmp_path, stages=())
    path = tmp_path / "model" / "tokenizer" / "tokenizer.json"
    assert path.read_bytes() == one.read_bytes()
    path.write_bytes(one.read_bytes() + b"\n")
    train(tmp_path, stages=())
    assert path.read_bytes() == one.read_bytes() + b"\n"


def test_a_finished_stage_is_not_trained_again(trained, monkeypatch):
    before = weights_of(trained)
    monkeypatch.setattr(training._Run, "update", None)
    with pytest.warns(UserWarning, match="stage unet is finished and not trained: delete"):
        train(trained, recipe=RECIPE)
    assert_equal(weights_of(trained), before)


def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(tmp_path, monkeypatch):
    write, before = training.write_checkpoint, {}

    def full(descriptor):
        raise OSError(28, "No space left on device")

    def write_twice(path, identity, step, tensors):
        if step == 3:
            before.update(weights_of(tmp_path))
            patch.setattr(os, "fsync", full)
        write(path, identity, step, tensors)

    with monkeypatch.context() as patch:
        patch.setattr(training, "write_checkpoint", write_twice)
        with pytest.raises(OSError, match="No space left"):
            train(tmp_path, stages=("vae",), recipe=RECIPE)
    assert before
    assert_equal(weights_of(tmp_path), before)
    train(tmp_path, stages=("vae",), recipe=RECIPE)
    assert load_file(tmp_path / "checkpoints" / "vae.safetensors").keys()


def test_a_new_vae_makes_new_latents(trained, tmp_path):
    train(tmp_path, stages=("vae", "unet"), recipe=RECIPE)
    path = tmp_path / "checkpoints" / "latents.safetensors"
    old = load_file(path)["latents"]
    for name in ("vae", "unet"):
        (tmp_path / "checkpoints" / f"{name}.safetensors").unlink()
    train(tmp_path, stages=("vae", "unet"), recipe=replace(RECIPE, vae_steps=1))
    assert not torch.equal(load_file(path)["latents"], old)


def test_other_scenes_make_new_latents(trained, tmp_path):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    (tmp_path / "checkpoints" / "unet.safetensors").unlink()
    path = tmp_path / "checkpoints" / "latents.safetensors"
    old = load_file(path)["latents"]
    train(tmp_path, stages=("unet",), recipe=RECIPE, seed=1)
    assert not torch.equal(load_file(path)["latents"], old)


def test_a_run_of_another_seed_is_not_continued(trained):
    before = weights_of(trained)
    with pytest.raises(ValueError, match=r"seed must be 0 to go on from .*unet.safetensors, got 1"):
        train(trained, stages=("unet",), recipe=RECIPE, seed=1)
    with pytest.raises(ValueError, match=r"recipe must be .*'unet_steps': 4.* got .*: 5"):
        train(trained, stages=("unet",), recipe=replace(RECIPE, unet_steps=5))
    with pytest.raises(ValueError, match=r"start must be none to go on from .*, got"):
        train(trained, stages=("unet",), recipe=RECIPE, start=trained / "model")
    assert_equal(weights_of(trained), before)


def test_a_run_can_begin_with_the_weights_of_a_model(trained, tmp_path):
    start = trained / "model"
    train(tmp_path, stages=("unet",), recipe=replace(RECIPE, unet_steps=1), start=start)
    for part in ("tokenizer", "vae"):
        for path in (start / part).iterdir():
            assert (tmp_path / "model" / part / path.name).read_bytes() == path.read_bytes()
    name = "diffusion_pytorch_model.safetensors"
    before, after = (
        load_file(folder / "model" / "unet" / name)["conv_in.weight"].float()
        for folder in (trained, tmp_path)
    )
    # One step with a learning rate of 5e-6 after warm-up.
    assert 0 < (before - after).abs().max() < 1e-4


def test_a_start_of_another_architecture_is_refused(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(shapes_model, "MAX_TOKENS", shapes_model.MAX_TOKENS + 1)
    with pytest.raises(ValueError, match="start must hold the architecture that is trained, got"):
        train(tmp_path, stages=("unet",), recipe=RECIPE, start=trained / "model")


def test_a_start_keeps_its_vae(trained, tmp_path):
    with pytest.raises(ValueError, match="stages must not hold vae with start"):
        train(tmp_path, recipe=RECIPE, start=trained / "model")
    with pytest.raises(ValueError, match=r"start must be a model folder, got no .*tokenizer"):
        train(tmp_path, stages=("unet",), recipe=RECIPE, start=tmp_path)


def test_an_unfinished_unet_can_be_exported(trained, tmp_path, monkeypatch):
    update = training._Run.update

    def killed(self, step, loss):
        if self.stage == "unet" and step == 2:
            raise KeyboardInterrupt
        update(self, step, loss)

    monkeypatch.setattr(training._Run, "update", killed)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, recipe=RECIPE)
    export_unet(tmp_path)
    picture = Pipeline.from_pretrained(tmp_path / "model")("a red circle", steps=1).images[0]
    assert picture.size == (64, 64)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (("vea",), "stages must be among vae, unet, clip, got vea"),
        (("unet",), "stage unet needs a trained vae in .*: train it first"),
    ],
)
def test_stages_that_cannot_be_trained_are_refused(tmp_path, stages, message):
    with pytest.raises(ValueError, match=message):
        train(tmp_path, stages=stages, recipe=RECIPE)
