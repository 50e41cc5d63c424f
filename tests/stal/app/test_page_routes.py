"""What the page calls: layouts, files, weights, drawings on their way and finished ones."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stal import picture
from stal.layout import Layout
from stal.weights import default_weights

pytestmark = pytest.mark.needs("fastapi", "uvicorn", "prometheus_client", "httpx")

TWO = "a red circle to the left of a blue square"


def levels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data))).astype(int)


def layout_of(client, prompt: str = TWO, side: int = 16) -> dict[str, Any]:
    answer = client.post("/api/layout", json={"prompt": prompt, "width": side, "height": side})
    assert answer.status_code == 200, answer.text
    return answer.json()["layout"]


def begin(client, **body: Any) -> str:
    whole = {"prompt": TWO, "layout": layout_of(client), "steps": 4, "seed": 3, **body}
    answer = client.post("/api/drawings", json=whole)
    assert answer.status_code == 202, answer.text
    return answer.json()["id"]


def events(client, id: str, after: int | None = None) -> Iterator[tuple[int, str, Any]]:
    """(id, name, data) of each."""
    headers = {} if after is None else {"Last-Event-ID": str(after)}
    with client.stream("GET", f"/api/drawings/{id}/events", headers=headers) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        found: dict[str, str] = {}
        for line in answer.iter_lines():
            if line:
                name, _, value = line.partition(":")
                found[name] = value.strip()
            elif "event" in found:
                yield int(found["id"]), found["event"], json.loads(found["data"])
                found = {}


def draw(client, **body: Any) -> str:
    id = begin(client, **body)
    *_, (_, name, _) = events(client, id)
    assert name == "done"
    return id


def png(client, id: str) -> bytes:
    answer = client.get(f"/api/drawings/{id}/picture.png")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/png"
    return answer.content


def test_about_is_the_model_and_the_limits(client, pipe):
    about = client.get("/api/about").json()
    assert {name: about[name] for name in ("model", "width", "height", "unit", "steps")} == {
        "model": "sd",
        "width": 16,
        "height": 16,
        "unit": 2,
        "steps": 50,
    }
    assert about["default_sampler"] == "ddim"
    assert about["words"] is None
    assert about["limits"]["pixels"] == 4 * 16 * 16


def test_a_layout_is_predicted_and_sampled(client):
    from stal.layout.predictor import predict
    from stal.prompts import parse

    own = layout_of(client)
    assert own.pop("warnings") == []
    assert own == json.loads(predict(parse(TWO)).to_json())
    body = {"prompt": TWO, "width": 16, "height": 16, "seed": 5}
    sampled = client.post("/api/layout", json=body).json()["layout"]
    assert sampled["objects"] == json.loads(predict(parse(TWO), seed=5).to_json())["objects"]


def test_a_layout_says_what_it_does_not_keep(client):
    prompt = "a red circle left of a blue square, the red circle right of the blue square"
    assert any("does not keep" in each for each in layout_of(client, prompt)["warnings"])


def test_a_drawing_goes_from_the_queue_to_a_picture(client, pipe):
    id = begin(client)
    found = list(events(client, id))
    assert [number for number, _, _ in found] == sorted({number for number, _, _ in found})
    names = [name for _, name, _ in found]
    assert names[-1] == "done"
    steps = [data for _, name, data in found if name == "step"]
    assert steps[-1] == {"step": 4, "steps": 4, "preview": None}
    assert [each["step"] for each in steps] == sorted(each["step"] for each in steps)
    previews = [each["preview"] for each in steps if each["preview"]]
    assert all(each.startswith("data:image/jpeg;base64,") for each in previews)
    assert found[-1][2]["warnings"] == []
    assert found[-1][2]["seconds"] > 0
    data = png(client, id)
    record = picture.record_in(data, name="it")
    result = pipe(TWO, steps=4, seed=3, layout=Layout.from_json(json.dumps(record["layout"])))
    assert np.abs(levels(data) - np.asarray(result.images[0]).astype(int)).max() <= 2


def test_previews_are_not_made_where_nobody_wants_them(client):
    steps = [
        data for _, name, data in events(client, begin(client, previews=False)) if name == "step"
    ]
    assert {each["preview"] for each in steps} == {None}


def test_events_go_on_where_a_client_left(client):
    id = draw(client)
    whole = list(events(client, id))
    assert list(events(client, id, after=whole[-2][0])) == whole[-1:]
    assert list(events(client, id, after=whole[-1][0])) == []


def test_weights_of_a_picture_are_those_that_are_shown(client):
    strengths = {
        "regions": [{"strength": 0.5, "start": 0.25, "stop": 0.75}, {"strength": 1.0}],
        "curve": [[0.0, 1.0], [0.5, 0.5], [1.0, 0.5]],
    }
    shown = client.post("/api/weights", json={**strengths, "objects": 2, "steps": 5}).json()
    peak = 1.9 - 1.5 / 2
    curve = [1.0, 0.75, 0.5, 0.5, 0.5]
    expected = [[peak * c * 0.5 * (0.25 <= k / 4 < 0.75), peak * c] for k, c in enumerate(curve)]
    assert np.allclose(shown["weights"], expected, atol=1e-6)
    record = picture.record_in(png(client, draw(client, steps=5, weights=strengths)), name="it")
    assert record["weights"] == shown["weights"]


def test_full_strength_is_what_the_method_does(client):
    body = {"objects": 3, "steps": 6, "regions": [{}] * 3}
    for mode in ("spatial-temporal", "spatial"):
        shown = client.post("/api/weights", json={**body, "attention": mode}).json()["weights"]
        assert np.allclose(shown, default_weights(6, 3, mode=mode))


def test_a_picture_is_opened_with_its_settings(client):
    strengths = {"regions": [{"strength": 0.5}, {"strength": 1.0}], "curve": [[0, 1], [1, 0.5]]}
    data = png(client, draw(client, weights=strengths, sampler="euler", attention="spatial"))
    opened = client.post("/api/open", params={"name": "x.png"}, content=data).json()
    assert opened["seed"] == 3
    assert {k: opened["settings"][k] for k in ("sampler", "steps", "attention", "width")} == {
        "sampler": "euler",
        "steps": 4,
        "attention": "spatial",
        "width": 16,
    }
    assert [each["strength"] for each in opened["regions"]] == [0.5, 1.0]
    assert opened["curve"] == strengths["curve"]
    layout = opened["layout"]
    again = draw(client, layout=layout, weights=strengths, sampler="euler", attention="spatial")
    assert np.abs(levels(png(client, again)) - levels(data)).max() <= 2


def test_strengths_of_somebody_else_in_a_picture_are_left_out(client):
    record = picture.record_in(png(client, draw(client)), name="it")
    for page in ({"regions": 3}, "x", {"curve": [[2, 2]]}):
        data = picture.encoded(Image.new("RGB", (4, 4)), {**record, "page": page})
        opened = client.post("/api/open", content=data)
        assert opened.status_code == 200
        assert opened.json()["regions"] is opened.json()["curve"] is None


@pytest.mark.parametrize(
    "text",
    [
        '{"objects": [{"phrase": "a cat", "box": [0.25, 0.5, 0.5, 1]}]}',
        "cat {width: 16px; height: 32px; left: 16px; top: 32px; }",
        "[('a cat', [128, 256, 128, 256])]",
        '[[{"x": 16, "y": 32, "width": 16, "height": 32, "label": "a cat"}]]',
    ],
)
def test_layouts_of_other_programs_are_opened(client, text):
    pixels = {"width": 64, "height": 64}
    opened = client.post("/api/open", params=pixels, content=text.encode()).json()
    (placed,) = opened["layout"]["objects"]
    assert (placed["phrase"], placed["box"]) == ("a cat", [0.25, 0.5, 0.5, 1.0])
    assert opened["settings"] is None


def test_attention_to_a_word_is_a_map_of_the_picture(client, pipe):
    import torch

    from stal.attention import Prompts, Recording
    from stal.schedule import schedule_from_config

    id = draw(client, attention="plain", width=24, height=16)
    words = client.get(f"/api/drawings/{id}/words").json()["words"]
    assert [each["text"] for each in words] == TWO.split()
    maps = [client.get(f"/api/drawings/{id}/attention", params={"word": k}) for k in (1, 8)]
    for each in maps:
        assert each.headers["content-type"] == "image/png"
        assert levels(each.content).shape == (16, 24)
        assert levels(each.content).max() > 200
    assert not np.array_equal(levels(maps[0].content), levels(maps[1].content))

    # The same by hand: the latents after two of four steps, and the softmax there.
    kept = []
    pipe(
        TWO,
        attention="plain",
        steps=4,
        seed=3,
        width=24,
        height=16,
        callback=lambda step, x, _: kept.append(x),
    )
    model = pipe.model
    tokens = model.components.tokenizer(TWO).input_ids
    recording = Recording(Prompts(model.encode([TWO])[0]), [0], range(len(tokens)))
    t = schedule_from_config(model.components.scheduler_config, 4).timesteps[2]
    with torch.no_grad():
        model.unet(kept[1], t, None, None, attention=recording)
        layers = [
            torch.nn.functional.interpolate(
                each.mean(1)[..., 2][:, None], (8, 12), mode="bilinear"
            )[0, 0]
            for each in recording.probabilities.values()
        ]
    expected = torch.stack(layers).mean(0)
    expected = (expected / expected.max() * 255).round().numpy()
    resized = Image.fromarray(expected.astype(np.uint8)).resize((24, 16), Image.Resampling.BILINEAR)
    assert np.abs(levels(maps[0].content) - np.asarray(resized).astype(int)).max() <= 2


@pytest.mark.parametrize("sampler", ["ddim", "plms", "dpm++2m", "euler", "euler-ancestral"])
def test_the_code_draws_the_same_bytes(client, pipe, monkeypatch, tmp_path, sampler):
    id = draw(client, sampler=sampler, negative_prompt="it's a \"'''\\ star")
    code = client.get(f"/api/drawings/{id}/code")
    assert code.headers["content-type"] == "text/plain; charset=utf-8"
    monkeypatch.chdir(tmp_path)
    exec(code.text, {})
    assert (tmp_path / "picture.png").read_bytes() == png(client, id)


def test_a_drawing_is_cancelled(client):
    id = begin(client, steps=100)
    assert client.delete(f"/api/drawings/{id}").status_code == 204
    answer = client.get(f"/api/drawings/{id}/picture.png")
    deadline = time.monotonic() + 30
    while answer.status_code != 404 and time.monotonic() < deadline:
        answer = client.get(f"/api/drawings/{id}/picture.png")
    assert answer.json()["error"]["code"] == "drawing_not_found"
    assert list(client.app.state.desk._open) == []


def test_whoever_watches_is_told_that_it_was_cancelled(client):
    id = begin(client, steps=100)
    found = []
    for _, name, _ in events(client, id):
        if not found:
            client.delete(f"/api/drawings/{id}")
        found.append(name)
    assert found[-1] == "cancelled"


def test_a_drawing_that_nobody_watches_is_cancelled(client, monkeypatch):
    monkeypatch.setattr("stal.app.desk.ABANDONED_S", 0.2)
    desk = client.app.state.desk
    watched, left = begin(client, steps=100), begin(client, steps=100)
    next(events(client, left))
    found = [name for _, name, _ in events(client, watched)]
    assert found[-1] == "done"
    assert desk._open == {}
    assert left not in desk._done


def test_old_drawings_give_way_to_new_ones(start):
    from stal.app.limits import Limits

    client = start(limits=Limits(pixels=1024, kept=2))
    ids = [draw(client, steps=1) for _ in range(3)]
    codes = [client.get(f"/api/drawings/{id}/picture.png").status_code for id in ids]
    assert codes == [404, 200, 200]


def test_the_page_is_served_from_a_fixed_list(client):
    index = client.get("/")
    assert index.text == "<!doctype html>"
    assert client.get("/page/index.html").headers["etag"] == '"1"'
    assert client.get("/", headers={"If-None-Match": '"1"'}).status_code == 304
    for path in ("/page/other.js", "/page/..%2f..%2fserver.py", "/page/%2e%2e/server.py"):
        assert client.get(path).status_code == 404


def test_page_files_are_read_once(tmp_path):
    from stal.app.page_files import page_files

    (tmp_path / "index.html").write_text("<p>")
    (tmp_path / "app.js").write_text("1")
    (tmp_path / "notes.txt").write_text("no")
    files = page_files(tmp_path)
    assert {name: each.media_type for name, each in files.items()} == {
        "index.html": "text/html; charset=utf-8",
        "app.js": "text/javascript; charset=utf-8",
    }
    (tmp_path / "index.html").unlink()
    with pytest.raises(ValueError, match="the package must carry its page"):
        page_files(tmp_path)
