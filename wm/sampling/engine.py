"""Sample images: each source's prefix is read once, its candidates are decoded in one batch, with image logits alone.

Noise is a function of (seed, candidate, position) and nothing else, so candidate k is the same whether it is
sampled alone, among more candidates, or beside other sources (up to the rounding of the hidden states, which
may differ with the size of a batch and matters only where the noise falls on the very boundary between two
codes). Shape suffixes: B sources, K candidates, R rows, N image tokens, n those done, V image codes, H hidden width.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from wm.errors import InputError
from wm.models.vlm import UnifiedVLM
from wm.sampling.batches import halving, positions_at_once, prefixes_at_once, tails_at_once
from wm.sampling.checks import check_prefixes
from wm.sampling.guidance import CONDITIONS, Candidates
from wm.sampling.kernels.cuda_graphs import static_steps
from wm.sampling.model_runner import Decoder
from wm.sampling.noise import Sampling, choose, noise_of, seeds_of
from wm.sampling.slots import Slots


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
    num_samples: int,
    first_candidate: int = 0,
    sampling: Sampling | None = None,
    seed: int | Sequence[int] = 0,
    batch_size: int | None = None,
    on_progress: OnProgress | None = None,
    progress_tokens: int | None = None,
    decoder: Decoder | None = None,
) -> Tensor:
    """Sample ``num_samples`` images after each prefix.

    Rows at once and the way of decoding are logged, for each decoder once as information.

    Args:
        vlm: The forward model.
        prefixes: Vocabulary ids, one or more each; they may differ in length.
        num_samples: Candidates of each prefix, at least 1.
        first_candidate: Number of the first one; they are numbered up to ``first_candidate + num_samples - 1``, so
            that sampling in rounds gives the images of sampling at once.
        sampling: Temperature, truncation, guidance; the model's distribution as it is without.
        seed: One for all prefixes, which then share their noise, or one a prefix. What is averaged over prefixes
            needs a seed of each (:func:`wm.records.row_seeds`).
        batch_size: Bound on the candidate rows of a pass; what memory holds without it. Halved, with a warning in the
            log, where memory does not suffice.
        on_progress: Called after every ``progress_tokens`` tokens, and anew from the first if a batch was halved;
            only then does the device wait for the host.
        progress_tokens: A line of the image without it.
        decoder: Of this model as it is now, to be used for many calls; built here without it.

    Returns:
        Codebook ids, int64 (B, K, N) on the CPU.

    Raises:
        InputError: For settings and prefixes that cannot be, and for a model that gives non-finite numbers.
    """
    sampling = sampling or Sampling()
    if num_samples < 1:
        raise InputError(f"num_samples must be at least 1, got {num_samples}")
    if first_candidate < 0:
        raise InputError(f"first_candidate must not be negative, got {first_candidate}")
    if progress_tokens is not None and progress_tokens < 1:
        raise InputError(f"progress_tokens must be at least 1, got {progress_tokens}")
    seeds = seeds_of(seed, len(prefixes))
    # 1. Greedy candidates are all equal: one is decoded and repeated.
    distinct, length = 1 if sampling.greedy else num_samples, vlm.tokens_per_image
    codes_BKN = torch.zeros((len(prefixes), distinct, length), dtype=torch.int64)
    if not prefixes:
        return codes_BKN.new_zeros((0, num_samples, length))
    # 2. Token budget: a prefix counts once, each of its rows for a complete image, all for every condition.
    conditions = CONDITIONS if sampling.is_guided else 1
    # Buffers of earlier images are freed when a batch of another shape begins, so their memory counts as free.
    held_bytes = decoder.held.num_bytes if decoder is not None and decoder.held is not None else 0
    positions = positions_at_once(vlm, held_bytes)
    longest, tail = max(map(len, prefixes)) * conditions, length * conditions
    sources_at_once = prefixes_at_once(longest, tail, distinct, batch_size, positions)
    at_once = tails_at_once(longest, tail, batch_size, positions)
    rows = min(distinct, at_once) * min(len(prefixes), sources_at_once) * conditions
    is_own_decoder = decoder is None
    decoder = decoder or Decoder(vlm, rows=rows)
    check_prefixes(prefixes, len(decoder.view.embedding))
    logger.log(
        logging.DEBUG if decoder.is_logged else logging.INFO,
        "%d sources, %d candidates each, %d rows at once (at most %d positions), %s decoding",
        *(len(prefixes), distinct, rows, positions, decoder.stepping),
    )
    decoder.is_logged = True
    slots = Slots(vlm)
    line = progress_tokens or line_of(vlm)
    # 3. Batches by length, so that few prefixes are padded.
    order = sorted(range(len(prefixes)), key=lambda row: len(prefixes[row]))

    def sample(start: int, stop: int) -> None:
        sources = order[start:stop]
        candidates = _prefill(vlm, decoder, sampling, [prefixes[row] for row in sources])

        def decode(first: int, last: int) -> None:
            numbers = range(first_candidate + first, first_candidate + last)
            noise_RN = noise_of([seeds[row] for row in sources], numbers, length).to(decoder.device)
            # Without a listener nothing leaves the device before the images are complete.
            every = line if on_progress else slots.count
            for codes_RL in decode_slots(
                candidates, slots.spread(noise_RN, 0), last - first, sampling, line=every, slots=slots
            ):
                codes = slots.codes(codes_RL).view(len(sources), last - first, -1)
                codes = codes.to("cpu", copy=True)  # the next images are written into the same buffers
                if on_progress is not None:
                    on_progress(Progress(tuple(sources), numbers, codes, length))
            codes_BKN[sources, first:last] = codes

        # Several sources were batched so that all their candidates fit; those of one may be too many.
        if len(sources) > 1:
            decode(0, distinct)
        else:
            halving(decode, distinct, at_once)

    halving(sample, len(prefixes), sources_at_once)
    if is_own_decoder:
        decoder.held = None  # which refers to the decoder: the two would wait for the garbage collector
    return codes_BKN.repeat(1, num_samples // distinct, 1)


def _prefill(vlm: UnifiedVLM, decoder: Decoder, sampling: Sampling, prefixes: Sequence[Sequence[int]]) -> Candidates:
    """Read the prefixes; once more without the buffers of earlier images where memory does not suffice."""
    try:
        return Candidates(vlm, decoder, sampling, prefixes)
    except torch.OutOfMemoryError:
        if decoder.held is None:
            raise
    decoder.held = None  # the buffers of images before
    torch.cuda.empty_cache()
    return Candidates(vlm, decoder, sampling, prefixes)


def line_of(vlm: UnifiedVLM) -> int:
    """Return the number of slots of one line of the image, its end among them."""
    return vlm.row_tokens + 1 if vlm.row_tokens else max(1, round(vlm.tokens_per_image**0.5))


def decode_slots(
    candidates: Candidates, noise_RL: Tensor, each: int, sampling: Sampling, *, line: int, slots: Slots
) -> Iterator[Tensor]:
    """Decode images slot by slot, and yield int64 (R, l) on the device after every ``line`` slots and at the end.

    Args:
        candidates: The prefixes, read.
        noise_RL: float64 in [0, 1); 0 at row ends.
        each: Candidates of each prefix; R is P x ``each``.
        sampling: How a code is sampled.
        line: Slots between two yields.
        slots: The family's image layout.
    """
    length = noise_RL.shape[1]
    # 1. Recorded or static steps, where the decoder has them.
    steps = static_steps(candidates, noise_RL, each, sampling, slots)
    if steps is not None:
        for position in range(length):
            steps.advance(position)
            if (position + 1) % line == 0 or position + 1 == length:
                yield steps.codes_RL[:, : position + 1]
        # Put back only at the end: a generator that is left half-way must not lend its buffers to another image.
        candidates.decoder.held = steps
        return
    # 2. Plain steps. A step's noise is side by side in memory: it is read row by row of the transpose.
    noise_LR = noise_RL.T.contiguous()
    codes_RL = torch.empty(noise_RL.shape, dtype=torch.int64, device=noise_RL.device)
    logits_RV = candidates.start(each, length)
    for position in range(length):
        code_R = slots.settle(choose(logits_RV, noise_LR[position], sampling), position)
        codes_RL[:, position] = code_R
        if (position + 1) % line == 0 or position + 1 == length:
            yield codes_RL[:, : position + 1]
        if position + 1 < length:  # nothing follows the last code: its pass is spared
            logits_RV = candidates.extend(code_R[:, None], position, position + 1)[:, 0]
