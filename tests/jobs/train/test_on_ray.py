"""The job on Ray: errors of workers in one line; a killed driver and a killed worker change nothing."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from jobs.train.job import run
from tests.helpers.kills import children
from tests.helpers.training_data import small_training, to_arguments
from wm.errors import InputError
from wm.training import TrainRecipe

ROOT = Path(__file__).resolve().parents[3]
STEPS, EVERY = 120, 20

pytestmark = pytest.mark.slow


def recipe_of(*args: Any, **values: Any) -> TrainRecipe:
    return TrainRecipe.parse(small_training(*args, **values), "test")


def curve(out: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines]


def checkpoints(out: Path) -> list[int]:
    """Steps of the checkpoints that there are."""
    return [int(path.name.split("-")[1]) for path in (out / "checkpoints").glob("step-*")]


def when_checkpointed(out: Path, act: Callable[[], None], after: int = 0) -> threading.Thread:
    """Do something as soon as the run in ``out`` has a checkpoint of a step later than ``after``."""

    def watch() -> None:
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline:
            if any(step > after for step in checkpoints(out)):
                act()
                return
            time.sleep(0.01)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def kill_a_training_worker() -> None:
    children("RayTrainWorker")[0].kill()


def test_another_process_joins_the_session_that_is_named(ray_session: None) -> None:
    import ray

    address = ray.get_runtime_context().gcs_address
    script = (
        "from jobs.shared import ray_session; ray_session.connect(); ray_session.connect(); "
        "import ray; print(ray.get_runtime_context().gcs_address)"
    )
    joined = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=os.environ | {"RAY_ADDRESS": address},
        capture_output=True,
        text=True,
        check=True,
    )
    assert joined.stdout.split() == [address]


# What test_train holds of both without Ray's start-up: one is wrapped by Ray, after the other it has nothing to repeat.
@pytest.mark.soak
@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"lora": {"targets": ".*no_such_layer"}, "resources": {"num_workers": 1, "max_failures": 0}},
            "^lora.targets = '.*no_such_layer' fits",
        ),
        (
            {
                "lora": {"enabled": False},
                "optim": {"lr": 1e30, "max_grad_norm": 0},
                "resources": {"num_workers": 1},
            },
            "^loss is nan at step",
        ),
    ],
)
def test_errors_of_workers_are_reported_in_one_line(
    *, tiny_base: Path, triplets: Path, tmp_path: Path, ray_session: None, values: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message) as error:
        run(recipe_of(tiny_base, triplets, tmp_path / "out", **values))
    assert "\n" not in str(error.value)


@pytest.mark.timeout(600)
def test_a_killed_driver_then_a_killed_worker_change_nothing(
    tiny_base: Path, triplets: Path, tmp_path: Path, ray_session: None
) -> None:
    """Two ranks, started twice again, come to the curve of one process that nothing disturbed."""
    # Large batches: a worker whose driver is gone goes on for some three seconds, which must be a few steps.
    common = {
        "max_steps": STEPS,
        "global_batch_size": 24,
        "checkpoint": {"every_steps": EVERY},
        "lora": {"dropout": 0.0},
    }
    undisturbed = tmp_path / "undisturbed"
    run(recipe_of(tiny_base, triplets, undisturbed, **common, resources={"num_workers": 0}))

    # 1. The driver, in a session of its own. Rows one by one: the worker outlives it for a moment and must not end.
    out = tmp_path / "out"
    arguments = to_arguments(
        small_training(tiny_base, triplets, out, **common, micro_batch_size=1, resources={"num_workers": 1})
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    log = tmp_path / "driver.log"
    with log.open("w") as file:
        driver = subprocess.Popen(
            [sys.executable, "-m", "jobs.train", *arguments], cwd=ROOT, env=environment, stdout=file, stderr=file
        )
    while not checkpoints(out):
        assert driver.poll() is None, log.read_text()
        time.sleep(0.01)
    orphans = children("RayTrainWorker", of=driver.pid)
    os.kill(driver.pid, signal.SIGKILL)
    assert driver.wait() == -signal.SIGKILL, log.read_text()
    # Until it has ended it may write one checkpoint more, which would be taken for one of the next two.
    assert len(orphans) == 1 and psutil.wait_procs(orphans, timeout=200)[1] == []
    assert not (out / "run.json").exists() and not (out / "model").exists()

    # 2. A worker, after the first checkpoint that these two have written.
    first = max(checkpoints(out))
    lines = (out / "metrics.jsonl").read_text().splitlines()[:first]
    killer = when_checkpointed(out, kill_a_training_worker, after=first)
    record = run(recipe_of(tiny_base, triplets, out, **common, resources={"num_workers": 2}))
    killer.join()
    assert (out / "metrics.jsonl").read_text().splitlines()[:first] == lines  # not trained again
    assert record["summary"]["resumed_at_step"] in range(first + EVERY, STEPS, EVERY)
    assert [step for step, _ in curve(out)] == [step for step, _ in curve(undisturbed)] == list(range(1, STEPS + 1))
    assert [loss for _, loss in curve(out)] == pytest.approx([loss for _, loss in curve(undisturbed)], rel=2e-4)
    assert not (out / "checkpoints").exists()
