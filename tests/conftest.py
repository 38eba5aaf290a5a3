"""Fixtures that every test may use."""

import gc
import logging
import os
import signal
import sys
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
# Read when a Ray session starts: tests of the server may come after others, in their session.
os.environ.setdefault("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "serve_apps.middleware.proxy:build_middlewares")

import hypothesis
import pytest
import torch

from tests.helpers.buckets import STORES, Bucket, BucketServers, set_variables
from wm.logs import OWN_LOGGERS

# More than two hundred processes import the same files, of which each would compile its own where the environment asks
# for no bytecode, as in many containers.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# The same examples in every run, however slow the machine is: what fails here fails again.
hypothesis.settings.register_profile(
    "repeatable",
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("repeatable")

# A run in the background of a shell without job control begins with Ctrl-C ignored, and so would all that it starts.
# Tests of what Ctrl-C does need it as it is at a terminal.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

torch.set_num_threads(1)  # the tests run many small operations; threads that wait for each other cost more

_OWN_SESSIONS = (
    "annotate/test_kills.py",
    "cluster/test_loop.py",
    "serve_apps/test_faults.py",
    "serve_apps/test_ray.py",
    "bootstrap/test_bootstrap.py",
    "serve_apps/test_roles.py",
    "benchmark/test_serving.py",
    "annotate/test_remote.py",
    "serve_apps/test_world_model.py",
    "cluster/test_cluster.py",
)
"""Ends of the paths of files that start Ray themselves. They wait for its processes, which several workers do better
than one after the other."""

_SHARED_SESSION = (
    "train/test_on_ray.py",
    "annotate/test_runs.py",
    "jobs/test_ray.py",
    "docs/test_guides.py",
    "evaluate/test_job.py",
    "jobs/test_outputs.py",
    "jobs/test_ingest.py",
)
"""The longest of those with a test in the shared session."""

_LONGEST_OTHERS = (
    "wm/training/test_distributed.py",
    "wm/training/planning/test_memory.py",
    "wm/viewer/test_browser.py",
    "wm/models/test_folder_checks.py",
)
"""The longest of all others: a worker that began one last would end alone."""


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keep Python's garbage collector from what the tests import: it stays to the end, and to search those 900,000
    objects takes nearly a second, each time that Python, a library or a test asks for it."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


_FILES_ON_RAY = pytest.StashKey[set[Path]]()
_LAST_FILE = pytest.StashKey[Path]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the files that take longest first: those that start Ray, those that share a session, all others.

    A worker has one shared session, from the first file with a test in it to the last: to start one takes ten seconds
    of computing, and an idle one a twentieth of a core.
    """
    on_ray = {item.path for item in items if "ray_session" in getattr(item, "fixturenames", ())}
    config.stash[_FILES_ON_RAY] = on_ray
    order = (*_OWN_SESSIONS, *_SHARED_SESSION, "", *_LONGEST_OTHERS)
    rank = {end: number for number, end in enumerate(order)}

    def rank_of(item: pytest.Item) -> int:
        path = item.path.as_posix()
        others = rank[""] if item.path in on_ray else len(rank)
        return next((number for end, number in rank.items() if end and path.endswith(f"/{end}")), others)

    items.sort(key=rank_of)  # stable: all else stays in its order


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Seed torch before any fixture: no test depends on what another has drawn. End a session that nobody needs."""
    torch.manual_seed(0)
    stash = item.config.stash
    if item.path != stash.get(_LAST_FILE, None) and item.path not in stash[_FILES_ON_RAY]:
        _end_ray_session()
    stash[_LAST_FILE] = item.path
    # A replica of an earlier test, in this process, has led them into Ray Serve's log; a command has set their levels.
    for name in (*OWN_LOGGERS, "wm.sampling"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.NOTSET)


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
    it starts when the first test or job asks for it, and again after a test that ended it. It ends before a file of
    which no test has this fixture."""
    from jobs.shared import ray_session as shared_ray_session

    shared_ray_session.connect()


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


@pytest.fixture(scope="session")
def bucket_servers() -> Iterator[BucketServers]:
    """The object stores of the tests, started when a test asks for a bucket of theirs."""
    with ExitStack() as stack:
        yield BucketServers(stack)


# rclone now and then lists an object without its time, or answers 500 to a write after a removal: what is passed over,
# a test of every commit need not meet.
_IN_CI = [pytest.param(name, marks=pytest.mark.soak) if name == "rclone" else name for name in STORES]


@pytest.fixture(params=_IN_CI)
def bucket(
    request: pytest.FixtureRequest, bucket_servers: BucketServers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Bucket:
    """An empty bucket in each of the stores, behind a proxy that can spoil requests; this process is a node with a
    mirror of its own."""
    empty = bucket_servers.create_bucket(request.param)
    set_variables(empty, monkeypatch)
    monkeypatch.setenv("WM_CACHE", str(tmp_path / "mirror"))
    return empty
