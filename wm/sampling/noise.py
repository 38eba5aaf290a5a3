"""Sample a code: the distribution under the settings, and noise that is a function of (seed, candidate, position).

Shape suffixes: R rows, V image codes.
"""

from collections.abc import Mapping, Sequence
from operator import index
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from wm.config import Recipe
from wm.errors import InputError


class Sampling(Recipe):
    """How a token is sampled. The defaults sample from the model's distribution as it is."""

    RENAMED_KEYS: ClassVar[Mapping[str, str]] = {
        "guidance_text": "guidance_scale",
        "guidance_image": "image_guidance_scale",
    }

    temperature: float = Field(default=1.0, gt=0)
    """Logits are divided by it."""
    top_k: int = Field(default=0, ge=0)
    """Only the k most probable codes; 0: all."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Only the fewest most probable codes whose probabilities sum to this or more; 1: all."""
    greedy: bool = False
    """Always the most probable code; the three above then have no effect."""
    guidance_scale: float = Field(default=1.0, ge=0)
    """Classifier-free guidance: scale of what the action adds to the source image; 1: none."""
    image_guidance_scale: float = Field(default=1.0, ge=0)
    """Scale of what the source image adds to nothing at all; both 1: no guidance, else three times the rows."""

    @property
    def is_guided(self) -> bool:
        """Return whether logits without the condition are needed too."""
        return (self.guidance_scale, self.image_guidance_scale) != (1.0, 1.0)


def uniform_noise(seed: int, candidate: int, length: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Generate float64 noise in [0, 1) for positions 0 to ``length - 1``.

    Philox, a counter-based generator, with (seed, candidate) as its key: a position's noise is the same whatever
    ``length`` is.

    Args:
        seed: At least 0.
        candidate: Number of the candidate, at least 0.
        length: Number of positions.

    Raises:
        InputError: For a negative seed or candidate.
    """
    # The key is unsigned: a negative number would be another one's noise.
    if seed < 0 or candidate < 0:
        raise InputError(f"seed and candidate must not be negative, got {seed} and {candidate}")
    key = np.array([seed % 2**64, candidate], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).random(length)


def stack_noise(seeds: list[int], candidates: range, length: int) -> Tensor:
    """Stack :func:`uniform_noise` of each seed's candidates: float64 (seeds x candidates, length).

    Args:
        seeds: One a prefix, at least 0.
        candidates: Numbers of the candidates of each.
        length: Number of positions.
    """
    return torch.from_numpy(np.stack([uniform_noise(seed, k, length) for seed in seeds for k in candidates]))


def expand_seeds(seed: int | Sequence[int], count: int) -> list[int]:
    """Give every row its seed.

    Args:
        seed: One for all rows, which then share their noise, or one a row.
        count: Number of rows.

    Returns:
        ``count`` seeds.

    Raises:
        InputError: For another number of seeds, and for seeds that are not integers.
    """
    # NumPy's integers and scalar tensors are integers too; a float is not: the generator's key would truncate it.
    try:
        values: list[Any] = [seed] * count if isinstance(seed, int) or getattr(seed, "ndim", 1) == 0 else list(seed)
        seeds = [index(value) for value in values]
    except TypeError as error:
        raise InputError(f"seed = {seed!r:.80}: expected integers of at least 0") from error
    # Cut or repeated seeds would give rows the same images unnoticed.
    if len(seeds) != count:
        raise InputError(f"expected one seed or {count}, got {len(seeds)}")
    return seeds


def sample_tokens(logits_RV: Tensor, noise_R: Tensor, sampling: Sampling) -> Tensor:
    """Sample each row's token, int64 (R,), by its noise; the largest logit if greedy.

    Args:
        logits_RV: Logits.
        noise_R: float64 in [0, 1).
        sampling: How a token is sampled.
    """
    if sampling.greedy:
        return logits_RV.argmax(-1)
    return invert_cdf(probabilities(logits_RV, sampling), noise_R)


def probabilities(logits_RV: Tensor, sampling: Sampling) -> Tensor:
    """Compute float64 probabilities (R, V) after temperature, then top-k, then top-p; of equal logits the lower index
    stays.

    With ``greedy`` all mass is on the largest logit.

    Args:
        logits_RV: Logits.
        sampling: Temperature and truncation; guidance plays no part.
    """
    if sampling.greedy:
        best_R1 = logits_RV.argmax(dim=-1, keepdim=True)
        return torch.zeros_like(logits_RV, dtype=torch.float64).scatter(-1, best_R1, 1.0)
    logits_RV = logits_RV.to(torch.float64)
    if sampling.temperature != 1.0:
        # The largest is 0 before it is divided: however small the temperature, it stays a number.
        logits_RV = (logits_RV - logits_RV.amax(-1, keepdim=True)) / sampling.temperature
    probs_RV = torch.softmax(logits_RV, dim=-1)
    if not sampling.top_k and sampling.top_p == 1.0:
        return probs_RV
    # A stable sort, so that ties are broken alike on every device.
    sorted_RV, order_RV = probs_RV.sort(dim=-1, descending=True, stable=True)
    if sampling.top_k:
        sorted_RV[:, sampling.top_k :].zero_()
        sorted_RV = sorted_RV / sorted_RV.sum(-1, keepdim=True)
    if sampling.top_p < 1.0:
        # The mass before a code decides: the code that reaches top_p stays, so that at least one does.
        before_RV = sorted_RV.cumsum(-1) - sorted_RV
        sorted_RV = sorted_RV.masked_fill(before_RV >= sampling.top_p, 0)
    truncated_RV = torch.zeros_like(probs_RV).scatter(-1, order_RV, sorted_RV)
    return truncated_RV / truncated_RV.sum(-1, keepdim=True)


def invert_cdf(probs_RV: Tensor, noise_R: Tensor) -> Tensor:
    """Pick the first index, int64 (R,), whose cumulative probability exceeds the noise in [0, 1).

    Args:
        probs_RV: Probabilities, whose sum may be rounded.
        noise_R: float64 in [0, 1).
    """
    cumulative_RV = probs_RV.cumsum(-1)
    # Rounding may leave the last sum below the noise, or the noise at 0 before codes of no mass.
    threshold_R1 = noise_R.to(probs_RV)[:, None] * cumulative_RV[:, -1:]
    index_R = (cumulative_RV <= threshold_R1).sum(-1)
    last_R = probs_RV.shape[-1] - 1 - (probs_RV > 0).flip(-1).int().argmax(-1)
    return torch.minimum(index_R, last_R)
