"""API keys and their limits: the file, the command, and what a client sees of them over the app in this process."""

import asyncio
import base64
import hashlib
import hmac
import threading

import numpy as np
import openai
import pytest
from starlette.testclient import TestClient

from serve_apps import keys as keys_module
from serve_apps import metrics
from serve_apps.__main__ import StartRecipe
from serve_apps.__main__ import main as serve_main
from serve_apps.http import is_page
from serve_apps.ingress import _build_middlewares
from serve_apps.keys import Key, KeyRing, main, read_keys
from serve_apps.middleware.allowance import Allowance, duration
from serve_apps.middleware.api_keys import ApiKeyMiddleware
from serve_apps.recipe import ServeRecipe
from tests.helpers.serve_local import local_app
from wm.errors import InputError
from wm.images import encode_png

PNG = encode_png(np.zeros((4, 4, 3), np.uint8))
URL = "data:image/png;base64," + base64.b64encode(PNG).decode()
EDIT = {"image": URL, "prompt": "move it", "seed": 1, "best_of": 2}


def digest(token):
    return hashlib.sha256(token.encode()).hexdigest()


def write(path, *entries):
    lines = []
    for entry in entries:
        lines += ["[[keys]]", *(f"{key} = {value}" for key, value in entry.items())]
    path.write_text("\n".join(lines) + "\n")


def entry(name, token, **limits):
    return {"name": f'"{name}"', "sha256": f'"{digest(token)}"', **limits}


@pytest.fixture(scope="module")
def key_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("keys") / "keys.toml"
    write(
        path,
        entry("alice", "wm-alice", requests_per_minute=1000),
        entry("bob", "wm-bob", requests_per_minute=2),
        entry("erin", "wm-erin", requests_per_minute=1),
        entry("carol", "wm-carol", requests_per_minute=1000, max_best_of=3, models='["fdm"]'),
        entry("dave", "wm-dave", requests_per_minute=1000, concurrent_requests=1),
    )
    return path


@pytest.fixture(scope="module")
def app(tiny_base, key_file):
    return local_app(ServeRecipe(fdm=str(tiny_base), idm=str(tiny_base), keys=str(key_file), num_candidates=4))


@pytest.fixture(scope="module")
def http(app):
    with TestClient(app) as client:
        yield client


def bearer(token):
    return {"authorization": f"Bearer {token}"}


