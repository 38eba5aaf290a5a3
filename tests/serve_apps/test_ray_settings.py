"""Variables of Ray Serve for a session of ``wm serve``."""

import os

import pytest
from ray.serve._private import constants

from serve_apps.ray_settings import SETTINGS, direct_settings, session_settings


def test_ray_knows_every_variable():
    known = vars(constants)
    assert set(SETTINGS) | set(direct_settings(8001)) <= set(known)


def test_what_the_user_has_set_stays(monkeypatch):
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    first, *others = SETTINGS
    monkeypatch.setenv(first, "its user's")
    with session_settings(None):
        assert os.environ[first] == "its user's"
        assert {name: os.environ[name] for name in others} == {name: SETTINGS[name] for name in others}
        assert not set(direct_settings(8001)) & set(os.environ)
    # Whatever this process starts next is not of this session.
    assert os.environ[first] == "its user's" and not set(others) & set(os.environ)


def test_a_session_alone_has_the_second_port(monkeypatch):
    settings = direct_settings(8001)
    for name in settings:
        monkeypatch.delenv(name, raising=False)
    quarantine = "RAY_SERVE_PORT_QUARANTINE_S"
    monkeypatch.setenv(quarantine, "7")
    with pytest.raises(KeyError, match="as it started"), session_settings(8001):
        assert {name: os.environ[name] for name in settings} == settings
        raise KeyError("as it started")
    assert os.environ[quarantine] == "7" and not (set(settings) - {quarantine}) & set(os.environ)


def test_the_range_of_ports_holds_one():
    settings = direct_settings(8001)
    low, high = (int(settings[f"RAY_SERVE_DIRECT_INGRESS_{end}_HTTP_PORT"]) for end in ("MIN", "MAX"))
    assert list(range(low, high)) == [8001]
