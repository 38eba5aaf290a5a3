"""Have an image editor of diffusers, such as InstructPix2Pix, predict the targets of a bench: one prediction set."""

from jobs.edit.job import main, run
from jobs.edit.recipe import EditRecipe

__all__ = ["EditRecipe", "main", "run"]
