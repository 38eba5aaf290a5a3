"""How a listing is cut, what a kill between any two writes leaves behind, and that nothing is counted twice."""

import itertools
import json
import shutil

import pyarrow as pa
import pytest

from jobs.annotate.counts import summarise, table7
from jobs.annotate.shards import (
    TABLES,
    cut_shards,
    shards_with,
    tidy,
    write_shard,
)
from jobs.annotate.tables import CLIPS_SCHEMA, PAIRS_SCHEMA
from wm.datasets.selection.algorithm import SELECTION_SCHEMA
from wm.datasets.statistics import count_table7, markdown_table
from wm.errors import InputError
from wm.records import reject_row, triplet_row
from wm.tables import fill_empty_tables, read_table, write_table


def video(key, keyframes=2):
    """A decoded row; ``keyframes`` = 0: it did not decode."""
    row = dict.fromkeys(CLIPS_SCHEMA.names) | {"key": key, "uri": f"set/{key}", "class_label": "c"}
    if keyframes:
        row |= {"reader": "decord" if keyframes > 1 else "", "fallback": "", "num_frames": 10, "duration_s": 0.5}
        row |= {"keyframes": list(range(keyframes)), "motion": [0.0] * 10}
    return row


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


def pair(key, target=1, reason=""):
    row = dict.fromkeys(PAIRS_SCHEMA.names) | {"source_frame": 0, "target_frame": target}
    return row | {
        "triplet_id": f"{key}{target}",
        "key": key,
        "outcome": "filtered" if reason else "ok",
        "reason": reason,
        "findings": [reason] if reason else [],
    }


def reject(key, reason="too_few_keyframes", outcome="filtered"):
    return reject_row(uri=f"set/{key}", stage="annotate", outcome=outcome, reason=reason, detail=key)


def rows(triplets=(), rejects=(), pairs=()):
    return {"triplets": list(triplets), "rejects": list(rejects), "pairs": list(pairs)}


def write_first(out):
    write_shard(out, 0, [video("a"), video("b", 1)], rows([triplet("a")], [reject("b")], [pair("a")]), {"scan": 1.0})


def write_second(out):
    write_shard(out, 1, [video("c", 0)], rows([], [reject("c", "time_out", "failed")]), {"scan": 0.5, "idm": 2.0})


def contents(out):
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    ("videos", "per_shard", "sizes"),
    [(0, 8, []), (1, 8, [1]), (5, 8, [1] * 5), (33, 8, [3] * 11), (100, 5, [5] * 20), (1000, 32, [32] * 31 + [8])],
)
def test_shards_are_consecutive_and_hold_every_video_once(videos, per_shard, sizes):
    listing = pa.table({"key": [str(number) for number in range(videos)]})
    shards = cut_shards(listing, per_shard)
    assert [count for _, count in shards.values()] == sizes
    assert list(shards) == list(range(len(sizes)))
    assert list(itertools.chain(*(range(start, start + count) for start, count in shards.values()))) == list(
        range(videos)
    )


def test_a_shard_written_again_is_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr("time.perf_counter", lambda: 1.0)
    write_first(tmp_path)
    before = contents(tmp_path)
    assert sorted(before) == [f"{table}/shard-000000.{end}" for table, end in SHARD_FILES]
    write_first(tmp_path)
    assert contents(tmp_path) == before
    assert tidy(tmp_path) == {0}
    assert contents(tmp_path) == before


SHARD_FILES = sorted([*((table, "parquet") for table in TABLES), ("shards", "json")])


@pytest.mark.parametrize("content", range(5))
def test_a_kill_between_two_writes_leaves_nothing_behind(tmp_path, content):
    write_first(tmp_path / "out")
    complete = contents(tmp_path / "out")
    shutil.copytree(tmp_path / "out", tmp_path / "killed")
    for table in list(TABLES)[:content]:
        shutil.copy(
            tmp_path / "out" / table / "shard-000000.parquet", tmp_path / "killed" / table / "shard-000007.parquet"
        )
    (tmp_path / "killed" / "triplets" / ".shard-000007.parquet.1234.tmp").write_bytes(b"half")
    (tmp_path / "killed" / "shards" / ".shard-000007.json.99.tmp").write_bytes(b"{")
    assert tidy(tmp_path / "killed") == {0}
    assert contents(tmp_path / "killed") == complete


def test_shard_without_rows_removes_the_file_of_an_earlier_try(tmp_path):
    write_shard(tmp_path, 1, [video("c")], rows([triplet("c")], [], [pair("c")]), {})
    write_second(tmp_path)
    assert sorted(contents(tmp_path)) == [
        "clips/shard-000001.parquet",
        "rejects/shard-000001.parquet",
        "shards/shard-000001.json",
    ]


