"""Chat completions that ask for what is not there: told before any work, in OpenAI's form."""

import base64
import json

import numpy as np
import pytest
from serve_local import local_app
from serve_questions import URLS, folders_of, messages
from starlette.testclient import TestClient

from serve_apps.recipe import ServeRecipe
from wm.images import encode_png


@pytest.fixture(scope="module")
def http(tiny_base, tmp_path_factory):
    folders = folders_of(tiny_base, tmp_path_factory.mktemp("chat"))
    with TestClient(local_app(ServeRecipe(**folders, max_new_tokens=40, max_pixels=600))) as client:
        yield client


def image(url, **more):
    return {"type": "image_url", "image_url": {"url": url, **more}}


def two(*parts, role="user"):
    return {"messages": [{"role": role, "content": list(parts)}]}


BIG = "data:image/png;base64," + base64.b64encode(encode_png(np.zeros((30, 30, 3), np.uint8))).decode()


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"messages": None}, "messages", "expected a list of 1 to 64 messages"),
        ({"messages": []}, "messages", "expected a list of 1 to 64 messages"),
        ({"messages": [{"role": "user", "content": "x"}] * 65}, "messages", "1 to 64 messages"),
        ({"messages": ["x"]}, "messages[0]", "expected an object with role, content"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "messages[0].content is missing"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content", "text or a list of parts"),
        ({"messages": [{"role": "user", "content": "hello"}]}, "messages", "messages hold 0 images"),
        (two(image(URLS[0])), "messages", "messages hold 1 images"),
        (two(*[image(URLS[0])] * 3), "messages", "messages hold 3 images"),
        (two(*[image(URLS[0])] * 2, role="assistant"), "messages[0].role", "'assistant': expected user, system"),
        (two(*[image(URLS[0])] * 2, role="system"), "messages[0].content[0].type", "messages of the user"),
        (two({"type": "input_audio"}), "messages[0].content[0].type", "'input_audio': expected text or image_url"),
        (two(image(URLS[0], detail="low")), "messages[0].content[0].image_url.detail", "read in one size"),
        (two(image(URLS[0], colour=1)), "messages[0].content[0].image_url.colour", "unknown field 'colour'"),
        (two({"type": "image_url", "image_url": URLS[0]}), "messages[0].content[0].image_url", "an object with url"),
        (two({"type": "text", "text": 1}), "messages[0].content[0].text", "expected text, got int"),
        (two({"type": "text", "text": "x" * 1001}, *[image(URLS[0])] * 2), "messages", "1,001 characters"),
        (two(image("https://example.org/a.png")), "messages[0].content[0].image_url.url", "fetches nothing"),
        (two(image("file:///etc/passwd")), "messages[0].content[0].image_url.url", "fetches nothing"),
        (two(image("/etc/passwd")), "messages[0].content[0].image_url.url", "expected a data URL"),
        (two(image("data:image/png;base64,%%")), "messages[0].content[0].image_url.url", "not valid base64"),
        (two(image("data:image/png,abc")), "messages[0].content[0].image_url.url", "data:image/…;base64,"),
        (
            two(image(URLS[0]), image("data:image/png;base64,aGVsbG8=")),
            "messages[0].content[1].image_url.url",
            "is no readable image",
        ),
        (two(image(URLS[0]), image(BIG)), "messages[0].content[1].image_url.url", "30 x 30 pixels; at most 600"),
        ({"n": 0}, "n", "n = 0"),
        ({"n": 11}, "n", "less than or equal to 10"),
        ({"n": "2"}, "n", "n = '2'"),
        ({"temperature": 2.1}, "temperature", "temperature = 2.1"),
        ({"top_p": 0}, "top_p", "top_p = 0"),
        ({"seed": -1}, "seed", "seed = -1"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "less than or equal to 20"),
        ({"top_logprobs": 2}, "top_logprobs", "needs logprobs = true"),
        ({"max_tokens": 41}, "max_tokens", "max_tokens = 41: at most 40 are accepted"),
        ({"max_completion_tokens": 0}, "max_completion_tokens", "greater than or equal to 1"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens", "two names of one thing"),
        ({"stream": False, "stream_options": {"include_usage": True}}, "stream_options", "needs stream = true"),
        ({"stream": True, "stream_options": {"a": 1}}, "stream_options.a", "unknown field"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options", "not supported"),
        ({"frequency_penalty": 0.5}, "frequency_penalty", "frequency_penalty = 0.5 is not supported"),
        ({"frequency_penalty": False}, "frequency_penalty", "frequency_penalty = False is not supported"),
        ({"stop": "\n"}, "stop", "stop = '\\n' is not supported"),
        ({"tools": [{"type": "function"}]}, "tools", "is not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format", "is not supported"),
        ({"store": True}, "store", "store = True is not supported"),
        ({"colour": 1}, "colour", "unknown field 'colour'; the fields are messages, model, n, "),
        ({"\ud800": 1}, None, "half a surrogate pair"),
        ({"user": "\udfff"}, None, "half a surrogate pair"),
        ({"model": "fdm"}, "model", "describes no actions; use 'idm'"),
    ],
)
def test_bad_questions_are_told_before_any_work(http, fields, param, says):
    for stream in ({}, {"stream": True}) if "stream" not in fields else ({},):
        body = json.dumps({"model": "idm", "messages": messages(), **stream, **fields})
        reply = http.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
        error = reply.json()["error"]
        assert (reply.status_code, error["param"], error["type"]) == (400, param, "invalid_request_error")
        assert says in error["message"] and "\n" not in error["message"] and len(error["message"]) < 600


def test_a_form_is_neither(http):
    for path in ("/v1/chat/completions", "/v1/score"):
        reply = http.post(path, data={"a": "b"})
        assert (reply.status_code, reply.json()["error"]["code"]) == (415, "unsupported_media_type")
