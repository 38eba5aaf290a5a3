"""The viewer without a browser: sampling, images, scripts, joins, the head's figures."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.helpers.viewer_data import CLIPS, HOSTILE, clip, picture, triplet, write_annotation
from wm.errors import InputError
from wm.records import TRIPLET_SCHEMA
from wm.tables import write_table
from wm.viewer.rows import read_rows
from wm.viewer.sample import Pick, allocate, sample_rows, spread_positions
from wm.viewer.scripts import MAX_CURVE_POINTS, build_script, encode_change, encode_column, encode_curve
from wm.viewer.source import open_source
from wm.viewer.sprites import EDGE_PX, build_sprite
from wm.viewer.summary import list_table_7

COUNTS = st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.integers(1, 500), min_size=1, max_size=12)


@settings(deadline=None, max_examples=200)
@given(COUNTS, st.integers(0, 600))
def test_each_stratum_gets_its_share(counts: dict[str, int], limit: int) -> None:
    quota = allocate(counts, limit)
    total = sum(counts.values())
    assert sum(quota.values()) == min(limit, total)
    assert all(0 < quota[name] <= counts[name] for name in quota)
    if limit >= len(counts):
        assert set(quota) == set(counts)
        for name, count in counts.items():  # the largest-remainder share, with one place given away beforehand
            exact = 1 + (count - 1) * (min(limit, total) - len(counts)) / max(1, total - len(counts))
            assert abs(quota[name] - exact) < 1
    else:
        assert sorted(counts.values())[::-1][: len(quota)] == sorted((counts[name] for name in quota), reverse=True)


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 9))
def test_positions_are_spread_evenly(count: int, number: int, run: int) -> None:
    positions = spread_positions(count, number, run)
    assert (np.diff(positions) > 0).all() and positions[0] >= 0 and positions[-1] < count
    assert min(number, count) - run < len(positions) <= min(number, count)
    if run == 1 and number < count:
        assert len(positions) == number and np.ptp(np.diff(positions)) <= 1 if number > 1 else True


def labels(table: pa.Table) -> pa.Array:
    return pc.fill_null(table["class_label"].combine_chunks(), "")


def test_a_sample_takes_the_rows_it_promises(tmp_path: Path) -> None:
    rows = [triplet(number, class_label=[None, "a", "b"][min(2, number % 7)]) for number in range(60)]
    for part in range(3):
        write_table(rows[part * 20 : part * 20 + 20], tmp_path / f"part-{part}.parquet", TRIPLET_SCHEMA)
    files = sorted(tmp_path.glob("*.parquet"))
    every = sample_rows(files, ["class_label"], labels, 60)
    assert (every.total, every.size, every.counts) == (60, 60, {"": 9, "a": 9, "b": 42})
    some = sample_rows(files, ["class_label"], labels, 20)
    labels_sampled = [
        rows[files.index(pick.file) * 20 + row]["class_label"] or "" for pick in some.picks for row in pick.rows
    ]
    assert {name: labels_sampled.count(name) for name in ("", "a", "b")} == allocate(every.counts, 20)
    assert len({pick.file for pick in some.picks}) == 3
    first = sample_rows(files, ["class_label"], labels, 20, lambda name: name == "a")
    labels_sampled = [
        rows[files.index(pick.file) * 20 + row]["class_label"] or "" for pick in first.picks for row in pick.rows
    ]
    assert labels_sampled.count("a") == 9 and len(labels_sampled) == 20


def test_a_huge_data_set_is_sampled_in_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row group that is touched has to be read completely, so few are."""
    monkeypatch.setattr("wm.viewer.sample.MAX_GROUPS", 4)
    for part in range(30):
        rows = [triplet(part * 10 + number, class_label="ab"[part % 2]) for number in range(10)]
        write_table(rows, tmp_path / f"part-{part:02d}.parquet", TRIPLET_SCHEMA)
    sample = sample_rows(sorted(tmp_path.glob("*.parquet")), ["class_label"], labels, 20)
    assert sample.total == 300 and sample.size == 20
    assert len(sample.picks) <= 8 and {int(pick.file.stem[-2:]) % 2 for pick in sample.picks} == {0, 1}


