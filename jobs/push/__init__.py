"""Upload a model or a data set to the Hugging Face hub."""

from jobs.push.job import main, run
from jobs.push.recipe import PushRecipe

__all__ = ["PushRecipe", "main", "run"]
