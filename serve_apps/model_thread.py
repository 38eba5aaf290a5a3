"""The thread of a replica that owns its models: images of many requests grow in it together, other work goes between
their lines. The event loop stays free to take requests, to answer health checks and to cancel.

This is where calls are batched: once, whoever made them. Images are batched by the engine's scheduler
(:mod:`wm.sampling.scheduler`), which this thread advances.
"""

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, TypeVarTuple

import torch
from torch import Tensor

from serve_apps import metrics
from wm.sampling import ImageEngine, ImageRequest, StepOutput

Ts = TypeVarTuple("Ts")
T = TypeVar("T")
OwnerT = TypeVar("OwnerT")
ItemT = TypeVar("ItemT")
# Items of a kind that are worked on at once.
MAX_BATCH_ITEMS = 32


class _Reply(Generic[T]):
    """A future of an event loop, to be settled from another thread."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[T] = self.loop.create_future()

    @property
    def is_awaited(self) -> bool:
        return not self.future.cancelled()

    def settle(self, result: T) -> None:
        self.schedule(lambda: None if self.future.done() else self.future.set_result(result))

    def fail(self, error: Exception) -> None:
        self.schedule(lambda: None if self.future.done() else self.future.set_exception(error))

    def schedule(self, work: Callable[[], object]) -> None:
        """Call ``work`` in the event loop."""
        try:
            self.loop.call_soon_threadsafe(work)
        except RuntimeError:
            if not self.loop.is_closed():
                raise  # a closed loop has nobody left who waits


@dataclass(eq=False)
class _Pending:
    """A request whose images are awaited."""

    pool: ImageEngine
    reply: _Reply[Tensor]
    on_line: Callable[[StepOutput], object] | None
    key: int = -1
    chunks: dict[int, Tensor] = field(default_factory=dict)
    """Complete ones, by their first candidate."""
    arrival_s: float = field(default_factory=time.monotonic)
    has_begun: bool = False


class ModelThread:
    """One thread, and the schedulers that it advances in turns, one for each model. Methods are for tasks of any event
    loop."""

    def __init__(self) -> None:
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._pending: dict[ImageEngine, dict[int, _Pending]] = {}
        """Requests that are not finished, by their scheduler and key; no scheduler without any."""
        self._batches: dict[tuple[Any, Any, int], list[tuple[Any, _Reply[Any]]]] = {}
        """Items that wait, with who awaits them, by the function for them, its owner and how many it takes at once."""
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    async def call(self, work: Callable[[*Ts], T], *arguments: *Ts) -> T:
        """Return what ``work`` returns, done in the thread.

        It is not begun if the task is cancelled before its turn.

        Args:
            work: A blocking function.
            arguments: Of the function.
        """
        reply = _Reply[T]()

        def take_turn() -> None:
            if not reply.is_awaited:
                return
            try:
                result = work(*arguments)
            except Exception as error:  # the caller's, whatever it is
                reply.fail(error)
            else:
                reply.settle(result)

        self._inbox.put(take_turn)
        return await reply.future

    async def batch(
        self,
        work: Callable[[OwnerT, Sequence[ItemT]], Sequence[T]],
        owner: OwnerT,
        item: ItemT,
        *,
        max_items: int = MAX_BATCH_ITEMS,
    ) -> T:
        """Return what ``work`` returns for an item, done in the thread with the items of others.

        Args:
            work: Takes the owner and the items that wait by then, and returns a result for each. If it raises, each
                item is tried again alone, so that one fails nobody else's.
            owner: The model or codec that does the work; only items of the same one share a call.
            item: What is to be done.
            max_items: Items of a call; all other work has its turn between two of them.
        """
        reply = _Reply[T]()
        self._inbox.put(lambda: self._batches.setdefault((work, owner, max_items), []).append((item, reply)))
        return await reply.future

    async def sample(
        self, pool: ImageEngine, request: ImageRequest, on_line: Callable[[StepOutput], object] | None = None
    ) -> Tensor:
        """Sample the images of a request together with those of others.

        A task that is cancelled frees its rows at the next line.

        Args:
            pool: The model's scheduler, which belongs to this thread alone.
            request: What is sampled.
            on_line: Called in the event loop with what each line of the image adds.

        Returns:
            int64 (K, N) codes.
        """
        # The thread's own objects are touched in the thread alone: it gets commands.
        pending = _Pending(pool, _Reply[Tensor](), on_line)
        self._inbox.put(lambda: self._add(request, pending))
        try:
            return await pending.reply.future
        finally:
            if not pending.reply.future.done() or pending.reply.future.cancelled():
                self._inbox.put(lambda: self._drop(pending))

    def close(self) -> None:
        """End the thread after what it is doing; wait for it."""
        self._inbox.put(None)
        self._thread.join()

    def _run(self) -> None:
        while True:
            is_busy = bool(self._batches or self._pending)
            try:
                # Without work it waits; with work it only looks whether something has come.
                command = self._inbox.get(block=not is_busy)
            except queue.Empty:
                # All that has arrived is taken in first, so that a batch is as large as it can be.
                self._work_batches()
                for pool in list(self._pending):
                    self._advance(pool)
                continue
            if command is None:
                return
            command()

    def _work_batches(self) -> None:
        for key in list(self._batches):
            work, owner, max_items = key
            items = self._batches.pop(key)
            # The others come behind what waits of other kinds.
            if items[max_items:]:
                self._batches[key] = items[max_items:]
            _work_batch(work, owner, items[:max_items])

    def _add(self, request: ImageRequest, pending: _Pending) -> None:
        if not pending.reply.is_awaited:
            return
        try:
            pending.key = pending.pool.add_request(request)
        except Exception as error:  # reported to the caller
            pending.reply.fail(error)
        else:
            self._pending.setdefault(pending.pool, {})[pending.key] = pending

    def _drop(self, pending: _Pending) -> None:
        if self._forget(pending):
            pending.pool.abort_request(pending.key)
            self._record_fill()

    def _forget(self, pending: _Pending) -> bool:
        """Forget a request; return whether it was not finished."""
        requests = self._pending.get(pending.pool, {})
        was_open = requests.pop(pending.key, None) is not None
        if was_open and not requests:
            del self._pending[pending.pool]
        return was_open

    def _advance(self, pool: ImageEngine) -> None:
        start_s = time.monotonic()
        try:
            outputs = pool.step()
        except Exception as error:  # nobody's in particular, such as a device that is lost
            for pending in list(self._pending[pool].values()):
                # Room first: who hears of the error and asks again at once finds it.
                self._drop(pending)
                pending.reply.fail(error)
            return
        self._record_fill()
        for output in outputs:
            self._deliver(self._pending[pool][output.request_id], output, start_s)

    def _record_fill(self) -> None:
        metrics.record(metrics.ROWS, sum(pool.num_running_rows for pool in self._pending))
        metrics.record(metrics.WAITING, sum(pool.num_waiting for pool in self._pending))

    def _deliver(self, pending: _Pending, output: StepOutput, start_s: float) -> None:
        if not pending.has_begun:
            pending.has_begun = True
            metrics.record(metrics.STAGE_SECONDS, start_s - pending.arrival_s, stage="queue")
        on_line = pending.on_line
        if on_line is not None:
            pending.reply.schedule(lambda: on_line(output))
        if output.is_complete:
            pending.chunks[output.candidates.start] = output.codes
        if output.is_finished:
            self._forget(pending)
            # Chunks of a request may finish in any order.
            pending.reply.settle(torch.cat([pending.chunks[first] for first in sorted(pending.chunks)]))


def _work_batch(
    work: Callable[[OwnerT, Sequence[ItemT]], Sequence[T]], owner: OwnerT, items: Sequence[tuple[ItemT, _Reply[T]]]
) -> None:
    awaited = [(item, reply) for item, reply in items if reply.is_awaited]
    if not awaited:
        return
    try:
        results = work(owner, [item for item, _ in awaited])
    except Exception as error:
        if len(awaited) == 1:
            awaited[0][1].fail(error)
            return
        # One of them may be at fault: each alone, so that it fails nobody else's.
        for entry in awaited:
            _work_batch(work, owner, [entry])
        return
    for (_, reply), result in zip(awaited, results, strict=True):
        reply.settle(result)
