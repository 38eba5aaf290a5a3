"""A training that is killed while it writes a checkpoint, and resumed by the same command, makes the same adapter."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.chaos.outcomes import digest_files
from jobs.train.job import run
from tests.helpers.bucket_models import bucket, keys
from tests.helpers.training_data import merge_tables, random_rows, to_arguments, write_triplets
from wm.files.mirror import fetch
from wm.training import TrainRecipe
from wm.training.checkpoint import store as checkpoint_store
from wm.training.checkpoint.deletion import Deletion
from wm.training.checkpoint.manager import CheckpointManager
from wm.training.checkpoint.store import MANIFEST, CheckpointStore

STEPS, EVERY, LAST = 6, 2, 4
"""Steps of a run, those between two checkpoints, and the one whose checkpoint is not written to its end."""

RESUMED_AT = {
    "in a file": 2,
    "files written": 2,
    "manifest": 2,
    "not renamed": 2,
    "renamed": 4,
    "older one half gone": 4,
}
"""Where the writer is killed, and the step from which the same command then resumes."""
ON_DISK_ALONE = {"not renamed", "renamed"}


class KilledError(BaseException):
    """Ends a thread where it stands: nothing handles it."""


ends_in_thread = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


def strike_at(patch: pytest.MonkeyPatch, point: str, kill: Callable[[], None]) -> None:
    """Call ``kill`` at a point of the checkpoint of step :data:`LAST`, in the thread that writes it."""
    name_part = f"step-{LAST:08d}"

    def before(owner: Any, name: str, is_due: Callable[..., bool]) -> None:
        real = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if is_due(*args):
                kill()
            return real(*args, **kwargs)

        patch.setattr(owner, name, call)

    if point == "in a file":

        def write(sink: Any, tensors: Any) -> int:
            # The first checkpoint is complete; of this one there is a part of a file.
            if calls.append(1) or len(calls) == LAST // EVERY:
                sink.write(b"half of a file")
                sink.flush()
                kill()
            return real_write(sink, tensors)

        calls: list[int] = []
        real_write = sys.modules["wm.training.checkpoint.manager"].__dict__["write_tensors"]
        patch.setattr("wm.training.checkpoint.manager.write_tensors", write)
    elif point == "files written":
        before(CheckpointStore, "finish", lambda self, name, manifest: name_part in name)
    elif point == "manifest":
        before(CheckpointStore, "_write", lambda self, path, content: name_part in path and path.endswith(MANIFEST))
    elif point == "not renamed":
        before(checkpoint_store, "_flush_to_disk", lambda path: name_part in str(path) and path.name == MANIFEST)
    elif point == "renamed":
        # The root is flushed after each of them has got its name.
        before(checkpoint_store, "_flush_to_disk", lambda path: any(path.glob(f"{name_part}-*/{MANIFEST}")))
    else:
        before(Deletion, "delete_folder", lambda self, path: f"step-{EVERY:08d}" in path)


@pytest.fixture(scope="module")
def triplets(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_triplets(random_rows(tiny_base, 16), tmp_path_factory.mktemp("rows") / "triplets")


def settings_of(base: Path, triplets: Path, out: str) -> dict[str, Any]:
    paths = {"task": "fdm", "base": str(base), "triplets": str(triplets), "out": out}
    amounts = {"max_steps": STEPS, "global_batch_size": 4, "lora": {"r": 4}, "optim": {"lr": 1e-2}}
    more = {"checkpoint": {"every_steps": EVERY}, "logging": {"trackers": []}, "resources": {"num_workers": 0}}
    return merge_tables(paths, amounts, more)


@pytest.fixture(scope="module")
def expected(tiny_base: Path, triplets: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Digests of the adapter that nothing disturbs."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    run(TrainRecipe.parse(settings_of(tiny_base, triplets, str(out)), "test"))
    return digest_files(out / "model")


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with bucket("data") as client:
        yield client


def train_killed(recipe: TrainRecipe, point: str) -> None:
    """Train until the writer has been struck, then end."""
    save = CheckpointManager.save

    def save_and_end(self: CheckpointManager, num_steps: int, *args: Any) -> None:
        save(self, num_steps, *args)
        if num_steps == LAST:
            assert self._write is not None
            self._write.thread.join()
            raise KilledError

    def kill() -> None:
        raise KilledError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CheckpointManager, "save", save_and_end)
        strike_at(patch, point, kill)
        with pytest.raises(KilledError):
            run(recipe)


@ends_in_thread
@pytest.mark.parametrize("point", ["not renamed", "older one half gone"])
def test_a_run_killed_while_a_checkpoint_is_written_resumes(
    *, point: str, tiny_base: Path, triplets: Path, expected: dict[str, str], tmp_path: Path
) -> None:
    recipe = TrainRecipe.parse(settings_of(tiny_base, triplets, str(tmp_path / "out")), "test")
    train_killed(recipe, point)
    assert run(recipe)["summary"]["resumed_at_step"] == RESUMED_AT[point]
    assert expected and digest_files(tmp_path / "out" / "model") == expected
    assert not (tmp_path / "out" / "checkpoints").exists()


@ends_in_thread
def test_so_does_one_in_a_bucket_on_another_node(
    *, client: Any, tiny_base: Path, triplets: Path, expected: dict[str, str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    point, out = "manifest", "s3://data/killed"
    monkeypatch.setenv("WM_CACHE", str(tmp_path / "first"))
    train_killed(TrainRecipe.parse(settings_of(tiny_base, triplets, out), "test"), point)
    monkeypatch.setenv("WM_CACHE", str(tmp_path / "second"))
    record = run(TrainRecipe.parse(settings_of(tiny_base, triplets, out), "test"))
    assert record["summary"]["resumed_at_step"] == RESUMED_AT[point]
    assert digest_files(fetch(f"{out}/model", leave=())) == expected
    assert not any("checkpoint.json" in key for key in keys(client, "data", out.removeprefix("s3://data/")))


def main(point: str, number: int, arguments: list[str]) -> int:
    """Train in a process of its own, which gets a signal at a point; the writer stands there from then on."""
    from jobs.train import main as train

    def kill() -> None:
        os.kill(os.getpid(), number)
        threading.Event().wait()

    strike_at(pytest.MonkeyPatch(), point, kill)
    return train(arguments)


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("place", ["folder", "bucket"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["kill", "term"])
@pytest.mark.parametrize("point", RESUMED_AT)
def test_the_same_with_real_signals(
    *, point: str, number: int, place: str, client: Any, tiny_base: Path, triplets: Path, expected: dict[str, str],
    tmp_path: Path,
) -> None:  # fmt: skip
    if place == "bucket" and point in ON_DISK_ALONE:
        pytest.skip("an object store does not rename")
    name = f"{point.replace(' ', '-')}-{number:d}"
    out = f"s3://data/{name}" if place == "bucket" else str(tmp_path / "out")
    arguments = to_arguments(settings_of(tiny_base, triplets, out))

    def start(code: str, node: str) -> "subprocess.CompletedProcess[str]":
        environment = os.environ | {"WM_CACHE": str(tmp_path / node)}
        command = [sys.executable, "-c", f"import sys; {code}", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)

    module = "tests.jobs.train.test_killed_checkpoints"
    killed = start(f"from {module} import main; sys.exit(main({point!r}, {number:d}, sys.argv[1:]))", "first")
    assert killed.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 143), killed.stderr
    resumed = start("from jobs.train import main; sys.exit(main(sys.argv[1:]))", "second")
    assert resumed.returncode == 0, resumed.stderr
    assert f"{STEPS} steps, resuming from step {RESUMED_AT[point]}\n" in resumed.stdout
    assert (
        digest_files(fetch(f"{out}/model", leave=()) if place == "bucket" else tmp_path / "out" / "model") == expected
    )
