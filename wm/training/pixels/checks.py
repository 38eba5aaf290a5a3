"""Refuse settings of a run that make no sense for a base that reads pixels."""

from wm.errors import InputError
from wm.training.loss import RecognitionWeights
from wm.training.recipe import TrainRecipe


def check_pixel_recipe(recipe: TrainRecipe) -> None:
    """Check a run whose base reads pixels.

    Args:
        recipe: The run.

    Raises:
        InputError: It asks for something that such a base has not; the key is named.
    """
    subject = f"base = {recipe.base!r} reads pixels"
    # What it cannot do is said before its weights are read.
    if recipe.task == "fdm":
        raise InputError(f"task = 'fdm': {subject} and makes none; expected task = 'idm', or a base that speaks codes")
    # Off is what it is anyway.
    if recipe.recognition.enabled and recipe.recognition != RecognitionWeights():
        raise InputError(f"recognition: {subject} and learns no image tokens to weight; leave the table out")
    if recipe.lora.train_image_rows:
        raise InputError(f"lora.train_image_rows = true: {subject} and has no rows of image codes; leave it out")
