"""Every field that the ``openai`` client can send, by its types: without effect and accepted, or refused by name."""

import typing

import openai
import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsBase
from openai.types.image_edit_params import ImageEditParamsBase
from starlette.testclient import TestClient

from serve_apps.openai.chat import NEUTRAL, ChatRequest, chat_schema
from serve_apps.openai.edits import EditRequest
from serve_apps.openai.rollouts import RolloutRequest
from serve_apps.openai.score import ScoreRequest
from serve_apps.recipe import ServeRecipe
from tests.helpers.serve_hostile import BODIES, PNG, URL
from tests.helpers.serve_local import local_app
from tests.helpers.serve_questions import folders_of, messages

CHAT, EDITS = "/v1/chat/completions", "/v1/images/edits"
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}

CHAT_FIELDS = {
    "frequency_penalty": [0, 0.0, -0.0],
    "function_call": ["none", "auto"],
    "functions": [[]],
    "logit_bias": [{}, {"50256": 0}],
    "max_completion_tokens": [100_000],
    "max_tokens": [100_000],
    "metadata": [{}, {"run": "7"}],
    "modalities": [["text"]],
    "parallel_tool_calls": [True, False],
    "prediction": [{"type": "content", "content": "move"}],
    "presence_penalty": [0],
    "prompt_cache_key": ["a" * 300],
    "prompt_cache_options": [{"mode": "explicit"}],
    "prompt_cache_retention": ["24h"],
    "reasoning_effort": ["none", "minimal", "high"],
    "response_format": [{"type": "text"}],
    "safety_identifier": ["a" * 300],
    "service_tier": ["auto", "default", "flex", "priority"],
    "stop": [[], None],
    "store": [True, False],
    "stream_options": [{"include_usage": True}, None],
    "tool_choice": ["none", "auto"],
    "tools": [[]],
    "user": ["a" * 300],
    "verbosity": ["low", "high"],
    "logprobs": [False],
    "n": [1],
    "seed": [3],
    "temperature": [0],
    "top_p": [0.5],
    "top_logprobs": [None],
}
"""Values that change no greedy answer."""
CHAT_REFUSED = {
    "audio": {"voice": "alloy", "format": "wav"},
    "moderation": {"model": "omni-moderation-latest"},
    "web_search_options": {},
    "tools": [TOOL],
    "stop": ["."],
    "tool_choice": "required",
    "response_format": {"type": "json_object"},
    "frequency_penalty": 0.5,
}
EDIT_FIELDS = {
    "background": ["auto", "opaque"],
    "complexity": ["low", "high"],
    "input_fidelity": ["high", "low"],
    "n": [1],
    "output_compression": [0, 80],
    "output_format": ["png"],
    "partial_images": [0],
    "quality": ["auto", "standard", "low", "high", "max"],
    "response_format": ["b64_json"],
    "size": ["auto"],
}
EDIT_REFUSED = {
    "background": "transparent",
    "frame_count": 4,
    "frame_duration_ms": 100,
    "markup": PNG,
    "mask": PNG,
    "output_format": "gif",
    "response_format": "url",
    "size": "1536x1024",
    "svg": {"model": "m"},
}


@pytest.fixture(scope="module")
def http(tiny_base, tmp_path_factory):
    folders = folders_of(tiny_base, tmp_path_factory.mktemp("fields"))
    with TestClient(local_app(ServeRecipe(**folders, num_candidates=2))) as client:
        yield client


@pytest.fixture(scope="module")
def client(http):
    return openai.OpenAI(base_url="http://testserver/v1", api_key="none", http_client=http, max_retries=0)


@pytest.fixture(scope="module")
def answer(client):
    bound = {"max_tokens": 100_000}  # the limit: what is left out is 32
    return client.chat.completions.create(model="idm", messages=messages(), **bound).choices


@pytest.fixture(scope="module")
def picture(client):
    return client.images.edit(image=PNG, prompt="move it", extra_body={"seed": 1}).data


