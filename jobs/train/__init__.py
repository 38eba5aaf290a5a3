"""Train an inverse or forward model with Ray Train and DeepSpeed."""

from jobs.train.job import main, run
from wm.training import TrainRecipe

__all__ = ["TrainRecipe", "main", "run"]
