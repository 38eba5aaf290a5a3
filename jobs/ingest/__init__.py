"""Turn human-labelled data sets into triplets."""

from jobs.ingest.job import main, run
from jobs.ingest.recipe import IngestRecipe

__all__ = ["IngestRecipe", "main", "run"]
