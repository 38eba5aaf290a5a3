"""The middlewares around the app: bounds in number and time, ids, and what nobody expected; with plain ASGI apps."""

import asyncio
import hashlib
import json
from importlib import import_module
from pkgutil import iter_modules

import httpx2
import pytest
from fastapi import Request
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from serve_apps import metrics, routes
from serve_apps.http import create_app, is_page
from serve_apps.keys import Key
from serve_apps.middleware.proxy import (
    KEYS_VARIABLE,
    ORIGINS_VARIABLE,
    TRACEPARENT_VARIABLE,
    HeaderFilterMiddleware,
    ProxyPagesMiddleware,
    build_middlewares,
    has_middlewares,
    set_environment,
)
from serve_apps.middleware.retry import RetryMiddleware
from serve_apps.middleware.tracing_and_limits import CLIENT_LEFT, LimitsMiddleware, TraceMiddleware
from serve_apps.openai.errors import ApiError
from serve_apps.recipe import ServeRecipe
from tests.helpers.playground_server import served
from wm.errors import InputError


def scope_of(path="/v1/rollouts", method="POST", headers=()):
    return {"type": "http", "method": method, "path": path, "headers": [(a.encode(), b) for a, b in headers]}


class Answer:
    """What an app sends."""

    def __init__(self):
        self.messages = []

    async def __call__(self, message):
        self.messages.append(message)

    @property
    def status(self):
        return self.messages[0]["status"]

    @property
    def headers(self):
        return [(name.decode(), value.decode()) for name, value in self.messages[0]["headers"]]

    @property
    def body(self):
        return b"".join(message.get("body", b"") for message in self.messages)

    @property
    def is_whole(self):
        return not self.messages[-1].get("more_body", False)


class Slow:
    """An app that starts an answer, maybe, and then works until it is stopped."""

    def __init__(self, content_type=None):
        self.content_type, self.stopped, self.working, self.go = content_type, 0, 0, asyncio.Event()

    async def __call__(self, scope, receive, send):
        if self.content_type:
            headers = [(b"content-type", self.content_type)]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b"event: a\ndata: 1\n\n", "more_body": True})
        self.working += 1
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.stopped += 1
            raise
        finally:
            self.working -= 1
        if not self.content_type:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})


def ask(app, scope=None):
    answer = Answer()
    asyncio.run(app(scope or scope_of(), None, answer))
    return answer


@pytest.fixture
def kept():
    values = []
    metrics.record_to(lambda metric, value, tags: values.append((metric, value, tags)))
    yield values
    metrics.record_to(None)


def test_a_time_limit_stops_the_work_and_tells_in_openais_form():
    slow = Slow()
    answer = ask(LimitsMiddleware(slow, max_requests=1, timeout_s=0.05))
    assert answer.status == 408 and slow.stopped == 1 and slow.working == 0
    error = json.loads(answer.body)["error"]
    assert (error["message"], error["code"]) == ("the request took more than 0.05 s", "timeout")
    assert ("x-should-retry", "false") in answer.headers


def test_a_time_limit_ends_a_stream_with_an_event(kept):
    slow = Slow(b"text/event-stream; charset=utf-8")
    answer = ask(LimitsMiddleware(slow, max_requests=1, timeout_s=0.05))
    assert answer.status == 200 and slow.stopped == 1 and answer.is_whole
    first, last = answer.body.decode().split("\n\n")[:2]
    assert first == "event: a\ndata: 1" and last.startswith("event: error\ndata: ")
    assert json.loads(last.partition("data: ")[2])["error"]["code"] == "timeout"
    assert (metrics.STREAM_ERRORS, 1.0, {"code": "timeout"}) in kept


def test_what_is_cut_off_is_not_ended_as_if_it_were_whole():
    slow, answer = Slow(b"image/png"), Answer()
    with pytest.raises(TimeoutError):
        asyncio.run(LimitsMiddleware(slow, max_requests=1, timeout_s=0.05)(scope_of(), None, answer))
    assert slow.stopped == 1 and not answer.is_whole


