"""Chat completions over the app in this process: the unmodified ``openai`` client, against the library."""

import asyncio
import json

import httpx2
import jsonschema
import numpy as np
import openai
import pytest
import torch
from starlette.testclient import TestClient

from serve_apps import idm_server, metrics
from serve_apps.idm_server import IDMServer
from serve_apps.ingress import build_app
from serve_apps.openai.chat import ChatRequest
from serve_apps.recipe import ServeRecipe
from tests.helpers.models_reference import gather_actions, reference_logits
from tests.helpers.serve_local import local_app, local_graph
from tests.helpers.serve_questions import ACTIONS, IMAGES, URLS, folders_of, library_of, messages, score
from wm.dynamics import Sampling, propose_actions, score_actions
from wm.dynamics.idm import ProposalStream
from wm.images import fit_square
from wm.models import flatten
from wm.sampling import build_model_runner
from wm.sampling.llama_runner import LlamaRunner
from wm.sampling.texts import decode_texts


@pytest.fixture(scope="module")
def folders(tiny_base, tmp_path_factory):
    return folders_of(tiny_base, tmp_path_factory.mktemp("chat"))


@pytest.fixture(scope="module")
def library(folders):
    return library_of(folders)


@pytest.fixture(scope="module", params=["separate", "merged"])
def http(folders, request):
    recipe = ServeRecipe(**folders, base_sharing=request.param, max_new_tokens=40, max_scores=12, max_pixels=600)
    with TestClient(local_app(recipe)) as client:
        yield client


@pytest.fixture(scope="module")
def client(http):
    return openai.OpenAI(base_url="http://testserver/v1", api_key="none", http_client=http, max_retries=0)


def ask(client, source=0, target=1, **settings):
    return client.chat.completions.create(model="idm", messages=messages(source, target), **settings)


def test_the_answer_is_the_librarys_proposal_and_its_score(client, library):
    idm, codes = library
    for source, target in ((0, 1), (1, 2), (2, 0)):
        (expected,) = propose_actions(idm, [codes[source]], [codes[target]], max_new_tokens=9)
        reply = ask(client, source, target, max_tokens=9)
        (choice,) = reply.choices
        assert (reply.object, reply.model, choice.message.role) == ("chat.completion", "idm", "assistant")
        assert choice.message.content == expected.text != ""
        assert choice.logprobs is None
        for told in (reply.model_extra, choice.model_extra):
            assert told["logprob"] == pytest.approx(expected.logprob, abs=1e-4)
            assert told["mean_logprob"] == pytest.approx(expected.mean_logprob, abs=1e-4)
            assert told["tokens"] == expected.num_tokens
        (score,) = score_actions(idm, [codes[source]], [codes[target]], [expected.text])
        assert reply.model_extra["logprob"] == pytest.approx(score.logprob, abs=1e-4)
        prefix = flatten(idm.layout("idm", source=codes[source], target=codes[target]))
        assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (len(prefix), expected.num_tokens)
        assert choice.finish_reason == ("length" if expected.num_tokens == 10 else "stop")


def test_logprobs_are_the_log_softmax_of_plain_passes(client, library):
    """Written out in float64 and over the whole vocabulary, the alternatives among what a text may use."""
    idm, codes = library
    reply = ask(client, logprobs=True, top_logprobs=4, max_tokens=12, temperature=1, seed=3)
    content = reply.choices[0].logprobs.content
    names = {row: name for name, row in idm.tokenizer.get_vocab().items()}
    vocabulary = idm.tokenizer.get_vocab()
    ids = [vocabulary[entry.token.strip()] for entry in content]
    assert ids[-1] == idm.eos_id and content[-1].bytes is None
    prefix = flatten(idm.layout("idm", source=codes[0], target=codes[1]))
    logprobs_TV = reference_logits(idm, [*prefix, *ids]).log_softmax(-1)[len(prefix) - 1 :]
    for step, entry in enumerate(content):
        assert entry.logprob == pytest.approx(float(logprobs_TV[step, ids[step]]), abs=1e-3)
        best = sorted(idm.text_rows.tolist(), key=lambda row, at=step: -float(logprobs_TV[at, row]))[:4]
        assert [top.token.strip() for top in entry.top_logprobs] == [names[row] for row in best]
        assert [top.logprob for top in entry.top_logprobs] == pytest.approx(
            [float(logprobs_TV[step, row]) for row in best], abs=1e-3
        )
    assert sum(entry.logprob for entry in content) == pytest.approx(reply.model_extra["logprob"], abs=1e-9)
    text = b"".join(bytes(entry.bytes) for entry in content if entry.bytes is not None)
    assert text.decode() == reply.choices[0].message.content
    assert len(content) == reply.model_extra["tokens"]


