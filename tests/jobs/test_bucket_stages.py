"""Stages beside the loop, from a bucket to a bucket: they write what they write to a folder, and another node finds it
complete."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs import collect, contradict, edit, judge, look, plan
from tests.helpers.bench_files import TASKS, bench_pair, write_bench
from tests.helpers.buckets import Bucket, BucketServers, set_variables
from tests.helpers.judge_server import Answer, completion, judge_server
from tests.helpers.models_editors import write_pix2pix
from tests.helpers.triplet_files import picture, triplet, write_output
from tests.helpers.video_files import marked_frame, write_video
from wm.buckets import prepare_buckets
from wm.config import Recipe
from wm.evaluation.bench_rows import read_bench_rows
from wm.evaluation.predictions import prediction_row, predictions_folder, write_predictions
from wm.files.mirror import fetch, mirrored_path
from wm.runs import write_json

pytestmark = pytest.mark.soak


class Case(NamedTuple):
    """A stage: who writes its inputs, and who runs it from one folder or URI to another."""

    prepare: Callable[[Path], object]
    run: Callable[[str, str], dict[str, Any]]
    equal: tuple[str, ...]
    """Files that are the same wherever inputs and output are; of tables, their rows."""


def start(stage: Callable[[Any], dict[str, Any]], kind: type[Recipe], **values: object) -> dict[str, Any]:
    """Run a stage as its command does."""
    recipe = kind.parse(values, "test")
    prepare_buckets(recipe)
    return stage(recipe)


def write_clips(folder: Path) -> None:
    for number in range(3):
        write_video(folder / f"videos/{number}.mp4", [marked_frame(number + 3 * index) for index in range(30)])


def look_at(root: str, out: str) -> dict[str, Any]:
    quick = {"keyframes": {"min_interval_frames": 8}, "budget_s": 0.0, "num_workers": 1}
    return start(look.run, look.LookRecipe, videos=f"{root}/videos", out=out, **quick)


def write_actions(folder: Path) -> None:
    write_output(folder / "bench", [triplet(number, action=f"open door {number}") for number in range(4)])


def contradict_actions(root: str, out: str) -> dict[str, Any]:
    def answer(body: dict[str, Any], _number: int) -> Answer:
        action = str(body["messages"][0]["content"]).rpartition("Instruction: ")[2].strip()
        # One that stays as it is becomes a reject.
        return completion(action if action.endswith("3") else f"do not {action}")

    with judge_server(answer) as server:
        keys = {"triplets": f"{root}/bench", "model": "qwen", "base_url": server.url, "max_retries": 0}
        return start(contradict.run, contradict.ContradictRecipe, out=out, **keys)


def write_outputs(folder: Path) -> None:
    """Write images of all rows but the last, a file of no row, and actions of which one is of no row."""
    rows = read_bench_rows(write_bench(folder))
    for number, task in enumerate(TASKS[:-1]):
        (folder / "got" / task).mkdir(parents=True, exist_ok=True)
        Image.fromarray(bench_pair(number)[0]).save(folder / "got" / task / f"{number}.png")
    (folder / "got/notes.txt").write_text("no image")
    lines = [{"triplet_id": row.triplet_id, "action": "move it"} for row in rows[:2]]
    text = "\n".join(json.dumps(line) for line in [*lines, {"triplet_id": "f" * 24, "action": "move it"}])
    (folder / "actions.jsonl").write_text(text)


def collect_outputs(root: str, out: str) -> dict[str, Any]:
    inputs = {"triplets": f"{root}/bench", "folder": f"{root}/got", "actions": f"{root}/actions.jsonl"}
    return start(collect.run, collect.CollectRecipe, system="GoT", out=out, shard_rows=2, **inputs)


def write_editor(folder: Path) -> None:
    write_bench(folder)
    write_pix2pix(folder / "pix2pix")


def edit_sources(root: str, out: str) -> dict[str, Any]:
    keys = {"model": f"{root}/pix2pix", "triplets": f"{root}/bench", "settings": {"num_inference_steps": 1}}
    return start(edit.run, edit.EditRecipe, out=out, resolution=64, shard_rows=2, limit=3, **keys)


def write_rates(folder: Path) -> None:
    rates = {"dis_frames_per_s": 1000.0, "exact_frames_per_s": 100.0, "fetch_images_per_s": 50.0}
    rates |= {"encode_images_per_s": 20.0, "idm_pairs_per_s": 10.0, "write_triplets_per_s": 200.0}
    write_json(folder / "rates.json", {"benchmark": "both", "ratios": {}, "rates": rates})
    counts = {"videos": 4, "decoded": 3, "frames": 600, "video_s": 30.0, "keyframes_of_paired": 9, "pairs": 6}
    write_output(folder / "annotated", [triplet(number) for number in range(5)])
    write_json(folder / "annotated/run.json", {"stage": "annotate", "counts": counts | {"triplets": 5}})


def plan_hours(root: str, out: str) -> dict[str, Any]:
    nodes = [{"name": "cpu", "count": 2, "cpus": 4, "price_per_hour": 0.5}]
    keys = {"rates": f"{root}/rates.json", "nodes": nodes, "from_run": f"{root}/annotated", "hours": 2.0}
    keys |= {"out": f"{out}/plan.json", "figure": f"{out}/plan.svg", "resources": {"annotate_on": "cpu"}}
    start(plan.run, plan.PlanRecipe, **keys)
    # What differs is where it is.
    text = fetch(f"{out}/plan.json").read_text()
    record: dict[str, Any] = json.loads(text.replace(out, "OUT").replace(root, "ROOT"))
    return record


def write_predicted(folder: Path) -> None:
    write_output(folder / "bench", [triplet(number) for number in range(4)])
    rows = [
        prediction_row(picture(number, 12, 20), triplet_id=f"{number:024x}", system="GoT", view="full",
                       origin="external")
        for number in range(4)
    ]  # fmt: skip
    write_predictions(rows, predictions_folder(folder / "GoT") / "part-00000.parquet")
    write_json(folder / "GoT" / "run.json", {"stage": "collect"})


def judge_in_batches(root: str, out: str) -> dict[str, Any]:
    def answer(_body: dict[str, Any], number: int) -> Answer:
        # A reply without scores is asked for again, in a second batch.
        return completion(json.dumps({"score": [7, 8]}) if number else "nonsense")

    with judge_server(answer) as server:
        keys = {"mode": "batch", "poll_s": 0.01, "model": "judge", "base_url": server.url, "max_retries": 0}
        keys |= {"predictions": [f"{root}/GoT"], "triplets": f"{root}/bench", "store": f"{out}-store"}
        record = start(judge.run, judge.JudgeRecipe, out=out, **keys)
        assert len(server.batches) in (0, 2)
    return record


CASES = {
    "look": Case(write_clips, look_at, ()),
    "contradict": Case(write_actions, contradict_actions, ("counterfactuals.jsonl",)),
    "collect": Case(
        write_outputs,
        collect_outputs,
        ("predictions/part-00000.parquet", "predictions/part-00001.parquet", "actions/actions-00000.parquet"),
    ),
    "edit": Case(write_editor, edit_sources, ("predictions/part-00000.parquet", "predictions/part-00001.parquet")),
    "plan": Case(write_rates, plan_hours, ("plan.svg",)),
    "judge": Case(write_predicted, judge_in_batches, ("scores.parquet",)),
}


@pytest.fixture
def store(bucket_servers: BucketServers, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    bucket = bucket_servers.create_bucket("moto")
    set_variables(bucket, monkeypatch)
    return bucket


@pytest.mark.parametrize("name", CASES)
def test_a_stage_from_a_bucket_to_a_bucket(
    name: str, store: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, local = CASES[name], tmp_path / "local"
    local.mkdir()
    case.prepare(local)
    expected = case.run(str(local), str(tmp_path / "out"))
    for file in sorted(path for path in local.rglob("*") if path.is_file()):
        store.write(f"in/{file.relative_to(local)}", file.read_bytes())
    monkeypatch.setenv("WM_CACHE", str(tmp_path / "node"))
    record = case.run(store.uri("in"), store.uri("out"))
    # 1. The same counts, files and rows.
    if name == "plan":
        assert record == expected
    else:
        # A page names where its clips are.
        assert record["counts"].pop("page_bytes", None) is None or expected["counts"].pop("page_bytes") > 0
        assert record["counts"] == expected["counts"]
    own = {key.removeprefix("out/"): store.read(key) for key in store.list_keys() if key.startswith("out/")}
    names = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    # Replies have times as their names; locks are of a node.
    assert {key for key in own if not key.startswith("replies/")} == {
        key for key in names if not key.startswith("replies/") and not key.endswith(".lock")
    }
    for file_name in case.equal:
        contents = (own[file_name], (tmp_path / "out" / file_name).read_bytes())
        if file_name.endswith(".parquet"):
            assert pq.read_table(io.BytesIO(contents[0])).equals(pq.read_table(io.BytesIO(contents[1]))), file_name
        else:
            assert contents[0] == contents[1], file_name
    # 2. Nothing names a node's copies.
    for key, content in own.items():
        is_table = key.endswith(".parquet")
        text = str(pq.read_table(io.BytesIO(content)).to_pylist()).encode() if is_table else content
        assert b"wm-buckets" not in text and str(tmp_path).encode() not in text, key
    # 3. Another node finds it complete, and writes nothing.
    monkeypatch.setenv("WM_CACHE", str(tmp_path / "other"))
    found = case.run(store.uri("in"), store.uri("out"))
    if name == "plan":
        assert found == record
    else:
        assert found["finished_at"] == record["finished_at"]
        again = {key: store.read(f"out/{key}") for key in own}
        assert again == own and mirrored_path(store.uri("out")).is_relative_to(tmp_path / "other")
