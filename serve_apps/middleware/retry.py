"""Middleware of Ray Serve's proxy that asks again where the process that speaks HTTP died before it answered.

Ray Serve's proxy repeats nothing: a request in a killed replica is lost. Calls between our own deployments are repeated
in ``serve_apps.calls``; this is the hop before them. Every request may be asked twice: an answer depends on what is
asked and on its seed alone.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_apps.http import error_response
from serve_apps.openai.errors import ApiError

logger = logging.getLogger("ray.serve")
MAX_REPEATS = 3
# Before the first repeat, doubled for each one more: Ray Serve finds out meanwhile that a process is no more.
WAIT_S = 0.1
# Bodies kept in case they are needed again, of all requests in one proxy together. A request beyond is asked once.
MAX_HELD_BYTES = 256 * 2**20


class RetryMiddleware:
    """Ask the app again when it ended without an answer, with the body that was received.

    The head of an answer is held back until the first part of its body is there, so that an answer in one part is
    complete or not begun. A stream that has begun is not repeated: the client has read some of it. Neither is what a
    client asked that left.

    Args:
        app: What is wrapped.
        max_repeats: How often it is asked again.
        wait_s: Before the first repeat; doubled for each further one.
        max_held_bytes: Of the bodies of all requests together that are kept; a request beyond is asked once.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        max_repeats: int = MAX_REPEATS,
        wait_s: float = WAIT_S,
        max_held_bytes: int = MAX_HELD_BYTES,
    ) -> None:
        self._app, self._max_repeats, self._wait_s = app, max_repeats, wait_s
        self.free_bytes = max_held_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _Body(receive, self)
        answer = _Answer(send, body.forget)
        try:
            # Each time the app sees the request as if it had just come.
            for repeat in range(self._max_repeats + 1):
                if repeat:
                    logger.warning("%s %.200s: no answer; asking another process", scope["method"], scope["path"])
                    await asyncio.sleep(self._wait_s * 2 ** (repeat - 1))
                await self._app(dict(scope), body.receive, answer.send)
                if answer.begun or not body.rewind():
                    break
                answer.head = None
        finally:
            body.forget()
        # All of them died: the client hears so, in OpenAI's form.
        if not answer.begun:
            error = ApiError.unavailable("the processes that were asked died; try again", "replica_died")
            await error_response(error)(scope, receive, send)


class _Answer:
    """Pass an answer on, from the first part of its body."""

    def __init__(self, send: Send, on_begin: Callable[[], None]) -> None:
        self._send, self._on_begin = send, on_begin
        self.head: Message | None = None
        self.begun = False

    async def send(self, message: Message) -> None:
        # A head alone is no answer: its process may die before the body.
        if message["type"] == "http.response.start":
            self.head = message
            return
        if not self.begun and self.head is not None:
            self.begun = True
            self._on_begin()
            await self._send(self.head)
        await self._send(message)


class _Body:
    """What a client sends, kept until it cannot be needed again."""

    def __init__(self, receive: Receive, owner: RetryMiddleware) -> None:
        self._receive, self._owner = receive, owner
        self._read: list[Message] = []
        self._ahead: deque[Message] = deque()
        self._held_bytes = 0
        self._is_complete = True
        """Nothing that was received is missing, and the client waits."""

    async def receive(self) -> Message:
        is_repeated = bool(self._ahead)
        message = self._ahead.popleft() if is_repeated else await self._receive()
        if not is_repeated and self._is_complete and not self._hold(message):
            self.forget()
        if self._is_complete:
            self._read.append(message)
        return message

    def rewind(self) -> bool:
        """Return whether it can be read once more, from its beginning."""
        self._ahead.extendleft(reversed(self._read))
        self._read.clear()
        return self._is_complete

    def forget(self) -> None:
        """Keep nothing any more; what was rewound and not read again can still be read."""
        self._is_complete = False
        self._read.clear()
        self._owner.free_bytes += self._held_bytes
        self._held_bytes = 0

    def _hold(self, message: Message) -> bool:
        size_bytes = len(message.get("body", b""))
        if message["type"] != "http.request" or size_bytes > self._owner.free_bytes:
            return False
        self._owner.free_bytes -= size_bytes
        self._held_bytes += size_bytes
        return True
