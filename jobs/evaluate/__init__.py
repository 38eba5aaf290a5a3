"""Evaluate models on held-out triplets: text metrics, preference probe, verification at several K, examples."""

from jobs.evaluate.job import main, run
from jobs.evaluate.recipe import EvaluateRecipe

__all__ = ["EvaluateRecipe", "main", "run"]
