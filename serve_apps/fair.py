"""Share a few threads among clients: blocking work such as decoding images, in turns that no client can take for long.

Knows nothing of HTTP or of models: a client is a name, and the cost of work is a number that its caller estimates.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import Any, TypeVar

from serve_apps.openai.errors import ApiError

T = TypeVar("T")

NUM_THREADS = 2


@dataclass(frozen=True, eq=False)
class _Job:
    work: Callable[[], Any]
    cost: float
    future: "Future[Any]"


@dataclass
class _Client:
    """The queue of one client. ``used``: cost of its jobs so far, on the clock that all clients share."""

    used: float
    jobs: "deque[_Job]" = field(default_factory=deque)
    num_running: int = 0


class FairThreads:
    """Run blocking work in threads, the next job always of the client that has used least.

    A client that was idle starts level with the client served last: it neither waits behind the backlog of others nor
    saves up a right to go first. No client holds more than half of the threads, so that another one finds a free
    thread at once. A job that its caller no longer awaits is not begun.
    """

    def __init__(self, num_threads: int = NUM_THREADS) -> None:
        self._num_threads = num_threads
        self._max_running_each = max(1, num_threads // 2)
        self._executor = ThreadPoolExecutor(num_threads, thread_name_prefix="fair")
        self._lock = threading.Lock()
        self._clients: dict[str, _Client] = {}
        self._clock = 0.0
        self._num_running = 0

    async def run(self, client: str, cost: float, work: Callable[[], T]) -> T:
        """Run ``work`` in a thread when it is the client's turn.

        Args:
            client: Who asks; jobs of one client run in the order they came.
            cost: Estimate of the work, in any unit that all callers share.
            work: A function that takes no arguments. It sees the context variables of the caller.

        Returns:
            What ``work`` returns; what it raises is raised here.
        """
        future: Future[T] = Future()
        context = copy_context()
        with self._lock:
            entry = self._clients.setdefault(client, _Client(self._clock))
            # Level with the others: idle time is no credit.
            if not entry.jobs and not entry.num_running:
                entry.used = max(entry.used, self._clock)
            job = _Job(lambda: context.run(work), cost, future)
            entry.jobs.append(job)
            self._dispatch()
        # What a caller gives up lets go of its images at once, not when its turn would have come.
        future.add_done_callback(lambda ended: self._forget(entry, job) if ended.cancelled() else None)
        return await asyncio.wrap_future(future)

    def _forget(self, entry: _Client, job: _Job) -> None:
        with self._lock:
            if job in entry.jobs:
                entry.jobs.remove(job)

    def _dispatch(self) -> None:
        """Begin jobs while there are free threads. Call it with the lock held."""
        while self._num_running < self._num_threads:
            ready = [entry for entry in self._clients.values() if self._is_ready(entry)]
            if not ready:
                break
            entry = min(ready, key=lambda candidate: candidate.used)
            job = entry.jobs.popleft()
            # False for a future that was cancelled while it waited: nothing is charged for it.
            if not job.future.set_running_or_notify_cancel():
                continue
            self._clock = max(self._clock, entry.used)
            entry.used += job.cost
            entry.num_running += 1
            self._num_running += 1
            self._executor.submit(self._run, entry, job)
        # A client is forgotten once it is idle and owes nothing: the table does not grow with the number of clients.
        self._clients = {name: entry for name, entry in self._clients.items() if self._is_owing(entry)}

    def _is_owing(self, entry: _Client) -> bool:
        """Return whether a client has work here, or used more than its share while others waited."""
        return bool(entry.jobs or entry.num_running or (self._num_running and entry.used > self._clock))

    def _is_ready(self, entry: _Client) -> bool:
        return bool(entry.jobs) and entry.num_running < self._max_running_each

    def _run(self, entry: _Client, job: _Job) -> None:
        try:
            result = job.work()
        except BaseException as error:  # the caller's, whatever it is
            job.future.set_exception(error)
        else:
            job.future.set_result(result)
        with self._lock:
            entry.num_running -= 1
            self._num_running -= 1
            self._dispatch()


class PixelBudget:
    """Count the pixels that wait to be decoded or are being decoded, for each client and for all.

    For tasks of one event loop, or of several: a lock guards the counts.

    Args:
        max_pixels: Of all clients together; more are answered 503.
        max_pixels_each: Of one client; more are answered 429.
    """

    def __init__(self, max_pixels: int, max_pixels_each: int) -> None:
        self._max_pixels, self._max_pixels_each = max_pixels, max_pixels_each
        self._lock = threading.Lock()
        self._pixels: dict[str, int] = {}

    @contextmanager
    def reserve(self, client: str, pixels: int) -> Iterator[None]:
        """Hold a part of the budget inside the block.

        Args:
            client: Whose images they are.
            pixels: Of all its images, width x height.

        Raises:
            ApiError: 429 beyond the client's share, 503 beyond that of all, both with ``Retry-After``.
        """
        with self._lock:
            # A client's own share first: its message is to wait, not that the server is busy.
            in_use = self._pixels.get(client, 0)
            if in_use + pixels > self._max_pixels_each:
                raise ApiError(
                    f"rate limit reached: the images being decoded for this client have {in_use:,} pixels, these "
                    f"{pixels:,}; at most {self._max_pixels_each:,} are accepted at a time; try again in 1s",
                    status=429,
                    kind="requests",
                    code="rate_limit_exceeded",
                    headers={"Retry-After": "1"},
                )
            if sum(self._pixels.values()) + pixels > self._max_pixels:
                message = f"the images being decoded may have {self._max_pixels:,} pixels together; try again soon"
                raise ApiError.unavailable(message, "overloaded")
            self._pixels[client] = in_use + pixels
        try:
            yield
        finally:
            with self._lock:
                self._pixels[client] -= pixels
                if not self._pixels[client]:
                    del self._pixels[client]