@pytest.mark.parametrize(
    ("headers", "code", "challenge"),
    [
        ([], None, 'Bearer realm="wm"'),
        ([("authorization", "Basic YTpi")], None, 'Bearer realm="wm"'),
        ([("authorization", "Bearer")], None, 'Bearer realm="wm"'),
        ([("authorization", "Bearer ")], None, 'Bearer realm="wm"'),
        ([("authorization", "Bearer wm-alice"), ("authorization", "Bearer wm-alice")], None, 'Bearer realm="wm"'),
        ([("authorization", "Bearer wm-mallory")], "invalid_api_key", 'Bearer realm="wm", error="invalid_token"'),
        ([("authorization", "Bearer wm-alic")], "invalid_api_key", 'Bearer realm="wm", error="invalid_token"'),
        ([("authorization", b"Bearer \xff\xfe")], "invalid_api_key", 'Bearer realm="wm", error="invalid_token"'),
        ([("authorization", f"Bearer {digest('wm-alice')}")], "invalid_api_key", None),
    ],
)
@pytest.mark.parametrize(
    "line",
    [
        "POST /v1/images/edits",
        "GET /v1/models",
        "POST /v1/rollouts",
        "POST /v1/wm/score",
        "GET /v1/nothing",
        "POST /",
        "GET /v2",
    ],
)
def test_without_a_key_nothing_is_told(http, line, headers, code, challenge):
    reply = http.request(*line.split(), headers=headers)
    assert reply.status_code == 401
    error = reply.json()["error"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", None, code)
    assert challenge in (None, reply.headers["www-authenticate"])
    assert "alice" not in reply.text and reply.headers["x-request-id"]


def test_pages_need_no_key(http):
    for path in ("/health", "/openapi.json", "/docs"):
        assert http.get(path).status_code == 200
    assert "x-ratelimit-limit-requests" not in http.get("/health").headers
    assert http.get("/").status_code != 401


@pytest.mark.parametrize(
    ("method", "path", "root", "found"),
    [
        ("GET", "/", "", True),
        ("HEAD", "/playground/app.js", "", True),
        ("POST", "/health", "", False),
        ("GET", "/healthz", "", False),
        ("GET", "/v1/models", "", False),
        ("GET", "//v1/models", "", False),
        ("GET", "/playgrounds", "", False),
        ("GET", "/wm/health", "/wm", True),
        ("GET", "/wm", "/wm", True),
        ("GET", "/wm/v1/models", "/wm", False),
        ("GET", "/health/v1/models", "/health", False),
    ],
)
def test_what_is_a_page(method, path, root, found):
    assert is_page({"method": method, "path": path, "root_path": root}) is found


def test_with_a_key(http):
    for scheme in ("Bearer", "bearer", "BEARER "):
        reply = http.get("/v1/models", headers={"authorization": f"{scheme} wm-alice"})
        assert reply.status_code == 200, reply.text
    assert reply.headers["x-ratelimit-limit-requests"] == "1000"
    assert 990 < int(reply.headers["x-ratelimit-remaining-requests"]) < 1000
    reply = http.post("/v1/images/edits", json=EDIT, headers=bearer("wm-alice"))
    assert reply.status_code == 200 and reply.json()["best_of"] == 2


def test_the_limits_of_a_key(http):
    carol = bearer("wm-carol")
    assert [model["id"] for model in http.get("/v1/models", headers=carol).json()["data"]] == ["fdm"]
    for path in ("/v1/images/edits", "/v1/rollouts", "/v1/wm/rollouts"):
        asked = EDIT if "edits" in path else {"image": URL, "actions": ["move it"]}
        reply = http.post(path, json=asked | {"best_of": 4}, headers=carol)
        assert (reply.status_code, reply.json()["error"]["message"]) == (400, "best_of = 4: at most 3 are accepted")
    reply = http.get("/v1/models/idm", headers=carol)
    assert (reply.status_code, reply.json()["error"]["code"]) == (403, "model_not_found")
    without = {key: value for key, value in EDIT.items() if key != "best_of"}
    assert http.post("/v1/images/edits", json=without, headers=carol).json()["best_of"] == 3
    assert http.post("/v1/images/edits", json=without, headers=bearer("wm-alice")).json()["best_of"] == 4


def test_requests_a_minute(http):
    bob = bearer("wm-bob")
    left = [http.get("/v1/models", headers=bob).headers["x-ratelimit-remaining-requests"] for _ in range(2)]
    assert left == ["1", "0"]
    reply = http.get("/v1/models", headers=bob)
    error = reply.json()["error"]
    assert (reply.status_code, error["type"], error["code"]) == (429, "requests", "rate_limit_exceeded")
    assert 28 <= int(reply.headers["retry-after"]) <= 30
    assert reply.headers["x-ratelimit-remaining-requests"] == "0"
    assert http.get("/v1/models", headers=bearer("wm-alice")).status_code == 200, "others are not held up"


@pytest.mark.parametrize("names_keys", [False, True])
def test_metrics_name_keys_only_where_the_recipe_says_so(tiny_base, key_file, names_keys):
    models = {"fdm": str(tiny_base), "idm": str(tiny_base)}
    recipe = ServeRecipe(**models, keys=str(key_file), key_names_in_metrics=names_keys)
    (guard,) = [middleware for middleware in _build_middlewares(recipe, True) if middleware.cls is ApiKeyMiddleware]
    labels = []
    metrics.record_to(lambda metric, value, tags: labels.append(tags))

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message):
        """Nobody reads it."""

    scope = {"type": "http", "method": "GET", "path": "/v1/models", "headers": [(b"authorization", b"Bearer wm-bob")]}
    guarded = guard.cls(app, **guard.kwargs)
    try:
        for _ in range(3):
            asyncio.run(guarded(dict(scope), None, send))
    finally:
        metrics.record_to(None)
    assert labels == [{"key": "bob" if names_keys else digest("wm-bob")[:8]}]


