"""One function over many inputs: here, or as Ray tasks on all nodes."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from jobs.shared.ray_session import connect

T = TypeVar("T")

_TASKS_AHEAD = 2
"""Tasks under way or waiting for each CPU: the driver keeps no longer a queue, so its memory is bounded."""
_LAST_WORDS_S = 60.0


def each(function: Callable[..., T], inputs: Sequence[tuple[Any, ...]], *shared: Any, on_ray: bool) -> Iterator[T]:
    """``function(*input, *shared)`` for every input; results as they finish, in no order.

    ``shared`` goes to each node once. A task that loses its worker or node is done again elsewhere, so ``function``
    must be safe to repeat. What it raises is raised here (Ray wraps it: see :func:`wm.cli.cause_to_tell`).
    """
    if not on_ray:
        for one in inputs:
            yield function(*one, *shared)
        return
    connect()
    import ray

    remote = ray.remote(num_cpus=1)(function)
    references = [ray.put(value) for value in shared]
    at_most = _TASKS_AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting = iter(inputs)
    running: list[Any] = []
    try:
        while True:
            for one in waiting:
                running.append(remote.remote(*one, *references))
                if len(running) >= at_most:
                    break
            if not running:
                return
            done, running = ray.wait(running)
            yield ray.get(done[0])
    finally:  # nobody may write any more when the caller tidies up
        for task in running:
            ray.cancel(task)
        if running:
            ray.wait(running, num_returns=len(running), timeout=_LAST_WORDS_S)
