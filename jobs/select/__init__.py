"""Select triplets by Algorithm 1, over any number of files."""

from jobs.select.job import main, run
from jobs.select.recipe import SelectRecipe

__all__ = ["SelectRecipe", "main", "run"]
