"""Look at the beginning of a long video, where the budget did not suffice for any clip: a page there must be."""

import time
from pathlib import Path
from typing import cast

import pyarrow as pa

from jobs.annotate.decoder import VideoReader
from jobs.annotate.shards import shard_table
from jobs.annotate.tables import ListedVideo
from jobs.look.reading import StoredClip, read_clip
from jobs.look.recipe import LookRecipe
from wm.datasets.videos.listing import segment_key

PREVIEW_S = 20.0
"""Seconds of video."""
_LIMIT_S = 10.0
"""Seconds that they may take."""


def preview(listing: pa.Table, row: int, recipe: LookRecipe, sheets: Path) -> tuple[pa.Table, StoredClip] | None:
    """Read the first seconds of a clip, as a list would name them: a segment with a key of its own.

    Args:
        listing: A row a video.
        row: Of the clip.
        recipe: How it is read.
        sheets: Folder for the images.

    Returns:
        The listing with the segment in the clip's place, and the segment; None where that took too long too, or failed.
    """
    # 1. The segment, in the place of the clip.
    (entry,) = listing.slice(row, 1).to_pylist()
    end_s = (entry["start_s"] or 0.0) + PREVIEW_S
    entry |= {"end_s": end_s, "key": segment_key(entry["key"].partition("#")[0], entry["start_s"], end_s)}
    segment = pa.Table.from_pylist([entry], schema=listing.schema)
    listing = pa.concat_tables([listing.slice(0, row), segment, listing.slice(row + 1)])
    # 2. A process and a time limit of its own: those of the budget have ended.
    annotate = recipe.to_annotate()
    reader = VideoReader(annotate.clip_settings(), annotate.download_settings())
    reader.clips.deadline = time.monotonic() + _LIMIT_S
    table = shard_table(listing, 0, row, 1)
    (path,) = table.column("path").to_pylist()
    (video,) = table.drop_columns(["path"]).to_pylist()
    try:
        clip = read_clip(reader, cast(ListedVideo, video), path, row=row, recipe=recipe, sheets=sheets)
    finally:
        reader.clips.close()
    return (listing, clip) if clip["curve"] is not None else None
