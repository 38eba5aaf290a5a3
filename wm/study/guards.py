"""Guard the server of a study, in plain ASGI: headers that keep a page to itself, bodies of bounded size, names of this
machine alone where it listens on loopback.

Not known here: studies.
"""

import asyncio
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from wm.study.access import is_loopback

MAX_BODY_BYTES: Final = 16 * 1024
"""A vote has two hundred bytes."""

BODY_TIMEOUT_S: Final = 20.0

_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",  # no text becomes markup or a script, even by mistake
    )
)
HEADERS: Final = {
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Robots-Tag": "noindex, nofollow",
}


def error_response(message: str, code: str, status: int) -> JSONResponse:
    """Build the answer to a request that is refused.

    Args:
        message: One sentence for the page.
        code: The reason for programs.
        status: Of HTTP.
    """
    return JSONResponse({"error": {"message": message, "code": code}}, status, headers={"Cache-Control": "no-store"})


class HeadersMiddleware:
    """Add the headers to every answer, errors included.

    Args:
        app: What is wrapped.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Set, not added: a header that is there twice may be read either way.
        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self._app(scope, receive, send_guarded)


class HostMiddleware:
    """Answer only to names of this machine: a page elsewhere whose name is made to lead here (DNS rebinding) is not
    answered.

    Args:
        app: What is wrapped.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not _names_this_machine(Headers(scope=scope).get("host", "")):
            response = error_response("This study is open on its own machine alone.", "host", 421)
            await response(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _names_this_machine(host: str) -> bool:
    # The port is not looked at: a tunnel may have another one.
    try:
        return is_loopback(urlsplit(f"//{host}").hostname or "")
    except ValueError:  # brackets without an address in them
        return False


class BodyMiddleware:
    """Refuse bodies of more than :data:`MAX_BODY_BYTES`, whatever length they claim to have.

    Args:
        app: What is wrapped.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # 1. By what it claims, before a byte is read.
        length = Headers(scope=scope).get("content-length", "0")
        if not length.isdecimal() or int(length[:12]) > MAX_BODY_BYTES:
            await _too_large()(scope, receive, send)
            return
        if scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        # 2. By what comes: in chunks a body claims no length. All of it is read here, as it is small.
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                body = await _read_body(receive)
        except TimeoutError:
            await error_response("The request took too long to arrive.", "slow", 408)(scope, receive, send)
            return
        if len(body) > MAX_BODY_BYTES:
            await _too_large()(scope, receive, send)
            return
        # 3. Given again to the application, which reads it as any other.
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_again() -> Message:
            return messages.pop() if messages else await receive()

        await self._app(scope, receive_again, send)


async def _read_body(receive: Receive) -> bytes:
    """Read a body up to the first chunk beyond the bound; of a client that has left, what it sent."""
    body, more = b"", True
    while more and len(body) <= MAX_BODY_BYTES:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


def _too_large() -> JSONResponse:
    message = f"Nothing was saved: the request is larger than {MAX_BODY_BYTES // 1024} kB, which no choice is."
    return error_response(message, "too_large", 413)
