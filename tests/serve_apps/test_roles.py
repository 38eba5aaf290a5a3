"""Both roles in one process or two, guidance and drafted tokens: the servers as they are, and once over HTTP."""

import asyncio
import base64
import io
import json
import threading

import httpx2
import numpy as np
import pytest
from PIL import Image

from serve_apps import idm_server
from serve_apps.__main__ import StartRecipe, start, stop
from serve_apps.__main__ import main as serve_main
from serve_apps.names import FDM, IDM
from serve_apps.openai.edits import EditRequest
from serve_apps.recipe import ServeRecipe
from tests.helpers.code_calls import verify
from tests.helpers.models_families import write_emu3
from tests.helpers.models_roles import add_adapter, write_roles
from tests.helpers.serve_local import HALF_A_CORE, local_servers
from wm.dynamics import Sampling, load_role, load_roles, propose_actions, sample_observations, score_actions
from wm.errors import InputError
from wm.images import decode_image, encode_png, fit_square
from wm.models import load_codec, load_model, save_model
from wm.nano.preset import write_random_base
from wm.ports import find_free_port

ACTION = "move the red cup left"
SOURCE = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)


@pytest.fixture(scope="module")
def folders(tiny_base, tmp_path_factory):
    return write_roles(tiny_base, tmp_path_factory.mktemp("served"))


def recipe_of(folders, **more):
    return ServeRecipe.model_validate({"fdm": str(folders / "fdm"), "idm": str(folders / "idm")} | more)


def request_of(**fields):
    return EditRequest(**{"prompt": ACTION, "seed": 7, "best_of": 6, "n": 6} | fields)


def answer(fdm, **settings):
    return asyncio.run(fdm.predict(request_of(**settings), SOURCE))


def separate(recipe):
    return local_servers(recipe)[0]


@pytest.mark.parametrize("settings", [{}, {"guidance_scale": 2.5, "image_guidance_scale": 1.3}, {"temperature": 0}])
def test_one_process_answers_as_two_do_bit_for_bit(folders, settings):
    two = answer(separate(recipe_of(folders)), **settings)
    for base_sharing in ("merged", "shared"):
        one = answer(local_servers(recipe_of(folders, base_sharing=base_sharing))[0], **settings)
        assert np.array_equal(one.pixels, two.pixels)
        assert (one.action_tokens, len(one.verifications)) == (two.action_tokens, 6)
        assert one.num_distinct == two.num_distinct
        if base_sharing == "merged":
            assert one.verifications == two.verifications
            continue
        # W x + B (A x) rounds otherwise than (W + B A) x.
        for entry, other in zip(one.verifications, two.verifications, strict=True):
            assert entry["logprob"] == pytest.approx(other["logprob"], abs=2e-4)
            for key in ("index", "rank", "duplicate_of", "unchanged_share", "tokens", "seed"):
                assert entry[key] == other[key]


def test_scores_of_many_requests_are_batched_and_equal(folders, monkeypatch):
    fdm, idm = local_servers(recipe_of(folders))
    sizes, waiting, all_wait = [], [], threading.Event()
    score, batch = idm_server._score, idm._thread.batch
    requests = [request_of(seed=seed, best_of=4, n=1) for seed in range(8)]

    async def wait_in_batch(*item):
        task = asyncio.ensure_future(batch(*item))
        # The task's first step, which comes before this one's next, puts the item where the thread takes it from.
        await asyncio.sleep(0)
        waiting.append(item)
        if len(waiting) == len(requests):
            all_wait.set()
        return await task

    def score_when_all_wait(model, calls):
        assert all_wait.wait(60)
        sizes.append(len(calls))
        return score(model, calls)

    monkeypatch.setattr(idm._thread, "batch", wait_in_batch)
    monkeypatch.setattr(idm_server, "_score", score_when_all_wait)

    async def all_at_once():
        return await asyncio.gather(*(fdm.predict(request, SOURCE) for request in requests))

    together = asyncio.run(all_at_once())
    # Those that came while the first call was at work are one batch.
    assert sum(sizes) == 8 and len(sizes) <= 2
    other = separate(recipe_of(folders))
    for request, result in zip(requests, together, strict=True):
        alone = asyncio.run(other.predict(request, SOURCE))
        assert np.array_equal(result.pixels, alone.pixels)
        assert [entry["index"] for entry in result.verifications] == [entry["index"] for entry in alone.verifications]
        for entry, expected in zip(result.verifications, alone.verifications, strict=True):
            assert entry["logprob"] == pytest.approx(expected["logprob"], abs=1e-4)