def test_a_timeout_of_the_apps_own_is_not_the_limits():
    async def app(scope, receive, send):
        raise TimeoutError("of its own")

    with pytest.raises(TimeoutError, match="of its own"):
        ask(LimitsMiddleware(app, max_requests=1, timeout_s=60))


def test_requests_beyond_the_bound_get_503_pages_are_answered(kept):
    async def run():
        slow = Slow()
        app = LimitsMiddleware(slow, max_requests=2, timeout_s=60)
        answers = [Answer() for _ in range(3)]
        working = [asyncio.create_task(app(scope_of(), None, answer)) for answer in answers[:2]]
        await asyncio.sleep(0)
        assert slow.working == 2
        await app(scope_of(), None, answers[2])
        assert answers[2].status == 503 and ("retry-after", "1") in answers[2].headers
        assert json.loads(answers[2].body)["error"]["code"] == "overloaded"
        page = asyncio.create_task(app(scope_of("/health", "GET"), None, Answer()))
        await asyncio.sleep(0)
        assert slow.working == 3
        slow.go.set()
        await asyncio.gather(*working, page)
        assert [answer.body for answer in answers[:2]] == [b"done"] * 2
        again = Answer()
        await app(scope_of(), None, again)
        assert again.status == 200

    asyncio.run(run())
    assert [value for metric, value, _ in kept if metric is metrics.IN_PROGRESS] == [1, 2, 1, 0, 1, 0]


def test_bodies_are_held_up_to_a_bound_together():
    """What a request brought is forgotten when it is answered."""
    app = create_app("test", [Middleware(LimitsMiddleware, max_requests=10, timeout_s=60, max_bytes=250)])

    async def run():
        go = asyncio.Event()

        @app.post("/v1/read")
        async def read(request: Request) -> int:
            body = await request.body()
            if body.startswith(b"wait"):
                await go.wait()
            return len(body)

        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:

            async def ask_for(body):
                return await client.post("/v1/read", content=body)

            first = asyncio.create_task(ask_for(b"wait" * 50))
            await asyncio.sleep(0.05)
            refused = await ask_for(b"a" * 51)
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            assert "may have 250 bytes together; try again soon" in refused.json()["error"]["message"]
            assert (await ask_for(b"a" * 50)).json() == 50
            go.set()
            assert (await first).json() == 200
            assert (await ask_for(b"a" * 250)).json() == 250
            assert (await ask_for(b"a" * 251)).status_code == 503

    asyncio.run(run())


def test_the_bodies_of_one_key_leave_room_for_others():
    async def run():
        go, lengths = asyncio.Event(), []

        async def app(scope, receive, send):
            lengths.append(len((await receive())["body"]))
            await go.wait()
            await send({"type": "http.response.start", "status": 200, "headers": []})

        bounded = LimitsMiddleware(app, max_requests=10, timeout_s=60, max_bytes=200, max_bytes_each=100)

        async def send_body(name, size):
            async def receive():
                return {"type": "http.request", "body": b"a" * size}

            answer = Answer()
            key = Key(name=name, sha256=hashlib.sha256(name.encode()).hexdigest())
            try:
                await bounded(scope_of() | {"state": {"key": key}}, receive, answer)
            except ApiError as error:
                return error
            return answer.status

        waiting = [asyncio.create_task(send_body("alice", size)) for size in (60, 40)]
        await asyncio.sleep(0)
        refused = await send_body("alice", 1)
        assert (refused.status, refused.headers["Retry-After"]) == (429, "1")
        waiting.append(asyncio.create_task(send_body("bob", 100)))
        await asyncio.sleep(0)
        go.set()
        assert await asyncio.gather(*waiting) == [200] * 3 and lengths == [60, 40, 100]
        assert await send_body("alice", 100) == 200 and not bounded._held_bytes_each

    asyncio.run(run())


def test_a_bound_that_lets_nothing_in_is_refused():
    with pytest.raises(InputError, match="max_held_bytes = 5 is less than max_body_bytes = 6"):
        ServeRecipe.parse({"fdm": "a", "idm": "b", "max_held_bytes": 5, "max_body_bytes": 6}, "test")


