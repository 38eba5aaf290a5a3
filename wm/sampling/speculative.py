"""Sample several tokens a pass, and the same images: noise-coupled Jacobi decoding with a draft.

A pass reads the last accepted code and the next ``num_draft_tokens`` of a draft, and samples at each position with that
position's own noise. As noise is a function of (seed, candidate, position), the sample after accepted codes is that of
sequential sampling: the draft is accepted up to the first position where the sample differs, and that sample is
accepted as well. Samples after it may replace the draft there: their noise is the one that will be used, only their
context was not accepted yet (speculative Jacobi decoding, arXiv 2410.01699; noise shared between rounds: arXiv
2510.24211). The first draft is the source image: an action leaves most of it where it was. Every row advances on its
own, and leaves the batch when it is complete. Row ends (:mod:`wm.sampling.slots`) are drafted as they are and count as
tokens.

Shape suffixes: B sources, K candidates, R rows, N image tokens, S = num_draft_tokens + 1 tokens a pass, V image codes.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from wm.errors import InputError
from wm.models.vlm import UnifiedVLM
from wm.sampling.batches import plan_images
from wm.sampling.checks import check_prefixes
from wm.sampling.guidance import Candidates
from wm.sampling.images import Progress, sample_images
from wm.sampling.model_runner import ModelRunner
from wm.sampling.noise import Sampling, expand_seeds, sample_tokens, stack_noise
from wm.sampling.runners import build_model_runner
from wm.sampling.slots import Slots

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Speculation:
    """Images and what they cost. All tensors are on the CPU."""

    codes: Tensor
    """int64 (B, K, N): those of :func:`wm.sampling.images.sample_images`."""
    passes: Tensor
    """int64 (B, K): passes until the row was complete, the reading of the prefix not counted; sequentially N - 1."""
    confirmed: Tensor
    """int64 (B, K): codes of drafts that were right."""
    examined: Tensor
    """int64 (B, K): those and the first wrong one of each pass."""
    batch_passes: int
    """Passes of the model, whatever number of rows each had."""

    @property
    def tokens_per_pass(self) -> Tensor:
        """Mean tokens of a pass, float64 (B, K); the first token, which the prefix gives, is not counted."""
        return (self.codes.shape[-1] - 1) / self.passes.double().clamp(min=1)

    @property
    def acceptance(self) -> Tensor:
        """Share of right codes among those examined, float64 (B, K); NaN where there were none."""
        return self.confirmed.double() / self.examined.double()


@torch.no_grad()
def speculate_images(
    vlm: UnifiedVLM,
    prefixes: Sequence[Sequence[int]],
    drafts: Tensor,
    *,
    num_candidates: int,
    num_draft_tokens: int,
    first_candidate: int = 0,
    sampling: Sampling | None = None,
    seed: int | Sequence[int] = 0,
    batch_size: int | None = None,
    redraft: bool = False,
    runner: ModelRunner | None = None,
) -> Speculation:
    """Sample the images of :func:`wm.sampling.images.sample_images` in fewer passes.

    Args:
        vlm: The forward model.
        prefixes: Vocabulary ids, one or more each.
        drafts: Codes (B, N), such as the source images', or one a candidate (B, K, N).
        num_candidates: Candidates of each prefix.
        num_draft_tokens: Drafted codes a pass, 1 to N - 1.
        first_candidate: Number of the first candidate.
        sampling: How a code is sampled.
        seed: One for all prefixes, or one a prefix.
        batch_size: Bound on the candidate rows of a pass.
        redraft: Replace the draft after a wrong code by the samples there, as Jacobi decoding does. Without it the
            draft stays, which is better for source images: samples after a code that is still the source's take the
            change for not yet made.
        runner: Runs this model as it is now, to be used for many calls; built here without it. Where it cannot check
            drafts, images are sampled one code a pass, and the log says so once.

    Returns:
        The images and their costs.

    Raises:
        InputError: For settings, prefixes and drafts that cannot be, and for a model that gives non-finite numbers.
    """
    sampling = sampling or Sampling()
    length, slots = vlm.tokens_per_image, Slots(vlm)
    if first_candidate < 0:
        raise InputError(f"first_candidate must not be negative, got {first_candidate}")
    if not 1 <= num_draft_tokens < length:
        raise InputError(
            f"num_draft_tokens must be 1 to {length - 1} (an image has {length} tokens), got {num_draft_tokens}"
        )
    seeds = expand_seeds(seed, len(prefixes))
    if runner is not None:
        runner.static_steps = None  # buffers of images that were decoded another way, in memory that is needed here
    # Budget as in sequential sampling; drafts need no more than their length at a time.
    plan = plan_images(vlm, prefixes, num_candidates=num_candidates, sampling=sampling, batch_size=batch_size)
    drafts_BKN = _to_drafts(drafts, len(prefixes), plan.num_distinct, length, len(vlm.image_rows))
    runner = runner or build_model_runner(vlm, rows=plan.num_rows * (num_draft_tokens + 1))
    if not runner.can_draft:
        return _sample_without_drafts(
            vlm, prefixes, num_candidates=num_candidates, first_candidate=first_candidate, sampling=sampling,
            seed=seeds, batch_size=batch_size, runner=runner,
        )  # fmt: skip
    check_prefixes(prefixes, runner.vocabulary_size)
    codes_BKN = torch.zeros((len(prefixes), plan.num_distinct, length), dtype=torch.int64)
    counts_3BK = torch.zeros((3, len(prefixes), plan.num_distinct), dtype=torch.int64)
    batch_passes = 0

    def decode(sources: Sequence[int], candidates: Candidates, first: int, last: int) -> None:
        nonlocal batch_passes
        rows, numbers = list(sources), range(first_candidate + first, first_candidate + last)
        noise_RL = slots.spread(stack_noise([seeds[row] for row in rows], numbers, length), 0)
        drafts_RL = slots.spread(drafts_BKN[rows, first:last].flatten(0, 1), slots.row_end)
        batch = _RaggedBatch(candidates, sampling, drafts_RL, noise_RL, slots=slots)
        batch_passes += batch.run(len(rows), last - first, num_draft_tokens, redraft)
        codes_BKN[rows, first:last] = slots.codes(batch.codes_RN).cpu().view(len(rows), last - first, length)
        counts_3BK[:, rows, first:last] = batch.counts_3R.cpu().view(3, len(rows), -1)

    plan.run(lambda rows: Candidates(vlm, runner, sampling, [prefixes[row] for row in rows]), decode)
    # Greedy images were decoded once for all candidates.
    repeats = num_candidates // plan.num_distinct
    passes, confirmed, examined = counts_3BK.repeat(1, 1, repeats).unbind(0)
    return Speculation(codes_BKN.repeat(1, repeats, 1), passes, confirmed, examined, batch_passes)


def _sample_without_drafts(
    vlm: UnifiedVLM,
    prefixes: Sequence[Sequence[int]],
    *,
    num_candidates: int,
    first_candidate: int,
    sampling: Sampling,
    seed: Sequence[int],
    batch_size: int | None,
    runner: ModelRunner,
) -> Speculation:
    """Sample the same images one code a pass, by a runner whose rows cannot be at positions of their own."""
    _log_no_drafts(type(runner).__name__)
    batches: list[Progress] = []
    codes_BKN = sample_images(
        vlm, prefixes, num_candidates=num_candidates, first_candidate=first_candidate, sampling=sampling, seed=seed,
        batch_size=batch_size, runner=runner, on_progress=batches.append, progress_tokens=vlm.tokens_per_image + 1,
    )  # fmt: skip
    # The first code comes from the prefix.
    passes = Slots(vlm).count - 1
    none_BK = torch.zeros(codes_BKN.shape[:2], dtype=torch.int64)
    return Speculation(codes_BKN, none_BK + passes, none_BK, none_BK, passes * len(batches))


@cache
def _log_no_drafts(runner: str) -> None:
    logger.warning("%s cannot check drafts: images are sampled one code a pass, and are the same", runner)


def _to_drafts(drafts: Tensor, sources: int, candidates: int, length: int, num_codes: int) -> Tensor:
    """Convert drafts to int64 (B, K, N); :class:`InputError` for other shapes and codes outside the codebook."""
    # Rounded fractions would be codes of other images.
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


class _RaggedBatch:
    """Rows that advance on their own. ``codes_RN``: accepted up to ``length_R``, a draft beyond."""

    def __init__(
        self,
        candidates: Candidates,
        sampling: Sampling,
        drafts_RN: Tensor,
        noise_RN: Tensor,
        *,
        slots: Slots,
    ) -> None:
        self._slots = slots
        self._candidates, self._sampling, self._device = candidates, sampling, candidates.runner.device
        self.codes_RN = drafts_RN.to(self._device).clone()
        self._noise_RN = noise_RN.to(self._device)
        self.counts_3R = torch.zeros((3, len(drafts_RN)), dtype=torch.int64, device=self._device)

    def run(self, num_sources: int, each: int, num_draft_tokens: int, redraft: bool) -> int:
        """Decode until all rows are complete and return the number of passes. The host waits once a pass, to read
        the rows' lengths."""
        num_rows, length = self.codes_RN.shape
        # The first code follows the prefix alone, so that it is never a draft. Capacity for a draft beyond the end.
        logits_RV = self._candidates.start(each, length + num_draft_tokens)
        self.codes_RN[:, 0] = sample_tokens(logits_RV, self._noise_RN[:, 0], self._sampling)
        # On the host, which decides which rows leave.
        lengths = [1] * num_rows
        grid = [list(range(source * each, (source + 1) * each)) for source in range(num_sources)]
        passes = 0
        while min(lengths) < length:
            # Complete rows leave before the pass, so that it costs what the others need.
            grid = self._compact(grid, lengths, length)
            rows = [row for members in grid for row in members]
            for row, gain in zip(
                rows, self._pass(rows, [lengths[row] for row in rows], num_draft_tokens, redraft), strict=True
            ):
                lengths[row] += gain
            passes += 1
        return passes

    def _pass(self, rows: list[int], lengths: list[int], num_draft_tokens: int, redraft: bool) -> list[int]:
        """Run a pass and return the tokens accepted in each of ``rows`` (0 in those that are complete)."""
        length = self.codes_RN.shape[1]
        rows_R, length_R = torch.tensor([rows, lengths], device=self._device)
        steps_S = torch.arange(num_draft_tokens + 1, device=self._device)
        # 1. Read and sample. Beyond the image there is nothing to do: those positions repeat the last and do not count.
        read_RS = (length_R[:, None] - 1 + steps_S).clamp(max=length - 1)
        sample_RS = (length_R[:, None] + steps_S).clamp(max=length - 1)
        logits_RSV = self._candidates.extend(
            self.codes_RN[rows_R[:, None], read_RS], length_R - 1, max(lengths) + num_draft_tokens
        )
        noise_RS = self._noise_RN[rows_R[:, None], sample_RS]
        new_RS = sample_tokens(logits_RSV.flatten(0, 1), noise_RS.flatten(), self._sampling).view(noise_RS.shape)
        new_RS = self._slots.settle_at(new_RS, sample_RS)
        # 2. Accept the draft up to the first wrong code, and the sample in that code's position.
        inside_RS = length_R[:, None] + steps_S < length
        right_RS = (new_RS == self.codes_RN[rows_R[:, None], sample_RS]) & inside_RS
        # The length of the run of right codes: a product of flags is 0 from the first wrong one on.
        run_R = right_RS[:, :num_draft_tokens].int().cumprod(dim=1).sum(dim=1)
        left_R = length - length_R
        gain_R = torch.minimum(run_R + 1, left_R)
        # 3. Store what was accepted; beyond it, only where samples may become the draft.
        write_RS = inside_RS if redraft else inside_RS & (steps_S < gain_R[:, None])
        row_W, step_W = write_RS.nonzero(as_tuple=True)
        self.codes_RN[rows_R[row_W], sample_RS[row_W, step_W]] = new_RS[row_W, step_W]
        looked_R = torch.minimum(torch.minimum(run_R + 1, left_R), torch.full_like(left_R, num_draft_tokens))
        self.counts_3R[:, rows_R] += torch.stack([(left_R > 0).long(), run_R, looked_R])
        # The one wait for the device in a pass.
        gains: list[int] = gain_R.tolist()
        return gains

    def _compact(self, grid: list[list[int]], lengths: list[int], length: int) -> list[list[int]]:
        """Drop complete rows and sources; sources keep equally many rows, some of them complete if need be."""
        open_rows = [sum(lengths[row] < length for row in members) for members in grid]
        each = max(open_rows)
        if each == len(grid[0]) and min(open_rows) > 0:
            return grid
        # The cache holds equally many rows a source: the incomplete ones first, complete ones fill up.
        sources = [source for source, count in enumerate(open_rows) if count]
        remaining = [sorted(grid[source], key=lambda row: lengths[row] == length)[:each] for source in sources]
        index = {row: number for number, row in enumerate(row for members in grid for row in members)}
        self._candidates.keep(sources, [index[row] for members in remaining for row in members])
        return remaining
