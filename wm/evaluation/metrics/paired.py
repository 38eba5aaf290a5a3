"""Compare two systems item by item: bootstrap of mean differences, Wilcoxon's signed-rank test, Holm's correction.

Whatever makes an item hard for both systems cancels in its difference. Not known here: what the values measure.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from wm.evaluation.metrics.stats import Floats

LEVEL = 0.95
"""Share of samples whose interval covers the mean."""
NUM_RESAMPLES = 9999
_CELLS = 1 << 16
"""Numbers that are sampled at a time: few enough for a processor's cache, as reading them is most of the time."""
_GATHERED_COLUMNS = 2
"""Up to so many columns reading sampled values is quicker than counting how often each item was sampled."""
_DIGITS = 10
"""After the point. Differences that are equal but for rounding are ties of the test."""


@dataclass(frozen=True)
class PairedResult:
    """What the differences of paired items say about their mean."""

    mean: float
    low: float | None
    """Bounds of the bootstrap's interval; None for a single item."""
    high: float | None
    p: float | None
    """Of Wilcoxon's test; None for a single item."""
    num_items: int

    @property
    def excludes_zero(self) -> bool:
        """Return whether all of the interval is on one side of 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def compare_paired(differences: Sequence[Floats], *, seed: int = 0) -> list[PairedResult]:
    """Summarise differences of the same items, of several metrics or pairs at once.

    Args:
        differences: First minus second of each item, (B,) each, all of one length.
        seed: Of the bootstrap.

    Returns:
        One result each: mean, BCa interval and p.
    """
    if not differences:
        return []
    # Side by side, so that all share their resamples.
    values_BM = np.stack(differences, axis=1)
    intervals = bootstrap_intervals([values_BM], seed=seed, num_resamples=NUM_RESAMPLES)
    return [
        PairedResult(float(column.mean()), low, high, signed_rank_p(column), len(column))
        for column, (low, high) in zip(values_BM.T, intervals, strict=True)
    ]


def bootstrap_intervals(
    strata: Sequence[Floats], *, seed: int = 0, num_resamples: int = NUM_RESAMPLES
) -> list[tuple[float | None, float | None]]:
    """Bound means of paired differences by the bootstrap over items, bias-corrected and accelerated (BCa).

    Efron, Better bootstrap confidence intervals, Journal of the American Statistical Association 82, 1987. Of several
    strata the mean of their means is bounded, as the paper's average over subsets is; items are resampled within each.

    Args:
        strata: (B_s, M) each: items of a stratum, and M quantities that are bounded each by itself on the same
            resampled items.
        seed: Of the resampling; the same seed and sizes give the same resamples.
        num_resamples: How many.

    Returns:
        Lower and upper bound of each quantity; ``(None, None)`` where a stratum has fewer than two items.
    """
    num_columns = strata[0].shape[1]
    if any(len(values_BM) < 2 for values_BM in strata):
        return [(None, None)] * num_columns
    rng = np.random.default_rng(seed)
    resampled_RM = np.mean([_resample_means(values_BM, rng, num_resamples) for values_BM in strata], axis=0)
    means_M = np.mean([values_BM.mean(axis=0) for values_BM in strata], axis=0)
    return [
        _bca_bounds(means_M[column], resampled_RM[:, column], [values_BM[:, column] for values_BM in strata])
        for column in range(num_columns)
    ]


def _resample_means(values_BM: Floats, rng: np.random.Generator, num_resamples: int) -> Floats:
    """Compute the mean of each column over resampled items: (R, M)."""
    count, num_columns = values_BM.shape
    rows_at_once = max(1, _CELLS // count)
    columns = [np.ascontiguousarray(column_B) for column_B in values_BM.T]
    means_RM = np.empty((num_resamples, num_columns))
    sampled_RB = np.empty((rows_at_once, count))
    for begin in range(0, num_resamples, rows_at_once):
        rows = min(rows_at_once, num_resamples - begin)
        index_RB = rng.integers(0, count, (rows, count))
        part = means_RM[begin : begin + rows]
        if num_columns <= _GATHERED_COLUMNS:
            for number, column_B in enumerate(columns):
                # No index is outside, but without checks numpy reads straight into the block, and frees other threads.
                np.take(column_B, index_RB, out=sampled_RB[:rows], mode="clip")
                part[:, number] = sampled_RB[:rows].mean(axis=1)
            continue
        # How often each item was sampled: then the means of all columns are one matrix product.
        flat = (index_RB + count * np.arange(rows)[:, None]).ravel()
        times_RB = np.bincount(flat, minlength=rows * count).reshape(rows, count)
        part[:] = times_RB.astype(np.float64) @ values_BM / count
    return means_RM


def _bca_bounds(mean: float, resampled_R: Floats, strata: Sequence[Floats]) -> tuple[float, float]:
    """Compute BCa bounds of a mean of strata means from its resamples."""
    # All items of a stratum alike: no resample differs.
    if all(np.ptp(values) == 0 for values in strata):
        return float(mean), float(mean)
    normal = NormalDist()
    # 1. Bias: how many resamples are below the mean; half of those that are equal, whose sums may be rounded otherwise.
    distances_R = np.where(np.isclose(resampled_R, mean, rtol=1e-12, atol=1e-15), 0.0, resampled_R - mean)
    share = float(((distances_R < 0).mean() + (distances_R <= 0).mean()) / 2)
    bias = normal.inv_cdf(min(max(share, 1 / len(resampled_R)), 1 - 1 / len(resampled_R)))
    # 2. Acceleration, by the jackknife: leaving an item out moves its stratum's mean by its distance over B - 1.
    distances = [values - values.mean() for values in strata]
    cubes = sum(float((distance**3).sum()) / len(distance) ** 3 for distance in distances)
    squares = sum(float((distance**2).sum()) / len(distance) ** 2 for distance in distances)
    acceleration = cubes / squares**1.5 / 6
    # 3. The quantiles that bias and acceleration move the usual ones to.
    quantiles = []
    for tail in ((1 - LEVEL) / 2, (1 + LEVEL) / 2):
        shifted = bias + normal.inv_cdf(tail)
        quantiles.append(normal.cdf(bias + shifted / (1 - acceleration * shifted)))
    low, high = np.quantile(resampled_R, quantiles)
    return float(low), float(high)


def signed_rank_p(differences: Floats) -> float | None:
    """Compute the two-sided p of Wilcoxon's signed-rank test.

    Zero differences are dropped. Exact for few items without ties, else by the normal distribution (as
    ``scipy.stats.wilcoxon`` chooses).

    Args:
        differences: First minus second of each item.

    Returns:
        p; 1 where all differences are 0; None for fewer than two items.
    """
    if len(differences) < 2:
        return None
    from scipy.stats import wilcoxon

    rounded = np.round(differences, _DIGITS)
    nonzero = rounded[rounded != 0]
    # Nothing speaks against their being equal.
    if not len(nonzero):
        return 1.0
    return float(wilcoxon(nonzero).pvalue)


def signed_rank_sign(differences: Floats) -> int:
    """Compute whom the ranks of :func:`signed_rank_p` favour, which a few large differences may hide from the mean.

    Args:
        differences: First minus second of each item.

    Returns:
        1 where the ranks of positive differences sum to more than those of negative ones, -1 to less, else 0.
    """
    from scipy.stats import rankdata

    rounded = np.round(differences, _DIGITS)
    nonzero = rounded[rounded != 0]
    return int(np.sign(np.sum(np.sign(nonzero) * rankdata(np.abs(nonzero))))) if len(nonzero) else 0


def holm_correct(p_values: Sequence[float]) -> list[float]:
    """Correct p values for being several: Holm, Scandinavian Journal of Statistics 6, 1979.

    Args:
        p_values: Of all comparisons that are made together.

    Returns:
        Corrected ones in the same order. Where those below .05 are called different, all of them are right in 95 % of
        such families.
    """
    corrected: npt.NDArray[np.float64] = np.ones(len(p_values))
    largest = 0.0
    # From the smallest: each is compared with what the rest would allow, and none may come below an earlier one.
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - rank)))
        corrected[index] = largest
    return [float(value) for value in corrected]
