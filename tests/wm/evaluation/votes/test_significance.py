"""Wilcoxon's test against sums made by hand, against every assignment of signs, and against scipy."""

from itertools import product
from math import sqrt
from statistics import NormalDist

import numpy as np
import pytest
from scipy.stats import rankdata, wilcoxon

from wm.evaluation.votes.significance import compute_exact_p, compute_signed_rank

VOTES = np.array([2, 1, 1, -1, 1, 2, 0, 0, -1, 1, np.nan])
"""Differences of ±1 and ±2, two of 0, one pair without both."""


def test_ties_and_zeros_are_treated_as_written():
    test = compute_signed_rank(VOTES)
    assert (test.n, test.zeros) == (8, 2)
    # Ranks of |1|, six of them: 3.5; of |2|, two: 7.5. Negative: 2 x 3.5 = 7, positive 4 x 3.5 + 2 x 7.5 = 29.
    mean, variance = 8 * 9 / 4, 8 * 9 * 17 / 24 - ((6**3 - 6) + (2**3 - 2)) / 48
    assert test.p == pytest.approx(2 * NormalDist().cdf((7 - mean) / sqrt(variance)))
    assert not test.is_different and test.p == pytest.approx(0.1067, abs=1e-4)
    pratt = wilcoxon(VOTES[:-1], zero_method="pratt", method="asymptotic").pvalue
    assert test.p_pratt == pytest.approx(pratt) and test.p_pratt != pytest.approx(test.p)


@pytest.mark.parametrize("values", [VOTES[:6], [1, 2, -3, 4, 5.5, -6, 7], [1, 1, 1, 1], [-0.5, 0.25, 0.25, 2, 2, -2]])
def test_the_exact_p_counts_all_assignments_of_signs(values):
    values = np.asarray(values, dtype=float)
    ranks = rankdata(np.abs(values))
    statistic = ranks[values > 0].sum()
    sums = np.array([np.dot(ranks, signs) for signs in product((0, 1), repeat=len(values))])
    tail = min((sums <= statistic).mean(), (sums >= statistic).mean())
    assert compute_exact_p(values) == pytest.approx(min(1, 2 * tail), abs=1e-12)


def test_without_ties_the_exact_p_is_scipy_s():
    values = np.random.default_rng(3).normal(0.3, 1, 25)
    assert compute_exact_p(values) == pytest.approx(wilcoxon(values, method="exact").pvalue)
    # Seven hundred votes are no trouble: they have two different ranks.
    many = np.repeat([2.0, 1.0, -1.0, -2.0], [180, 200, 190, 130])
    assert compute_exact_p(many) == pytest.approx(compute_signed_rank(many).p, rel=0.02)


def test_nothing_to_test_is_no_difference():
    assert compute_signed_rank(np.zeros(5)).p == 1 and compute_signed_rank(np.zeros(5)).zeros == 5
    none = compute_signed_rank(np.array([np.nan]))
    assert (none.p, none.n, none.is_different) == (None, 0, False)
