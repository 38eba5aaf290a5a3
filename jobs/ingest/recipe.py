"""Define what ``ingest`` is asked: which human-labelled set, which codec."""

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from wm.config import Recipe
from wm.datasets.layouts import DatasetLayout
from wm.paths import InputPath, OptionalModelPath, OutputPath
from wm.video.settings import DecodeLimits


class IngestResources(Recipe):
    """Actors; they do not change the result."""

    num_workers: int = Field(default=2, ge=0)
    """Actors that decode and encode; 0: in this process, without Ray."""


class IngestRecipe(Recipe):
    """Where the rows and their images are, and which codec turns images into codes."""

    # The file, whose digest is recorded, can be of one layout only: recognised or named, the run is the same.
    RESUMABLE_KEYS: ClassVar[frozenset[str]] = frozenset({"dataset_layout", "resources"})
    RENAMED_KEYS: ClassVar[Mapping[str, str]] = {
        "layout": "dataset_layout",
        "time_limit_s": "limits.time_limit_s",
        "num_workers": "resources.num_workers",
    }

    root: InputPath
    """Folder of the images or videos: what the paths and names in file are relative to."""
    file: str
    """The set's own table: AURORA's JSON list, EPIC-Kitchens' CSV of segments, Something-Something v2's JSON labels, …;
    relative to root, or an absolute path; a glob where the rows are in several files (data/train-*.parquet)."""
    out: OutputPath
    """Folder for out/triplets, out/rejects and out/run.json."""
    dataset_layout: DatasetLayout = "auto"
    """auto: recognised by how file begins; aurora: pairs of images with an instruction; aurora_something: instructions
    for videos of Something-Something v2, first and last frame of each; magicbrush: Parquet files that hold the images;
    epic: narrated segments, first and last frame of each; something: labelled videos, first and last frame of each."""
    codec: OptionalModelPath = None
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
    """Take so many rows, sampled with the seed (the paper takes 15,000 of EPIC-Kitchens)."""
    seed: int = Field(default=0, ge=0)
    """Of the sample."""
    image_side_px: int = Field(default=512, ge=0)
    """Max short side of frames taken from videos; 0: full size. Images that are files are kept as they are."""
    shard_rows: int = Field(default=256, ge=1)
    """Rows of the list that go into one Parquet file; a killed run resumes at the next file."""
    limits: DecodeLimits = DecodeLimits()
    """For decoding one video or segment; one that takes longer is a reject."""
    resources: IngestResources = IngestResources()
    """Actors: resources.num_workers=4."""
