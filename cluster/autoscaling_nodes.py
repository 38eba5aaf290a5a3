"""Start a Ray cluster on this machine that adds and removes nodes by itself, with version 2 of Ray's autoscaler.

The nodes are those of Ray's provider for tests: a raylet each, with logical CPUs and whatever else a node type names.
Not known here: what the cluster is for.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from cluster.local_nodes import OBJECT_STORE_BYTES, local_nodes

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

WORKER = "worker"
"""Name of the only node type beside the head's."""

_PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
_HEAD = "ray.head.default"
_LISTS = (
    "cluster_synced_files",
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)
_UPDATE_S = 1
_END_S = 10.0


@contextmanager
def autoscaling_nodes(
    max_workers: int,
    *,
    head_cpus: int = 2,
    worker_resources: Mapping[str, float],
    head_resources: Mapping[str, float] | None = None,
    idle_s: float = 20.0,
    dashboard: bool = False,
) -> Iterator["Cluster"]:
    """Run a cluster of one node, to which Ray's autoscaler adds others while work waits for them.

    Args:
        max_workers: Nodes that may be added.
        head_cpus: Logical CPUs of the first node.
        worker_resources: What each further node has, ``CPU`` and others by name.
        head_resources: What the first node has beside CPUs.
        idle_s: A node that has had nothing to do for so long is removed.
        dashboard: Whether jobs can be submitted.

    Yields:
        The cluster, as :func:`cluster.local_nodes.local_nodes` does.
    """
    from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

    # The autoscaler knows the head by the id of its machine, which a cloud would set.
    variables = {
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": str(_UPDATE_S),
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        "RAY_NODE_TYPE_NAME": _HEAD,
    }
    head = {"no_monitor": True, "resources": dict(head_resources or {})}
    with _environment(variables), local_nodes(1, cpus_per_node=head_cpus, dashboard=dashboard, head=head) as cluster:
        # The file needs the address of the head, and the autoscaler the file: it starts last.
        node = cluster.head_node
        path = Path(node.get_session_dir_path()) / "autoscaling.json"
        config = build_config(
            cluster.address,
            max_workers,
            head_resources={"CPU": head_cpus, **(head_resources or {})},
            worker_resources=worker_resources,
            idle_s=idle_s,
        )
        path.write_text(json.dumps(config))
        node._ray_params.autoscaling_config = str(path)
        node.start_monitor()
        try:
            yield cluster
        finally:
            _end_added_nodes(node)


def build_config(
    address: str,
    max_workers: int,
    *,
    head_resources: Mapping[str, float],
    worker_resources: Mapping[str, float],
    idle_s: float,
) -> dict[str, object]:
    """Build the autoscaler's configuration file.

    Args:
        address: Of the head, ``host:port``.
        max_workers: Nodes that may be added.
        head_resources: What the head has, ``CPU`` and others by name.
        worker_resources: Of each further node.
        idle_s: When an idle node is removed.
    """
    from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

    return {
        "cluster_name": "local",
        "max_workers": max_workers,
        "idle_timeout_minutes": idle_s / 60,
        # Not `type: fake_multinode`: its defaults are in a file that Ray's wheel lacks.
        "provider": {
            "type": "external",
            "module": _PROVIDER,
            "gcs_address": address,
            "head_node_id": FAKE_HEAD_NODE_ID,
            "launch_multiple": True,
        },
        "available_node_types": {
            _HEAD: {"resources": dict(head_resources), "node_config": {}, "max_workers": 0},
            WORKER: {
                "resources": {"object_store_memory": OBJECT_STORE_BYTES, **worker_resources},
                "node_config": {},
                "min_workers": 0,
                "max_workers": max_workers,
            },
        },
        "head_node_type": _HEAD,
        # Without them Ray fails to join the lists of a provider that has no defaults.
        **{name: [] for name in _LISTS},
    }


def count_nodes() -> int:
    """Return the nodes of the joined cluster that are alive."""
    import ray

    return sum(node["Alive"] for node in ray.nodes())


def wait_for_nodes(num_nodes: int, limit_s: float) -> float:
    """Wait until the joined cluster has so many nodes; returns the seconds that it took.

    Args:
        num_nodes: Nodes, the head among them.
        limit_s: Max time.

    Raises:
        TimeoutError: It has another number by then.
    """
    begin_s = time.monotonic()
    # Asked again and again: Ray reports nothing by itself.
    while (count := count_nodes()) != num_nodes:
        if time.monotonic() - begin_s > limit_s:
            raise TimeoutError(f"the cluster has {count} nodes after {limit_s:g} s, not {num_nodes}")
        time.sleep(0.2)
    return time.monotonic() - begin_s


def _end_added_nodes(head: object) -> None:
    """End the nodes that the autoscaler has started: they are children of its process, and nobody else ends them."""
    processes = getattr(head, "all_processes")["monitor"]  # noqa: B009 - Ray's class has no types
    with suppress(psutil.NoSuchProcess):
        monitor = psutil.Process(processes[0].process.pid)
        nodes = monitor.children(recursive=True)
        # First the monitor, or it would start them again.
        monitor.kill()
        for process in nodes:
            with suppress(psutil.NoSuchProcess):
                process.terminate()
        _, alive = psutil.wait_procs(nodes, timeout=_END_S)
        for process in alive:
            with suppress(psutil.NoSuchProcess):
                process.kill()


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables of this process, which the cluster's processes inherit."""
    # The cluster's processes keep them; those that this process starts later should not have them.
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
