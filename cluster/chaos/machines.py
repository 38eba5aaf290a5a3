"""Find and kill processes of a local cluster: actors, the commands of jobs, what watches over those, complete nodes.

Not known here: when, and what for.
"""

import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import psutil

from cluster.chaos.bucket import BucketServer
from cluster.local_nodes import OBJECT_STORE_BYTES

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

_END_S = 20.0


class Machines:
    """The nodes of a cluster of :func:`cluster.local_nodes.local_nodes`."""

    def __init__(
        self,
        cluster: "Cluster",
        cpus_per_node: int,
        bucket: BucketServer | None,
        variables_of: Callable[[int], Mapping[str, str]],
    ) -> None:
        self.bucket = bucket
        """Where commands write; None: to folders."""
        self._variables_of = variables_of
        self._cluster = cluster
        self._cpus_per_node = cpus_per_node
        # In the order in which they were started, so that a number always names the same one.
        self._others = sorted(cluster.worker_nodes, key=lambda node: _raylet_of(node).create_time())
        self._num_started = len(self._others)
        self._names = {id(node): f"node {number + 1}" for number, node in enumerate(self._others)}
        self._lock = threading.Lock()

    def list_actors(self, titles: Sequence[str]) -> list[psutil.Process]:
        """List the processes of actors on all nodes, in the order of their start.

        Args:
            titles: Parts of the titles that Ray gives such processes.
        """
        # 1. Nodes, of which another thread may take one away meanwhile.
        with self._lock:
            raylets = [_raylet_of(self._cluster.head_node), *map(_raylet_of, self._others)]
        # 2. Their workers, by the titles that Ray gives them.
        actors = []
        for raylet in raylets:
            with suppress(psutil.NoSuchProcess):
                for process in raylet.children():
                    title = _title_of(process)
                    if title.startswith("ray::") and any(part in title for part in titles):
                        actors.append(process)
        return sorted(actors, key=_start_of)

    def list_job_commands(self, words: Sequence[str]) -> list[psutil.Process]:
        """List the processes of submitted commands whose arguments include all of ``words``."""
        processes = []
        for supervisor in self.list_actors(["JobSupervisor"]):
            with suppress(psutil.NoSuchProcess):
                for process in supervisor.children(recursive=True):
                    # The shell before it has the same words in one argument.
                    with suppress(psutil.NoSuchProcess):
                        if set(words) <= set(process.cmdline()):
                            processes.append(process)
        return processes

    def kill_node(self, draw: float) -> str | None:
        """Kill a node other than the head with all that runs there, and start another in its place.

        Args:
            draw: Number of [0, 1) that chooses it.

        Returns:
            Its name; None: there is only the head.
        """
        with self._lock:
            if not self._others:
                return None
            node = self._others[int(draw * len(self._others))]
            name = self._names[id(node)]
            # As a machine that loses power: nothing of it sees the other parts end.
            raylet = _raylet_of(node)
            with suppress(psutil.NoSuchProcess):
                processes = [raylet, *raylet.children(recursive=True)]
                for process in processes:
                    with suppress(psutil.NoSuchProcess):
                        process.send_signal(signal.SIGKILL)
            self._cluster.remove_node(node, allow_graceful=False)
            self._others.remove(node)
        # Its place is taken while the work continues. A node that Ray is to end with this process would set
        # a signal handler, which a thread must not: it ends with the cluster's context.
        self._cluster._shutdown_at_exit = False
        variables = dict(self._variables_of(self._num_started + 1))
        added = self._cluster.add_node(
            num_cpus=self._cpus_per_node, object_store_memory=OBJECT_STORE_BYTES, env_vars=variables
        )
        with self._lock:
            self._num_started += 1
            self._names[id(added)] = f"node {self._num_started}"
            self._others.append(added)
        return name


def kill_one(processes: Sequence[psutil.Process], draw: float) -> str | None:
    """Kill one of several processes.

    Args:
        processes: In an order that means something.
        draw: Number of [0, 1) that chooses it.

    Returns:
        Its title; None: there is none.
    """
    while processes:
        process = processes[min(int(draw * len(processes)), len(processes) - 1)]
        title = _title_of(process)
        try:
            process.kill()
            process.wait(_END_S)
        except psutil.NoSuchProcess:  # it ended by itself meanwhile
            processes = [other for other in processes if other.pid != process.pid]
            continue
        except psutil.TimeoutExpired:
            pass  # a zombie until its parent asks for it
        return title
    return None


def _raylet_of(node: object) -> psutil.Process:
    processes = getattr(node, "all_processes")["raylet"]  # noqa: B009 - Ray's class has no types
    return psutil.Process(processes[0].process.pid)


def _title_of(process: psutil.Process) -> str:
    """Return the command line, as far as it says what the process is; empty where it has ended."""
    try:
        words = process.cmdline()
    except psutil.NoSuchProcess:
        return ""
    if words and words[0].startswith("ray::"):
        return words[0]
    # A command of Python's by its module: paths of this machine say nothing to a reader.
    return f"python -m {words[words.index('-m') + 1]}" if "-m" in words[:-1] else " ".join(words)[:120]


def _start_of(process: psutil.Process) -> float:
    try:
        return float(process.create_time())
    except psutil.NoSuchProcess:
        return 0.0
