"""Training of inverse and forward dynamics models: rows, loss, adapters, DeepSpeed steps. Free of Ray."""

from wm.training.adapters import Lora, prepare
from wm.training.data.batches import TokenSet, open_tokens
from wm.training.data.order import SampleOrder
from wm.training.data.sources import Source
from wm.training.loop import fit
from wm.training.loss import RecognitionWeights, completion_loss, recognition_weights
from wm.training.monitoring.evaluation import MODEL
from wm.training.monitoring.metrics import METRICS
from wm.training.monitoring.non_finite import DivergedError
from wm.training.monitoring.records import RankInfo
from wm.training.recipe import TrainRecipe

__all__ = [
    "METRICS",
    "MODEL",
    "DivergedError",
    "Lora",
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
    "recognition_weights",
]
