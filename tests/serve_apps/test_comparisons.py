"""Blind comparisons over the app in this process: what is shown and told, what is kept, and what is refused."""

import base64
import hashlib
import json
import random
import sqlite3
from collections import Counter

import numpy as np
import pytest
from starlette.testclient import TestClient

from serve_apps import metrics
from serve_apps.checks import check_models
from serve_apps.comparisons import ComparisonServer, list_folders
from serve_apps.ingress import build_app
from serve_apps.recipe import ServeRecipe
from serve_apps.routes import comparisons as routes
from serve_apps.world_model import bind
from tests.helpers.models_reference import lively
from tests.helpers.serve_local import LocalHandle, local_app
from wm.errors import InputError
from wm.images import encode_png
from wm.models import load_model, save_model
from wm.study import playground
from wm.study.playground import STUDY_ID
from wm.study.store import VoteStore

PATH = "/v1/wm/comparisons"
SOURCE = np.random.default_rng(5).integers(0, 256, (16, 16, 3), np.uint8)
URL = "data:image/png;base64," + base64.b64encode(encode_png(SOURCE)).decode()
BODY = {"image": URL, "action": "move the red cup left", "best_of": 2, "seed": 3}
ALICE, BOB, CAROL = ({"authorization": f"Bearer wm-{name}"} for name in ("alice", "bob", "carol"))


