"""Choose which of Ray's messages to a driver reach the log of a job.

A thread of Ray's prints what its nodes report, such as each attempt of a task whose worker died ("There are infinite
retries remaining"), whatever ``log_to_driver`` says. What a user can act on is printed in one line; the rest is in the
session's own logs. Not known here: when a session starts.
"""

import re
import sys
from collections.abc import Mapping

NOTICES: Mapping[str, str] = {
    r"running low on memory|due to memory pressure": "a node is running out of memory; Ray ends workers there and "
    "starts them again",
    r"No space left|over \d+% full|out of disk": "a node's disk is nearly full",
    r"cannot be scheduled|infeasible|[Nn]o available node types": "no node has what the job asks for; `ray status` "
    "shows what is missing",
}
"""What is printed, by a pattern of the messages that say it."""

_printed: set[str] = set()


def find_notice(message: str) -> str | None:
    """Find the notice that a message of Ray's is worth.

    Args:
        message: As a node reports it, of any number of lines.

    Returns:
        One line; None: nothing that a user could act on.
    """
    return next((notice for pattern, notice in NOTICES.items() if re.search(pattern, message)), None)


def filter_messages() -> None:
    """Let Ray's thread print notices of :data:`NOTICES`, each once, instead of all that it receives."""
    from ray._private import worker

    # Looked up by name when a message comes; nothing else uses it in a session that keeps its workers' logs.
    worker.print_to_stdstream = _print_notice


def _print_notice(data: Mapping[str, object], ignore_prefix: bool) -> None:
    """Take the place of Ray's function, with its arguments."""
    lines = data.get("lines")
    message = "\n".join(map(str, lines)) if isinstance(lines, list) else ""
    notice = find_notice(message)
    # Of an attempt each second, one line is enough.
    if notice is not None and notice not in _printed:
        _printed.add(notice)
        print(f"note: {notice}", file=sys.stderr, flush=True)
