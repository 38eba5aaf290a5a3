"""Predict images from an image and actions, or for every triplet of a set."""

from jobs.predict.job import main, run
from jobs.predict.recipe import PredictRecipe

__all__ = ["PredictRecipe", "main", "run"]
