"""Annotate videos without labels: recipe, decoding and annotating actors, shards, tables."""

from jobs.annotate.job import main, run
from jobs.annotate.recipe import AnnotateRecipe

__all__ = ["AnnotateRecipe", "main", "run"]
