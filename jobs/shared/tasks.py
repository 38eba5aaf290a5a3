"""Run one function over many inputs, in this process or as Ray tasks on all nodes. Knows nothing of the function."""

from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

from jobs.shared.ray_session import connect
from wm.errors import InputError

T = TypeVar("T")

_TASKS_AHEAD = 2
"""Tasks running or queued for each CPU: with no longer a queue, the driver's memory is bounded."""
_CANCEL_TIMEOUT_S = 60.0


def each(
    function: Callable[..., T],
    inputs: Sequence[tuple[object, ...]],
    *shared: object,
    on_ray: bool,
    max_running: int | None = None,
) -> Generator[T, None, None]:
    """Call ``function(*arguments, *shared)`` for every tuple of arguments.

    Args:
        function: Must be safe to repeat: a task that loses its worker or node is done again elsewhere.
        inputs: Arguments of each call.
        shared: Arguments of every call; they go to each node once.
        on_ray: As Ray tasks of one CPU each, or one after another in this process.
        max_running: Tasks that run or wait at a time; None: two for each CPU of the session.

    Yields:
        Results as they finish, in no order. When the caller stops early, what still runs is cancelled.

    Raises:
        Exception: Whatever ``function`` raises. From a worker, an :class:`InputError` or :class:`OSError` comes as it
            was raised, any other inside one of Ray's exceptions, with the worker's traceback.
    """
    if not on_ray:
        for arguments in inputs:
            yield function(*arguments, *shared)
        return
    connect()
    import ray

    remote = ray.remote(num_cpus=1)(function)
    references = [ray.put(value) for value in shared]
    limit = max_running or _TASKS_AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting = iter(inputs)
    running: list[ray.ObjectRef] = []
    try:
        while True:
            # Fill up, then wait for one.
            for arguments in waiting:
                running.append(remote.remote(*arguments, *references))
                if len(running) >= limit:
                    break
            if not running:
                return
            (finished,), running = ray.wait(running)
            try:
                result: T = ray.get(finished)
            except ray.exceptions.RayTaskError as error:
                # What the user can mend needs one line, not the worker's traceback.
                if isinstance(error.cause, (InputError, OSError)):
                    raise error.cause from None
                raise
            yield result
    finally:  # no task may still write when the caller tidies up
        for task in running:
            ray.cancel(task)
        if running:
            ray.wait(running, num_returns=len(running), timeout=_CANCEL_TIMEOUT_S)
