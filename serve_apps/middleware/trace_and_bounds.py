"""Middleware around the app, in plain ASGI so that streams pass as they come: request ids, figures, bounds in number
and time."""

import asyncio
import logging
import math
import time
import uuid
from collections import Counter
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_apps import metrics
from serve_apps.http import error_response
from serve_apps.ids import given_id, wrong_id
from serve_apps.middleware.api_keys_guard import is_page
from serve_apps.openai import ApiError
from serve_apps.sse import error_event

logger = logging.getLogger("ray.serve")
GONE = 499
"""Stands for the status of a request whose client left, as in nginx."""


class Traced:
    """Outermost: every answer has an ``x-request-id``, is counted and timed; what nobody expected is reported as 500.

    An id of the client's own is kept if it is printable ASCII without spaces, at most 512 characters, else refused, as
    OpenAI does. ``adds_id``: False behind Ray Serve's proxy, which adds the header to every answer by itself, and the
    id to the log lines of all replicas that work on the request.
    """

    def __init__(self, app: ASGIApp, *, adds_id: bool) -> None:
        self._app, self._adds_id = app, adds_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began_s, status = time.monotonic(), GONE
        wrong = wrong_id(scope)
        name = (None if wrong else given_id(scope)) or str(uuid.uuid4())

        async def tell(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if self._adds_id:
                    MutableHeaders(scope=message)["x-request-id"] = name
            await send(message)

        try:
            await (self._app if wrong is None else error_response(wrong))(scope, receive, tell)
        except Exception as error:
            logger.exception("%s %.200s failed: %r", scope["method"], scope["path"], error)
            if status != GONE:
                raise  # the answer has begun: the server ends the connection
            await error_response(ApiError.internal())(scope, receive, tell)
        finally:
            endpoint = _endpoint(scope)
            metrics.record(metrics.REQUESTS, endpoint=endpoint, status=str(status))
            metrics.record(metrics.REQUEST_SECONDS, time.monotonic() - began_s, endpoint=endpoint)


class Bounded:
    """At most ``most`` requests at a time, bodies of at most ``most_bytes`` together, each within ``timeout_s``: else
    503, or 408, or an event ``error`` where a stream has begun. What is given up is cancelled, in the replicas too.
    Pages are always answered. ``most_bytes_each``: of the bodies of one API key together, else 429: the others find
    room whatever it sends."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        most: int,
        timeout_s: float,
        most_bytes: float = math.inf,
        most_bytes_each: float = math.inf,
    ) -> None:
        self._app, self._most, self._timeout_s = app, most, timeout_s
        self._most_bytes, self._most_bytes_each = most_bytes, most_bytes_each
        self._in_progress = self._held_bytes = 0
        self._held_bytes_each: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or is_page(scope):
            await self._app(scope, receive, send)
            return
        if self._in_progress >= self._most:
            error = _overloaded(f"{self._most} requests are being answered or wait already")
            await error_response(error)(scope, receive, send)
            return
        mine_bytes = 0
        key = scope.get("state", {}).get("key")
        owner = None if key is None else key.sha256

        async def held() -> Message:
            nonlocal mine_bytes
            message = await receive()
            size_bytes = len(message.get("body", b""))
            if self._held_bytes + size_bytes > self._most_bytes:
                raise _overloaded(f"the requests being answered may have {self._most_bytes:,} bytes together")
            if owner is not None:
                if self._held_bytes_each[owner] + size_bytes > self._most_bytes_each:
                    raise _too_much(f"the requests of this key may have {self._most_bytes_each:,} bytes together")
                self._held_bytes_each[owner] += size_bytes
            self._held_bytes += size_bytes
            mine_bytes += size_bytes
            return message

        self._count(1)
        try:
            await self._in_time(scope, held, send)
        finally:
            self._count(-1)
            self._held_bytes -= mine_bytes
            if owner is not None:
                self._held_bytes_each[owner] -= mine_bytes
                if not self._held_bytes_each[owner]:
                    del self._held_bytes_each[owner]

    async def _in_time(self, scope: Scope, receive: Receive, send: Send) -> None:
        started: Message | None = None

        async def tell(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = message
            await send(message)

        try:
            async with asyncio.timeout(self._timeout_s) as limit:
                await self._app(scope, receive, tell)
        except TimeoutError:
            if not limit.expired():
                raise
            await self._give_up(started, scope, receive, send)

    async def _give_up(self, started: Message | None, scope: Scope, receive: Receive, send: Send) -> None:
        # The same request would take as long again: OpenAI's clients do not repeat it by themselves then.
        error = ApiError(
            f"the request took more than {self._timeout_s:g} s",
            status=408,
            kind="server_error",
            code="timeout",
            headers={"x-should-retry": "false"},
        )
        if started is None:
            await error_response(error)(scope, receive, send)
        elif Headers(raw=started["headers"]).get("content-type", "").startswith("text/event-stream"):
            metrics.record(metrics.STREAM_ERRORS, code="timeout")
            await send({"type": "http.response.body", "body": error_event(error).encode()})
        else:
            raise TimeoutError(error.message)  # an answer cut off in its middle is not ended as if it were whole

    def _count(self, change: int) -> None:
        self._in_progress += change
        metrics.record(metrics.IN_PROGRESS, self._in_progress)


def _overloaded(why: str) -> ApiError:
    return ApiError.unavailable(f"{why}; try again soon", "overloaded")


def _too_much(why: str) -> ApiError:
    message = f"rate limit reached: {why}; try again in 1s"
    headers = {"Retry-After": "1"}
    return ApiError(message, status=429, kind="requests", code="rate_limit_exceeded", headers=headers)


def _endpoint(scope: dict[str, Any] | Scope) -> str:
    """Return the path of the route, with its parameters' names in place of their values: there are few."""
    found = getattr(scope.get("route"), "path", None)
    return found if isinstance(found, str) else "none"
