"""Which address a replica's port is bound to: its node's own where that is loopback, Ray's choice elsewhere."""

import pytest
from ray.serve._private import replica

from serve_apps.loopback import keep_replica_local


@pytest.mark.parametrize(
    ("node", "bound"),
    [
        ("127.0.0.1", "127.0.0.1:9000"),
        ("::1", "[::1]:9000"),
        ("10.0.0.7", "[::]:9000"),
        ("head.example", "[::]:9000"),
    ],
)
def test_the_address_of_a_replicas_port(node, bound, monkeypatch):
    monkeypatch.setattr(replica, "add_port_to_grpc_server", lambda server, address: address)
    keep_replica_local(node)
    assert replica.add_port_to_grpc_server(None, "[::]:9000") == bound
