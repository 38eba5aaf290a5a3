"""Stand between a client and an object store, and spoil some of its requests: 503, lost replies, cut and slow bodies.

Not known here: what is stored. S3 and GCS are told apart by their paths only to word an error as each of them does.
"""

import http.client
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

FaultKind = Literal["status", "lose_request", "lose_reply", "cut_body", "slow_body", "stall"]
"""status: an error instead of the reply. lose_request: the connection ends before the store has seen the request.
lose_reply: it ends when the store has done what was asked. cut_body: it ends within the reply's body. slow_body: the
body comes in pieces. stall: no answer until :meth:`FaultyProxy.heal`."""

_CODES = {
    301: ("PermanentRedirect", "The bucket you are attempting to access must be addressed using another endpoint."),
    400: ("ExpiredToken", "The provided token has expired."),
    401: ("Unauthorized", "Invalid Credentials"),
    403: ("AccessDenied", "Access Denied"),
    404: ("NoSuchBucket", "The specified bucket does not exist"),
    503: ("SlowDown", "Please reduce your request rate."),
}
_PIECES = 8


@dataclass
class Fault:
    """What happens to requests of some kind."""

    kind: FaultKind
    method: str = ""
    """HTTP method; empty: any."""
    part: str = ""
    """Text that the path with its query holds; empty: any."""
    count: int = 1 << 30
    """So many requests, those that come first."""
    status: int = 503
    after_bytes: int = 100
    """Of the body, which is cut there."""
    pause_s: float = 0.02
    """Between two pieces of a slow body."""

    def matches(self, method: str, path: str) -> bool:
        """Return whether a request is spoiled."""
        return self.count > 0 and self.method in ("", method) and self.part in path


@dataclass
class FaultyProxy:
    """A proxy; requests pass unless :attr:`faults` has something for them."""

    upstream: str
    """HOST:PORT of the store."""
    address: str = ""
    """Its own."""
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    """Method and path of everything that was asked."""
    healed: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Condition = field(default_factory=threading.Condition)

    def spoil(self, kind: FaultKind, **settings: object) -> Fault:
        """Add a fault with these fields of :class:`Fault`; returns it, its ``count`` being what is left."""
        fault = Fault(kind, **settings)  # type: ignore[arg-type]
        self.healed.clear()
        with self._lock:
            self.faults.append(fault)
        return fault

    def heal(self) -> None:
        """Remove all faults, and let go of requests that stall."""
        with self._lock:
            self.faults.clear()
        self.healed.set()

    def list_requests(self, method: str, part: str = "") -> list[str]:
        """List the paths that were asked for with a method."""
        return [path for name, path in self.requests if name == method and part in path]

    def wait_for(self, methods: Sequence[str], part: str = "", limit_s: float = 60.0) -> None:
        """Wait until something was asked for."""
        with self._lock:
            assert self._lock.wait_for(lambda: any(self.list_requests(method, part) for method in methods), limit_s), (
                f"no {methods} of {part}"
            )

    def take_fault(self, method: str, path: str) -> Fault | None:
        """Note a request; returns the fault that it meets."""
        with self._lock:
            self.requests.append((method, path))
            self._lock.notify_all()
            fault = next((fault for fault in self.faults if fault.matches(method, path)), None)
            if fault is not None:
                fault.count -= 1
            return fault


@contextmanager
def serve_proxy(upstream: str) -> Iterator[FaultyProxy]:
    """Run a proxy in front of a server on the loopback.

    Args:
        upstream: HOST:PORT of the server.

    Yields:
        The proxy, which listens on :attr:`FaultyProxy.address`.
    """
    proxy = FaultyProxy(upstream)
    handler = type("Handler", (_Handler,), {"proxy": proxy})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    proxy.address = f"127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield proxy
    finally:
        proxy.heal()
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    """One connection of a client."""

    protocol_version = "HTTP/1.1"
    proxy: FaultyProxy

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""

    def pass_on(self) -> None:
        """Pass a request on and its reply back, or spoil either."""
        fault = self.proxy.take_fault(self.command, self.path)
        with suppress(BrokenPipeError, ConnectionResetError):  # the client has given up
            if fault is not None and fault.kind == "lose_request":
                self.close_connection = True
                return
            body = self._read_body()
            if fault is not None and fault.kind == "stall":
                self.proxy.healed.wait()
                self.close_connection = True
                return
            if fault is not None and fault.kind == "status":
                self._answer_error(fault.status)
                return
            status, headers, reply = self._ask_upstream(body)
            if fault is not None and fault.kind == "lose_reply":
                self.close_connection = True
                return
            self._answer(status, headers, reply, fault)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_PATCH = pass_on  # noqa: N815 - as http.server calls them

    def _read_body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        # Chunks: a size in hexadecimal digits, so many bytes, an end of line; the last one is empty.
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return body

    def _ask_upstream(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(self.proxy.upstream, timeout=60)
        is_chunked = "chunked" in self.headers.get("Transfer-Encoding", "")
        # Byte for byte as it came: headers are signed, Host among them.
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in ("connection", "expect"):
                connection.putheader(name, value)
        connection.endheaders([body] if is_chunked else body, encode_chunked=is_chunked)
        with connection.getresponse() as response:
            reply = response.read()
            headers = [(name, value.replace(self.proxy.upstream, self.proxy.address)) for name, value in
                       response.getheaders()]  # fmt: skip
        connection.close()
        return response.status, headers, reply

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes, fault: Fault | None) -> None:
        self.send_response_only(status)
        names = {name.lower() for name, _ in headers}
        for name, value in headers:
            if name.lower() not in ("connection", "transfer-encoding"):
                self.send_header(name, value)
        # Of a HEAD the length is that of the object, and nothing follows.
        if "content-length" not in names and status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fault is not None and fault.kind == "cut_body":
            self.wfile.write(body[: fault.after_bytes])
            self.close_connection = True
        elif fault is not None and fault.kind == "slow_body":
            size = max(1, -(-len(body) // _PIECES))
            for begin in range(0, len(body), size):
                self.wfile.write(body[begin : begin + size])
                self.wfile.flush()
                threading.Event().wait(fault.pause_s)
        else:
            self.wfile.write(body)

    def _answer_error(self, status: int) -> None:
        code, message = _CODES.get(status, ("InternalError", "We encountered an internal error."))
        is_google = self.path.startswith(("/storage/", "/upload/", "/download/"))
        text = (
            f'{{"error": {{"code": {status}, "message": "{message}"}}}}'
            if is_google
            else f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'
        )
        kind = "application/json" if is_google else "application/xml"
        headers: Mapping[str, str] = {"Content-Type": kind, "Content-Length": str(len(text))}
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text.encode())
