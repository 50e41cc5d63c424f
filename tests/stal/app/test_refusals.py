"""Bad input, wrong keys, other hosts: an error in OpenAI's form, and nothing broken behind it."""

from __future__ import annotations

import io
import json
import socket
import zlib

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from stal.layout import Layout

pytestmark = pytest.mark.needs("fastapi", "uvicorn", "prometheus_client", "httpx")

KEY = "a-key-of-20-chars-ok"
CAT = {"phrase": "a cat", "box": [0.1, 0.1, 0.5, 0.5]}


def error_of(response):
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return body["error"]


@pytest.fixture(scope="module", autouse=True)
def still_draws(client):
    """After everything that was refused, the server draws."""
    yield
    assert client.app.state.desk._open == {}
    answer = client.post("/v1/images/generations", json={"prompt": "a red circle", "steps": 1})
    assert answer.status_code == 200


IMAGES = [
    ({}, 400, "prompt must be given, got none"),
    ({"prompt": ""}, 400, "prompt must have at least 1 character"),
    ({"prompt": "  "}, 400, "prompt must not be empty"),
    ({"prompt": "a \ud800"}, 400, "unable to parse raw data as a unicode string"),
    ({"prompt": 3}, 400, "prompt must be a valid string, got 3"),
    ({"prompt": "a" * 2001}, 400, "prompt must have at most 2000 characters, got 2001"),
    ({"prompt": "a", "strenght": 1}, 400, "strenght must not be given"),
    ({"prompt": "a", "steps": 0}, 400, "steps must be greater than or equal to 1, got 0"),
    ({"prompt": "a", "steps": 101}, 400, "steps must be at most 100, got 101"),
    ({"prompt": "a", "steps": "4"}, 400, "steps must be a valid integer, got '4'"),
    ({"prompt": "a", "size": "64"}, 400, "size must match pattern"),
    ({"prompt": "a", "size": "64x64"}, 400, "size must be at most 1024 pixels, got 64x64"),
    ({"prompt": "a", "size": "15x16"}, 400, "width must be a multiple of 2, got 15"),
    ({"prompt": "a", "n": 5}, 400, "n must be at most 4, got 5"),
    ({"prompt": "a", "seed": 2**63}, 400, "seed must be less than or equal to"),
    ({"prompt": "a", "model": "gpt"}, 404, "model must be sd"),
    ({"prompt": "a", "response_format": "url"}, 400, "response_format must be b64_json"),
    ({"prompt": "a", "background": "transparent"}, 400, "background must be opaque"),
    ({"prompt": "a", "layout": "/etc/passwd"}, 400, "layout"),
    ({"prompt": "a", "layout": ["/etc/passwd"]}, 400, "layout"),
    ({"prompt": "a", "layout": {"a cat": "/etc/passwd"}}, 400, "layout"),
    ({"prompt": "a", "layout": {"masks": "x.png", "objects": []}}, 400, "masks"),
    (
        {"prompt": "a", "layout": {"objects": [CAT] * 17}},
        400,
        "objects of the layout must be at most 16",
    ),
    ({"prompt": "a", "layout": {"objects": [CAT]}, "weights": [1, 2]}, 400, "weights must be"),
    (
        {"prompt": "a", "weights": [[1]], "strength": 1},
        400,
        "strength must be given without weights",
    ),
]


@pytest.mark.parametrize(("body", "status", "message"), IMAGES, ids=[m for _, _, m in IMAGES])
def test_images_that_are_refused(client, body, status, message):
    answer = client.post(
        "/v1/images/generations",
        content=json.dumps(body),
        headers={"Content-Type": "application/json"},
    )
    assert answer.status_code == status
    error = error_of(answer)
    assert message in error["message"]
    assert error["type"] == "invalid_request_error"


def boxed(*boxes, **more):
    objects = [{"phrase": "a cat", "box": list(box), **more} for box in boxes]
    return {"prompt": "a cat", "layout": {"objects": objects}, "steps": 1}


DRAWINGS = [
    (boxed((-0.5, 0, 0.5, 1)), "objects[0].box must"),
    (boxed((0, 0, 2, 1)), "objects[0].box must"),
    (boxed((0.5, 0, 0.5, 1)), "objects[0].box must"),
    (boxed(*[(0, 0, 1, 1)] * 100), "objects of the layout must be at most 16, got 100"),
    (
        {**boxed(), "layout": {"objects": [{"phrase": " ", "box": [0, 0, 1, 1]}]}},
        "phrase must not be empty",
    ),
    (
        boxed((0, 0, 1, 1), shape={"height": 4, "width": 16, "runs": [0, 64]}),
        "shape must have the layout's aspect 1, got one of 16 x 4 cells",
    ),
    (
        boxed((0, 0, 1, 1), shape={"height": 4000, "width": 4000, "runs": [0, 16000000]}),
        "shape must be at most 4096 cells",
    ),
    (
        {**boxed((0, 0, 1, 1)), "weights": {"regions": []}},
        "weights.regions must be one for each of 1",
    ),
    (
        {**boxed((0, 0, 1, 1)), "weights": {"curve": [[0.5, 1], [0.5, 0]]}},
        "weights.curve must have ascending times",
    ),
    (
        {**boxed((0, 0, 1, 1)), "weights": {"regions": [{"strength": 5}]}},
        "strength must be less than",
    ),
    ({**boxed((0, 0, 1, 1)), "sampler": "magic"}, "sampler must be one of"),
    ({**boxed((0, 0, 1, 1)), "guidance_scale": 1}, "reference must be a prompt"),
    ({"prompt": "a", "layout": []}, "layout must be a valid dictionary"),
]


