"""Batches of several runs that share a store: whatever was paid for is kept, whoever asked for it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.judge import JudgeRecipe, run
from jobs.judge.batches import load_sent
from tests.helpers.buckets import BucketServers, set_variables
from tests.helpers.judge_server import Answer, JudgeServer, completion, judge_server
from tests.helpers.triplet_files import picture, triplet, write_output
from wm.errors import InputError
from wm.evaluation.judge.store import JudgementStore
from wm.evaluation.predictions import prediction_row, predictions_folder, write_predictions
from wm.files.mirror import mirrored_path
from wm.runs import write_json

COUNT = 4


def seven(_body: dict[str, Any], _number: int) -> Answer:
    return completion(json.dumps({"score": [7, 8]}))


@pytest.fixture
def sets(tmp_path: Path) -> dict[str, str]:
    """A bench, and two systems whose images differ."""
    folders = {"bench": str(write_output(tmp_path / "bench", [triplet(number) for number in range(COUNT)]))}
    for seed, system in enumerate(("GoT", "SmartEdit")):
        rows = [
            prediction_row(picture(100 * seed + number, 12, 20), triplet_id=f"{number:024x}", system=system,
                           view="full", origin="external")
            for number in range(COUNT)
        ]  # fmt: skip
        write_predictions(rows, predictions_folder(tmp_path / system) / "part-00000.parquet")
        write_json(tmp_path / system / "run.json", {"stage": "collect"})
        folders[system] = str(tmp_path / system)
    return folders


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    with judge_server(seven) as judge:
        yield judge


def recipe(sets: dict[str, str], system: str, server: JudgeServer, tmp_path: Path, **keys: object) -> JudgeRecipe:
    fields = {
        "predictions": [sets[system]], "triplets": sets["bench"], "model": "judge", "base_url": server.url,
        "out": str(tmp_path / f"out-{system}"), "store": str(tmp_path / "store"), "mode": "batch", "poll_s": 0.01,
        "copy_baseline": False, "max_retries": 0,
    }  # fmt: skip
    return JudgeRecipe.parse(fields | keys, "test")


def start_and_kill(mine: JudgeRecipe) -> None:
    """Send a run's batch; the run ends before the batch does."""

    def interrupt(_seconds: float) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("jobs.judge.batches.time.sleep", interrupt)
        run(mine)


def test_another_runs_replies_are_stored(sets: dict[str, str], server: JudgeServer, tmp_path: Path) -> None:
    start_and_kill(recipe(sets, "GoT", server, tmp_path))
    run(recipe(sets, "SmartEdit", server, tmp_path))
    # The batch of the killed run was finished by then, and its name is gone only as its replies are there.
    assert len(JudgementStore(tmp_path / "store").judged) == 2 * COUNT
    assert not (tmp_path / "store" / "batches.json").exists()
    assert run(recipe(sets, "GoT", server, tmp_path))["counts"]["unjudged"] == 0
    assert set(server.counts.values()) == {1} and len(server.batches) == 2


@pytest.mark.parametrize("status", ["in_progress", "failed"])
def test_a_run_with_nothing_to_ask_forgets_no_batch(
    status: str, sets: dict[str, str], server: JudgeServer, tmp_path: Path
) -> None:
    run(recipe(sets, "SmartEdit", server, tmp_path))
    start_and_kill(recipe(sets, "GoT", server, tmp_path))
    (batch,) = [batch for batch in server.batches.values() if batch["status"] == "in_progress"]
    batch["looks"], batch["status"] = -5, status
    again = recipe(sets, "SmartEdit", server, tmp_path, out=str(tmp_path / "again"))
    assert run(again)["counts"]["unjudged"] == 0
    file = tmp_path / "store" / "batches.json"
    # One that failed has no reply to lose.
    assert file.exists() == (status == "in_progress")
    batch["status"] = "in_progress"
    assert run(recipe(sets, "GoT", server, tmp_path))["counts"]["unjudged"] == 0
    assert not file.exists()
    assert set(server.counts.values()) == ({1} if status == "in_progress" else {1, 2})


def test_a_batch_of_another_endpoint_stays_listed(sets: dict[str, str], server: JudgeServer, tmp_path: Path) -> None:
    start_and_kill(recipe(sets, "GoT", server, tmp_path))
    with judge_server(seven) as other:
        file = tmp_path / "store" / "batches.json"
        sent = json.loads(file.read_text())
        sent[0]["id"] = "batch_of_another"
        file.write_text(json.dumps(sent))
        run(recipe(sets, "SmartEdit", other, tmp_path))
        assert json.loads(file.read_text()) == sent


def test_a_list_that_another_node_has_worked_off_is_gone(
    bucket_servers: BucketServers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = bucket_servers.create_bucket("moto")
    set_variables(bucket, monkeypatch)
    monkeypatch.setenv("WM_CACHE", str(tmp_path / "node"))
    path = mirrored_path(bucket.uri("store/batches.json"))
    bucket.write("store/batches.json", b'[{"id": "batch_0", "keys": ["a"]}]')
    assert [batch["id"] for batch in load_sent(path)] == ["batch_0"] and path.is_file()
    bucket.delete("store/batches.json")
    assert load_sent(path) == [] and not path.exists()


def test_lines_of_a_killed_writer_are_not_stored_twice(
    sets: dict[str, str], server: JudgeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answer = lambda _body, number: completion("nonsense") if number == 0 else seven(_body, number)
    mine = recipe(sets, "GoT", server, tmp_path, max_attempts=2)
    append, appended = JudgementStore.append, []

    def append_two(self: JudgementStore, line: Any) -> None:
        if len(appended) == 2:
            raise KeyboardInterrupt
        appended.append(line)
        append(self, line)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(JudgementStore, "append", append_two)
        run(mine)
    record = run(mine)
    # Two failed replies of two questions were stored before the kill: read again they are no second attempt.
    assert record["counts"]["unjudged"] == 0
    failures = JudgementStore(tmp_path / "store").failures
    assert [len(lines) for lines in failures.values()] == [1] * COUNT


def test_what_is_on_its_way_is_not_asked_one_by_one(sets: dict[str, str], server: JudgeServer, tmp_path: Path) -> None:
    start_and_kill(recipe(sets, "GoT", server, tmp_path))
    with pytest.raises(InputError, match=r"4 of 4 questions are on their way in batches .*batches\.json"):
        run(recipe(sets, "GoT", server, tmp_path, mode="online"))
    assert run(recipe(sets, "GoT", server, tmp_path))["counts"]["unjudged"] == 0
    assert set(server.counts.values()) == {1}
