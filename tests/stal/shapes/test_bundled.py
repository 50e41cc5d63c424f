"""The model that the package carries."""

from pathlib import Path

import numpy as np
import pytest
import torch

import stal
from stal.model.model import bundled_model
from stal.shapes.captions import words

PROMPT = "a red circle to the left of a blue square"
MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def pipe():
    return stal.Pipeline.from_pretrained()


def test_bundled_model_draws_the_same_as_diffusers(pipe):
    from diffusers import StableDiffusionPipeline

    theirs = StableDiffusionPipeline.from_pretrained(bundled_model(), local_files_only=True)
    theirs.set_progress_bar_config(disable=True)
    image = theirs(
        PROMPT,
        num_inference_steps=6,
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(3),
    ).images[0]
    ours = pipe(PROMPT, seed=3, steps=6, guidance_scale=4.0, attention="plain").images[0]
    difference = np.asarray(image).astype(int) - np.asarray(ours).astype(int)
    assert np.abs(difference).max() <= 3


def test_bundled_model_changes_with_regions(pipe):
    plain = pipe(PROMPT, steps=4, attention="plain")
    blended = pipe(PROMPT, steps=4)
    assert not torch.allclose(plain.latents, blended.latents, atol=0.1)


def test_bundled_model_knows_every_word_of_its_captions(pipe):
    assert pipe.defaults.words == words()


def test_bundled_model_names_words_that_it_does_not_know(pipe):
    with pytest.raises(ValueError, match=r"got teapot; it knows: .*\bcircle\b"):
        pipe("a red teapot and a blue circle")


def test_bundled_model_is_small_and_holds_no_pickle():
    files = [path for path in Path(bundled_model()).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 30 * MEGABYTE
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".txt"}
