"""The one decoding loop: a pass over the weights for all batches, then a token of every row.

Images and texts, alone or with others, are batches of it; they differ in how they sample and in what they do with a
sample. Only drafted images (:mod:`wm.sampling.speculative`) have a loop of their own, as their rows are at positions of
their own.
"""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from wm.sampling.model_runner import ModelRunner, StepInput

Sample = TypeVar("Sample")


class DecodingBatch(Protocol[Sample]):
    """Rows at one position. Nothing but :meth:`append` changes what the batch samples next."""

    @property
    def pending(self) -> StepInput | None:
        """The tokens that the next pass reads; None where the prefix has given the logits."""
        ...

    def set_logits(self, logits_XV: Tensor) -> None:
        """Take the logits of the next tokens."""
        ...

    def sample(self) -> Sample:
        """Sample the next token of each row."""
        ...

    def append(self, sample: Sample) -> None:
        """Append the sampled tokens."""
        ...


def decode_step(
    runner: ModelRunner, batches: Sequence[DecodingBatch[Sample]], head: Callable[[Tensor], Tensor]
) -> list[Sample]:
    """Decode one token of every row of every batch.

    If this raises, all batches are as they were, and the step can be repeated.

    Args:
        runner: Runs the model.
        batches: None of them has ended.
        head: Hidden states (X, H) to logits: the runner's ``image_logits`` or ``logits``.

    Returns:
        What each batch has sampled.
    """
    # 1. One pass over the weights; batches that have just begun have their logits from the prefix.
    inputs = [(batch, pending) for batch in batches if (pending := batch.pending) is not None]
    if inputs:
        logits_XV = head(runner.step([pending for _, pending in inputs]))
        counts = [len(pending.ids) for _, pending in inputs]
        for (batch, _), part in zip(inputs, torch.split_with_sizes(logits_XV, counts), strict=True):
            batch.set_logits(part)
    # 2. All sample before any appends.
    samples = [batch.sample() for batch in batches]
    for batch, sample in zip(batches, samples, strict=True):
        batch.append(sample)
    return samples
