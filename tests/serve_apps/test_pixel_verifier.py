"""A vision-language model that reads pixels verifies a forward model with image codes: against the library, over the
app in this process and OpenAI's client."""

import asyncio
import base64

import numpy as np
import openai
import pytest
from starlette.testclient import TestClient

from serve_apps import idm_server
from serve_apps.openai.edits import EditRequest
from serve_apps.openai.errors import ApiError
from serve_apps.recipe import ServeRecipe
from tests.helpers.serve_local import local_app, local_servers
from wm.dynamics import (
    Observation,
    Sampling,
    Search,
    load_forward_model,
    load_inverse_model,
    predict_observations,
    roll_out,
)
from wm.dynamics.pixel_inverse import load_pixel_inverse
from wm.errors import InputError
from wm.images import decode_image, encode_png
from wm.nano.preset import write_random_base

ACTION = "move the red cup left"
ACTIONS = [ACTION, "take the red cup"]
SOURCE = np.random.default_rng(5).integers(0, 256, (16, 16, 3), np.uint8)
PNG = encode_png(SOURCE)
URL, OTHER_URL = (
    "data:image/png;base64," + base64.b64encode(encode_png(image)).decode() for image in (SOURCE, SOURCE[::-1])
)
QUESTION = [
    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}} for url in (URL, OTHER_URL)]},
]


@pytest.fixture(scope="module")
def qwen(folders_by_kind):
    return folders_by_kind["pixels"]


@pytest.fixture(scope="module")
def models(tiny_base, qwen):
    return load_forward_model(tiny_base), load_pixel_inverse(qwen)


@pytest.fixture(scope="module", params=["separate", "merged"])
def http(tiny_base, qwen, request):
    recipe = ServeRecipe(fdm=str(tiny_base), idm=str(qwen), base_sharing=request.param, num_candidates=4)
    with TestClient(local_app(recipe)) as session:
        yield session


@pytest.fixture(scope="module")
def client(http):
    return openai.OpenAI(base_url="http://testserver/v1", api_key="none", http_client=http, max_retries=0)


def shown(entry):
    return decode_image(base64.b64decode(entry["b64_json"]), "reply")


def test_a_served_verifier_ranks_as_the_library_does(client, models):
    (expected,) = predict_observations(
        *models, [Observation.from_pixels(SOURCE)], [ACTION], search=Search(num_candidates=4), seed=7
    )
    reply = client.images.edit(
        model="fdm", image=("a.png", PNG), prompt=ACTION, n=4, extra_body={"seed": 7, "return_candidates": True}
    )
    assert len(expected.distinct) > 1
    for picture, candidate in zip(reply.model_extra["candidates"], expected.distinct, strict=True):
        told = picture["verification"]
        assert (told["index"], told["rank"], told["tokens"]) == (
            candidate.index, candidate.rank, candidate.score.num_tokens,
        )  # fmt: skip
        assert told["logprob"] == pytest.approx(candidate.score.logprob, abs=1e-4)
        assert told["unchanged_share"] == candidate.unchanged_share
        image, codec = shown(picture), models[0].codec
        assert np.array_equal(image, codec.decode(np.array([candidate.codes]))[0])
    assert reply.usage.output_tokens == 4 * 4


def test_a_rollout_continues_from_decoded_images(http, models):
    search = Search(num_candidates=4, num_beams=2)
    (expected,) = roll_out(*models, [Observation.from_pixels(SOURCE)], [ACTIONS], search=search, seed=7)
    reply = http.post("/v1/rollouts", json={"image": URL, "actions": ACTIONS, "seed": 7, "num_beams": 2}).json()
    assert [step["verification"]["index"] for step in reply["steps"]] == [
        candidate.index for candidate in expected.best.candidates
    ]
    assert reply["logprob"] == pytest.approx(expected.best.logprob, abs=1e-4)


def test_scores_are_those_of_the_model(http, models):
    asked = {"image": URL, "targets": [OTHER_URL, URL], "actions": ACTIONS}
    reply = http.post("/v1/wm/score", json=asked).json()
    source, other = (Observation.from_pixels(image) for image in (SOURCE, SOURCE[::-1].copy()))
    expected = models[1].score([source] * 4, [other, other, source, source], ACTIONS * 2)
    assert [entry["logprob"] for entry in reply["data"]] == pytest.approx(
        [score.logprob for score in expected], abs=1e-4
    )
    refused = http.post("/v1/wm/score", json=asked | {"actions": ["put <|image_pad|> on"]})
    assert refused.status_code == 400 and "special token" in refused.json()["error"]["message"]


