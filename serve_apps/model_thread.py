"""The thread of a replica that owns its models: images of many requests grow in it together, other work goes between
their lines. The event loop stays free to take requests, to answer health checks and to cancel."""

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

from serve_apps import metrics
from wm.sampling import ImageEngine, ImageRequest, StepOutput

T = TypeVar("T")
_Item: TypeAlias = "tuple[Any, asyncio.AbstractEventLoop, asyncio.Future[Any]]"
MAX_TOGETHER = 32
"""Items of a kind that are worked on at once."""


@dataclass
class _Pending:
    """A request whose images are awaited by a task of an event loop."""

    pool: ImageEngine
    loop: asyncio.AbstractEventLoop
    future: "asyncio.Future[Tensor]"
    on_line: Callable[[StepOutput], object] | None
    key: int = -1
    pieces: dict[int, Tensor] = field(default_factory=dict)
    """Whole ones, by their first candidate."""
    asked_s: float = field(default_factory=time.monotonic)
    is_begun: bool = False


class ModelThread:
    """One thread, and the pools of images that it advances in turns, one for each model. Methods are for tasks of any
    event loop."""

    def __init__(self) -> None:
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._pending: dict[ImageEngine, dict[int, _Pending]] = {}
        """Requests that are not done, by their pool and key; no pool without any."""
        self._joint: dict[Callable[[Sequence[Any]], Sequence[Any]], list[_Item]] = {}
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    async def call(self, work: Callable[[], T]) -> T:
        """Return what ``work`` returns, done in the thread; not done at all if the task is cancelled before its
        turn."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def turn() -> None:
            if future.cancelled():
                return
            try:
                found = work()
            except Exception as error:  # the caller's, whatever it is
                _tell(loop, future, error=error)
            else:
                _tell(loop, future, found)

        self._inbox.put(turn)
        return await future

    async def together(self, work: Callable[[Sequence[Any]], Sequence[T]], item: Any) -> T:
        """Return what ``work``, given a list, returns for ``item``: done in the thread, at once with the items of
        others that
        wait for the same work by then. One that raises is tried again alone, so that it fails nobody else's."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._inbox.put(lambda: self._joint.setdefault(work, []).append((item, loop, future)))
        return await future

    async def images(
        self, pool: ImageEngine, request: ImageRequest, on_line: Callable[[StepOutput], object] | None = None
    ) -> Tensor:
        """int64 (K, N): the images of a request, grown in ``pool`` with those of others (a pool belongs to one thread).
        ``on_line`` is called in the event loop with what each line adds. A
        task that is cancelled gives its rows back at the next line."""
        loop = asyncio.get_running_loop()
        pending = _Pending(pool, loop, loop.create_future(), on_line)
        self._inbox.put(lambda: self._add(request, pending))
        try:
            return await pending.future
        finally:
            if not pending.future.done() or pending.future.cancelled():
                self._inbox.put(lambda: self._drop(pending))

    def close(self) -> None:
        """End the thread after what it is doing; waits for it."""
        self._inbox.put(None)
        self._thread.join()

    def _run(self) -> None:
        while True:
            is_busy = bool(self._joint or self._pending)
            try:
                command = self._inbox.get(block=not is_busy)
            except queue.Empty:
                self._work_together()
                for pool in list(self._pending):
                    self._advance(pool)
                continue
            if command is None:
                return
            command()

    def _work_together(self) -> None:
        for work in list(self._joint):
            items = self._joint.pop(work)
            for start in range(0, len(items), MAX_TOGETHER):
                _work(work, items[start : start + MAX_TOGETHER])

    def _add(self, request: ImageRequest, pending: _Pending) -> None:
        if pending.future.cancelled():
            return
        try:
            pending.key = pending.pool.add_request(request)
        except Exception as error:  # reported to the one who asked
            _tell(pending.loop, pending.future, error=error)
        else:
            self._pending.setdefault(pending.pool, {})[pending.key] = pending

    def _drop(self, pending: _Pending) -> None:
        if self._forget(pending):
            pending.pool.abort_request(pending.key)
            self._record_fill()

    def _forget(self, pending: _Pending) -> bool:
        """Return whether the request was not done."""
        requests = self._pending.get(pending.pool, {})
        was_open = requests.pop(pending.key, None) is not None
        if was_open and not requests:
            del self._pending[pending.pool]
        return was_open

    def _advance(self, pool: ImageEngine) -> None:
        began_s = time.monotonic()
        try:
            grown = pool.step()
        except Exception as error:  # nobody's in particular, such as a device that is lost
            for pending in list(self._pending[pool].values()):
                # Room first: whoever hears of the error and asks again at once finds it.
                self._drop(pending)
                _tell(pending.loop, pending.future, error=error)
            return
        self._record_fill()
        for entry in grown:
            self._deliver(self._pending[pool][entry.request_id], entry, began_s)

    def _record_fill(self) -> None:
        metrics.record(metrics.ROWS, sum(pool.num_running_rows for pool in self._pending))
        metrics.record(metrics.WAITING, sum(pool.num_waiting for pool in self._pending))

    def _deliver(self, pending: _Pending, grown: StepOutput, began_s: float) -> None:
        if not pending.is_begun:
            pending.is_begun = True
            metrics.record(metrics.STAGE_SECONDS, began_s - pending.asked_s, stage="queue")
        if pending.on_line is not None:
            _schedule(pending.loop, pending.on_line, grown)
        if grown.is_complete:
            pending.pieces[grown.candidates.start] = grown.codes
        if grown.is_finished:
            self._forget(pending)
            _tell(pending.loop, pending.future, torch.cat([pending.pieces[first] for first in sorted(pending.pieces)]))


def _work(work: Callable[[Sequence[Any]], Sequence[Any]], items: Sequence["_Item"]) -> None:
    awaited = [(item, loop, future) for item, loop, future in items if not future.cancelled()]
    if not awaited:
        return
    try:
        found = work([item for item, _, _ in awaited])
    except Exception as error:
        if len(awaited) > 1:
            for one in awaited:
                _work(work, [one])
            return
        _tell(awaited[0][1], awaited[0][2], error=error)
        return
    for (_, loop, future), entry in zip(awaited, found, strict=True):
        _tell(loop, future, entry)


def _tell(
    loop: asyncio.AbstractEventLoop, future: "asyncio.Future[Any]", found: Any = None, error: Exception | None = None
) -> None:
    """Settle a future of another thread's loop, unless nobody awaits it any more."""

    def settle() -> None:
        if future.done():
            return
        if error is None:
            future.set_result(found)
        else:
            future.set_exception(error)

    _schedule(loop, settle)


def _schedule(loop: asyncio.AbstractEventLoop, work: Callable[..., object], *arguments: object) -> None:
    try:
        loop.call_soon_threadsafe(work, *arguments)
    except RuntimeError:
        if not loop.is_closed():
            raise  # a closed loop has nobody left who waits
