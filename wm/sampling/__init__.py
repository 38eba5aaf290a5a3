"""Decoding of image and text completions."""

from wm.sampling.engine import Progress, sample_images
from wm.sampling.model_runner import Decoder
from wm.sampling.noise import Sampling, draw, probabilities, uniform_noise
from wm.sampling.scheduler import Grown, ImagePool, ImageRequest
from wm.sampling.speculative import Speculation, speculate_images
from wm.sampling.texts import Completion, generate_texts

__all__ = [
    "Completion",
    "Decoder",
    "Grown",
    "ImagePool",
    "ImageRequest",
    "Progress",
    "Sampling",
    "Speculation",
    "draw",
    "generate_texts",
    "probabilities",
    "sample_images",
    "speculate_images",
    "uniform_noise",
]
