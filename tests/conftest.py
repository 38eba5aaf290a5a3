"""Fixtures that every test may use."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
# Read when a Ray session starts: tests of the server may come after others, in their session.
os.environ.setdefault("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "serve_apps.middleware.proxy:build_middlewares")
# So that a deployment scales within seconds of its load, and no test waits for the 10 that Ray takes.
os.environ.setdefault("RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S", "0.5")

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


@pytest.fixture
def ray_session() -> None:
    """A Ray session of this process. It takes 10 s to start, so that all tests share one, as jobs of one process do:
    it starts when the first test or job asks for it, and again after a test that ended it."""
    from jobs.shared import ray_session as shared_ray_session

    shared_ray_session.connect()


@pytest.fixture
def no_ray_session() -> None:
    """For a test that joins a cluster of its own: the session of the tests before it is ended."""
    _end_ray_session()


@pytest.fixture(scope="session", autouse=True)
def _ray_session_ends_with_the_tests() -> Iterator[None]:
    yield
    _end_ray_session()


def _end_ray_session() -> None:
    if "ray" in sys.modules:
        from jobs.shared import ray_session as shared_ray_session

        shared_ray_session.shutdown()


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random Chameleon (16 px, 4 tokens an image, 16 codes); read only."""
    from wm.nano.preset import write_random_base

    path = tmp_path_factory.mktemp("models") / "tiny_base"
    write_random_base(path, seed=0)
    return path
