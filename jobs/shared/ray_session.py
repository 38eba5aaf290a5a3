"""Start a private Ray session for a job, or join the cluster that ``RAY_ADDRESS`` names.

Ray is imported only when a session is asked for, so that ``--help`` and bad input answer at once. Not known here: what
runs in the session.
"""

import atexit
import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from jobs.shared.ray_messages import filter_messages
from wm.errors import InputError, to_line
from wm.interrupts import keep_terminate_handler
from wm.logs import worker_variables
from wm.private_session import few_processes, joined_session, private_session

MIN_LOGICAL_CPUS = 8
"""Logical CPUs of a private session at least: with fewer, training workers and a data set wait for
each other, while the operating system can well share the real cores among them."""

OBJECT_STORE_BYTES = 256 * 2**20

T = TypeVar("T")

_CORE_LOG_LEVEL = "RAY_BACKEND_LOG_LEVEL"


def connect(num_cpus: int | None = None) -> None:
    """Connect this process to a Ray session; a second call in the same process does nothing.

    With ``RAY_ADDRESS`` set (as under ``ray job submit``) that cluster is joined. Otherwise a session of this
    process alone is started, without dashboard. Token authentication stays on: a session without it runs the code of
    anyone who reaches its port.

    Args:
        num_cpus: Logical CPUs of a private session; None: the cores, at least :data:`MIN_LOGICAL_CPUS`.

    Raises:
        InputError: The session did not start in time, there is no folder for its files, or the cluster cannot be
            joined: another token, or none that answers.
    """
    _set_environment()
    import ray

    if ray.is_initialized():
        return
    filter_messages()
    # Registered after Ray's own, so that it comes before: a second Ctrl-C while Ray ends would print a traceback of it,
    # and leave processes behind.
    atexit.register(_ignore_interrupts)
    from ray._private import ray_constants
    from ray._private.node import Node

    if not is_private():
        _follow_token()
        address = os.environ["RAY_ADDRESS"]
        with joined_session(ray_constants, address), _joined(address), keep_terminate_handler():
            ray.init(address, **_worker_logs(), log_to_driver=False, logging_level=logging.ERROR)
        return
    with (
        private_session(ray_constants) as private,
        few_processes(Node),
        _quiet_core(),
        _started_in_time(),
        keep_terminate_handler(),
    ):
        ray.init(
            "local",
            **private,
            **_worker_logs(),
            num_cpus=num_logical_cpus() if num_cpus is None else num_cpus,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )


def is_private() -> bool:
    """Return whether :func:`connect` starts a session of this machine alone, rather than joining a cluster."""
    return os.environ.get("RAY_ADDRESS", "") in ("", "local")


def find_node_id() -> str | None:
    """Return Ray's id of the node on which this process runs; None in a process without a session."""
    import ray

    return ray.get_runtime_context().get_node_id() if ray.is_initialized() else None


def quiet_data() -> None:
    """Keep Ray Data from reporting its own progress: a job's bar counts what the user knows, not blocks."""
    from ray.data import DataContext

    DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def check_available(cpus: float, gpus: float, key: str) -> None:
    """Check that this machine has the CPUs and GPUs that a job asks for at once.

    Args:
        cpus: Logical CPUs.
        gpus: GPUs; a share of one counts as one.
        key: Recipe key and value, for the message.

    Raises:
        InputError: It has fewer: Ray would wait for them without an end.
    """
    if not is_private():
        return  # a cluster may still grow
    num_cpus = num_logical_cpus()
    if cpus > num_cpus:
        raise InputError(f"{key} asks for {cpus:g} CPUs at once; a session on this machine has {num_cpus}")
    if gpus > 0 and gpus > count_gpus():
        raise InputError(f"{key} asks for {gpus:g} GPUs; torch finds {count_gpus()} on this machine")


def count_gpus() -> int:
    """Count the GPUs of this machine that torch can use."""
    import torch

    return torch.cuda.device_count()


def off_main_thread(work: Callable[[], T]) -> T:
    """Call ``work`` on another thread and wait for it, so that Ctrl-C ends this process as it does elsewhere.

    On the main thread Ray Train takes Ctrl-C for itself: it ends with status 0, or never while it waits for
    workers, and keeps doing so in the stages that follow.
    """
    outcome: Future[T] = Future()

    def body() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            # Raised again by ``result()``, on the main thread.
            outcome.set_exception(error)

    threading.Thread(target=body, name="off_main_thread", daemon=True).start()
    return outcome.result()


