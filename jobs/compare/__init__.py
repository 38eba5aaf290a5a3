"""Compare two systems: which is better, on which subsets, with what certainty."""

from jobs.compare.job import main, run
from jobs.compare.recipe import CompareRecipe

__all__ = ["CompareRecipe", "main", "run"]
