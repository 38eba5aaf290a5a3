"""Run a stage in a process of its own: its output to the console, its error to the caller, its end when asked.

Own processes, and not threads: training sets the random numbers, threads and signals of its process, and a
thread that waits for Ray cannot be stopped.
"""

import atexit
import codecs
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path

from jobs.bootstrap.console import Console
from jobs.bootstrap.plan import Stage
from wm import logs
from wm.cli import PROGRESS_INTERVAL, cause_to_report
from wm.errors import InputError
from wm.interrupts import terminate

_WARM = "jobs.bootstrap.warm"
_GPU_DRIVERS = (Path("/dev/nvidiactl"), Path("/dev/kfd"))
_INTERRUPTED = 130
_STOP_S = 30.0
"""A stage that has not ended so long after an interrupt is killed."""
_READ_BYTES = 65_536
_REDRAW_S = "0.5"

_context = multiprocessing.get_context("forkserver")


class StageFailedError(InputError):
    """A stage's process ended without an error that could be reported in one line."""


@dataclass(frozen=True)
class _Surroundings:
    """What a stage's process gets from the one that starts it; the fork server has older values."""

    folder: str
    variables: dict[str, str]
    output: Connection
    """Where the stage writes."""
    result: Connection
    """Takes the error of a stage that failed."""
    lock: Connection
    """Holds the run's lock while it is open."""


