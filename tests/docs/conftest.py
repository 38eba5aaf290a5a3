"""The documentation, built once for all tests of its output."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.doc_pages import ROOT


class Site:
    """Pages as they were built, and what MkDocs warned of."""

    def __init__(self, folder: Path, warnings: list[str]) -> None:
        self.folder, self.warnings = folder, warnings

    def read(self, page: str) -> str:
        return (self.folder / page).read_text()


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Build in this process, where the product is imported already: as make docs does, to another folder."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    records: list[logging.LogRecord] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = records.append  # type: ignore[method-assign]
    logger = logging.getLogger("mkdocs")
    logger.addHandler(handler)
    try:
        # Not strict: the test that reads the warnings names all of them.
        config = load_config(str(ROOT / "docs" / "mkdocs.yml"), site_dir=str(folder), strict=False)
        config.plugins.on_startup(command="build", dirty=False)
        build(config)
        config.plugins.on_shutdown()
    finally:
        logger.removeHandler(handler)
    yield Site(folder, [record.getMessage() for record in records])
