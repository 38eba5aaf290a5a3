"""Measure action sensitivity: is a forward model's target likelier under the true action than under another one?

The other action is one of another triplet of the same subset (shuffled), one that contradicts the true one (opposite),
or none (empty). The first two are negatives of the preference probe, whose likelihoods are used again. Not known here:
how images are sampled (:mod:`wm.evaluation.margins` does it for models without likelihoods).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from wm.dynamics.scoring import completion_logprobs
from wm.errors import InputError
from wm.evaluation.metrics.paired import bootstrap_intervals
from wm.evaluation.metrics.stats import Floats
from wm.evaluation.probe import COUNTERFACTUAL, TIE_NATS, Indices, ProbeScores
from wm.models import UnifiedVLM
from wm.models.prompts import Segment, flatten
from wm.sampling import ModelRunner

SHUFFLED, OPPOSITE, EMPTY = "shuffled", "opposite", "empty"
OTHER_ACTIONS = (SHUFFLED, OPPOSITE, EMPTY)
"""What the true action is compared with, the one that the verdict goes by first."""
LIKELIHOOD, VERIFIER = "likelihood", "verifier"
"""What a difference is of: the target's log-likelihood, or the verifier's of the action."""
NO_OTHER = {
    SHUFFLED: "no triplet has another action in its subset",
    OPPOSITE: "no triplet has one: make them with wm contradict, give them to wm evaluate as counterfactuals",
    EMPTY: "an evaluation of an earlier version did not score it",
}
"""Why a comparison is absent."""
MIN_NATS = 1e-3
"""A mean difference below so many nats an image token is none: over 1,024 tokens it makes the true target e times as
likely, a 7B model's nats of an image being some thousands."""
MIN_PAIRS = 10
"""Fewer pairs give no verdict: the bootstrap resamples too few differences."""

EMPTY_ARRAY = "empty_action"
"""Name of the log-likelihoods without an action in the file of a probe's unit."""
_NEGATIVES = {SHUFFLED: "random_action", OPPOSITE: COUNTERFACTUAL}

Verdict: TypeAlias = Literal["heeds", "ignores", "unclear"]


@dataclass(frozen=True)
class Gaps:
    """The true action's log-likelihood minus another action's, of P triplets that have another."""

    rows: Indices  # numbers of the triplets, ascending, (P,)
    sums: Floats  # nats, (P,)
    tokens: Floats  # tokens that each is a sum over, (P,)


@dataclass(frozen=True)
class GapSummary:
    """What the differences of some triplets say."""

    mean: float  # nats a token
    low: float | None  # 95 % interval of the mean by the bootstrap over triplets (BCa); None for a single one
    high: float | None
    share: float  # of the triplets, how many are likelier under the true action; ties count half
    pairs: int

    @property
    def verdict(self) -> Verdict:
        """Return whether the model heeds its action, if the other one was :data:`SHUFFLED`."""
        if self.low is None or self.pairs < MIN_PAIRS:
            return "unclear"
        return "ignores" if self.low <= 0 or self.mean < MIN_NATS else "heeds"

    def describe(self, unit: str) -> str:
        """Describe mean, interval, share and number in words.

        Args:
            unit: Of the mean, such as ``nats an image token``.
        """
        interval = "" if self.low is None else f", 95 % interval [{self.low:+.4f}, {self.high:+.4f}]"
        return f"{self.mean:+.4f} {unit}{interval}, likelier in {self.share:.0%} of {self.pairs:,} triplets"


def read_empty(arrays: Mapping[str, npt.NDArray[np.generic]]) -> Floats | None:
    """Return the log-likelihoods without an action of a probe's unit; None in a file of an earlier version."""
    return arrays[EMPTY_ARRAY].astype(np.float64) if EMPTY_ARRAY in arrays else None


def list_gaps(scores: ProbeScores, empty_B: Floats | None = None) -> dict[str, Gaps]:
    """Subtract the other actions' log-likelihoods from the true action's.

    Args:
        scores: Of a forward model's probe.
        empty_B: Log-likelihood of each target without an action, nats, (B,); None: not scored.

    Returns:
        Other action → differences; one that no triplet has is absent.
    """
    gaps = {}
    for other, kind in _NEGATIVES.items():
        if kind in scores.negatives:
            reference, negative = scores.pairs(kind)
            gaps[other] = Gaps(scores.negatives[kind].rows, reference.sums - negative.sums, reference.tokens)
    if empty_B is not None:
        reference = scores.reference
        gaps[EMPTY] = Gaps(np.arange(len(empty_B)), reference.sums - empty_B, reference.tokens)
    return gaps


