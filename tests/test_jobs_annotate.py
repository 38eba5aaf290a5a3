"""``annotate`` from files to files: actors in this process, then the whole job in a Ray session."""

import contextlib
import io
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from video_files import marked_frame, read_mark, write_video

from jobs._annotate_actors import CLIP_SCHEMA, Annotator, Decoder
from jobs.annotate import AnnotateRecipe, run
from wm.cli import main as cli_main
from wm.datasets.videos import list_videos
from wm.errors import InputError
from wm.images import fit_square
from wm.records import REJECT_SCHEMA, TRIPLET_SCHEMA, read_table


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Six files in two classes: two good ones, a corrupt one, an empty one, one of one frame, a still."""
    root = tmp_path_factory.mktemp("videos")
    good = write_video(root / "wave" / "good.mp4", [marked_frame(i) for i in range(60)])
    write_video(root / "wave" / "other.avi", [marked_frame(i, 48, 80) for i in range(45)], codec="mpeg4")
    (root / "odd").mkdir()
    (root / "odd" / "corrupt.mp4").write_bytes(good.read_bytes()[:300] + bytes(5000))
    (root / "odd" / "empty.mp4").touch()
    write_video(root / "odd" / "one.mp4", [marked_frame(0)])
    write_video(root / "odd" / "still.mp4", [marked_frame(5)] * 30)
    return root


def recipe(videos, idm, out, **more):
    values = {
        "videos": str(videos),
        "idm": str(idm),
        "out": str(out),
        "min_interval": 8,
        "videos_per_shard": 2,
    }
    return AnnotateRecipe.parse(values | {"num_workers": 1, "max_new_tokens": 6} | more, "test")


def decode(one):
    """What the decoding actor makes of a recipe's videos, as rows."""
    listed = [
        {"uri": video.uri, "key": video.key, "class_label": video.class_label, "path": video.path}
        for video in list_videos(one.videos)
    ]
    decoder = Decoder(one.clip_settings())
    tables = list(decoder(pa.Table.from_pylist(listed)))
    decoder.reader.close()
    assert [table.num_rows for table in tables] == [1] * len(listed)
    return pa.concat_tables(tables)


def rows(out):
    """(triplets, rejects) on disk, in the order of their ids."""
    triplets = read_table(out / "triplets", TRIPLET_SCHEMA).to_pylist()
    rejects = read_table(out / "rejects", REJECT_SCHEMA).to_pylist()
    return (
        sorted(triplets, key=lambda row: row["triplet_id"]),
        sorted(rejects, key=lambda row: row["reject_id"]),
    )


def test_actors_make_triplets_whose_columns_belong_together(videos, tiny_base, tmp_path):
    one = recipe(videos, tiny_base, tmp_path / "out")
    clips = decode(one)
    assert clips.schema.equals(CLIP_SCHEMA)
    annotator = Annotator(one.annotator_settings())
    encoded = []
    direct = annotator.codec.encode_with_features
    annotator.codec.encode_with_features = lambda pixels: encoded.append(len(pixels)) or direct(pixels)
    triplets, rejects = annotator.annotate(clips.to_pylist())
    by_key = {row["key"]: row for row in clips.to_pylist()}
    num_keyframes = sum(len(row["frames"]) for row in by_key.values() if row["frames"])
    used = {row["video_uri"] for row in triplets}
    assert used == {by_key["wave/good.mp4"]["uri"], by_key["wave/other.avi"]["uri"]}
    assert sum(encoded) == num_keyframes  # each image once, though the inner ones stand in two pairs
    assert len(triplets) + sum(row["reason"] == "empty_action" for row in rejects) == num_keyframes - 2
    for row in triplets:
        features = []
        for side in ("source", "target"):
            pixels = np.array(Image.open(io.BytesIO(row[f"{side}_image"]["bytes"])))
            assert read_mark(pixels) == row[f"{side}_frame"]
            assert row[f"{side}_time_s"] == pytest.approx(row[f"{side}_frame"] / 25, abs=1e-6)
            codes_BN, features_BND = direct(fit_square(pixels, annotator.codec.side_px)[None].copy())
            assert row[f"{side}_codes"] == codes_BN[0].tolist()
            features.append(features_BND[0])
        change = (features[1] - features[0]).square().sum(-1)
        assert torch.allclose(torch.tensor(row["change"]), change, atol=1e-5)
        assert row["target_frame"] - row["source_frame"] >= 8
        assert (row["class_label"], row["origin"], row["codec"]) == ("wave", "idm", annotator.codec.codec_id)
        assert row["annotator"] == annotator.idm.base_id
    assert len({row["triplet_id"] for row in triplets}) == len(triplets)


def test_every_video_is_in_a_triplet_or_a_reject_with_its_reason(videos, tiny_base, tmp_path):
    one = recipe(videos, tiny_base, tmp_path / "out")
    clips = decode(one).to_pylist()
    _, rejects = Annotator(one.annotator_settings()).annotate(clips)
    found = {row["uri"].rsplit("/", 1)[1]: (row["outcome"], row["reason"]) for row in rejects if "odd" in row["uri"]}
    assert found == {
        "corrupt.mp4": ("failed", "not_a_video"),
        "empty.mp4": ("failed", "empty_file"),
        "one.mp4": ("failed", "one_frame"),
        "still.mp4": ("filtered", "too_few_keyframes"),
    }
    assert all(row["uri"] in row["detail"] for row in rejects if row["outcome"] == "failed")


