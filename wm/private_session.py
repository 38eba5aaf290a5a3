"""Settings of a Ray session that this user alone reaches: loopback addresses, a token, a short folder of its own.

Jobs, the server and the local cluster start such sessions and may not import each other. Ray is not imported: its
environment variables are known here, and its module of constants is passed in.
"""

import os
import queue
import secrets
import socket
import stat
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from wm.errors import InputError

LOOPBACK_ONLY: Final = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Ray's variable for systems whose firewall asks the user about every address that is not loopback: at 0, Ray takes
127.0.0.1 for the node's address, and every process of a session listens there alone."""

_RAYS_FOLDER: Final = "tmp"
"""In the private folder: Ray opens its own folder and all in it to every user, again in each process it starts."""
_LONGEST_NAME: Final = "session_2000-01-01_00-00-00_000000_4194304/sockets/plasma_store"
"""Of the sockets that Ray makes below its folder; the last number is a process id."""
_LONGEST_SOCKET: Final = 107 if sys.platform.startswith("linux") else 103
"""Bytes of a path that the system's socket addresses hold."""
_SHORT_ROOTS: Final = ("/tmp", "/var/tmp")
_PROXIES: Final = ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "grpc_proxy")
_NO_PROXY: Final = ("no_proxy", "NO_PROXY")
_LOOPBACK_HOSTS: Final = ("127.0.0.1", "localhost", "::1")
_NETWORK_INTERFACES: Final = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
"""By which interface torch's processes reach each other; they would take the one of the host's name."""

_CONNECT_S: Final = 8.0
"""Time in which a cluster's address is found and takes a connection."""
_CLIENT_PORT: Final = 10_001
"""Of ``ray://host`` without a port (Ray's documentation of the Ray Client)."""


@contextmanager
def private_session(constants: Any) -> Iterator[dict[str, Any]]:
    """Prepare the environment of a session that is started within; what the user has set stays.

    Args:
        constants: The module ``ray._private.ray_constants``, which has read its variables when Ray was imported.

    Yields:
        Arguments for ``ray.init("local", …)``.

    Raises:
        InputError: There is no folder with a name that is short enough for Ray's sockets.
    """
    folder, notice = private_folder()
    if notice:
        print(notice, file=sys.stderr)
    # Before Ray starts: its processes read the variables once.
    set_private_token()
    bypass_proxy()
    with _on_loopback(constants):
        yield {"_temp_dir": str(folder / _RAYS_FOLDER)}


@contextmanager
def few_processes(node: Any) -> Iterator[None]:
    """Start a session within without three processes that one machine's has no use for.

    One asks a cloud for machines. One reads the workers' logs for the driver, which ``log_to_driver=False`` does
    without. The server of a dashboard that there is not would only report usage, which is turned off; yet ``ray.init``
    waits until it answers.

    Args:
        node: The class ``ray._private.node.Node``, which starts a session's processes.
    """
    names = ("start_monitor", "start_log_monitor", "start_api_server")
    before = {name: getattr(node, name) for name in names}
    for name in names:
        setattr(node, name, _start_nothing)
    try:
        yield
    finally:
        for name, method in before.items():
            setattr(node, name, method)


def _start_nothing(*_: Any, **__: Any) -> None:
    """Stand for a method that starts a process."""


@contextmanager
def joined_session(constants: Any, address: str) -> Iterator[None]:
    """Prepare the environment for ``ray.init(address)``: a session on loopback is joined from loopback.

    Ray would otherwise take the address of the host's name for this node's, and wait for a raylet there without an end.

    Args:
        constants: The module ``ray._private.ray_constants``.
        address: What ``RAY_ADDRESS`` names: ``host:port``, or another form, which Ray resolves itself.

    Raises:
        InputError: Nobody listens at that address.
    """
    check_listening(address)
    host = address.rpartition(":")[0].strip("[]")
    if host not in ("127.0.0.1", "localhost", "::1"):
        yield
        return
    with _on_loopback(constants):
        yield


def check_listening(address: str) -> None:
    """Check that somebody listens at a cluster's address: Ray itself would wait for minutes, and say nothing.

    Args:
        address: ``host:port`` or ``ray://host:port``. ``auto``, and schemes of others, are left to Ray.

    Raises:
        InputError: Nobody does, which the message gives the cause of, or it is no address.
    """
    scheme, _, rest = address.rpartition("://")
    if scheme not in ("", "ray") or address in ("auto", "local"):
        return
    expected = "expected HOST:PORT, ray://HOST:PORT or auto"
    try:
        parts = urlsplit(f"//{rest}")
        host, port = parts.hostname, parts.port or (_CLIENT_PORT if scheme else None)
    except ValueError as error:
        raise InputError(f"RAY_ADDRESS = {address!r:.200}: {error}; {expected}") from error
    # Ray would raise a bare ValueError.
    if not host or port is None:
        raise InputError(f"RAY_ADDRESS = {address!r:.200} names no port; {expected}")
    reason = _find_connect_error(host, port)
    if reason:
        raise InputError(
            f"RAY_ADDRESS = {address!r:.200}: no cluster listens there ({reason}); start one with `ray start --head`, "
            "or unset RAY_ADDRESS for a session of this machine alone"
        )


