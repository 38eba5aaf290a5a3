"""Pages of other origins, by the Fetch standard's own steps: a preflight, its check, and what a page may then read."""

import asyncio
import hashlib
import threading

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from serve_apps.middleware.proxy import build_middlewares, set_environment
from serve_apps.recipe import ServeRecipe
from tests.helpers.serve_hostile import BODIES, PNG
from tests.helpers.serve_local import local_app
from wm.errors import InputError

PAGE, OTHER = "https://app.example", "https://evil.example"
KEY = {"authorization": "Bearer wm-alice"}
SAFE = {"accept", "accept-language", "content-language", "content-type"}
"""CORS-safelisted names of request headers; of types, JSON is not among the safe ones."""
SAFE_ANSWERS = {"cache-control", "content-language", "content-length", "content-type", "expires", "pragma"}


@pytest.fixture(scope="module")
def clients(tiny_base, tmp_path_factory):
    keys = tmp_path_factory.mktemp("keys") / "keys.toml"
    digests = [hashlib.sha256(f"wm-{name}".encode()).hexdigest() for name in ("alice", "bob")]
    keys.write_text(
        f'[[keys]]\nname = "alice"\nsha256 = "{digests[0]}"\nrequests_per_minute = 1000\n'
        f'[[keys]]\nname = "bob"\nsha256 = "{digests[1]}"\nrequests_per_minute = 1\n'
    )
    recipe = ServeRecipe(
        fdm=str(tiny_base),
        idm=str(tiny_base),
        keys=str(keys),
        num_candidates=2,
        max_body_bytes=200_000,
        cors_origins=[PAGE],
    )
    app = local_app(recipe)
    everyone = local_app(recipe.model_copy(update={"cors_origins": ["*"]}))
    nobody = local_app(recipe.model_copy(update={"cors_origins": []}))
    with TestClient(app) as some, TestClient(everyone) as every, TestClient(nobody) as none:
        yield {"some": some, "every": every, "none": none}


class NetworkError(Exception):
    """What a page sees as a TypeError: the browser gives it nothing."""


class Browser:
    """``fetch`` of a page, without credentials: HTTP-network fetch, CORS-preflight fetch and the CORS check."""

    def __init__(self, client, origin):
        self._client, self._origin = client, origin

    def fetch(self, method, path, headers=None, **body):
        headers = dict(headers or {})
        unsafe = sorted(name.lower() for name in headers if name.lower() not in SAFE)
        if "json" in body:
            unsafe = sorted([*unsafe, "content-type"])
        if unsafe or method not in ("GET", "HEAD", "POST"):
            asked = {"access-control-request-method": method, "accept": "*/*", "origin": self._origin}
            if unsafe:
                asked["access-control-request-headers"] = ",".join(unsafe)
            preflight = self._client.request("OPTIONS", path, headers=asked)
            self._check(preflight)
            if not 200 <= preflight.status_code < 300:
                raise NetworkError(preflight.status_code)
            methods = self._names(preflight, "access-control-allow-methods", str.upper)
            if method not in methods and method not in ("GET", "HEAD", "POST"):
                raise NetworkError(methods)
            allowed = self._names(preflight, "access-control-allow-headers", str.lower)
            # The wildcard never stands for Authorization.
            if not all(name in allowed or ("*" in allowed and name != "authorization") for name in unsafe):
                raise NetworkError(allowed)
        reply = self._client.request(method, path, headers=headers | {"origin": self._origin}, **body)
        self._check(reply)
        exposed = self._names(reply, "access-control-expose-headers", str.lower)
        visible = {name: value for name, value in reply.headers.items() if name in SAFE_ANSWERS | exposed}
        return reply, visible

    def _check(self, reply):
        if reply.headers.get("access-control-allow-origin") not in ("*", self._origin):
            raise NetworkError("no allowed origin")

    @staticmethod
    def _names(reply, header, case):
        return {case(name.strip()) for name in reply.headers.get(header, "").split(",")}


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("kind", ["some", "every"])
def test_a_page_of_an_allowed_origin_reads_answers(clients, path, kind):
    headers = KEY | {"x-stainless-lang": "js", "x-stainless-retry-count": "0"}
    reply, visible = Browser(clients[kind], PAGE).fetch("POST", path, headers, json=BODIES[path])
    assert reply.status_code == 200 and reply.json()
    assert {"x-request-id", "x-ratelimit-remaining-requests"} <= set(visible)
    assert "edits" not in path or "server-timing" in visible
    assert "access-control-allow-credentials" not in reply.headers


