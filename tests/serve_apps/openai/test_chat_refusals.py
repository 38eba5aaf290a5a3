"""Chat completions that ask for what is not there: told before any work, in OpenAI's form."""

import base64
import json

import numpy as np
import pytest
from starlette.testclient import TestClient

from serve_apps.recipe import ServeRecipe
from tests.helpers.serve_local import local_app
from tests.helpers.serve_questions import URLS, folders_of, messages
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
        ({"messages": None}, "messages", "messages is missing"),
        ({"messages": []}, "messages", "expected a list of 1 to 10,000 messages"),
        ({"messages": [{"role": "user", "content": "x"}] * 10_001}, "messages", "1 to 10,000 messages"),
        ({"messages": ["x"]}, "messages[0]", "expected an object with role, content"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "messages[0].content is missing"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content", "text or a list of parts"),
        ({"messages": [{"role": "user", "content": "hello"}]}, "messages", "messages hold 0 images"),
        (two(image(URLS[0])), "messages", "messages hold 1 images"),
        (two(*[{"type": "text", "text": "x"}] * 1001), "messages[0].content", "at most 1,000 parts"),
        (two(*[image(URLS[0])] * 2, role="assistant"), "messages", "messages hold 0 images in the user's last turn"),
        (two(*[image(URLS[0])] * 2, role="model"), "messages[0].role", "'model': expected user, system, developer, as"),
        (two(*[image(URLS[0])] * 2, role="system"), "messages[0].content[0].type", "messages of the user"),
        (two({"type": "input_audio"}), "messages[0].content[0].type", "'input_audio': expected text or image_url"),
        (two(image(URLS[0], colour=1)), "messages[0].content[0].image_url.colour", "unknown field 'colour'"),
        (two({"type": "image_url", "image_url": 3}), "messages[0].content[0].image_url", "an object with url"),
        (two({"type": "image_url", "image_url": "/etc"}), "messages[0].content[0].image_url", "expected a data URL"),
        (two({"type": "text", "text": 1}), "messages[0].content[0].text", "expected text, got int"),
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
        ({"max_completion_tokens": 0}, "max_completion_tokens", "greater than or equal to 1"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens", "two names of one thing"),
        ({"stream": True, "stream_options": {"continuous_usage_stats": True}}, "stream_options", "not supported"),
        ({"stream": True, "stream_options": {"a": 1}}, "stream_options.a", "unknown field"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options", "not supported"),
        ({"frequency_penalty": 0.5}, "frequency_penalty", "frequency_penalty = 0.5 is not supported"),
        ({"frequency_penalty": False}, "frequency_penalty", "frequency_penalty = False is not supported"),
        ({"stop": "\n"}, "stop", "stop = '\\n' is not supported"),
        ({"tools": [{"type": "function"}]}, "tools", "is not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format", "is not supported"),
        ({"tools": [{"type": "function"}], "tool_choice": "auto"}, "tools", "is not supported"),
        ({"tool_choice": "required"}, "tool_choice", "tool_choice = 'required' is not supported"),
        ({"logit_bias": {"7": 5}}, "logit_bias", "is not supported"),
        ({"top_k": 5}, "top_k", "top_k = 5 is not supported"),
        ({"modalities": ["text", "audio"]}, "modalities", "is not supported"),
        ({"audio": {"voice": "alloy"}}, "audio", "is not supported"),
        ({"web_search_options": {}}, "web_search_options", "is not supported"),
        ({"moderation": {"model": "any"}}, "moderation", "is not supported"),
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