def test_images_of_a_sprite_are_in_their_cells() -> None:
    wide, tall = picture(255, 20, 80)["bytes"], picture(0, 90, 30)["bytes"]
    sprite = build_sprite([(wide, tall), (b"no picture", None)], 40, quality=90)
    assert sprite.sizes_px == [(40, 10, 13, 40), (0, 0, 0, 0)]
    assert sprite.cell_px == (42, 42) and sprite.size_px == (84, 84)
    sheet = np.asarray(Image.open(io.BytesIO(sprite.data)).convert("RGB"), dtype=int)
    assert sheet.shape == (84, 84, 3)
    source = sheet[EDGE_PX : EDGE_PX + 10, EDGE_PX : EDGE_PX + 40]
    target = sheet[EDGE_PX : EDGE_PX + 40, 42 + EDGE_PX : 42 + EDGE_PX + 13]
    assert np.abs(source.mean((0, 1)) - (255, 0, 0)).max() < 30
    assert np.abs(target.mean((0, 1)) - (0, 0, 255)).max() < 30
    assert sheet[50:].max() < 30


def test_a_decompression_bomb_is_a_missing_image() -> None:
    buffer = io.BytesIO()
    Image.new("1", (8000, 8000)).save(buffer, "PNG")
    assert build_sprite([(buffer.getvalue(), picture(1)["bytes"])], 32, 70).sizes_px == [(0, 0, 32, 24)]


@settings(deadline=None)
@given(st.text())
def test_scripts_hold_text_only_as_strings(text: str) -> None:
    source = build_script("index", {"a": [text, HOSTILE]}, float("nan"))
    assert source.isascii() and not set("<>&\u2028\u2029") & set(source)
    body = source.removeprefix("wm.index(").removesuffix(");\n")
    assert json.loads(f"[{body}]") == [{"a": [text, HOSTILE]}, None]


def test_columns_of_few_values() -> None:
    assert encode_column(["b", "a", "b"]) == {"values": ["a", "b"], "codes": [1, 0, 1]}
    assert encode_column([(2, 3, 0, 0), (1, 9, 0, 0)]) == {"values": [(1, 9, 0, 0), (2, 3, 0, 0)], "codes": [1, 0]}


def test_long_curves_keep_their_peaks() -> None:
    motion = np.random.default_rng(0).gamma(1.0, size=1450).astype(np.float32)
    result = encode_curve(motion)
    assert result["frames"] == 1450 and result["step"] == 3 and len(result["motion"]) == 484 <= MAX_CURVE_POINTS
    expected = [float(motion[start : start + 3].max()) for start in range(0, 1450, 3)]
    assert result["motion"] == pytest.approx(expected, abs=6e-4)
    assert encode_curve([1.0, float("nan"), 2.0]) == {"frames": 3, "step": 1, "motion": [1.0, 0.0, 2.0]}


def test_change_maps() -> None:
    result = encode_change([0.0, 1.0, 2.0, 4.0])
    assert result is not None
    assert list(base64.b64decode(result["bytes"])) == [0, 64, 128, 255]
    assert (result["side"], result["max"], result["mean"]) == (2, 4.0, 1.75)
    assert (
        encode_change([1.0, 2.0, 3.0]) is None and encode_change(None) is None and encode_change([float("nan")]) is None
    )
    still = encode_change([0.0])
    assert still is not None and list(base64.b64decode(still["bytes"])) == [0]


