"""Something-Something v2 as human-labelled triplets: first and last frame of each webm, the label between them."""

import json
from pathlib import Path

import numpy as np
import pytest

from jobs.ingest.job import IngestRecipe, run
from jobs.ingest.recipe import IngestResources
from tests.helpers.something_data import FPS, NUM_FRAMES, ROWS, write_release
from tests.helpers.video_files import ffmpeg_images, read_mark
from wm.images import decode_image
from wm.records import REJECT_SCHEMA
from wm.tables import read_table

pytest.importorskip("imageio_ffmpeg")


def test_each_labelled_video_is_a_triplet_or_a_reject(tmp_path: Path) -> None:
    labels = write_release(tmp_path, [*ROWS, {"id": "33", "label": "dancing", "template": "Dancing"}, ROWS[0]])
    folder, out = tmp_path / "20bn-something-something-v2", tmp_path / "out"
    settings = {"root": str(folder), "file": str(labels), "out": str(out), "dataset": "something", "image_side_px": 0}
    recipe = IngestRecipe(**settings, resources=IngestResources(num_workers=0))
    record = run(recipe)
    rows = read_table(out / "triplets").to_pylist()
    assert [(row["action"], row["class_label"], row["origin"]) for row in rows] == [
        ("holding potato next to vicks vaporub bottle", "Holding something next to something", "human"),
        ("closing a door", "Closing something", "human"),
    ]
    for row, video_id in zip(rows, ("101", "7"), strict=True):
        # ffmpeg's own decoder says what the frames are.
        frames = ffmpeg_images(folder / f"{video_id}.webm")
        images = [decode_image(row[f"{side}_image"]["bytes"], side) for side in ("source", "target")]
        for image, frame in zip(images, (frames[0], frames[-1]), strict=True):
            assert np.abs(image.astype(int) - frame).mean() < 1.5
        last = NUM_FRAMES[video_id] - 1
        assert len(frames) == last + 1 and (row["source_frame"], row["target_frame"]) == (0, last)
        assert [read_mark(image) - int(video_id) % 50 for image in images] == [0, last]
        assert [row["source_time_s"], row["target_time_s"]] == pytest.approx([0.0, last / FPS], abs=2e-3)
        assert row["video_uri"] == f"{folder}/{video_id}.webm"
    rejects = read_table(out / "rejects", REJECT_SCHEMA).to_pylist()
    assert {(row["uri"], row["reason"]) for row in rejects} == {
        ("404.webm", "missing_file"),
        ("9.webm", "not_a_video"),
        (f"{labels}#4", "unknown_class"),
        ("101.webm", "duplicate"),
    }
    assert record["counts"]["rows"] == 6 == len(rows) + len(rejects)
    # The video whose only row is a bad one is named by none.
    assert record["passed_over"]["unnamed"] == {"count": 1, "examples": ["33.webm"]}
    assert record["passed_over"]["absent"] == {"count": 1, "examples": ["404"]}
    # Named or recognised, it is the same run.
    assert run(recipe.model_copy(update={"dataset_layout": "something"})) == record


def test_finished_run_of_earlier_keys_is_the_same_run(tmp_path: Path) -> None:
    labels = write_release(tmp_path)
    out = tmp_path / "out"
    recipe = IngestRecipe(
        root=str(labels.parents[1]), file=str(labels), out=str(out), limit=1, resources=IngestResources(num_workers=0)
    )
    record = run(recipe)
    old = {name: value for name, value in record["recipe"].items() if name not in ("limits", "resources")}
    old |= {"layout": old.pop("dataset_layout"), "time_limit_s": 120.0, "num_workers": 8}
    (out / "run.json").write_text(json.dumps(record | {"recipe": old}))
    assert run(recipe)["recipe"] == old
