"""Define the recipe of ``ingest``, list the rows that it takes, and load the two images of a row."""

from typing import Any, Literal, NamedTuple

from pydantic import Field

from wm.config import Recipe
from wm.datasets.pairs.aurora import Item, Problem, list_items, load_pair
from wm.datasets.pairs.narrated import Narrated, list_narrated
from wm.images import decode_image, encode_png
from wm.paths import InputPath, OptionalInputPath, OutputPath
from wm.video.ends import segment_ends
from wm.video.errors import VideoError
from wm.video.isolation import IsolatedProcess

Entry = Item | Narrated | Problem


class Pair(NamedTuple):
    """A row that became two images. ``columns``: what the triplet's row holds of where they come from."""

    source: Any
    target: Any
    columns: dict[str, Any]


class IngestRecipe(Recipe):
    """Where the rows and their images are, and which codec turns images into codes."""

    root: InputPath
    """Folder that the paths in the JSON file are relative to; with layout = epic that of the videos."""
    file: str
    """The JSON list, or EPIC-Kitchens' CSV of segments; relative to root, or an absolute path."""
    out: OutputPath
    """Folder for out/triplets, out/rejects and out/run.json."""
    layout: Literal["aurora", "epic"] = "aurora"
    """aurora: a JSON list of instruction, input, output; epic: narrated segments, first and last frame of each."""
    codec: OptionalInputPath = None
    """Model folder whose codec makes source_codes, target_codes and change; without it these columns are null."""
    dataset: str = "aurora"
    """Name for the dataset column."""
    split: str = "train"
    """Name for the split column."""
    license: str = ""
    """Licence of the images and texts, kept in every row."""
    limit: int | None = Field(default=None, ge=1)
    """Take the first rows only."""
    sample: int | None = Field(default=None, ge=1)
    """Take so many rows, drawn with the seed (the paper takes 15,000 of EPIC-Kitchens)."""
    seed: int = Field(default=0, ge=0)
    """Of the draw."""
    image_side_px: int = Field(default=512, ge=0)
    """Short side of frames taken from videos at most; 0: full size. Images that are files are kept as they are."""
    time_limit_s: float = Field(default=120.0, gt=0)
    """For decoding one segment of a video; one that takes longer is a reject."""
    shard_rows: int = Field(default=256, ge=1)
    """Rows of the list that go into one Parquet file; a killed run resumes at the next file."""
    num_workers: int = Field(default=2, ge=1)
    """Processes that decode and encode."""


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