def _find_connect_error(host: str, port: int) -> str:
    """Return why no connection can be made within :data:`_CONNECT_S`, or an empty text."""
    results: queue.SimpleQueue[str] = queue.SimpleQueue()

    def connect() -> None:
        try:
            with socket.create_connection((host, port), timeout=_CONNECT_S):
                results.put("")
        except (OSError, UnicodeError) as error:  # UnicodeError: of a name that cannot be looked up
            results.put(getattr(error, "strerror", None) or str(error))

    # A daemon thread: no option bounds the search for a name.
    threading.Thread(target=connect, name="wm-connect", daemon=True).start()
    try:
        return results.get(timeout=_CONNECT_S)
    except queue.Empty:
        return f"no answer within {_CONNECT_S:g} s"


@contextmanager
def _on_loopback(constants: Any) -> Iterator[None]:
    """Let the processes of Ray that are started within take 127.0.0.1 for the node's address."""
    loopback = loopback_interface()
    variables = {LOOPBACK_ONLY: "0"} | dict.fromkeys(_NETWORK_INTERFACES, loopback)
    # Only while processes are started, which inherit it: a cluster joined later is none of this machine alone.
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update({name: value for name, value in variables.items() if value and name not in os.environ})
    is_cluster, constants.ENABLE_RAY_CLUSTER = constants.ENABLE_RAY_CLUSTER, False
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = is_cluster
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)


def private_folder() -> tuple[Path, str]:
    """Make the folder of this user's sessions, which nobody else may enter, or find it again.

    ``RAY_TMPDIR`` and ``TMPDIR`` name where, as for Ray itself. Where that name is too long for a socket (batch systems
    give each job its own, long one), or no such folder can be had there, a short one is taken.

    Returns:
        The folder, and a notice for the user, empty where the folder is the one that was named.

    Raises:
        InputError: No folder can be had.
    """
    variable = "RAY_TMPDIR" if os.environ.get("RAY_TMPDIR") else "TMPDIR"
    preferred = Path(os.environ.get(variable) or tempfile.gettempdir()).absolute()
    roots = list(dict.fromkeys([preferred, *map(Path, _SHORT_ROOTS), *_runtime_folder(os.environ)]))
    problem = ""
    # The first that can be used; the reason of the named one is what the user needs.
    for root in roots:
        folder = root / f"ray-{os.geteuid()}"
        reason = _make_private(folder)
        if not reason:
            return folder, f"note: {problem}; Ray's files are in {folder}" if problem else ""
        problem = problem or f"{variable} = {str(preferred)!r} {reason}"
    raise InputError(
        f"{problem}, and there is no other folder for Ray's files; set RAY_TMPDIR to a short path that you may write to"
    )


def set_private_token() -> None:
    """Give this process and its children a token for their session, so that Ray writes none into the home folder; one
    that the user has stays."""
    is_set = {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ)
    if not is_set and not (Path.home() / ".ray" / "auth_token").exists():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def bypass_proxy() -> None:
    """Keep requests to this machine from the user's proxy, which cannot reach it: for this process and its children."""
    if not any(os.environ.get(name) for name in _PROXIES):
        return
    for name in _NO_PROXY:
        hosts = [host.strip() for host in os.environ.get(name, "").split(",") if host.strip()]
        os.environ[name] = ",".join([*hosts, *(host for host in _LOOPBACK_HOSTS if host not in hosts)])


def loopback_interface() -> str:
    """Return the name of the loopback interface, or an empty text where it has another name than usual."""
    names = {name for _, name in socket.if_nameindex()}
    return next((name for name in ("lo", "lo0") if name in names), "")


def _make_private(folder: Path) -> str:
    """Make a folder that this user alone may enter; returns why it cannot be used, or an empty text."""
    # Bytes count, not letters: a folder may have a name in any script.
    size = len(os.fsencode(folder.parent))
    limit = _LONGEST_SOCKET - len(f"/{folder.name}/{_RAYS_FOLDER}/{_LONGEST_NAME}")
    if size > limit:
        return f"is too long for Ray's sockets ({size} bytes, at most {limit})"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = folder.lstat()  # not what a link leads to: in a folder for all, somebody else may have made it
        if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.geteuid():
            return f"cannot be used: {folder} is not a folder of yours"
        # One of an earlier session may have another mode.
        if stat.S_IMODE(facts.st_mode) != 0o700:
            folder.chmod(0o700)
        if not os.access(folder, os.W_OK | os.X_OK):
            return "cannot be used: it may not be written to"
    except OSError as error:
        return f"cannot be used: {error.strerror}"
    return ""


def _runtime_folder(environment: Mapping[str, str]) -> list[Path]:
    """List the folder that a login session has for sockets, if there is one."""
    folder = environment.get("XDG_RUNTIME_DIR")
    return [Path(folder)] if folder else []
