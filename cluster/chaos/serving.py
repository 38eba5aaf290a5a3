"""Run the phase of a server: clients ask it while replicas, HTTP processes, its controller, its command and nodes are
killed. Not known here: who kills."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import psutil
import requests

from cluster.chaos.clients import Load
from cluster.chaos.machines import Machines
from cluster.chaos.phases import PhaseReport, note_kills, strike_of
from cluster.chaos.recipe import ChaosRecipe
from cluster.chaos.schedule import Disturber, plan_kills
from cluster.chaos.work import StuckError
from wm.errors import InputError
from wm.ports import find_free_port

_START_S = 300.0
_STOP_S = 120.0
_POLL_S = 0.5
_OPTIONS = "{num_replicas=2, ray_actor_options={num_cpus=0.5}, health_check_period_s=2, health_check_timeout_s=20}"


class Server:
    """The server's command, started again whenever it has ended."""

    def __init__(self, port: int, log: Path) -> None:
        self._port, self._log = port, log
        self._process: subprocess.Popen[bytes] | None = None
        self.num_starts = 0

    @property
    def url(self) -> str:
        """Return its address."""
        return f"http://127.0.0.1:{self._port}"

    def list_commands(self) -> list[psutil.Process]:
        """Return the process of the command, if it runs."""
        if self._process is None or self._process.poll() is not None:
            return []
        return [psutil.Process(self._process.pid)]

    def ensure_running(self) -> None:
        """Start the command if it has ended and nothing answers: Serve keeps what a killed command has started."""
        if (self._process is not None and self._process.poll() is None) or self.is_answering():
            return
        # Two of each, so that one can be missing.
        options = [f"{name}={_OPTIONS}" for name in ("fdm_server", "idm_server")]
        arguments = [f"port={self._port}", "num_candidates=2", "ingress={num_replicas=2}", *options]
        with self._log.open("ab") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "serve_apps", *arguments], stdout=file, stderr=subprocess.STDOUT, env=os.environ
            )
        self.num_starts += 1

    def is_answering(self) -> bool:
        """Return whether it says that it is well."""
        try:
            return requests.get(f"{self.url}/health", timeout=10).ok
        except requests.RequestException:
            return False

    def wait_until_ready(self, limit_s: float) -> float:
        """Wait until it answers, starting it where it has ended; returns the seconds that it took.

        Args:
            limit_s: Max time.

        Raises:
            StuckError: It does not answer by then.
        """
        begin_s = time.monotonic()
        while time.monotonic() - begin_s < limit_s:
            self.ensure_running()
            if self.is_answering():
                return time.monotonic() - begin_s
            time.sleep(_POLL_S)
        raise StuckError(f"the server does not answer {limit_s:g} s after its start; {self._log} says more")

    def stop(self) -> None:
        """End the command and what it serves."""
        if self._process is None or self._process.poll() is not None:
            return
        # It ends what it has started, which takes a while.
        self._process.terminate()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()


def run_serving(recipe: ChaosRecipe, machines: Machines, say: Callable[[str], None]) -> PhaseReport:
    """Serve the nano world's models while parts are killed, then see that every answer is there again.

    Args:
        recipe: For how long.
        machines: What is killed.
        say: Takes lines for the user.

    Raises:
        InputError: The server did not start at all.
    """
    report = PhaseReport("serving")
    with _server(Path(recipe.out) / "serving.log") as server:
        # 1. What each seed's answer should be.
        report.undisturbed_s = round(server.wait_until_ready(_START_S), 1)
        load = Load(server.url, recipe.clients)
        try:
            load.learn()
        except requests.RequestException as error:
            raise InputError(f"the server does not answer before anything is killed: {error}") from error
        say(f"serving: up after {report.undisturbed_s:g} s")
        # 2. Clients and kills at a time.
        strike = strike_of("serving", machines, drivers=server.list_commands)
        with Disturber(plan_kills(recipe, "serving"), strike, recipe.phase_s) as disturber:
            with load:
                while not disturber.is_over:
                    server.ensure_running()
                    disturber.wait(_POLL_S)
            # 3. In peace: it must come back by itself, with the same answers.
            # What was killed last may still be starting.
            recovery_s = server.wait_until_ready(60 * recipe.limit_minutes)
            report.differences += _compare_answers(load, 60 * recipe.limit_minutes)
            report.seconds = round(disturber.elapsed_s, 1)
        note_kills(report, disturber)
        report.differences += [f"wrong answer: {line}" for line in load.wrong]
        # Every request is one or the other.
        total = load.num_answers + len(load.failures)
        report.failures = {
            "requests": total,
            "failed": len(load.failures),
            "reasons": load.count_reasons(),
            "named": [asdict(failure) for failure in load.named_failures()],
            "starts_of_the_command": server.num_starts,
            "seconds_to_recover": round(recovery_s, 1),
        }
        say(f"serving: {total} requests, {len(load.failures)} failed, {len(load.wrong)} wrong")
    return report


def _compare_answers(load: Load, limit_s: float) -> list[str]:
    """Ask with every seed again; a request that fails is repeated until the limit, as nothing is killed any more."""
    end_s, differences = time.monotonic() + limit_s, list[str]()
    for seed, expected in load.expected.items():
        while True:
            try:
                digest = load.ask(seed)
            except requests.RequestException as error:
                if time.monotonic() > end_s:
                    return [*differences, f"seed {seed}: no answer any more: {error}"]
                time.sleep(_POLL_S)
                continue
            break
        if digest != expected:
            differences.append(f"seed {seed}: another answer than before")
    return differences


@contextmanager
def _server(log: Path) -> Iterator[Server]:
    server = Server(find_free_port(), log)
    try:
        yield server
    finally:
        server.stop()