class StageProcess:
    """A stage that runs in a process of its own."""

    def __init__(
        self,
        stage: Stage,
        work: Callable[[Stage], object],
        console: Console,
        *,
        gpus: Sequence[str],
        lock_descriptor: int,
    ) -> None:
        """Start the process.

        Args:
            stage: What runs.
            work: Runs it; a function of a module.
            console: Shows its output.
            gpus: GPUs that it sees; empty: those that this process sees.
            lock_descriptor: File descriptor with a lock, which is held until this process and the stage's have ended.
        """
        self.stage = stage
        self._console = console
        # 1. Two pipes: what it prints, and the error that ends it.
        output, their_output = _context.Pipe(duplex=False)
        self._result, their_result = _context.Pipe(duplex=False)
        # 2. What differs from this process.
        variables = dict(os.environ)
        if gpus:
            variables["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        if console.is_terminal:
            variables[PROGRESS_INTERVAL] = _REDRAW_S
        lock = Connection(os.dup(lock_descriptor), writable=False)  # as such it can be sent
        warm_up()
        # 3. The process. Everything it needs goes with it.
        surroundings = _Surroundings(str(Path.cwd()), variables, their_output, their_result, lock)
        self._process = _context.Process(target=_run_in_child, args=(stage, work, surroundings), name=stage.name)
        self._process.start()
        # Only the child holds these now, so that their other ends see when it has ended.
        for connection in (their_output, their_result, lock):
            connection.close()
        self._reader = threading.Thread(target=_copy_output, args=(output, stage.name, console), daemon=True)
        self._reader.start()

    @property
    def sentinel(self) -> int:
        """Return what is ready, for :func:`multiprocessing.connection.wait`, once the process has ended."""
        return self._process.sentinel

    def finish(self) -> None:
        """Wait for the end of the stage.

        Raises:
            Exception: What the stage raised: bad input and trouble of the machine as they were,
                :class:`StageFailedError` for all else.
        """
        self._process.join()
        error: Exception | None = None
        # Without a word it has done its work, or was killed.
        with suppress(EOFError, OSError):
            error = self._result.recv()
        # All of its output comes before what is said of its end. Ray's processes may hold the pipe a little longer.
        self._reader.join(timeout=1.0)
        self._console.end(self.stage.name)
        if error is not None:
            raise error
        if self._process.exitcode:
            raise StageFailedError(f"stage {self.stage.name} {_describe_end(self._process.exitcode)}")

    def interrupt(self) -> None:
        """Ask the stage to end, as Ctrl-C does."""
        if self._process.pid is not None and self._process.exitcode is None:
            os.kill(self._process.pid, signal.SIGINT)

    def stop(self) -> None:
        """Wait for the end of an interrupted stage; kill it where that takes too long."""
        # Ray needs some seconds to end its workers.
        self._process.join(timeout=_STOP_S)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
        self._reader.join(timeout=1.0)
        self._console.end(self.stage.name)


def warm_up() -> None:
    """Start the fork server, unless it runs; it imports while this process does something else."""
    _context.set_forkserver_preload(list_preloads())
    forkserver.ensure_running()


def wait_until_warm() -> None:
    """Wait until the fork server has imported: the first stage's time should be its own."""
    process = _context.Process(target=os.getpid)
    process.start()
    process.join()


def list_preloads(drivers: Sequence[Path] = _GPU_DRIVERS) -> list[str]:
    """List what the fork server imports.

    Args:
        drivers: Files that are there on a machine with a GPU.
    """
    # A library that looks for a GPU when it is imported leaves one that no fork can use.
    return [] if any(path.exists() for path in drivers) else [_WARM]


def _describe_end(code: int) -> str:
    if code == -signal.SIGKILL:
        return "was killed: the machine may have run out of memory; the same command resumes"
    return f"ended with signal {-code}" if code < 0 else f"ended with status {code}"


def _copy_output(output: Connection, name: str, console: Console) -> None:
    """Copy what a stage writes to the console, until its end."""
    # Letters of several bytes may come in two parts.
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    with output:
        while data := os.read(output.fileno(), _READ_BYTES):
            console.write(name, decoder.decode(data))


def _run_in_child(stage: Stage, work: Callable[[Stage], object], surroundings: _Surroundings) -> None:
    """Run the stage in this process, which is a fork of the fork server; what it raises is sent to the caller."""
    # 1. A session of its own: Ctrl-C reaches the run alone, which then ends its stages, each once.
    os.setsid()
    # A run in the background of a script ignores Ctrl-C, and so would its children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # `ray job stop` sends SIGTERM to every process below the run.
    signal.signal(signal.SIGTERM, terminate)
    _take_over(surroundings)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # 2. The stage.
    status = 0
    try:
        work(stage)
    except KeyboardInterrupt:
        status = _INTERRUPTED
    except BaseException as error:
        status = 1
        cause = cause_to_report(error)
        # Nobody reads it any more where the run itself has ended.
        with suppress(OSError):
            if cause is None:
                traceback.print_exc()  # a mistake of this program
            else:
                surroundings.result.send(_to_sendable(cause))
    # 3. What a process does at its end, but one of multiprocessing does not: among it, Ray's session is ended.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    surroundings.lock.close()
    os._exit(status)


def _take_over(surroundings: _Surroundings) -> None:
    """Take over folder and variables of the caller, and write to its pipe."""
    os.chdir(surroundings.folder)
    os.environ.clear()
    os.environ.update(surroundings.variables)
    # The descriptors themselves: native code and Ray write to them.
    for descriptor, stream in ((1, sys.stdout), (2, sys.stderr)):
        os.dup2(surroundings.output.fileno(), descriptor)
        # Typed as a file in general, which need not have it.
        reconfigure: Callable[..., None] = getattr(stream, "reconfigure")  # noqa: B009
        reconfigure(line_buffering=True)
    surroundings.output.close()
    logs.configure()


def _end_with_parent() -> None:
    """Interrupt this process when the one that started it is gone: nobody would stop it any more."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    parent.join()
    os.kill(os.getpid(), signal.SIGINT)
    # Native code may not come back to see the signal.
    time.sleep(_STOP_S)
    os._exit(_INTERRUPTED)


def _to_sendable(error: BaseException) -> BaseException:
    """Return an error that can be made again in another process, with the same words."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        # Not every exception can be made again from what it holds.
        return StageFailedError(str(error))
    return error
