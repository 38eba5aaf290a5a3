"""Sampling of images: the prefix once a source, candidates together, image logits alone.

Noise is a function of (seed, candidate, position) and nothing else, so candidate k is the same whether it is
drawn alone, among more candidates, or beside other sources (up to the rounding of the hidden states, which
may differ with the size of a batch and matters only where a draw falls on the very boundary between two
codes). Shape suffixes: B sources, K candidates, R rows, N image tokens, n those done, V image codes, H hidden width.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from wm.errors import InputError
from wm.models.protocol import UnifiedVLM
from wm.sampling.batches import halving, positions_at_once, prefixes_at_once, tails_at_once
from wm.sampling.checks import need_prefixes
from wm.sampling.guidance import CONDITIONS, Candidates
from wm.sampling.kernels.cuda_graphs import static_steps
from wm.sampling.model_runner import Decoder
from wm.sampling.noise import Sampling, choose, noise_of, seeds_of
from wm.sampling.slots import Slots


@dataclass(frozen=True)
class Progress:
    """What is done of a batch: of ``sources`` (indices of prefixes) the ``candidates``, their first n codes."""

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
    """Codebook ids int64 (B, K, N) on the CPU: ``num_samples`` images after each prefix (vocabulary ids).

    ``first_candidate``: the images are candidates ``first_candidate`` to ``first_candidate + K - 1``, so that what was
    drawn before can be gone on with. ``seed``: one for all rows, or one a row. Rows with equal seeds share their
    noise, so that what is averaged over rows needs a seed a row (:func:`wm.records.row_seeds`). ``batch_size`` bounds
    the candidate rows that are decoded together (half as many, with a warning in the log, where memory does not
    suffice). Prefixes may differ in length. ``on_progress`` is called after every ``progress_tokens`` tokens (one
    line of the image without it), and anew from the first if a batch had to be halved; only then does the device
    wait for the host. ``decoder``: a
    :class:`~wm.sampling.model_runner.Decoder` of this model as it is now; made here without it. What was chosen (rows
    at once, way of decoding) is logged, for each decoder once as information. Raises :class:`InputError` for settings
    and prefixes that cannot be, and for a model that gives no numbers (nan, infinity).
    """
    sampling = sampling or Sampling()
    if num_samples < 1:
        raise InputError(f"num_samples must be at least 1, got {num_samples}")
    if first_candidate < 0:
        raise InputError(f"first_candidate must not be negative, got {first_candidate}")
    if progress_tokens is not None and progress_tokens < 1:
        raise InputError(f"progress_tokens must be at least 1, got {progress_tokens}")
    seeds = seeds_of(seed, len(prefixes))
    distinct, length = 1 if sampling.greedy else num_samples, vlm.tokens_per_image
    codes_BKN = torch.zeros((len(prefixes), distinct, length), dtype=torch.int64)
    if not prefixes:
        return codes_BKN.new_zeros((0, num_samples, length))
    conditions = CONDITIONS if sampling.is_guided else 1
    held_bytes = decoder.held.num_bytes if decoder is not None and decoder.held is not None else 0
    positions = positions_at_once(vlm, held_bytes)
    longest, tail = max(map(len, prefixes)) * conditions, length * conditions
    sources_at_once = prefixes_at_once(longest, tail, distinct, batch_size, positions)
    at_once = tails_at_once(longest, tail, batch_size, positions)
    rows = min(distinct, at_once) * min(len(prefixes), sources_at_once) * conditions
    made_here = decoder is None
    decoder = decoder or Decoder(vlm, rows=rows)
    need_prefixes(prefixes, len(decoder.view.embedding))
    logger.log(
        logging.DEBUG if decoder.told else logging.INFO,
        "%d sources, %d candidates each, %d rows at once (at most %d positions), %s decoding",
        *(len(prefixes), distinct, rows, positions, decoder.stepping),
    )
    decoder.told = True
    slots = Slots(vlm)
    line = progress_tokens or line_of(vlm)
    order = sorted(range(len(prefixes)), key=lambda row: len(prefixes[row]))

    def sample(start: int, stop: int) -> None:
        sources = order[start:stop]
        candidates = _read(vlm, decoder, sampling, [prefixes[row] for row in sources])

        def decode(first: int, last: int) -> None:
            drawn = range(first_candidate + first, first_candidate + last)
            noise_RN = noise_of([seeds[row] for row in sources], drawn, length).to(decoder.device)
            every = line if on_progress else slots.count
            for codes_RL in decode_slots(
                candidates, slots.spread(noise_RN, 0), last - first, sampling, line=every, slots=slots
            ):
                codes = slots.codes(codes_RL).view(len(sources), last - first, -1)
                codes = codes.to("cpu", copy=True)  # the next images are written into the same buffers
                if on_progress is not None:
                    on_progress(Progress(tuple(sources), drawn, codes, length))
            codes_BKN[sources, first:last] = codes

        if len(sources) > 1:
            decode(0, distinct)
        else:
            halving(decode, distinct, at_once)

    halving(sample, len(prefixes), sources_at_once)
    if made_here:
        decoder.held = None  # which refers to the decoder: the two would wait for the garbage collector
    return codes_BKN.repeat(1, num_samples // distinct, 1)


def _read(vlm: UnifiedVLM, decoder: Decoder, sampling: Sampling, prefixes: Sequence[Sequence[int]]) -> Candidates:
    try:
        return Candidates(vlm, decoder, sampling, prefixes)
    except torch.OutOfMemoryError:
        if decoder.held is None:
            raise
    decoder.held = None  # the buffers of images before
    torch.cuda.empty_cache()
    return Candidates(vlm, decoder, sampling, prefixes)


def line_of(vlm: UnifiedVLM) -> int:
    """Slots of one line of the image, its end among them."""
    return vlm.row_tokens + 1 if vlm.row_tokens else max(1, round(vlm.tokens_per_image**0.5))


def decode_slots(
    candidates: Candidates, noise_RL: Tensor, each: int, sampling: Sampling, *, line: int, slots: Slots
) -> Iterator[Tensor]:
    """int64 (R, l) on the device: what fills the slots so far, after every ``line`` of them and at the end."""
    length = noise_RL.shape[1]
    steps = static_steps(candidates, noise_RL, each, sampling, slots)
    if steps is not None:
        for place in range(length):
            steps.advance(place)
            if (place + 1) % line == 0 or place + 1 == length:
                yield steps.codes_RL[:, : place + 1]
        candidates.decoder.held = steps
        return
    noise_LR = noise_RL.T.contiguous()
    codes_RL = torch.empty(noise_RL.shape, dtype=torch.int64, device=noise_RL.device)
    logits_RV = candidates.start(each, length)
    for place in range(length):
        code_R = slots.settle(choose(logits_RV, noise_LR[place], sampling), place)
        codes_RL[:, place] = code_R
        if (place + 1) % line == 0 or place + 1 == length:
            yield codes_RL[:, : place + 1]
        if place + 1 < length:
            logits_RV = candidates.extend(code_R[:, None], place, place + 1)[:, 0]