def align_runs(runs: Sequence[Gaps], rows: Indices | None = None) -> list[Gaps]:
    """Take of each training run the triplets that all of them have, as an editor may withhold an image in one.

    Args:
        runs: Of each training run.
        rows: Numbers of the triplets that count; None: all.
    """
    common: Indices = runs[0].rows if rows is None else np.intersect1d(runs[0].rows, rows)
    for gaps in runs[1:]:
        common = np.intersect1d(common, gaps.rows)
    # Rows ascend in each, so that the same ones come in the same order.
    masks = [np.isin(gaps.rows, common) for gaps in runs]
    return [Gaps(common, gaps.sums[mask_P], gaps.tokens[mask_P]) for gaps, mask_P in zip(runs, masks, strict=True)]


def summarise_gaps(runs: Sequence[Gaps], rows: Indices | None = None) -> GapSummary:
    """Summarise differences; several training runs count as their mean, triplet by triplet.

    Args:
        runs: Of each training run; only triplets count that all of them have.
        rows: Numbers of the triplets that count; None: all.

    Returns:
        Mean, interval and share of the triplets, at least one.
    """
    aligned = align_runs(runs, rows)
    sums_RP = np.stack([gaps.sums for gaps in aligned])
    # Each by its own tokens: verifiers of several runs may cut an action otherwise.
    gaps_P: Floats = np.mean(sums_RP / np.stack([gaps.tokens for gaps in aligned]), axis=0)
    low, high = bootstrap_intervals([gaps_P[:, None]])[0]
    # Ties by the sums, as the probe counts them: rounding is of sums.
    wins_RP = np.where(np.abs(sums_RP) <= TIE_NATS, 0.5, sums_RP > 0)
    return GapSummary(float(gaps_P.mean()), low, high, float(wins_RP.mean()), len(gaps_P))


def summarise_all(gaps: Mapping[str, Gaps]) -> dict[str, GapSummary]:
    """Summarise one model's differences: other action → summary."""
    return {other: summarise_gaps([of_other]) for other, of_other in gaps.items()}


def score_without_action(
    fdm: UnifiedVLM,
    source_BN: torch.Tensor,
    actions: Sequence[str],
    target_BN: torch.Tensor,
    *,
    batch_size: int | None = None,
    runner: ModelRunner | None = None,
) -> Floats:
    """Score each target under a prompt without words, see :func:`empty_prefix`.

    Args:
        fdm: The forward model.
        source_BN: Codes of the sources.
        actions: The true actions, which say how long the prompt of a family with padding is.
        target_BN: Codes of the targets.
        batch_size: Rows of a pass; None: as the memory allows.
        runner: That of ``fdm`` as it is now; built here without it.

    Returns:
        Log-likelihoods in nats, (B,).
    """
    segments_B = []
    for source, action, target in zip(source_BN.tolist(), actions, target_BN.tolist(), strict=True):
        segments = fdm.layout("fdm", source=source, action=action, target=target)
        # Row ends between the codes of some families are no part of what is scored, but stay where they are.
        begin = next(index for index, segment in enumerate(segments) if segment.is_completion)
        prefix = empty_prefix(fdm, source, flatten(segments[:begin]))
        segments_B.append([Segment(tuple(prefix), False, False), *segments[begin:]])
    with torch.inference_mode():
        scored = completion_logprobs(fdm, segments_B, rows=fdm.image_rows, batch_size=batch_size, runner=runner)
    return np.array([logprob for logprob, _ in scored])


def empty_prefix(fdm: UnifiedVLM, source: Sequence[int], prefix: Sequence[int]) -> list[int]:
    """Build a forward prompt without words.

    What the family itself puts in place of a text where guidance leaves it out (nothing, a word, padding); where
    actions are padded to a fixed length, never less than that padding, so that the target stays where it was trained;
    of a family without guidance the layout of no words.

    Args:
        fdm: The forward model.
        source: Codebook ids of the source image.
        prefix: Vocabulary ids of the prompt with the true action.

    Returns:
        Vocabulary ids of everything before the target's first code.
    """
    source_ids = fdm.image_rows[torch.tensor(source, device=fdm.image_rows.device)].tolist()
    wordless = flatten(fdm.layout_ids("fdm", source=source_ids, action=()))
    try:
        fdm.check_guidance()
    except InputError:
        return wordless
    unconditional, _ = fdm.unconditional_prefixes(prefix)
    return unconditional if len(unconditional) >= len(wordless) else wordless