def test_each_model_is_described_as_itself(folders):
    fdm, idm = local_servers(recipe_of(folders))
    both = local_servers(recipe_of(folders, base_sharing="shared"))[0]
    assert both.describe(FDM) == fdm.describe(FDM)
    assert both.describe(IDM) == idm.describe(IDM)
    assert (both.describe(FDM)["task"], both.describe(IDM)["task"]) == ("fdm", "idm")


@pytest.mark.parametrize("num_draft_tokens", [1, 3])
@pytest.mark.parametrize("settings", [{}, {"guidance_scale": 2.5}, {"top_k": 3}])
def test_drafted_tokens_give_the_same_candidates(folders, num_draft_tokens, settings, monkeypatch):
    plain = answer(separate(recipe_of(folders)), **settings)
    monkeypatch.setattr("wm.sampling.ImageEngine.add_request", None)  # sequential sampling is not what runs
    drafted = answer(separate(recipe_of(folders, num_draft_tokens=num_draft_tokens)), **settings)
    assert drafted.verifications == plain.verifications
    assert np.array_equal(drafted.pixels, plain.pixels)


def test_what_cannot_work_is_refused_at_the_start(folders, capsys):
    good = [f"fdm={folders / 'fdm'}", f"idm={folders / 'idm'}", "--dry-run"]
    for arguments, says in (
        (["num_draft_tokens=4"], "num_draft_tokens = 4: expected 0 (off) to 3, an image has 4 tokens"),
        (["num_draft_tokens=-1"], "num_draft_tokens = -1"),
        (["guidance_scale=-1"], "guidance_scale = -1"),
        (["image_guidance_scale=1e9"], "image_guidance_scale = "),
        (["base_sharing=one"], "base_sharing = 'one'"),
        (
            ["base_sharing=shared", "idm_server.num_replicas=2"],
            "idm_server with base_sharing = 'shared': both models are in one process, whose options are fdm_server",
        ),
        (["adapters=nowhere"], "adapters = 'nowhere': no such folder"),
        ([f"adapters={folders}", "base_sharing=merged"], "adapters with base_sharing = 'merged'"),
        ([f"adapters={folders}", f"idm={folders / 'full'}"], "is a full model: "),
        ([f"idm={folders / 'full'}", "base_sharing=shared"], "is a full model: "),
    ):
        assert serve_main([*good, *arguments]) == 2, arguments
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1
    assert serve_main([*good, "base_sharing=shared", "num_draft_tokens=3", "guidance_scale=2"]) == 0
    assert serve_main([*good, "base_sharing=merged", f"idm={folders / 'full'}"]) == 0


def test_guidance_of_a_family_without_it_is_refused_at_the_start(tmp_path):
    write_emu3(tmp_path / "emu3")
    given = {"fdm": str(tmp_path / "emu3"), "idm": str(tmp_path / "emu3")}
    with pytest.raises(InputError, match="guidance is not supported for emu3"):
        separate(ServeRecipe.model_validate(given | {"guidance_scale": 2.0}))
    fdm = separate(ServeRecipe(**given))
    source = np.zeros((fdm.describe(FDM)["side_px"],) * 2 + (3,), np.uint8)
    with pytest.raises(InputError, match="guidance is not supported for emu3"):
        asyncio.run(fdm.predict(request_of(prompt="red", best_of=1, n=1, guidance_scale=2.0), source))


@pytest.fixture(scope="module")
def adapters(folders, tmp_path_factory):
    """Three adapters of the base, one of another, and what is none."""
    out = tmp_path_factory.mktemp("adapters")
    for seed, (name, task) in enumerate({"left": "fdm", "right": "fdm", "seer": "idm"}.items(), 5):
        save_model(add_adapter(load_model(folders / "base"), seed), out / name, task=task)
    write_random_base(out.parent / "stranger", seed=3)
    save_model(add_adapter(load_model(out.parent / "stranger"), 1), out / "foreign", task="fdm")
    (out / "notes").mkdir()
    (out / "notes" / "config.json").write_text("{")
    (out / "readme.txt").write_text("adapters")
    return out


