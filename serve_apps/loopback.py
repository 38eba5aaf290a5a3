"""Keep the ports of a session of this machine alone on loopback.

Ray's processes listen where the address of their node is. Two things do not follow it: Ray itself takes another address
for the node's than 127.0.0.1, unless a setting meant for other systems says so; and Ray Serve's replicas listen on all
addresses for calls between deployments, without asking who calls, and unpickle what they are sent.
"""

import logging
import os
from ipaddress import ip_address
from typing import Any

VARIABLE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Ray's, for systems whose firewall asks the user about every port: at 0 its processes listen on 127.0.0.1 alone."""
ALL_ADDRESSES = "[::]"

logger = logging.getLogger("ray.serve")


def keep_session_local() -> None:
    """Set, before a session starts, that its processes listen on 127.0.0.1; what the user has set stays."""
    from ray._private import ray_constants

    # This process has read the variable when Ray was imported; those that the session starts will read it.
    os.environ.setdefault(VARIABLE, "0")
    ray_constants.ENABLE_RAY_CLUSTER = os.environ[VARIABLE] != "0"


def keep_replica_local(node_address: str) -> None:
    """Bind the port of a Ray Serve replica to its node's address, in the replica's process, where that is loopback.

    On a cluster the replicas of other nodes call it: there Ray's port stays as Ray has it.
    """
    from ray.serve._private import replica

    if not ip_address(node_address).is_loopback:
        return
    add_port = getattr(replica, "add_port_to_grpc_server", None)
    if add_port is None:
        logger.warning(
            "this version of Ray Serve names the port of a replica otherwise: it may listen on all addresses"
        )
        return

    def add_local_port(server: Any, address: str) -> Any:
        return add_port(server, address.replace(ALL_ADDRESSES, node_address))

    replica.add_port_to_grpc_server = add_local_port
