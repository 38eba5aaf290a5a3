"""What a kill between any two writes leaves behind, and that going on loses and repeats nothing."""

import json

import pyarrow.parquet as pq
import pytest

from jobs._annotate_shards import read_marks, summarise, tidy, write_shard
from wm.records import REJECT_SCHEMA, TRIPLET_SCHEMA, read_table, reject_row, triplet_row


def video(key, keyframes=2):
    return {
        "key": key,
        "uri": f"set/{key}",
        "reader": "decord" if keyframes > 1 else "",
        "fallback": "",
        "num_frames": 10,
        "duration_s": 0.5,
        "frames": list(range(keyframes)),
    }


def triplet(key, target=1):
    image = {"bytes": b"png", "path": None}
    return triplet_row(
        dataset="d",
        split="train",
        video_uri=f"set/{key}",
        source_frame=0,
        target_frame=target,
        source_image=image,
        target_image=image,
        action="put the cup",
        action_logprob=-1.0,
        action_tokens=3,
        origin="idm",
    )


def reject(key, reason="too_few_keyframes", outcome="filtered"):
    return reject_row(uri=f"set/{key}", stage="annotate", outcome=outcome, reason=reason, detail=key)


def ids(out):
    found = {}
    for name, schema in (("triplets", TRIPLET_SCHEMA), ("rejects", REJECT_SCHEMA)):
        column = f"{name[:-1]}_id"
        has_files = any((out / name).glob("[!.]*.parquet"))
        found[name] = sorted(read_table(out / name, schema, [column])[column].to_pylist()) if has_files else []
    return found


def test_a_shard_is_named_by_its_videos_so_that_writing_it_again_changes_nothing(tmp_path):
    videos = [video("a"), video("b", 1)]
    first = write_shard(tmp_path, videos, [triplet("a")], [reject("b")])
    before = ids(tmp_path)
    assert write_shard(tmp_path, videos[::-1], [triplet("a")], [reject("b")]) == first
    assert ids(tmp_path) == before
    assert first == {"videos": 2, "triplets": 1, "rejects": 1}
    assert tidy(tmp_path) == {"a", "b"}


@pytest.mark.parametrize("left", ["rejects", "rejects+triplets", "temporary"])
def test_files_without_a_mark_are_removed_and_their_videos_not_done(tmp_path, left):
    write_shard(tmp_path, [video("a")], [triplet("a")], [])
    whole = ids(tmp_path)
    write_shard(tmp_path, [video("b"), video("c", 1)], [triplet("b")], [reject("c")])
    name = next(name for name, marked in read_marks(tmp_path).items() if marked[0]["key"] == "b")
    (tmp_path / "shards" / f"{name}.json").unlink()
    if left == "rejects":
        (tmp_path / "triplets" / f"{name}.parquet").unlink()
    if left == "temporary":
        (tmp_path / "triplets" / f".{name}.parquet.1234.tmp").write_bytes(b"half")
    assert tidy(tmp_path) == {"a"}
    assert ids(tmp_path) == whole
    assert not list(tmp_path.rglob("*.tmp"))
    assert tidy(tmp_path) == {"a"}


def test_a_video_in_two_shards_stays_in_one(tmp_path):
    write_shard(tmp_path, [video("a"), video("b", 1)], [triplet("a"), triplet("a", 2)], [reject("b")])
    write_shard(tmp_path, [video("a"), video("c")], [triplet("a"), triplet("c")], [])
    write_shard(tmp_path, [video("b", 1)], [], [reject("b")])
    assert tidy(tmp_path) == {"a", "b", "c"}
    keys = [marked["key"] for marks in read_marks(tmp_path).values() for marked in marks]
    assert sorted(keys) == ["a", "b", "c"]
    found = ids(tmp_path)
    assert len(found["triplets"]) == len(set(found["triplets"]))
    assert found["rejects"] == [reject("b")["reject_id"]]
    uris = read_table(tmp_path / "triplets", columns=["video_uri"])["video_uri"].to_pylist()
    assert set(uris) == {"set/a", "set/c"}


def test_summary_counts_committed_videos_and_rows(tmp_path):
    write_shard(tmp_path, [video("a", 3), video("b", 1)], [triplet("a"), triplet("a", 2)], [reject("b")])
    write_shard(tmp_path, [video("c", 0)], [], [reject("c", "time_out", "failed")])
    assert summarise(tmp_path) == {
        "videos": 3,
        "videos_with_triplets": 1,
        "frames": 30,
        "video_s": 1.5,
        "keyframes": 4,
        "keyframes_per_used_video": 3.0,
        "triplets": 2,
        "filtered": 1,
        "failed": 1,
        "rejects_by_reason": {"failed/time_out": 1, "filtered/too_few_keyframes": 1},
        "readers": {"decord": 1},
        "decord_fallbacks": 0,
    }
    assert all(json.loads(path.read_text())["videos"] for path in (tmp_path / "shards").glob("*.json"))
    assert all(pq.read_schema(p).equals(TRIPLET_SCHEMA) for p in (tmp_path / "triplets").glob("*.parquet"))
