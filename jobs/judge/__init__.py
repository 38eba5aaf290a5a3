"""Have predicted images judged by a vision-language model: editing success and minimal editing, 0 to 10."""

from jobs.judge.job import main, run
from jobs.judge.recipe import JudgeRecipe

__all__ = ["JudgeRecipe", "main", "run"]
