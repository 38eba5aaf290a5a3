"""What a step needs, made by a thread while the step before runs."""

import queue
import threading
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


def prefetched(make: Callable[[Item], Made], items: Iterable[Item], depth: int = 2) -> Generator[Made, None, None]:
    """Yield ``make(item)`` of every item, in their order, at most ``depth`` of them ahead.

    An exception of ``make`` is raised where its value would have come. Close the iterator (``contextlib.closing``)
    to end the thread before the items end. A thread is enough: making a batch is a few copies, in which numpy lets
    other threads run; worker processes would each map the same rows and hand them over by yet another copy.
    """
    made: queue.Queue[tuple[bool, Made | BaseException | None]] = queue.Queue(depth)
    stopped = threading.Event()

    def put(entry: tuple[bool, Made | BaseException | None]) -> None:
        while not stopped.is_set():
            with suppress(queue.Full):
                made.put(entry, timeout=0.1)
                return

    def work() -> None:
        try:
            for item in items:
                if stopped.is_set():
                    return
                put((True, make(item)))
            put((False, None))
        except BaseException as error:
            put((False, error))

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            is_value, entry = made.get()
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
