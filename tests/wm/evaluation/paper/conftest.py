"""Results that the tests of this folder read."""

from pathlib import Path

import pytest

from tests.helpers.paper_results import write_results
from wm.evaluation.paper.measured import Measured
from wm.evaluation.paper.sources import read_sources
from wm.evaluation.paper.tables.common import Layout


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A bench of five triplets in three subsets, a judging and a scoring; read only."""
    return write_results(tmp_path_factory.mktemp("paper"))


@pytest.fixture(scope="session")
def layout(results: dict[str, Path]) -> Layout:
    return Layout(Measured(read_sources([str(results["judge"]), str(results["score"])])))
