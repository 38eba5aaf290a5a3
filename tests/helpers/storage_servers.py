"""Serve files to tests on the loopback: S3 (moto), a store that speaks Google's JSON API, HTTP with faults."""

import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


@contextmanager
def s3_server(monkeypatch) -> Iterator[Any]:
    """Run moto's server, which AWS's variables name; yields a boto3 client."""
    import boto3
    import requests
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    requests.post(f"http://{host}:{port}/moto-api/reset", timeout=10)  # its store outlives a server of this process
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    try:
        yield boto3.client("s3", endpoint_url=f"http://{host}:{port}")
    finally:
        server.stop()


def fill(bucket: str, keys: list[str]) -> None:
    """Put empty objects into moto's store itself, which is in this process: a request each would take long."""
    from moto.core import DEFAULT_ACCOUNT_ID
    from moto.s3.models import s3_backends

    for key in keys:
        s3_backends[DEFAULT_ACCOUNT_ID]["aws"].put_object(bucket, key, b"")


class _Handler(BaseHTTPRequestHandler):
    """Base of both servers below: silent, one thread a request."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Keep the test's output clean."""

    def answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        """Send a complete reply."""
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def _serve(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def refusing_store(monkeypatch, status: int, code: str, *, lists: bool = False) -> Iterator[None]:
    """Serve S3's answers of refusal, which AWS's variables name: ``HEAD`` has no body, so no code. ``lists``: an empty
    listing is given all the same, as where an object alone is forbidden."""
    listing = b"<ListBucketResult><IsTruncated>false</IsTruncated><KeyCount>0</KeyCount></ListBucketResult>"

    class Handler(_Handler):
        def do_HEAD(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_GET(self) -> None:
            if lists and "list-type" in self.path:
                self.answer(200, listing)
            else:
                self.answer(status, f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode())

    with _serve(Handler) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{address}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "test")
        yield


@contextmanager
def http_server(files: dict[str, bytes]) -> Iterator[tuple[str, list[str]]]:
    """Serve ``files`` by path, and faults: ``/hang`` (never answers), ``/stall`` (ten bytes, then nothing),
    ``/trickle`` (a header's byte now and then), ``/short`` (ends too soon), ``/to/URL`` (redirects), ``/loop``,
    ``/status/NNN``, ``/once`` (503, then the file). Yields the root URL and the list of requested paths."""
    requested: list[str] = []

    class Handler(_Handler):
        def do_GET(self) -> None:
            requested.append(self.path)
            path = unquote(urlsplit(self.path).path)
            if path == "/hang":
                time.sleep(20)
            elif path == "/stall":
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(b"0123456789")
                self.wfile.flush()
                time.sleep(20)
            elif path == "/trickle":
                self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
                for _ in range(100):
                    self.wfile.write(b"x")
                    self.wfile.flush()
                    time.sleep(0.2)
            elif path == "/short":
                self.answer(200, b"half", {"Content-Length": "8"})
                self.close_connection = True
            elif path.startswith("/to/"):
                self.answer(302, headers={"Location": path.removeprefix("/to/")})
            elif path == "/loop":
                self.answer(302, headers={"Location": "/loop"})
            elif path.startswith("/status/"):
                self.answer(int(path.removeprefix("/status/")))
            elif path == "/once":
                self.answer(503) if requested.count("/once") == 1 else self.answer(200, b"at last")
            elif path in files:
                self.answer(200, files[path])
            else:
                self.answer(404)

    with _serve(Handler) as address:
        yield f"http://{address}", requested


@contextmanager
def gs_server(objects: dict[str, bytes], page: int = 2) -> Iterator[str]:
    """Serve one bucket, ``bucket``, as Google's JSON API does, ``page`` objects a reply; yields HOST:PORT."""

    def facts(name: str) -> dict[str, Any]:
        stamp = "2026-01-02T03:04:05.000Z"
        return {
            "kind": "storage#object", "name": name, "bucket": "bucket", "size": str(len(objects[name])),
            "updated": stamp, "timeCreated": stamp, "generation": "1", "id": f"bucket/{name}/1",
        }  # fmt: skip

    class Handler(_Handler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(url.query).items()}
            head, _, name = url.path.partition("/o/")
            name = unquote(name)
            if not name and head.endswith("/b/bucket/o"):
                names = [each for each in sorted(objects) if each.startswith(query.get("prefix", ""))]
                start = int(query.get("pageToken", 0))
                reply: dict[str, Any] = {"kind": "storage#objects", "items": [facts(n) for n in names[start:][:page]]}
                if start + page < len(names):
                    reply["nextPageToken"] = str(start + page)
                self.answer(200, json.dumps(reply).encode(), {"Content-Type": "application/json"})
            elif name not in objects:
                name = unquote(url.path.removeprefix("/bucket/"))
                self.answer(200, objects[name]) if name in objects else self.answer(404, b"{}")
            elif query.get("alt") == "media":
                self.answer(200, objects[name], {"x-goog-generation": "1"})
            else:
                self.answer(200, json.dumps(facts(name)).encode(), {"Content-Type": "application/json"})

    with _serve(Handler) as address:
        yield address


def closed_port() -> int:
    """Return a port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def silent_port() -> Iterator[int]:
    """Open a port that takes connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        yield int(listener.getsockname()[1])
