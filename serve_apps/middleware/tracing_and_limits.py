"""Middleware around the app, in plain ASGI so that streams pass as they come: request ids, figures, bounds in number
and time."""

import asyncio
import logging
import math
import time
import uuid
from collections import Counter

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_apps import metrics
from serve_apps.http import error_response, find_request_id_error, is_page, request_id_of
from serve_apps.names import REPLICA_WAIT
from serve_apps.openai.errors import ApiError
from serve_apps.sse import error_event

logger = logging.getLogger("ray.serve")
# In place of the status of a request whose client left, as in nginx.
CLIENT_LEFT = 499


class TraceMiddleware:
    """Give every answer an ``x-request-id``, count and time it; report what nobody expected as 500.

    An id of the client's own is kept if it is printable ASCII without spaces, at most 512 characters, else refused, as
    OpenAI does.

    Args:
        app: What is wrapped; this is the outermost middleware but for CORS.
        adds_id: False behind Ray Serve's proxy, which adds the header to every answer by itself, and the id to the log
            lines of all replicas that work on the request.
    """

    def __init__(self, app: ASGIApp, *, adds_id: bool) -> None:
        self._app, self._adds_id = app, adds_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start_s, status = time.monotonic(), CLIENT_LEFT
        id_error = find_request_id_error(scope)
        request_id = (None if id_error else request_id_of(scope)) or str(uuid.uuid4())
        state = scope.setdefault("state", {})

        async def send_traced(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if self._adds_id:
                    MutableHeaders(scope=message)["x-request-id"] = request_id
                if REPLICA_WAIT in state:
                    MutableHeaders(scope=message)["x-wm-replica-wait-seconds"] = f"{state[REPLICA_WAIT]:.1f}"
            await send(message)

        try:
            await (self._app if id_error is None else error_response(id_error))(scope, receive, send_traced)
        except Exception as error:
            logger.exception("%s %.200s failed: %r", scope["method"], scope["path"], error)
            if status != CLIENT_LEFT:
                raise  # the answer has begun: the server ends the connection
            await error_response(ApiError.internal())(scope, receive, send_traced)
        finally:
            endpoint = _endpoint(scope)
            metrics.record(metrics.REQUESTS, endpoint=endpoint, status=str(status))
            metrics.record(metrics.REQUEST_SECONDS, time.monotonic() - start_s, endpoint=endpoint)


class LimitsMiddleware:
    """Bound requests in number, size and time: beyond it 503, 429 or 408, or an event ``error`` in a stream.

    What is given up is cancelled, in the replicas too. Pages are always answered.

    Args:
        app: What is wrapped.
        max_requests: At a time.
        timeout_s: Of a request.
        max_bytes: Of all bodies together.
        max_bytes_each: Of the bodies of one API key together: the others find room whatever it sends.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        max_requests: int,
        timeout_s: float,
        max_bytes: float = math.inf,
        max_bytes_each: float = math.inf,
    ) -> None:
        self._app, self._max_requests, self._timeout_s = app, max_requests, timeout_s
        self._max_bytes, self._max_bytes_each = max_bytes, max_bytes_each
        self._in_progress = self._held_bytes = 0
        self._held_bytes_each: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or is_page(scope):
            await self._app(scope, receive, send)
            return
        # 1. In number, before anything of it is read.
        if self._in_progress >= self._max_requests:
            error = _overloaded(f"{self._max_requests} requests are being answered or wait already")
            await error_response(error)(scope, receive, send)
            return
        own_bytes = 0
        key = scope.get("state", {}).get("key")
        owner = None if key is None else key.sha256

        # 2. In size, as it is read: many small chunks are as large as one.
        async def receive_counted() -> Message:
            nonlocal own_bytes
            message = await receive()
            size_bytes = len(message.get("body", b""))
            if self._held_bytes + size_bytes > self._max_bytes:
                raise _overloaded(f"the requests being answered may have {self._max_bytes:,} bytes together")
            if owner is not None:
                if self._held_bytes_each[owner] + size_bytes > self._max_bytes_each:
                    raise _too_much(f"the requests of this key may have {self._max_bytes_each:,} bytes together")
                self._held_bytes_each[owner] += size_bytes
            self._held_bytes += size_bytes
            own_bytes += size_bytes
            return message

        # 3. In time; whatever happens, what it held is given back.
        self._count(1)
        try:
            await self._in_time(scope, receive_counted, send)
        finally:
            self._count(-1)
            self._held_bytes -= own_bytes
            if owner is not None:
                self._held_bytes_each[owner] -= own_bytes
                if not self._held_bytes_each[owner]:
                    del self._held_bytes_each[owner]

    async def _in_time(self, scope: Scope, receive: Receive, send: Send) -> None:
        started: Message | None = None

        async def send_noting_start(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = message
            await send(message)

        try:
            # Cancelling the app cancels its calls to the replicas.
            async with asyncio.timeout(self._timeout_s) as limit:
                await self._app(scope, receive, send_noting_start)
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
            raise TimeoutError(error.message)  # an answer cut off in its middle must not look complete

    def _count(self, change: int) -> None:
        self._in_progress += change
        metrics.record(metrics.IN_PROGRESS, self._in_progress)


def _overloaded(why: str) -> ApiError:
    return ApiError.unavailable(f"{why}; try again soon", "overloaded")


def _too_much(why: str) -> ApiError:
    message = f"rate limit reached: {why}; try again in 1s"
    headers = {"Retry-After": "1"}
    return ApiError(message, status=429, kind="requests", code="rate_limit_exceeded", headers=headers)


def _endpoint(scope: Scope) -> str:
    """Return the path of the route, with its parameters' names in place of their values: there are few."""
    path = getattr(scope.get("route"), "path", None)
    return path if isinstance(path, str) else "none"