def num_logical_cpus() -> int:
    """Return the number of CPUs that a private session claims to have."""
    return max(MIN_LOGICAL_CPUS, os.cpu_count() or 1)


def shutdown() -> None:
    """Leave the session (and end it, if this process started it)."""
    import ray

    if ray.is_initialized():
        # Ray's native part gives SIGTERM back its default, behind Python's back: the handler is set anew.
        with keep_terminate_handler():
            ray.shutdown()


def _worker_logs() -> dict[str, Any]:
    """Return what lets workers write their logs in JSON, with this run's fields; nothing where the log is text."""
    variables = worker_variables()
    if not variables:
        return {}
    return {"runtime_env": {"env_vars": variables, "worker_process_setup_hook": "wm.logs.configure_worker"}}


def _ignore_interrupts() -> None:
    """Ignore Ctrl-C from here on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _set_environment() -> None:
    """Set defaults that Ray reads when it is imported; what the user has set stays."""
    # Nothing is sent to anyone.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Without it a CPU-only worker hides accelerators from itself and warns about it.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # The controller looks at its workers this often: the end of a short training is seen that much sooner.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    if is_private():
        # An actor that waits for a cloud to take nodes away: nobody takes this machine.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)


@contextmanager
def _started_in_time() -> Iterator[None]:
    """Report a session that did not start in one line."""
    try:
        yield
    except Exception as error:
        # Ray gives its processes 30 s, which no setting changes, and then raises a bare Exception.
        if "timed out during startup" not in str(error):
            raise
        message = "Ray did not start within 30 s: the machine is very busy, or /tmp is full; try the same command again"
        raise InputError(message) from error


@contextmanager
def _joined(address: str) -> Iterator[None]:
    """Report a cluster that cannot be joined in one line."""
    from ray.exceptions import AuthenticationError

    other_token = f"RAY_AUTH_TOKEN (or the file RAY_AUTH_TOKEN_PATH) is not that of the cluster at {address}"
    refusals: list[bytes] = []
    try:
        with _quiet_core(refusals):
            yield
    except AuthenticationError as error:
        # Raised only where RAY_AUTH_MODE asks for a token and there is none.
        raise InputError(f"RAY_AUTH_TOKEN is not set, nor is there a file with the token of {address}") from error
    except ConnectionError as error:
        # Ray says the same of a wrong token and of no answer; only its native log has the difference.
        if refusals:
            raise InputError(other_token) from error
        reason = to_line(error.__cause__ or error, 300)
        raise InputError(f"RAY_ADDRESS = {address!r}: no cluster there can be joined ({reason})") from error


@contextmanager
def _quiet_core(refusals: list[bytes] | None = None) -> Iterator[None]:
    """Start Ray with its native log at ``fatal``, unless the user has set a level.

    Ray Data's restartable actors make the native core report, as an error, what is none; no other setting hides
    it. That a level was set is itself announced on stderr, past any level: of what is written there meanwhile,
    that line alone is dropped, and those of a token that is refused, one a second, which ``refusals`` gets.
    """
    if _CORE_LOG_LEVEL in os.environ:
        yield
        return
    os.environ[_CORE_LOG_LEVEL] = "fatal"
    sys.stderr.flush()
    # Ray's processes write to the file descriptor itself: replacing sys.stderr would not catch it.
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as output:
        os.dup2(output.fileno(), 2)
        try:
            yield
        finally:
            del os.environ[_CORE_LOG_LEVEL]
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)
            output.seek(0)
            for line in output:
                if refusals is not None and b"InvalidAuthToken" in line:
                    refusals.append(line)
                elif f"Set ray log level from environment variable {_CORE_LOG_LEVEL}".encode() not in line:
                    os.write(2, line)


def _follow_token() -> None:
    """Turn authentication on where a token exists: ``ray start`` does so, ``ray.init(address)`` does not."""
    if "RAY_AUTH_MODE" not in os.environ and _has_token():
        from ray._private.authentication.authentication_token_setup import (
            maybe_enable_token_auth_if_token_available,
        )

        maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def _has_token() -> bool:
    is_in_environment = "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ
    return is_in_environment or (Path.home() / ".ray" / "auth_token").exists()
