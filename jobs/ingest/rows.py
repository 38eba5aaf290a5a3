"""List the rows that ``ingest`` takes, and load the two images of a row."""

from typing import Any, NamedTuple

from jobs.ingest.recipe import IngestRecipe
from wm.datasets.pairs.aurora import Item, Problem, list_items, load_pair
from wm.datasets.pairs.narrated import Narrated, list_narrated
from wm.images import decode_image, encode_png
from wm.video.ends import segment_ends
from wm.video.errors import VideoError
from wm.video.isolation import IsolatedProcess

Entry = Item | Narrated | Problem


class Pair(NamedTuple):
    """A row that became two images. ``columns``: what the triplet's row holds of where they come from."""

    source: Any
    target: Any
    columns: dict[str, Any]


def entries_of(recipe: IngestRecipe, passed_over: dict[str, Any] | None = None) -> list[Entry]:
    """List the rows that the recipe takes, in the order of the list; the same in every process.

    ``passed_over``: takes the record of the videos that no row names
    (:func:`wm.datasets.pairs.narrated.list_narrated`).
    """
    entries: list[Entry]
    if recipe.layout == "epic":
        entries = [*list_narrated(recipe.root, recipe.file, passed_over)]
    else:
        entries = [*list_items(recipe.root, recipe.file)]
    entries = entries[: recipe.limit]
    if recipe.sample is None or recipe.sample >= len(entries):
        return entries
    import numpy as np

    # Sorted again, so that a shard's segments stay together and each video is opened once.
    rows = np.random.default_rng(recipe.seed).choice(len(entries), recipe.sample, replace=False)
    return [entries[row] for row in np.sort(rows)]


def load_entry(recipe: IngestRecipe, process: IsolatedProcess, entry: Item | Narrated) -> Pair | Problem:
    """Load the two images of a row; return a :class:`Problem` if that fails."""
    if isinstance(entry, Item):
        loaded = load_pair(recipe.root, entry)
        if isinstance(loaded, Problem):
            return loaded
        images = [
            {"bytes": encode_png(image), "path": path}
            for image, path in zip(loaded, (entry.source, entry.target), strict=True)
        ]
        return Pair(*loaded, {"source_image": images[0], "target_image": images[1]})
    try:
        segment = (entry.video, entry.start_s, entry.end_s, recipe.image_side_px)
        ends = process.call(recipe.time_limit_s, segment_ends, *segment)
    except VideoError as error:
        return Problem(entry.uri, entry.task, error.reason, f"{entry.uri}: {error.detail}")
    columns = {
        "video_uri": entry.video,
        "source_frame": 0,
        "target_frame": ends.num_frames - 1,
        "source_time_s": ends.source_time_s,
        "target_time_s": ends.target_time_s,
        "source_image": {"bytes": ends.source_png, "path": None},
        "target_image": {"bytes": ends.target_png, "path": None},
        "reader": "pyav",
    }
    return Pair(decode_image(ends.source_png, "frame"), decode_image(ends.target_png, "frame"), columns)
