"""The job that writes the nano world."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.tabletop import TabletopRecipe, run, write_clips
from wm.datasets.layouts.base import ImagePair
from wm.datasets.layouts.labelled import list_labelled, load_images
from wm.datasets.videos.videos import list_videos
from wm.errors import OtherRunError
from wm.nano.world.oracle import action_is_right
from wm.nano.world.videos import clip_path, plan_clip
from wm.runs import read_run, write_json

pytestmark = pytest.mark.usefixtures("ray_session")


def recipe(out: Path, **changes: Any) -> TabletopRecipe:
    return TabletopRecipe(
        **(
            {"out": str(out), "train": 5, "tune": 0, "test": 3, "videos": 7, "resources": {"clips_per_task": 3}}
            | changes
        )
    )


def content(folder: Path) -> dict[str, bytes]:
    files = [file for file in folder.rglob("*") if file.is_file() and not file.name.startswith("run.")]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def test_the_world_is_whole_readable_and_the_same_for_a_seed(tmp_path: Path) -> None:
    record = run(recipe(tmp_path / "a"))
    assert record["counts"] == {"train": 5, "tune": 0, "test": 3, "videos": 7}
    root = tmp_path / "a" / "supervised"
    for split, count in (("train", 5), ("test", 3)):
        items = list_labelled(root, f"data/tabletop/{split}.json")
        assert len(items) == count
        for item in items:
            assert isinstance(item, ImagePair) and item.task == "tabletop"
            pair = load_images(root, item)
            assert isinstance(pair, tuple) and action_is_right(*pair, item.action)
            assert pair[0].shape == pair[1].shape == (48, 48, 3) and pair[0].dtype == np.uint8
    assert not (root / "data" / "tabletop" / "tune.json").exists()
    clips = [clip_path(tmp_path / "a" / "videos", plan_clip(seed)) for seed in range(7)]
    videos = list_videos(str(tmp_path / "a" / "videos")).to_pylist()
    assert sorted(video["uri"] for video in videos) == sorted(str(path) for path in clips)
    assert {video["class_label"] for video in videos} == {"moving", "adding", "removing", "painting"}
    # In this process, without Ray, and as two parts: the same.
    here = {"resources": {"num_workers": 0, "clips_per_task": 2}}
    run(recipe(tmp_path / "b" / "pairs", videos=0, **here))
    run(recipe(tmp_path / "b" / "clips", train=0, test=0, **here))
    parts = content(tmp_path / "b" / "pairs") | content(tmp_path / "b" / "clips")
    assert content(tmp_path / "a") == parts
    run(recipe(tmp_path / "c", seed=1))
    other = content(tmp_path / "c")
    assert not set(other.values()) & set(content(tmp_path / "a").values())


def test_a_killed_run_goes_on_and_keeps_its_clips(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(recipe(out), dry_run=True) == {} and not out.exists()
    record = run(recipe(out))
    whole = content(out)
    (out / "run.json").unlink()
    write_json(out / "run.unfinished.json", record)
    first, second = (clip_path(out / "videos", plan_clip(seed)) for seed in (0, 1))
    kept = second.stat().st_mtime_ns
    first.unlink()
    run(recipe(out))
    assert content(out) == whole and second.stat().st_mtime_ns == kept
    before = read_run(out)
    assert run(recipe(out)) == before
    with pytest.raises(OtherRunError, match="recipe videos = 7 there, 8 here"):
        run(recipe(out, videos=8))


def test_no_videos_at_all(tmp_path: Path) -> None:
    assert run(recipe(tmp_path, videos=0))["counts"]["videos"] == 0
    assert not (tmp_path / "videos").exists()


def test_clips_that_stand_are_not_written_again(tmp_path: Path) -> None:
    path = clip_path(tmp_path, plan_clip(3))
    path.parent.mkdir(parents=True)
    path.write_bytes(b"stands")
    assert write_clips([3, 4], str(tmp_path)) == 2
    assert path.read_bytes() == b"stands"
    assert clip_path(tmp_path, plan_clip(4)).stat().st_size > 1000


def test_questions_are_a_folder_for_ask_and_an_old_world_stays_complete(tmp_path: Path) -> None:
    small = {"train": 0, "test": 0, "videos": 0}
    record = run(recipe(tmp_path / "q", questions=4, **small))
    assert record["counts"]["questions"] == 4
    assert len((tmp_path / "q/questions/questions.jsonl").read_text().splitlines()) == 4
    # A world of a version that had no such key.
    run(recipe(tmp_path / "old", **small))
    record = read_run(tmp_path / "old")
    assert record is not None
    del record["recipe"]["questions"]
    write_json(tmp_path / "old/run.json", record)
    assert "questions" not in run(recipe(tmp_path / "old", **small))["recipe"]
