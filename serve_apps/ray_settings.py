"""Set Ray Serve's variables for a session of ``wm serve``: fewer changes of thread, calls by gRPC, and a second port
without Ray's proxy where one is asked for.

Every process of a session inherits them from the one that starts it, so that they must be set before it starts.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from serve_apps.calls import GRPC_VARIABLE

SETTINGS = {
    # Two threads beside a deployment's own are for code that blocks its event loop. Ours does not: models have a thread
    # of their own. Without the other two a request changes threads less often.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    # Calls between deployments go from process to process, not as Ray's tasks: a tenth less for one of a nano model.
    # Every replica has the port for them with or without this: serve_apps.loopback says who reaches it.
    GRPC_VARIABLE: "1",
    # Ray's bound for these calls is 4 MB: six images of 512 pixels a side, or an answer of ten. Clients are bounded by
    # max_body_bytes and the other limits of the recipe.
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(2**31 - 1),
}


def direct_settings(port: int) -> dict[str, str]:
    """Return the variables with which the process behind Ray's proxy listens itself, too.

    Args:
        port: TCP port that it listens on, at the proxy's address.
    """
    return {
        "RAY_SERVE_ENABLE_DIRECT_INGRESS": "1",
        # A range of one port; its end is not in it.
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(port),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(port + 1),
        # Both are for load balancers, which hear first that a process is gone. Here the next one takes
        # the port at once.
        "RAY_SERVE_PORT_QUARANTINE_S": "0",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
    }


@contextmanager
def session_settings(direct_port: int | None) -> Iterator[None]:
    """Set the variables for a session that is started within; of :data:`SETTINGS`, what the user has set stays.

    Args:
        direct_port: As for :func:`direct_settings`; None: no such port.
    """
    settings = {name: value for name, value in SETTINGS.items() if name not in os.environ}
    if direct_port is not None:
        settings |= direct_settings(direct_port)
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        # The next session of this process may have another recipe, or serve something else.
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
