"""The served graph over HTTP with the unmodified ``openai`` client, on random weights and a free port."""

import asyncio
import base64
import io
import socket
from pathlib import Path

import httpx2
import numpy as np
import openai
import psutil
import pytest
from PIL import Image

from tests.helpers.code_calls import verify
from tests.helpers.serve_local import HALF_A_CORE
from tests.helpers.serve_process import serve_process
from wm.dynamics import Sampling, propose_actions, sample_observations, score_actions
from wm.images import decode_image, encode_png, fit_square
from wm.models import load_codec, load_model

ROOT = Path(__file__).resolve().parents[2]
ACTION = "move the red cup left"
SOURCE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
PNG = encode_png(SOURCE)
URL = "data:image/png;base64," + base64.b64encode(PNG).decode()


@pytest.fixture(scope="module")
def port(tiny_base, tmp_path_factory):
    """Of a server in a process of its own. How it ends is checked too, with a request at work."""
    settings = [f"{name}={{ray_actor_options = {{num_cpus = 0.5}}}}" for name in HALF_A_CORE]
    settings += [f"fdm={tiny_base}", f"idm={tiny_base}", "max_best_of=16", "num_candidates=4", "max_actions=128"]
    with httpx2.Client(timeout=60) as session, serve_process(tmp_path_factory.mktemp("server"), *settings) as number:
        yield number
        long = {"image": URL, "actions": ["move it"] * 128, "best_of": 16, "num_beams": 8, "stream": True}
        request = session.build_request("POST", f"http://127.0.0.1:{number}/v1/rollouts", json=long)
        lines = session.send(request, stream=True).iter_lines()
        assert next(lines) == "event: rollout.step"


@pytest.fixture(scope="module")
def client(port):
    return openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def http(port):
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as session:
        yield session


@pytest.fixture(scope="module")
def library(tiny_base):
    """The library's own answer: ranked candidates and their pixels."""
    model, codec = load_model(tiny_base), load_codec(tiny_base)

    def answer(num_candidates, seed, **sampling):
        source_BN = codec.encode(np.array(fit_square(SOURCE, codec.side_px))[None])
        drawn_BKN = sample_observations(
            model, source_BN, [ACTION], num_candidates=num_candidates, sampling=Sampling(**sampling), seed=seed
        )
        ranked = verify(model, source_BN[0], ACTION, drawn_BKN[0], seed=seed)
        return ranked, codec.decode(np.array([candidate.codes for candidate in ranked])), drawn_BKN[0]

    return answer


def edit(client, **extra):
    arguments = {"model": "fdm", "image": ("source.png", PNG), "prompt": ACTION, **extra}
    return client.images.edit(**arguments)


def pixels_of(picture):
    return decode_image(base64.b64decode(picture.b64_json), "reply")


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.7, "top_k": 8, "top_p": 0.9}])
def test_the_answer_equals_the_librarys_bit_for_bit(client, library, sampling):
    reply = edit(client, n=2, extra_body={"best_of": 4, "seed": 7, **sampling})
    ranked, pixels_KHWC, _ = library(4, 7, **sampling)
    distinct = [place for place, candidate in enumerate(ranked) if candidate.duplicate_of is None]
    assert len(reply.data) == 2 <= len(distinct)
    for picture, place in zip(reply.data, distinct, strict=False):
        assert np.array_equal(pixels_of(picture), pixels_KHWC[place])
        told = picture.model_extra["verification"]
        assert told["logprob"] == ranked[place].score.logprob
        assert told["mean_logprob"] == ranked[place].score.mean_logprob
        assert (told["index"], told["rank"], told["seed"]) == (ranked[place].index, place, 7)
        assert (told["tokens"], told["duplicate_of"]) == (ranked[place].score.num_tokens, None)
        assert 0 <= told["unchanged_share"] <= 1
    assert reply.model_extra["distinct"] == len(distinct)
    assert (reply.output_format, reply.size, reply.model_extra["best_of"]) == ("png", "16x16", 4)
    assert reply.usage.output_tokens == 4 * 4
    assert reply.usage.input_tokens_details.image_tokens == 4


