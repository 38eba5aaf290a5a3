"""The folder of a private Ray session, its environment, and torch's store: short, one user's, on loopback."""

import os
import socket
import stat
import subprocess
import sys
import threading
import types
from pathlib import Path

import psutil
import pytest

from wm.errors import InputError
from wm.private_session import (
    LOOPBACK_ONLY,
    bypass_proxy,
    check_listening,
    few_processes,
    private_folder,
    private_session,
    set_private_token,
)

ROOT = Path(__file__).resolve().parents[2]
SESSION = "tmp/session_2026-11-28_03-21-22_445722_4194303"
SHORT = "/tmp"


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_TMPDIR", "TMPDIR", "XDG_RUNTIME_DIR", "RAY_AUTH_TOKEN", LOOPBACK_ONLY):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root whose name is short, as pytest's own is not."""
    path = Path(SHORT, f"wm-test-{os.getpid()}")
    path.mkdir()
    monkeypatch.setattr("wm.private_session._SHORT_ROOTS", (str(path),))
    yield path
    for folder in sorted(path.rglob("*"), reverse=True):
        folder.unlink() if folder.is_symlink() or not folder.is_dir() else folder.rmdir()
    path.rmdir()


def test_the_named_folder_is_used_and_closed_to_others(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("TMPDIR", "RAY_TMPDIR"):  # the later one wins
        monkeypatch.setenv(variable, str(short / variable[:3]))
        assert private_folder() == (short / variable[:3] / f"ray-{os.geteuid()}", "")
    folder, _ = private_folder()
    folder.chmod(0o777)
    assert private_folder() == (folder, "") and stat.S_IMODE(folder.stat().st_mode) == 0o700


def fits(folder: Path) -> bool:
    """Whether Ray, and the system, take the sockets of a session there."""
    from ray._private.utils import validate_socket_filepath

    path = str(folder / SESSION / "sockets" / "plasma_store")
    try:
        validate_socket_filepath(path)
    except OSError:
        return False
    with socket.socket(socket.AF_UNIX) as one, pytest.raises(FileNotFoundError):
        one.connect(path)
    return True


@pytest.mark.parametrize("letter", ["x", "ä", "路"])
def test_a_name_that_is_too_long_is_left(letter: str, short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = set()
    for count in range(1, 40):
        named = short / (letter * count)
        monkeypatch.setenv("TMPDIR", str(named))
        folder, notice = private_folder()
        is_named = folder.parent == named
        taken.add(is_named)
        assert is_named == fits(named / folder.name)
        assert fits(folder)
        if not is_named:
            assert folder.parent == short and not named.exists() and "\n" not in notice
            size = len(os.fsencode(named))
            assert notice.startswith(
                f"note: TMPDIR = '{named}' is too long for Ray's sockets ({size} bytes, at most 33)"
            )
            assert notice.endswith(f"Ray's files are in {folder}")
    assert taken == {True, False}


def test_no_folder_at_all_is_one_line_that_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wm.private_session._SHORT_ROOTS", ())
    monkeypatch.setenv("TMPDIR", str(tmp_path / ("x" * 90)))
    with pytest.raises(
        InputError, match=r"^TMPDIR = .*; set RAY_TMPDIR to a short path that you may write to$"
    ) as caught:
        private_folder()
    assert "\n" not in str(caught.value)
    (tmp_path / "file").touch()
    monkeypatch.setenv("RAY_TMPDIR", "/proc/none")
    with pytest.raises(InputError, match=r"^RAY_TMPDIR = '/proc/none' cannot be used: "):
        private_folder()


def test_a_link_or_somebody_elses_folder_is_left(short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(short / "a"))
    folder, _ = private_folder()
    folder.rmdir()
    folder.symlink_to(tmp_path)
    other, notice = private_folder()
    assert other == short / folder.name and f"{folder} is not a folder of yours" in notice
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700  # pytest's own, as it was
    folder.unlink()
    folder.mkdir(0o700)
    if os.geteuid() == 0:
        os.chown(folder, 65534, 65534)
        other, notice = private_folder()
        assert other == short / folder.name and f"{folder} is not a folder of yours" in notice


def test_the_environment_is_as_before_afterwards(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(short))
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "eth7")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    bypass_proxy()  # this stays, as the token does
    constants = types.SimpleNamespace(ENABLE_RAY_CLUSTER=True)
    set_private_token()
    before = dict(os.environ)
    with pytest.raises(KeyError), private_session(constants) as arguments:
        assert arguments == {"_temp_dir": str(short / f"ray-{os.geteuid()}" / "tmp")}
        assert os.environ[LOOPBACK_ONLY] == "0" and constants.ENABLE_RAY_CLUSTER is False
        assert (os.environ["GLOO_SOCKET_IFNAME"], os.environ["NCCL_SOCKET_IFNAME"]) == ("lo", "eth7")
        raise KeyError
    assert dict(os.environ) == before and constants.ENABLE_RAY_CLUSTER is True


def test_processes_are_left_out_within_alone() -> None:
    from ray._private.node import Node

    methods = Node.start_monitor, Node.start_log_monitor, Node.start_api_server
    with pytest.raises(KeyError), few_processes(Node):
        # Each would start a process of what an unfinished node lacks.
        Node.start_monitor(object.__new__(Node)), Node.start_log_monitor(object.__new__(Node))
        Node.start_api_server(object.__new__(Node), include_dashboard=False, raise_on_failure=False)
        raise KeyError
    assert (Node.start_monitor, Node.start_log_monitor, Node.start_api_server) == methods


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {}),
        ({"NO_PROXY": "a.example"}, {"NO_PROXY": "a.example"}),
        (
            {"http_proxy": "http://p:3128", "NO_PROXY": "a.example, localhost"},
            {"NO_PROXY": "a.example,localhost,127.0.0.1,::1", "no_proxy": "127.0.0.1,localhost,::1"},
        ),
        (
            {"ALL_PROXY": "socks5://p", "no_proxy": "*"},
            {"NO_PROXY": "127.0.0.1,localhost,::1", "no_proxy": "*,127.0.0.1,localhost,::1"},
        ),
    ],
)
def test_a_proxy_is_not_asked_for_this_machine(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], expected: dict[str, str]
) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    # Put back at the end, whatever is set here.
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setitem(os.environ, name, os.environ.get(name, ""))
    bypass_proxy()
    assert {name: os.environ[name] for name in ("no_proxy", "NO_PROXY") if os.environ[name]} == expected


