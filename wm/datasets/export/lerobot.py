"""Write LeRobot's data-set layout, version 3.0: every triplet is an episode of two frames.

Followed: ``lerobot-dataset-v3.mdx`` of LeRobot's documentation and what its ``lerobot.datasets`` reads
(``meta/info.json``, ``meta/stats.json``, ``meta/tasks.parquet``, ``meta/episodes`` and ``data`` in chunks of files);
an export was opened with ``LeRobotDataset`` of lerobot 0.4.4 and every frame and task compared.

Choices, where a triplet is no robot's recording:

* Images are Parquet image features, not MP4: the stored bytes stay as they are. The layout knows one size only.
* The action in words is the episode's task. There is no ``action`` feature: nobody measured a vector.
* ``fps`` is 1 and ``timestamp`` is ``frame_index / fps``, as the layout demands of every episode: 0 for the source,
  1 for the target. Where the frames are in their video is in ``video_frame`` (-1 = unknown) and ``video_time_s``
  (NaN = unknown), because LeRobot turns every number into a tensor and knows no null.
* The provenance columns are there once an episode, in ``meta/episodes``; frames carry ``triplet_id`` too.
* All statistics in ``meta/stats.json``, those of the images too, come from every frame: the standard deviation is that
  of the population, as LeRobot's own.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from wm.datasets.export.lerobot_meta import CHUNK_FILES, DATA_SCHEMA, EPISODE_SCHEMA, FPS, Stats
from wm.datasets.export.plan import Part
from wm.datasets.export.rows import IMAGES, PROVENANCE, Context, PartFacts, image_of, iterate_rows
from wm.files.atomic import replace_file
from wm.files.mirror import publish
from wm.records import TripletRow

ROW_GROUP_EPISODES = 32

WRITE_BATCH = 16
"""Parquet ends a page at the end of such a batch at the earliest: small pages let readers stream images."""


def write(context: Context, part: Part, tick: Callable[[int], object]) -> PartFacts:
    """Write one part as one file of ``data`` and one of ``meta/episodes``.

    Args:
        context: What all parts share.
        part: Its rows.
        tick: Called with the number of rows written since.

    Returns:
        The part's facts.
    """
    assert context.tasks is not None
    data, episodes = (Path(context.out) / path for path in _paths(part.number))
    rows, licenses, stats = 0, Counter[str](), Stats()
    with _parquet(data, DATA_SCHEMA, 2) as add_frames, _parquet(episodes, EPISODE_SCHEMA, 1) as add_episode:
        for row in iterate_rows(part, context):
            # Tasks are sorted, so that a number needs no dictionary of millions of texts.
            task = bisect_left(context.tasks, row["action"], key=lambda value: value.as_py())
            images = [image_of(row, column, context) for column in IMAGES]
            frames = _frames(row, part.first_row + rows, task, images)
            stats.add(frames)
            add_frames(frames)
            add_episode([_episode(row, part.first_row + rows, part.number)])
            licenses[row["license"] or ""] += 1
            rows += 1
            tick(1)
    publish(data)
    publish(episodes)
    return {"rows": rows, "licenses": dict(licenses), "stats": stats.moments}


def _paths(number: int) -> tuple[str, str]:
    name = f"chunk-{number // CHUNK_FILES:03d}/file-{number % CHUNK_FILES:03d}.parquet"
    return f"data/{name}", f"meta/episodes/{name}"


def _frames(row: TripletRow, episode: int, task: int, images: list[tuple[bytes, str]]) -> list[dict[str, object]]:
    frames: list[dict[str, object]] = []
    positions = ((row["source_frame"], row["source_time_s"]), (row["target_frame"], row["target_time_s"]))
    # LeRobot makes a tensor of every number: unknown ones need a value.
    for number, ((frame, time_s), (data, suffix)) in enumerate(zip(positions, images, strict=True)):
        frames.append(
            {
                "observation.image": {"bytes": data, "path": f"episode-{episode:06d}-frame-{number:06d}.{suffix}"},
                "next.done": number == 1,
                "triplet_id": row["triplet_id"],
                "video_frame": -1 if frame is None else frame,
                "video_time_s": float("nan") if time_s is None else time_s,
                "timestamp": number / FPS,
                "frame_index": number,
                "episode_index": episode,
                "index": 2 * episode + number,
                "task_index": task,
            }
        )
    return frames


def _episode(row: TripletRow, episode: int, part: int) -> dict[str, object]:
    values: Mapping[str, object] = row
    # A part is a file of data and one of episodes, of the same number.
    chunk, file = divmod(part, CHUNK_FILES)
    return {
        "episode_index": episode,
        "tasks": [row["action"]],
        "length": 2,
        "data/chunk_index": chunk,
        "data/file_index": file,
        "dataset_from_index": 2 * episode,
        "dataset_to_index": 2 * episode + 2,
        "meta/episodes/chunk_index": chunk,
        "meta/episodes/file_index": file,
    } | {name: values[name] for name in PROVENANCE}


@contextmanager
def _parquet(
    path: Path, schema: pa.Schema, rows_an_episode: int
) -> Iterator[Callable[[list[dict[str, object]]], None]]:
    """Open a Parquet file that is written in small row groups to a temporary file and then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pending: list[dict[str, object]] = []
    options = {"compression": "zstd", "write_batch_size": WRITE_BATCH}
    # Under its own name the file is complete or not there.
    with replace_file(path) as temporary, pq.ParquetWriter(temporary, schema, **options) as writer:

        def flush() -> None:
            writer.write_table(pa.Table.from_pylist(pending, schema=schema))
            pending.clear()

        def add(rows: list[dict[str, object]]) -> None:
            pending.extend(rows)
            if len(pending) >= ROW_GROUP_EPISODES * rows_an_episode:
                flush()

        yield add
        if pending:
            flush()
