"""Divide the machine's CPU time among decoding, the actors around it, the driver, and Ray's own processes.

Reads /proc; elsewhere there is nothing to read, and the shares are absent.
"""

import os
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

_PERIOD_S = 1.0
"""A look at all processes takes some ms, which are the driver's."""
_PROC = Path("/proc")
_ROLES = (
    ("wm.video.child", "decode"),
    ("Decoder", "actors"),
    ("spawn_main", "actors"),
    ("raylet/raylet", "raylet"),
    ("gcs_server", "gcs"),
)
"""Part of a command line, and what runs there."""


@dataclass(frozen=True)
class Sample:
    """CPU time at one moment.

    Attributes:
        time_s: Of :func:`time.time`.
        busy_s: Of the machine, all programs and all cores together.
        processes: Role and CPU seconds (all threads, user and system) by process id.
    """

    time_s: float
    busy_s: float
    processes: dict[int, tuple[str, float]]


class CpuSampler:
    """Sample the CPU time of this process and all below it on a thread, while the block runs."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cpu-sampler", daemon=True)

    def __enter__(self) -> Self:
        if _PROC.is_dir():
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(_PERIOD_S):
            self.samples.append(read_sample(os.getpid()))


def compute_shares(samples: Sequence[Sample], begin_s: float, end_s: float, cores: int) -> dict[str, float]:
    """Compute the share of the machine's core-seconds that each part took between two moments.

    Args:
        samples: In the order of time.
        begin_s: Of :func:`time.time`.
        end_s: Of :func:`time.time`.
        cores: Of the machine.

    Returns:
        By role; ``elsewhere`` is that of other programs, ``idle`` the rest. Empty with fewer than two samples between
        the moments.
    """
    window = [sample for sample in samples if begin_s <= sample.time_s <= end_s]
    if len(window) < 2:
        return {}
    first, last = window[0], window[-1]
    seconds: defaultdict[str, float] = defaultdict(float)
    for pid, (role, cpu_s) in last.processes.items():
        # One that began meanwhile began at 0.
        seconds[role] += max(0.0, cpu_s - first.processes.get(pid, (role, 0.0))[1])
    total_s = cores * (last.time_s - first.time_s)
    seconds["elsewhere"] = max(0.0, last.busy_s - first.busy_s - sum(seconds.values()))
    shares = {role: round(cpu_s / total_s, 4) for role, cpu_s in seconds.items()}
    return shares | {"idle": round(max(0.0, 1 - sum(seconds.values()) / total_s), 4)}


def read_sample(root: int) -> Sample:
    """Read the CPU time of a process and all below it.

    Args:
        root: Process id of the driver.
    """
    tick = os.sysconf("SC_CLK_TCK")
    parents: dict[int, int] = {}
    seconds: dict[int, float] = {}
    for folder in _PROC.glob("[0-9]*"):
        try:
            # After the name, which may hold brackets and any bytes; in proc(5) field 4 is ppid, 14 utime, 15 stime.
            fields = (folder / "stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            continue  # it ended meanwhile
        pid = int(folder.name)
        parents[pid], seconds[pid] = int(fields[1]), (int(fields[11]) + int(fields[12])) / tick
    # user, nice, system, then idle and iowait, which are no work, irq, softirq, steal: proc(5).
    ticks = [int(field) for field in (_PROC / "stat").read_text().split(maxsplit=9)[1:9]]
    processes: dict[int, tuple[str, float]] = {}
    for pid, cpu_s in seconds.items():
        if _is_below(pid, root, parents):
            processes[pid] = ("driver" if pid == root else _find_role(pid), cpu_s)
    return Sample(time.time(), (sum(ticks) - ticks[3] - ticks[4]) / tick, processes)


def _is_below(pid: int, root: int, parents: dict[int, int]) -> bool:
    while pid != root and pid in parents:
        pid = parents[pid]
    return pid == root


def _find_role(pid: int) -> str:
    try:
        command = (_PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return "other"
    # Ray's agents, workers that wait, and the actors in which Ray Data keeps its notes are one part.
    return next((role for part, role in _ROLES if part in command), "other")
