"""Decoding of image and text completions."""

from wm.sampling.engine import ImageEngine
from wm.sampling.images import Progress, sample_images
from wm.sampling.model_runner import ModelRunner
from wm.sampling.noise import Sampling, invert_cdf, probabilities, uniform_noise
from wm.sampling.requests import ImageRequest, StepOutput
from wm.sampling.runners import build_model_runner
from wm.sampling.speculative import Speculation, speculate_images
from wm.sampling.texts import Completion, generate_texts

__all__ = [
    "Completion",
    "ImageEngine",
    "ImageRequest",
    "ModelRunner",
    "Progress",
    "Sampling",
    "Speculation",
    "StepOutput",
    "build_model_runner",
    "generate_texts",
    "invert_cdf",
    "probabilities",
    "sample_images",
    "speculate_images",
    "uniform_noise",
]
