"""Compute mean scores by subset and system, and bound them by resampling items and people both."""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np

from wm.evaluation.metrics.paired import LEVEL
from wm.evaluation.metrics.stats import Floats, student_quantile
from wm.evaluation.votes.arrays import VoteArray, mean_without_nan

ALL: Final = "All"
"""The unweighted mean of the subsets' means, as a row of table 5; absent where a subset has no vote."""
NUM_RESAMPLES: Final = 9999
_RESAMPLES_AT_ONCE: Final = 500


@dataclass(frozen=True)
class Means:
    """Means of each row and system, rows being the subsets and then :data:`ALL`.

    Attributes:
        rows: Names.
        means: Mean score, (G, S); NaN where there is no vote.
        low: Lower end of the 95 % interval over items and people; NaN where it is not defined.
        high: Upper end.
        counts: Votes that the mean is over.
    """

    rows: tuple[str, ...]
    means: Floats
    low: Floats
    high: Floats
    counts: Floats


def compute_means(votes: VoteArray, scores_PIS: Floats, *, seed: int = 0, num_resamples: int = NUM_RESAMPLES) -> Means:
    """Compute means over votes with intervals by the pigeonhole bootstrap.

    Participants are resampled, and items within each subset, independently of each other; a vote counts as often as its
    participant times its item (Owen, The pigeonhole bootstrap, Annals of Applied Statistics 1(2), 2007). So an interval
    says how the mean would vary with other people and with other items. Where neither differ it is too wide, as chance
    of single votes then counts three times.

    Args:
        votes: Gives items, subsets and participants.
        scores_PIS: Scores, or differences of scores, NaN where there are none.
        seed: Of the resampling; equal shapes give equal resamples.
        num_resamples: How many.

    Returns:
        Means with expanded percentile intervals; without an interval where fewer than two participants, or fewer than
        two items of a subset that the mean is over, have a value.
    """
    groups = [votes.items_of(name) for name in votes.subsets]
    flat = [scores_PIS[:, group].reshape(-1, scores_PIS.shape[2]) for group in groups]
    means_GS = np.stack([mean_without_nan(values) for values in flat])
    counts_GS = np.stack([(~np.isnan(values)).sum(axis=0) for values in flat]).astype(np.float64)
    resampled_RGS = _resample(scores_PIS, groups, seed, num_resamples)
    # The row of all subsets: NaN wherever a subset has nothing, as a mean over fewer is another figure.
    means_GS = np.concatenate([means_GS, means_GS.mean(axis=0, keepdims=True)])
    counts_GS = np.concatenate([counts_GS, counts_GS.sum(axis=0, keepdims=True)])
    low_GS, high_GS = _bound(resampled_RGS, _find_tails(scores_PIS, groups))
    low_GS[np.isnan(means_GS)] = high_GS[np.isnan(means_GS)] = np.nan
    return Means((*votes.subsets, ALL), means_GS, low_GS, high_GS, counts_GS)


def _resample(scores_PIS: Floats, groups: list[list[int]], seed: int, num_resamples: int) -> Floats:
    """Compute the means of all rows in every resample: (R, G + 1, S)."""
    rng = np.random.default_rng(seed)
    num_people, _, num_systems = scores_PIS.shape
    sums_PIS, ones_PIS = np.nan_to_num(scores_PIS), (~np.isnan(scores_PIS)).astype(np.float64)
    parts = []
    for begin in range(0, num_resamples, _RESAMPLES_AT_ONCE):
        size = min(_RESAMPLES_AT_ONCE, num_resamples - begin)
        # The same people in all subsets: who is severe in one is severe in the others.
        people_RP = _draw(rng, num_people, size)
        rows = []
        for group in groups:
            items_RI = _draw(rng, len(group), size)
            totals_RS = [
                np.stack(
                    [
                        ((people_RP @ values_PIS[:, group, system]) * items_RI).sum(axis=1)
                        for system in range(num_systems)
                    ],
                    axis=1,
                )
                for values_PIS in (sums_PIS, ones_PIS)
            ]
            # A resample may hold no vote at all where few were given.
            empty_RS = np.full(totals_RS[0].shape, np.nan)
            rows.append(np.divide(totals_RS[0], totals_RS[1], out=empty_RS, where=totals_RS[1] > 0))
        parts.append(np.stack([*rows, np.mean(rows, axis=0)], axis=1))
    resampled: Floats = np.concatenate(parts)
    return resampled


def _draw(rng: np.random.Generator, count: int, size: int) -> Floats:
    """Sample how often each of ``count`` units occurs in a resample with replacement: (R, count)."""
    return rng.multinomial(count, np.full(count, 1 / count), size=size).astype(np.float64)


def _find_tails(scores_PIS: Floats, groups: list[list[int]]) -> Floats:
    """Find the tail of each row and system by the units that have a value: others say nothing of how units differ."""
    is_given_PIS = ~np.isnan(scores_PIS)
    items_GS = np.stack([is_given_PIS[:, group].any(axis=0).sum(axis=0) for group in groups])
    people_GS = np.stack([is_given_PIS[:, group].any(axis=1).sum(axis=0) for group in groups])
    sizes_GS = np.minimum(items_GS, people_GS)
    # Degrees of freedom: one item, or one person, says nothing of how far the next would be.
    degrees_GS = sizes_GS - 1
    all_S = np.minimum(items_GS.sum(axis=0) - len(groups), people_GS.min(axis=0) - 1)
    sizes_GS, degrees_GS = np.vstack([sizes_GS, sizes_GS.min(axis=0)]), np.vstack([degrees_GS, all_S])
    tails_GS = [list(map(_find_tail, *pair)) for pair in zip(sizes_GS.tolist(), degrees_GS.tolist(), strict=True)]
    return np.array(tails_GS)


def _find_tail(size: int, degrees: int) -> float:
    """Find the share of resamples beyond each end of an expanded percentile interval.

    Resamples of few units vary less than samples do, and ends of Student's t are farther out than those of the normal
    distribution (Hesterberg, What teachers should know about the bootstrap, The American Statistician 69(4), 2015).

    Args:
        size: Units that are resampled: items of a subset, or people where there are fewer.
        degrees: Degrees of freedom.

    Returns:
        The share; NaN where there are too few units for an interval.
    """
    if min(size - 1, degrees) < 1:
        return np.nan
    return NormalDist().cdf(-math.sqrt(size / (size - 1)) * student_quantile(LEVEL, degrees))


def _bound(resampled_RGS: Floats, tails_GS: Floats) -> tuple[Floats, Floats]:
    """Compute percentiles over the resamples that have a mean; NaN where too few have one, or there is no tail."""
    low_GS = np.full(resampled_RGS.shape[1:], np.nan)
    high_GS = low_GS.copy()
    for row, system in np.ndindex(low_GS.shape):
        column_R = resampled_RGS[:, row, system]
        values = column_R[~np.isnan(column_R)]
        # Where most resamples are empty, the rest is no sample of them.
        if not np.isnan(tails_GS[row, system]) and len(values) > len(column_R) / 2:
            tail = tails_GS[row, system]
            low_GS[row, system], high_GS[row, system] = np.quantile(values, [tail, 1 - tail])
    return low_GS, high_GS
