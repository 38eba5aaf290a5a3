"""Select triplets by Algorithm 1, over any number of files."""

from jobs.select.job import SelectRecipe, main, run

__all__ = ["SelectRecipe", "main", "run"]
