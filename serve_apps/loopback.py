"""Keep Ray Serve's calls between deployments on this machine, where the session is of this machine alone.

Each replica listens for such calls on all addresses, whatever the address of its node and whether or not calls go that
way (``RAY_SERVE_USE_GRPC_BY_DEFAULT``), and unpickles what it is sent. Ray has no setting for it; the session's token,
which is checked before anything is unpickled, guards that port all the same. That Ray's own processes listen on
loopback is the concern of :mod:`wm.private_session`.
"""

import logging
from ipaddress import ip_address
from typing import Any

import ray

ALL_ADDRESSES = "[::]"

logger = logging.getLogger("ray.serve")


def keep_replica_local() -> None:
    """Bind the port of a Ray Serve replica to its node's address, in the replica's process, where that is loopback.

    On a cluster the replicas of other nodes call it: there Ray's port stays as Ray has it. Every class of a deployment
    calls this as it is built: Ray opens the port afterwards.
    """
    if not ray.is_initialized():
        return  # a test makes a deployment's class in its own process
    from ray.serve._private import replica

    try:
        address = ip_address(ray.util.get_node_ip_address())
    except ValueError:
        return  # a host name: of a cluster that was started with one
    if not address.is_loopback:
        return
    host = f"[{address}]" if address.version == 6 else str(address)
    # Ray has no setting for the address: its function is wrapped.
    add_port = getattr(replica, "add_port_to_grpc_server", None)
    if add_port is None:
        logger.warning(
            "this version of Ray Serve names the port of a replica otherwise: it may listen on all addresses"
        )
        return

    def add_local_port(server: Any, port_address: str) -> Any:
        return add_port(server, port_address.replace(ALL_ADDRESSES, host))

    replica.add_port_to_grpc_server = add_local_port
