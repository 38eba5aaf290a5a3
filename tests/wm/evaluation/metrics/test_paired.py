"""Paired comparisons against scipy, hand-made cases and simulation."""

import numpy as np
import pytest
from scipy import stats

from wm.evaluation.metrics.paired import (
    NUM_RESAMPLES,
    bootstrap_intervals,
    compare_paired,
    holm_correct,
    signed_rank_p,
)


def skewed(count, seed):
    """Differences as those of scores: many zeros, a long tail. In 64ths, whose sums are exact in any order."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random(count) < 0.4, 0.0, np.round(64 * (rng.exponential(2.0, count) - 0.7)) / 64)


@pytest.mark.parametrize("count", [2, 9, 61])
def test_bca_is_scipys(count):
    first, second = skewed(count, 1) + 5, skewed(count, 2)
    expected = stats.bootstrap(
        (first, second), lambda a, b, axis: np.mean(a - b, axis=axis), paired=True, method="BCa",
        n_resamples=NUM_RESAMPLES, rng=np.random.default_rng(3),
    ).confidence_interval  # fmt: skip
    (low, high), (other_low, other_high) = bootstrap_intervals(
        [np.stack([first - second, 2 * (first - second)], axis=1)], seed=3
    )
    assert (low, high) == pytest.approx((expected.low, expected.high), rel=1e-9)
    # On the same resamples: twice the values, twice the bounds.
    assert (other_low, other_high) == pytest.approx((2 * low, 2 * high), rel=1e-9)


def test_a_mean_over_strata_is_scipys():
    strata = [skewed(count, count) for count in (5, 17, 40)]
    expected = stats.bootstrap(
        strata, lambda *parts, axis: np.mean([part.mean(axis=axis) for part in parts], axis=0), method="BCa",
        n_resamples=2000, rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    (bounds,) = bootstrap_intervals([values[:, None] for values in strata], num_resamples=2000)
    assert bounds == pytest.approx((expected.low, expected.high), rel=1e-9)


def test_intervals_cover_the_mean():
    """Of 300 made sets of 62 items, .9 to .98 of the intervals hold the true mean."""
    rng = np.random.default_rng(7)
    values = rng.exponential(1.0, (62, 300)) - 0.4
    covered = [low <= 0.6 <= high for low, high in bootstrap_intervals([values], num_resamples=1999)]
    # Resamples are shared by the columns, which are independent all the same.
    assert 0.9 <= np.mean(covered) <= 0.98


def test_memory_is_bounded_and_the_resamples_stay_the_same(monkeypatch):
    values = skewed(50, 4)[:, None]
    at_once = bootstrap_intervals([values])
    monkeypatch.setattr("wm.evaluation.metrics.paired._CELLS", 777)
    assert bootstrap_intervals([values])[0] == pytest.approx(at_once[0], rel=1e-12)


def test_differences_without_spread_or_of_one_item():
    (same,) = compare_paired([np.full(4, 0.25)])
    assert (same.mean, same.low, same.high, same.num_items) == (0.25, 0.25, 0.25, 4) and same.excludes_zero
    (none,) = compare_paired([np.zeros(4)])
    assert (none.low, none.high, none.p) == (0.0, 0.0, 1.0) and not none.excludes_zero
    (single,) = compare_paired([np.array([3.0])])
    assert (single.mean, single.low, single.high, single.p) == (3.0, None, None, None) and not single.excludes_zero
    assert compare_paired([]) == []


def test_signed_ranks_by_hand_and_by_scipy():
    # Ranks 1 to 5, that of 1 negative: sums 1 and 14. Of 32 signs 4 give a sum of 1 or less on one of the sides.
    assert signed_rank_p(np.array([-1.0, 2, 3, 4, 5])) == pytest.approx(4 / 32)
    # Zeros are dropped.
    assert signed_rank_p(np.array([0, -1.0, 2, 0, 3, 4, 5])) == pytest.approx(4 / 32)
    first, second = skewed(80, 5), skewed(80, 6)
    assert signed_rank_p(first - second) == pytest.approx(stats.wilcoxon(np.round(first - second, 10)).pvalue)
    # Equal but for rounding: ties, as exact arithmetic would have them.
    ties = np.array([0.1, 0.2 - 0.1, 0.3 - 0.2, -0.4])
    assert signed_rank_p(ties) == signed_rank_p(np.array([1.0, 1, 1, -4]))


def test_holm_by_hand():
    # .01 x 4, .02 x 3, .03 x 2, .04 x 1; the third and fourth not below those before them.
    assert holm_correct([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm_correct([0.5, 0.9]) == [1.0, 1.0] and holm_correct([]) == [] and holm_correct([0.2]) == [0.2]
