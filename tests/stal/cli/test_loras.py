"""`--lora`: commands draw what the model draws with a LoRA on it."""

import sys
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from stal import picture
from stal.app.script import script
from stal.cli.serve import What, _application
from stal.pipeline import Pipeline

PROMPT = "a red circle"


@pytest.fixture
def ink(run, pipe, tmp_path):
    """A LoRA of the queries that is in the folder where commands run."""
    generator, tensors = torch.Generator().manual_seed(0), {}
    for path, layer in pipe.model.unet.named_modules():
        if path.endswith("attn2.to_q"):
            out, into = layer.weight.shape
            down = torch.randn(2, into, generator=generator)
            up = torch.randn(out, 2, generator=generator) * layer.weight.std()
            tensors |= {f"unet.{path}.lora_A.weight": down, f"unet.{path}.lora_B.weight": up}
    save_file(tensors, tmp_path / "ink.safetensors")
    return "ink.safetensors"


@pytest.fixture
def generate(run, sd_folder):
    """generate(*options) -> the pixels; must succeed."""

    def call(*options, output="stal.png"):
        command = ("generate", "--model", sd_folder, "--steps", 2, "--quiet", "--output", output)
        code, _, err = run(*command, *options)
        assert (code, err) == (0, "")
        return pixels(output)

    return call


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def with_loras(pipe, *loras):
    model = pipe.model
    for source, scale in loras:
        model = model.with_lora(source, scale)
    return Pipeline(model)


def drawn(pipe, seed=0):
    return np.asarray(pipe(PROMPT, steps=2, seed=seed).images[0])


def test_a_picture_is_that_of_the_model_with_each_lora(generate, ink, pipe):
    plain = drawn(pipe)
    found = generate(PROMPT, "--lora", f"{ink}:0.5", "--lora", ink)
    assert np.array_equal(found, drawn(with_loras(pipe, (ink, 0.5), (ink, 1.0))))
    assert not np.array_equal(found, plain)
    loras = picture.read_record("stal.png")["loras"]
    assert loras == [{"source": ink, "scale": 0.5}, {"source": ink, "scale": 1.0}]
    assert np.array_equal(generate(PROMPT, "--lora", f"{ink}:0"), plain)


def test_a_picture_opens_no_lora_by_itself(generate, ink):
    first = generate(PROMPT, "--lora", ink)
    with pytest.warns(UserWarning, match="with a LoRA, and this is without: give --lora"):
        without = generate("--from", "stal.png", output="again.png")
    assert "loras" not in picture.read_record("again.png")
    again = generate("--from", "stal.png", "--lora", ink, output="again.png")
    assert np.array_equal(again, first)
    assert not np.array_equal(without, first)


@pytest.mark.skipif(sys.platform == "win32", reason="a colon is in no file's name there")
def test_a_colon_may_belong_to_the_name(generate, ink, tmp_path):
    (tmp_path / ink).rename(tmp_path / "a:3.safetensors")
    generate(PROMPT, "--lora", "a:3.safetensors", "--lora", "a:3.safetensors:-0.5")
    loras = [(each["source"], each["scale"]) for each in picture.read_record("stal.png")["loras"]]
    assert loras == [("a:3.safetensors", 1.0), ("a:3.safetensors", -0.5)]


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ("none.safetensors", "none.safetensors"),
        ("none.safetensors:0.5", "none.safetensors"),
        ("ink.safetensors:", "ink.safetensors:"),
        ("ink.safetensors:strong", "ink.safetensors:strong"),
        ("ink.safetensors:nan", "scale must be finite, got nan"),
    ],
)
def test_what_is_no_lora_is_refused(failure, sd_folder, ink, lora, message):
    assert message in failure("generate", PROMPT, "--model", sd_folder, "--quiet", "--lora", lora)


def test_the_code_of_a_picture_has_its_loras(ink, sd_folder, tmp_path):
    pipe = Pipeline.from_pretrained(sd_folder, loras=[(ink, 0.5), (ink, 1.0)])
    result = pipe(PROMPT, steps=2)
    exec(script(result.settings, output="again.png"), {})
    assert np.array_equal(pixels("again.png"), np.asarray(result.images[0]))
    assert not np.array_equal(pixels("again.png"), drawn(Pipeline.from_pretrained(sd_folder)))


@pytest.fixture
def batch(run, ink, sd_folder, tmp_path):
    """batch(*options): `stal generate-batch` of two rows with a LoRA; must succeed."""
    (tmp_path / "p.txt").write_text(f"{PROMPT}\n{PROMPT}\n")

    def call(*options):
        command = ("generate-batch", "--prompts", "p.txt", "--output", "out", "--model", sd_folder)
        code, _, err = run(*command, "--steps", 2, "--lora", f"{ink}:0.5", "--quiet", *options)
        assert (code, err) == (0, "")

    return call


@pytest.mark.needs("pyarrow", "webdataset")
def test_rows_of_a_file_are_drawn_with_it(batch, ink, pipe, tmp_path):
    batch()
    inked = with_loras(pipe, (ink, 0.5))
    for row in range(2):
        found = pixels(tmp_path / "out" / "shard-00000" / f"{row:09d}.png").astype(int)
        assert np.abs(found - drawn(inked, seed=row)).max() <= 2


@pytest.mark.needs("pyarrow", "webdataset", "ray")
def test_workers_draw_with_it_wherever_they_are(batch, ink, tmp_path, monkeypatch):
    from stal.integrations import ray

    def worker(prompts, drawer, **options):
        anywhere = ray._anywhere(drawer)
        with monkeypatch.context() as elsewhere:
            elsewhere.chdir("/")
            with anywhere.engine() as engine:
                found.append(engine.pipe.model.loras)
        yield 2

    found = []
    monkeypatch.setattr(ray, "connected", lambda address: nullcontext())
    monkeypatch.setattr(ray, "draw", worker)
    batch("--engine", "ray")
    assert found == [((str(tmp_path / ink), 0.5),)]


@pytest.mark.needs("fastapi", "uvicorn", "prometheus_client")
def test_a_server_draws_with_it(monkeypatch, ink, sd_folder):
    from stal.app import server
    from stal.cli.options import DType

    served = []
    monkeypatch.setattr(server, "create_app", lambda pipe, **options: served.append(pipe))
    loras = ((ink, 0.5),)
    _application(What(str(sd_folder), loras, DType.float32, "cpu", 4, {}), None, None, local=True)
    assert served[0].model.loras == loras
