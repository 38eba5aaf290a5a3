"""Define what ``compare`` is asked: which two systems, by which predictions."""

from typing import Annotated

from pydantic import Field

from wm.config import Recipe
from wm.evaluation.subsets import SubsetColumn
from wm.paths import INPUT, InputPath, OutputPath


class CompareRecipe(Recipe):
    """Which two systems. ``first=`` and ``second=`` may be left out: ``wm compare runs/a:C-FDM runs/b:C-FT``."""

    first: str
    """FOLDER, FOLDER:LABEL, or LABEL in the folders of the other system or of results. FOLDER: output of wm evaluate,
    wm judge or wm score, or a folder that has some below it. LABEL@8: its predictions at K = 8; LABEL@greedy."""
    second: str
    """Likewise. Without a label: the first one's, or the only system there."""
    results: Annotated[list[InputPath], INPUT] = []
    """Folders in which labels that are given alone are looked up."""
    k: int = Field(default=1, ge=1)
    """Compare what the verifier chooses among so many candidates; 1: single predictions."""
    triplets: InputPath = ""
    """Folder of the bench; empty: the one that the results name."""
    subset: SubsetColumn | None = None
    """Column of the bench that separates subsets; left out: the first that the results name and that has several
    values."""
    metrics: list[str] = []
    """Compare these metrics only, such as judge.final or l1; empty: all that both have."""
    seed: int = Field(default=0, ge=0)
    """Of the bootstrap."""
    out: OutputPath = ""
    """Folder for compare.json and compare.md; empty: nothing is written."""
