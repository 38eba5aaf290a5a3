"""Choose which checkpoints of a run stay, and remove the others."""

import math
from collections.abc import Sequence
from pathlib import Path

from wm.training.checkpoint.store import Checkpoint, CheckpointStore
from wm.training.recipe import TrainRecipe

FAILED = "checkpoint.failed"
"""Below ``out``: why the last checkpoint could not be written, while that is so."""


def best_of(checkpoints: Sequence[Checkpoint], recipe: TrainRecipe, count: int) -> list[Checkpoint]:
    """Rank checkpoints by the recipe's ``checkpoint.keep_best_by``.

    Args:
        checkpoints: In any order.
        recipe: The run.
        count: How many are wanted.

    Returns:
        Up to ``count`` of them, best first; of equal ones the later. Those without a finite value are left out.
    """
    # A loss or nats are better when lower, a preference when higher.
    metric = recipe.checkpoint.keep_best_by
    sign = -1.0 if metric == "preference" else 1.0
    measured = [checkpoint for checkpoint in checkpoints if math.isfinite(checkpoint.metrics.get(metric, math.nan))]
    return sorted(measured, key=lambda checkpoint: (sign * checkpoint.metrics[metric], -checkpoint.step))[:count]


def names_to_keep(checkpoints: Sequence[Checkpoint], recipe: TrainRecipe, *, is_running: bool) -> list[str]:
    """Choose the checkpoints that stay.

    Args:
        checkpoints: By step.
        recipe: The run.
        is_running: Whether the run may still have to resume, for which its newest checkpoint always stays.

    Returns:
        Names, by step.
    """
    # Of a run that lasts, the newest is what a resume needs.
    num_last = max(recipe.checkpoint.keep_last, 1 if is_running else 0)
    newest = list(checkpoints)[-num_last:] if num_last else []
    names = {checkpoint.name for checkpoint in (*newest, *best_of(checkpoints, recipe, recipe.checkpoint.keep_best))}
    return [checkpoint.name for checkpoint in checkpoints if checkpoint.name in names]


def prune(recipe: TrainRecipe) -> None:
    """Remove, after a complete run, all but the checkpoints that the recipe keeps."""
    store = CheckpointStore(recipe.checkpoint_root)
    # Only now: while the run lasted, each was one to resume from.
    store.remove_all_but(names_to_keep(store.checkpoints(), recipe, is_running=False))
    (Path(recipe.out) / FAILED).unlink(missing_ok=True)