def test_the_tables_hold_every_field_of_the_client():
    chat = set(typing.get_type_hints(CompletionCreateParamsBase))
    assert chat == {"messages", "model"} | set(CHAT_FIELDS) | set(CHAT_REFUSED)
    edits = set(typing.get_type_hints(ImageEditParamsBase))
    assert edits == {"image", "prompt", "model", "user", "safety_identifier"} | set(EDIT_FIELDS) | set(EDIT_REFUSED)


@pytest.mark.parametrize("name", CHAT_FIELDS)
def test_a_chat_field_without_effect_changes_nothing(client, answer, name):
    for value in CHAT_FIELDS[name]:
        bound = {} if name.startswith("max_") else {"max_completion_tokens": 100_000}
        given = {name: value} | bound
        assert client.chat.completions.create(model="idm", messages=messages(), **given).choices == answer


@pytest.mark.parametrize("name", CHAT_REFUSED)
def test_a_chat_field_with_effect_is_refused_by_name(client, name):
    with pytest.raises(openai.BadRequestError, match=f"{name} = .* is not supported") as caught:
        client.chat.completions.create(model="idm", messages=messages(), **{name: CHAT_REFUSED[name]})
    assert (caught.value.param, caught.value.code) == (name, "unsupported_value")


def test_tools_that_must_not_be_called_change_nothing(client, answer):
    asked = {"model": "idm", "messages": messages(), "max_tokens": 4096}
    assert client.chat.completions.create(tools=[TOOL], tool_choice="none", **asked).choices == answer


def test_all_fields_together_and_those_of_other_clients(client, answer):
    together = {name: values[0] for name, values in CHAT_FIELDS.items()}
    vllm = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "min_tokens": 0, "stop_token_ids": []}
    vllm |= {"ignore_eos": False, "skip_special_tokens": True, "chat_template_kwargs": {"enable_thinking": False}}
    reply = client.chat.completions.create(model="idm", messages=messages(), extra_body=vllm, **together)
    assert reply.choices == answer


def test_an_image_in_every_form_of_the_client(client, answer):
    forms = [
        lambda url, detail=detail: {"type": "image_url", "image_url": {"url": url, "detail": detail}}
        for detail in ("auto", "low", "high", "original", None)
    ]
    cache = {"cache_control": {"type": "ephemeral"}, "prompt_cache_breakpoint": {"mode": "explicit"}}
    forms += [
        lambda url: {"type": "image_url", "image_url": url},
        lambda url: {"type": "image_url", "image_url": {"url": url, "format": "image/png"}},
        lambda url: {"type": "image_url", "image_url": {"url": url}, "detail": "high"} | cache,
    ]
    urls = [part["image_url"]["url"] for part in messages()[0]["content"][1:]]
    for form in forms:
        text = {"type": "text", "text": "x" * 5000} | cache
        asked = [{"role": "user", "name": "me", "content": [text, *map(form, urls)]}]
        assert client.chat.completions.create(model="idm", messages=asked, max_tokens=4096).choices == answer


def test_an_edit_field_without_effect_changes_nothing(client, picture):
    for name, values in EDIT_FIELDS.items():
        for value in values:
            reply = client.images.edit(image=PNG, prompt="move it", extra_body={"seed": 1}, **{name: value})
            assert reply.data == picture, (name, value)
    together = {name: values[0] for name, values in EDIT_FIELDS.items()}
    for image in (PNG, [PNG], ("a.png", PNG, "image/png"), ("a", PNG)):
        extra = {"seed": 1, "metadata": {"run": "7"}, "store": True, "moderation": "low", "style": "vivid"}
        reply = client.images.edit(image=image, prompt="move it", extra_body=extra, **together)
        assert reply.data == picture


@pytest.mark.parametrize("name", EDIT_REFUSED)
def test_an_edit_field_with_effect_is_refused_by_name(client, http, name):
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.edit(image=PNG, prompt="move it", **{name: EDIT_REFUSED[name]})
    assert caught.value.param == name and name in caught.value.message
    if not isinstance(EDIT_REFUSED[name], bytes):
        reply = http.post(EDITS, json=BODIES[EDITS] | {name: EDIT_REFUSED[name]})
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, name)


