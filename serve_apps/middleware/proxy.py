"""Middleware in Ray Serve's proxy, in front of all applications: ``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`` names
:func:`build_middlewares`. ``python -m serve_apps`` sets it for the session it starts; on a cluster it belongs into the
environment of every node, as ``cluster/Dockerfile`` has it.

The proxy obeys headers of any client: to wait for ever, to continue when the client has left, to use another model. It
also fails (500) on those that are no UTF-8. No untrusted client may choose either. It loses what a killed process was
asked: see :mod:`serve_apps.middleware.retry`.
"""

import http.client
import logging
import os
from collections.abc import Sequence
from ipaddress import ip_address

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_apps.http import error_response, find_request_id_error
from serve_apps.keys import KeyRing
from serve_apps.middleware.api_keys import find_key
from serve_apps.middleware.cors import check_origins, cors_middlewares
from serve_apps.middleware.retry import RetryMiddleware
from serve_apps.openai.errors import ApiError
from wm.errors import InputError

logger = logging.getLogger("ray.serve")

IMPORT_PATH = "serve_apps.middleware.proxy:build_middlewares"
# The key file and the origins (with commas between them) of a server, for what the proxy answers by itself. Set by
# `python -m serve_apps` for its own session.
KEYS_VARIABLE, ORIGINS_VARIABLE = "WM_SERVE_KEYS", "WM_SERVE_CORS_ORIGINS"
PROBE = "/-/healthz"
FORWARDED = ("forwarded", "via", "x-forwarded-for", "x-real-ip")
# At 1 a client may say of which trace its requests are part, and that they are traced: for a server behind a gateway.
TRACEPARENT_VARIABLE = "WM_SERVE_TRACEPARENT"
TRACE_HEADERS = (b"traceparent", b"tracestate")
# With - or _ between the words.
OBEYED_HEADERS = (
    b"x-request-timeout-seconds",
    b"x-request-disconnect-disabled",
    b"serve-multiplexed-model-id",
    b"x-session-id",
)


class HeaderFilterMiddleware:
    """Remove the headers that the proxy obeys, and refuse an ``x-request-id`` that is none.

    Args:
        app: What is wrapped.
        keeps_trace: Whether a client's ``traceparent`` is kept. One that is not ASCII would fail in Ray, and none is.
    """

    def __init__(self, app: ASGIApp, *, keeps_trace: bool = False) -> None:
        self._app, self._keeps_trace = app, keeps_trace

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            headers = [
                (name, value)
                for name, value in scope["headers"]
                if not _is_obeyed(name)
                and (name.lower() not in TRACE_HEADERS or (self._keeps_trace and value.isascii()))
            ]
            scope = {**scope, "headers": headers}
        error = find_request_id_error(scope) if scope["type"] == "http" else None
        await (self._app if error is None else error_response(error))(scope, receive, send)


def _is_obeyed(name: bytes) -> bool:
    return name.lower().replace(b"_", b"-") in OBEYED_HEADERS or not name.isascii()


class ProxyPagesMiddleware:
    """Ask for a key before the pages of Ray's proxy itself, such as ``/-/routes``, which names all applications.

    A client on this machine needs none, unless something forwarded the request. :data:`PROBE` says nothing but that
    the proxy lives, and load balancers ask for it without a key.
    """

    def __init__(self, app: ASGIApp, ring: KeyRing | None) -> None:
        self._app, self._ring = app, ring

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and "/-/" in scope["path"] and not scope["path"].endswith(PROBE):
            key = None if _is_local(scope) else find_key(scope, self._ring)
            if isinstance(key, ApiError):
                await error_response(key)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _is_local(scope: Scope) -> bool:
    """Return whether a request comes from this machine, and did not come to it through a proxy."""
    # A proxy on this machine speaks for clients anywhere.
    if any(name.decode("latin-1").lower() in FORWARDED for name, _ in scope["headers"]):
        return False
    try:
        address = ip_address((scope.get("client") or ("",))[0])
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def set_environment(keys: str | None, origins: Sequence[str]) -> None:
    """Set for the proxy of a session that starts after this what :func:`build_middlewares` reads there.

    Args:
        keys: Path of the key file, if there is one.
        origins: Other web pages that may ask.
    """
    for name, value in ((KEYS_VARIABLE, keys), (ORIGINS_VARIABLE, ",".join(origins))):
        if value:
            os.environ[name] = value
        else:
            os.environ.pop(name, None)


def build_middlewares() -> list[Middleware]:
    """Build the proxy's middlewares, outermost first."""
    return [
        *cors_middlewares(_read_origins()),
        Middleware(HeaderFilterMiddleware, keeps_trace=os.environ.get(TRACEPARENT_VARIABLE) == "1"),
        Middleware(ProxyPagesMiddleware, ring=_read_ring()),
        Middleware(RetryMiddleware),
    ]


def _read_ring() -> KeyRing | None:
    """Read the keys, if the environment names a file of them. Without it nobody beyond this machine passes."""
    path = os.environ.get(KEYS_VARIABLE)
    # The proxy must start, whatever is wrong with the file: then its pages are for this machine alone.
    try:
        return KeyRing(path) if path else None
    except (InputError, OSError) as error:
        logger.error("%s: %s; the proxy's own pages are for this machine alone", KEYS_VARIABLE, error)
        return None


def _read_origins() -> list[str]:
    text = os.environ.get(ORIGINS_VARIABLE, "")
    origins = [origin.strip() for origin in text.split(",") if origin.strip()]
    try:
        check_origins(origins)
    except ValueError as error:
        logger.error("%s: %s; answers of the proxy itself are for pages of no other origin", ORIGINS_VARIABLE, error)
        return []
    return origins


def has_middlewares(host: str, port: int) -> bool | None:
    """Return whether the proxy that listens there has our middleware; None if nobody answers.

    Args:
        host: Address that the proxy was given to listen on.
        port: TCP port.
    """
    # Ours refuses a malformed id even of what Ray's proxy answers by itself.
    connection = http.client.HTTPConnection({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port, timeout=10)
    try:
        connection.request("GET", "/-/healthz", headers={"x-request-id": "no id"})
        return connection.getresponse().status == 400
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
