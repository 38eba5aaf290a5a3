"""What each Ray Train worker does.

Apart from ``jobs.train`` because Ray's controller process imports the module of this function too: nothing
heavy is imported at its top.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def fit_worker(config: dict[str, Any]) -> dict[str, Any]:
    """Train as one rank of many; ``config`` holds the resolved recipe and its digest.

    Divergence is returned, not raised: trying again would give the same.
    """
    import ray.train
    import ray.train.torch

    from wm.training import DivergedError, TrainRecipe, World, fit

    recipe = TrainRecipe.parse(config["recipe"], "the driver's recipe")
    context = ray.train.get_context()
    world = World(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())

    def save(step: int, write: Callable[[Path], None]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder))
            ray.train.report({"step": step}, checkpoint=ray.train.Checkpoint.from_directory(folder))

    checkpoint = ray.train.get_checkpoint()
    try:
        if checkpoint is None:
            return fit(recipe, world, digest=config["digest"], save=save).as_dict()
        with checkpoint.as_directory() as folder:
            last = Path(folder)
            return fit(recipe, world, digest=config["digest"], save=save, resume_from=last).as_dict()
    except DivergedError as error:
        return {"diverged": str(error)}
