"""A port that is taken already on a cluster: whose it is decides, and the message says how to end what has it."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from types import SimpleNamespace

import pytest

from serve_apps.takeover import Driver, check_takeover, end_application, judge_takeover
from tests.helpers.serve_cluster import serve_head
from wm.errors import InputError
from wm.ports import find_free_port

TAKEN = InputError("cannot listen on 127.0.0.1 port 8000: Address already in use")
OURS = {"http_options": {"port": 8000}, "applications": {"world_model": {"source": "imperative"}}}
NOTEBOOK = Driver(7, "10.0.0.2", "python -m ipykernel_launcher")
DASHBOARD = Driver(9, "10.0.0.1", "python -B -c from multiprocessing.forkserver import main; serve")
SERVER = Driver(8, "10.0.0.3", "/usr/bin/python -m serve_apps port=8000")


@pytest.mark.parametrize(
    ("details", "drivers", "says"),
    [
        ({}, [], "cannot listen on 127.0.0.1 port 8000"),
        ({"http_options": None}, [], "cannot listen on 127.0.0.1 port 8000"),
        (OURS | {"http_options": {"port": 8001}}, [], "cannot listen on 127.0.0.1 port 8000"),
        (
            OURS | {"applications": {}},
            [],
            "port 8000 is Ray Serve's on this cluster, which runs no application; `serve",
        ),
        (OURS | {"applications": {"a": {}, "b": {}}}, [], "which runs a, b; `serve shutdown -a http://HOST:8265`"),
        (
            OURS | {"applications": {"world_model": {"source": "declarative"}}},
            [],
            "is one of `serve deploy`: change its",
        ),
        (
            OURS,
            [NOTEBOOK, SERVER],
            r"another wm serve runs on this cluster, process 8 of 10.0.0.3 \(/usr/bin/python -m",
        ),
    ],
)
def test_what_somebody_runs_is_left_alone(details, drivers, says):
    with pytest.raises(InputError, match=says):
        judge_takeover(details, "world_model", 8000, drivers, TAKEN)


def test_what_nobody_runs_any_more_is_taken_over():
    judge_takeover(OURS, "world_model", 8000, [NOTEBOOK, DASHBOARD], TAKEN)


def test_the_serve_of_others_is_left_before_the_command_ends(monkeypatch):
    """At its end wm serve shuts down all of Ray Serve in the session that it is in."""
    left, drivers = [], [SERVER]
    client = SimpleNamespace(get_serve_details=lambda: OURS)
    monkeypatch.setattr("ray.serve.context._get_global_client", lambda **_: client)
    monkeypatch.setattr("serve_apps.takeover._list_other_drivers", lambda: drivers)
    monkeypatch.setattr("ray.shutdown", lambda: left.append("left"))
    with pytest.raises(InputError, match="another wm serve runs on this cluster"):
        check_takeover("world_model", 8000, TAKEN)
    assert left == ["left"]
    drivers.clear()
    check_takeover("world_model", 8000, TAKEN)
    assert left == ["left"]


@pytest.mark.parametrize(
    ("applications", "is_shared", "ended"),
    [
        (["world_model", "other"], True, ["delete world_model"]),
        (["other"], True, []),
        (["world_model"], True, ["shutdown"]),
        ([], True, ["shutdown"]),
        (None, True, ["shutdown"]),
        (["world_model", "other"], False, ["shutdown"]),
    ],
)
def test_what_others_serve_on_a_cluster_stays(applications, is_shared, ended, monkeypatch):
    calls = []
    client = SimpleNamespace(get_serve_details=lambda: {"applications": {name: {} for name in applications}})
    monkeypatch.setattr("ray.serve.context._get_global_client", lambda **_: None if applications is None else client)
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.setattr("ray.serve.shutdown", lambda: calls.append("shutdown"))
    monkeypatch.setattr("ray.serve.delete", lambda name: calls.append(f"delete {name}"))
    end_application("world_model", is_shared=is_shared)
    assert calls == ended
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    end_application("world_model", is_shared=is_shared)
    assert calls == ended


OTHER = """
import ray
from ray import serve

@serve.deployment(ray_actor_options={"num_cpus": 0})
class Other:
    async def __call__(self, request):
        return "other"

ray.init()
serve.run(Other.bind(), name="other", route_prefix="/other")
"""


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_the_same_command_serves_again_after_a_kill(tmp_path):
    """A cluster, ``wm serve`` in it, kill -9, the same command: its models answer, it ends what is its own."""
    port = find_free_port()
    with serve_head() as head:
        command = [sys.executable, "-m", "serve_apps", f"port={port}"]
        environment = head.environment | {"RAY_ADDRESS": head.address}

        def start(name):
            out = tmp_path / name
            process = subprocess.Popen(command, env=environment, stdout=out.open("wb"), stderr=subprocess.STDOUT)
            while "open http" not in out.read_text():
                assert process.poll() is None, out.read_text()
                time.sleep(0.2)
            return process, out

        first, _ = start("first")
        # While it lives a second one is refused, by name.
        second = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert second.returncode == 2 and f"another wm serve runs on this cluster, process {first.pid}" in second.stderr
        assert urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=60).status == 200
        # Another application of the same Ray Serve.
        subprocess.run([sys.executable, "-c", OTHER], env=environment, check=True)
        first.kill()
        first.wait()
        # A dry run says of the port what the command itself would, and changes nothing.
        trial = subprocess.run([*command, "--dry-run"], env=environment, capture_output=True, text=True, check=False)
        assert trial.returncode == 0 and "would serve" in trial.stdout, trial.stderr
        assert set(head.status()["applications"]) == {"world_model", "other"}
        # Whether Ray's proxy still has the port by then is chance: either way the command serves.
        again, _ = start("again")
        assert urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=60).status == 200
        os.kill(again.pid, signal.SIGTERM)
        assert again.wait(120) == 0
        assert set(head.status()["applications"]) == {"other"}
