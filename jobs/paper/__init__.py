"""Make the paper's tables and figures from result folders, one's own numbers beside the published ones."""

from jobs.paper.job import main, run
from jobs.paper.recipe import PaperRecipe

__all__ = ["PaperRecipe", "main", "run"]
