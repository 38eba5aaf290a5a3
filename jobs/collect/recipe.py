"""Define what ``collect`` is asked: which files, of which system, for which bench."""

from typing import ClassVar

from pydantic import Field, field_validator, model_validator

from wm.config import Recipe
from wm.evaluation.predictions import View
from wm.evaluation.rows import check_label
from wm.paths import InputPath, OutputPath


class CollectResources(Recipe):
    """Ray tasks; they do not change the result."""

    num_workers: int = Field(default=0, ge=0)
    """Ray tasks at a time; 0: in this process, without Ray."""


class CollectRecipe(Recipe):
    """Which files a system wrote, and which rows of the bench they are for."""

    RESUMABLE_KEYS: ClassVar[frozenset[str]] = frozenset({"resources"})

    system: str
    """Name of the system in tables, such as GoT."""
    triplets: InputPath
    """The bench: folder of its triplets."""
    out: OutputPath
    """Folder for out/predictions, out/actions, out/rejects and out/run.json."""
    folder: InputPath = ""
    """Folder of the images that the system wrote; empty: none."""
    pattern: str = "{task}/{row}.png"
    """Name of a row's file below folder. Fields: {task} the triplet's class_label; {stem} and {folder} of the source's
    file, {target_stem} of the target's; {row} in the bench's list, from 0 ({row:05} with zeros in front); {id} of the
    list; {triplet_id}; {run} and {candidate}, any number: several runs, several images a row."""
    actions: InputPath = ""
    """JSON lines of the actions that the system read from the pairs: {"triplet_id" or "row", "action", "run"}; empty:
    none."""
    bench_file: InputPath = ""
    """The bench's own list, such as test.json, for {id}, and for {row} where the triplets are not of wm ingest."""
    view: View = "full"
    """full: the images show the full frame; square: its centre-cropped square, and other images are rejects."""
    shard_rows: int = Field(default=256, ge=1)
    """Rows of the bench that go into one Parquet file; a killed run resumes at the next file."""
    resources: CollectResources = CollectResources()
    """Ray tasks: resources.num_workers=4."""

    _check_label = field_validator("system")(check_label)

    @model_validator(mode="after")
    def _check_inputs(self) -> "CollectRecipe":
        if not self.folder and not self.actions:
            raise ValueError("nothing to collect: give folder, actions or both")
        return self
