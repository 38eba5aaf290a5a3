"""Score prediction sets of any systems side by side: L1, CLIP-I, CLIP-T, DINO, by subset."""

from jobs.score.job import main, run
from jobs.score.recipe import ScoreRecipe

__all__ = ["ScoreRecipe", "main", "run"]
