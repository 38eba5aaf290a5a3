"""``annotate`` with a model behind an OpenAI-compatible endpoint, here a server of this machine."""

import hashlib
import io
import json
import threading

import numpy as np
import pytest
from PIL import Image

import jobs.annotate.job
from jobs.annotate import AnnotateRecipe
from jobs.annotate.annotator import Annotator
from jobs.annotate.job import run
from tests.helpers.annotate_data import annotate_here, decode, rows, write_videos
from tests.helpers.judge_server import completion, failure, images_of, judge_server
from wm.dynamics.vlm_scorer import PROMPT
from wm.errors import InputError
from wm.images import decode_image
from wm.models import load_codec


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return write_videos(tmp_path_factory.mktemp("videos"))


@pytest.fixture(scope="module")
def block(videos):
    return decode(endpoint_recipe(videos, "out", "http://127.0.0.1:1/v1"))


def endpoint_recipe(videos, out, url, **changes):
    endpoint = {"base_url": url, "model": "eyes-1", "max_retries": 2, "concurrency": 3} | changes.pop("endpoint", {})
    values = {"videos": str(videos / "wave"), "out": str(out), "endpoint": endpoint, "max_new_tokens": 6}
    keyframes = {"min_interval_frames": 4, "max_keyframes": 8}
    return AnnotateRecipe.parse(values | {"keyframes": keyframes, "resources": {"num_decoders": 1}} | changes, "test")


def words_for(images):
    """An answer that depends on both images, and the log-probabilities of its two tokens."""
    digest = hashlib.sha256(b"".join(Image.open(io.BytesIO(image)).tobytes() for image in images)).digest()
    return f"push {digest[0]}", [-digest[1] / 100, -digest[2] / 100]


def answer_with(text, logprobs, tokens=None):
    status, body = completion(text)
    content = None if logprobs is None else [{"token": "t", "logprob": value, "top_logprobs": []} for value in logprobs]
    body["choices"][0]["logprobs"] = {"content": content}
    return status, body


def answer(body, number):
    return answer_with(*words_for(images_of(body)))


