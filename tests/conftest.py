"""Fixtures that every test may use."""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import pytest
import torch

torch.set_num_threads(1)  # the tests run many small operations; threads that wait for each other cost more


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data, where there is any: ``WM_SHARED_DATA`` or ``../shared/data`` beside the repository."""
    path = Path(os.environ.get("WM_SHARED_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
    if not path.is_dir():
        pytest.skip(f"no real data at {path}")
    return path


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random Chameleon (16 px, 4 tokens an image, 16 codes); read only."""
    from wm.models.nano import write_random_base

    path = tmp_path_factory.mktemp("models") / "tiny_base"
    write_random_base(path, seed=0)
    return path
