"""Edits, streamed and not, and rollouts, over the app in this process: against the library, event by event."""

import asyncio
import base64
import json
import re

import httpx2
import numpy as np
import pytest
from starlette.testclient import TestClient

from jobs.benchmark.serving_load import server_timing
from serve_apps import metrics
from serve_apps.recipe import ServeRecipe
from serve_apps.results import place_previews
from tests.helpers.code_calls import predict_observations, roll_out
from tests.helpers.serve_local import local_app
from wm.dynamics import Sampling, Search, sample_observations
from wm.images import decode_image, encode_png
from wm.models import load_codec, load_model

ACTIONS = ["move the red cup left", "put it in", "take the red cup"]
SOURCE = np.random.default_rng(5).integers(0, 256, (16, 16, 3), np.uint8)
URL = "data:image/png;base64," + base64.b64encode(encode_png(SOURCE)).decode()


@pytest.fixture(scope="module")
def models(tiny_base):
    return load_model(tiny_base), load_codec(tiny_base)


@pytest.fixture(scope="module", params=["separate", "merged"])
def http(tiny_base, request):
    recipe = ServeRecipe(
        fdm=str(tiny_base), idm=str(tiny_base), base_sharing=request.param, num_candidates=4, max_actions=5
    )
    with TestClient(local_app(recipe)) as client:
        yield client


def edit(http, **fields):
    reply = http.post("/v1/images/edits", json={"image": URL, "prompt": ACTIONS[0], "seed": 7, **fields})
    assert reply.status_code == 200, reply.text
    return reply.json() if not fields.get("stream") else events_of(reply)


def test_an_answer_lists_its_stages(http):
    reply = http.post("/v1/images/edits", json={"image": URL, "prompt": ACTIONS[0], "seed": 7})
    told = server_timing(reply.headers["server-timing"])
    assert set(told) == {"prepare", "encode", "sample", "score", "decode", "encode_image"}
    assert all(0 < seconds < 60 for seconds in told.values())


def rollout(http, **fields):
    reply = http.post("/v1/rollouts", json={"image": URL, "actions": ACTIONS, "seed": 7, **fields})
    assert reply.status_code == 200, reply.text
    return reply.json() if not fields.get("stream") else events_of(reply)


def events_of(reply):
    assert reply.headers["content-type"].startswith("text/event-stream")
    found = []
    for block in reply.text.split("\n\n")[:-1]:
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def pixels_of(entry):
    return decode_image(base64.b64decode(entry["b64_json"]), "reply")


def test_previews_are_the_first_candidate_so_far_and_the_source(http, models):
    model, codec = models
    events = edit(http, stream=True, partial_images=3)
    source_N = codec.encode(SOURCE[None])[0].tolist()
    first_N = sample_observations(model, [source_N], ACTIONS[:1], num_candidates=1, seed=7)[0, 0].tolist()
    places = place_previews(3, model.tokens_per_image)
    assert [event["type"] for event in events] == ["image_edit.partial_image"] * 3 + ["image_edit.completed"]
    for number, (event, place) in enumerate(zip(events, places, strict=False)):
        expected = codec.decode(np.array([first_N[:place] + source_N[place:]]))[0]
        assert np.array_equal(pixels_of(event), expected)
        assert (event["partial_image_index"], event["progress"]) == (number, place / model.tokens_per_image)
    plain = edit(http)
    shared = {"b64_json": plain["data"][0]["b64_json"], "verification": plain["data"][0]["verification"]}
    assert events[-1] | shared == events[-1]
    assert events[-1]["usage"] == plain["usage"]


@pytest.mark.parametrize(
    ("count", "tokens", "places"),
    [(0, 9, []), (3, 2, [1]), (3, 9, [1, 3, 6]), (1, 1024, [64]), (2, 1024, [64, 544]), (3, 1024, [64, 384, 704])],
)
def test_places_of_previews(count, tokens, places):
    assert place_previews(count, tokens) == places


