"""Find the processes that tests of faults kill."""

from contextlib import suppress

import psutil


def children(*words: str, of: int | None = None) -> list[psutil.Process]:
    """List the processes that this one, or ``of``, has started, with a word of their command line that holds ``words``.

    One that has just ended, perhaps killed before and not yet waited for, has no command line and is none.
    """
    processes = []
    for process in psutil.Process(of).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # a zombie too
            if any(all(part in word for part in words) for word in process.cmdline()):
                processes.append(process)
    return processes
