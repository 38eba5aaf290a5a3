"""Train an inverse or forward model with Ray Train and DeepSpeed.

A name is imported when it is first used: a process of Ray that needs ``jobs.train.worker`` alone does not wait for
transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jobs.train.job import main, run
    from wm.training import TrainRecipe

__all__ = ["TrainRecipe", "main", "run"]

_MODULE_OF = {"TrainRecipe": "wm.training", "main": "jobs.train.job", "run": "jobs.train.job"}


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULE_OF[name]), name)
    return value