@pytest.fixture(scope="module")
def recipe(tiny_base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparisons")
    save_model(lively(load_model(tiny_base), seed=9), folder / "other", task="fdm")
    keys = folder / "keys.toml"
    lines = []
    for name, models in (("alice", None), ("bob", ["fdm", "idm"]), ("carol", ["fdm", "baseline"])):
        lines.append(f'[[keys]]\nname = "{name}"\nsha256 = "{hashlib.sha256(f"wm-{name}".encode()).hexdigest()}"')
        lines.append(f"requests_per_minute = 10000\n{'' if models is None else f'models = {json.dumps(models)}'}\n")
    keys.write_text("\n".join(lines))
    return ServeRecipe(
        fdm=str(tiny_base), idm=str(tiny_base), baseline=str(folder / "other"), num_candidates=2, max_best_of=4,
        keys=str(keys), comparisons=str(folder / "votes.sqlite"), max_body_bytes=100_000,
    )  # fmt: skip


@pytest.fixture(scope="module")
def http(recipe):
    with TestClient(local_app(recipe), headers=ALICE) as client:
        yield client


@pytest.fixture
def votes(recipe):
    """Votes stored while a test runs."""
    with VoteStore(recipe.comparisons, read_only=True) as store:
        before = len(store.list_votes(STUDY_ID))
        yield lambda: store.list_votes(STUDY_ID)[before:]


def show(http, **fields):
    reply = http.post(PATH, json=BODY | fields)
    assert reply.status_code == 200, reply.text
    return reply


def choose(http, shown, choice):
    return http.post(f"{PATH}/{shown['id']}", json={"choice": choice})


def test_the_names_are_told_after_the_choice_and_are_right(http, votes, monkeypatch):
    order = random.Random(0)
    monkeypatch.setattr(routes.secrets, "SystemRandom", lambda: order)
    edit = {"image": URL, "prompt": BODY["action"], "seed": 3, "best_of": 2}
    images = {
        name: http.post("/v1/images/edits", json=edit | {"model": name}).json()["data"][0]["b64_json"]
        for name in ("fdm", "baseline")
    }
    assert images["fdm"] != images["baseline"]
    lefts, code, wanted = Counter(), None, []
    for choice in ("left", "right", "no_difference", "left", "right", "no_difference"):
        shown = show(http, models=["fdm", "baseline"], **({"participant": code} if code else {})).json()
        code = shown["participant"]
        told = choose(http, shown, choice).json()
        order_told = told["left"]["model"], told["right"]["model"]
        assert [shown[side]["b64_json"] for side in ("left", "right")] == [images[name] for name in order_told]
        assert told == {
            "id": shown["id"], "object": "wm.comparison.choice", "choice": choice, "left": {"model": order_told[0]},
            "right": {"model": order_told[1]}, "action": BODY["action"], "seed": 3, "best_of": 2,
        }  # fmt: skip
        best, worst = {"left": order_told, "right": order_told[::-1], "no_difference": (None, None)}[choice]
        wanted.append((code, shown["id"], order_told, best, worst, "playground"))
        lefts[order_told[0]] += 1
    assert set(lefts) == {"fdm", "baseline"}
    assert wanted == [
        (vote.participant, vote.item_id, vote.systems, vote.best, vote.worst, vote.origin) for vote in votes()
    ]


def test_nothing_in_an_answer_says_whose_it_is(http, recipe):
    replies = [show(http, **fields) for fields in ({}, {"models": ["baseline", "fdm"]}, {"seed": 8})]
    usual = {"content-length", "content-type", "cache-control", "x-request-id"}
    for reply in replies:
        shown = reply.json()
        assert set(shown) == {
            "id", "object", "created", "expires_at", "participant", "size", "output_format", "left", "right"
        }  # fmt: skip
        assert set(shown["left"]) == set(shown["right"]) == {"b64_json"}
        assert {name for name in reply.headers if not name.startswith("x-ratelimit")} == usual
        text = json.dumps({name: value for name, value in shown.items() if name not in ("left", "right")})
        for word in ("fdm", "baseline", recipe.baseline, '"seed"'):
            assert word not in text
    # Without a seed each is another one: nobody can make the images again before the choice.
    free = [show(http, seed=None).json() for _ in range(2)]
    assert free[0]["left"] != free[1]["left"]
    seeds = {choose(http, shown, "left").json()["seed"] for shown in free}
    assert len(seeds) == 2


def test_a_choice_outlives_the_server(recipe, http, votes):
    shown = show(http).json()
    keeper = ComparisonServer(recipe.comparisons, list_folders(recipe))
    with TestClient(build_app(http.app.state.graph, votes=LocalHandle(keeper)), headers=ALICE) as other:
        first, again, changed = (choose(other, shown, choice) for choice in ("left", "left", "right"))
    assert (first.status_code, again.status_code, changed.status_code) == (200, 200, 409)
    assert first.json() == again.json()
    assert changed.json()["error"] | {"message": ""} == {
        "message": "", "type": "invalid_request_error", "param": "choice", "code": "already_chosen"
    }  # fmt: skip
    (vote,) = votes()
    assert vote.best == first.json()["left"]["model"]


def test_a_late_choice_and_an_unknown_one(http, votes, monkeypatch):
    shown = show(http).json()
    monkeypatch.setattr(playground, "MAX_AGE_S", -1.0)
    late = choose(http, shown, "left")
    assert (late.status_code, late.json()["error"]["code"]) == (410, "comparison_expired")
    for name in ("none", "0" * 16, "%00", "%FF%FE", "..%2F", "x" * 5000):
        reply = http.post(f"{PATH}/{name}", json={"choice": "left"})
        assert reply.status_code == 404, (name, reply.text)
    assert votes() == []


@pytest.mark.parametrize(
    ("fields", "status", "param", "says"),
    [
        ({"models": ["fdm", "fdm"]}, 400, "models", "two different models are compared"),
        ({"models": ["fdm"]}, 400, "models", "at least 2"),
        ({"models": ["fdm", "idm"]}, 400, "model", "predicts no images"),
        ({"models": ["fdm", "nobody"]}, 404, "model", "no such model"),
        ({"action": " "}, 400, "action", "is empty"),
        ({"action": "x" * 1001}, 400, "action", "at most 1,000"),
        ({"best_of": 5}, 400, "best_of", "at most 4"),
        ({"model": "fdm"}, 400, "model", "unknown field"),
        ({"temperature": 1}, 400, "temperature", "unknown field"),
        ({"participant": "BCDF-HJKM-NPRT"}, 404, "participant", "Nobody takes part"),
        ({"participant": "x" * 65}, 400, "participant", "at most 64"),
        ({"image": None}, 400, "image", "image is missing"),
        ({"image": "http://127.0.0.1/x.png"}, 400, "image", "fetches nothing"),
        ({"image": "x" * 100_000}, 413, None, "larger than"),
    ],
)
def test_bad_requests_are_refused_by_name(http, fields, status, param, says):
    reply = http.post(PATH, json=BODY | fields)
    assert (reply.status_code, reply.json()["error"]["param"]) == (status, param), reply.text
    assert says in reply.json()["error"]["message"]


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"choice": "both"}', b'{"choice": 1}', b"{}", b'{"a": 1}'])
def test_bad_choices_are_refused(http, votes, body):
    shown = show(http).json()
    reply = http.post(f"{PATH}/{shown['id']}", content=body, headers={"content-type": "application/json"})
    assert reply.status_code == 400 and votes() == []