def test_a_drawn_seed_is_told_and_gives_the_answer_again(client):
    first, second = edit(client), edit(client)
    assert first.model_extra["seed"] != second.model_extra["seed"]
    again = edit(client, extra_body={"seed": first.model_extra["seed"]})
    assert again.data == first.data


def test_json_form_list_of_images_and_async_client_agree(client, http, port):
    settings = {"seed": 3, "best_of": 4}
    form = edit(client, image=[io.BytesIO(PNG)], extra_body=settings)
    url = "data:image/png;base64," + base64.b64encode(PNG).decode()
    reply = http.post("/v1/images/edits", json={"prompt": ACTION, "images": [{"image_url": url}], **settings})
    assert reply.status_code == 200, reply.text
    assert reply.json()["data"][0]["b64_json"] == form.data[0].b64_json

    async def ask():
        async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none") as session:
            return await asyncio.gather(
                *(session.images.edit(image=PNG, prompt=ACTION, extra_body=settings) for _ in range(4))
            )

    assert all(reply.data == form.data for reply in asyncio.run(ask()))


def test_without_verification_the_draws_come_as_they_are(client, library, tiny_base):
    reply = edit(client, n=3, extra_body={"seed": 5, "verify": False})
    _, _, drawn_KN = library(3, 5)
    for index, pixels in enumerate(load_codec(tiny_base).decode(drawn_KN)):
        assert np.array_equal(pixels_of(reply.data[index]), pixels)
        told = reply.data[index].model_extra["verification"]
        assert (told["index"], told["logprob"], told["rank"]) == (index, None, None)


def test_temperature_zero_is_greedy(client):
    one, other = (edit(client, n=2, extra_body={"temperature": 0, "seed": seed}) for seed in (1, 2))
    assert one.model_extra["distinct"] == 1
    assert one.data[0].b64_json == other.data[0].b64_json == one.data[1].b64_json
    assert one.data[1].model_extra["verification"]["duplicate_of"] == 0


URL = "data:image/png;base64," + base64.b64encode(PNG).decode()
TARGET_URL = "data:image/png;base64," + base64.b64encode(encode_png(SOURCE[::-1])).decode()
QUESTION = [
    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}} for url in (URL, TARGET_URL)]},
]


@pytest.fixture(scope="module")
def pair(tiny_base):
    """The codes of the question's images."""
    codec = load_codec(tiny_base)
    pixels = np.stack([fit_square(image, codec.side_px) for image in (SOURCE, SOURCE[::-1])])
    return codec.encode(pixels).tolist()


def test_what_happened_by_both_clients_and_in_a_stream(client, port, tiny_base, pair):
    (expected,) = propose_actions(load_model(tiny_base), [pair[0]], [pair[1]])
    whole = client.chat.completions.create(model="idm", messages=QUESTION, logprobs=True, top_logprobs=2)
    assert whole.choices[0].message.content == expected.text
    assert whole.model_extra["logprob"] == pytest.approx(expected.logprob, abs=1e-4)
    assert whole.model_extra["tokens"] == expected.num_tokens == len(whole.choices[0].logprobs.content)

    async def ask():
        async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none") as session:
            settings = {"n": 2, "temperature": 1, "seed": 6, "logprobs": True}
            plain = await session.chat.completions.create(model="idm", messages=QUESTION, **settings)
            stream = await session.chat.completions.create(model="idm", messages=QUESTION, stream=True, **settings)
            return plain, [chunk async for chunk in stream]

    plain, chunks = asyncio.run(ask())
    for choice in plain.choices:
        parts = [part for chunk in chunks for part in chunk.choices if part.index == choice.index]
        assert "".join(part.delta.content or "" for part in parts) == choice.message.content
        told = [entry for part in parts if part.logprobs for entry in part.logprobs.content]
        assert [entry.token for entry in told] == [entry.token for entry in choice.logprobs.content]
        # Company in a pass may change the last digit.
        assert [entry.logprob for entry in told] == pytest.approx(
            [entry.logprob for entry in choice.logprobs.content], abs=1e-5
        )
        assert parts[-1].finish_reason == choice.finish_reason
    with pytest.raises(openai.BadRequestError, match="describes no actions") as caught:
        client.chat.completions.create(model="fdm", messages=QUESTION, stream=True)
    assert caught.value.param == "model"


