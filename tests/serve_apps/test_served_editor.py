"""An image editor of diffusers as the forward model of a server, over the app in this process: against the library."""

import asyncio
import base64
import threading
from types import SimpleNamespace

import numpy as np
import openai
import pytest
import torch
from starlette.testclient import TestClient

from serve_apps import metrics
from serve_apps.graph import Graph
from serve_apps.ingress import build_app
from serve_apps.model_thread import ModelThread
from serve_apps.openai.edits import EditRequest
from serve_apps.openai.errors import ApiError
from serve_apps.openai.rollouts import RolloutRequest
from serve_apps.recipe import ServeRecipe
from serve_apps.served_editor import EditorModel
from tests.helpers.models_editors import PIPELINE
from tests.helpers.playground_pages import act, frames, start
from tests.helpers.playground_server import served
from tests.helpers.serve_local import LocalHandle, local_app, local_servers
from wm.dynamics import (
    Observation,
    SampleFailure,
    Sampling,
    Search,
    Start,
    pixels_of,
    predict_observations,
    roll_out,
)
from wm.dynamics.editor_forward import load_editor_forward
from wm.dynamics.loading import load_inverse_model
from wm.dynamics.protocols import Samples
from wm.images import decode_image, encode_png

ACTION = "move it"
ACTIONS = [ACTION, "put it in"]
SOURCE = np.random.default_rng(5).integers(0, 256, (64, 64, 3), np.uint8)
PNG = encode_png(SOURCE)
URL = "data:image/png;base64," + base64.b64encode(PNG).decode()
SETTINGS = {"num_inference_steps": 2, "guidance_scale": 2.0}
EDITOR = {"settings": SETTINGS, "resolution": 64, "batch_size": 3}


@pytest.fixture(scope="module")
def folders(folders_by_kind):
    return folders_by_kind


def recipe_of(folders, idm="pixels", **more):
    given = {"fdm": str(folders["editor"]), "idm": str(folders[idm]), "editor": EDITOR, "num_candidates": 4}
    return ServeRecipe.model_validate(given | more)


@pytest.fixture(scope="module")
def editor(folders):
    return load_editor_forward(folders["editor"], settings=SETTINGS, resolution=64, batch_size=3)


@pytest.fixture(scope="module", params=[("pixels", "separate"), ("codes", "merged")], ids=" ".join)
def pair(folders, editor, request):
    """The app and its two models in the library."""
    idm, base_sharing = request.param
    with TestClient(local_app(recipe_of(folders, idm, base_sharing=base_sharing))) as session:
        yield session, editor, load_inverse_model(folders[idm])


def shown(entry):
    return decode_image(base64.b64decode(entry["b64_json"]), "reply")


def test_candidates_are_ranked_as_the_library_does(pair):
    http, *models = pair
    (expected,) = predict_observations(
        *models, [Observation.from_pixels(SOURCE)], [ACTION], search=Search(num_candidates=4), seed=7
    )
    client = openai.OpenAI(base_url="http://testserver/v1", api_key="none", http_client=http, max_retries=0)
    reply = client.images.edit(
        model="fdm", image=("a.png", PNG), prompt=ACTION, n=2, extra_body={"seed": 7, "return_candidates": True}
    )
    assert (len(reply.data), reply.size, reply.model_extra["drawn"], reply.model_extra["distinct"]) == (
        2,
        "64x64",
        4,
        4,
    )
    assert reply.usage is None and "failed" not in reply.model_extra
    for entry, candidate in zip(reply.model_extra["candidates"], expected.candidates, strict=True):
        told = entry["verification"]
        assert (told["index"], told["rank"]) == (candidate.index, candidate.rank)
        assert told["logprob"] == pytest.approx(candidate.score.logprob, abs=1e-3)
        assert told["unchanged_share"] == pytest.approx(candidate.unchanged_share, abs=0.1)
        # Another batch rounds otherwise: a step of 8 bits.
        difference = np.abs(shown(entry).astype(int) - pixels_of([candidate.observation])[0])
        assert difference.max() <= 1


def test_unverified_streamed_and_adaptive(pair):
    http, *_ = pair
    edit = {"image": URL, "prompt": ACTION, "seed": 3}
    draws = http.post("/v1/images/edits", json=edit | {"verify": False, "n": 2}).json()
    assert [entry["verification"]["index"] for entry in draws["data"]] == [0, 1]
    with http.stream("POST", "/v1/images/edits", json=edit | {"stream": True, "best_of": 2}) as stream:
        text = "".join(stream.iter_text())
    assert text.count("event: image_edit.completed") == 1 and "partial_image" not in text
    adaptive = http.post("/v1/images/edits", json=edit | {"best_of": 8, "min_gain_nats": 100.0}).json()
    assert adaptive["drawn"] == 1


