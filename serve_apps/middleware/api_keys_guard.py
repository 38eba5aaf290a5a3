"""Ask for a key, and count what each key does: a middleware around the app."""

import math
import time
from collections.abc import Callable

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_apps import metrics
from serve_apps.http import error_response
from serve_apps.keys import Key, KeyRing
from serve_apps.openai import ApiError

PAGES = ("/", "/health", "/docs", "/openapi.json", "/playground")
BELOW = ("/playground/", "/docs/files/")
"""Read without a key, with what lies below these: they tell nothing of anybody and ask no model to work."""


def is_page(scope: Scope) -> bool:
    """Return whether a request reads one of :data:`PAGES`; whatever else there is is guarded and limited."""
    path: str = scope["path"]
    root = scope.get("root_path", "").rstrip("/")
    if root and (path == root or path.startswith(root + "/")):
        path = path.removeprefix(root) or "/"
    return scope["method"] in ("GET", "HEAD") and (path in PAGES or path.startswith(BELOW))


class Allowance:
    """What a key has left: a bucket of requests that fills up within a minute, and the requests being answered."""

    def __init__(self, key: Key, clock: Callable[[], float]) -> None:
        self.key, self._clock = key, clock
        self._filled, self._at_s = float(key.requests_per_minute), clock()
        self.in_progress = 0

    def take(self) -> ApiError | None:
        """Count a request in; or the answer that it gets instead."""
        key, now_s = self.key, self._clock()
        self._filled = min(key.requests_per_minute, self._filled + (now_s - self._at_s) * key.requests_per_minute / 60)
        self._at_s = now_s
        if self.in_progress >= key.concurrent_requests:
            return self._refused(f"{key.concurrent_requests} requests of this key are being answered", 1.0)
        if self._filled < 1:
            wait_s = (1 - self._filled) * 60 / key.requests_per_minute
            return self._refused(f"{key.requests_per_minute} requests a minute are allowed to this key", wait_s)
        self._filled -= 1
        self.in_progress += 1
        return None

    def headers(self) -> dict[str, str]:
        """OpenAI's, of requests a minute."""
        limit = self.key.requests_per_minute
        return {
            "x-ratelimit-limit-requests": str(limit),
            "x-ratelimit-remaining-requests": str(int(self._filled)),
            "x-ratelimit-reset-requests": duration((limit - self._filled) * 60 / limit),
        }

    def _refused(self, why: str, wait_s: float) -> ApiError:
        headers = {"Retry-After": str(max(1, math.ceil(wait_s)))} | self.headers()
        message = f"rate limit reached: {why}; try again in {duration(wait_s)}"
        return ApiError(message, status=429, kind="requests", code="rate_limit_exceeded", headers=headers)


class Guarded:
    """Lets requests with a key of ``ring`` pass, within the key's limits; ``request.state.key`` is its entry.

    ``names_keys``: whether metrics have the keys' names, rather than their :attr:`~serve_apps.keys.Key.label`.
    """

    def __init__(
        self,
        app: ASGIApp,
        ring: KeyRing,
        clock: Callable[[], float] = time.monotonic,
        *,
        names_keys: bool = False,
    ) -> None:
        self._app, self._ring, self._clock, self._names_keys = app, ring, clock, names_keys
        self._allowances: dict[str, Allowance] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or is_page(scope):
            await self._app(scope, receive, send)
            return
        key = find_key(scope, self._ring)
        if isinstance(key, ApiError):
            await error_response(key)(scope, receive, send)
            return
        allowance = self._allowance(key)
        refused = allowance.take()
        if refused is not None:
            metrics.record(metrics.RATE_LIMITED, key=key.name if self._names_keys else key.label)
            await error_response(refused)(scope, receive, send)
            return
        scope.setdefault("state", {})["key"] = key

        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(allowance.headers())
            await send(message)

        try:
            await self._app(scope, receive, tell)
        finally:
            allowance.in_progress -= 1

    def _allowance(self, key: Key) -> Allowance:
        """Return what is left to a key; anew where its limits are not those it had."""
        found = self._allowances.get(key.sha256)
        if found is None or found.key != key:
            found = self._allowances[key.sha256] = Allowance(key, self._clock)
        return found


def find_key(scope: Scope, ring: KeyRing | None) -> Key | ApiError:
    """Return the entry of a request's key, or the answer to a request without a known one."""
    token = _token(scope)
    key = None if token is None or ring is None else ring.find(token)
    return _who_are_you(token) if key is None else key


def _token(scope: Scope) -> bytes | None:
    """Of the one header ``Authorization: Bearer TOKEN``."""
    given = [value for name, value in scope["headers"] if name == b"authorization"]
    if len(given) != 1:
        return None
    scheme, _, token = given[0].strip().partition(b" ")
    return bytes(token.strip()) or None if scheme.lower() == b"bearer" else None


def _who_are_you(token: bytes | None) -> ApiError:
    if token is None:
        message, code, challenge = "no API key is given: send it as `Authorization: Bearer KEY`", None, ""
    else:
        message, code, challenge = "incorrect API key provided", "invalid_api_key", ', error="invalid_token"'
    return ApiError(message, status=401, code=code, headers={"WWW-Authenticate": f'Bearer realm="wm"{challenge}'})


def duration(seconds: float) -> str:
    """As OpenAI's headers have it: 120ms, 1s, 6m0s."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    whole = math.ceil(seconds)
    return f"{whole // 60}m{whole % 60}s" if whole >= 60 else f"{whole}s"