def test_a_page_reads_streams_and_pages(clients):
    browser = Browser(clients["some"], PAGE)
    for path in ("/v1/images/edits", "/v1/chat/completions", "/v1/rollouts"):
        reply, visible = browser.fetch("POST", path, KEY, json=BODIES[path] | {"stream": True})
        assert visible["content-type"].startswith("text/event-stream") and "data: " in reply.text
    for path in ("/health", "/openapi.json", "/v1/models"):
        assert browser.fetch("GET", path, KEY)[0].status_code == 200
    form = {"files": {"image": PNG}, "data": {"prompt": "move it"}}
    assert browser.fetch("POST", "/v1/images/edits", KEY, **form)[0].status_code == 200


def test_a_page_reads_every_error(clients, monkeypatch):
    browser, path = Browser(clients["some"], PAGE), "/v1/images/edits"
    bob = {"authorization": "Bearer wm-bob"}
    browser.fetch("GET", "/v1/models", bob)
    asked = {
        400: browser.fetch("POST", path, KEY, json={}),
        401: browser.fetch("POST", path, {"authorization": "Bearer wm-mallory"}, json={}),
        403: None,
        404: browser.fetch("GET", "/v1/models/none", KEY),
        405: browser.fetch("GET", path, KEY),
        413: browser.fetch("POST", path, KEY, json={"prompt": "a" * 200_000}),
        415: browser.fetch("POST", path, KEY, content=b"a"),
        429: browser.fetch("GET", "/v1/models", bob),
    }
    del asked[403]
    for status, (reply, visible) in asked.items():
        assert reply.status_code == status and set(reply.json()) == {"error"}
        assert "x-request-id" in visible
    assert int(asked[429][1]["retry-after"]) >= 1 and "www-authenticate" in asked[401][1]
    reply, visible = browser.fetch("GET", "/v1/models", KEY | {"x-request-id": "a b"})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "x-request-id")

    async def failing(*arguments):
        raise RuntimeError("a secret")

    monkeypatch.setattr("serve_apps.graph.Graph.models", failing)
    reply, _ = browser.fetch("GET", "/v1/models", KEY)
    assert reply.status_code == 500 and "secret" not in reply.text


def test_a_page_reads_that_the_server_is_full(tiny_base):
    app = local_app(ServeRecipe(fdm=str(tiny_base), idm=str(tiny_base), max_requests=1, cors_origins=[PAGE]))
    waiting, go = threading.Event(), threading.Event()

    async def slow(*arguments):
        waiting.set()
        while not go.is_set():
            await asyncio.sleep(0.01)
        return []

    app.state.graph.models = slow
    with TestClient(app) as client:
        first = threading.Thread(target=client.get, args=("/v1/models",))
        first.start()
        assert waiting.wait(60)
        reply, visible = Browser(client, PAGE).fetch("GET", "/v1/models")
        assert (reply.status_code, visible["retry-after"]) == (503, "1")
        go.set()
        first.join()


@pytest.mark.parametrize(
    "origin", [OTHER, "null", "http://app.example", "https://app.example:8443", "https://APP.example"]
)
def test_pages_of_other_origins_read_nothing(clients, origin):
    for path, body in BODIES.items():
        with pytest.raises(NetworkError):
            Browser(clients["some"], origin).fetch("POST", path, KEY, json=body)
    with pytest.raises(NetworkError):
        Browser(clients["some"], origin).fetch("GET", "/health")
    reply = clients["some"].get("/health", headers={"origin": origin})
    assert "access-control-allow-origin" not in reply.headers and "Origin" in reply.headers["vary"]


def test_without_origins_nothing_changes(clients):
    with pytest.raises(NetworkError):
        Browser(clients["none"], PAGE).fetch("GET", "/health")
    reply = clients["none"].get("/health", headers={"origin": PAGE})
    assert not [name for name in reply.headers if name.startswith("access-control")] and "vary" not in reply.headers


def test_caches_tell_origins_apart(clients):
    for origin in ({"origin": PAGE}, {"origin": OTHER}, {}):
        assert clients["some"].get("/health", headers=origin).headers["vary"] == "Origin"
    for headers in ({"cookie": "a=b"}, {}):
        reply = clients["every"].get("/health", headers=headers | {"origin": OTHER})
        assert reply.headers["access-control-allow-origin"] == "*"


