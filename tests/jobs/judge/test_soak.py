"""A thousand requests to an endpoint that is slow, refuses, talks nonsense and loses connections, and two kills."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from jobs.judge import run
from tests.helpers.judge_server import Answer, completion, failure, judge_server
from tests.helpers.triplet_files import picture, triplet, write_output
from tests.jobs.judge.test_job import honest, recipe
from wm.evaluation.predictions import prediction_row, predictions_folder, write_predictions
from wm.runs import write_json

NUM_TRIPLETS, NUM_RUNS, KILLS = 200, 5, (300, 700)


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_a_thousand_requests_with_faults_and_two_kills(tmp_path: Path) -> None:
    bench = write_output(tmp_path / "bench", [triplet(number, class_label="x") for number in range(NUM_TRIPLETS)], 50)
    rows = (
        prediction_row(
            picture(10_000 + NUM_RUNS * number + repeat, 8, 8),
            triplet_id=f"{number:024x}",
            system="mine",
            run=repeat,
            view="full",
            origin="external",
        )
        for number in range(NUM_TRIPLETS)
        for repeat in range(NUM_RUNS)
    )
    write_predictions(rows, predictions_folder(tmp_path / "p") / "part-00000.parquet")
    write_json(tmp_path / "p" / "run.json", {"stage": "collect"})
    answered = 0

    def answer(body: dict[str, Any], number: int) -> Answer:
        nonlocal answered
        answered += 1
        if answered in KILLS:
            process.send_signal(signal.SIGKILL)
            process.wait()
        kind = (hash(str(body)[-200:]) + number) % 10
        if kind == 0:
            return failure(429, "slow down")
        if kind == 1:
            return failure(503, "busy")
        if kind == 2:
            return completion("I'm sorry.")
        if kind == 3:
            time.sleep(2.5)  # longer than the client waits
        return honest(body, number)

    with judge_server(answer) as server:
        keys = {"max_attempts": 20, "max_retries": 10, "timeout_s": 1.0, "concurrency": 16, "copy_baseline": False}
        arguments = [f"predictions=['{tmp_path / 'p'}']", f"triplets={bench}", f"out={tmp_path / 'j'}", "model=judge"]
        arguments += [f"base_url={server.url}", *(f"{name}={str(value).lower()}" for name, value in keys.items())]
        for _ in KILLS:
            process = subprocess.Popen([sys.executable, "-m", "jobs.judge", *arguments], stderr=subprocess.DEVNULL)
            assert process.wait(600) == -signal.SIGKILL
        record = run(recipe(bench, tmp_path / "p", server, tmp_path / "j", **keys))
    assert record["counts"]["judgements"] == record["counts"]["questions"] == NUM_TRIPLETS * NUM_RUNS
    assert record["counts"]["unjudged"] == 0
    # A request is repeated where it got no scores; beyond that only those that a kill found on their way.
    lines = [path.read_text().count('"failure": null') for path in (tmp_path / "j" / "judgements").glob("*.jsonl")]
    assert sum(lines) == NUM_TRIPLETS * NUM_RUNS
