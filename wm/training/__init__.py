"""Training of inverse and forward dynamics models: rows, loss, adapters, DeepSpeed steps. Free of Ray."""

from wm.training.adapters import Lora, ParameterCounts, prepare
from wm.training.data.batches import TokenSet, open_tokens
from wm.training.data.order import SampleOrder, rank_slice
from wm.training.data.sources import Source
from wm.training.loop import METRICS, MODEL, DivergedError, FitSummary, RankInfo, fit
from wm.training.loss import RecognitionWeights, completion_loss, recognition_weights
from wm.training.recipe import TrainRecipe

__all__ = [
    "METRICS",
    "MODEL",
    "DivergedError",
    "FitSummary",
    "Lora",
    "ParameterCounts",
    "RankInfo",
    "RecognitionWeights",
    "SampleOrder",
    "Source",
    "TokenSet",
    "TrainRecipe",
    "completion_loss",
    "fit",
    "open_tokens",
    "prepare",
    "rank_slice",
    "recognition_weights",
]