def test_summary_sums_what_is_committed(tmp_path):
    write_first(tmp_path)
    write_second(tmp_path)
    three = [triplet("d"), triplet("d", 2)]
    write_shard(
        tmp_path,
        2,
        [video("d", 3)],
        rows(three, [], [pair("d"), pair("d", 2) | {"findings": ["static"]}]),
        {"scan": 1.0},
    )
    summary = summarise(tmp_path)
    assert summary["stage_s"].pop("write") > 0
    assert summary == {
        "videos": 4,
        "decoded": 3,
        "frames": 30,
        "video_s": 1.5,
        "paired": 2,
        "keyframes": 6,
        "keyframes_of_paired": 5,
        "pairs": 3,
        "triplets": 3,
        "videos_with_triplets": 2,
        "observations": 5,
        "words": 9,
        "filtered": 1,
        "failed": 1,
        "readers": {"decord": 2},
        "decord_fallbacks": 0,
        "measured_on": {"cpu": 3},
        "findings": {"static": 1},
        "rejects_by_reason": {"failed/time_out": 1, "filtered/too_few_keyframes": 1},
        "stage_s": {"scan": 2.5, "idm": 2.0},
        "keyframes_per_used_video": 2.5,
        "table7": {
            "mean_length_s": 0.5,
            "total_length_h": 0.0004,
            "samples": 2,
            "observations_per_video": 2.5,
            "actions_per_video": 1.5,
            "words_per_action": 3.0,
        },
    }
    assert json.loads((tmp_path / "shards" / "shard-000001.json").read_text())["failed"] == 1
    assert read_table(tmp_path / "clips", CLIPS_SCHEMA).num_rows == 4
    assert read_table(tmp_path / "pairs", PAIRS_SCHEMA).num_rows == 3


def test_segments_count_as_samples_and_filtered_frames_do_not(tmp_path):
    segments = [video(f"long.mp4#{start}.0-{start + 1}.0", 3) | {"uri": "set/long.mp4"} for start in range(3)]
    triplets = [triplet("long.mp4", 1 + number) for number in range(3)]  # one URI, other frames
    first, second, third = (segment["key"] for segment in segments)
    pairs = [pair(first), pair(first, 2), pair(second), pair(second, 2, "static"), pair(third, 1, "static")]
    rejects = [reject("long.mp4", "static"), reject("long.mp4", "static")]
    write_shard(tmp_path, 0, segments, rows(triplets, rejects, pairs), {})
    summary = summarise(tmp_path)
    assert summary["videos_with_triplets"] == 2
    table = summary["table7"]
    assert (table["samples"], table["observations_per_video"], table["actions_per_video"]) == (2, 2.5, 1.5)


def test_table_7_is_counted_from_the_tables_too(tmp_path):
    """As of a run that did not count it, by hand: a (two triplets of three frames), b (one of two), c (none)."""
    videos = [video("a", 3), video("b"), video("c", 1), video("d", 0)]
    pairs = [pair("a"), pair("a", 2), pair("b")]
    pairs = [row | {"action": text} for row, text in zip(pairs, ("push it", "put the cup down", "go"), strict=True)]
    pairs = [row | {"triplet_id": name} for row, name in zip(pairs, "xyz", strict=True)]
    rejects = [reject("c", "too_few_keyframes"), reject("d", "time_out")]
    write_shard(tmp_path, 0, videos, rows([triplet("a"), triplet("a", 2), triplet("b")], rejects, pairs), {})
    expected = {"mean_length_s": 0.5, "total_length_h": round(1.5 / 3600, 4), "samples": 2}
    expected |= {"observations_per_video": 2.5, "actions_per_video": 1.5, "words_per_action": round(7 / 3, 3)}
    assert count_table7(tmp_path) == expected
    chosen = [{"triplet_id": name, "class_label": "c", "score": 0.0, "rank_in_class": 0, "order": 0} for name in "yz"]
    write_table(chosen, tmp_path / "chosen" / "selection" / "part-00000.parquet", SELECTION_SCHEMA)
    selected = count_table7(tmp_path, tmp_path / "chosen")
    assert selected == expected | {"observations_per_video": 2.0, "actions_per_video": 1.0, "words_per_action": 2.5}
    assert markdown_table(expected | {"words_per_action": None})[-1] == "| 0.5 | 0.0004 | 2 | 2.5 | 1.5 | – |"
    with pytest.raises(InputError, match="has no table 'clips': Table 7 is counted from the output folder"):
        count_table7(tmp_path / "triplets")


@pytest.mark.parametrize("damage", ["mark", "empty mark", *TABLES])
def test_a_mark_counts_only_with_all_that_it_vouches_for(tmp_path, damage):
    write_shard(
        tmp_path, 3, [video("a"), video("b", 1)], rows([triplet("a")], [reject("b")], [pair("a")]), {"scan": 1.0}
    )
    write_second(tmp_path)
    if damage in TABLES:
        (tmp_path / damage / "shard-000003.parquet").unlink()
    else:
        (tmp_path / "shards" / "shard-000003.json").write_text("" if damage == "empty mark" else '{"videos": 2')
    assert shards_with(tmp_path, ["time_out"]) == [tmp_path / "shards" / "shard-000001.json"]
    assert tidy(tmp_path) == {1}
    assert not list(tmp_path.rglob("shard-000003*"))
    assert summarise(tmp_path)["videos"] == 1


def test_annotation_without_triplets_has_all_tables_to_retry(tmp_path):
    write_second(tmp_path)
    content = contents(tmp_path)
    fill_empty_tables(tmp_path, TABLES, "shard-000000.parquet")
    for table, schema in TABLES.items():
        assert read_table(tmp_path / table, schema).num_rows == {"rejects": 1, "clips": 1}.get(table, 0)
    assert tidy(tmp_path) == {1} and contents(tmp_path) == content


def test_means_over_nothing_are_none():
    names = ("video_s", "decoded", "videos_with_triplets", "observations", "triplets", "words")
    table = table7(dict.fromkeys(names, 0))
    means = ("mean_length_s", "observations_per_video", "actions_per_video", "words_per_action")
    assert {name: table[name] for name in means} == dict.fromkeys(means)
    assert (table["samples"], table["total_length_h"]) == (0, 0)