def test_all_candidates_on_request(http, models):
    model, codec = models
    search = Search(num_candidates=4)
    (found,) = predict_observations(model, model, codec.encode(SOURCE[None]), ACTIONS[:1], search=search, seed=7)
    reply = edit(http, n=2, return_candidates=True)
    assert len(reply["candidates"]) == len(found.distinct) == reply["distinct"]
    for entry, candidate in zip(reply["candidates"], found.distinct, strict=True):
        assert np.array_equal(pixels_of(entry), codec.decode(np.array([candidate.codes]))[0])
        told = entry["verification"]
        assert told["logprob"] == pytest.approx(candidate.score.logprob, abs=1e-5)
        assert (told["index"], told["unchanged_share"]) == (candidate.index, candidate.unchanged_share)
    assert reply["data"] == reply["candidates"][:2]
    assert "candidates" not in edit(http, n=2)
    events = edit(http, n=2, return_candidates=True, stream=True)
    assert events[0]["candidates"] == reply["candidates"] and "candidates" not in events[1]
    draws = edit(http, n=3, verify=False, return_candidates=True)
    assert draws["candidates"] == draws["data"]


@pytest.mark.parametrize("gain", [0.0, 0.5, 2.0, 100.0])
def test_adaptive_n_samples_as_many_as_the_library(http, models, gain):
    model, codec = models
    source_BN = codec.encode(SOURCE[None])
    search = Search(num_candidates=8, min_gain_nats=gain, min_candidates=1)
    (found,) = predict_observations(model, model, source_BN, ACTIONS[:1], search=search, seed=7)
    reply = edit(http, best_of=8, min_gain_nats=gain)
    assert reply["drawn"] == len(found.candidates)
    assert reply["usage"]["output_tokens"] == len(found.candidates) * model.tokens_per_image
    assert reply["data"][0]["verification"]["index"] == found.best.index
    assert edit(http, best_of=8, n=3, min_gain_nats=100.0)["drawn"] == 3  # never fewer than are given back


@pytest.mark.parametrize("beam", [1, 3])
@pytest.mark.parametrize("extra", [{}, {"min_gain_nats": 1.0}, {"temperature": 0.8, "top_k": 20}])
def test_a_rollout_is_the_librarys(http, models, beam, extra):
    model, codec = models
    search = Search(
        num_candidates=4,
        num_beams=beam,
        min_gain_nats=extra.get("min_gain_nats"),
        min_candidates=beam if "min_gain_nats" in extra else 1,
    )
    sampling = Sampling(temperature=extra.get("temperature", 1.0), top_k=extra.get("top_k", 0))
    source_BN = codec.encode(SOURCE[None])
    (found,) = roll_out(model, model, source_BN, [ACTIONS], search=search, sampling=sampling, seed=7)
    reply = rollout(http, num_beams=beam, **extra)
    assert [step["action"] for step in reply["steps"]] == ACTIONS
    assert len(reply["steps"]) == len(found.best.candidates)
    for step, candidate, done in zip(reply["steps"], found.best.candidates, found.steps, strict=True):
        assert np.array_equal(pixels_of(step), codec.decode(np.array([candidate.codes]))[0])
        assert step["verification"]["index"] == candidate.index
        assert step["drawn"] == sum(len(one.candidates) for one in done.predictions)
    assert reply["logprob"] == pytest.approx(found.best.logprob, abs=1e-4)
    assert reply["mean_logprob"] == pytest.approx(found.best.mean_logprob, abs=1e-4)
    assert reply["steps"][-1]["logprob"] == pytest.approx(found.best.logprob, abs=1e-4)
    assert [end["logprob"] for end in reply["beam"]] == pytest.approx(
        [kept.logprob for kept in found.trajectories], abs=1e-4
    )
    for end, kept in zip(reply["beam"], found.trajectories, strict=True):
        assert np.array_equal(pixels_of(end), codec.decode(np.array([kept.candidates[-1].codes]))[0])


def test_a_streamed_rollout_tells_each_step_and_then_the_same(http):
    plain = rollout(http)
    *steps, last = rollout(http, stream=True)
    assert [event["type"] for event in steps] == ["rollout.step"] * 3
    assert last["type"] == "rollout.completed"
    assert last["steps"] == plain["steps"] and last["beam"] == plain["beam"]
    assert [{key: event[key] for key in event if key != "type"} for event in steps] == plain["steps"]  # a beam of one