def streamed(chunks, number):
    """What a client makes of the chunks of a choice: text, entries, finish, what the last says."""
    text, entries, finish, told = "", [], None, {}
    for chunk in chunks:
        for choice in chunk.choices:
            if choice.index == number:
                assert finish is None, "nothing after the end"
                text += choice.delta.content or ""
                entries += choice.logprobs.content if choice.logprobs else []
                finish, told = choice.finish_reason, choice.model_extra
    return text, entries, finish, {name: told[name] for name in ("logprob", "mean_logprob", "tokens")}


@pytest.mark.parametrize("settings", [{}, {"logprobs": True, "top_logprobs": 2, "max_tokens": 7}])
def test_a_stream_is_the_same_answer(client, settings):
    draws = {"n": 3, "temperature": 0.9, "seed": 11, **settings}
    whole = ask(client, **draws)
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}, **draws))
    assert [chunk.object for chunk in chunks] == ["chat.completion.chunk"] * len(chunks)
    assert len({chunk.id for chunk in chunks}) == 1 and chunks[0].id != whole.id
    assert [chunk.choices[0].delta.role for chunk in chunks[:3]] == ["assistant"] * 3
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    for choice in whole.choices:
        text, entries, finish, told = streamed(chunks, choice.index)
        assert (text, finish) == (choice.message.content, choice.finish_reason)
        assert entries == (choice.logprobs.content if choice.logprobs else [])
        assert told == {name: choice.model_extra[name] for name in told}
    assert len({choice.message.content for choice in whole.choices}) == 3
    assert sum(len(chunk.choices) for chunk in chunks) > 9, "it comes in pieces"


def test_sampling_is_the_librarys_and_a_seed_repeats(client, library):
    idm, codes = library
    settings = {"n": 4, "temperature": 0.7, "top_p": 0.95, "seed": 2**31 - 1}
    steps, runner = [], build_model_runner(idm)
    proposing = ProposalStream(
        idm,
        runner,
        codes[0],
        codes[1],
        num_candidates=4,
        sampling=Sampling(temperature=0.7, top_p=0.95),
        seed=2**31 - 1,
    )
    while not proposing.batch.is_finished:
        (step,) = decode_texts(runner, [proposing.batch])
        steps.append(proposing.describe_step(step))
    expected = gather_actions(steps)
    reply = ask(client, **settings)
    assert [choice.message.content for choice in reply.choices] == [action.text for action in expected]
    assert [choice.model_extra["logprob"] for choice in reply.choices] == pytest.approx(
        [action.logprob for action in expected], abs=1e-4
    )
    assert ask(client, **settings).choices == reply.choices
    drawn = ask(client, temperature=1)
    again = ask(client, temperature=1, seed=drawn.model_extra["seed"])
    assert again.choices == drawn.choices
    assert len({ask(client, temperature=1, seed=seed).choices[0].message.content for seed in range(5)}) > 1


def test_temperature_zero_is_the_default(client):
    reply = ask(client, n=2, temperature=0, seed=1)
    assert reply.choices[0].message == reply.choices[1].message == ask(client).choices[0].message


def test_concurrent_requests_get_what_each_gets_alone(folders, client):
    app = local_app(ServeRecipe(**folders))
    pairs = [(0, 1), (1, 0), (2, 1), (0, 2)]
    settings = [{"temperature": 0.8, "seed": row, "n": 1 + row % 2, "max_tokens": 5 + row} for row in range(8)]

    async def all_at_once():
        session = httpx2.AsyncClient(transport=httpx2.ASGITransport(app))
        async with openai.AsyncOpenAI(base_url="http://test/v1", api_key="none", http_client=session) as asynchronous:

            async def one(row):
                source, target = pairs[row % 4]
                if row % 3:
                    return (await ask(asynchronous, source, target, **settings[row])).choices
                chunks = [
                    chunk async for chunk in await ask(asynchronous, source, target, stream=True, **settings[row])
                ]
                return [streamed(chunks, number)[0] for number in range(settings[row]["n"])]

            return await asyncio.gather(*(one(row) for row in range(8)))

    for row, found in enumerate(asyncio.run(all_at_once())):
        alone = ask(client, *pairs[row % 4], **settings[row]).choices
        texts = [choice if isinstance(choice, str) else choice.message.content for choice in found]
        assert texts == [choice.message.content for choice in alone]