def test_a_rollout_edits_what_it_made(pair):
    http, *models = pair
    search = Search(num_candidates=2, num_beams=2)
    (expected,) = roll_out(*models, [Observation.from_pixels(SOURCE)], [ACTIONS], search=search, seed=7)
    asked = {"image": URL, "actions": ACTIONS, "seed": 7, "num_beams": 2, "best_of": 2}
    reply = http.post("/v1/wm/rollouts", json=asked).json()
    assert [step["verification"]["index"] for step in reply["steps"]] == [
        candidate.index for candidate in expected.best.candidates
    ]
    assert reply["logprob"] == pytest.approx(expected.best.logprob, abs=1e-2)
    assert [step["drawn"] for step in reply["steps"]] == [2, 4] and "usage" not in reply


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"temperature": 0.5}, "temperature", "is an image editor and samples no codes"),
        ({"temperature": 0}, "temperature", "temperature = 0"),
        ({"top_k": 3}, "top_k", "top_k = 3"),
        ({"guidance_scale": 7.5}, "guidance_scale", "guidance_scale = 7.5"),
        ({"stream": True, "partial_images": 2}, "partial_images", "which has no previews"),
        ({"prompt": "a " * 40}, None, "tokens with their ends"),
        ({"prompt": "a <pad> b"}, None, "a <pad> b"),
    ],
)
def test_what_an_editor_lacks_is_refused_by_name(pair, fields, param, says):
    reply = pair[0].post("/v1/images/edits", json={"image": URL, "prompt": ACTION} | fields)
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, param) and says in error["message"]


def test_it_is_listed_by_its_class(pair):
    http, forward, _ = pair
    fdm, idm = http.get("/v1/models").json()["data"]
    assert {key: fdm[key] for key in ("task", "kind", "family", "base", "side_px")} == {
        "task": "fdm", "kind": "editor", "family": PIPELINE, "base": forward.model_id, "side_px": 64,
    }  # fmt: skip
    assert not {"codec", "tokens_per_image"} & set(fdm)
    assert idm["side_px"] == (64 if idm["kind"] == "pixels" else 16)
    assert http.get("/health").json() == {"status": "ok"}


