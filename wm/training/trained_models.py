"""Load, prepare and save what is trained: a unified model that speaks codes, or one that reads pixels."""

from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from wm.models import load_model, save_model
from wm.models.kinds import reads_pixels
from wm.models.pixels.model import PixelModel, load_pixel_base, save_pixel_model
from wm.models.prompts import Task
from wm.models.vlm import UnifiedVLM

TrainedModel: TypeAlias = UnifiedVLM | PixelModel


def load_base(path: str | Path, *, device: torch.device, is_half: bool) -> TrainedModel:
    """Load the base of a run.

    Args:
        path: A full model folder.
        device: Where the weights go.
        is_half: Whether they are bfloat16, and not float32.

    Raises:
        InputError: The folder is no model.
    """
    # The optimiser has fp32 copies of its own of what is trained.
    dtype = torch.bfloat16 if is_half else torch.float32
    load = load_pixel_base if reads_pixels(path) else load_model
    return load(path, device=device, dtype=dtype)


def save_trained(
    model: TrainedModel,
    path: str | Path,
    *,
    task: Task,
    recipe_digest: str = "",
    state_dict: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a model that was trained, an adapter as a plain PEFT folder.

    Args:
        model: The model.
        path: The folder to write; an existing one is replaced.
        task: What it was trained for.
        recipe_digest: Digest of the recipe.
        state_dict: Replaces the module's own tensors.
    """
    # Neither is a subclass of the other: a codec goes with one, a processor with the other.
    if isinstance(model, PixelModel):
        save_pixel_model(model, path, task=task, recipe_digest=recipe_digest, state_dict=state_dict)
    else:
        save_model(model, path, task=task, recipe_digest=recipe_digest, state_dict=state_dict)
