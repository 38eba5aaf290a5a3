"""Sample images: each source's prefix is read once, its candidates are decoded in one batch, with image logits alone.

Noise is a function of (seed, candidate, position) and nothing else, so candidate k is the same whether it is
sampled alone, among more candidates, or beside other sources (up to the rounding of the hidden states, which
may differ with the size of a batch and matters only where the noise falls on the very boundary between two
codes). Shape suffixes: B sources, K candidates, R rows, N image tokens, n those done, V image codes, H hidden width.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from wm.errors import InputError
from wm.models.vlm import UnifiedVLM
from wm.sampling.batches import plan_images
from wm.sampling.checks import check_prefixes
from wm.sampling.guidance import Candidates
from wm.sampling.image_batch import ImageBatch
from wm.sampling.model_runner import ModelRunner
from wm.sampling.noise import Sampling, expand_seeds, stack_noise
from wm.sampling.runners import build_model_runner
from wm.sampling.slots import Slots, count_line_slots


@dataclass(frozen=True)
class Progress:
    """The first n codes of the ``candidates`` of ``sources`` (indices of prefixes)."""

    sources: tuple[int, ...]
    candidates: range
    codes: Tensor
    """int64 (sources, candidates, n) on the CPU."""
    tokens_per_image: int


logger = logging.getLogger(__name__)
OnProgress: TypeAlias = Callable[[Progress], None]


@torch.no_grad()
def sample_images(
    vlm: UnifiedVLM,
    prefixes: Sequence[Sequence[int]],
    *,
    num_candidates: int,
    first_candidate: int = 0,
    sampling: Sampling | None = None,
    seed: int | Sequence[int] = 0,
    batch_size: int | None = None,
    on_progress: OnProgress | None = None,
    progress_tokens: int | None = None,
    runner: ModelRunner | None = None,
) -> Tensor:
    """Sample ``num_candidates`` images after each prefix.

    Rows at once and the way of decoding are logged, for each runner once as information.

    Args:
        vlm: The forward model.
        prefixes: Vocabulary ids, one or more each; they may differ in length.
        num_candidates: Candidates of each prefix, at least 1.
        first_candidate: Number of the first one; they are numbered up to ``first_candidate + num_candidates - 1``, so
            that sampling in rounds gives the images of sampling at once.
        sampling: Temperature, truncation, guidance; the model's distribution as it is without.
        seed: One for all prefixes, which then share their noise, or one a prefix. What is averaged over prefixes
            needs a seed of each (:func:`wm.records.row_seeds`).
        batch_size: Bound on the candidate rows of a pass; what memory holds without it. Halved, with a warning in the
            log, where memory does not suffice.
        on_progress: Called after every ``progress_tokens`` tokens, and anew from the first if a batch was halved;
            only then does the device wait for the host.
        progress_tokens: A line of the image without it.
        runner: Runs this model as it is now, to be used for many calls; built here without it.

    Returns:
        Codebook ids, int64 (B, K, N) on the CPU.

    Raises:
        InputError: For settings and prefixes that cannot be, and for a model that gives non-finite numbers.
    """
    sampling = sampling or Sampling()
    if first_candidate < 0:
        raise InputError(f"first_candidate must not be negative, got {first_candidate}")
    if progress_tokens is not None and progress_tokens < 1:
        raise InputError(f"progress_tokens must be at least 1, got {progress_tokens}")
    seeds = expand_seeds(seed, len(prefixes))
    length = vlm.tokens_per_image
    # Buffers of earlier images are freed when a batch of another shape begins, so their memory counts as free.
    held_bytes = runner.static_steps.num_bytes if runner is not None and runner.static_steps is not None else 0
    plan = plan_images(
        vlm, prefixes, num_candidates=num_candidates, sampling=sampling, batch_size=batch_size, held_bytes=held_bytes
    )
    # On the CPU, where the images are collected batch by batch.
    codes_BKN = torch.zeros((len(prefixes), plan.num_distinct, length), dtype=torch.int64)
    if not prefixes:
        return codes_BKN.new_zeros((0, num_candidates, length))
    is_own_runner = runner is None
    runner = runner or build_model_runner(vlm, rows=plan.num_rows)
    check_prefixes(prefixes, runner.vocabulary_size)
    logger.log(
        logging.DEBUG if runner.is_logged else logging.INFO,
        "%d sources, %d candidates each, %d rows at once (at most %d positions), %s decoding",
        *(len(prefixes), plan.num_distinct, plan.num_rows, plan.positions, runner.stepping),
    )
    runner.is_logged = True
    # Row ends are slots too: the engine fills them as it fills codes.
    slots = Slots(vlm)
    # Without a listener nothing leaves the device before the images are complete.
    line = (progress_tokens or count_line_slots(vlm)) if on_progress else slots.count

    def decode(sources: Sequence[int], candidates: Candidates, first: int, last: int) -> None:
        # Noise by candidate number: sampling in rounds, or in smaller batches, gives the same images.
        numbers = range(first_candidate + first, first_candidate + last)
        noise_RN = stack_noise([seeds[row] for row in sources], numbers, length)
        images = ImageBatch(candidates, noise_RN, last - first, sampling, slots)
        for _ in images.decode(line):
            codes = images.copy_codes().view(len(sources), last - first, -1)
            if on_progress is not None:
                on_progress(Progress(tuple(sources), numbers, codes, length))
        codes_BKN[list(sources), first:last] = codes

    plan.run(lambda rows: _prefill(vlm, runner, sampling, [prefixes[row] for row in rows]), decode)
    if is_own_runner:
        runner.static_steps = None  # which refers to the runner: the two would wait for the garbage collector
    return codes_BKN.repeat(1, num_candidates // plan.num_distinct, 1)


def _prefill(vlm: UnifiedVLM, runner: ModelRunner, sampling: Sampling, prefixes: Sequence[Sequence[int]]) -> Candidates:
    """Read the prefixes; once more without the buffers of earlier images where memory does not suffice."""
    try:
        return Candidates(vlm, runner, sampling, prefixes)
    except torch.OutOfMemoryError:
        # Given up before a batch is halved: they only save a recording.
        if runner.static_steps is None:
            raise
    runner.static_steps = None
    torch.cuda.empty_cache()
    return Candidates(vlm, runner, sampling, prefixes)
