"""Keep Ray Serve's calls between deployments on this machine, where the session is of this machine alone.

Each replica listens for such calls on all addresses, whatever the address of its node. Ray has no setting for it; the
session's token guards that server all the same.
"""

from ipaddress import ip_address
from typing import Any

ALL_ADDRESSES = "[::]:0"


def listen_on_loopback() -> None:
    """Let the replica of this process listen on its node's address if that is loopback; to be called while it is
    constructed, for Serve starts that server afterwards."""
    import ray

    if not ray.is_initialized() or not ip_address(ray.util.get_node_ip_address()).is_loopback:
        return
    from ray.serve._private import replica

    host, add_port = ray.util.get_node_ip_address(), replica.add_port_to_grpc_server

    def add_loopback_port(server: Any, address: str) -> int:
        if address == ALL_ADDRESSES:
            address = f"[{host}]:0" if ":" in host else f"{host}:0"
        port: int = add_port(server, address)
        return port

    replica.add_port_to_grpc_server = add_loopback_port
