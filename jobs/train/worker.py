"""What each Ray Train worker does.

Apart from ``jobs.train`` because Ray's controller process imports the module of this function too: nothing
heavy is imported at its top.
"""

from typing import Any


def fit_worker(config: dict[str, Any]) -> dict[str, Any]:
    """Train as one rank of many; ``config`` holds the resolved recipe and its digest.

    Started again after a failure, it goes on from the newest checkpoint. Divergence is returned, not raised: trying
    again would give the same.
    """
    import ray.train
    import ray.train.torch

    from jobs.train.evaluator import HeldOutWatcher
    from wm.training import DivergedError, TrainRecipe, World, fit

    recipe = TrainRecipe.parse(config["recipe"], "the driver's recipe")
    context = ray.train.get_context()
    world = World(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())
    try:
        return fit(recipe, world, digest=config["digest"], watcher=HeldOutWatcher(recipe)).as_dict()
    except DivergedError as error:
        return {"diverged": str(error)}