def test_ray_reads_the_variable_and_the_constant() -> None:
    from ray._private import ray_constants

    assert LOOPBACK_ONLY == ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR
    assert isinstance(ray_constants.ENABLE_RAY_CLUSTER, bool)


WORKER = """
import sys
import torch, torch.distributed as dist
from jobs.train.torch_backend import _serve_store, _set_store
rank, port = int(sys.argv[1]), int(sys.argv[2])
if rank == 0:
    port = _serve_store(60)
    print(port, flush=True)
_set_store(port)
dist.init_process_group("gloo", init_method="env://", rank=rank, world_size=2)
total = torch.tensor([rank + 1.0])
dist.all_reduce(total)
dist.new_group(backend="gloo")
print(total.item(), flush=True)
sys.stdin.read(1)
"""


@pytest.mark.slow
def test_training_workers_meet_on_loopback() -> None:
    """Two processes, as Ray Train's workers: they exchange values, and listen on no other address."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"}

    def start(rank: int, port: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", WORKER, str(rank), port]
        return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    first = start(0, "0")
    workers = [first]
    try:
        assert first.stdout is not None
        workers.append(start(1, first.stdout.readline().strip()))
        assert [worker.stdout.readline().strip() for worker in workers if worker.stdout] == ["3.0", "3.0"]
        listening = [
            connection.laddr.ip
            for worker in workers
            for connection in psutil.Process(worker.pid).net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        ]
        assert len(listening) >= 3 and set(listening) == {"127.0.0.1"}
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()


def test_a_clusters_address_is_tried_before_it_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        check_listening(f"127.0.0.1:{port}")
        check_listening(f"ray://localhost:{port}")
    # Ray's own words, and those of other schemes, are Ray's to understand.
    for address in ("auto", "local", "somewhere://127.0.0.1:1"):
        check_listening(address)
    for address, message in (
        ("head:abc", "Port could not be cast"),
        ("127.0.0.1", "names no port"),
        (":1", "names no"),
    ):
        with pytest.raises(
            InputError, match=rf"^RAY_ADDRESS = '{address}'.*{message}.*; expected HOST:PORT, ray://HOST"
        ):
            check_listening(address)
    # Names are not looked up at any length, and `ray://` has a port of its own.
    tried, has_begun, is_over = [], threading.Event(), threading.Event()

    def search(address: tuple[str, int], timeout: float) -> None:
        tried.append(address)
        has_begun.set()
        is_over.wait(60)
        raise OSError

    monkeypatch.setattr(socket, "create_connection", search)
    monkeypatch.setattr("wm.private_session._CONNECT_S", 0.05)
    with pytest.raises(InputError, match=r"'ray://head': no cluster listens there \(no answer within 0\.05 s\)"):
        check_listening("ray://head")
    # On a busy machine the thread may begin after its time is up.
    assert has_begun.wait(60)
    is_over.set()
    assert tried == [("head", 10_001)]