def test_scores_over_http(http, tiny_base, pair):
    actions = [ACTION, "take the block up"]
    reply = http.post("/v1/score", json={"image": URL, "targets": [TARGET_URL, URL], "actions": actions})
    targets = [pair[1], pair[1], pair[0], pair[0]]
    expected = score_actions(load_model(tiny_base), [pair[0]] * 4, targets, actions * 2)
    assert [entry["logprob"] for entry in reply.json()["data"]] == pytest.approx(
        [score.logprob for score in expected], abs=1e-4
    )
    reply = http.post("/v1/score", json={"image": URL, "targets": [URL], "actions": ["put <pad> on"]})
    assert (reply.status_code, "reserved token" in reply.json()["error"]["message"]) == (400, True)


@pytest.mark.parametrize(("name", "size"), [("png", "32x32"), ("jpeg", "auto"), ("webp", "64x64")])
def test_formats_and_sizes(client, name, size):
    reply = edit(client, output_format=name, size=size, extra_body={"seed": 1})
    side = 16 if size == "auto" else int(size.split("x")[0])
    with Image.open(io.BytesIO(base64.b64decode(reply.data[0].b64_json))) as image:
        assert (image.format, image.size) == (name.upper(), (side, side))
    assert (reply.output_format, reply.size) == (name, f"{side}x{side}")


def test_models(client, tiny_base):
    base = load_model(tiny_base)
    entries = list(client.models.list())
    assert [entry.id for entry in entries] == ["fdm", "idm"]
    for entry in entries:
        assert (entry.object, entry.owned_by) == ("model", "wm")
        assert (entry.model_extra["base"], entry.model_extra["codec"]) == (base.base_id, base.codec_id)
        assert client.models.retrieve(entry.id) == entry
    with pytest.raises(openai.NotFoundError, match="no such model: 'gpt-image-1'; the models are fdm, idm"):
        client.models.retrieve("gpt-image-1")
    with pytest.raises(openai.NotFoundError, match="no such model: 'gpt-image-1'") as caught:
        edit(client, model="gpt-image-1")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


def bomb():
    """A small file of 100 megapixels."""
    buffer = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("arguments", "param", "says"),
    [
        ({"image": ("a.png", b"not an image")}, "image", "image is no readable image"),
        ({"image": ("a.png", b"")}, "image", "image is empty"),
        ({"image": ("a.png", PNG[:200])}, "image", "image is no readable image"),
        (
            {"image": ("a.png", bomb)},
            "image",
            "10000 x 10000 pixels; at most 40,000,000",
        ),
        ({"image": [PNG, PNG]}, "image", "2 images are given"),
        ({"mask": PNG}, "mask", "takes no mask"),
        ({"prompt": ""}, "prompt", "prompt is empty"),
        ({"prompt": "  "}, "prompt", "prompt is empty"),
        ({"prompt": "move\0it"}, "prompt", "NUL"),
        ({"prompt": "x" * 100_000}, "prompt", "prompt has 100,000 characters; at most 1,000"),
        ({"prompt": "put <pad> on"}, None, "reserved token"),
        ({"n": 11}, "n", "n = '11'"),
        ({"n": 5, "extra_body": {"best_of": 4}}, "n", "n = 5 is more than best_of = 4"),
        ({"extra_body": {"best_of": 17}}, "best_of", "best_of = 17: at most 16"),
        ({"extra_body": {"colour": "red"}}, "colour", "unknown field 'colour'"),
        ({"response_format": "url"}, "response_format", "b64_json"),
        ({"model": "idm"}, "model", "predicts no images"),
        ({"extra_body": {"partial_images": 2}}, "partial_images", "partial_images = 2 needs stream = true"),
        ({"extra_body": {"min_gain_nats": 0.1, "verify": False}}, "min_gain_nats", "nothing says when to stop"),
        ({"extra_body": {"margin": 0.1}}, "margin", "unknown field 'margin'; it is called min_gain_nats now"),
    ],
)
def test_bad_input_reaches_the_client_as_one_clear_message(client, arguments, param, says):
    if callable(arguments.get("image", ("", ""))[1]):
        arguments = {**arguments, "image": ("a.png", arguments["image"][1]())}
    with pytest.raises(openai.BadRequestError) as caught:
        edit(client, **arguments)
    assert says in caught.value.message
    assert "\n" not in caught.value.message
    assert (caught.value.param, caught.value.type) == (param, "invalid_request_error")


