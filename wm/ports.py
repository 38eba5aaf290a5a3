"""Find ports for servers that another process will start."""

import random
import socket
from pathlib import Path
from typing import Final

_FIRST: Final = 20_000
_RANGE: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
_USUAL_END: Final = 32_768
"""Where Linux begins to give ports away, unless it is configured otherwise (its documentation of ip-sysctl)."""

# Seeded by the system: processes that search at the same time must not try the same ports.
_random = random.SystemRandom()


def find_free_port() -> int:
    """Return a port of 127.0.0.1 at which nobody listens.

    It is below those that the system gives to connections and to servers that ask for any: one of these may be taken
    by another process before the server that it is meant for has started.
    """
    end = int(_RANGE.read_text().split()[0]) if _RANGE.exists() else _USUAL_END
    # A system may give away from lower on; then any port is as good.
    end = end if end > _FIRST else _USUAL_END
    while True:
        port = _random.randrange(_FIRST, end)
        try:
            with socket.create_server(("127.0.0.1", port)):
                return port
        except OSError:
            continue