FIELDS = {CHAT: ChatRequest, EDITS: EditRequest, "/v1/rollouts": RolloutRequest, "/v1/score": ScoreRequest}


@pytest.mark.parametrize("path", FIELDS)
def test_null_is_the_same_as_left_out(http, path):
    """Clients with typed requests write every field that they know."""
    names = [name for name, field in FIELDS[path].model_fields.items() if not field.is_required()]
    names += [*NEUTRAL] if path == CHAT else ["images", "mask"] if path == EDITS else []
    nulls = {name: None for name in names if name not in BODIES[path]} | {"a_field_of_another_server": None}
    asked = BODIES[path]
    plain, reply = http.post(path, json=asked), http.post(path, json=asked | nulls)
    assert reply.status_code == 200, reply.text
    for key in {"data", "choices", "steps"} & set(plain.json()):
        assert reply.json()[key] == plain.json()[key]
    for name in names:
        assert http.post(path, json=asked | {name: None}).status_code == 200, name


@pytest.mark.parametrize("path", FIELDS)
def test_labels_change_nothing_anywhere(http, path):
    labels = {"user": "me", "metadata": {"run": "7"}, "store": True, "service_tier": "flex", "prompt_cache_key": "k"}
    reply = http.post(path, json=BODIES[path] | labels | {"safety_identifier": "me"})
    assert reply.status_code == 200, reply.text


def test_an_empty_field_of_a_form_is_the_same_as_left_out(http):
    names = [name for name in EditRequest.model_fields if name not in ("prompt", "seed")]
    data = dict.fromkeys(names, "") | {"prompt": "move it", "seed": "1", "image": "", "mask": ""}
    files = {"image[]": ("a.png", PNG), "mask": ("", b"", "application/octet-stream")}
    plain = http.post(EDITS, files={"image": PNG}, data={"prompt": "move it", "seed": "1"}).json()["data"]
    assert http.post(EDITS, files=files, data=data).json()["data"] == plain


def test_the_schema_has_every_field_and_null(http):
    paths = http.get("/openapi.json").json()["paths"]
    for path, fields in FIELDS.items():
        schema = paths[path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert set(fields.model_fields) <= set(schema["properties"])
        for name in set(schema["properties"]) - set(schema["required"]):
            entry = schema["properties"][name]
            allows_null = {"type": "null"} in entry.get("anyOf", []) or None in entry.get("enum", [])
            assert allows_null or not {"type", "anyOf", "enum"} & set(entry), name
    chat = chat_schema()["properties"]
    assert set(CHAT_FIELDS) | set(CHAT_REFUSED) <= set(chat)


WM = {"/v1/score": "/v1/wm/score", "/v1/rollouts": "/v1/wm/rollouts"}


@pytest.mark.parametrize("path", WM)
def test_the_routes_under_wm_are_the_same(http, path):
    plain, reply = (http.post(name, json=BODIES[path]).json() for name in (path, WM[path]))
    assert {key: plain[key] for key in plain if key not in ("id", "created")} == {
        key: reply[key] for key in reply if key not in ("id", "created")
    }
    if path == "/v1/rollouts":
        streams = [http.post(name, json=BODIES[path] | {"stream": True}) for name in (path, WM[path])]
        assert [stream.headers["content-type"] for stream in streams] == ["text/event-stream; charset=utf-8"] * 2
    for bad, status in (({"json": {"image": URL}}, 400), ({"data": {"a": "b"}}, 415)):
        errors = [http.post(name, **bad) for name in (path, WM[path])]
        assert [error.status_code for error in errors] == [status] * 2
        assert errors[0].json() == errors[1].json()
    paths = http.get("/openapi.json").json()["paths"]
    old, new = (dict(paths[name]["post"]) for name in (path, WM[path]))
    assert old.pop("operationId") != new.pop("operationId")
    assert old == new
