"""Several ranks of a training run on this machine, without Ray: processes forked from one that has imported all."""

import multiprocessing
import multiprocessing.forkserver
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist

from wm.ports import find_free_port
from wm.training import RankInfo, TrainRecipe, fit

_CONTEXT = multiprocessing.get_context("forkserver")
_PRELOAD = [
    "tests.helpers.training_ranks",
    "deepspeed",
    "deepspeed.runtime.zero.muon.muon_optimizer",  # 4 s of torch.compile's parts, which every rank under ZeRO asks for
    "deepspeed.runtime.zero.stage3",
    "peft",
    "torch.utils.tensorboard",
    "transformers",
]


def fit_on_ranks(recipe: TrainRecipe, *, on: Callable[[TrainRecipe, RankInfo], Any] | None = None) -> list[Any]:
    """``fit`` (or ``on``, a function of a module) on ``recipe.num_ranks`` processes; what each returned, or the error
    that it raised."""
    port = find_free_port()
    _start_server()
    queue = _CONTEXT.SimpleQueue()
    ranks = [
        _CONTEXT.Process(target=_rank, args=(recipe.model_dump(), rank, port, on, queue), daemon=True)
        for rank in range(recipe.num_ranks)
    ]
    for process in ranks:
        process.start()
    results = dict(queue.get() for _ in ranks)
    for process in ranks:
        process.join()
    return [results[rank] for rank in range(recipe.num_ranks)]


def _start_server() -> None:
    """Its imports are found by its own environment alone."""
    # The repository, for the test modules whose functions the ranks are given.
    paths = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    server = multiprocessing.forkserver._forkserver  # type: ignore[attr-defined]
    if server._preload_modules != _PRELOAD:
        # One that other tests of this process have started has not imported what each rank would import anew.
        server._stop()
    _CONTEXT.set_forkserver_preload(_PRELOAD)
    with patch.dict(os.environ, {"PYTHONPATH": paths, "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}):
        multiprocessing.forkserver.ensure_running()


def _fit(recipe: TrainRecipe, rank_info: RankInfo) -> dict[str, Any]:
    return fit(recipe, rank_info, digest="d").as_dict()


def _rank(values: dict[str, Any], rank: int, port: int, on: Callable[..., Any] | None, queue: Any) -> None:
    recipe = TrainRecipe.parse(values, "test")
    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=recipe.num_ranks)
    try:
        queue.put((rank, (on or _fit)(recipe, RankInfo(rank, recipe.num_ranks, torch.device("cpu")))))
    except Exception as error:
        traceback.print_exc()
        queue.put((rank, error))
    finally:
        dist.destroy_process_group()
