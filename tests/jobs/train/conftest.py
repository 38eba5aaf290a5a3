"""What several tests of training read."""

from pathlib import Path

import pytest

from tests.helpers.training_data import random_rows, write_triplets


@pytest.fixture(scope="package")
def triplets(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_triplets(random_rows(tiny_base, 100), tmp_path_factory.mktemp("triplets") / "triplets")
