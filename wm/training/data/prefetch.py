"""Build what a step needs in a thread while the step before runs."""

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Value = TypeVar("Value")


def prefetch(build: Callable[[Item], Value], items: Iterable[Item], depth: int = 3) -> Generator[Value, None, None]:
    """Build a value of every item ahead of its use.

    A thread is enough: building a batch is a few copies, in which numpy lets other threads run; worker processes would
    each map the same rows and return them by yet another copy.

    Args:
        build: Called in the thread; its exception is raised where the value would have come.
        items: In their order.
        depth: Values ahead at most, the one that is being built among them.

    Yields:
        The values. Close the iterator (``contextlib.closing``) to end the thread before the items end.
    """
    remaining = iter(items)
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as executor:
        pending = deque(executor.submit(build, item) for item in itertools.islice(remaining, depth))
        try:
            while pending:
                value = pending.popleft().result()
                # Before the value is used, so that the thread does not wait for its user.
                pending.extend(executor.submit(build, item) for item in itertools.islice(remaining, 1))
                yield value
        finally:
            executor.shutdown(cancel_futures=True)
