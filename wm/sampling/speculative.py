"""Several tokens a pass, and the same images: noise-coupled Jacobi decoding with a draft.

A pass reads the last sure code and the next ``block`` codes of a draft, and draws at each place with that place's own
noise. As noise is a function of (seed, candidate, position), the draw after sure codes is the one that sequential
sampling makes: the draft is confirmed up to the first place where the draw differs, and that draw is sure as well. What
was drawn after it may replace the draft there: its noise is the one that will be used, only its context was not sure
yet (speculative Jacobi decoding, arXiv 2410.01699; noise shared between rounds: arXiv 2510.24211). The first draft is
the source image: an action leaves most of it where it was. Every row advances on its own, and leaves when it is done.
Row ends (:mod:`wm.sampling.slots`) are drafted as they are and count as tokens.

Shape suffixes: B sources, K candidates, R rows, N image tokens, S = block + 1 tokens a pass, V image codes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wm.errors import InputError
from wm.models.protocol import UnifiedVLM
from wm.sampling.batches import halving, positions_at_once, prefixes_at_once, tails_at_once
from wm.sampling.checks import need_prefixes
from wm.sampling.guidance import CONDITIONS, Candidates
from wm.sampling.model_runner import Decoder
from wm.sampling.noise import Sampling, choose, noise_of, seeds_of
from wm.sampling.slots import Slots


@dataclass(frozen=True)
class Speculation:
    """Images and what they cost. All tensors are on the CPU."""

    codes: Tensor
    """int64 (B, K, N): those of :func:`wm.sampling.engine.sample_images`."""
    passes: Tensor
    """int64 (B, K): passes until the row was done, the reading of the prefix not counted; sequentially N - 1."""
    confirmed: Tensor
    """int64 (B, K): codes of drafts that were right."""
    examined: Tensor
    """int64 (B, K): those and the first wrong one of each pass."""
    batch_passes: int
    """Passes of the model, whatever number of rows each had."""

    @property
    def tokens_per_pass(self) -> Tensor:
        """float64 (B, K): the first token, which comes of the prefix, not counted."""
        return (self.codes.shape[-1] - 1) / self.passes.double().clamp(min=1)

    @property
    def acceptance(self) -> Tensor:
        """float64 (B, K): share of right codes among those examined; nan where there were none."""
        return self.confirmed.double() / self.examined.double()


@torch.no_grad()
def speculate_images(
    vlm: UnifiedVLM,
    prefixes: Sequence[Sequence[int]],
    drafts: Tensor,
    *,
    num_samples: int,
    block: int,
    first_candidate: int = 0,
    sampling: Sampling | None = None,
    seed: int | Sequence[int] = 0,
    batch_size: int | None = None,
    redraft: bool = False,
    decoder: Decoder | None = None,
) -> Speculation:
    """What :func:`wm.sampling.engine.sample_images` gives, in fewer passes.

    ``drafts``: codes (B, N), such as the source images', or one a candidate (B, K, N). ``block``: drafted codes a
    pass, 1 to N - 1. ``redraft``: put what was drawn after a wrong code in the draft's place, as Jacobi decoding does;
    without it the draft stays as it was given, which is better for source images (what is drawn after a code that
    is still the source's takes the change for not yet made). The rest as there.
    """
    sampling = sampling or Sampling()
    length, slots = vlm.tokens_per_image, Slots(vlm)
    if num_samples < 1:
        raise InputError(f"num_samples must be at least 1, got {num_samples}")
    if first_candidate < 0:
        raise InputError(f"first_candidate must not be negative, got {first_candidate}")
    if not 1 <= block < length:
        raise InputError(f"block must be 1 to {length - 1} (an image has {length} tokens), got {block}")
    distinct = 1 if sampling.greedy else num_samples
    drafts_BKN = _drafts(drafts, len(prefixes), distinct, length, len(vlm.image_rows))
    seeds = seeds_of(seed, len(prefixes))
    codes_BKN = torch.zeros((len(prefixes), distinct, length), dtype=torch.int64)
    counts_3BK = torch.zeros((3, len(prefixes), distinct), dtype=torch.int64)
    batch_passes = 0
    conditions = CONDITIONS if sampling.is_guided else 1
    if decoder is not None:
        decoder.held = None  # buffers of images that were decoded another way, in memory that is needed here
    longest, tail = max(map(len, prefixes), default=0) * conditions, length * conditions
    positions = positions_at_once(vlm)
    sources_at_once = prefixes_at_once(longest, tail, distinct, batch_size, positions)
    at_once = tails_at_once(longest, tail, batch_size, positions)
    rows_hint = min(distinct, at_once) * min(len(prefixes), sources_at_once) * conditions
    decoder = decoder or Decoder(vlm, rows=rows_hint * (block + 1))
    need_prefixes(prefixes, len(decoder.view.embedding))
    order = sorted(range(len(prefixes)), key=lambda row: len(prefixes[row]))

    def sample(start: int, stop: int) -> None:
        sources = order[start:stop]
        candidates = Candidates(vlm, decoder, sampling, [prefixes[row] for row in sources])

        def decode(first: int, last: int) -> None:
            nonlocal batch_passes
            drawn = range(first_candidate + first, first_candidate + last)
            noise_RL = slots.spread(noise_of([seeds[row] for row in sources], drawn, length), 0)
            drafts_RL = slots.spread(drafts_BKN[sources, first:last].flatten(0, 1), slots.row_end)
            rows = _Ragged(candidates, sampling, drafts_RL, noise_RL, decoder=decoder, slots=slots)
            passes = rows.run(len(sources), last - first, block, redraft)
            codes_BKN[sources, first:last] = slots.codes(rows.codes_RN).cpu().view(len(sources), last - first, length)
            counts_3BK[:, sources, first:last] = rows.counts_3R.cpu().view(3, len(sources), -1)
            batch_passes += passes

        if len(sources) > 1:
            decode(0, distinct)
        else:
            halving(decode, distinct, at_once)

    if prefixes:
        halving(sample, len(prefixes), sources_at_once)
    repeats = num_samples // distinct
    passes, confirmed, examined = counts_3BK.repeat(1, 1, repeats).unbind(0)
    return Speculation(codes_BKN.repeat(1, repeats, 1), passes, confirmed, examined, batch_passes)


def _drafts(drafts: Tensor, sources: int, candidates: int, length: int, num_codes: int) -> Tensor:
    """int64 (B, K, N); :class:`InputError` for other shapes and for codes outside the codebook."""
    if drafts.is_floating_point():
        raise InputError(f"drafts: expected codebook ids, whole numbers, got {drafts.dtype}")
    drafts_BKN = drafts.to("cpu", torch.int64)
    if drafts_BKN.ndim == 2:
        drafts_BKN = drafts_BKN[:, None].expand(-1, candidates, -1)
    if drafts_BKN.shape != (sources, candidates, length):
        shape = tuple(drafts.shape)
        raise InputError(
            f"drafts: expected codes ({sources}, {length}), or ({sources}, K, {length}), got shape {shape}"
        )
    bad = drafts_BKN[(drafts_BKN < 0) | (drafts_BKN >= num_codes)]
    if len(bad):
        raise InputError(f"drafts: code {int(bad[0])} is outside the codebook [0, {num_codes})")
    return drafts_BKN


class _Ragged:
    """Rows that advance on their own. ``codes_RN``: sure up to ``done_R``, a draft beyond."""

    def __init__(
        self,
        candidates: Candidates,
        sampling: Sampling,
        drafts_RN: Tensor,
        noise_RN: Tensor,
        *,
        decoder: Decoder,
        slots: Slots,
    ) -> None:
        self._slots = slots
        self._candidates, self._sampling, self._device = candidates, sampling, decoder.device
        self.codes_RN = drafts_RN.to(self._device).clone()
        self._noise_RN = noise_RN.to(self._device)
        self.counts_3R = torch.zeros((3, len(drafts_RN)), dtype=torch.int64, device=self._device)

    def run(self, num_sources: int, each: int, block: int, redraft: bool) -> int:
        """Until all rows are done; the number of passes. The host waits once a pass, to read how far rows are."""
        num_rows, length = self.codes_RN.shape
        logits_RV = self._candidates.start(each, length + block)
        self.codes_RN[:, 0] = choose(logits_RV, self._noise_RN[:, 0], self._sampling)
        done = [1] * num_rows
        grid = [list(range(source * each, (source + 1) * each)) for source in range(num_sources)]
        passes = 0
        while min(done) < length:
            grid = self._compact(grid, done, length)
            rows = [row for members in grid for row in members]
            for row, gain in zip(rows, self._pass(rows, [done[row] for row in rows], block, redraft), strict=True):
                done[row] += gain
            passes += 1
        return passes

    def _pass(self, rows: list[int], done: list[int], block: int, redraft: bool) -> list[int]:
        """Tokens that became sure of each of ``rows`` (0 of those done already)."""
        length = self.codes_RN.shape[1]
        rows_R, done_R = torch.tensor([rows, done], device=self._device)
        steps_S = torch.arange(block + 1, device=self._device)
        # Beyond the image there is nothing to read or to draw: those places repeat the last one and do not count.
        read_RS = (done_R[:, None] - 1 + steps_S).clamp(max=length - 1)
        drawn_RS = (done_R[:, None] + steps_S).clamp(max=length - 1)
        logits_RSV = self._candidates.extend(self.codes_RN[rows_R[:, None], read_RS], done_R - 1, max(done) + block)
        noise_RS = self._noise_RN[rows_R[:, None], drawn_RS]
        new_RS = choose(logits_RSV.flatten(0, 1), noise_RS.flatten(), self._sampling).view(noise_RS.shape)
        new_RS = self._slots.settle_at(new_RS, drawn_RS)
        inside_RS = done_R[:, None] + steps_S < length
        right_RS = (new_RS == self.codes_RN[rows_R[:, None], drawn_RS]) & inside_RS
        run_R = right_RS[:, :block].int().cumprod(dim=1).sum(dim=1)
        left_R = length - done_R
        gain_R = torch.minimum(run_R + 1, left_R)
        write_RS = inside_RS if redraft else inside_RS & (steps_S < gain_R[:, None])
        row_W, step_W = write_RS.nonzero(as_tuple=True)
        self.codes_RN[rows_R[row_W], drawn_RS[row_W, step_W]] = new_RS[row_W, step_W]
        looked_R = torch.minimum(torch.minimum(run_R + 1, left_R), torch.full_like(left_R, block))
        self.counts_3R[:, rows_R] += torch.stack([(left_R > 0).long(), run_R, looked_R])
        gains: list[int] = gain_R.tolist()
        return gains

    def _compact(self, grid: list[list[int]], done: list[int], length: int) -> list[list[int]]:
        """Leave out rows and sources that are done; sources keep equally many, some of them done if need be."""
        open_rows = [sum(done[row] < length for row in members) for members in grid]
        each = max(open_rows)
        if each == len(grid[0]) and min(open_rows) > 0:
            return grid
        sources = [source for source, count in enumerate(open_rows) if count]
        kept = [sorted(grid[source], key=lambda row: done[row] == length)[:each] for source in sources]
        old = {row: place for place, row in enumerate(row for members in grid for row in members)}
        self._candidates.keep(sources, [old[row] for members in kept for row in members])
        return kept
