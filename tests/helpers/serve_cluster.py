"""A Ray head as an operator starts one, with a token and a dashboard, and ``serve`` commands against it."""

import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from serve_apps.middleware.proxy import IMPORT_PATH
from wm.ports import find_free_port

ROOT = Path(__file__).resolve().parents[2]
START_S = 180
SCRIPTS = Path(sys.executable).parent


@dataclass(frozen=True)
class Head:
    """``environment``: of whoever asks the cluster; ``folder``: of its sessions; ``address``: for RAY_ADDRESS."""

    dashboard: str
    environment: Mapping[str, str]
    folder: Path
    process: int
    address: str

    def run(self, *command: str, timeout_s: float = START_S, **variables: str) -> "subprocess.CompletedProcess[str]":
        """Run a command of Ray's, such as ``serve``, in the cluster's environment."""
        return subprocess.run(
            [str(SCRIPTS / command[0]), *command[1:]],
            env={**self.environment, **variables},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            cwd=ROOT,
            check=False,
        )

    def status(self) -> dict[str, Any]:
        """Return what ``serve status`` prints."""
        answer = self.run("serve", "status", "-a", self.dashboard)
        assert answer.returncode == 0, answer.stderr
        status: dict[str, Any] = yaml.safe_load(answer.stdout)
        return status

    def deploy(self, path: Path, application: str = "world_model") -> None:
        """Deploy a file and wait until the application runs."""
        answer = self.run("serve", "deploy", "-a", self.dashboard, str(path))
        assert answer.returncode == 0, answer.stderr
        deadline = time.monotonic() + START_S
        while (state := self.status()["applications"].get(application, {})).get("status") != "RUNNING":
            assert state.get("status") != "DEPLOY_FAILED" and time.monotonic() < deadline, state
            time.sleep(1.0)

    def logs(self, pattern: str) -> list[Path]:
        """Return files below the session's ``logs/serve``."""
        return sorted(self.folder.glob(f"session_2*/logs/serve/{pattern}"))


@contextmanager
def serve_head(**variables: str) -> Iterator[Head]:
    """Start a head with CPUs and GPUs that need not be there; end it with all that it started.

    Args:
        variables: Of the environment, besides those that the documentation asks for.
    """
    # Short: a socket's path has 107 bytes.
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="h") as name:
        ports = {key: find_free_port() for key in ("port", "dashboard-port", "dashboard-agent-listen-port")}
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(16),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": IMPORT_PATH,
            "RAY_ADDRESS": "",
            # The tests hide GPUs; these need not be there, and nothing asks them to compute.
            "CUDA_VISIBLE_DEVICES": "0,1,2,3",
            **variables,
        }
        options = [f"--{key}={port}" for key, port in ports.items()]
        node = ["--node-ip-address=127.0.0.1", f"--temp-dir={name}", "--num-cpus=16", "--num-gpus=4"]
        command = [str(SCRIPTS / "ray"), "start", "--head", "--block", "--object-store-memory=100000000"]
        with (Path(name) / "out").open("wb") as out:
            process = subprocess.Popen(
                [*command, *options, *node], env=environment, stdout=out, stderr=out, cwd=ROOT, start_new_session=True
            )
        head = Head(
            f"http://127.0.0.1:{ports['dashboard-port']}",
            environment,
            Path(name),
            process.pid,
            f"127.0.0.1:{ports['port']}",
        )
        try:
            deadline = time.monotonic() + START_S
            while head.run("serve", "status", "-a", head.dashboard).returncode:
                assert process.poll() is None and time.monotonic() < deadline, (Path(name) / "out").read_text()
                time.sleep(1.0)
            yield head
        finally:
            with suppress(psutil.NoSuchProcess):  # it did not start
                _end(process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a head and all that it started."""
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    # What outlives its parent would hold the folder.
    _, alive = psutil.wait_procs(children, timeout=30)
    for child in alive:
        child.kill()
    process.wait(30)