def test_requests_at_a_time(app, http, monkeypatch):
    graph, waiting, go = app.state.graph, threading.Event(), threading.Event()

    async def slow(*arguments):
        waiting.set()
        while not go.is_set():
            await asyncio.sleep(0.01)
        return []

    with monkeypatch.context() as patched:
        patched.setattr(type(graph), "models", slow)
        first = threading.Thread(target=http.get, args=("/v1/models",), kwargs={"headers": bearer("wm-dave")})
        first.start()
        assert waiting.wait(60)
        reply = http.get("/v1/models", headers=bearer("wm-dave"))
        assert (reply.status_code, reply.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert "1 requests of this key" in reply.json()["error"]["message"]
        go.set()
        first.join()
        assert http.get("/v1/models", headers=bearer("wm-dave")).status_code == 200


class Clock:
    now_s = 0.0

    def __call__(self):
        return self.now_s


def test_a_bucket_fills_up_within_a_minute():
    clock = Clock()
    allowance = Allowance(Key(name="a", sha256="0" * 64, requests_per_minute=4, concurrent_requests=100), clock)
    assert [allowance.take_now() for _ in range(4)] == [None] * 4
    assert allowance.headers()["x-ratelimit-reset-requests"] == "1m0s"
    refused = allowance.take_now()
    assert refused.headers["Retry-After"] == "15" and "try again in 15s" in refused.message
    clock.now_s = 14.9
    assert allowance.take_now() is not None, "a refusal costs nothing, and nothing is given early"
    clock.now_s = 15.0
    assert allowance.take_now() is None
    clock.now_s = 10_000.0
    assert allowance.headers()["x-ratelimit-remaining-requests"] == "0"
    assert [allowance.take_now() is None for _ in range(5)] == [True] * 4 + [False], (
        "no more than a minute's is saved up"
    )


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.1201, "121ms"), (1, "1s"), (1.2, "2s"), (59.5, "1m0s"), (360, "6m0s"), (0, "0ms")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_every_entry_is_compared_in_constant_time(key_file, monkeypatch):
    compared, real = [], hmac.compare_digest

    def compare(entry, given):
        compared.append(entry)
        return real(entry, given)

    ring = KeyRing(key_file)
    monkeypatch.setattr(keys_module.hmac, "compare_digest", compare)
    for token, name in ((b"wm-alice", "alice"), (b"wm-dave", "dave"), (b"wm-nobody", None)):
        compared.clear()
        found = ring.find(token)
        assert (found.name if found else None) == name
        assert compared == [key.sha256 for key in ring.keys]


def test_a_changed_file_is_read_again_and_a_broken_one_is_not(tmp_path, caplog):
    path = tmp_path / "keys.toml"
    write(path, entry("alice", "wm-alice"))
    ring = KeyRing(path)
    assert ring.find(b"wm-alice") and not ring.find(b"wm-bob")
    write(path, entry("bob", "wm-bob"))
    assert ring.find(b"wm-bob").name == "bob" and not ring.find(b"wm-alice"), "a key taken away is refused at once"
    path.write_text("keys = 3")
    assert ring.find(b"wm-bob") and "the keys stay as they were" in caplog.text
    path.unlink()
    assert ring.find(b"wm-bob")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "keys is missing"),
        ("keys = []", "at least 1 item"),
        ("[[keys]]\nname = 'a'", "keys.0.sha256 is missing"),
        ("[[keys]]\nname = 'a'\nsha256 = 'wm-secret'", "string should match pattern"),
        (f"[[keys]]\nname = 'a'\nsha256 = '{'0' * 64}'\nrate = 3", "unknown key 'keys.0.rate'"),
        (f"[[keys]]\nname = 'a'\nsha256 = '{'0' * 64}'\nrequests_per_minute = 0", "requests_per_minute = 0"),
        (f"[[keys]]\nname = 'a'\nsha256 = '{'0' * 64}'\n" * 2, "name = 'a' is given twice"),
        ("[[keys", "not valid TOML"),
        (None, "no such file"),
    ],
)
def test_bad_key_files_are_told_before_any_work(tmp_path, tiny_base, capsys, text, says):
    path = tmp_path / "keys.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=r".") as caught:
        read_keys(path)
    assert says in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert serve_main([f"fdm={tiny_base}", f"idm={tiny_base}", f"keys={path}", "--dry-run"]) == 2
    assert says in capsys.readouterr().err


