"""Fixtures: models of every kind; a window, a watched page and the scripted server of the playground; Serve's log."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.browser import Browser
from tests.helpers.models_editors import write_pix2pix
from tests.helpers.models_vlms import write_qwen2_vl
from tests.helpers.playground_pages import watched
from tests.helpers.playground_server import Scripted, served


@pytest.fixture(scope="session")
def folders_by_kind(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny random models of every kind: codes, pixels, editor."""
    root = tmp_path_factory.mktemp("kinds")
    write_qwen2_vl(root / "pixels")
    return {"codes": tiny_base, "pixels": root / "pixels", "editor": write_pix2pix(root / "editor")}


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def page(window: Browser) -> Iterator[Browser]:
    with watched(window) as browser:
        yield browser


@pytest.fixture(scope="module")
def scripted() -> Scripted:
    return Scripted()


@pytest.fixture(scope="module")
def scripted_url(scripted: Scripted) -> Iterator[str]:
    with served(scripted.app) as address:
        yield address


@pytest.fixture
def serve_log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.LogCaptureFixture]:
    """What is logged as Ray Serve's own: it keeps that from other handlers once it has run in this process."""
    logger = logging.getLogger("ray.serve")
    monkeypatch.setattr(logger, "propagate", False)
    monkeypatch.setattr(logger, "disabled", False)
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)
    logger.setLevel(level)
