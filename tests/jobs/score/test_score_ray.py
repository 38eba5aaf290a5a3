"""Collecting and scoring as Ray tasks give what this process gives."""

import json

import pytest
from PIL import Image

from jobs import collect, score
from jobs.collect import CollectRecipe
from jobs.score import ScoreRecipe
from tests.helpers.bench_files import bench_pair, write_bench
from wm.evaluation.image_scoring import VALUE_SCHEMA
from wm.evaluation.predictions import PREDICTION_SCHEMA
from wm.tables import read_table


@pytest.mark.slow
def test_tasks_give_the_same_files(tmp_path, ray_session):
    bench = write_bench(tmp_path / "set")
    (tmp_path / "images").mkdir()
    for number in range(4):
        Image.fromarray(bench_pair(number)[1]).save(tmp_path / "images" / f"{number}.png")
    tables, scores = [], []
    for num_workers in (0, 2):
        out, resources = tmp_path / str(num_workers), {"resources": {"num_workers": num_workers}}
        values = {"system": "GoT", "triplets": str(bench), "folder": str(tmp_path / "images"), "pattern": "{row}.png"}
        collect.run(CollectRecipe.parse(values | {"out": str(out / "got"), "shard_rows": 2} | resources, "test"))
        values = {"predictions": [str(out / "got")], "triplets": str(bench), "out": str(out / "scores")}
        score.run(ScoreRecipe.parse(values | {"images_per_task": 2} | resources, "test"))
        tables.append(read_table(out / "got/predictions", PREDICTION_SCHEMA).to_pylist())
        tables.append(read_table(out / "scores/values", VALUE_SCHEMA).to_pylist())
        scores.append(json.loads((out / "scores/scores.json").read_text()))
    assert tables[:2] == tables[2:] and scores[0] == scores[1]
    assert scores[0]["rows"][1]["metrics"]["l1"]["micro_mean"] == 0.0
