"""Which address a replica's port is bound to: its node's own where that is loopback, Ray's choice elsewhere."""

import pytest
import ray
from ray.serve._private import replica

from serve_apps.comparisons import ComparisonServer
from serve_apps.ledger import LimitsServer
from serve_apps.loopback import keep_replica_local

PORT = "[::]:9000"


@pytest.fixture
def bind_on(monkeypatch):
    """Return the address that a replica's port is bound to on a node, once a function was called there."""

    def bind(node, function):
        monkeypatch.setattr(replica, "add_port_to_grpc_server", lambda server, address: address)
        monkeypatch.setattr(ray, "is_initialized", lambda: node is not None)
        monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: node)
        function()
        return replica.add_port_to_grpc_server(None, PORT)

    return bind


@pytest.mark.parametrize(
    ("node", "bound"),
    [
        ("127.0.0.1", "127.0.0.1:9000"),
        ("::1", "[::1]:9000"),
        ("10.0.0.7", PORT),
        ("head.example", PORT),
        (None, PORT),
    ],
)
def test_the_address_of_a_replicas_port(bind_on, node, bound):
    assert bind_on(node, keep_replica_local) == bound


def test_deployments_without_a_model_are_local_too(bind_on, tmp_path):
    votes = str(tmp_path / "votes.sqlite")
    assert bind_on("127.0.0.1", LimitsServer) == "127.0.0.1:9000"
    assert bind_on("127.0.0.1", lambda: ComparisonServer(votes, {})) == "127.0.0.1:9000"
