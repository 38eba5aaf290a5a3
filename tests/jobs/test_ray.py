"""What a user sees of Ray in an ordinary run: nothing. And who else reaches its session: nobody."""

import ctypes
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
from ray.exceptions import AuthenticationError

from jobs.shared.ray_session import connect, shutdown
from wm.errors import InputError
from wm.images import encode_png
from wm.interrupts import raise_on_terminate

ROOT = Path(__file__).resolve().parents[2]


# First in, last out: Ctrl-C comes while the session ends, after all that Ray has registered.
INTERRUPTED_AT_ITS_END = """
import atexit, os, signal, sys
atexit.register(os.kill, os.getpid(), signal.SIGINT)
from jobs.ingest import main
sys.exit(main())
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_on_ray_prints_its_own_bar_and_nothing_else(tmp_path: Path) -> None:
    """With a TMPDIR such as batch systems give, too long for a socket, one line more; and where Ctrl-C comes while the
    session ends, nothing more."""
    long = tmp_path / "job-0123456789" / ("x" * 100)
    long.mkdir(parents=True)
    (tmp_path / "image.png").write_bytes(encode_png(np.zeros((8, 8, 3), np.uint8)))
    rows = [{"instruction": f"move {number}", "input": "image.png", "output": "image.png"} for number in range(4)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    settings = [f"root={tmp_path}", "file=rows.json", f"out={tmp_path / 'out'}", "shard_rows=1"]
    command = [sys.executable, "-c", INTERRUPTED_AT_ITS_END, *settings]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_TMPDIR"} | {"TMPDIR": str(long)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500, check=True)
    assert done.stdout.startswith("ingest: 4 rows → 4 triplets") and done.stdout.count("\n") == 1
    lines = [line for line in done.stderr.replace("\r", "\n").splitlines() if line.strip()]
    note = f"note: TMPDIR = '{long}' is too long for Ray's sockets ({len(str(long))} bytes, at most "
    assert lines.pop(0).startswith(note) and list(long.glob("*ray*")) == []
    assert lines and all(line.startswith("ingest: ") and "/4 [" in line for line in lines), done.stderr


@pytest.mark.parametrize(
    ("log", "error", "expected"),
    [
        (
            b"[W] gcs_client.cc:210: Failed to get cluster ID: Unauthenticated: RPC error: InvalidAuthToken: x\n" * 2,
            ConnectionError("Failed to connect to Ray cluster at 127.0.0.1:1"),
            "RAY_AUTH_TOKEN (or the file RAY_AUTH_TOKEN_PATH) is not that of the cluster at 127.0.0.1:1",
        ),
        (
            b"",
            AuthenticationError("Token authentication is enabled but no authentication token was found"),
            "RAY_AUTH_TOKEN is not set, nor is there a file with the token of 127.0.0.1:1",
        ),
        (
            b"something else\n",
            ConnectionError("Failed to connect to Ray cluster at 127.0.0.1:1"),
            "RAY_ADDRESS = '127.0.0.1:1': no cluster there can be joined (Failed to connect to Ray cluster at "
            "127.0.0.1:1)",
        ),
    ],
    ids=["wrong-token", "no-token", "no-cluster"],
)
def test_a_cluster_that_cannot_be_joined_is_named_in_one_line(
    log: bytes,
    error: Exception,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def init(*_: object, **__: object) -> None:
        os.write(2, log)
        raise error

    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.delenv("RAY_BACKEND_LOG_LEVEL", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr("wm.private_session._find_connect_error", lambda host, port: "")
    with pytest.raises(InputError) as caught:
        connect()
    assert str(caught.value) == expected
    # What Ray's native part says of the token is said once, by the error.
    assert capfd.readouterr().err == ("" if b"InvalidAuthToken" in log else log.decode())


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_nobody_listens_is_named_at_once(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Bound, so that no other process takes the port, and not listening.
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"{scheme}127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        monkeypatch.setattr(ray, "is_initialized", lambda: False)
        monkeypatch.setattr(ray, "init", None)
        with pytest.raises(InputError) as caught:
            connect()
    assert str(caught.value) == (
        f"RAY_ADDRESS = {address!r}: no cluster listens there (Connection refused); start one with `ray start --head`, "
        "or unset RAY_ADDRESS for a session of this machine alone"
    )


def answers_of(process: psutil.Process, ask: Callable[[psutil.Process], Any]) -> list[Any]:
    """What a process says of itself, in a list; nothing of one that has just ended, waited for or not yet."""
    with suppress(psutil.NoSuchProcess):
        return [ask(process)]
    return []


def session_processes() -> list[psutil.Process]:
    """This process and those of its session, once an actor and a task have started workers."""
    import ray

    @ray.remote(num_cpus=0)
    class Actor:
        def pid(self) -> int:
            return os.getpid()

    @ray.remote(num_cpus=0)
    def pid() -> int:
        return os.getpid()

    actor = Actor.remote()
    workers = {ray.get(actor.pid.remote()), ray.get(pid.remote())}
    me = psutil.Process()
    processes = [me, *me.children(recursive=True)]
    assert workers <= {process.pid for process in processes}
    names = {text for process in processes for text in answers_of(process, psutil.Process.name)}
    assert {"gcs_server", "raylet"} <= names and any("Agent" in name for name in names)
    return processes


@pytest.mark.slow
def test_a_private_session_listens_on_loopback_alone(ray_session: None) -> None:
    import ray

    addresses = {}
    for process in session_processes():
        try:
            connections = process.net_connections("inet")
        except psutil.NoSuchProcess:
            continue
        for connection in connections:
            if connection.status == psutil.CONN_LISTEN:
                addresses[process.pid, connection.laddr.port] = (process.name(), connection.laddr.ip)
    assert len(addresses) >= 6
    open_ones = {name: ip for name, ip in addresses.values() if not _is_loopback(ip)}
    assert open_ones == {}
    assert [node["NodeManagerAddress"] for node in ray.nodes()] == ["127.0.0.1"]


def _is_loopback(ip: str) -> bool:
    address = ip_address(ip)
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


@pytest.mark.slow
def test_a_private_sessions_files_are_nobody_elses(ray_session: None) -> None:
    from ray._private.worker import _global_node

    session = Path(_global_node.get_session_dir_path())
    folder = session.parents[1]
    facts = folder.lstat()
    assert stat.S_ISDIR(facts.st_mode) and stat.S_IMODE(facts.st_mode) == 0o700 and facts.st_uid == os.geteuid()
    assert list(session.glob("logs/*")) and list(session.glob("sockets/*"))
    token = os.environ.get("RAY_AUTH_TOKEN", "no token")
    commands = [words for process in session_processes() for words in answers_of(process, psutil.Process.cmdline)]
    assert len(commands) > 3 and not any(token in part for words in commands for part in words)
    assert not any(part.endswith(("monitor.py", "dashboard.py")) for words in commands for part in words)
    if os.geteuid() == 0:  # another user tries, if we may become one
        for path in (session, session / "logs", session / "sockets", folder / "tmp" / "session_latest"):
            script = f"import os; os.listdir({str(path)!r})"
            tried = subprocess.run(
                ["/usr/bin/env", "python3", "-c", script], user=65534, capture_output=True, text=True, check=False
            )
            assert tried.returncode and "PermissionError" in tried.stderr, path


def test_sigterm_is_ours_again_once_a_session_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's native part gives it back its default, of which Python knows nothing."""
    import ray

    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "shutdown", lambda: libc.signal(signal.SIGTERM, None))
    # A session that other tests share may have left a handler of its own, which would not be replaced.
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with raise_on_terminate():
            shutdown()
            # As the kernel has it, not as Python remembers it.
            lines = Path("/proc/self/status").read_text().splitlines()
            (caught,) = [line for line in lines if line.startswith("SigCgt")]
            assert int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
