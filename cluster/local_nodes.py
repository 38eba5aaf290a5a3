"""Start several Ray nodes on this machine: ``python -m cluster.local_nodes --nodes 3 --cpus 2 -- COMMAND``.

Each node is a raylet with its own object store and logical CPUs, so that data really moves between nodes and
a node can be taken away in the middle.
"""

import argparse
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from wm.interrupts import keep_terminate_handler
from wm.ports import find_free_port
from wm.private_session import private_session, set_private_token

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

OBJECT_STORE_BYTES = 128 * 2**20
_AGENT_S = 120.0


@contextmanager
def local_nodes(
    num_nodes: int = 2,
    *,
    cpus_per_node: int = 2,
    object_store_bytes: int = OBJECT_STORE_BYTES,
    dashboard: bool = False,
    head: Mapping[str, object] | None = None,
    variables_of: Callable[[int], Mapping[str, str]] | None = None,
) -> Iterator["Cluster"]:
    """Run a cluster that ends with the block.

    Args:
        num_nodes: Nodes, the head among them.
        cpus_per_node: Logical CPUs of each.
        object_store_bytes: Size of each node's object store.
        dashboard: Whether the head has one, to which ``ray job submit`` speaks: ``webui_url`` of the cluster.
        head: Further settings of the head, as Ray's ``RayParams`` names them.
        variables_of: Returns the environment of a node's processes, beside that of this one, by the node's number; the
            head's is 0. Nodes with a ``WM_CACHE`` each share no copies.

    Yields:
        The cluster; ``add_node`` and ``remove_node`` change it. ``RAY_ADDRESS`` names it, for this process and its
        children; nothing is connected yet. Untrusted clients are kept out by a token.

    Raises:
        ValueError: Fewer than one node or CPU.
        TimeoutError: With a dashboard: the head does not take jobs.
    """
    if num_nodes < 1 or cpus_per_node < 1:
        raise ValueError(f"expected at least one node and one CPU, got {num_nodes} and {cpus_per_node}")
    # A cluster that the user has joined is not changed, and is back afterwards.
    before = os.environ.pop("RAY_ADDRESS", None)
    _authenticate()
    from ray._private import ray_constants
    from ray._private.utils import write_ray_address
    from ray.cluster_utils import Cluster

    # As long as the cluster runs: who joins it by a loopback address must not take it for the host's own.
    with private_session(ray_constants) as private, _own_folder(Path(private["_temp_dir"]), dashboard) as own:
        node = {"num_cpus": cpus_per_node, "object_store_memory": object_store_bytes, "temp_dir": str(own)}
        folder = own.parent
        with _own_address_file(folder), keep_terminate_handler():
            settings = {**node, **_dashboard_settings(dashboard), **_variables(variables_of, 0), **(head or {})}
            cluster = Cluster(initialize_head=True, head_node_args=settings)
        try:
            _add_nodes(cluster, [{**node, **_variables(variables_of, number)} for number in range(1, num_nodes)])
            os.environ["RAY_ADDRESS"] = cluster.address
            if dashboard:
                # By it a submitted command finds this cluster, and no other of the machine.
                write_ray_address(cluster.address, str(own))
                _wait_for_agent(cluster)
            yield cluster
        finally:
            with _own_address_file(folder):
                cluster.shutdown()
            os.environ.pop("RAY_ADDRESS", None)
            if before is not None:
                os.environ["RAY_ADDRESS"] = before


@contextmanager
def _own_folder(usual: Path, is_wanted: bool) -> Iterator[Path]:
    """Make a folder for the files of one cluster, which goes with it; the usual one, where none is wanted."""
    if not is_wanted:
        yield usual
        return
    # Of the same length as the usual name: a socket's path may not be longer.
    for number in range(256):
        folder = usual.with_name(f"c{number:02x}")
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
            break
    else:
        raise FileExistsError(f"{usual.parent} has 256 folders of clusters, c00 to cff; remove old ones")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _own_address_file(folder: Path) -> Iterator[None]:
    """Let Ray write the cluster's address below ``folder`` while it starts or ends one."""
    # By default it is $TMPDIR/ray/ray_current_cluster: that folder may not exist or be another user's, and the file
    # names the user's own cluster.
    (folder / "ray").mkdir(exist_ok=True)
    before = os.environ.get("RAY_TMPDIR")
    os.environ["RAY_TMPDIR"] = str(folder)
    try:
        yield
    finally:
        del os.environ["RAY_TMPDIR"]
        if before is not None:
            os.environ["RAY_TMPDIR"] = before


def _variables(variables_of: Callable[[int], Mapping[str, str]] | None, number: int) -> dict[str, object]:
    return {} if variables_of is None else {"env_vars": dict(variables_of(number))}


def _add_nodes(cluster: "Cluster", nodes: Sequence[Mapping[str, object]]) -> None:
    """Add nodes beside the head, and wait until all are there."""
    # Ray would take SIGTERM for each node, and end it without what uses it.
    with keep_terminate_handler():
        for settings in nodes:
            cluster.add_node(**settings)
    cluster.wait_for_nodes()


def _dashboard_settings(is_wanted: bool) -> dict[str, object]:
    if not is_wanted:
        return {"include_dashboard": False}
    port = find_free_port()
    # Not Ray's own ports: another cluster of this machine may have them. 0: any that is free.
    return {"include_dashboard": True, "dashboard_port": port, "dashboard_agent_listen_port": 0}


def _wait_for_agent(cluster: "Cluster") -> None:
    """Wait until the head takes jobs: its agent starts after all else, and the dashboard waits 10 s for it at most."""
    from ray._private import ray_constants
    from ray._raylet import GcsClient
    from ray.dashboard.consts import DASHBOARD_AGENT_ADDR_NODE_ID_PREFIX

    client, end_s = GcsClient(address=cluster.address), time.monotonic() + _AGENT_S
    key = f"{DASHBOARD_AGENT_ADDR_NODE_ID_PREFIX}{cluster.head_node.node_id}".encode()
    while not client.internal_kv_get(key, namespace=ray_constants.KV_NAMESPACE_DASHBOARD):
        if time.monotonic() > end_s:
            raise TimeoutError(f"the head's agent, which takes jobs, did not start within {_AGENT_S:g} s")
        time.sleep(0.2)


def _authenticate() -> None:
    """Turn token authentication on for this process and its children, with a token of their own if there is none."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    set_private_token()
    # The second by its own name: importing Ray sets the level of the first again.
    for name in ("ray", "ray._private.authentication.authentication_token_setup"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from ray._private.authentication.authentication_token_setup import enable_token_auth_by_default

    enable_token_auth_by_default()


def main(argv: Sequence[str] | None = None) -> int:
    """Start the nodes, run the command there, stop the nodes; returns the command's exit status."""
    parser = argparse.ArgumentParser(prog="python -m cluster.local_nodes", description=__doc__)
    parser.add_argument("--nodes", type=int, default=2, help="the head among them")
    parser.add_argument("--cpus", type=int, default=2, help="logical CPUs of each node")
    parser.add_argument("command", nargs="+", help="after --; it finds the cluster by RAY_ADDRESS")
    arguments = parser.parse_args(argv)
    if arguments.nodes < 1 or arguments.cpus < 1:
        parser.error("--nodes and --cpus must be at least 1")
    with local_nodes(arguments.nodes, cpus_per_node=arguments.cpus):
        print(
            f"{arguments.nodes} nodes with {arguments.cpus} CPUs each at {os.environ['RAY_ADDRESS']}",
            flush=True,
        )
        return subprocess.run(arguments.command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