def test_a_triplet_finds_the_clip_it_was_cut_from(tmp_path: Path) -> None:
    uri, name = "long.mp4", "shard-000000.parquet"
    rows = [
        triplet(0, video_uri=uri, source_frame=3, target_frame=9, source_time_s=5.5),
        triplet(1, video_uri=uri, source_frame=3, target_frame=9, source_time_s=10.0),
        triplet(2, video_uri=uri, source_frame=4, target_frame=9, source_time_s=10.5),
        triplet(3, video_uri="other.mp4"),
    ]
    out = write_annotation(tmp_path / "out", rows)
    clips = [
        clip(uri, key="failed", keyframes=None, motion=None, times_s=None),
        clip(uri, key="a", start_s=5.0, end_s=10.0, keyframes=[3, 9]),
        clip(uri, key="b", start_s=10.0, end_s=15.0, keyframes=[3, 9]),
    ]
    write_table(clips, out / "clips" / name, CLIPS)
    source = open_source(out)
    joined = list(read_rows(source, [Pick(source.triplets[0], 0, np.arange(4))]))
    starts = [row.clip["start_s"] if row.clip else None for row in joined]
    assert starts == [5.0, 10.0, None, None]
    # A list that rounds upwards: the frame at 10.0 s is the second segment's all the same.
    for clips[1]["end_s"], clips[2]["start_s"] in ((10.0001, 10.0001), (9.9999, 10.0001)):
        for segment in clips[1:]:
            segment["frame_s"] = 0.04
        write_table(clips, out / "clips" / name, CLIPS)
        joined = list(read_rows(source, [Pick(source.triplets[0], 0, np.arange(4))]))
        assert [row.clip["key"] if row.clip else None for row in joined] == ["a", "b", None, None]
    assert joined[2].pair is not None and joined[2].pair["difference"] == 3.5 and joined[2].pair["cut"] is None


def test_a_source_is_found_by_its_tables(tmp_path: Path) -> None:
    out = write_annotation(tmp_path / "out", [triplet(0)])
    complete = open_source(out)
    assert len(complete.triplets) == len(complete.rejects) == len(complete.clips) == len(complete.pairs) == 1
    assert open_source(out / "triplets").rejects == []
    (out / "run.json").write_text('{"stage": "annotate"}')
    assert open_source(out / "triplets") == open_source(out) and open_source(out).record == {"stage": "annotate"}
    bare = open_source(out / "triplets" / "shard-000000.parquet")
    assert bare.rejects == [] and bare.record is None
    (out / "triplets" / ".hidden.parquet").write_bytes(b"unfinished")
    assert len(open_source(out).triplets) == 1
    for folder, message in [
        (tmp_path / "absent", "no such folder"),
        (out / "rejects", "is no table of triplets: it lacks the column 'triplet_id'"),
        (out / "run.json", "run.json is not a readable Parquet file"),
    ]:
        with pytest.raises(InputError, match=message):
            open_source(folder)
    with pytest.raises(InputError, match="is no table of selection"):
        open_source(out, out / "rejects")


def test_damaged_and_foreign_columns_are_named(tmp_path: Path) -> None:
    row = triplet(0)
    odd = pa.table({name: [row[name]] for name in ("triplet_id", "source_image", "target_image", "action")})
    folder = tmp_path / "odd"
    folder.mkdir()
    pa.parquet.write_table(odd.append_column("motion", pa.array(["fast"])), folder / "a.parquet")
    source = open_source(folder)
    with pytest.raises(InputError, match=r"a\.parquet has motion as string, expected float"):
        list(read_rows(source, [Pick(source.triplets[0], 0, np.arange(1))]))
    pa.parquet.write_table(odd, folder / "a.parquet")
    (row_read,) = read_rows(source, [Pick(source.triplets[0], 0, np.arange(1))])
    assert row_read.triplet["motion"] is None and row_read.triplet["action"] == row["action"]


def test_figures_of_table_7() -> None:
    counts = {"table7": {"mean_length_s": 3.0, "total_length_h": 1.5, "samples": 12345, "words_per_action": 7.25}}
    assert list_table_7(counts) == [
        ("mean length", "3.00 s"),
        ("total length", "1.50 h"),
        ("videos with triplets", "12,345"),
        ("words an action", "7.2"),
    ]
    older = {"video_s": 7200.0, "videos": 1000, "videos_with_triplets": 500, "triplets": 850}
    assert [value for _, value in list_table_7(older)] == ["7.20 s", "2.00 h", "500", "1.70"]
    assert list_table_7({}) == [] and list_table_7({"table7": "none", "videos": True}) == []
