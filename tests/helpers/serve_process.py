"""A server as a user starts it: ``python -m serve_apps`` in a process and a session of its own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from wm.ports import find_free_port

START_S = 240
STOP_S = 120


@contextmanager
def serve_process(folder: Path, *settings: str) -> Iterator[int]:
    """Yield the port of a server; when the block ends, stop it as an impatient user does, and check what is left.

    Args:
        folder: For what it prints.
        settings: Of the recipe, ``key=value``, without the port.
    """
    port = find_free_port()
    out, err = folder / "out", folder / "err"
    with out.open("wb") as out_file, err.open("wb") as err_file:
        process = subprocess.Popen(
            [sys.executable, "-m", "serve_apps", *settings, f"port={port}"],
            stdout=out_file,
            stderr=err_file,
            start_new_session=True,
        )
    try:
        _wait_until_open(process, out, err)
        yield port
    except BaseException:
        # What failed first is reported, not what a second check would add.
        process.send_signal(signal.SIGTERM)
        process.wait(STOP_S)
        raise
    # Twice: the second is no way to break off the first.
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    assert process.wait(STOP_S) == 0
    started, opened, stopping = out.read_text().splitlines()
    assert started.startswith("starting fdm ") and stopping == "stopping"
    assert opened.startswith(f"open http://127.0.0.1:{port}/ (API: http://127.0.0.1:{port}/v1")
    assert err.read_text() == ""
    assert not _processes_of(process.pid)


def _wait_until_open(process: "subprocess.Popen[bytes]", out: Path, err: Path) -> None:
    deadline = time.monotonic() + START_S
    while "open http" not in out.read_text():
        assert process.poll() is None and time.monotonic() < deadline, (out.read_text(), err.read_text())
        time.sleep(0.1)


def _processes_of(session: int) -> list[str]:
    """List the processes of a session, except those that have ended."""
    names = []
    for process in psutil.process_iter(["name", "status"]):
        try:
            if os.getsid(process.pid) == session and process.info["status"] != psutil.STATUS_ZOMBIE:
                names.append(process.info["name"])
        except ProcessLookupError:
            continue
    return names
