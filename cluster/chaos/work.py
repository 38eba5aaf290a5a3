"""Submit commands as Ray jobs until they succeed, again each time that they are killed. Knows nothing of who kills."""

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from wm.errors import InputError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

_POLL_S = 0.5
_TAIL_CHARS = 2000
_RESUMED = re.compile(r"resuming from step ([\d,]+)")


class StuckError(InputError):
    """Work that nothing disturbs any more does not end, or fails."""


@dataclass
class Attempt:
    """One submission of a command."""

    seconds: float
    status: str
    """As Ray names it, in lower case."""
    resumed_from: int | None = None
    """Step whose checkpoint it began with; None where it did not come so far as to say so, or began anew."""


@dataclass
class JobRun:
    """All submissions of one command, the last of which succeeded."""

    attempts: list[Attempt] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Return the time of all of them."""
        return sum(attempt.seconds for attempt in self.attempts)


def run_here(arguments: Sequence[str], log: Path) -> None:
    """Run a command in a process of its own, outside of the cluster.

    Args:
        arguments: Of Python.
        log: Its output.

    Raises:
        StuckError: It failed.
    """
    # A session of its own: what is made here is not to be disturbed.
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with log.open("wb") as file:
        process = subprocess.run(
            [sys.executable, *arguments], env=environment, stdout=file, stderr=subprocess.STDOUT, check=False
        )
    if process.returncode:
        raise StuckError(f"{' '.join(arguments)}: status {process.returncode}; {log} says why")


def submit_until_done(
    client: "JobSubmissionClient",
    arguments: Sequence[str],
    *,
    is_disturbed: Callable[[], bool],
    count_kills: Callable[[], int],
    limit_s: float,
) -> JobRun:
    """Submit the same command until it succeeds.

    Args:
        client: Of the cluster.
        arguments: Of Python.
        is_disturbed: Says whether something may still be killed.
        count_kills: Returns how often something was killed so far.
        limit_s: Max seconds from the last disturbance to the end.

    Raises:
        StuckError: It failed although nothing was killed meanwhile, or does not end.
    """
    # The limit counts from the last disturbance: until then a failure is expected.
    run = JobRun()
    calm_since_s = time.monotonic()
    while True:
        begin_s, kills_before = time.monotonic(), count_kills()
        job = client.submit_job(entrypoint=shlex.join([sys.executable, *arguments]))
        # 1. Until it ends, however that ends.
        while not (status := client.get_job_status(job)).is_terminal():
            if is_disturbed():
                calm_since_s = time.monotonic()
            elif time.monotonic() - calm_since_s > limit_s:
                client.stop_job(job)
                raise StuckError(f"{' '.join(arguments)} has not ended {limit_s:g} s after the last kill")
            time.sleep(_POLL_S)
        log = client.get_job_logs(job)
        resumed = _RESUMED.search(log)
        attempt = Attempt(
            round(time.monotonic() - begin_s, 1),
            status.value.lower(),
            None if resumed is None else int(resumed[1].replace(",", "")),
        )
        run.attempts.append(attempt)
        if status.value == "SUCCEEDED":
            return run
        # 2. A failure needs a reason, or the same command would fail for ever.
        if count_kills() == kills_before:
            tail = log[-_TAIL_CHARS:]
            raise StuckError(f"{' '.join(arguments)} failed although nothing was killed meanwhile: {tail}")
