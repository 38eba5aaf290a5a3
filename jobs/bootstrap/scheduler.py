"""Run the stages of a graph side by side: each when all that it reads is there. The first that fails ends the others.

Not known here: what a stage does, and how a process of its own is started.
"""

import multiprocessing.connection
from collections.abc import Callable
from typing import NamedTuple

from jobs.bootstrap.console import Console
from jobs.bootstrap.graph import GpuPool, Graph
from jobs.bootstrap.plan import Stage
from jobs.bootstrap.stage_process import StageProcess
from jobs.bootstrap.times import Times
from wm.interrupts import raise_on_terminate


class _Running(NamedTuple):
    """A stage that runs, and the GPUs that it has."""

    process: StageProcess
    gpus: list[str]


def run_side_by_side(
    graph: Graph,
    work: Callable[[Stage], object],
    console: Console,
    *,
    lock: int,
    times: Times,
    on_finish: Callable[[Stage], object],
) -> None:
    """Run all stages, each in a process of its own.

    Args:
        graph: Stages with what they wait for and take.
        work: Runs a stage; a function that another process can load.
        console: Shows what they write.
        lock: File descriptor with the run's lock.
        times: Notes when stages begin and end.
        on_finish: Called with each stage when it is complete.

    Raises:
        Exception: Of the first stage that failed; the others have ended by then, and resume the next time.
        KeyboardInterrupt: Ctrl-C, or SIGTERM; the stages have ended by then.
    """
    # Keyed by name, in the order in which they were started.
    running: dict[str, _Running] = {}
    finished = set[str]()
    gpus = GpuPool(graph.capacity.gpus)
    try:
        with raise_on_terminate():
            while len(finished) < len(graph.stages):
                # 1. Start what waits for nothing.
                for stage in graph.list_startable(finished, set(running)):
                    gpu_names = gpus.take(graph.demands[stage.name])
                    console.line(times.begin(stage.name, finished, set(running)))
                    process = StageProcess(stage, work, console, gpus=gpu_names, lock_descriptor=lock)
                    running[stage.name] = _Running(process, gpu_names)
                # 2. Wait until one has ended. What it raises ends the run.
                by_sentinel = {entry.process.sentinel: name for name, entry in running.items()}
                for sentinel in multiprocessing.connection.wait(list(by_sentinel)):
                    name = by_sentinel[sentinel]  # type: ignore[index]
                    entry = running.pop(name)
                    try:
                        entry.process.finish()
                    except Exception:
                        console.line(_describe_failure(name, list(running)))
                        raise
                    # Its GPUs and its place are free, and those that waited for it may start.
                    gpus.give_back(entry.gpus)
                    finished.add(name)
                    console.line(times.end(name))
                    on_finish(entry.process.stage)
    finally:
        # Nothing runs here any more unless something went wrong, or the user wants to stop.
        _stop_all([entry.process for entry in running.values()])


def _describe_failure(name: str, others: list[str]) -> str:
    if not others:
        return f"{name}: failed"
    return f"{name}: failed; {', '.join(others)} is ended too, and resumes the next time"


def _stop_all(processes: list[StageProcess]) -> None:
    """End all at once: each may take a while to store what it has."""
    for process in processes:
        process.interrupt()
    for process in processes:
        process.stop()