def test_triplets_hold_the_answers_of_the_server(videos, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    busy, most, lock = [0], [0], threading.Lock()

    def counted(body, number):
        with lock:
            busy[0] += 1
            most[0] = max(most[0], busy[0])
        try:
            # Rate limits and faults of the server are waited for.
            return failure(429, "slow down") if number == 0 else failure(500, "oh") if number == 1 else answer(body, 0)
        finally:
            with lock:
                busy[0] -= 1

    with judge_server(counted) as server:
        one = endpoint_recipe(videos, tmp_path / "out", server.url)
        annotate_here(one)
        triplets, rejects = rows(tmp_path / "out")
        assert len(triplets) > 2 and rejects == [] and most[0] <= 3
        for row in triplets:
            pairs = [decode_image(row[f"{side}_image"]["bytes"], side) for side in ("source", "target")]
            digest = hashlib.sha256(b"".join(np.ascontiguousarray(image).tobytes() for image in pairs)).digest()
            assert row["action"] == f"push {digest[0]}" and row["action_tokens"] == 2
            assert row["action_logprob"] == pytest.approx(-(digest[1] + digest[2]) / 100)
            assert (row["annotator"], row["origin"], row["codec"]) == ("eyes-1", "idm", None)
        assert len(server.bodies) == 3 * len(triplets) and set(server.keys) == {"Bearer sk-secret"}
        body = server.bodies[0]
        assert (body["logprobs"], body["temperature"], body["max_tokens"]) == (True, 0.0, 7) and "seed" not in body
        assert body["messages"][0]["content"][2] == {"type": "text", "text": PROMPT}
    assert "sk-secret" not in json.dumps(one.model_dump(mode="json"))


def test_sampled_answers_a_codec_and_a_question_of_ones_own(videos, block, tiny_base, tmp_path):
    with judge_server(answer) as server:
        one = endpoint_recipe(
            videos, tmp_path, server.url, prompt="what happened?", codec=str(tiny_base),
            sampling={"temperature": 0.7, "top_k": 5, "top_p": 0.9}, filters={"unchanged": "score"},
        )  # fmt: skip
        triplets = Annotator(one.annotator_settings()).annotate(block.to_pylist())["triplets"]
        assert {row["codec"] for row in triplets} == {load_codec(tiny_base).codec_id}
        bodies = server.bodies
        assert {(body["temperature"], body["top_k"], body["top_p"]) for body in bodies} == {(0.7, 5, 0.9)}
        assert len({body["seed"] for body in bodies}) == len(bodies)
        assert bodies[0]["messages"][0]["content"][2]["text"] == "what happened?"


def test_empty_and_long_answers_are_rejects(videos, block, tmp_path):
    replies = iter([answer_with("", []), answer_with("  ", [-1.0]), answer_with("a b c d e f g", [-1.0] * 7)])

    def odd(body, number):
        return next(replies, answer_with("push it", [-0.5, -0.5]))

    with judge_server(odd) as server:
        annotator = Annotator(endpoint_recipe(videos, tmp_path / "out", server.url).annotator_settings())
        result = annotator.annotate(block.to_pylist())
    reasons = sorted(row["reason"] for row in result["rejects"])
    assert reasons == ["empty_action", "empty_action", "unparsed_action"]
    assert {row["action"] for row in result["triplets"]} == {"push it"}
    # Of the answer without any token neither a likelihood nor a number is made up.
    empty = [(row["action_logprob"], row["action_tokens"]) for row in result["pairs"] if row["action"] == ""]
    assert sorted(empty, key=str) == [(-1.0, 1), (None, None)]


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (failure(401, "bad key"), "refuses the key in OPENAI_API_KEY"),
        (failure(404, "no model"), "model = 'eyes-1' is not known to http"),
        (failure(400, "no images here"), "refuses a request about two images: bad request: .*no images here"),
        (failure(503, "down"), "gave no answer after 2 repeats: .*the same command resumes"),
        (answer_with("push it", None), r"returns no log-probabilities \(choices\[0\]\.logprobs\.content\)"),
    ],
    ids=["401", "404", "400", "503", "no logprobs"],
)
def test_an_endpoint_that_cannot_serve_is_named_before_any_work(
    videos, block, tmp_path, monkeypatch, *, reply, message
):
    monkeypatch.setattr(jobs.annotate.job, "_annotate", lambda *_: pytest.fail("was started"))
    with judge_server(lambda *_: reply) as server:
        one = endpoint_recipe(videos, tmp_path / "out", server.url)
        with pytest.raises(InputError, match=message):
            run(one)
        assert not (tmp_path / "out").exists() and run(one, dry_run=True)["videos"] == 2
    # Later, in an annotator, the same words end the run.
    with judge_server(lambda body, number: reply) as server:
        annotator = Annotator(endpoint_recipe(videos, tmp_path / "out", server.url).annotator_settings())
        assert message[:20].replace("\\", "") in annotator(block)["problem"][0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"idm": "nano:idm"}, r"both idm and endpoint\.base_url are given; expected one"),
        ({"endpoint": {"base_url": "", "model": ""}}, r"idm is missing; expected a model folder, or endp"),
        ({"endpoint": {"model": ""}}, "base_url and model belong together"),
    ],
)
def test_one_model_is_expected(videos, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        run(endpoint_recipe(videos, tmp_path / "out", "http://127.0.0.1:1/v1", **changes))


def test_codes_and_bases_of_an_endpoint_are_refused(videos, tiny_base, tmp_path):
    for changes, message in (
        (
            {"filters": {"min_changed_codes": 3}},
            "compares image codes, but eyes-1 at http://127.0.0.1:1/v1 reads pixels",
        ),
        ({"base": str(tiny_base)}, "an endpoint's model has no adapter here; leave base out"),
        (
            {"endpoint": {"base_url": "http://me:sk-1@here/v1"}},
            "base_url holds a name or a password",
        ),
        ({"endpoint": {"base_url": "here:80"}}, "base_url = 'here:80': expected http://"),
    ):
        with pytest.raises(InputError, match=message):
            run(endpoint_recipe(videos, tmp_path / "out", "http://127.0.0.1:1/v1", **changes))
