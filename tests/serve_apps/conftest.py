"""Fixtures of the playground's tests: a browser's window, a watched page in it, and the scripted server."""

from collections.abc import Iterator

import pytest

from tests.helpers.browser import Browser
from tests.helpers.playground_pages import watched
from tests.helpers.playground_server import Scripted, served


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
