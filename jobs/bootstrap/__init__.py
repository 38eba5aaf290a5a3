"""Run the complete method: recipe, plan of the stages, job, report."""

from jobs.bootstrap.job import main, run
from jobs.bootstrap.plan import plan
from jobs.bootstrap.recipe import BootstrapRecipe

__all__ = ["BootstrapRecipe", "main", "plan", "run"]
