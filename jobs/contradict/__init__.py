"""Have a language model write, for each action of a bench, one that contradicts it."""

from jobs.contradict.job import main, run
from jobs.contradict.recipe import ContradictRecipe

__all__ = ["ContradictRecipe", "main", "run"]
