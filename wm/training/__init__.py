"""Training of inverse and forward dynamics models: rows, loss, adapters, DeepSpeed steps. Free of Ray."""

from wm.training.adapters import Lora, ParameterCounts, prepare
from wm.training.batches import Rows, Source, TokenSet, read_sources, tensorise
from wm.training.loop import METRICS, MODEL, DivergedError, FitSummary, World, fit
from wm.training.loss import Weights, completion_loss, recognition_weights
from wm.training.order import SampleOrder, rank_slice
from wm.training.recipe import TrainRecipe

__all__ = [
    "METRICS",
    "MODEL",
    "DivergedError",
    "FitSummary",
    "Lora",
    "ParameterCounts",
    "Rows",
    "SampleOrder",
    "Source",
    "TokenSet",
    "TrainRecipe",
    "Weights",
    "World",
    "completion_loss",
    "fit",
    "prepare",
    "rank_slice",
    "read_sources",
    "recognition_weights",
    "tensorise",
]
