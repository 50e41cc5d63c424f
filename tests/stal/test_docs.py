"""What the documents show runs, and gives what they say."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stal.pipeline import Pipeline

MODEL = Path(__file__).parents[2] / "docs" / "model.md"


@pytest.mark.skipif(not MODEL.exists(), reason="needs a checkout")
@pytest.mark.parametrize(
    "prompt",
    [
        "a red circle to the left of a blue square",
        "a green star",
        "a red ring, a yellow cross and a blue star on a black background",
    ],
)
def test_a_loop_of_ones_own_draws_what_the_pipeline_draws(monkeypatch, tmp_path, prompt):
    loop = re.search(r"```python\n(.*?)```", MODEL.read_text(encoding="utf-8"), re.DOTALL)[1]
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    exec(re.sub('prompt = ".*"', f"prompt = {prompt!r}", loop), scope)
    assert scope["prompt"] == prompt
    drawn = Pipeline.from_pretrained()(prompt, background=0.0).images[0]
    own = np.asarray(Image.open("own.png")).astype(int)
    assert np.abs(own - np.asarray(drawn).astype(int)).max() <= 1
    assert own.std() > 20
