"""Shards of an annotation in a bucket: written on one node, found on another that has nothing."""

from pathlib import Path
from typing import Any

import pytest

from jobs.annotate.counts import summarise
from jobs.annotate.shards import load_listing, shards_with, store_listing, tidy, write_shard
from tests.helpers.storage_servers import s3_server
from tests.jobs.annotate.test_shards import pair, reject, rows, triplet, video
from wm.datasets.videos.listing import Entry, make_listing
from wm.files.mirror import mirrored_path, remove
from wm.tables import read_table


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("WM_CACHE", str(tmp_path / "node0"))
    with s3_server(monkeypatch) as s3:
        s3.create_bucket(Bucket="bucket")
        yield s3


def keys(s3: Any) -> set[str]:
    """Keys without markers of folders."""
    objects = s3.list_objects_v2(Bucket="bucket")["Contents"]
    return {each["Key"] for each in objects if not each["Key"].endswith("/")}


def test_the_bucket_alone_says_what_is_finished(bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # 1. One node finishes a shard; of two more it is killed before the mark, or loses a file.
    out = mirrored_path("s3://bucket/out")
    out.mkdir(parents=True)
    store_listing(out, make_listing(iter([Entry("s3://videos/a.mp4", "a.mp4")]), {}), "abc")
    for number in range(3):
        made = rows([triplet("a")], [reject("b", "time_out", "failed")], [pair("a")])
        write_shard(out, number, [video("a"), video("b", 0)], made, {"scan": 1.0})
    bucket.delete_object(Bucket="bucket", Key="out/shards/shard-000001.json")
    bucket.delete_object(Bucket="bucket", Key="out/pairs/shard-000002.parquet")
    # 2. Another one looks for what is left to do.
    monkeypatch.setenv("WM_CACHE", str(tmp_path / "node1"))
    out = mirrored_path("s3://bucket/out")
    stored = load_listing(out)
    assert stored is not None and stored[1] == "abc" and stored[0].num_rows == 1
    assert [mark.stem for mark in shards_with(out, ["time_out"])] == ["shard-000000"]
    assert tidy(out) == {0}
    tables = {f"out/{table}/shard-000000.parquet" for table in ("triplets", "rejects", "clips", "pairs")}
    assert keys(bucket) == tables | {"out/.listing.parquet", "out/shards/shard-000000.json"}
    # 3. It does the rest; the sums are those of all nodes' shards, and no table is copied for them.
    write_shard(out, 1, [video("c")], rows([triplet("c")], [], [pair("c")]), {"scan": 0.5})
    assert tidy(out) == {0, 1}
    counts = summarise(out)
    assert (counts["videos"], counts["triplets"], counts["stage_s"]["scan"]) == (3, 2, 1.5)
    assert not (out / "triplets" / "shard-000000.parquet").exists()
    assert read_table(out / "triplets", columns=["video_uri"]).column(0).to_pylist() == ["set/a", "set/c"]
    remove(out / "shards" / "shard-000000.json")
    assert tidy(out) == {1} and "out/triplets/shard-000000.parquet" not in keys(bucket)
