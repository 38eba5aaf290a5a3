"""Read clips in several threads, each with a decoding process, until a deadline; keep each as a file of numbers and
one image. Does not judge pairs: that takes all clips.
"""

import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, cast

import numpy as np
import pyarrow as pa

from jobs.annotate.decoder import VideoReader
from jobs.annotate.shards import shard_table
from jobs.annotate.tables import Decoding, ListedVideo
from jobs.look.recipe import LookRecipe
from wm.errors import InputError
from wm.files.atomic import replace_file
from wm.runs import write_text
from wm.viewer.clips import ClipSheet, TimedCurve, build_sheet, encode_timed_curve

ShardRange = tuple[int, int, int]
"""Number of a shard, its first row, its number of rows."""

_STORE, _SHEETS = "looked", "page"


class StoredClip(TypedDict):
    """What is stored of a clip; ``decodings`` by key-frame rule, without images.

    Attributes:
        unfinished: The budget ended before the clip was read; the other fields are empty.
        png_bytes: Bytes of each key-frame's image as an annotation would store it, for the chosen rule.
    """

    row: int
    unfinished: bool
    decodings: dict[str, Decoding]
    curve: TimedCurve | None
    sheet: ClipSheet | None
    png_bytes: list[int]


def load_clips(out: Path) -> dict[int, StoredClip]:
    """Load what earlier runs have stored, by row of the listing; a damaged file counts as none."""
    clips: dict[int, StoredClip] = {}
    for path in sorted((out / _STORE).glob("*.json")):
        try:
            clip = cast(StoredClip, json.loads(path.read_text(encoding="utf-8")))
            sheet = clip["sheet"]
            # After a power cut: the clip is read again.
            if sheet is None or (out / _SHEETS / sheet["file"]).is_file():
                clips[clip["row"]] = clip
        except (ValueError, KeyError, TypeError):
            continue
    return clips


@dataclass
class _Work:
    """What the threads share."""

    rows: Iterable[int]
    lock: threading.Lock
    stopped: threading.Event
    deadline: float

    def take(self) -> int | None:
        """Take the next row; None when none is left, or the time is over."""
        with self.lock:
            if self.stopped.is_set() or time.monotonic() >= self.deadline:
                return None
            return next(iter(self.rows), None)


def look_at(
    listing: pa.Table,
    shards: Mapping[int, ShardRange],
    rows: Sequence[int],
    recipe: LookRecipe,
    out: Path,
    *,
    deadline: float,
    on_clip: Callable[[ListedVideo, StoredClip], object],
) -> None:
    """Read clips and store each.

    Args:
        listing: A row a video.
        shards: The shard of each row.
        rows: Which clips, in this order.
        recipe: How they are read.
        out: Folder of the run.
        deadline: Time of :func:`time.monotonic` at which no clip is begun and those under way are ended.
        on_clip: Called after each, by one thread at a time.

    Raises:
        InputError: No decoding process starts on this machine.
        OSError: The disk is full or not writable.
    """
    work = _Work(iter(rows), threading.Lock(), threading.Event(), deadline)
    annotate = recipe.to_annotate()
    num_workers = max(1, min(recipe.workers(), len(rows)))
    # A process for each thread: native decoders hold their thread while they work.
    readers = [VideoReader(annotate.clip_settings(), annotate.download_settings()) for _ in range(num_workers)]

    def read(reader: VideoReader) -> None:
        reader.clips.deadline = deadline
        while (row := work.take()) is not None:
            video, path = _list_one(listing, row, shards[row])
            clip = read_clip(reader, video, path, row=row, recipe=recipe, sheets=out / _SHEETS)
            # Interrupted: what a killed process says of its clip is not true of the clip.
            if work.stopped.is_set():
                return
            # Its image is there already: a record without one would never be mended.
            write_text(out / _STORE / f"{row:08d}.json", json.dumps(clip))
            with work.lock:
                on_clip(video, clip)

    with ThreadPoolExecutor(num_workers) as pool:
        futures = [pool.submit(read, reader) for reader in readers]
        try:
            # The first trouble of the machine ends the others too.
            for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                future.result()
        except RuntimeError as error:
            raise InputError(f"cannot decode on this machine: {error}") from error
        finally:
            # The pool waits for its threads, which wait for their processes.
            work.stopped.set()
            for reader in readers:
                reader.clips.deadline = 0.0  # what takes over from the process gets no time
                reader.clips.process.kill()
    for reader in readers:
        reader.clips.close()


def _list_one(listing: pa.Table, row: int, shard: ShardRange) -> tuple[ListedVideo, str]:
    """Return a row as a decoding actor of ``annotate`` gets it, and the video's path."""
    number, _, num_rows = shard
    table = shard_table(listing, number, row, 1)
    (path,) = table.column("path").to_pylist()
    (video,) = table.drop_columns(["path"]).to_pylist()
    return cast(ListedVideo, video | {"shard_rows": num_rows}), path


def read_clip(
    reader: VideoReader,
    video: ListedVideo,
    path: str,
    *,
    row: int,
    recipe: LookRecipe,
    sheets: Path,
) -> StoredClip:
    """Read one clip and write its images as one.

    Args:
        reader: With the deadline.
        video: As it is listed.
        path: Where it is.
        row: Of the listing.
        recipe: Rules, and the size of images.
        sheets: Folder for the images.

    Returns:
        What is stored of the clip.
    """
    rules = recipe.rules()
    decodings, times_T = reader.read(video, path, rules)
    clip: StoredClip = {
        "row": row, "unfinished": False, "decodings": decodings, "curve": None, "sheet": None, "png_bytes": [],
    }  # fmt: skip
    chosen = decodings[rules[0]]
    if chosen.get("reason") == "time_out" and time.monotonic() >= reader.clips.deadline:
        # The budget's fault, not the clip's: it stays to be read.
        return {**clip, "unfinished": True, "decodings": {}}
    # 1. The images of all rules, each frame once.
    images = {
        frame: png
        for decoding in decodings.values()
        for frame, png in zip(decoding.get("keyframes", []), decoding.pop("images", []), strict=False)
    }
    if images:
        sheet, webp = build_sheet(images, f"clip-{row:08d}.webp", recipe.image_px)
        with replace_file(sheets / sheet["file"]) as temporary:
            temporary.write_bytes(webp)
        clip["sheet"] = sheet
        clip["png_bytes"] = [len(images[frame]) for frame in chosen["keyframes"] if frame in images]
    # 2. The curve that the chosen rule went by, short enough for a page.
    if times_T is not None:
        clip["curve"] = encode_timed_curve(times_T, np.asarray(chosen["motion"], np.float32))
    return clip
