"""Imagine triplets for self-training: recipe, tries, rows, report."""

from jobs.imagine.job import main, run
from jobs.imagine.recipe import ImagineRecipe

__all__ = ["ImagineRecipe", "main", "run"]