def test_a_preflight_needs_no_key_and_costs_none(clients):
    asked = {"origin": PAGE, "access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    for path in (*BODIES, "/v1/models", "/health", "/v1/models/fdm", "/docs"):
        reply = clients["some"].options(path, headers=asked)
        assert reply.status_code == 200 and "x-ratelimit-limit-requests" not in reply.headers
        assert reply.headers["access-control-max-age"] == "600"
    reply = clients["some"].options("/health", headers=asked | {"access-control-request-private-network": "true"})
    assert reply.headers["access-control-allow-private-network"] == "true"
    assert clients["some"].options("/v1/models", headers={"origin": PAGE}).status_code == 401, "this is no preflight"


@pytest.mark.parametrize(
    ("origins", "says"),
    [
        (["https://app.example/"], "'https://app.example/' is no origin: a slash at its end is too much"),
        (["https://app.example/page"], "'/page' is too much"),
        (["https://app.example?a"], "too much"),
        (["app.example"], "the scheme (https:// or http://) is missing"),
        (["localhost:3000"], "the scheme"),
        (["//app.example"], "the scheme"),
        ([""], "the scheme"),
        (["null"], "any sandboxed page sends null"),
        (["https://*.example"], "'*' stands for every origin alone"),
        (["*", "https://app.example"], "give it alone"),
        (["https://App.example"], "lower case"),
        (["https://é.example"], "in ASCII"),
        (["https://app.example:443"], "leave out port 443 of https"),
        (["http://app.example:80"], "leave out port 80 of http"),
        (["http://app.example:0"], "no port"),
        (["http://app.example:70000"], "no port"),
        (["https://a@b.example"], "too much"),
        (["https://"], "expected SCHEME://HOST"),
        ("https://a.example, b.example", "'b.example' is no origin"),
        ([3], "valid string"),
    ],
)
def test_origins_that_match_nothing_are_refused(origins, says):
    with pytest.raises(InputError) as caught:
        ServeRecipe.parse({"fdm": "a", "idm": "b", "cors_origins": origins}, "test")
    assert says in str(caught.value) and "cors_origins" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "origins"),
    [
        ([], []),
        (["*"], ["*"]),
        ("*", ["*"]),
        ("https://a.example,http://localhost:3000", ["https://a.example", "http://localhost:3000"]),
        (["http://[::1]:3000", "http://127.0.0.1:5173"], ["http://[::1]:3000", "http://127.0.0.1:5173"]),
        (["capacitor://localhost", "chrome-extension://abc"], ["capacitor://localhost", "chrome-extension://abc"]),
        (["https://xn--9ca.example", "https://a.example:8443"], ["https://xn--9ca.example", "https://a.example:8443"]),
    ],
)
def test_origins_that_browsers_send(given, origins):
    assert ServeRecipe.parse({"fdm": "a", "idm": "b", "cors_origins": given}, "test").cors_origins == origins
    text = given if isinstance(given, str) else str(given)
    assert ServeRecipe.load(None, ["fdm=a", "idm=b", f"cors_origins={text}"]).cors_origins == origins


def test_a_page_reads_what_rays_proxy_answers_by_itself():
    """Around an app that marks its answers, and where the app is not reached; each header comes once."""

    async def died(scope, receive, send):
        """No answer, as when the processes that were asked died."""

    async def marked(request):
        headers = {"access-control-allow-origin": PAGE, "vary": "Origin"} if request.headers["origin"] == PAGE else {}
        return PlainTextResponse("a", headers=headers)

    set_environment(None, [PAGE])
    try:
        around = build_middlewares()
    finally:
        set_environment(None, [])
    app = Starlette(routes=[Route("/marked", marked), Route("/died", died)], middleware=around)
    app.router.routes[1].app = died
    client = TestClient(app, client=("10.0.0.7", 1))
    for path, status in (("/marked", 200), ("/died", 503), ("/-/routes", 401)):
        reply, _ = Browser(client, PAGE).fetch("GET", path)
        assert reply.status_code == status
        assert reply.headers.get_list("access-control-allow-origin") == [PAGE]
        assert reply.headers.get_list("vary") == ["Origin"]
    with pytest.raises(NetworkError):
        Browser(client, OTHER).fetch("GET", "/marked")
