"""Compare recorded steps with plain decoding before an image is made by them: the same prompt, weights and shapes, at
positions where a recording changes.

A kernel that a new driver, card or compiler gets wrong would else give images that look like those of a worse model.
"""

from collections.abc import Iterator, Sequence
from math import inf, isnan
from typing import Protocol

import torch
from torch import Tensor

from wm.sampling.guidance import Candidates
from wm.sampling.kernels.attention import attend_shared, attend_tails
from wm.sampling.model_runner import SelfTest

MAX_ERRORS = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.1}
"""Root mean square of the difference of logits, over their standard deviation, up to which two ways agree; ours. Other
orders of summing give about 1e-5 in float32 and .01 in bfloat16 at 32 layers, a wrong mask or position about 1."""
_MAX_GUIDED_ERROR = 0.5
"""With guidance, whatever its scales."""
MAX_SOURCES = 4
"""Prefixes that are compared."""
_EDGE = 128


FUSED = "fused attention"
"""Name of the test of a GPU's attention kernel in :attr:`wm.sampling.model_runner.ModelRunner.self_tests`."""


class Steps(Protocol):
    """Steps of fixed shapes, ready to begin."""

    @property
    def codes_RL(self) -> Tensor:  # noqa: N802
        """Codes so far, int64."""

    @property
    def logits_RV(self) -> Tensor:  # noqa: N802
        """Logits of the next code."""

    def begin(self, candidates: Candidates, noise_LR: Tensor) -> None:
        """Take over prefixes and noise.

        Args:
            candidates: The prefixes, read.
            noise_LR: float64 in [0, 1).
        """

    def advance(self, position: int) -> None:
        """Sample the code of a position and compute the logits of the next."""

    def seek(self, position: int) -> None:
        """Continue at another position."""


def compare_steps(steps: Steps, candidates: Candidates, noise_LR: Tensor, *, each: int) -> SelfTest:
    """Compare the logits of steps with those of plain decoding, which is given the same codes.

    Args:
        steps: What is tested; :meth:`Steps.begin` is to be called again before an image.
        candidates: The prefixes, read.
        noise_LR: float64 in [0, 1), 0 at row ends.
        each: Candidates of each prefix, of which the first is compared, for some prefixes.

    Returns:
        Whether both agree, and how far they differ.

        Without memory for a candidate of :data:`MAX_SOURCES` prefixes beside the steps, they count as failed.
    """
    # Guidance subtracts logits that are alike, and enlarges what is left.
    limit = min(_MAX_GUIDED_ERROR, MAX_ERRORS[candidates.runner.dtype] * max(1.0, candidates.error_gain))
    positions = choose_positions(len(noise_LR))
    try:
        error = max(_relative_errors(steps, candidates, noise_LR, each, positions))
    except torch.OutOfMemoryError:
        return SelfTest(agrees=False, error=inf, limit=limit, positions=(), detail="no memory for its self-test")
    finally:
        candidates.stop()  # the images themselves need the memory
    return SelfTest(error <= limit, error, limit, tuple(positions))


def _relative_errors(
    steps: Steps, candidates: Candidates, noise_LR: Tensor, each: int, positions: Sequence[int]
) -> Iterator[float]:
    # One candidate of a few prefixes: batches are planned to fill the memory, without space for a second cache.
    sources = choose_sources(noise_LR.shape[1] // each)
    rows = [source * each for source in sources]
    steps.begin(candidates, noise_LR)
    yield _relative_error(steps.logits_RV[rows], candidates.start(1, len(noise_LR), sources))
    for position in positions:
        # Positions between are empty in both caches, and equal.
        steps.seek(position)
        steps.advance(position)
        logits_R1V = candidates.extend(steps.codes_RL[rows, position : position + 1], position, position + 1)
        yield _relative_error(steps.logits_RV[rows], logits_R1V[:, 0])


@torch.no_grad()
def compare_fused_attention(heads: int, width: int, dtype: torch.dtype, device: torch.device) -> SelfTest:
    """Compare a GPU's fused attention with plain products, on random numbers of a model's sizes.

    Args:
        heads: Heads of queries and keys.
        width: Of a head.
        dtype: Of the model.
        device: Where it runs.

    Returns:
        Whether both agree; a kernel that cannot be called does not.

    Raises:
        torch.OutOfMemoryError: There is no memory for these numbers.
    """
    limit = MAX_ERRORS[dtype]
    # On the CPU: the same numbers on every device.
    generator = torch.Generator().manual_seed(0)
    query, key, value, keys, values = (
        torch.randn(shape, generator=generator).to(device, dtype)
        for shape in (*[(4, 24, heads, width)] * 3, *[(2, heads, 96, width)] * 2)
    )
    query = query * width**-0.5
    hidden_11SF = torch.ones(24, 24, dtype=torch.bool, device=device).triu(1)[None]
    try:
        fused = attend_tails(query, key, value, keys, values)
        own = key.transpose(1, 2).contiguous(), value.transpose(1, 2).contiguous()
        plain = attend_shared(query, keys, values, *own, prefix_hidden_PT=None, own_hidden=hidden_11SF)
        error = _relative_error(fused, plain)
    except torch.OutOfMemoryError:
        raise  # which says nothing of the kernel; the caller halves its batch
    except Exception as problem:
        # What a driver or a build of torch lacks shows here, in many kinds of errors.
        detail = f"{type(problem).__name__}: {problem}"[:300]
        return SelfTest(agrees=False, error=inf, limit=limit, positions=(), detail=detail)
    return SelfTest(error <= limit, error, limit, ())


def choose_positions(length: int) -> Sequence[int]:
    """Choose the positions that are compared: the first two, both sides of a bucket's end, the last with logits.

    Args:
        length: Slots of an image.
    """
    return sorted({0, 1, _EDGE - 1, _EDGE, length - 2} & set(range(length - 1)))


def choose_sources(count: int) -> Sequence[int]:
    """Choose the prefixes that are compared: at most :data:`MAX_SOURCES`, the first and the last among them, which are
    the shortest and the longest of a batch that was sorted.

    Args:
        count: Prefixes of the batch.
    """
    return sorted({round(step * (count - 1) / (MAX_SOURCES - 1)) for step in range(MAX_SOURCES)})


def _relative_error(logits: Tensor, reference: Tensor) -> float:
    """Compute the root mean square of the difference over the reference's standard deviation."""
    difference, reference = logits.double() - reference.double(), reference.double()
    # A head of zeros has no deviation: then only equal logits agree.
    error = float(difference.square().mean().sqrt() / reference.std().clamp_min(torch.finfo(torch.float64).tiny))
    # NaN is no agreement, and would pass a comparison of maxima.
    return inf if isnan(error) else error
