"""OpenAI's interface: pictures are the pipeline's, and the official client reads what comes."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from stal import picture
from stal.layout import Layout, PlacedObject
from stal.weights import default_weights

pytestmark = pytest.mark.needs("fastapi", "uvicorn", "prometheus_client", "httpx")

TWO = "a red circle to the left of a blue square"
QUICK = {"prompt": TWO, "steps": 3, "seed": 7}


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data))).astype(int)


def post(client, **body):
    return client.post("/v1/images/generations", json=body)


def pictures(response) -> list[bytes]:
    assert response.status_code == 200, response.text
    return [base64.b64decode(each["b64_json"]) for each in response.json()["data"]]


def assert_drawn(data: bytes, image) -> None:
    assert np.abs(pixels(data) - np.asarray(image).astype(int)).max() <= 2


def test_pictures_are_those_of_the_pipeline(client, pipe):
    answer = post(client, **QUICK, n=2, size="16x24", negative_prompt="a star")
    result = pipe(TWO, steps=3, seed=7, num_images=2, width=16, height=24, negative_prompt="a star")
    for data, image in zip(pictures(answer), result.images, strict=True):
        assert_drawn(data, image)
    said = answer.json()
    assert said["size"] == "16x24"
    assert said["seeds"] == [7, 8]
    assert said["output_format"] == "png"
    assert said["layout"] == json.loads(result.layout.to_json())
    assert said["warnings"] == []


def test_a_picture_carries_what_draws_it_again(client):
    (data,) = pictures(post(client, **QUICK))
    record = picture.record_in(data, name="it")
    assert (record["prompt"], record["seeds"], record["steps"]) == (TWO, [7], 3)


def test_a_layout_and_weights_are_drawn_with(client, pipe):
    layout = {"objects": [{"phrase": "a star", "box": [0, 0, 0.5, 0.5]}]}
    weights = [[2.0], [0.5], [0.0]]
    answer = post(client, **QUICK, layout=layout, weights=weights)
    own = Layout(TWO, (PlacedObject("a star", "star", (0, 0, 0.5, 0.5)),))
    assert_drawn(
        *pictures(answer), pipe(TWO, steps=3, seed=7, layout=own, weights=weights).images[0]
    )
    assert answer.json()["layout"]["objects"][0]["phrase"] == "a star"


def test_strength_multiplies_the_weights_of_the_method(client, pipe):
    weights = 0.5 * default_weights(3, 2)
    assert_drawn(
        *pictures(post(client, **QUICK, strength=0.5)),
        pipe(TWO, steps=3, seed=7, weights=weights).images[0],
    )


def test_a_seed_by_chance_is_said(client):
    body = {"prompt": TWO, "steps": 1}
    first, second = (post(client, **body).json()["seeds"] for _ in range(2))
    assert first != second
    assert pictures(post(client, **body, seed=first[0]))


def test_warnings_are_told(client):
    said = post(client, **QUICK, layout={"prompt": "a cross", "objects": []}).json()["warnings"]
    assert any("another prompt" in each for each in said)


@pytest.mark.parametrize(("kind", "magic"), [("jpeg", b"\xff\xd8"), ("webp", b"RIFF")])
def test_other_formats(client, kind, magic):
    answer = post(client, **QUICK, output_format=kind, output_compression=50)
    (data,) = pictures(answer)
    assert data.startswith(magic)
    assert answer.json()["output_format"] == kind


@pytest.fixture(scope="module")
def keyed(start):
    return start(key="k" * 20, page=False)


@pytest.fixture
def openai_client(keyed):
    import openai

    with openai.OpenAI(base_url=f"{keyed.base_url}/v1", api_key="k" * 20, max_retries=0) as made:
        yield made


@pytest.mark.needs("openai")
def test_the_openai_client_draws(openai_client, pipe):
    answer = openai_client.images.generate(
        model="sd", prompt=TWO, n=2, size="16x16", extra_body={"steps": 3, "seed": 7}
    )
    result = pipe(TWO, steps=3, seed=7, num_images=2)
    assert (answer.size, answer.output_format, answer.background) == ("16x16", "png", "opaque")
    for each, image in zip(answer.data, result.images, strict=True):
        assert_drawn(base64.b64decode(each.b64_json), image)


@pytest.mark.needs("openai")
def test_the_openai_client_streams(openai_client, pipe):
    stream = openai_client.images.generate(
        model="sd",
        prompt=TWO,
        stream=True,
        partial_images=2,
        extra_body={"steps": 12, "seed": 7},
    )
    *partial, last = list(stream)
    assert [each.type for each in partial] == ["image_generation.partial_image"] * len(partial)
    assert [each.partial_image_index for each in partial] == list(range(len(partial)))
    for each in partial:
        assert pixels(base64.b64decode(each.b64_json)).shape == (16, 16, 3)
    assert last.type == "image_generation.completed"
    assert_drawn(base64.b64decode(last.b64_json), pipe(TWO, steps=12, seed=7).images[0])


@pytest.mark.needs("openai")
def test_the_openai_client_lists_models(openai_client):
    (model,) = openai_client.models.list()
    assert (model.id, model.object, model.owned_by) == ("sd", "model", "stal")
    assert openai_client.models.retrieve("sd") == model


@pytest.mark.needs("openai")
def test_the_openai_client_raises_its_own_errors(openai_client, keyed):
    import openai

    images = openai_client.images
    with pytest.raises(openai.BadRequestError, match="n must be at most 4, got 9") as caught:
        images.generate(prompt=TWO, n=9)
    assert (caught.value.param, caught.value.code) == ("n", "limit_exceeded")
    with pytest.raises(openai.NotFoundError, match=r"model must be sd, .* got dall-e-3"):
        images.generate(prompt=TWO, model="dall-e-3")
    with (
        openai.OpenAI(base_url=f"{keyed.base_url}/v1", api_key="x" * 20, max_retries=0) as other,
        pytest.raises(openai.AuthenticationError, match="API key must be the server's"),
    ):
        other.images.generate(prompt=TWO)


@pytest.mark.needs("openai")
def test_a_full_server_is_a_rate_limit_to_the_openai_client(start):
    import openai

    from stal.app.limits import Limits

    full = start(limits=Limits(pixels=1024, queue=1))
    with openai.OpenAI(base_url=f"{full.base_url}/v1", api_key="none", max_retries=0) as made:
        long = made.images.generate(prompt=TWO, stream=True, extra_body={"steps": 100})
        with pytest.raises(openai.RateLimitError, match="at most 1 pictures, it is full") as caught:
            made.images.generate(prompt=TWO)
        assert int(caught.value.response.headers["retry-after"]) >= 1
        assert list(long)[-1].type == "image_generation.completed"


def test_a_stream_that_fails_ends_with_an_error(client, monkeypatch):
    monkeypatch.setattr("stal.app.desk._files", lambda *_: 1 / 0)
    with client.stream("POST", "/v1/images/generations", json={**QUICK, "stream": True}) as answer:
        text = "".join(answer.iter_text())
    assert text.startswith("event: error\ndata: ")
    error = json.loads(text.removeprefix("event: error\ndata: "))["error"]
    assert (error["type"], error["code"]) == ("server_error", "server_error")
