"""Build what a step needs in a thread while the step before runs."""

import queue
import threading
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from typing import TypeVar

Item = TypeVar("Item")
Value = TypeVar("Value")


def prefetch(build: Callable[[Item], Value], items: Iterable[Item], depth: int = 2) -> Generator[Value, None, None]:
    """Build a value of every item ahead of its use.

    A thread is enough: building a batch is a few copies, in which numpy lets other threads run; worker processes would
    each map the same rows and return them by yet another copy.

    Args:
        build: Called in the thread; its exception is raised where the value would have come.
        items: In their order.
        depth: Values ahead at most.

    Yields:
        The values. Close the iterator (``contextlib.closing``) to end the thread before the items end.
    """
    values: queue.Queue[tuple[bool, Value | BaseException | None]] = queue.Queue(depth)
    stopped = threading.Event()

    def put(entry: tuple[bool, Value | BaseException | None]) -> None:
        while not stopped.is_set():
            with suppress(queue.Full):
                values.put(entry, timeout=0.1)
                return

    def work() -> None:
        try:
            for item in items:
                if stopped.is_set():
                    return
                put((True, build(item)))
            put((False, None))
        except BaseException as error:
            put((False, error))

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            is_value, entry = values.get()
            if is_value:
                yield entry  # type: ignore[misc]
            elif entry is None:
                return
            else:
                assert isinstance(entry, BaseException)
                raise entry
    finally:
        stopped.set()
        thread.join()
