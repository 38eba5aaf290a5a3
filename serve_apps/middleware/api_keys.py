"""Middleware that asks for an API key, and counts what each key does."""

import time
from collections.abc import Callable

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_apps import metrics
from serve_apps.http import error_response, is_page
from serve_apps.keys import Key, KeyRing
from serve_apps.middleware.allowance import Allowance
from serve_apps.middleware.leases import LeasedAllowance, Leases
from serve_apps.openai.errors import ApiError


class ApiKeyMiddleware:
    """Let requests with a key of a ring pass, within the key's limits; ``request.state.key`` is its entry.

    Args:
        app: What is wrapped.
        ring: The keys.
        clock: Returns seconds.
        names_keys: Whether metrics have the keys' names, rather than their :attr:`~serve_apps.keys.Key.label`.
        leases: This process's part of limits that several processes share; None: the limits are this process's own.
    """

    def __init__(
        self,
        app: ASGIApp,
        ring: KeyRing,
        clock: Callable[[], float] = time.monotonic,
        *,
        names_keys: bool = False,
        leases: Leases | None = None,
    ) -> None:
        self._app, self._ring, self._clock, self._names_keys = app, ring, clock, names_keys
        self._leases = leases
        self._allowances: dict[str, Allowance] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Pages hold nothing of anybody's: a browser reads them before it has a key.
        if scope["type"] != "http" or is_page(scope):
            await self._app(scope, receive, send)
            return
        key = find_key(scope, self._ring)
        if isinstance(key, ApiError):
            await error_response(key)(scope, receive, send)
            return
        # By the key's hash, not its name: a renewed key begins anew.
        allowance = self._allowance(key)
        error = await allowance.take()
        if error is not None:
            metrics.record(metrics.RATE_LIMITED, key=key.name if self._names_keys else key.label)
            await error_response(error)(scope, receive, send)
            return
        scope.setdefault("state", {})["key"] = key

        async def send_with_limits(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(allowance.headers())
            await send(message)

        try:
            await self._app(scope, receive, send_with_limits)
        # Also where the client left, or the app failed.
        finally:
            allowance.release()

    def _allowance(self, key: Key) -> Allowance | LeasedAllowance:
        """Return what is left to a key; a new allowance where its limits have changed."""
        if self._leases is not None:
            return self._leases.allowance(key)
        allowance = self._allowances.get(key.sha256)
        if allowance is None or allowance.key != key:
            allowance = self._allowances[key.sha256] = Allowance(key, self._clock)
        return allowance


def find_key(scope: Scope, ring: KeyRing | None) -> Key | ApiError:
    """Return the entry of a request's key, or the answer to a request without a known one.

    Args:
        scope: Of the request.
        ring: The keys; None: there are none, nobody is known.
    """
    # The same answer for an unknown key and for a server without keys.
    token = _token(scope)
    key = None if token is None or ring is None else ring.find(token)
    return _unauthorized(token) if key is None else key


def _token(scope: Scope) -> bytes | None:
    """Return the token of the one header ``Authorization: Bearer TOKEN``."""
    values = [value for name, value in scope["headers"] if name == b"authorization"]
    # Of two, a proxy and this server might each believe another one.
    if len(values) != 1:
        return None
    scheme, _, token = values[0].strip().partition(b" ")
    return bytes(token.strip()) or None if scheme.lower() == b"bearer" else None


def _unauthorized(token: bytes | None) -> ApiError:
    if token is None:
        message, code, challenge = "no API key is given: send it as `Authorization: Bearer KEY`", None, ""
    else:
        message, code, challenge = "incorrect API key provided", "invalid_api_key", ', error="invalid_token"'
    return ApiError(message, status=401, code=code, headers={"WWW-Authenticate": f'Bearer realm="wm"{challenge}'})
