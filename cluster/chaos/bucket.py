"""Serve a bucket whose server can be killed and comes back. Not known here: who writes there.

moto keeps objects in memory; what is killed is the process before it that clients speak to, so that nothing is lost.
"""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import requests

from wm.errors import InputError
from wm.files.mirror import fetch
from wm.ports import find_free_port

if TYPE_CHECKING:
    from moto.server import ThreadedMotoServer

NAME = "chaos"
"""Of the bucket."""

CACHES = "cache"
"""Folder of the run in which each node keeps its copies."""

_DOWN_S = 3.0
"""How long it is away when it was killed."""
_START_S = 30.0


class BucketServer:
    """An S3 store on this machine."""

    def __init__(self, server: "ThreadedMotoServer") -> None:
        """Make the bucket, and start the process before the server.

        Args:
            server: That holds the objects; it listens.

        Raises:
            InputError: The process does not start.
        """
        host, self._target_port = server.get_host_and_port()
        self._store = f"http://{host}:{self._target_port}/{NAME}"
        requests.put(self._store, timeout=_START_S).raise_for_status()
        # Always the same port: its address is in every process's environment.
        self._port = find_free_port()
        self._process = self._start()

    @property
    def address(self) -> str:
        """Return where clients find it."""
        return f"http://127.0.0.1:{self._port}"

    def fetch(self, name: str, cache: Path) -> Path:
        """Make a copy of an output as the bucket has it.

        Args:
            name: Of the output.
            cache: Where this process keeps copies; nobody else's, so that nothing comes from a writer's own.
        """
        # Read for every copy, by this process alone.
        before = os.environ["WM_CACHE"]
        os.environ["WM_CACHE"] = str(cache)
        try:
            return fetch(f"s3://{NAME}/{name}", leave=())
        finally:
            os.environ["WM_CACHE"] = before

    def list_names(self, prefix: str) -> list[str]:
        """List the objects below a prefix, past what is killed.

        Args:
            prefix: Of keys, which ends with a slash.

        Returns:
            Keys without the prefix, a thousand at most.
        """
        reply = requests.get(self._store, params={"list-type": "2", "prefix": prefix}, timeout=_START_S)
        reply.raise_for_status()
        root = ElementTree.fromstring(reply.content)
        # Every element has S3's name space.
        return [str(key.text).removeprefix(prefix) for key in root.iterfind("{*}Contents/{*}Key")]

    def kill(self) -> str:
        """Kill it and start it again some seconds later; returns what it was."""
        # Connections break in the middle, then nobody listens, as when a machine is lost.
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        time.sleep(_DOWN_S)
        self._process = self._start()
        return f"bucket server, away for {_DOWN_S:g} s"

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()

    def _start(self) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "cluster.chaos.forward", str(self._port), str(self._target_port)]
        process = subprocess.Popen(command)
        end_s = time.monotonic() + _START_S
        while time.monotonic() < end_s and process.poll() is None:
            try:
                requests.get(self.address, timeout=5)
            except requests.RequestException:
                time.sleep(0.1)
                continue
            return process
        process.kill()
        raise InputError(f"the bucket server did not start at {self.address}")


def cache_of(out: Path, node: str) -> str:
    """Return where a node keeps its copies: nothing but the bucket is shared.

    Args:
        out: Folder of the run.
        node: Its name.
    """
    return str(out / CACHES / node)


@contextmanager
def served_bucket(out: Path, is_wanted: bool) -> Iterator[BucketServer | None]:
    """Serve an empty bucket, and name it in this process's environment, while the block runs.

    Args:
        out: Folder of the run; local copies are kept below it.
        is_wanted: If not, nothing happens.

    Yields:
        The server, or None.

    Raises:
        InputError: moto is not installed.
    """
    if not is_wanted:
        yield None
        return
    try:
        from moto.server import ThreadedMotoServer
    except ImportError as error:
        raise InputError("bucket = true needs moto, which serves it: pip install 'moto[server]'") from error
    # It would report every request, and with a traceback each one that is cut.
    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    holder = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    holder.start()
    try:
        # Who writes finds it by its environment, which the cluster's processes inherit.
        server = BucketServer(holder)
        os.environ.update(
            {
                "AWS_ENDPOINT_URL": server.address,
                "AWS_ACCESS_KEY_ID": "chaos",
                "AWS_SECRET_ACCESS_KEY": "chaos-secret",
                "AWS_REGION": "us-east-1",
                "WM_CACHE": cache_of(out, "driver"),
            }
        )
        try:
            yield server
        finally:
            server.stop()
    finally:
        holder.stop()
