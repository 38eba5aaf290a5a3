"""Ask models questions about images: SpatialMQA, EmbSpatial-Bench, or a folder of your own."""

from jobs.ask.job import main, run
from jobs.ask.recipe import AskRecipe

__all__ = ["AskRecipe", "main", "run"]
