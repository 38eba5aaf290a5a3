"""Decide what becomes of a server that listens already where a new one is to, on a cluster that both have joined.

What a private session runs ends with ``wm serve``, however that ends. A cluster keeps the application of one that was
killed, and Ray Serve's port: the next ``wm serve`` takes both over. What others run is left alone.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from wm.errors import InputError

# In the command line of a driver that is a server of ours; Ray's dashboard has drivers too, which name its own serve.
_SERVES = re.compile(r"-m serve_apps\b|\bserve_apps/__main__\.py|\bwm serve\b|-m jobs serve\b")
HOW_TO_END = "`serve shutdown -a http://HOST:8265`, with the cluster's dashboard, ends all that Ray Serve runs there"


@dataclass(frozen=True)
class Driver:
    """A process that has joined the cluster.

    Attributes:
        pid: Its process id, on its own machine.
        host: Address of that machine.
        command: Its command line.
    """

    pid: int
    host: str
    command: str


def check_takeover(application: str, port: int, port_error: InputError) -> None:
    """Check that what listens on a port may be taken over: an application whose ``wm serve`` is no more.

    Args:
        application: Its name.
        port: TCP port that the new server is to listen on.
        port_error: Why it cannot, if not.

    Raises:
        InputError: The port is of another program, or of an application that somebody still runs; the message says how
            to end that.
    """
    import ray
    from ray.serve.context import _get_global_client

    try:
        client = _get_global_client(raise_if_no_controller_running=False)
        details: Mapping[str, Any] = {} if client is None else client.get_serve_details()
        judge_takeover(details, application, port, _list_other_drivers(), port_error)
    except BaseException:
        # At its end wm serve shuts down all of Ray Serve in the session it is in: that of others is left before.
        ray.shutdown()
        raise


def judge_takeover(
    details: Mapping[str, Any], application: str, port: int, drivers: Iterable[Driver], port_error: InputError
) -> None:
    """Do what :func:`check_takeover` does, given what the cluster says.

    Args:
        details: Ray Serve's own of its proxies and applications; empty: Serve does not run.
        application: As there.
        port: As there.
        drivers: Processes that have joined the cluster, this one left out.
        port_error: As there.
    """
    # 1. Another program than Ray Serve of this cluster.
    if (details.get("http_options") or {}).get("port") != port:
        raise port_error
    # 2. Applications of others, which have our port and perhaps our path.
    applications = details.get("applications") or {}
    if application not in applications:
        names = ", ".join(applications) or "no application"
        raise InputError(f"port {port} is Ray Serve's on this cluster, which runs {names}; {HOW_TO_END}")
    if applications[application].get("source") == "declarative":
        raise InputError(
            f"port {port} is Ray Serve's on this cluster, and its application {application} is one of `serve deploy`: "
            f"change its file and deploy that; {HOW_TO_END}"
        )
    # 3. Our own, of a process that lives.
    for driver in drivers:
        if _SERVES.search(driver.command):
            raise InputError(
                f"port {port}: another wm serve runs on this cluster, process {driver.pid} of {driver.host} "
                f"({driver.command.strip():.100}); stop that first, or give another RAY_ADDRESS"
            )


def end_application(application: str, *, is_shared: bool) -> None:
    """End an application, and Ray Serve where it runs nothing else; nothing without a session.

    Args:
        application: Its name.
        is_shared: The session is a cluster, on which others may serve too.
    """
    import ray
    from ray import serve
    from ray.serve.context import _get_global_client

    # Serve would start a session anew.
    if not ray.is_initialized():
        return
    client = _get_global_client(raise_if_no_controller_running=False) if is_shared else None
    # A start that failed before Serve ran has no client: then there is nothing of others.
    applications = {} if client is None else client.get_serve_details().get("applications") or {}
    if set(applications) <= {application}:
        serve.shutdown()
    elif application in applications:
        serve.delete(application)


def leave_cluster() -> None:
    """End the session of this process, or leave the cluster that it has joined."""
    import ray

    ray.shutdown()


def _list_other_drivers() -> list[Driver]:
    import ray
    from ray._private.state import state

    own_id = ray.get_runtime_context().get_job_id()
    return [
        Driver(job["DriverPid"], job["DriverIPAddress"], job["Entrypoint"])
        for job in state.job_table()
        if not job["IsDead"] and job["JobID"] != own_id
    ]
