"""Stages on nodes that share a bucket and nothing else: their results are those of one machine's folders."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs import compare, evaluate, export, ingest, judge, paper, report, score, tabletop, train, view
from jobs.bootstrap import BootstrapRecipe
from jobs.bootstrap.plan import plan
from tests.helpers.buckets import Bucket, BucketServers, set_variables
from wm.buckets import prepare_buckets
from wm.config import Recipe
from wm.evaluation.predictions import PREDICTION_SCHEMA
from wm.files.mirror import fetch, mirrored_path
from wm.runs import read_run
from wm.tables import read_table

ROOT = Path(__file__).resolve().parents[2]
ALONE = {"num_workers": 0}
TRAINING = {
    **{"base": "nano:base", "max_steps": 2, "global_batch_size": 8},
    **{"resources": ALONE, "lora": {"enabled": False}},
}


@pytest.fixture
def store(bucket_servers: BucketServers, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    bucket = bucket_servers.create_bucket("moto")
    set_variables(bucket, monkeypatch)
    return bucket


def run_loop(root: str, start: Callable[[str], None]) -> None:
    """Run stages below a folder or URI: data, a model of each kind, its evaluation, and all that is made of that."""

    def run(stage: Callable[[Any], object], kind: type[Recipe], name: str, **values: object) -> None:
        start(name)
        recipe = kind.parse({"out": f"{root}/{name}", **values}, name)
        prepare_buckets(recipe)
        stage(recipe)

    sizes = {"train": 16, "tune": 0, "test": 6, "videos": 0}
    run(tabletop.run, tabletop.TabletopRecipe, "world", **sizes, resources=ALONE)
    source = {"root": f"{root}/world/supervised", "codec": "nano:base", "resources": ALONE}
    for split in ("train", "test"):
        file = f"data/tabletop/{split}.json"
        run(ingest.run, ingest.recipe.IngestRecipe, split, **source, file=file, split=split)
    for task in ("idm", "fdm"):
        triplets = [{"path": f"{root}/train"}]
        run(train.run, train.TrainRecipe, task, **TRAINING, task=task, triplets=triplets)
    models = {task: {"path": f"{root}/{task}/model", "role": task, "label": task.upper()} for task in ("idm", "fdm")}
    bench = f"{root}/test/triplets"
    run(
        evaluate.run, evaluate.EvaluateRecipe, "evaluate", triplets=bench, models=models, idm="idm", codec="nano:base",
        judge="oracle", seeds=[0], search={"num_candidates": [1, 2]}, max_new_tokens=6, examples=1,
    )  # fmt: skip
    predicted = {"triplets": bench, "predictions": [f"{root}/evaluate"]}
    run(judge.run, judge.JudgeRecipe, "judge", **predicted, model="nano:oracle")
    run(score.run, score.recipe.ScoreRecipe, "score", **predicted, codec="nano:base")
    pair = {"first": f"{root}/score:FDM", "second": f"{root}/score:Copy"}
    run(compare.run, compare.CompareRecipe, "compare", **pair)
    results = [f"{root}/{name}" for name in ("evaluate", "judge", "score")]
    run(paper.run, paper.recipe.PaperRecipe, "paper", results=results, items=["table 2", "figure 4"])
    run(export.run, export.ExportRecipe, "export", triplets=f"{root}/train", format="webdataset", shard_rows=5)
    run(view.run, view.ViewRecipe, "view", triplets=f"{root}/train")
    run(report.run, report.ReportRecipe, "report", run=root)


def list_names(folder: Path) -> set[str]:
    """List the files below a folder, but for locks and those whose names are times."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)) for path in files if path.parent.name not in ("tensorboard", "judgements")}


@pytest.mark.soak
def test_results_on_a_bucket_are_those_of_folders(
    store: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local, nodes = tmp_path / "local", tmp_path / "nodes"
    run_loop(str(local), lambda name: None)
    run_loop(store.uri("loop"), lambda name: monkeypatch.setenv("WM_CACHE", str(nodes / name)))
    monkeypatch.setenv("WM_CACHE", str(tmp_path / "reader"))
    copy = fetch(store.uri("loop"))
    assert copy == mirrored_path(store.uri("loop"))
    # 1. Models and what was made of them, to the last byte where no times or paths are in it.
    for name in (
        "idm/model/model.safetensors",
        "fdm/model/model.safetensors",
        "evaluate/tables.json",
        "score/scores.csv",
    ):
        assert (copy / name).read_bytes() == (local / name).read_bytes(), name
    for name in ("export/shard-000000.tar", "export/README.md", "paper/table-2.csv"):
        assert (copy / name).read_bytes() == (local / name).read_bytes(), name
    rows = [read_table(folder / "evaluate" / "predictions", PREDICTION_SCHEMA).to_pylist() for folder in (copy, local)]
    assert rows[0] == rows[1] and len(rows[0]) >= 6
    # 2. Counts; the same files, without leftovers.
    for name in ("world", "train", "test", "evaluate", "judge", "score", "compare", "export", "view"):
        records = [read_run(folder / name) for folder in (copy, local)]
        assert records[0] is not None and records[1] is not None
        assert records[0]["counts"] == records[1]["counts"], name
    names = [list_names(folder) for folder in (copy, local)]
    assert names[0] == names[1]
    # 3. Records name URIs, and no node's copies.
    for key in store.list_keys():
        if key.endswith((".json", ".md", ".csv", ".html", ".toml")):
            assert b"wm-buckets" not in store.read(key), key
    assert f"result {store.uri('loop/score')}" in json.loads(store.read("loop/compare/run.json"))["inputs"]


_NODE = """
import json, sys
from jobs.bootstrap import BootstrapRecipe
from jobs.bootstrap.job import run_stage
from jobs.bootstrap.plan import plan
from pathlib import Path
recipe = BootstrapRecipe.parse(json.loads(sys.argv[1]), "test")
(stage,) = [stage for stage in plan(recipe) if stage.name == sys.argv[2]]
run_stage(stage, Path(recipe.out))
"""


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_the_whole_loop_runs_where_nodes_share_nothing(
    store: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every stage of the bootstrap in a process, with a session of Ray and a folder of copies of its own."""
    from tests.jobs.bootstrap.test_bootstrap import recipe

    monkeypatch.setenv("WM_CACHE", str(tmp_path / "driver"))
    values = recipe(Path("/out")).model_dump(mode="json", exclude_unset=True) | {"out": store.uri("loop")}
    settings = BootstrapRecipe.parse(values, "test")
    stages = [stage.name for stage in plan(settings)]
    for name in stages:
        monkeypatch.setenv("WM_CACHE", str(tmp_path / "nodes" / name))
        subprocess.run([sys.executable, "-c", _NODE, json.dumps(values), name], cwd=ROOT, check=True, timeout=600)
    monkeypatch.setenv("WM_CACHE", str(tmp_path / "reader"))
    records = {name: read_run(mirrored_path(store.uri(f"loop/{name}"))) for name in stages}
    assert all(records.values()) and {"annotated", "selected", "fdm", "evaluate", "report"} <= set(records)
    annotated = records["annotated"]
    assert annotated is not None and annotated["counts"]["videos"] == 6
    html = store.read("loop/report/report.html").decode()
    assert "C-FDM" in html and "wm-buckets" not in html
