"""What several tests of ``evaluate`` read."""

from pathlib import Path

import pytest

from tests.helpers.evaluate_data import ACTIONS, noise_pair, write_triplets


@pytest.fixture(scope="package")
def triplets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_triplets(tmp_path_factory.mktemp("held_out"), noise_pair, ACTIONS)
