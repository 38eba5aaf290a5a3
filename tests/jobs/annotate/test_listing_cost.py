"""What a resumed annotation asks of a bucket for its shards is what ``wm plan`` reckons with."""

import json
from collections import Counter
from pathlib import Path

import pytest

from jobs.annotate.recipe import AnnotateRecipe
from jobs.annotate.shards import TABLES, shard_name, tidy
from tests.helpers.buckets import BucketServers, set_variables
from wm.datasets.scale import MEASURED, READS_A_MARK, Habit, Store, simulate
from wm.files.mirror import UNFINISHED
from wm.runs import Run

NUM_SHARDS = 20


def test_a_resumed_run_lists_as_often_as_the_plan_says(
    bucket_servers: BucketServers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from moto.core import DEFAULT_ACCOUNT_ID
    from moto.s3.models import s3_backends

    bucket = bucket_servers.create_bucket("moto")
    set_variables(bucket, monkeypatch)
    monkeypatch.setenv("WM_CACHE", str(tmp_path))
    recipe = AnnotateRecipe(out=bucket.uri("run"), videos="v", idm="nano:idm")
    run = Run(recipe.out, "annotate", recipe)
    # 1. What a killed run has left, put into the store itself: a request each would take long.
    mark = json.dumps({"filtered": 1, "failed": 0, "videos": 1, "pairs": 1, "triplets": 1})
    contents = {f"{table}/{shard_name(number)}.parquet": "x" for table in TABLES for number in range(NUM_SHARDS)}
    contents |= {f"shards/{shard_name(number)}.json": mark for number in range(NUM_SHARDS)}
    contents[UNFINISHED] = json.dumps({"stage": "annotate", "recipe": recipe.model_dump(mode="json"), "inputs": {}})
    name = bucket.uri("").removeprefix("s3://").split("/")[0]
    for key, content in contents.items():
        s3_backends[DEFAULT_ACCOUNT_ID]["aws"].put_object(name, f"run/{key}", content.encode())
    # 2. The steps of a run that looks at its shards: start, what is left to do, what is there at the end.
    assert not run.is_complete()
    bucket.proxy.requests.clear()
    run.start(leave=["*.parquet"])
    assert len(tidy(run.out)) == len(tidy(run.out)) == NUM_SHARDS
    run.finish({})
    # 3. A page has 1,000 names. Questions for a single name are not counted.
    requests = [path for method, path in bucket.proxy.requests if method in ("GET", "HEAD")]
    pages = [path for path in requests if "list-type=2" in path and "max-keys=1&" not in path]
    pages = [path for path in pages if "prefix=run%2F" in path and "wm-writers" not in path]
    habit = Habit(NUM_SHARDS, videos_per_shard=1)
    (_, files, marks, *_) = simulate(habit, MEASURED, Store(), shards_a_wave=20_000)
    assert len(pages) == files.writes == 7
    # Each mark was read once: the copies of the first time are still good.
    reads = Counter(path.partition("?")[0] for path in requests if f"shards/{shard_name(7)}" in path)
    assert reads.total() == READS_A_MARK and marks.reads == READS_A_MARK * NUM_SHARDS
