"""Train as one worker of Ray Train.

Apart from ``wm train`` because Ray's controller process imports the module of this function too: nothing
heavy is imported at its top.
"""

from typing import Any


def fit_worker(config: dict[str, Any]) -> dict[str, object]:
    """Train as one rank of many; started again after a failure, resume from the newest checkpoint.

    Args:
        config: The resolved recipe as JSON (``recipe``), its digest (``digest``), and whether an error names this
            worker's node (``names_node``).

    Returns:
        The summary of the training, or the message of a divergence under ``diverged``.
    """
    import ray
    import ray.train
    import ray.train.torch

    from jobs.train.evaluator import build_evaluator
    from wm.errors import InputError
    from wm.training import DivergedError, RankInfo, TrainRecipe, fit

    recipe = TrainRecipe.parse(config["recipe"], "the driver's recipe")
    context = ray.train.get_context()
    rank_info = RankInfo(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())
    try:
        return fit(recipe, rank_info, digest=config["digest"], evaluator=build_evaluator(recipe)).as_dict()
    except DivergedError as error:
        # Returned and not raised, or Ray would start the workers again, to the same end.
        return {"diverged": str(error)}
    except InputError as error:
        if not config.get("names_node"):
            raise
        # What is wrong may be so on one node alone: no login for the bucket, no room.
        raise InputError(f"on node {ray.util.get_node_ip_address()}: {error}") from error
