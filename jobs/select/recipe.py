"""Define what ``select`` is asked: triplets, how many, by which score."""

from typing import ClassVar, Literal

from pydantic import Field

from wm.config import Recipe
from wm.datasets.selection.rows import Score
from wm.paths import OutputPath, TablePath


class SelectRecipe(Recipe):
    """Which triplets, how many."""

    RESUMABLE_KEYS: ClassVar[frozenset[str]] = frozenset({"run_on"})

    triplets: TablePath
    """Folder of annotated triplets (wm annotate writes it), or the annotation's own folder."""
    out: OutputPath
    """Folder for the selection: out/selection holds triplet_id, score, rank and order."""
    k: int = Field(ge=1)
    """How many to choose (the paper: 7,000 of each video set). Fewer are chosen if there are fewer."""
    score: Score = "mean"
    """Rank by the mean log-likelihood per action token, or by its sum."""
    min_score: float | None = None
    """Leave out rows whose score is below this, in nats."""
    min_changed_codes: int = Field(default=1, ge=0)
    """Leave out rows with fewer image codes that differ between source and target: a copy of its source teaches
    copying. 0: leave none out. Rows without codes are not held to it, and are counted."""
    classes: list[str] = []
    """Choose among these classes only ("" = rows without one). Empty: all."""
    deduplicate: Literal["off", "exact"] = "off"
    """exact: of triplets whose two images have equal perceptual hashes (in the annotation's pairs), only the
    best scored can be chosen. Hashes that differ by a few bits are compared at annotation, within a shard
    (filters.near_duplicate)."""
    rows_per_part: int = Field(default=1_000_000, ge=1)
    """Rows that are sorted at once, about; one file of the result holds no more."""
    run_on: Literal["auto", "here", "ray"] = "auto"
    """here: in this process; ray: as Ray tasks; auto: as tasks beyond 4 million rows or 2,048 files."""
