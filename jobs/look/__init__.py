"""Look at videos without any model: recipe, reading within a time budget, pairs and their verdicts, the page."""

from jobs.look.job import main, run
from jobs.look.recipe import LookRecipe

__all__ = ["LookRecipe", "main", "run"]
