"""Reading requests and shaping errors, with plain ASGI calls and no Ray session."""

import asyncio
import json

import numpy as np
import pytest
from fastapi import Request
from fastapi.responses import JSONResponse

from serve_apps.http import create_app, read_edit
from serve_apps.openai.errors import Limits
from serve_apps.openapi import edit_openapi
from wm.images import encode_png

PNG = encode_png(np.zeros((4, 4, 3), np.uint8))
LIMITS = Limits(max_body_bytes=5000)


@pytest.fixture(scope="module")
def app():
    application = create_app("test")

    @application.post("/echo")
    async def echo(request: Request) -> JSONResponse:
        edit, image = await read_edit(request, LIMITS, lambda _, parse: asyncio.to_thread(parse))
        return JSONResponse({"prompt": edit.prompt, "bytes": len(image)})

    @application.get("/fail")
    async def fail() -> None:
        raise RuntimeError("a secret of the inside")

    @application.get("/number/{value}")
    async def number(value: int) -> int:
        return value

    return application


def multipart(*parts, boundary=b"xyz"):
    """Each part: (disposition after form-data, bytes)."""
    lines = b"".join(
        b"--" + boundary + b"\r\nContent-Disposition: form-data; " + head + b"\r\n\r\n" + data + b"\r\n"
        for head, data in parts
    )
    return lines + b"--" + boundary + b"--\r\n"


GOOD = multipart((b'name="image"; filename="a.png"', PNG), (b'name="prompt"', b"move it"))
FORM = "multipart/form-data; boundary=xyz"


def ask(app, method, path, chunks=(), headers=None):
    """(status, body, headers, number of chunks read) of one request whose body comes in chunks."""
    waiting, sent = list(chunks), []
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()],
        "server": ("127.0.0.1", 80),
        "client": ("127.0.0.1", 1),
    }

    async def receive():
        if not waiting:
            return {"type": "http.request", "body": b"", "more_body": False}
        return {"type": "http.request", "body": waiting.pop(0), "more_body": True}

    async def send(message):
        sent.append(message)

    async def run():
        try:
            await app(scope, receive, send)
        except RuntimeError as error:
            assert "secret" in str(error), "Starlette raises on what a handler did not expect, after answering"

    asyncio.run(run())
    body = b"".join(message.get("body", b"") for message in sent)
    answer_headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], json.loads(body), answer_headers, len(chunks) - len(waiting)


def test_a_form_in_small_chunks(app):
    chunks = [GOOD[start : start + 7] for start in range(0, len(GOOD), 7)]
    status, body, _, _ = ask(app, "POST", "/echo", chunks, {"content-type": FORM})
    assert (status, body) == (200, {"prompt": "move it", "bytes": len(PNG)})


def test_announced_too_large_is_not_read(app):
    headers = {"content-type": FORM, "content-length": "5001"}
    status, body, _, read = ask(app, "POST", "/echo", [GOOD], headers)
    assert status == 413
    assert body["error"]["message"] == "the request is larger than 5,000 bytes"
    assert body["error"]["code"] == "request_too_large"
    assert read == 0


@pytest.mark.parametrize("kind", [FORM, "application/json"])
def test_grown_too_large_stops_reading(app, kind):
    chunks = [b'--xyz\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'] + [b"\0" * 1000] * 100
    status, body, _, read = ask(app, "POST", "/echo", chunks, {"content-type": kind})
    assert (status, body["error"]["code"]) == (413, "request_too_large")
    assert read <= 7


@pytest.mark.parametrize(
    ("kind", "body", "status", "says"),
    [
        ("text/plain", b"hello", 415, "content-type 'text/plain' is not supported"),
        ("", b"", 415, "content-type '' is not supported"),
        (
            "application/x-www-form-urlencoded",
            b"prompt=a",
            415,
            "send multipart/form-data or application/json",
        ),
        ("multipart/form-data", GOOD, 400, "boundary"),
        (FORM, b"nonsense", 400, "the form cannot be read"),
        (FORM, b"", 400, "prompt is missing"),
        (FORM, multipart((b'filename="a.png"', PNG)), 400, "name"),
        (FORM, multipart(*[(b'name="prompt"', b"a")] * 65), 400, "Too many fields"),
        (
            FORM,
            multipart((b'name="prompt"', b"a" * 4000), (b'name="image"', b"")),
            400,
            "prompt has 4,000 characters",
        ),
        ("application/json", b"{", 400, "not valid JSON"),
    ],
)
def test_bodies_that_cannot_be_used(app, kind, body, status, says):
    found, answer, _, _ = ask(app, "POST", "/echo", [body], {"content-type": kind})
    assert found == status
    assert says in answer["error"]["message"]
    assert set(answer["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("method", "path", "status", "error"),
    [
        ("GET", "/nowhere", 404, ("no such path: GET /nowhere", "invalid_request_error", "not_found")),
        (
            "GET",
            "/echo",
            405,
            ("method GET is not allowed for /echo", "invalid_request_error", "method_not_allowed"),
        ),
        ("GET", "/fail", 500, ("the server failed to answer", "server_error", "internal_error")),
    ],
)
def test_errors_have_one_shape(app, method, path, status, error):
    found, answer, headers, _ = ask(app, method, path)
    assert found == status
    assert tuple(answer["error"][key] for key in ("message", "type", "code")) == error
    assert "secret" not in json.dumps(answer)
    if status == 405:
        assert headers["allow"] == "POST"


def test_fastapis_own_validation_has_the_shape_too(app):
    status, answer, _, _ = ask(app, "GET", "/number/three")
    assert (status, answer["error"]["param"]) == (400, "path.value")
    assert "integer" in answer["error"]["message"]


def test_openapi_tells_both_forms():
    content = edit_openapi()["requestBody"]["content"]
    form, body = (content[kind]["schema"] for kind in ("multipart/form-data", "application/json"))
    assert {"image", "prompt", "n", "best_of", "seed"} <= set(form["properties"])
    assert set(form["required"]) == {"image", "prompt"}
    assert set(body["required"]) == {"images", "prompt"}
    assert all(field.get("description") for field in form["properties"].values())