@pytest.mark.parametrize(
    ("line", "arguments", "status", "says"),
    [
        ("GET /v1/nothing", {}, 404, "no such path: GET /v1/nothing"),
        ("GET /v1/images/edits", {}, 405, "method GET is not allowed"),
        ("POST /v1/images/edits", {"content": b"hello"}, 415, "content-type '' is not supported"),
        ("POST /v1/images/edits", {"content": iter([b"a" * 1_000_000] * 25)}, 415, "content-type"),
        ("POST /v1/images/edits", {"json": [1]}, 400, "not a JSON object"),
        (
            "POST /v1/images/edits",
            {"files": {"image": b"a" * 21_000_000}},
            413,
            "larger than 20,000,000 bytes",
        ),
    ],
)
def test_raw_requests(http, line, arguments, status, says):
    reply = http.request(*line.split(), **arguments)
    assert reply.status_code == status
    assert says in reply.json()["error"]["message"]


def test_a_body_without_length_is_cut_off(http):
    chunks = iter([b'{"prompt": "'] + [b"a" * 1_000_000] * 60)
    try:
        reply = http.post("/v1/images/edits", content=chunks, headers={"content-type": "application/json"})
    except httpx2.TransportError:
        pytest.skip("the connection was closed while the client was still sending")
    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "request_too_large")


def test_health_and_openapi(http):
    assert http.get("/health").json() == {"status": "ok"}
    paths = http.get("/openapi.json").json()["paths"]
    assert {
        "/v1/images/edits",
        "/v1/chat/completions",
        "/v1/score",
        "/v1/wm/score",
        "/v1/wm/rollouts",
        "/v1/models",
        "/v1/models/{model_id}",
        "/health",
    } <= set(paths)


def test_head_over_ray_serve_has_no_body(http, port):
    for path in ("/", "/docs", "/openapi.json", "/health", "/v1/models", "/v1/models/fdm", "/v1/models/none"):
        get = http.get(path)
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(f"HEAD {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
            head, _, body = b"".join(iter(lambda: connection.recv(65536), b"")).partition(b"\r\n\r\n")
        assert head.startswith(f"HTTP/1.1 {get.status_code} ".encode()) and body == b""
        lines = dict(line.split(": ", 1) for line in head.decode().lower().split("\r\n")[1:])
        assert lines["content-length"] == str(len(get.content))
        assert lines["content-type"] == get.headers["content-type"]


def test_it_listens_on_loopback_alone(port):
    listening = {
        connection.laddr.ip
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
    }
    assert listening == {"127.0.0.1"}


def test_no_process_of_the_server_listens_elsewhere(client):
    """Serve's replicas would, for calls of each other."""
    edit(client)
    listening = {}
    for process in psutil.Process().children(recursive=True):
        try:
            for connection in process.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN:
                    listening.setdefault(process.name(), set()).add(connection.laddr.ip)
        except psutil.NoSuchProcess:
            continue
    assert {name for name in listening if "ServeReplica" in name}
    assert set.union(*listening.values()) <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}, listening


def test_a_streamed_answer_over_ray_serve(client, port):
    asked = {"seed": 7, "best_of": 4, "return_candidates": True}
    plain = edit(client, n=2, extra_body=asked)
    events = list(edit(client, n=2, stream=True, partial_images=3, extra_body=asked))
    assert [event.type for event in events] == ["image_edit.partial_image"] * 3 + ["image_edit.completed"] * 2
    assert [event.b64_json for event in events[3:]] == [picture.b64_json for picture in plain.data]
    assert events[3].model_extra["candidates"] == plain.model_extra["candidates"]

    async def read():
        async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none") as session:
            arguments = {"image": ("source.png", PNG), "prompt": ACTION, "n": 2, "partial_images": 3}
            found = await session.images.edit(stream=True, extra_body=asked, **arguments)
            return [event.b64_json async for event in found]

    assert asyncio.run(read()) == [event.b64_json for event in events]
