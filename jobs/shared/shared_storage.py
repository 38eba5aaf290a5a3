"""Refuse outputs of a submitted Ray job that other nodes of its cluster do not see.

A file is written where the output will be, and tasks on other nodes look for it: neither the name of a folder nor its
kind of file system says who shares it. Nodes that join the cluster later are not asked. Not known here: what the job
writes, or which of its processes.
"""

import os
import secrets
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from jobs.shared import ray_session
from wm.config import Recipe
from wm.errors import InputError
from wm.files.mirror import uri_of
from wm.files.uris import is_remote, local_path
from wm.paths import path_key

MAX_NODES = 4
"""Nodes that are asked: one that does not see the output is enough to refuse it."""
LOOK_S = 5.0
"""A network file system may show a new file late."""
ANSWER_S = 60.0
"""A node may have to fetch the job's working directory first."""


@dataclass(frozen=True)
class Node:
    """A node of the cluster other than this process's."""

    node_id: str
    address: str


Look = Callable[[Path, Sequence[Node]], Mapping[Node, bool]]
"""Asks nodes whether they see a file; nodes that do not answer are left out."""


def check_outputs(recipe: Recipe) -> None:
    """Check that other nodes of the cluster see every local output that a recipe names.

    Args:
        recipe: Of a command of ``ray job submit``; the cluster is joined for the check, and left.

    Raises:
        InputError: An output is in a folder of this node alone.
    """
    outputs = find_local_outputs(recipe)
    if not outputs or ray_session.is_private():
        return
    ray_session.connect()
    try:
        nodes = find_other_nodes()
        for name, path in outputs.items():
            check_shared(name, path, nodes, look_on_nodes)
    finally:
        # The command may fork processes, and one that needs Ray connects by itself.
        ray_session.shutdown()


def find_local_outputs(recipe: Recipe, prefix: str = "") -> dict[str, str]:
    """Return the local paths that a recipe and its tables write to, caches apart, by their dotted keys."""
    outputs: dict[str, str] = {}
    for name, field in type(recipe).model_fields.items():
        value = getattr(recipe, name)
        if isinstance(value, Recipe):
            outputs |= find_local_outputs(value, f"{prefix}{name}.")
        mark = path_key(field.metadata)
        is_kept = mark is not None and mark.is_output and not mark.is_cache
        # What is kept in a bucket need not be seen by other nodes.
        if is_kept and value and not is_remote(value) and uri_of(value) is None:
            outputs[prefix + name] = local_path(value)
    return outputs


def find_other_nodes() -> list[Node]:
    """List nodes of the cluster that are alive, without this process's own, :data:`MAX_NODES` at most."""
    import ray

    own_id = ray.get_runtime_context().get_node_id()
    nodes = [Node(node["NodeID"], node["NodeManagerAddress"]) for node in ray.nodes() if node["Alive"]]
    return [node for node in nodes if node.node_id != own_id][:MAX_NODES]


def check_shared(name: str, path: str, nodes: Sequence[Node], look: Look) -> None:
    """Check that other nodes see the folder of an output.

    Args:
        name: Recipe key, for the message.
        path: Its value, a local path; nothing need be there yet.
        nodes: Other nodes of the cluster.
        look: Asks them.

    Raises:
        InputError: One of them does not see it. Its message has the key, the value and the nodes.
    """
    if not nodes:
        return
    folder = _find_folder(path)
    marker = folder / f".wm-seen-{secrets.token_hex(8)}"
    try:
        marker.touch(exist_ok=False)
    except OSError:
        return  # the command itself says why it cannot write there
    try:
        answers = look(marker, nodes)
    finally:
        with suppress(OSError):
            marker.unlink()
    blind = [node.address for node, sees in answers.items() if not sees]
    if blind:
        raise InputError(
            f"{name} = {path!r:.200}: what the submitted command writes to {folder} is on its own node alone, not on "
            f"{' and '.join(blind)} of this cluster, and the output would be lost with the node; give a path on "
            f"storage that all nodes share, such as {name}=/mnt/shared/run"
        )
    silent = [node.address for node in nodes if node not in answers]
    if silent:
        addresses = " and ".join(silent)
        print(
            f"note: {addresses} did not say within {ANSWER_S:g} s whether {name} = {path!r:.200} is seen there",
            file=sys.stderr,
        )


def look_on_nodes(marker: Path, nodes: Sequence[Node]) -> dict[Node, bool]:
    """Run a task on each node that looks for a file.

    Args:
        marker: The file.
        nodes: Where to look; a task takes no CPU, so that it does not wait for other work.

    Returns:
        What each node saw; nodes that died or did not answer within :data:`ANSWER_S` are left out.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=0)(is_seen)
    tasks = {
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.node_id, soft=False)).remote(
            str(marker), LOOK_S
        ): node
        for node in nodes
    }
    finished, late = ray.wait(list(tasks), num_returns=len(tasks), timeout=ANSWER_S)
    for reference in late:
        ray.cancel(reference, force=True)
    answers = {}
    for reference in finished:
        with suppress(ray.exceptions.RayError):
            answers[tasks[reference]] = ray.get(reference)
    return answers


def is_seen(path: str, wait_s: float) -> bool:
    """Return whether a file is there, or appears soon.

    Args:
        path: The file.
        wait_s: Seconds to wait for it.
    """
    end_s = time.monotonic() + wait_s
    while not os.path.exists(path):  # noqa: PTH110 - of a folder that may not be entered Path.exists raises
        if time.monotonic() > end_s:
            return False
        time.sleep(0.25)
    return True


def _find_folder(path: str) -> Path:
    """Return the nearest folder above an output, or the output itself, that exists."""
    folder = Path(os.path.realpath(path))
    # Nothing is made for the check: a command may refuse, or resume, a folder that is there already.
    while not folder.is_dir():
        folder = folder.parent
    return folder