def test_texts_and_fields_that_ask_for_nothing_change_nothing(client, http):
    plain = ask(client).choices
    parts = [part for part in messages()[0]["content"] if part["type"] == "image_url"]
    parts[0] = {"type": "image_url", "image_url": {"url": URLS[0], "detail": "auto"}}
    spread = [
        {"role": "system", "content": "You name actions."},
        {"role": "user", "content": [parts[0]], "name": "me"},
        {"role": "user", "content": [{"type": "text", "text": "and then"}, parts[1]]},
    ]
    neutral = {
        "frequency_penalty": 0.0,
        "presence_penalty": 0,
        "logit_bias": {},
        "stop": None,
        "store": False,
        "tools": [],
        "tool_choice": "none",
        "response_format": {"type": "text"},
        "user": "me",
        "parallel_tool_calls": False,
        "service_tier": "auto",
        "top_p": 0.5,
        "max_completion_tokens": 32,
        "logprobs": False,
        "stream": False,
    }
    assert client.chat.completions.create(model="idm", messages=spread, **neutral).choices == plain
    left_out = http.post("/v1/chat/completions", json={"messages": messages()})
    assert left_out.json()["choices"][0]["message"]["content"] == plain[0].message.content


def test_errors_reach_the_client_with_their_kind(client):
    with pytest.raises(openai.NotFoundError, match="no such model: 'gpt-4o'; the models are fdm, idm"):
        client.chat.completions.create(model="gpt-4o", messages=messages())
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, stop=["."])
    assert (caught.value.param, caught.value.code) == ("stop", "unsupported_value")


def test_a_bound_beyond_the_servers_or_the_models_is_theirs(folders, library):
    """A client's max_tokens suits other models; an action is shorter, or its finish_reason says that it is cut off."""
    idm, codes = library
    num_free = idm.max_positions - len(flatten(idm.layout("idm", source=codes[0], target=codes[1])))
    for limit in (40, 1000):
        (expected,) = propose_actions(idm, [codes[0]], [codes[1]], max_new_tokens=min(limit, num_free))
        with TestClient(local_app(ServeRecipe(**folders, max_new_tokens=limit))) as http:
            for bound in ({"max_tokens": 100_000}, {"max_completion_tokens": 10**30}, {"max_tokens": num_free + 1}):
                asked = {"messages": messages(), "logprobs": True} | bound
                reply = http.post("/v1/chat/completions", json=asked).json()
                assert reply["choices"][0]["message"]["content"] == expected.text
                assert reply["usage"]["completion_tokens"] == expected.num_tokens
                assert reply["choices"][0]["finish_reason"] == "length"
                stream = http.post("/v1/chat/completions", json=asked | {"stream": True})
                assert stream.status_code == 200 and '"finish_reason":"length"' in stream.text.replace(" ", "")
            both = {"messages": messages(), "max_tokens": 4096, "max_completion_tokens": 8192}
            assert http.post("/v1/chat/completions", json=both).status_code == 200


def test_a_client_that_leaves_stops_the_decoding(folders, client, monkeypatch):
    assert ask(client).model_extra["tokens"] == 33
    graph = local_graph(ServeRecipe(**folders))
    passes, advance = [], idm_server._advance
    monkeypatch.setattr(idm_server, "_advance", lambda *arguments: passes.append(1) or advance(*arguments))
    app = build_app(graph)
    body = json.dumps({"messages": messages(), "stream": True}).encode()

    async def leave_after_three():
        left, sent = asyncio.Event(), []
        asked = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive():
            if asked:
                return asked.pop()
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)
            if sum(b"chat.completion.chunk" in part.get("body", b"") for part in sent) == 3:
                left.set()

        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": "/v1/chat/completions",
            "raw_path": b"/v1/chat/completions",
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
            "server": ("127.0.0.1", 80),
            "client": ("127.0.0.1", 1),
        }
        await app(scope, receive, send)
        so_far = len(passes)
        await asyncio.sleep(0.05)
        return so_far

    so_far = asyncio.run(leave_after_three())
    assert 0 < so_far < 20 and len(passes) <= so_far + 1