def test_a_key_compares_what_it_may_use(http):
    assert http.get(PATH, headers=BOB).json()["models"] == ["fdm"]
    alone = http.post(PATH, json=BODY, headers=BOB)
    assert alone.status_code == 400 and "two forward models are needed" in alone.json()["error"]["message"]
    other = http.post(PATH, json=BODY | {"models": ["fdm", "baseline"]}, headers=BOB)
    assert (other.status_code, other.json()["error"]["code"]) == (403, "model_not_found")
    # A key that is for forward models alone has their images verified all the same, as edits are.
    assert http.post(PATH, json=BODY, headers=CAROL).status_code == 200
    named = http.post(PATH, json=BODY | {"verifier": "idm"}, headers=CAROL)
    assert (named.status_code, named.json()["error"]["code"]) == (403, "model_not_found")
    for path in (PATH, f"{PATH}/x"):
        assert http.post(path, json={}, headers={"authorization": ""}).status_code == 401


def test_a_replica_of_another_recipe_shows_nothing(http, monkeypatch):
    """While an application is replaced it is asked too: another model's image would be taken for baseline's."""
    monkeypatch.delitem(http.app.state.graph.fdm.server._own, "baseline")
    reply = http.post(PATH, json=BODY)
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "model_starting")


def test_counts_are_told_and_no_choices(http):
    before = http.get(PATH).json()
    choose(http, show(http).json(), "left")
    after = http.get(PATH)
    assert after.json() == before | {"choices": before["choices"] + 1}
    assert before["models"] == ["fdm", "baseline"]
    head = http.head(PATH)
    assert (head.status_code, head.content) == (200, b"")


def test_figures_of_what_is_shown_and_chosen(http):
    found = Counter()
    metrics.record_to(lambda metric, value, tags: found.update({(metric.name, tags.get("event")): value}))
    try:
        choose(http, show(http).json(), "no_difference")
    finally:
        metrics.record_to(None)
    assert {event: count for (name, event), count in found.items() if name == "wm_comparisons"} == {
        "shown": 1, "no_difference": 1
    }  # fmt: skip


def test_a_full_disk_loses_nothing(recipe, http, votes, monkeypatch):
    server = http.app.state.comparisons.server
    kept, shown = show(http).json(), show(http).json()
    assert choose(http, kept, "left").status_code == 200
    connection = server._comparisons._store._connection
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")
    try:
        replies = [http.post(PATH, json=BODY | {"action": "a" * 900}) for _ in range(12)]
        assert {reply.status_code for reply in replies} <= {200, 507}
        full = replies[-1]
        assert full.status_code == 507 and full.json()["error"]["code"] == "disk_full"
        assert "the server's disk is full" in full.json()["error"]["message"]
    finally:
        connection.execute("PRAGMA max_page_count = 1073741823")
    assert choose(http, shown, "right").status_code == 200
    assert len(votes()) == 2


def test_without_a_store_nothing_is_compared(http):
    with TestClient(build_app(http.app.state.graph), headers=ALICE) as client:
        assert client.get(PATH).status_code == client.post(PATH, json=BODY).status_code == 404
        assert not [path for path in client.get("/openapi.json").json()["paths"] if "comparisons" in path]


def test_the_reference_tells_the_answers(http):
    paths = http.get("/openapi.json").json()["paths"]
    assert {"200", "400", "401", "403", "404", "413", "503", "507"} <= set(paths[PATH]["post"]["responses"])
    answers = paths[PATH + "/{comparison_id}"]["post"]["responses"]
    assert {"404", "409", "410", "507"} <= set(answers)
    for status in ("409", "410", "507"):
        schema = answers[status]["content"]["application/json"]["schema"]
        assert schema == {"$ref": "#/components/schemas/Error"}


def test_a_store_of_other_models_is_refused(recipe, http, tmp_path):
    show(http)
    folders = list_folders(recipe)
    with pytest.raises(InputError, match=r"^comparisons = .* holds choices about fdm = .* here: give another file"):
        ComparisonServer(recipe.comparisons, folders | {"fdm": "/elsewhere"})
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE x (y)")
    with pytest.raises(InputError, match=r"comparisons = .*: store = .*an SQLite file of another program"):
        ComparisonServer(str(other), folders)


def test_the_recipe_says_where_the_store_can_be(tiny_base, recipe):
    models = {"fdm": str(tiny_base), "idm": str(tiny_base)}
    with pytest.raises(InputError, match=r"comparisons.*s3://b/votes.sqlite is in a bucket; SQLite needs a local disk"):
        ServeRecipe.parse(models | {"comparisons": "s3://b/votes.sqlite"}, "test")
    with pytest.raises(InputError, match="comparisons without a second forward model: give baseline = DIR or adapters"):
        ServeRecipe.parse(models | {"comparisons": "votes.sqlite"}, "test")
    application = bind(recipe, check_models(recipe))
    keeper = application._bound_deployment.init_args[4]._bound_deployment
    assert keeper.name == "ComparisonServer"
    assert keeper.ray_actor_options["resources"] == {"node:__internal_head__": 0.001}
    assert keeper.init_args[0] == recipe.comparisons