@pytest.fixture(scope="module")
def http(folders, adapters):
    port = find_free_port()
    given = {"fdm": str(folders / "fdm"), "idm": str(folders / "idm"), "base_sharing": "shared"}
    given |= {"adapters": str(adapters), "max_adapters": 1, "num_draft_tokens": 2, "guidance_scale": 2.0}
    given |= {"fdm_server": HALF_A_CORE["fdm_server"]}
    try:
        start(StartRecipe(**given, port=port, num_candidates=4, max_prompt_chars=50_000))
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as session:
            yield session
    finally:
        stop()


def ask(http, picture=None, **fields):
    data = {"prompt": ACTION, "seed": "7", **{name: str(value) for name, value in fields.items()}}
    return http.post("/v1/images/edits", files={"image": picture or encode_png(SOURCE)}, data=data)


@pytest.mark.parametrize(
    ("fields", "text", "image"),
    [
        ({}, 2.0, 1.0),
        ({"guidance_scale": 1}, 1.0, 1.0),
        ({"guidance_scale": 3, "image_guidance_scale": 1.5}, 3.0, 1.5),
    ],
)
def test_a_requests_guidance_comes_before_the_recipes_over_http(http, folders, fields, text, image):
    roles = load_roles(folders / "fdm", folders / "idm", base_sharing="shared")
    codec = load_codec(folders / "fdm")
    source_BN = codec.encode(SOURCE[None])
    sampling = Sampling(guidance_scale=text, image_guidance_scale=image)
    drawn = sample_observations(roles.fdm.model, source_BN, [ACTION], num_candidates=4, sampling=sampling, seed=7)
    best = verify(roles.idm.model, source_BN[0], ACTION, drawn[0], runner=roles.idm.runner)[0]
    reply = ask(http, **fields)
    assert reply.status_code == 200, reply.text
    (picture,) = reply.json()["data"]
    assert picture["verification"]["index"] == best.index
    assert picture["verification"]["logprob"] == pytest.approx(best.score.logprob, abs=1e-5)
    shown = decode_image(base64.b64decode(picture["b64_json"]), "reply")
    assert np.array_equal(shown, codec.decode(np.array([best.codes]))[0])


def test_models_health_and_fields_are_told(http, folders):
    assert http.get("/health").json() == {"status": "ok"}
    entries = {entry["id"]: entry for entry in http.get("/v1/models").json()["data"]}
    tasks = {"fdm": "fdm", "idm": "idm", "base:left": "fdm", "base:right": "fdm", "base:seer": "idm"}
    assert {name: entry["task"] for name, entry in entries.items()} == tasks
    assert http.get("/v1/models/base:left").json() == entries["base:left"]
    assert http.get("/v1/models/base:foreign").status_code == 404
    page = http.get("/openapi.json").json()["paths"]["/v1/images/edits"]["post"]["requestBody"]["content"]
    for kind in ("multipart/form-data", "application/json"):
        assert {"guidance_scale", "image_guidance_scale"} <= set(page[kind]["schema"]["properties"])
    assert "guidance_scale = " in ask(http, guidance_scale=-1).json()["error"]["message"]


@pytest.mark.parametrize(
    ("model", "verifier"), [("left", None), ("right", "seer"), ("left", "seer"), ("fdm", "seer"), ("right", None)]
)
def test_adapters_answer_as_the_library_with_them(http, folders, adapters, model, verifier):
    """One is in memory at a time: each request here loads what it needs."""
    over = load_role(folders / "base")
    paths = [
        folders / "fdm" if model == "fdm" else adapters / model,
        adapters / verifier if verifier else folders / "idm",
    ]
    fdm, idm = (load_role(path, over=over) for path in paths)
    codec = load_codec(folders / "fdm")
    source_BN = codec.encode(SOURCE[None])
    drawn = sample_observations(fdm.model, source_BN, [ACTION], num_candidates=4, seed=7, runner=fdm.runner)
    best = verify(idm.model, source_BN[0], ACTION, drawn[0], runner=idm.runner)[0]
    named = {"model": "fdm" if model == "fdm" else f"base:{model}", "guidance_scale": 1}
    reply = ask(http, **named, **({"verifier": f"base:{verifier}"} if verifier else {}))
    assert reply.status_code == 200, reply.text
    assert reply.json()["model"] == named["model"]
    (picture,) = reply.json()["data"]
    assert picture["verification"]["index"] == best.index
    assert picture["verification"]["logprob"] == pytest.approx(best.score.logprob, abs=1e-5)
    shown = decode_image(base64.b64decode(picture["b64_json"]), "reply")
    assert np.array_equal(shown, codec.decode(np.array([best.codes]))[0])