def test_questions_beside_growing_images_change_neither(folders):
    """In one process, whose thread has turns for both."""
    app = local_app(ServeRecipe(**folders, base_sharing="merged"))
    edit = {"image": URLS[0], "prompt": ACTIONS[1], "seed": 7, "best_of": 6}
    question = {"messages": messages(), "temperature": 1, "seed": 2, "n": 2}

    async def ask_all():
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://test") as session:

            async def one(path, body):
                return (await session.post(path, json=body)).json()

            alone = [await one("/v1/images/edits", edit), await one("/v1/chat/completions", question)]
            both = [("/v1/images/edits", edit), ("/v1/chat/completions", question)] * 4
            return alone, await asyncio.gather(*(one(*each) for each in both))

    (image_alone, answer_alone), together = asyncio.run(ask_all())
    for image_too, answer_too in zip(together[::2], together[1::2], strict=True):
        assert image_too["data"][0]["b64_json"] == image_alone["data"][0]["b64_json"]
        found, expected = ([choice["message"] for choice in reply["choices"]] for reply in (answer_too, answer_alone))
        assert found == expected
        assert answer_too["logprob"] == pytest.approx(answer_alone["logprob"], abs=1e-4)


def test_stages_are_timed(http):
    times = []
    metrics.record_to(lambda metric, value, tags: times.append((metric.name, tags.get("stage"), value)))
    try:
        http.post("/v1/chat/completions", json={"messages": messages()})
        http.post("/v1/chat/completions", json={"messages": messages(), "stream": True})
        score(http)
    finally:
        metrics.record_to(None)
    stages = [stage for name, stage, _ in times if name == "wm_stage_seconds"]
    assert stages == ["prepare", "encode", "propose"] * 2 + ["prepare", "encode", "score"]
    assert all(value >= 0 for _, stage, value in times if stage)


def test_a_batch_that_fails_loses_no_token(folders, library, monkeypatch):
    """A pass that does not fit into memory is tried again by each alone, from where it was."""
    idm, codes = library
    (expected,) = propose_actions(idm, [codes[0]], [codes[1]], max_new_tokens=20)
    server, request = IDMServer(ServeRecipe(**folders)), ChatRequest(max_tokens=20)
    images_BHWC = np.stack([fit_square(image, 16) for image in IMAGES[:2]])
    step_together, tries = LlamaRunner.step, []

    def small(self, groups):
        tries.append(len(groups))
        if len(groups) > 1 and len(tries) % 3 == 0:
            raise torch.OutOfMemoryError("no room")
        return step_together(self, groups)

    monkeypatch.setattr(LlamaRunner, "step", small)

    async def all_at_once():
        async def one(tokens_a_turn):
            items = [item async for item in server._propose(request, images_BHWC, tokens_a_turn)]
            return "".join(token["released"] for step in items[1:] for token in step)

        return await asyncio.gather(*(one(count) for count in (1, 8, 8, 3)))

    assert asyncio.run(all_at_once()) == [expected.text] * 4
    assert max(tries) > 1 and tries.count(1) > 0


def test_the_page_describes_what_is_accepted(http):
    paths = http.get("/openapi.json").json()["paths"]
    for path, needed in (("/v1/chat/completions", {"messages"}), ("/v1/score", {"image", "targets", "actions"})):
        body = paths[path]["post"]["requestBody"]["content"]["application/json"]
        assert set(body["schema"]["required"]) == needed
        assert set(body["example"]) <= set(body["schema"]["properties"])
        assert "$ref" not in json.dumps(body) and body["schema"]["additionalProperties"] is False
        described = [entry for entry in body["schema"]["properties"].values() if entry.get("description")]
        assert len(described) == len(body["schema"]["properties"])
        reply = http.post(path, json=body["example"])
        assert reply.status_code == 200, reply.text
        jsonschema.validate(body["example"], body["schema"])
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(body["example"] | {"colour": 1}, body["schema"])
