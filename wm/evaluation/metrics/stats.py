"""Compute means with their spread, which is always given with the number of runs that it is of."""

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from wm.evaluation.rows import Figure

Floats = npt.NDArray[np.float64]

_LEVEL = 0.95
"""Share of samples whose interval covers the mean."""


def build_figure(
    by_run: Mapping[int, Sequence[float]],
    items: Floats | None = None,
    *,
    over: str = "sampling seeds",
    top: float | None = None,
) -> Figure:
    """Aggregate the values of runs to a mean with its spread.

    The standard deviation is over runs of different training seeds, or over the values of one run where there is only
    one. The interval is over the items (:func:`mean_interval`), the runs taken as they are.

    Args:
        by_run: Training seed → values of that run's sampling seeds (at least one, all runs alike).
        items: One value an item (mean over runs and seeds) for the interval; NaN marks an item left out.
        over: What the values of one run are.
        top: Max value of an item, the min being 0; None if there are no such bounds.

    Returns:
        The figure.
    """
    runs = {str(run): float(np.mean(values)) for run, values in sorted(by_run.items())}
    # Several runs are one value each: what a further seed of sampling would change is in their spread already.
    values = list(runs.values()) if len(runs) > 1 else [float(value) for value in next(iter(by_run.values()))]
    low, high = (None, None) if items is None else mean_interval(items, top=top)
    return Figure(
        mean=float(np.mean(list(runs.values()))),
        std=sample_std(values),
        n=len(values),
        over="training seeds" if len(runs) > 1 else over,
        ci_low=low,
        ci_high=high,
        runs=runs,
    )


def sample_std(values: Sequence[float]) -> float | None:
    """Compute the standard deviation with n − 1 in the denominator; None for fewer than two values."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def mean_interval(items: Floats, *, top: float | None = None) -> tuple[float | None, float | None]:
    """Bound the mean of the population that the items are a sample of.

    Student's interval; within bounds, where few items differ from a bound, Wilson's score interval for as many
    independent yes-or-no items as would vary alike. The percentile bootstrap, which resamples the items, covers too
    little of small sets (.88 for 8 items, .93 for 20) and has no width where all items are equal.

    Args:
        items: One value an item; NaN marks an item left out.
        top: Max value of an item, the min being 0; None if there are no such bounds.

    Returns:
        Lower and upper bound; ``(None, None)`` for fewer than two items.
    """
    values = items[~np.isnan(items)]
    count = len(values)
    # One value says nothing of how far the next would be.
    if count < 2:
        return None, None
    mean, variance = float(values.mean()), float(values.var(ddof=1)) / count
    quantile = student_quantile(_LEVEL, count - 1)
    on_bound = top is not None and mean in (0.0, top)
    # Student's interval is of no width where all items are equal, which on a bound happens by chance.
    if top is None or (variance == 0 and not on_bound):
        half = quantile * math.sqrt(variance)
        return mean - half, mean + half
    share = mean / top
    # Yes-or-no items vary most of all; so many of them vary as these items do.
    size = max(count, share * (1 - share) * top**2 / variance) if variance else count
    weight = 1 + quantile**2 / size
    centre = (share + quantile**2 / (2 * size)) / weight
    half = quantile / weight * math.sqrt(share * (1 - share) / size + (quantile / (2 * size)) ** 2)
    return max(0.0, centre - half) * top, min(1.0, centre + half) * top


def stratified_interval(groups: Sequence[Sequence[float]]) -> tuple[float | None, float | None]:
    """Bound the unweighted mean of the means of groups by a 95 % interval.

    The variance is the sum of the means' variances over the squared number of groups, the degrees of freedom are
    Welch's and Satterthwaite's (Cochran, Sampling Techniques, 5.4).

    Args:
        groups: Values of each group, such as those of a subset's items.

    Returns:
        Lower and upper bound; ``(None, None)`` if a group has fewer than two values, or none varies, which by chance
        happens on a bound.
    """
    if not groups or any(len(group) < 2 for group in groups):
        return None, None
    # Of the mean of each group.
    variances = [float(np.var(group, ddof=1)) / len(group) for group in groups]
    centre = float(np.mean([np.mean(group) for group in groups]))
    if not sum(variances):
        return None, None
    spread = sum(variance**2 / (len(group) - 1) for variance, group in zip(variances, groups, strict=True))
    quantile = student_quantile(_LEVEL, max(1, int(sum(variances) ** 2 / spread)))
    half = quantile * math.sqrt(sum(variances)) / len(groups)
    return centre - half, centre + half


def student_quantile(level: float, degrees: int) -> float:
    """Compute how many standard errors a two-sided interval of Student's t reaches to each side.

    Hill's algorithm 396 (Communications of the ACM 13, 1970): six digits.

    Args:
        level: Share of the distribution inside, 0 to 1.
        degrees: Degrees of freedom, at least 1.

    Returns:
        The quantile, such as 12.706 for .95 and 1.
    """
    tail = 1 - level
    if degrees == 1:
        return 1 / math.tan(tail * math.pi / 2)
    if degrees == 2:
        return math.sqrt(2 / (tail * (2 - tail)) - 2)
    a = 1 / (degrees - 0.5)
    b = 48 / a**2
    c = ((20700 * a / b - 98) * a - 16) * a + 96.36
    d = ((94.5 / (b + c) - 3) / b + 1) * math.sqrt(a * math.pi / 2) * degrees
    y = (d * tail) ** (2 / degrees)
    if y > 0.05 + a:
        # Expansion about the normal quantile.
        x = NormalDist().inv_cdf(tail / 2)
        y = x**2
        if degrees < 5:
            c += 0.3 * (degrees - 4.5) * (x + 0.6)
        c = (((0.05 * d * x - 5) * x - 7) * x - 2) * x + b + c
        y = (((((0.4 * y + 6.3) * y + 36) * y + 94.5) / c - y - 3) / b + 1) * x
        y = math.expm1(a * y**2)
    else:
        y = (1 / (((degrees + 6) / (degrees * y) - 0.089 * d - 0.822) * (degrees + 2) * 3) + 0.5 / (degrees + 4)) * y
        y = (y - 1) * (degrees + 1) / (degrees + 2) + 1 / ((d * tail) ** (2 / degrees))
    return math.sqrt(degrees * y)


def half_interval(values: Sequence[float]) -> float | None:
    """Compute half the width of Student's 95 % interval of the mean; None for fewer than two values."""
    std = sample_std(values)
    return None if std is None else student_quantile(_LEVEL, len(values) - 1) * std / math.sqrt(len(values))


def pearson(first: Floats, second: Floats) -> float | None:
    """Compute Pearson's r.

    Args:
        first: One side of the pairs.
        second: The other.

    Returns:
        r; None where it is not defined (fewer than two pairs, or one side constant).
    """
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(np.corrcoef(first, second)[0, 1])
