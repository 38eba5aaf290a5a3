"""Define what ``ingest`` is asked: which human-labelled set, which codec."""

from typing import Literal

from pydantic import Field

from wm.config import Recipe
from wm.paths import InputPath, OptionalInputPath, OutputPath


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