@pytest.mark.parametrize(("body", "message"), DRAWINGS, ids=[m for _, m in DRAWINGS])
def test_drawings_that_are_refused(client, body, message):
    answer = client.post("/api/drawings", json=body)
    assert answer.status_code == 400
    assert message in error_of(answer)["message"]


def test_a_prompt_with_markup_is_a_text(client):
    prompt = "<script>alert('x')</script> a red circle \u202e\x1b[31m"
    answer = client.post("/api/layout", json={"prompt": prompt, "width": 16, "height": 16})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    refused = client.post("/v1/images/generations", json={"prompt": "a", "size": prompt})
    message = error_of(refused)["message"]
    assert "\x1b" not in message
    assert "\u202e" not in message


BODIES = [
    (b"", "the body must be given"),
    (b"{", "the body must be JSON"),
    (b"\xff\xfe", "the body must be JSON"),
    (b"[" * 100_000, "the body must be JSON"),
    (b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}", "the body must be JSON"),
    (b'{"prompt": "a", "strength": NaN}', "strength must be a finite number"),
    (b'{"prompt": "a", "strength": 1e999}', "strength must be a finite number"),
]


@pytest.mark.parametrize(("body", "message"), BODIES, ids=range(len(BODIES)))
def test_bodies_that_are_no_json(client, body, message):
    headers = {"Content-Type": "application/json"}
    answer = client.post("/v1/images/generations", content=body, headers=headers)
    assert answer.status_code == 400
    assert message in error_of(answer)["message"]


def test_a_form_is_no_json(client):
    headers = {"Content-Type": "text/plain"}
    answer = client.post("/v1/images/generations", content=b'{"prompt": "a"}', headers=headers)
    assert answer.status_code == 400


def chunks(count):
    for _ in range(count):
        yield b"x" * 65536


@pytest.mark.parametrize("content", [b"x" * (1 << 21), chunks(32)], ids=["stated", "chunked"])
def test_a_body_that_is_too_large(client, content):
    headers = {"Content-Type": "application/json"}
    answer = client.post("/v1/images/generations", content=content, headers=headers)
    assert answer.status_code == 413
    assert error_of(answer)["code"] == "body_too_large"


def test_an_upload_may_be_larger_than_a_body(client):
    text = json.dumps({"objects": [{**CAT, "noun": "cat"}], "prompt": "a cat"}) + " " * (2 << 20)
    assert client.post("/api/open", content=text.encode()).status_code == 200


def test_a_body_that_never_comes(client, monkeypatch):
    monkeypatch.setattr("stal.app.guard._BODY_S", 0.2)
    with socket.create_connection((client.base_url.host, client.base_url.port), 10) as sock:
        head = b"POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\n"
        sock.sendall(head + b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
        answer = sock.recv(4096)
    assert answer.startswith(b"HTTP/1.1 408")


def png(text: bytes | None = None, size=(1, 1), **record) -> bytes:
    info = PngInfo()
    if record:
        info.add_itxt("stal", json.dumps(record))
    buffer = io.BytesIO()
    Image.new("RGB", size).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG of a few kilobytes, whose text says that it is 100 MB, and whose pixels 10^10."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return len(data).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")

    side = (100_000).to_bytes(4, "big")
    text = b"stal\0\1\0\0\0" + zlib.compress(b" " * 100_000_000)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", side + side + b"\x08\x02\0\0\0")
        + chunk(b"iTXt", text)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