def test_a_long_rollout_starves_no_short_request(tiny_base):
    app = local_app(
        ServeRecipe(fdm=str(tiny_base), idm=str(tiny_base), base_sharing="merged", num_candidates=4, max_actions=64)
    )
    long = {"image": URL, "actions": ACTIONS * 10, "seed": 1, "best_of": 16, "stream": True}
    short = {"image": URL, "prompt": ACTIONS[0], "seed": 7}
    steps = []

    async def ask():
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://test") as session:

            async def edit_now():
                reply = await session.post("/v1/images/edits", json=short)
                return reply.json(), len(steps)

            alone = (await edit_now())[0]
            rolling = asyncio.create_task(session.post("/v1/rollouts", json=long))
            while len(steps) < 2:
                await asyncio.sleep(0)
            begun = len(steps)
            beside, ended = await edit_now()
            await rolling
            return alone, beside, ended - begun

    metrics.record_to(lambda metric, *_: steps.append(1) if metric is metrics.CANDIDATES else None)
    try:
        alone, beside, passed = asyncio.run(ask())
    finally:
        metrics.record_to(None)
    assert len(steps) == 30 + 2
    assert passed <= 5  # its own is one of them
    assert beside["data"][0]["b64_json"] == alone["data"][0]["b64_json"]


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"actions": []}, "actions", "at least 1 item"),
        ({"actions": ["a"] * 6}, "actions", "6 actions are given; at most 5"),
        ({"actions": ["take", " "]}, "actions[1]", "actions[1] is empty"),
        ({"actions": ["take", "x" * 2000]}, "actions[1]", "2,000 characters"),
        ({"actions": ["take\0"]}, "actions[0]", "NUL"),
        ({"actions": "take"}, "actions", "actions = 'take'"),
        ({"image": None}, "image", "image is missing"),
        ({"image": "https://example.org/a.png"}, "image", "fetches nothing"),
        ({"num_beams": 9}, "num_beams", "num_beams = 9: at most 8"),
        ({"beam": 2}, "beam", "unknown field 'beam'; it is called num_beams now"),
        ({"best_of": 65}, "best_of", "best_of = 65: at most 64"),
        ({"best_of": True}, "best_of", "best_of = True"),
        ({"colour": 1}, "colour", "unknown field 'colour'; the fields are image, "),
        ({"model": "idm"}, "model", "predicts no images"),
        ({"size": "10x20"}, "size", "square"),
        ({"output_compression": 101}, "output_compression", "less than or equal to 100"),
        ({"mask": URL}, "mask", "mask is not supported: this server takes no mask"),
    ],
)
def test_bad_rollouts_are_told_before_any_work(http, fields, param, says):
    asked = {"image": URL, "actions": ACTIONS, **fields}
    for stream in (False, True):
        reply = http.post("/v1/rollouts", json=asked | {"stream": stream})
        error = reply.json()["error"]
        assert (reply.status_code, error["param"]) == (400, param)
        assert says in error["message"] and "\n" not in error["message"]


def test_a_form_is_no_rollout(http):
    reply = http.post("/v1/rollouts", data={"actions": "a"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (415, "unsupported_media_type")


def test_a_refusal_of_the_model_has_its_status_in_a_stream_too(http):
    asked = {"image": URL, "actions": ["put <pad> on"], "stream": True}
    reply = http.post("/v1/rollouts", json=asked)
    assert reply.status_code == 400 and "reserved token" in reply.json()["error"]["message"]


def test_the_pages_tell_every_endpoint(http):
    paths = http.get("/openapi.json").json()["paths"]
    body = paths["/v1/rollouts"]["post"]["requestBody"]["content"]["application/json"]
    assert {"image", "actions", "num_beams", "best_of", "seed"} <= set(body["schema"]["properties"])
    assert set(body["schema"]["required"]) == {"image", "actions"}
    words = {"open the drawer": ACTIONS[1]}  # in the words of this model
    asked = body["example"] | {"actions": [words.get(action, action) for action in body["example"]["actions"]]}
    assert http.post("/v1/rollouts", json=asked).status_code == 200
    body = paths["/v1/images/edits"]["post"]["requestBody"]["content"]["application/json"]
    assert http.post("/v1/images/edits", json=body["example"]).status_code == 200


def test_the_reference_needs_no_other_host(http):
    page = http.get("/docs")
    assert page.status_code == 200 and "unsafe-inline" in page.headers["content-security-policy"]
    named = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(named) == 3 and not [name for name in named if "//" in name]
    for name in named:
        assert http.get("/" + name).status_code == 200, name
    assert "url: 'openapi.json'" in page.text and len(http.get("/docs/files/swagger-ui-bundle.js").content) > 1_000_000
    for name in ("../__init__.py", "%2e%2e/__init__.py", "nothing.js"):
        assert http.get(f"/docs/files/{name}").status_code == 404
