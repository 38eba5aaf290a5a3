"""The middleware of the proxy that asks again: plain ASGI apps stand for processes that die."""

import asyncio
import json

import pytest

from serve_apps.middleware.retry import RetryMiddleware

SCOPE = {"type": "http", "method": "POST", "path": "/v1/images/edits", "headers": []}
PIECES = [b"one ", b"two ", b"three"]


class Client:
    """Sends ``pieces``, then waits, or leaves; keeps what it is answered."""

    def __init__(self, pieces=PIECES, leaves=False):
        self.to_send = [
            {"type": "http.request", "body": piece, "more_body": place + 1 < len(pieces)}
            for place, piece in enumerate(pieces)
        ]
        if leaves:
            self.to_send.append({"type": "http.disconnect"})
        self.answer = []

    async def receive(self):
        if not self.to_send:
            await asyncio.Event().wait()
        return self.to_send.pop(0)

    async def send(self, message):
        self.answer.append(message)

    @property
    def status(self):
        return self.answer[0]["status"]

    @property
    def body(self):
        return b"".join(message.get("body", b"") for message in self.answer)


class Processes:
    """Each reads so many pieces of the body and dies; the last answers with all of it. As Ray Serve's proxy does, a
    process that dies ends without a message."""

    def __init__(self, *read_before_death, says=()):
        self.read_before_death, self.says, self.asked, self.scopes = list(read_before_death), list(says), 0, []

    async def __call__(self, scope, receive, send):
        self.asked += 1
        self.scopes.append(dict(scope))
        scope["path"] = "changed by whoever was asked"
        if self.read_before_death:
            for _ in range(self.read_before_death.pop(0)):
                await receive()
            for message in self.says:
                await send(message)
            return
        found = b""
        while True:
            message = await receive()
            found += message["body"]
            if not message["more_body"]:
                break
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": found[:4], "more_body": True})
        await send({"type": "http.response.body", "body": found[4:]})


def ask(app, client, **settings):
    """The middleware, after the request."""
    middleware = RetryMiddleware(app, wait_s=0.001, **settings)
    before = middleware.free_bytes
    asyncio.run(middleware(dict(SCOPE), client.receive, client.send))
    assert middleware.free_bytes == before, "capacity that is not given back"
    return middleware


@pytest.mark.parametrize("deaths", [(), (0,), (1,), (3,), (2, 0, 1), (3, 1, 3)])
def test_the_next_process_reads_the_body_from_its_beginning(deaths):
    app, client = Processes(*deaths), Client()
    ask(app, client)
    assert app.asked == len(deaths) + 1 and app.scopes == [SCOPE] * app.asked
    assert client.status == 200 and client.body == b"one two three"
    assert [message["type"] for message in client.answer] == ["http.response.start"] + ["http.response.body"] * 2


def test_a_head_without_a_body_is_no_answer():
    app, client = Processes(3, says=[{"type": "http.response.start", "status": 201, "headers": []}]), Client()
    ask(app, client)
    assert app.asked == 2 and client.status == 200


def test_a_stream_that_has_begun_is_not_repeated():
    said = [
        {"type": "http.response.start", "status": 200, "headers": []},
        {"type": "http.response.body", "body": b"event", "more_body": True},
    ]
    app, client = Processes(3, says=said), Client()
    ask(app, client)
    assert app.asked == 1 and client.answer == said


def test_an_early_answer_leaves_the_rest_of_a_body_to_be_read():
    seen = []

    async def app(scope, receive, send):
        seen.append([(await receive())["body"] for _ in range(2)])
        if len(seen) == 2:
            await send({"type": "http.response.start", "status": 413, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            seen.append((await receive())["body"])

    client = Client()
    ask(app, client)
    assert seen == [PIECES[:2], PIECES[:2], PIECES[2]] and client.status == 413


def test_who_left_is_not_asked_for():
    app = Processes(4)
    ask(app, Client(leaves=True))
    assert app.asked == 1


@pytest.mark.parametrize("deaths", [(0, 0, 0, 0), (3, 3, 3, 3)])
def test_after_so_many_deaths_the_client_is_told(deaths):
    app, client = Processes(*deaths), Client()
    ask(app, client)
    assert app.asked == 4 and client.status == 503
    assert json.loads(client.body)["error"]["code"] == "replica_died"
    assert (b"retry-after", b"1") in client.answer[0]["headers"]


@pytest.mark.parametrize(("max_held_bytes", "asked"), [(13, 2), (12, 1), (3, 1)])
def test_a_body_beyond_the_room_is_asked_once(max_held_bytes, asked):
    app, client = Processes(3), Client()
    ask(app, client, max_held_bytes=max_held_bytes)
    assert app.asked == asked and client.status == (200 if asked == 2 else 503)


def test_a_large_body_passes_whole_though_it_cannot_be_kept():
    client = Client()
    ask(Processes(), client, max_held_bytes=5)
    assert client.body == b"one two three"


def test_room_is_shared_by_all_and_given_back():
    async def run():
        gate, working = asyncio.Event(), asyncio.Event()

        async def app(scope, receive, send):
            while (await receive())["more_body"]:
                pass
            if scope["path"] == "first":
                working.set()
                await gate.wait()
            asked.append(scope["path"])

        middleware = RetryMiddleware(app, wait_s=0.001, max_repeats=1, max_held_bytes=20)
        asked = []
        first, second, third = Client(), Client(), Client()
        slow = asyncio.create_task(middleware({**SCOPE, "path": "first"}, first.receive, first.send))
        await working.wait()
        await middleware({**SCOPE, "path": "second"}, second.receive, second.send)
        assert asked == ["second"], "13 bytes of 20 are held: there is no room for as many again"
        slow.cancel()
        with pytest.raises(asyncio.CancelledError):
            await slow
        await middleware({**SCOPE, "path": "third"}, third.receive, third.send)
        assert asked == ["second", "third", "third"]

    asyncio.run(run())