def test_scores_and_chats_of_an_adapter_are_its_own(http, folders, adapters):
    over, codec = load_role(folders / "base"), load_codec(folders / "fdm")
    url = "data:image/png;base64," + base64.b64encode(encode_png(SOURCE)).decode()
    codes_1N = codec.encode(SOURCE[None])
    for name, path in (("base:seer", adapters / "seer"), ("idm", folders / "idm")):
        role = load_role(path, over=over)
        (expected,) = score_actions(role.model, codes_1N, codes_1N, [ACTION], runner=role.runner)
        asked = {"model": name, "image": url, "targets": [url], "actions": [ACTION]}
        (entry,) = http.post("/v1/score", json=asked).json()["data"]
        assert entry["logprob"] == pytest.approx(expected.logprob, abs=1e-5)
        (proposed,) = propose_actions(role.model, codes_1N, codes_1N, runner=role.runner)
        image = {"type": "image_url", "image_url": {"url": url}}
        message = {"role": "user", "content": [image, image]}
        chat = http.post("/v1/chat/completions", json={"model": name, "messages": [message]}).json()
        assert chat["choices"][0]["message"]["content"] == proposed.text and chat["model"] == name


@pytest.mark.parametrize(
    ("fields", "status", "says"),
    [
        ({"model": "base:seer"}, 400, "model 'base:seer' predicts no images"),
        ({"verifier": "base:left"}, 400, "model 'base:left' describes no actions"),
        (
            {"verifier": "base:nobody"},
            404,
            "no such model: 'base:nobody'; the models are fdm, idm, base:left, base:right",
        ),
        ({"model": "base:../adapters/left"}, 404, "no such model"),
        ({"model": "base:foreign"}, 404, "no such model"),
        ({"verifier": "idm", "verify": "false", "best_of": 1}, 400, "nothing is verified"),
    ],
)
def test_models_that_cannot_answer_are_named(http, fields, status, says):
    reply = ask(http, **fields)
    assert reply.status_code == status and says in reply.json()["error"]["message"]


def saved(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(Image.fromarray(np.rot90(SOURCE)), exif=exif)


GREY = np.random.default_rng(1).integers(0, 256, (16, 16), np.uint8)


@pytest.mark.parametrize(
    ("upload", "seen"),
    [
        (lambda: saved(Image.fromarray(GREY)), np.repeat(GREY[..., None], 3, 2)),
        (lambda: saved(Image.fromarray(GREY.astype(np.uint16) * 256 + 99)), np.repeat(GREY[..., None], 3, 2)),
        (lambda: saved(Image.fromarray(np.dstack((SOURCE, np.full((16, 16), 255, np.uint8))))), SOURCE),
        (turned, SOURCE),
        (lambda: saved(Image.new("RGB", (1, 1), (9, 8, 7))), np.full((16, 16, 3), (9, 8, 7), np.uint8)),
        (lambda: saved(Image.fromarray(SOURCE).resize((301, 64))), None),
        (lambda: saved(Image.new("L", (1, 60_000), 7)), np.full((16, 16, 3), 7, np.uint8)),
    ],
    ids=["grey", "sixteen bits", "opaque RGBA", "turned by EXIF", "1x1", "wide", "strip"],
)
def test_uploads_of_other_sizes_and_modes_become_their_square(http, upload, seen):
    data = upload()
    if seen is None:
        seen = fit_square(decode_image(data, "x"), 16)
    one, other = ask(http, data), ask(http, encode_png(seen))
    assert one.status_code == 200, one.text
    assert one.json()["data"] == other.json()["data"]


@pytest.mark.parametrize(
    ("picture", "fields", "says"),
    [
        (lambda: saved(Image.new("1", (10_000, 10_000))), {}, "10000 x 10000 pixels; at most 40,000,000"),
        (None, {"prompt": " "}, "prompt is empty"),
        (None, {"prompt": "left " * 5000}, "has 5,000 tokens: with both images the sequence has 5,012, the model 96"),
        (None, {"prompt": "left " * 20_000}, "prompt has 100,000 characters; at most 50,000"),
        (None, {"n": 0}, "n = '0'"),
        (None, {"best_of": 0}, "best_of = '0'"),
    ],
)
def test_bad_uploads_are_refused_in_one_line(http, picture, fields, says):
    reply = ask(http, picture() if picture else None, **fields)
    assert reply.status_code == 400
    message = reply.json()["error"]["message"]
    assert says in message and "\n" not in message and len(message) < 300, json.dumps(message)
