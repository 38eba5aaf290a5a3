"""Make a prediction set of the files that any system wrote for a bench: images, actions, or both."""

from jobs.collect.job import main, run
from jobs.collect.recipe import CollectRecipe

__all__ = ["CollectRecipe", "main", "run"]