@pytest.mark.parametrize("settings", [{}, {"temperature": 1, "seed": 6}])
def test_what_happened_is_proposed_as_the_library_does(client, models, settings):
    sampling = Sampling() if settings else Sampling(greedy=True)
    (expected,) = models[1].propose(
        [Observation.from_pixels(SOURCE)], [Observation.from_pixels(SOURCE[::-1].copy())], sampling=sampling,
        seeds=[settings.get("seed", 0)], max_new_tokens=8,
    )  # fmt: skip
    reply = client.chat.completions.create(
        model="idm", messages=QUESTION, max_tokens=8, logprobs=True, top_logprobs=3, **settings
    )
    (choice,) = reply.choices
    assert choice.message.content == expected.text
    assert reply.model_extra["logprob"] == pytest.approx(expected.logprob, abs=1e-4)
    assert reply.usage.completion_tokens == expected.num_tokens == len(choice.logprobs.content)
    # Two images of 16 patches of 4 x 4 pixels, merged by four, and the words around them.
    assert reply.usage.prompt_tokens > 2 * 4
    if not settings:
        assert all(entry.top_logprobs[0].logprob >= entry.logprob - 1e-6 for entry in choice.logprobs.content[:-1])


def test_a_streamed_proposal_is_the_same_token_by_token(client):
    settings = {"n": 3, "temperature": 1, "seed": 6, "logprobs": True, "max_tokens": 8}
    plain = client.chat.completions.create(model="idm", messages=QUESTION, **settings)
    chunks = list(client.chat.completions.create(model="idm", messages=QUESTION, stream=True, **settings))
    assert len({choice.message.content for choice in plain.choices}) > 1
    for choice in plain.choices:
        parts = [part for chunk in chunks for part in chunk.choices if part.index == choice.index]
        assert "".join(part.delta.content or "" for part in parts) == choice.message.content
        assert len(parts) > 3 and parts[-1].finish_reason == choice.finish_reason
        told = [entry.logprob for part in parts if part.logprobs for entry in part.logprobs.content]
        assert told == pytest.approx([entry.logprob for entry in choice.logprobs.content], abs=1e-5)


def test_models_are_listed_by_what_they_have(http, models):
    fdm, idm = http.get("/v1/models").json()["data"]
    assert (fdm["kind"], fdm["tokens_per_image"], fdm["side_px"]) == ("codes", 4, 16)
    assert (idm["kind"], idm["family"], idm["base"]) == ("pixels", "qwen2_vl", models[1].model_id)
    # It reads images of any size: what it is asked about has that of what it verifies.
    assert idm["side_px"] == 16 and not {"codec", "tokens_per_image"} & set(idm)
    assert http.get("/health").json() == {"status": "ok"}


def test_scores_of_many_requests_are_one_call(tiny_base, qwen, monkeypatch):
    fdm, _ = local_servers(ServeRecipe(fdm=str(tiny_base), idm=str(qwen)))
    sizes, score = [], idm_server._score
    monkeypatch.setattr(idm_server, "_score", lambda model, calls: sizes.append(len(calls)) or score(model, calls))

    async def all_at_once():
        requests = [EditRequest(prompt=ACTION, seed=seed, best_of=2) for seed in range(6)]
        return await asyncio.gather(*(fdm.predict(request, SOURCE) for request in requests))

    assert len(asyncio.run(all_at_once())) == 6
    assert sum(sizes) == 6 and len(sizes) < 6


def test_two_codecs_exchange_pixels(tiny_base, tmp_path):
    write_random_base(tmp_path / "other", seed=1)
    recipe = ServeRecipe(fdm=str(tiny_base), idm=str(tmp_path / "other"), num_candidates=3)
    pair = load_forward_model(tiny_base), load_inverse_model(tmp_path / "other")
    (expected,) = predict_observations(
        *pair, [Observation.from_pixels(SOURCE)], [ACTION], search=Search(num_candidates=3), seed=2
    )
    with TestClient(local_app(recipe)) as session:
        reply = session.post("/v1/images/edits", json={"image": URL, "prompt": ACTION, "seed": 2}).json()
        told = reply["data"][0]["verification"]
        assert told["index"] == expected.best.index
        assert told["logprob"] == pytest.approx(expected.best.score.logprob, abs=1e-4)
        # Each reads its own size.
        sides = [entry["side_px"] for entry in session.get("/v1/models").json()["data"]]
        assert sides == [pair[0].codec.side_px, pair[1].codec.side_px]


def test_codes_of_another_codec_are_refused(tiny_base):
    _, idm = local_servers(ServeRecipe(fdm=str(tiny_base), idm=str(tiny_base)))
    with pytest.raises(ApiError, match="codes of codec elsewhere are not this verifier's") as caught:
        asyncio.run(idm.score_candidates("idm", [0] * 4, ACTION, [[0] * 4], "elsewhere"))
    assert caught.value.status == 503


def test_a_verifier_that_makes_images_is_refused(qwen):
    with pytest.raises(InputError, match="reads images and makes none; expected an FDM"):
        local_servers(ServeRecipe(fdm=str(qwen), idm=str(qwen)))
