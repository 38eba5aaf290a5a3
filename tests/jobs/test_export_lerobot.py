"""Export to LeRobot's layout: files, statistics, what opens it, what it cannot hold."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.export import run
from tests.helpers.export_data import COUNT, provenance, recipe, write_world
from tests.helpers.triplet_files import picture, triplet, write_output
from wm.datasets.export import PROVENANCE
from wm.errors import InputError
from wm.images import decode_image, fit_square


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten triplets of one size in three files."""
    return write_world(tmp_path_factory.mktemp("export"))


def test_lerobot_keeps_the_documented_layout(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(recipe(world, out, format="lerobot"))
    info = json.loads((out / "meta/info.json").read_text())
    tasks = pd.read_parquet(out / "meta/tasks.parquet")
    files = sorted((out / "data").rglob("*.parquet"))
    assert [str(file.relative_to(out)) for file in files] == [
        info["data_path"].format(chunk_index=0, file_index=number) for number in range(3)
    ]
    assert info["codebase_version"] == "v3.0" and info["video_path"] is None and info["fps"] == 1
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (10, 20, len(tasks)) == (10, 20, 5)
    assert info["splits"] == {"train": "0:10"}
    arrow = {"int64": pa.int64(), "float32": pa.float32(), "float64": pa.float64(), "bool": pa.bool_()}
    arrow["string"] = pa.string()
    for file in files:
        schema = pq.read_schema(file)
        assert schema.names == list(info["features"])
        for name, feature in info["features"].items():
            if feature["dtype"] == "image":
                assert feature["shape"] == [12, 20, 3] and feature["names"] == ["height", "width", "channels"]
            else:
                assert feature["shape"] == [1] and schema.field(name).type == arrow[feature["dtype"]]
    assert tasks.index.name == "task" and list(tasks.task_index) == list(range(5))
    frames = pd.concat([pd.read_parquet(file) for file in files], ignore_index=True)
    episodes = pd.concat(
        [pd.read_parquet(file) for file in sorted((out / "meta/episodes").rglob("*.parquet"))], ignore_index=True
    )
    assert list(frames["index"]) == list(range(20)) and list(episodes.episode_index) == list(range(10))
    for number, episode in episodes.iterrows():
        mine = frames[episode.dataset_from_index : episode.dataset_to_index]
        place = info["data_path"].format(chunk_index=episode["data/chunk_index"], file_index=episode["data/file_index"])
        assert number in set(pd.read_parquet(out / place, columns=["episode_index"]).episode_index)
        assert list(mine.episode_index) == [number] * 2 == [number] * episode.length
        assert list(mine.frame_index) == [0, 1] == list(mine.timestamp * info["fps"])
        assert list(mine["next.done"]) == [False, True] and list(mine.triplet_id) == [episode.triplet_id] * 2
        row = triplet(number)
        assert list(episode.tasks) == [row["action"]] == [tasks.index[task] for task in mine.task_index.unique()]
        assert list(mine.video_frame) == [row["source_frame"] or -(number % 2), row["target_frame"] or -1]
        np.testing.assert_equal(
            mine.video_time_s.to_numpy(), np.array([row["source_time_s"], row["target_time_s"]], float)
        )
        for image, side in zip(mine["observation.image"], ("source", "target"), strict=True):
            assert image["bytes"] == row[f"{side}_image"]["bytes"]
    written = pa.concat_tables([pq.read_table(file) for file in sorted((out / "meta/episodes").rglob("*.parquet"))])
    assert written.select(PROVENANCE).to_pylist() == [provenance(number) for number in range(COUNT)]


def test_lerobot_statistics_are_those_of_the_frames(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(recipe(world, out, format="lerobot"))
    stats = json.loads((out / "meta/stats.json").read_text())
    frames = pd.concat([pd.read_parquet(file) for file in sorted((out / "data").rglob("*.parquet"))])
    for name in ("timestamp", "frame_index", "episode_index", "index", "task_index", "next.done", "video_frame"):
        values = frames[name].to_numpy(float)
        values = values[values >= 0]
        expected = [values.min(), values.max(), values.mean(), values.std(), len(values)]
        np.testing.assert_allclose([stats[name][key][0] for key in ("min", "max", "mean", "std", "count")], expected)
    assert stats["video_time_s"]["count"] == [10]
    pixels = np.stack([picture(number) for number in range(20)]).reshape(-1, 3) / 255
    for key, values in (
        ("min", pixels.min(0)),
        ("max", pixels.max(0)),
        ("mean", pixels.mean(0)),
        ("std", pixels.std(0)),
    ):
        np.testing.assert_allclose(np.array(stats["observation.image"][key]), values.reshape(3, 1, 1), rtol=1e-9)
    assert stats["observation.image"]["count"] == [20]


def _pixels(data: bytes) -> np.ndarray:
    """Pixels of stored bytes in [0, 1] (pixels, 3), by Pillow alone."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB")).reshape(-1, 3) / 255


def _png(pixels_HWC: np.ndarray) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.fromarray(pixels_HWC).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def test_lerobot_statistics_are_of_every_frame(tmp_path: Path) -> None:
    """Few bright episodes among many dark ones, in parts of unequal size, grey images, times since 1970."""
    rows = []
    for number in range(75):
        noise = np.random.default_rng(number).integers(0, 40, (2, 4, 6, 3), np.uint8)
        noise[..., 1] += 200 * (number in (1, 40, 41, 42, 74))
        noise[0, ..., 2] = number
        images = [_png(noise[0]), _png(noise[1, ..., 0] if number % 3 else noise[1])]
        start_s = 1.7e9 + number / 30
        more = {"source_time_s": start_s, "target_time_s": start_s + 0.01, "source_frame": number}
        rows.append(triplet(number, source_image=images[0], target_image=images[1], **more))
    write_output(tmp_path, rows, shard_rows=20)
    run(recipe(tmp_path, tmp_path / "out", format="lerobot", shard_rows=48))
    stats = json.loads((tmp_path / "out/meta/stats.json").read_text())
    files = sorted((tmp_path / "out/data").rglob("*.parquet"))
    assert len(files) > 1
    frames = pd.concat([pd.read_parquet(file) for file in files], ignore_index=True)
    assert len(frames) == 150
    pixels = np.concatenate([_pixels(image["bytes"]) for image in frames["observation.image"]])
    expected = {"min": pixels.min(0), "max": pixels.max(0), "mean": pixels.mean(0), "std": pixels.std(0)}
    assert stats["observation.image"].keys() == {*expected, "count"}
    for key, values in expected.items():
        np.testing.assert_allclose(stats["observation.image"][key], values.reshape(3, 1, 1), rtol=1e-12)
    assert stats["observation.image"]["count"] == [150]
    # In float64 the mean of the squares less the square of the mean would be off by whole seconds here.
    times = frames["video_time_s"].to_numpy()
    np.testing.assert_allclose(stats["video_time_s"]["std"], [times.std()], rtol=1e-6)
    np.testing.assert_allclose(stats["video_time_s"]["mean"], [times.mean()], rtol=1e-12)


def test_lerobot_statistics_need_every_image(tmp_path: Path) -> None:
    rows = [triplet(number) for number in range(40)]
    image = rows[37]["source_image"]["bytes"]
    rows[37]["source_image"] = {"bytes": image[:60] + bytes(len(image) - 60), "path": None}
    write_output(tmp_path, rows)
    with pytest.raises(InputError, match=f"an image of {37:024x} is no readable image") as caught:
        run(recipe(tmp_path, tmp_path / "out", format="lerobot", shard_rows=40))
    assert "\n" not in str(caught.value)


def test_lerobot_opens_in_load_dataset_with_pictures(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
    out = tmp_path / "out"
    run(recipe(world, out, format="lerobot"))
    table = datasets.load_dataset(str(out), split="train")
    assert len(table) == 20 and table.features["observation.image"] == datasets.Image()
    for number, row in enumerate(table):
        np.testing.assert_array_equal(np.array(row["observation.image"]), picture(number))
    assert "license: other" in (out / "README.md").read_text()


def test_lerobot_wants_one_size_and_one_split(tmp_path: Path) -> None:
    rows = [triplet(number, (12, 20 + 4 * (number == 2)), split="ab"[number == 1]) for number in range(4)]
    write_output(tmp_path, rows)
    with pytest.raises(InputError, match="lerobot keeps one split a data set; these rows are of a, b: give split"):
        run(recipe(tmp_path, tmp_path / "out", format="lerobot"))
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match=r"0002 has 24 x 12 pixels, the first image 20 x 12; .*give side_px"):
        run(recipe(tmp_path, tmp_path / "out", format="lerobot", split="a"))
    record = run(recipe(tmp_path, tmp_path / "square", format="lerobot", split="a", side_px=8))
    assert (record["counts"]["exported"], record["counts"]["other_split"]) == (3, 1)
    [file] = (tmp_path / "square" / "data").rglob("*.parquet")
    images = pd.read_parquet(file)["observation.image"]
    np.testing.assert_array_equal(decode_image(images[2]["bytes"], "x"), fit_square(picture(4, 12, 24), 8))
    info = json.loads((tmp_path / "square" / "meta/info.json").read_text())
    assert info["features"]["observation.image"]["shape"] == [8, 8, 3] and info["splits"] == {"a": "0:3"}
