"""Predict images from an image and actions, or for every triplet of a set."""

from jobs.predict.job import PredictRecipe, main, run

__all__ = ["PredictRecipe", "main", "run"]