@pytest.mark.parametrize("given", [None, "mine", "a" * 512, "{}[]~!"])
def test_ids(given):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    headers = [] if given is None else [("x-request-id", given.encode())]
    (found,) = [value for name, value in ask(TraceMiddleware(app, adds_id=True), scope_of(headers=headers)).headers]
    assert found == given if given else len(found) == 36
    assert ask(TraceMiddleware(app, adds_id=False), scope_of(headers=headers)).headers == []


@pytest.mark.parametrize("wrong", [b"", b"a b", b"a" * 513, b"\xff", "é".encode(), b"a\tb"])
@pytest.mark.parametrize("middleware", [lambda app: TraceMiddleware(app, adds_id=True), HeaderFilterMiddleware])
def test_ids_that_are_none(wrong, middleware):
    answer = ask(middleware(None), scope_of(headers=[("x-request-id", wrong)]))
    assert answer.status == 400 and json.loads(answer.body)["error"]["param"] == "x-request-id"
    (found,) = [value for name, value in answer.headers if name == "x-request-id"]
    assert len(found) == 36


def test_what_nobody_expected_is_told_to_the_log_alone(caplog, kept):
    async def app(scope, receive, send):
        raise RuntimeError("a secret of the inside")

    answer = ask(TraceMiddleware(app, adds_id=True))
    assert answer.status == 500 and json.loads(answer.body) == ApiError.internal().body()
    assert "secret" not in answer.body.decode() and "a secret of the inside" in caplog.text
    assert "x-request-id" in dict(answer.headers)
    assert (metrics.REQUESTS, 1.0, {"endpoint": "none", "status": "500"}) in kept

    async def late(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("too late")

    with pytest.raises(RuntimeError, match="too late"):
        ask(TraceMiddleware(late, adds_id=True))


def test_a_client_that_left_is_counted_as_such(kept):
    async def run():
        slow = Slow()
        asking = asyncio.create_task(TraceMiddleware(slow, adds_id=True)(scope_of(), None, Answer()))
        await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert slow.stopped == 1

    asyncio.run(run())
    assert (metrics.REQUESTS, 1.0, {"endpoint": "none", "status": str(CLIENT_LEFT)}) in kept


def test_orders_to_the_proxy_are_removed_and_nothing_else():
    seen = []

    async def app(scope, receive, send):
        seen.extend(scope["headers"])

    orders = ["X-Request-Timeout-Seconds", "x-request-disconnect-disabled", "serve_multiplexed_model_id"]
    orders += ["Serve-Multiplexed-Model-Id", "x-session-id", "x_request_timeout_seconds"]
    kept = [("authorization", b"Bearer a"), ("x-request-id", b"mine"), ("x-stainless-timeout", b"600"), ("a", b"\xff")]
    scope = scope_of(headers=[(name, b"?1") for name in orders] + kept)
    asyncio.run(HeaderFilterMiddleware(app)(scope, None, None))
    assert seen == [(name.encode(), value) for name, value in kept]
    assert [middleware.cls for middleware in build_middlewares()] == [
        HeaderFilterMiddleware,
        ProxyPagesMiddleware,
        RetryMiddleware,
    ]


TRACEPARENT = ("traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")


@pytest.mark.parametrize(
    ("variable", "kept"), [("", []), ("1", [TRACEPARENT, ("tracestate", b"a=b"), ("Traceparent", b"odd")]), ("0", [])]
)
def test_a_client_names_its_trace_where_it_may(monkeypatch, variable, kept):
    monkeypatch.setenv(TRACEPARENT_VARIABLE, variable)
    seen = []

    async def app(scope, receive, send):
        seen.extend(scope["headers"])

    (built,) = [middleware for middleware in build_middlewares() if middleware.cls is HeaderFilterMiddleware]
    # Ray decodes the value of each: what is no text would be a 500.
    headers = [TRACEPARENT, ("tracestate", b"a=b"), ("traceparent", b"\xff"), ("Traceparent", b"odd")]
    asyncio.run(HeaderFilterMiddleware(app, **built.kwargs)(scope_of(headers=headers), None, None))
    assert seen == [(name.encode(), value) for name, value in kept]


@pytest.mark.parametrize("around", [build_middlewares(), []])
def test_a_proxy_tells_whether_it_has_the_middlewares(around):
    async def healthy(request):
        return PlainTextResponse("success")

    with served(Starlette(routes=[Route("/-/healthz", healthy)], middleware=around)) as url:
        assert has_middlewares("127.0.0.1", httpx2.URL(url).port) is bool(around)
    assert has_middlewares("127.0.0.1", httpx2.URL(url).port) is None


@pytest.mark.parametrize(
    "case",
    [
        ("/-/routes", "127.0.0.1", {}, 200),
        ("/-/routes", "::1", {}, 200),
        ("/-/routes", "::ffff:127.0.0.1", {}, 200),
        ("/-/routes", "10.0.0.7", {}, 401),
        ("/-/routes", "2001:db8::1", {}, 401),
        ("/-/routes", "", {}, 401),
        ("/-/routes", "testclient", {}, 401),
        ("/-/routes", "127.0.0.1", {"x-forwarded-for": b"10.0.0.7"}, 401),
        ("/-/routes", "127.0.0.1", {"Forwarded": b"for=10.0.0.7"}, 401),
        ("/wm/-/routes", "10.0.0.7", {}, 401),
        ("/-/anything", "10.0.0.7", {}, 401),
        ("/-/routes", "10.0.0.7", {"authorization": b"Bearer wm-alice"}, 200),
        ("/-/routes", "10.0.0.7", {"authorization": b"Bearer wm-mallory"}, 401),
        ("/-/healthz", "10.0.0.7", {}, 200),
        ("/health", "10.0.0.7", {}, 200),
    ],
)
def test_pages_of_rays_proxy_need_a_key_beyond_loopback(tmp_path, case):
    path, client, headers, status = case
    keys = tmp_path / "keys.toml"
    keys.write_text(f'[[keys]]\nname = "alice"\nsha256 = "{hashlib.sha256(b"wm-alice").hexdigest()}"\n')

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"routes"})

    for name, expected in ((str(keys), status), (None, 401 if "authorization" in headers else status)):
        set_environment(name, [])
        (middleware,) = [middleware for middleware in build_middlewares() if middleware.cls is ProxyPagesMiddleware]
        scope = scope_of(path, "GET", list(headers.items())) | {"client": (client, 1) if client else None}
        answer = ask(middleware.cls(app, **middleware.kwargs), scope)
        assert answer.status == expected
        assert expected == 200 or "www-authenticate" in dict(answer.headers)
    set_environment(None, [])


