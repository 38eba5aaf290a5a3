"""Estimate the hours and the bottleneck of an annotation run before it starts."""

from jobs.plan.job import main, run
from jobs.plan.recipe import PlanRecipe

__all__ = ["PlanRecipe", "main", "run"]