def test_the_command_makes_a_key_that_is_shown_once(tmp_path, capsys):
    arguments = ['name=a "quoted" \\ name', "requests_per_minute=7", "max_best_of=5", 'models=["fdm", "idm"]']
    assert main([*arguments, "--dry-run"]) == 0
    assert "sha256" not in capsys.readouterr().out
    tokens = []
    for _ in range(2):
        assert main(arguments) == 0
        shown = capsys.readouterr()
        (token,) = [word for word in shown.err.split() if word.startswith("wm-")]
        tokens.append(token)
        assert len(base64.urlsafe_b64decode(token.removeprefix("wm-") + "=")) == 32
        assert token not in shown.out
        path = tmp_path / "keys.toml"
        path.write_text(shown.out)
        (key,) = read_keys(path)
        assert key.sha256 == digest(token)
        assert (key.name, key.requests_per_minute, key.max_best_of) == ('a "quoted" \\ name', 7, 5)
        assert (key.models, key.concurrent_requests) == (["fdm", "idm"], 8)
    assert tokens[0] != tokens[1]
    assert main(["requests_per_minute=7"]) == 2
    assert "name is missing" in capsys.readouterr().err


def test_beyond_loopback_keys_are_needed_or_said_to_be_none(tmp_path, tiny_base):
    path = tmp_path / "keys.toml"
    write(path, entry("alice", "wm-alice"))
    models = {"fdm": str(tiny_base), "idm": str(tiny_base)}
    for host in ("0.0.0.0", "::", "192.168.1.5", "server.example"):
        with pytest.raises(InputError, match="nobody would be asked for a key: give keys=FILE"):
            StartRecipe.parse(models | {"host": host}, "test")
        assert StartRecipe.parse(models | {"host": host, "keys": str(path)}, "test")
        assert StartRecipe.parse(models | {"host": host, "open": True}, "test")
    for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"):
        assert StartRecipe.parse(models | {"host": host}, "test")


def test_a_stream_is_not_held_back(key_file):
    """Each part of an answer is passed on before the next is made."""
    log = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for number in range(3):
            log.append(f"made {number}")
            await send({"type": "http.response.body", "body": b"x", "more_body": True})

    async def send(message):
        log.append(message["type"])

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/images/edits",
        "headers": [(b"authorization", b"Bearer wm-alice")],
    }
    asyncio.run(ApiKeyMiddleware(app, KeyRing(key_file))(scope, None, send))
    assert log == ["http.response.start"] + [
        line for number in range(3) for line in (f"made {number}", "http.response.body")
    ]


def test_openais_client_sees_its_own_exceptions(app):
    with TestClient(app) as transport:

        def client(key):
            return openai.OpenAI(base_url="http://testserver/v1", api_key=key, http_client=transport, max_retries=0)

        assert [model.id for model in client("wm-alice").models.list()] == ["fdm", "idm"]
        with pytest.raises(openai.AuthenticationError, match="incorrect API key provided"):
            client("wm-mallory").models.list()
        with pytest.raises(openai.RateLimitError, match="rate limit reached"):
            for _ in range(3):
                client("wm-erin").models.list()
        with pytest.raises(openai.PermissionDeniedError, match="may not use the model 'idm'"):
            client("wm-carol").models.retrieve("idm")
