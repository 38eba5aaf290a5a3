"""Read many small files side by side, as each waits for an answer of the shared storage. Knows no content."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from wm.datasets.scale import MARK_THREADS

T = TypeVar("T")

_FILES_A_TASK = 16
_FILES_AT_ONCE = 8192
"""Results that wait at most: marks of millions of shards would not fit into memory."""


def read_all(read: Callable[[Path], T], paths: Sequence[Path]) -> Iterator[tuple[Path, T]]:
    """Read files by several threads.

    Args:
        read: Reads one of them.
        paths: The files.

    Yields:
        Each file and what was read, in their order.
    """

    def read_some(some: Sequence[Path]) -> list[T]:
        return [read(path) for path in some]

    # A part at a time, as an executor takes whatever it is given at once.
    with ThreadPoolExecutor(MARK_THREADS, thread_name_prefix="marks") as pool:
        for begin in range(0, len(paths), _FILES_AT_ONCE):
            part = paths[begin : begin + _FILES_AT_ONCE]
            # Several a task: handing one over takes as long as reading it from a local disk.
            tasks = [part[first : first + _FILES_A_TASK] for first in range(0, len(part), _FILES_A_TASK)]
            results = itertools.chain.from_iterable(pool.map(read_some, tasks))
            yield from zip(part, results, strict=True)
