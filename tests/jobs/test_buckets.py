"""Stages that read from a bucket and write to it, each on a node that has nothing: rows are those of a local run."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs import ingest, relabel, select, tabletop
from jobs.shared.shared_storage import find_local_outputs
from tests.helpers.storage_servers import s3_server
from wm.buckets import prepare_buckets
from wm.config import Recipe
from wm.files.mirror import list_below, mirrored_path
from wm.records import REJECT_SCHEMA, TRIPLET_SCHEMA
from wm.runs import read_run
from wm.tables import read_table, write_table

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("WM_CACHE", str(tmp_path / "cache"))
    with s3_server(monkeypatch) as s3:
        s3.create_bucket(Bucket="bucket")
        yield s3


def run_stages(root: str, monkeypatch: pytest.MonkeyPatch, nodes: Path) -> None:
    """Run four stages below a folder or URI, each as if on a node of its own."""

    def run(stage: Any, kind: type[Recipe], name: str, **values: object) -> None:
        monkeypatch.setenv("WM_CACHE", str(nodes / name))
        recipe = kind.parse({"out": f"{root}/{name}", **values}, name)
        prepare_buckets(recipe)
        stage(recipe)

    alone = {"num_workers": 0}
    sizes = {"train": 6, "tune": 0, "test": 0, "videos": 1}
    run(tabletop.run, tabletop.TabletopRecipe, "world", **sizes, resources=alone)
    source = {"root": f"{root}/world/supervised", "file": "data/tabletop/train.json", "codec": "nano:base"}
    run(ingest.run, ingest.recipe.IngestRecipe, "train", **source, shard_rows=4, resources=alone)
    # As if an inverse model had labelled them.
    folder = mirrored_path(f"{root}/train") if "://" in root else Path(root, "train")
    rows = read_table(folder / "triplets").to_pylist()
    for number, row in enumerate(sorted(rows, key=lambda row: row["triplet_id"])):
        row |= {"action_logprob": -1.0 - number, "action_tokens": 2, "origin": "idm"}
    labelled = mirrored_path(f"{root}/idm") if "://" in root else Path(root, "idm")
    write_table(rows, labelled / "triplets" / "part-00000.parquet", TRIPLET_SCHEMA)
    run(select.run, select.recipe.SelectRecipe, "best", triplets=f"{root}/idm", k=4, run_on="here")
    labels = {"triplets": f"{root}/idm", "selection": f"{root}/best/selection", "labels": "truth"}
    run(relabel.run, relabel.RelabelRecipe, "truth", **labels)


def test_stages_on_a_bucket_give_a_local_runs_rows(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_stages(str(tmp_path / "local"), monkeypatch, tmp_path / "unused")
    run_stages("s3://bucket/runs", monkeypatch, tmp_path / "nodes")
    monkeypatch.setenv("WM_CACHE", str(tmp_path / "reader"))
    local, remote = tmp_path / "local", mirrored_path("s3://bucket/runs")
    # 1. The same files, and nothing else: no leftovers of passes or locks.
    names = {str(path.relative_to(local)) for path in local.rglob("*") if path.is_file() and path.name != ".lock"}
    assert {facts.name for facts in list_below(remote)} == names and len(names) > 25
    # 2. The same rows and counts.
    for name in ("train/triplets", "truth/triplets"):
        assert read_table(remote / name).equals(read_table(local / name))
    schema = REJECT_SCHEMA
    assert read_table(remote / "train/rejects", schema).equals(read_table(local / "train/rejects", schema))
    for stage in ("world", "train", "best", "truth"):
        ours, theirs = (read_run(root / stage) for root in (remote, local))
        assert ours is not None and theirs is not None and ours["counts"] == theirs["counts"]
        assert str(ours["recipe"]["out"]) == f"s3://bucket/runs/{stage}"
    assert "wm-buckets" not in bucket.get_object(Bucket="bucket", Key="runs/best/README.md")["Body"].read().decode()


def test_outputs_in_buckets_need_not_be_seen_by_other_nodes(bucket: Any) -> None:
    recipe = tabletop.TabletopRecipe.parse({"out": "s3://bucket/x"}, "test")
    assert find_local_outputs(recipe) == {}


@pytest.mark.soak
@pytest.mark.timeout(1500)
def test_an_annotation_that_is_killed_resumes_on_another_node(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Videos, models and output in a bucket, actors of Ray; the first driver is killed after its first shard."""
    import os
    import time

    def command(name: str, *settings: str, node: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "WM_CACHE": str(tmp_path / node), "PYTHONPATH": str(ROOT)}
        line = [sys.executable, "-m", f"jobs.{name}", *settings]
        return subprocess.Popen(
            line, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    world = command("tabletop", "out=s3://bucket/world", "train=0", "tune=0", "test=0", "videos=24", node="a")
    assert world.wait(timeout=900) == 0, world.communicate()[0]
    settings = ["idm=nano:idm", "videos_per_shard=2", "videos=s3://bucket/world/videos/"]
    local = command("annotate", f"out={tmp_path}/local", *settings, node="a")
    assert local.wait(timeout=900) == 0, local.communicate()[0]
    first = command("annotate", "out=s3://bucket/out", *settings, node="a")
    out = mirrored_path("s3://bucket/out")
    while not [facts for facts in list_below(out, missing_ok=True) if facts.name.startswith("shards/")]:
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.2)
    first.kill()
    first.wait()
    second = command("annotate", "out=s3://bucket/out", *settings, node="b")
    text = second.communicate(timeout=900)[0]
    assert second.returncode == 0, text
    assert "resuming" in text and "wm-buckets" not in text and "s3://bucket/out" in text
    rejects = [read_table(folder / "rejects", REJECT_SCHEMA).to_pylist() for folder in (out, tmp_path / "local")]
    details = [sorted((row["reason"], row["detail"]) for row in rows) for rows in rejects]
    assert details[0] == details[1]
    ours, theirs = (read_table(folder / "triplets").sort_by("triplet_id") for folder in (out, tmp_path / "local"))
    assert ours.drop_columns(["video_uri"]).equals(theirs.drop_columns(["video_uri"])) and ours.num_rows > 20
