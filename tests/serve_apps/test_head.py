"""HEAD, as monitors ask: wherever GET answers, the same status and headers without a body; and what else is refused."""

import hashlib

import pytest
from starlette.testclient import TestClient

from serve_apps.recipe import ServeRecipe
from serve_apps.routes import chat, edits, examples, models, playground, reference, rollouts, score
from tests.helpers.serve_local import local_app

PAGES = ["/", "/docs", "/docs/files/swagger-ui.css", "/openapi.json", "/health", "/playground/predict.js"]
MODELS = ["/v1/models", "/v1/models/fdm", "/v1/examples", "/v1/examples/red-circle-blue-square.png"]
WRONG = ["/v1/models/none", "/nowhere", "/playground/none.js", "/docs/files/none", "/v1/examples/none"]
POSTS = ["/v1/images/edits", "/v1/chat/completions", "/v1/score", "/v1/rollouts", "/v1/wm/score", "/v1/wm/rollouts"]
ALICE = {"authorization": "Bearer wm-alice"}


@pytest.fixture(scope="module")
def recipe(tiny_base, tmp_path_factory):
    keys = tmp_path_factory.mktemp("head") / "keys.toml"
    sha256 = hashlib.sha256(b"wm-alice").hexdigest()
    keys.write_text(f'[[keys]]\nname = "alice"\nsha256 = "{sha256}"\nrequests_per_minute = 1000\n')
    return ServeRecipe(fdm=str(tiny_base), idm=str(tiny_base), keys=str(keys), examples="nano:images")


@pytest.fixture(scope="module")
def app(recipe):
    return local_app(recipe)


@pytest.fixture(scope="module")
def http(app):
    with TestClient(app) as client:
        yield client


def headers_of(reply):
    """Those that are the same each time."""
    changing = ("x-request-id", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests")
    return {name: value for name, value in reply.headers.items() if name not in changing}


@pytest.mark.parametrize("path", PAGES + MODELS + WRONG)
def test_head_is_get_without_the_body(http, path):
    get, head = (http.request(method, path, headers=ALICE) for method in ("GET", "HEAD"))
    assert head.status_code == get.status_code == (404 if path in WRONG else 200)
    assert headers_of(head) == headers_of(get)
    assert head.headers["content-length"] == str(len(get.content)) and head.content == b""


def test_every_route_that_answers_get_answers_head():
    for group in (chat, edits, examples, models, playground, reference, rollouts, score):
        methods = {}
        for route in group.router.routes:
            methods.setdefault(route.path, route.methods)  # of the first, which is the one that answers
        for path, answered in methods.items():
            assert ("GET" in answered) == ("HEAD" in answered), path


def test_the_schema_describes_get_alone(app, http):
    paths = app.openapi()["paths"]
    read = {path for path, methods in paths.items() if "get" in methods}
    assert read == {"/v1/models", "/v1/models/{model_id}", "/v1/examples", "/v1/examples/{example_id}", "/health"}
    assert not [path for path, methods in paths.items() if "head" in methods]
    for path in PAGES + MODELS:
        reply = http.post(path, headers=ALICE)
        assert (reply.status_code, set(reply.headers["allow"].split(", "))) == (405, {"GET", "HEAD"}), path


@pytest.mark.parametrize("path", POSTS)
def test_what_is_asked_by_post_says_so(http, path):
    for method in ("GET", "HEAD", "PUT", "OPTIONS"):
        reply = http.request(method, path, headers=ALICE)
        assert (reply.status_code, reply.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize("path", MODELS + POSTS)
def test_a_key_is_asked_for_before_anything(http, path):
    for method in ("GET", "HEAD", "POST", "OPTIONS"):
        reply = http.request(method, path)
        assert reply.status_code == 401 and reply.headers["www-authenticate"] == 'Bearer realm="wm"'


def test_head_counts_as_a_request_of_a_key(http):
    remaining = [
        int(http.request(method, "/v1/models", headers=ALICE).headers["x-ratelimit-remaining-requests"])
        for method in ("GET", "HEAD", "GET")
    ]
    assert remaining[0] - remaining[2] >= 1 and remaining == sorted(remaining, reverse=True)
    for path in PAGES:
        assert http.head(path).status_code == 200, "a page needs no key"


def test_a_model_that_fails_fails_head_too(recipe):
    app = local_app(recipe)

    async def fail():
        raise TimeoutError("no answer")

    app.state.graph.check_health = fail
    with TestClient(app, raise_server_exceptions=False) as http:
        get, head = http.get("/health"), http.head("/health")
    assert head.status_code == get.status_code >= 500
    assert head.headers["content-length"] == str(len(get.content)) and head.content == b""