class Failing:
    """A forward model of which some candidates have no image. ``calls``: the candidates of each call."""

    kind = "editor"
    model_id = "failing"

    def __init__(self, failures):
        self.failures, self.calls = failures, []
        self.editor = self
        self.batch_size = 2
        self.pipeline = SimpleNamespace(components={"part": torch.nn.Linear(1, 1), "tokenizer": None})

    def check_action(self, action):
        assert action

    def sample(self, sources, actions, *, candidates, sampling, seeds, on_progress):
        assert sampling == Sampling() and actions == [ACTION]
        self.calls.append(candidates)
        on_progress(1, 1)
        images = [self.failures.get(index) or Observation.from_pixels(SOURCE // (index + 1)) for index in candidates]
        return Samples([images])


@pytest.fixture(scope="module")
def servers(folders):
    """Both servers, built once: tests put another forward model in."""
    return local_servers(recipe_of(folders))


def put(servers, forward, max_silence_s=60.0):
    fdm, _ = servers
    fdm._own["fdm"] = EditorModel(forward, 64, max_silence_s)
    return fdm


def edit_of(**fields):
    return EditRequest(**{"prompt": ACTION, "seed": 7, "best_of": 4, "n": 4} | fields)


@pytest.mark.parametrize("verify", [True, False])
def test_candidates_without_an_image_are_counted_and_named(servers, verify):
    withheld = SampleFailure("safety_checker", "the safety checker withheld it")
    recorder = Recorder()
    metrics.record_to(recorder)
    try:
        fdm = put(servers, Failing({1: withheld, 2: SampleFailure("black_image", "every pixel is black")}))
        result = asyncio.run(fdm.predict(edit_of(verify=verify), SOURCE))
    finally:
        metrics.record_to(None)
    assert fdm._own["fdm"].forward.calls == [range(2), range(2, 4)]
    assert {entry["index"] for entry in result.verifications} == {0, 3} and len(result.pixels) == 2
    assert result.failures == [
        {"index": 1, "reason": "safety_checker", "detail": "the safety checker withheld it"},
        {"index": 2, "reason": "black_image", "detail": "every pixel is black"},
    ]
    assert recorder.failed == ["safety_checker", "black_image"]


class Recorder:
    """Reasons of failed candidates, as they are recorded."""

    def __init__(self):
        self.failed = []

    def __call__(self, metric, value, tags):
        if metric is metrics.FAILED:
            self.failed.append(tags["reason"])


def test_failures_are_in_the_reply(folders, servers):
    fdm = put(servers, Failing({0: SampleFailure("black_image", "every pixel is black")}))
    graph = Graph(recipe_of(folders), LocalHandle(fdm), LocalHandle(servers[1]))
    with TestClient(build_app(graph)) as http:
        # The catalog asks a real editor for its class.
        fdm._own["fdm"].describe = lambda task: {
            "task": task,
            "kind": "editor",
            "family": "F",
            "base": "b",
            "side_px": 64,
        }
        reply = http.post("/v1/images/edits", json={"image": URL, "prompt": ACTION, "best_of": 3, "n": 3}).json()
        assert (len(reply["data"]), reply["drawn"], reply["failed"]) == (2, 3, 1)
        assert reply["failures"] == [{"index": 0, "reason": "black_image", "detail": "every pixel is black"}]
        rolled = http.post("/v1/wm/rollouts", json={"image": URL, "actions": [ACTION], "best_of": 2}).json()
        assert (rolled["steps"][0]["drawn"], rolled["steps"][0]["failed"]) == (2, 1)


@pytest.mark.parametrize(("reason", "code"), [("safety_checker", "moderation_blocked"), ("black_image", "no_image")])
def test_no_image_at_all_is_an_error_of_openai(servers, reason, code):
    fdm = put(servers, Failing({index: SampleFailure(reason, "there is none") for index in range(4)}))
    with pytest.raises(ApiError, match=f"of 4 candidates 4 {reason}: there is none") as caught:
        asyncio.run(fdm.predict(edit_of(), SOURCE))
    assert (caught.value.status, caught.value.kind, caught.value.code) == (400, "image_generation_user_error", code)

    async def roll_out_once():
        request = RolloutRequest(actions=[ACTION], best_of=4, seed=7)
        return [item async for item in fdm.roll_out(request, SOURCE)]

    with pytest.raises(ApiError, match="step 0 of the rollout has no image"):
        asyncio.run(roll_out_once())


class Slow(Failing):
    """A forward model whose calls last until they are let go."""

    def __init__(self):
        super().__init__({})
        self.has_begun, self.may_end = threading.Event(), threading.Event()

    def sample(self, *args, on_progress, **more):
        self.has_begun.set()
        assert self.may_end.wait(30)
        return super().sample(*args, on_progress=on_progress, **more)


def start_of(index=0):
    return Start(Observation.from_pixels(SOURCE), ACTION, index)


def test_a_health_check_waits_for_no_edit(servers, monkeypatch):
    monkeypatch.setattr("serve_apps.model_server.POLL_S", 0.01)

    async def check_while_editing(max_silence_s):
        fdm = put(servers, Slow(), max_silence_s)
        model = fdm._own["fdm"]
        edit = asyncio.ensure_future(model.sample(fdm._thread, start_of(), range(1)))
        await asyncio.to_thread(model.forward.has_begun.wait)
        try:
            await fdm.check_health()
        finally:
            model.forward.may_end.set()
            await edit
        assert not model.is_working
        await fdm.check_health()

    asyncio.run(check_while_editing(60.0))
    with pytest.raises(TimeoutError, match="no denoising step for 0 s"):
        asyncio.run(check_while_editing(0.0))


def test_a_client_that_left_ends_the_call_for_others():
    thread, model = ModelThread(), EditorModel(Slow(), 64, 60.0)

    async def leave_and_ask():
        first = asyncio.ensure_future(model.sample(thread, start_of(1), range(6)))
        await asyncio.to_thread(model.forward.has_begun.wait)
        second = asyncio.ensure_future(model.sample(thread, start_of(2), range(4)))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        model.forward.may_end.set()
        return await second

    samples = asyncio.run(leave_and_ask())
    thread.close()
    assert len(samples) == 4 and not model.is_working
    # Of the first request one call, which was ended; then those of the second.
    assert model.forward.calls == [range(2), range(2), range(2, 4)]


def test_the_playground_works_with_an_editor(page, folders, tmp_path):
    with served(local_app(recipe_of(folders, num_candidates=2))) as url:
        start(page, url, tmp_path, SOURCE)
        assert PIPELINE in page.text("#models")
        act(page, ACTION)
        assert page.do("document.querySelectorAll('.card').length") == 2
        assert page.do("document.querySelector('#error').hidden")
        page.click(".card", 0)
        page.click("#ask-button")
        page.wait("document.querySelector('#answer .action')")
        assert [name for name, _ in frames(page)] == ["Source", f"Step 1: {ACTION}"]
