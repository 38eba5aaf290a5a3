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

    from jobs._train_watch import HeldOutWatcher
    from wm.training import DivergedError, TrainRecipe, World, fit

    recipe = TrainRecipe.parse(config["recipe"], "the driver's recipe")
    context = ray.train.get_context()
    world = World(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())

    def save(step: int, write: Callable[[Path], None]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder))
            ray.train.report({"step": step}, checkpoint=ray.train.Checkpoint.from_directory(folder))

    def train(resume_from: Path | None) -> dict[str, Any]:
        watcher = HeldOutWatcher(recipe)
        summary = fit(recipe, world, digest=config["digest"], save=save, resume_from=resume_from, watcher=watcher)
        return summary.as_dict()

    checkpoint = ray.train.get_checkpoint()
    try:
        if checkpoint is None:
            return train(None)
        with checkpoint.as_directory() as folder:
            return train(Path(folder))
    except DivergedError as error:
        return {"diverged": str(error)}
