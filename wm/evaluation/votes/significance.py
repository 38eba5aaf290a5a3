"""Test whether votes prefer one system to another: Wilcoxon's signed-rank test in the readings that a table names."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from wm.evaluation.metrics.stats import Floats

LEVEL: Final = 0.05
"""p below which table 5 has its mark."""
_DIGITS: Final = 10
"""After the point. Differences that are equal but for rounding are ties."""
_MAX_POINTS: Final = 4_000_000
"""Points of an exact distribution; of a larger one the normal approximation differs in no digit that is shown."""


@dataclass(frozen=True)
class SignedRank:
    """What the test says of paired differences.

    Attributes:
        p: Two-sided, zero differences dropped, by the normal approximation with its correction for ties; 1 where all
            are 0; None without a difference.
        p_exact: The same by the exact distribution of the ranks that occurred; None where it would be too large.
        p_pratt: By Pratt's treatment of zeros, which are ranked with the others, and whose ranks are then dropped.
        n: Differences other than 0.
        zeros: Differences of 0.
    """

    p: float | None
    p_exact: float | None
    p_pratt: float | None
    n: int
    zeros: int

    @property
    def is_different(self) -> bool:
        """Return whether the mark of table 5 is set."""
        return self.p is not None and self.p < LEVEL


def compute_signed_rank(differences: Floats) -> SignedRank:
    """Compute Wilcoxon's signed-rank test in the paper's reading, as far as it states one, and beside it in two others.

    The paper says "Wilcoxon signed-rank, p = .05" (table 5). Zeros dropped is Wilcoxon's own treatment (Biometrics
    Bulletin 1, 1945), Pratt's is that of Journal of the American Statistical Association 54, 1959.

    Args:
        differences: First minus second of each pair; NaN marks a pair without both.

    Returns:
        The test.
    """
    from scipy.stats import wilcoxon

    values = np.round(differences[~np.isnan(differences)], _DIGITS)
    nonzero = values[values != 0]
    zeros = len(values) - len(nonzero)
    if not len(values):
        return SignedRank(None, None, None, 0, 0)
    # Nothing speaks against their being equal.
    if not len(nonzero):
        return SignedRank(1.0, 1.0, 1.0, 0, zeros)
    p = float(wilcoxon(nonzero, zero_method="wilcox", correction=False, method="asymptotic").pvalue)
    pratt = float(wilcoxon(values, zero_method="pratt", correction=False, method="asymptotic").pvalue)
    return SignedRank(p, compute_exact_p(nonzero), pratt, len(nonzero), zeros)


def compute_exact_p(nonzero: Floats) -> float | None:
    """Compute the two-sided p of the signed-rank test given the ranks that occurred, ties among them.

    Under the hypothesis every sign is + or - by a fair coin (Hollander, Wolfe and Chicken, Nonparametric Statistical
    Methods, 3.1): a group of n equal ranks r adds r times a binomial number to the sum of positive ranks.

    Args:
        nonzero: Differences other than 0.

    Returns:
        p; None where the distribution has too many points.
    """
    from scipy.stats import binom, rankdata

    # Twice the ranks, which ties make halves of.
    # Integers: sums that are equal but for rounding would be two points.
    ranks = np.round(2 * rankdata(np.abs(nonzero))).astype(np.int64)
    statistic = int(ranks[nonzero > 0].sum())
    points: npt.NDArray[np.int64] = np.zeros(1, dtype=np.int64)
    weights: Floats = np.ones(1)
    for rank, count in zip(*np.unique(ranks, return_counts=True), strict=True):
        if len(points) * (count + 1) > _MAX_POINTS:
            return None
        steps = np.arange(count + 1)
        sums = (points[:, None] + rank * steps).ravel()
        products = np.outer(weights, binom.pmf(steps, count, 0.5)).ravel()
        # Sums that several ways lead to are one point.
        points, indices = np.unique(sums, return_inverse=True)
        weights = np.bincount(indices, products).astype(np.float64)
    lower = float(weights[points <= statistic].sum())
    upper = float(weights[points >= statistic].sum())
    return min(1.0, 2 * min(lower, upper))
