"""Decoding of image and text completions."""

from wm.sampling.engine import (
    Completion,
    Sampling,
    draw,
    generate_texts,
    probabilities,
    sample_images,
    uniform_noise,
)

__all__ = [
    "Completion",
    "Sampling",
    "draw",
    "generate_texts",
    "probabilities",
    "sample_images",
    "uniform_noise",
]
