"""A port for a server that starts later: nobody listens there, and the system gives it to nobody meanwhile."""

import socket

from wm import ports
from wm.ports import find_free_port


def test_a_port_is_below_those_that_the_system_gives_away():
    with socket.create_server(("127.0.0.1", 0)) as given:
        assert 20_000 <= find_free_port() < given.getsockname()[1]


def test_a_port_in_use_is_passed_over(monkeypatch):
    with socket.create_server(("127.0.0.1", find_free_port())) as taken:
        used = taken.getsockname()[1]
        tries = iter([used, used, used + 1, used + 2, used + 3])
        monkeypatch.setattr(ports._random, "randrange", lambda first, end: next(tries))
        assert find_free_port() > used