LAYOUT = json.loads(Layout("a cat").to_json())
UPLOADS = [
    (b"", "must"),
    (b"\x89PNG\r\n\x1a\n", "the picture must"),
    (png(), "must carry the settings that made it, got none"),
    (bomb(), "must carry the settings that made it, got broken or too large"),
    (png(prompt="a cat"), "layout must be an object"),
    (png(prompt="a cat", layout=LAYOUT, steps="many"), "steps must be a positive integer"),
    (png(prompt="a cat", layout=LAYOUT, sampler={"a": 1}, width=-4), "width must be"),
    (b"\xff\xd8\xff", "the file must be a picture of stal's (PNG) or a layout"),
    (b"/etc/passwd", "must"),
    (b'{"masks": "/etc/passwd", "objects": []}', "the name of a picture"),
    (b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00cposix\nsystem\n.", "the file must be"),
]


@pytest.mark.parametrize(("data", "message"), UPLOADS, ids=[f"{k}" for k in range(len(UPLOADS))])
def test_uploads_that_are_refused(client, data, message):
    answer = client.post("/api/open", content=data)
    assert answer.status_code == 400
    assert message in error_of(answer)["message"]


def test_paths_and_methods_that_are_not_there(client):
    answer = client.get("/nothing")
    assert (answer.status_code, error_of(answer)["code"]) == (404, "unknown_url")
    answer = client.delete("/v1/images/generations")
    assert (answer.status_code, error_of(answer)["code"]) == (405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"
    answer = client.get("/api/drawings/x/picture.png")
    assert (answer.status_code, error_of(answer)["code"]) == (404, "drawing_not_found")


def test_the_interface_alone_has_no_page(start):
    client = start(page=False)
    assert client.get("/").status_code == 404
    assert client.post("/api/layout", json={}).status_code == 404


def test_an_error_of_the_server_says_nothing_of_itself(client, monkeypatch):
    monkeypatch.setattr("stal.app.page_routes.about", lambda *_: 1 / 0)
    answer = client.get("/api/about")
    assert answer.status_code == 500
    assert error_of(answer)["message"] == "the server failed; its log says why"


@pytest.fixture(scope="module")
def keyed(start):
    return start(key=KEY)


@pytest.mark.parametrize(
    ("header", "code"),
    [
        (None, "missing_api_key"),
        ("Basic abc", "missing_api_key"),
        ("Bearer", "invalid_api_key"),
        (f"Bearer {KEY}x", "invalid_api_key"),
        (f"Bearer {KEY[:-1]}", "invalid_api_key"),
        ("Bearer \xe9", "invalid_api_key"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/models", "/api/about", "/metrics", "/openapi.json"])
def test_a_wrong_key_opens_nothing(keyed, path, header, code):
    headers = {} if header is None else {"Authorization": header.encode("latin-1")}
    answer = keyed.get(path, headers=headers)
    assert (answer.status_code, error_of(answer)["code"]) == (401, code)
    assert answer.headers["www-authenticate"] == "Bearer"


def test_the_key_opens_everything_and_the_page_needs_none(keyed):
    for path in ("/v1/models", "/api/about", "/metrics", "/openapi.json"):
        assert keyed.get(path, headers={"Authorization": f"Bearer {KEY}"}).status_code == 200
    for path in ("/", "/page/index.html", "/health"):
        assert keyed.get(path).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "a:b:c"])
def test_other_hosts_lead_nowhere(client, host):
    answer = client.get("/api/about", headers={"Host": host})
    assert (answer.status_code, error_of(answer)["code"]) == (421, "wrong_host")


@pytest.mark.parametrize("host", ["localhost:1", "127.0.0.1", "[::1]:8000"])
def test_this_machine_has_several_names(client, host):
    assert client.get("/api/about", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:1"])
def test_other_sites_change_nothing(client, origin):
    answer = client.post("/api/layout", json={}, headers={"Origin": origin})
    assert (answer.status_code, error_of(answer)["code"]) == (403, "wrong_origin")
    own = {"Origin": str(client.base_url).rstrip("/")}
    body = {"prompt": "a cat", "width": 16, "height": 16}
    assert client.post("/api/layout", json=body, headers=own).status_code == 200


@pytest.mark.parametrize("path", ["/", "/api/about", "/nothing", "/health"])
def test_every_answer_has_a_strict_policy(client, path):
    headers = client.get(path).headers
    assert headers["content-security-policy"].startswith(
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:;"
    )
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert "server" not in headers


def test_keys_are_read_from_a_file_or_standard_input(tmp_path, monkeypatch):
    from stal.app.access import STDIN, read_key

    path = tmp_path / "key"
    path.write_text(KEY + "\n")
    assert read_key(path) == KEY
    monkeypatch.setattr("sys.stdin", io.StringIO(KEY + "\n"))
    assert read_key(STDIN) == KEY
    for text in ("", "short", "with a space in it, long", "k" * 5000, "\xe9" * 20):
        path.write_text(text)
        with pytest.raises(ValueError, match="api_key_file must"):
            read_key(path)
    with pytest.raises(ValueError, match="api_key_file must be a text file"):
        read_key(tmp_path / "none")


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.2", "::", "example.com", "127.0.0.1.x"])
def test_a_public_address_needs_a_key(run, host):
    for command in ("serve", "app"):
        code, _, err = run(command, "--host", host)
        assert code == 1
        assert f"host must be a loopback address such as 127.0.0.1 without a key, got {host}" in err


def test_a_port_that_is_taken(run):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, _, err = run("serve", "--port", taken.getsockname()[1])
    assert code == 1
    assert "127.0.0.1:" in err
    assert "in use" in err


@pytest.mark.parametrize("field", ["pixels", "queue", "kept"])
def test_limits_are_positive(field):
    from stal.app.limits import Limits

    with pytest.raises(ValueError, match=f"{field} must be a positive integer, got 0"):
        Limits(**{field: 0})