def test_still_pairs_and_wordless_pairs_are_filtered_one_by_one(videos, tiny_base, tmp_path):
    one = recipe(videos / "wave", tiny_base, tmp_path / "out", min_motion=1e9)
    clips = decode(one).to_pylist()
    annotator = Annotator(one.annotator_settings())
    triplets, rejects = annotator.annotate(clips)
    pairs = sum(len(row["frames"]) - 1 for row in clips)
    assert (triplets, Counter(row["reason"] for row in rejects)) == ([], {"too_little_motion": pairs})
    assert len({row["reject_id"] for row in rejects}) == pairs
    annotator.settings = replace(annotator.settings, min_motion=0.0)
    annotator.idm.detokenize = lambda ids: " "
    triplets, rejects = annotator.annotate(clips)
    assert (triplets, Counter(row["reason"] for row in rejects)) == ([], {"empty_action": pairs})


def test_a_model_that_does_not_load_is_told_in_one_line(videos, tiny_base, tmp_path):
    broken = tmp_path / "model"
    shutil.copytree(tiny_base, broken)
    manifest = broken / "wm_model.json"
    manifest.write_text(manifest.read_text().replace('"codec_id": "vq-', '"codec_id": "vq-other'))
    one = recipe(videos / "wave", broken, tmp_path / "out")
    answer = Annotator(one.annotator_settings())(decode(one))
    assert "vq-other" in answer["problem"][0]
    assert not (tmp_path / "out" / "triplets").exists()


def test_dry_run_lists_and_touches_nothing(videos, tiny_base, tmp_path, capsys):
    plan = run(recipe(videos, tiny_base, tmp_path / "out"), dry_run=True)
    assert plan == {"videos": 6, "whole": False}
    told = capsys.readouterr().out
    assert "6 videos of 2 classes" in told
    assert "min_interval = 8" in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"idm": "nowhere"}, "idm = 'nowhere': no such model folder"),
        ({"idm": "."}, "has neither config.json nor adapter_config.json"),
        ({"base": "nowhere"}, "base = 'nowhere': no such model folder"),
        ({"videos": "nowhere"}, "videos = 'nowhere': no such file or folder"),
    ],
)
def test_bad_input_is_told_before_anything_starts(videos, tiny_base, tmp_path, changed, told):
    with contextlib.chdir(tmp_path), pytest.raises(InputError, match=told):
        run(recipe(**({"videos": videos, "idm": tiny_base, "out": tmp_path / "out"} | changed)))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "wrong",
    ["max_keyframes=1", "keyframe_rule=best", "reader=ffmpeg", "motion=none", "speed=3", "min_interval=2.5"],
)
def test_wrong_settings_name_the_key(videos, tiny_base, tmp_path, capsys, wrong):
    settings = [f"videos={videos}", f"idm={tiny_base}", f"out={tmp_path / 'out'}", wrong, "--dry-run"]
    assert cli_main(AnnotateRecipe, run, name="annotate", description="", argv=settings) == 2
    assert wrong.split("=")[0] in capsys.readouterr().err


@pytest.fixture(scope="module")
def session():
    """One Ray session for the tests of this file that need it."""
    from jobs._ray import connect

    connect()


@pytest.mark.slow
def test_the_job_end_to_end_and_going_on_after_a_kill(session, videos, tiny_base, tmp_path, capsys):
    one = recipe(videos, tiny_base, tmp_path / "out")
    record = run(one)
    triplets, rejects = rows(tmp_path / "out")
    counts = record["counts"]
    assert counts["videos"] == counts["listed"] == 6
    assert (counts["triplets"], counts["filtered"] + counts["failed"]) == (len(triplets), len(rejects))
    accounted = {row["video_uri"] for row in triplets} | {row["uri"] for row in rejects}
    assert accounted == {video.uri for video in list_videos(str(videos))}
    assert counts["failed"] == 3
    assert "failed/empty_file: 1" in capsys.readouterr().out
    assert run(one) == {"videos": 6, "whole": True}  # whole: not done again

    with pytest.raises(InputError, match="holds another run"):
        run(recipe(videos, tiny_base, tmp_path / "out", min_interval=9))

    # As kill -9 leaves it: one shard committed, one with its rows but no mark, nothing of the third.
    shutil.copytree(tmp_path / "out", tmp_path / "kept")
    (tmp_path / "out" / "run.json").rename(tmp_path / "out" / "run.unfinished.json")
    marks = sorted((tmp_path / "out" / "shards").glob("*.json"))
    assert len(marks) == 3
    marks[1].unlink()
    for path in (tmp_path / "out").rglob(f"{marks[2].stem}.*"):
        path.unlink()
    capsys.readouterr()
    again = run(one)
    assert "2 of 6 videos are finished" in capsys.readouterr().out
    assert rows(tmp_path / "out") == (triplets, rejects)
    assert again["counts"] == counts


@pytest.mark.slow
def test_real_clips_all_end_in_triplets_or_rejects(session, shared_data, tiny_base, tmp_path):
    record = run(recipe(shared_data / "videos", tiny_base, tmp_path / "out", min_interval=20))
    triplets, rejects = rows(tmp_path / "out")
    files = {video.uri for video in list_videos(str(shared_data / "videos"))}
    assert {row["video_uri"] for row in triplets} | {row["uri"] for row in rejects} == files
    failed = {row["uri"].rsplit("/", 1)[1]: row["reason"] for row in rejects if row["outcome"] == "failed"}
    assert failed == {
        "x_audio_only.mp4": "no_video_stream",
        "x_empty.mp4": "empty_file",
        "x_zero_frames.mp4": "no_video_stream",
    }
    assert record["counts"]["readers"]["pyav"] >= 4  # where decord is wrong or gives up
    used = {row["video_uri"].rsplit("/", 1)[1] for row in triplets}
    assert {"decord_hang_110.mp4", "x_hole.mp4", "av1_video.mkv"} <= used
