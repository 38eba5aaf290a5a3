"""Several ranks of a training run on this machine, without Ray: processes forked from one that has imported all."""

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

import deepspeed  # noqa: F401  (imported once, by the server that the ranks are forked from)
import torch
import torch.distributed as dist
import transformers  # noqa: F401

from wm.training import TrainRecipe, World, fit

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["training_ranks"])


def fit_on_ranks(recipe: TrainRecipe, *, on: Callable[[TrainRecipe, World], Any] | None = None) -> list[Any]:
    """``fit`` (or ``on``, a function of a module) on ``recipe.num_ranks`` processes; what each returned, or the error
    that it raised."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    queue = _CONTEXT.SimpleQueue()
    ranks = [
        _CONTEXT.Process(target=_rank, args=(recipe.model_dump(), rank, port, on, queue), daemon=True)
        for rank in range(recipe.num_ranks)
    ]
    for process in ranks:
        process.start()
    found = dict(queue.get() for _ in ranks)
    for process in ranks:
        process.join()
    return [found[rank] for rank in range(recipe.num_ranks)]


def _fit(recipe: TrainRecipe, world: World) -> dict[str, Any]:
    return fit(recipe, world, digest="d").as_dict()


def _rank(values: dict[str, Any], rank: int, port: int, on: Callable[..., Any] | None, queue: Any) -> None:
    recipe = TrainRecipe.parse(values, "test")
    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=recipe.num_ranks)
    try:
        queue.put((rank, (on or _fit)(recipe, World(rank, recipe.num_ranks, torch.device("cpu")))))
    except Exception as error:
        traceback.print_exc()
        queue.put((rank, error))
    finally:
        dist.destroy_process_group()
