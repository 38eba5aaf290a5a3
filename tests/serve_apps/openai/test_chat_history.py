"""Chat completions with a history, as the ``openai`` client keeps it: older turns change nothing of an answer."""

import asyncio
import json

import httpx2
import openai
import pytest
from openai.types.chat import ParsedChatCompletionMessage
from starlette.testclient import TestClient

from serve_apps.openai import chat_messages
from serve_apps.openai.chat import chat_from_json
from serve_apps.openai.errors import Limits
from serve_apps.openai.images import data_url_bytes
from serve_apps.recipe import ServeRecipe
from tests.helpers.serve_local import local_app
from tests.helpers.serve_questions import URLS, folders_of, messages

SETTINGS = {"n": 2, "temperature": 0.8, "seed": 5, "logprobs": True, "top_logprobs": 2, "max_tokens": 9}
ASSISTANT = {"role": "assistant", "content": "move the red cup left"}
TOOL_CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.fixture(scope="module")
def app(tiny_base, tmp_path_factory):
    return local_app(ServeRecipe(**folders_of(tiny_base, tmp_path_factory.mktemp("history")), max_new_tokens=40))


@pytest.fixture(scope="module")
def http(app):
    with TestClient(app) as client:
        yield client


@pytest.fixture(scope="module")
def client(http):
    return openai.OpenAI(base_url="http://testserver/v1", api_key="none", http_client=http, max_retries=0)


@pytest.fixture(scope="module")
def alone(client):
    return client.chat.completions.create(model="idm", messages=messages(1, 2), **SETTINGS)


def image(row):
    return {"type": "image_url", "image_url": {"url": URLS[row]}}


OLD, NEW = messages(0, 1), messages(1, 2)
HISTORIES = {
    "second_question": [*OLD, ASSISTANT, *NEW],
    "instructions": [{"role": "system", "content": "Name it."}, *OLD, ASSISTANT,
                     {"role": "developer", "content": "x" * 5000}, *NEW],
    "tools": [*OLD, {"role": "assistant", "content": None, "tool_calls": [TOOL_CALL]},
              {"role": "tool", "content": [{"type": "text", "text": "4"}], "tool_call_id": "call_1"}, *NEW],
    "function": [*OLD, {"role": "function", "name": "f", "content": None}, *NEW],
    "answer_in_parts": [*OLD, {"role": "assistant", "content": [{"type": "text", "text": "a"},
                                                                {"type": "refusal", "refusal": "no"}]}, *NEW],
    "answer_of_another_server": [*OLD, ASSISTANT | {"reasoning_content": "hm", "provider_specific_fields": {"a": 1},
                                                    "thinking_blocks": [{"type": "thinking"}], "images": [1]}, *NEW],
    "answer_without_content": [*OLD, {"role": "assistant"}, *NEW],
    "odd_number_of_old_images": [{"role": "user", "content": [image(0)]}, ASSISTANT, *NEW],
    "old_images_nobody_can_read": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,*"}},
        {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}},
        {"type": "file", "file": {"file_id": "f"}}]}, ASSISTANT, *NEW],
    "one_image_a_message": [*OLD, ASSISTANT, {"role": "user", "content": [image(1)]},
                            {"role": "system", "content": "x"}, {"role": "user", "content": [image(2)]},
                            {"role": "user", "content": "What happened?"}],
    "two_old_and_two_new_in_one_turn": [{"role": "user", "content": [image(0), image(1), image(1), image(2)]}],
    "a_question_that_got_no_answer": [*OLD, *NEW],
    "an_answer_begun": [*OLD, ASSISTANT, *NEW, {"role": "assistant", "content": "The"}],
    "long": [*OLD, ASSISTANT] * 200 + NEW,
}  # fmt: skip


@pytest.mark.parametrize("name", HISTORIES)
def test_older_turns_change_nothing(client, alone, name):
    reply = client.chat.completions.create(model="idm", messages=HISTORIES[name], **SETTINGS)
    assert reply.choices == alone.choices and reply.usage == alone.usage


def test_an_answer_as_the_client_dumps_it_is_a_history(client, alone):
    first = client.chat.completions.create(model="idm", messages=OLD, **SETTINGS)
    message = first.choices[0].message
    dumps = [
        message,
        message.model_dump(),
        message.to_dict(),
        message.model_dump(exclude_none=True),
        json.loads(message.model_dump_json()),
        {**message.model_dump(), "annotations": [], "audio": None, "function_call": None, "tool_calls": None},
    ]
    parsed = ParsedChatCompletionMessage.model_validate(message.to_dict())  # of client.chat.completions.parse
    dumps += [parsed, parsed.model_dump()]
    assert {"refusal", "annotations", "audio", "function_call", "tool_calls"} <= set(dumps[1])
    for dump in dumps:
        history = [*OLD, dump, *NEW]
        assert client.chat.completions.create(model="idm", messages=history, **SETTINGS).choices == alone.choices


def test_a_stream_and_the_async_client_have_histories_too(app, alone):
    async def ask_twice():
        session = httpx2.AsyncClient(transport=httpx2.ASGITransport(app))
        async with openai.AsyncOpenAI(base_url="http://test/v1", api_key="none", http_client=session) as client:
            history = [*OLD, ASSISTANT, *NEW]
            whole = await client.chat.completions.create(model="idm", messages=history, **SETTINGS)
            stream = await client.chat.completions.create(model="idm", messages=history, stream=True, **SETTINGS)
            texts = {0: "", 1: ""}
            async for chunk in stream:
                for choice in chunk.choices:
                    texts[choice.index] += choice.delta.content or ""
            return whole, texts

    whole, texts = asyncio.run(ask_twice())
    assert whole.choices == alone.choices
    assert texts == {choice.index: choice.message.content for choice in alone.choices}


@pytest.mark.parametrize(
    ("history", "says"),
    [
        ([*OLD, ASSISTANT, {"role": "user", "content": "And now?"}], "messages hold 0 images in the user's last turn"),
        ([*OLD, ASSISTANT, {"role": "user", "content": [image(2)]}], "messages hold 1 images in the user's last turn"),
    ],
)
def test_a_turn_without_two_images_says_what_to_send(client, history, says):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="idm", messages=history)
    assert (caught.value.param, caught.value.code) == ("messages", "missing_required_parameter")
    assert says in caught.value.message and "older turns are not asked about, send them again" in caught.value.message


def test_of_three_thousand_turns_two_images_are_decoded(monkeypatch):
    decoded = []
    monkeypatch.setattr(
        chat_messages, "data_url_bytes", lambda reference, name: decoded.append(name) or data_url_bytes(reference, name)
    )
    body = json.dumps({"messages": [*[*OLD, ASSISTANT] * 3_000, *NEW]}).encode()
    _, images = chat_from_json(body, Limits())
    assert decoded == [name for name, _ in images]
    assert decoded == [f"messages[6000].content[{row}].image_url.url" for row in (1, 2)]
