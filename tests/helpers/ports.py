"""Find ports for servers that a test starts in another process."""

import random
import socket
from pathlib import Path

_FIRST = 20_000
# Seeded by the system: processes of one test run must not try the same ports.
_random = random.SystemRandom()


def free_port() -> int:
    """Return a port of 127.0.0.1 at which nobody listens.

    It is below those that the system gives to connections and to servers that ask for any: one of these may be taken
    by another process before the server of the test has started.
    """
    end = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = _random.randrange(_FIRST, end)
        try:
            with socket.create_server(("127.0.0.1", port)):
                return port
        except OSError:
            continue
