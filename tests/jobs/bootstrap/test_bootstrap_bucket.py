"""The loop with its output in a bucket: what one node has written another reads, and nothing is read back."""

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.bootstrap import BootstrapRecipe, plan, run
from tests.helpers.buckets import Bucket, BucketServers, set_variables
from wm.files.mirror import mirrored_path
from wm.runs import Run, read_run

COMMANDS = (*("annotate", "evaluate", "ingest", "predict", "pretrain", "report", "select", "tabletop", "train"),)

FILES = tuple(f"{folder}/data.txt" for folder in ("model", "selection", "supervised", "triplets", "videos"))


@pytest.fixture
def store(bucket_servers: BucketServers, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    bucket = bucket_servers.create_bucket("moto")
    set_variables(bucket, monkeypatch)
    return bucket


def recipe(bucket: Bucket, **changes: Any) -> BootstrapRecipe:
    scoring = {"judge": False, "score": False, "paper": False}
    needed = {"idm": {"max_steps": 2}, "fdm": {"max_steps": 2}, "select": {"k": 10}, "scoring": scoring}
    return BootstrapRecipe.parse({"out": bucket.uri("runs/loop"), "max_stages": 1, **needed, **changes}, "test")


def claim_instead_of_work(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let stages only claim their folders, as every job does, and write one file; returns the names of those."""
    names: list[str] = []

    def claim(job: Any) -> dict[str, Any]:
        stage = Run(job.out, type(job).__name__, job)
        if stage.is_complete():
            return read_run(job.out) or {}
        stage.start()
        names.append(Path(job.out).name)
        # What the other stages read is there.
        for file in FILES:
            (Path(job.out) / file).parent.mkdir(exist_ok=True)
            (Path(job.out) / file).write_text(names[-1])
        return stage.finish({})

    for name in COMMANDS:
        monkeypatch.setattr(f"jobs.{name}.run", claim)
    return names


def downloads(bucket: Bucket) -> list[str]:
    """Objects that were read, apart from marks and claims, which are always those of the bucket."""
    paths = bucket.proxy.list_requests("GET", f"/{bucket.name}/runs/")
    return [path for path in paths if not any(name in path for name in ("run.json", "run.unfinished", "wm-writers"))]


@pytest.mark.soak
def test_nodes_share_a_run_and_read_nothing_back(
    store: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = claim_instead_of_work(monkeypatch)
    monkeypatch.setenv("WM_CACHE", str(tmp_path / "first"))
    names = [stage.name for stage in plan(recipe(store))]
    records = run(recipe(store))
    # 1. Every stage is in the bucket, complete, under the URI; this node reads nothing that it wrote.
    assert done == names and downloads(store) == []
    keys = store.list_keys()
    assert keys == sorted(
        ["runs/loop/stages.json", *(f"runs/loop/{name}/{file}" for name in names for file in (*FILES, "run.json"))]
    )
    assert json.loads(store.read("runs/loop/fdm/run.json"))["recipe"]["base"] == store.uri("runs/loop/base/model")
    text = capsys.readouterr().out
    assert store.uri("runs/loop/report/report.html") in text and str(tmp_path) not in text
    # 2. Another node has nothing to do, and changes what it is asked to change.
    monkeypatch.setenv("WM_CACHE", str(tmp_path / "second"))
    done.clear()
    assert run(recipe(store)) == records and done == []
    changed = run(recipe(store, select={"k": 5}))
    assert done == ["selected"] and changed["selected"]["recipe"]["k"] == 5
    # 3. What was there is kept under another name, in the bucket too.
    old = json.loads(store.read("runs/loop/superseded/selected-1/run.json"))
    assert old == records["selected"] and store.read(f"runs/loop/superseded/selected-1/{FILES[0]}") == b"selected"
    assert read_run(mirrored_path(store.uri("runs/loop/selected"))) == changed["selected"]