@pytest.mark.parametrize("name", [KEYS_VARIABLE, ORIGINS_VARIABLE])
def test_a_proxy_whose_settings_are_wrong_guards_all(monkeypatch, caplog, name):
    monkeypatch.setenv(name, "no/such/file")
    assert [middleware.cls for middleware in build_middlewares()] == [
        HeaderFilterMiddleware,
        ProxyPagesMiddleware,
        RetryMiddleware,
    ]
    assert build_middlewares()[1].kwargs == {"ring": None} and name in caplog.text


def test_websockets_and_the_lifespan_pass():
    seen = []

    async def app(scope, receive, send):
        seen.append(scope["type"])

    for kind in ("websocket", "lifespan"):
        around = (
            TraceMiddleware(app, adds_id=True),
            LimitsMiddleware(app, max_requests=1, timeout_s=1),
            HeaderFilterMiddleware(app),
            ProxyPagesMiddleware(app, None),
        )
        for middleware in (*around, RetryMiddleware(app)):
            asyncio.run(middleware({"type": kind, "headers": []}, None, None))
    assert seen == ["websocket"] * 5 + ["lifespan"] * 5


def test_every_page_of_the_app_is_one_and_nothing_that_works_is():
    modules = [import_module(f"serve_apps.routes.{module.name}") for module in iter_modules(routes.__path__)]
    found = [route for module in modules if hasattr(module, "router") for route in module.router.routes]
    assert {"/v1/images/edits", "/health", "/", "/playground/{name}"} <= {route.path for route in found}
    for route in found:
        for method in route.methods:
            assert is_page(scope_of(route.path, method)) == (not route.path.startswith("/v1/")), route.path
            assert route.path.startswith("/v1/") or method in ("GET", "HEAD"), "pages ask no model to work"
