"""Layers in Ray Serve's proxy, in front of all applications: ``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`` names
:func:`layers`. ``python -m serve_apps`` sets it for the session it starts; on a cluster it belongs into the environment
of every node, as ``cluster/Dockerfile`` has it.

The proxy takes orders from headers of whoever asks: to wait for ever, to go on working when the client has left, to
use another model. It also fails (500) on those that are no UTF-8. Neither is a stranger's to choose. And it loses what
a killed process was asked: see :mod:`serve_apps.repeat`.
"""

import http.client

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_apps.http import error_response
from serve_apps.ids import wrong_id
from serve_apps.repeat import Repeated

IMPORT_PATH = "serve_apps.proxy:layers"
ORDERS = (
    b"x-request-timeout-seconds",
    b"x-request-disconnect-disabled",
    b"serve-multiplexed-model-id",
    b"x-session-id",
)
"""With - or _ between the words."""


class WithoutOrders:
    """Removes the headers that are orders to the proxy, and refuses an ``x-request-id`` that is none."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            headers = [(name, value) for name, value in scope["headers"] if not _is_order(name)]
            scope = {**scope, "headers": headers}
        error = wrong_id(scope) if scope["type"] == "http" else None
        await (self._app if error is None else error_response(error))(scope, receive, send)


def _is_order(name: bytes) -> bool:
    return name.lower().replace(b"_", b"-") in ORDERS or not name.isascii()


def layers() -> list[Middleware]:
    """What the proxy puts around itself."""
    return [Middleware(WithoutOrders), Middleware(Repeated)]


def has_layers(host: str, port: int) -> bool | None:
    """Whether the proxy that listens there has them: they refuse an ``x-request-id`` that is none even of what Ray's
    proxy answers by itself. None: nobody answers."""
    connection = http.client.HTTPConnection({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port, timeout=10)
    try:
        connection.request("GET", "/-/healthz", headers={"x-request-id": "no id"})
        return connection.getresponse().status == 400
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
