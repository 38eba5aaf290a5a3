"""Intervals by simulation: of many made sets, the share whose 95 % interval holds the true value is .93 to .97."""

import math

import numpy as np
import pytest

from wm.evaluation.bank import Bank
from wm.evaluation.metrics.paired import bootstrap_intervals, signed_rank_p
from wm.evaluation.metrics.stats import build_figure, half_interval, mean_interval, student_quantile
from wm.evaluation.probe import Preference
from wm.evaluation.report.differences import compare_figures
from wm.evaluation.tables import Collected, build_tables, difference_rows
from wm.records import row_seeds
from wm.sampling import uniform_noise

SETS = 1500


def normal(rng, shape):
    return rng.normal(5, 2, shape), 5.0


def skewed(rng, shape):
    return np.exp(rng.normal(0, 0.5, shape)), math.exp(0.125)


def half_right(rng, shape):
    return (rng.random(shape) < 0.5).astype(float), 0.5


def rarely_right(rng, shape):
    return (rng.random(shape) < 0.1).astype(float), 0.1


def means_of_eight(rng, shape):
    """Shares of 8 candidates, some items hard and others easy."""
    return rng.binomial(8, rng.beta(0.4, 1.2, shape)) / 8, 0.25


def scores(rng, shape):
    """0 to 10, most of them at a bound."""
    return 10.0 * np.clip(rng.normal(1.1, 0.8, shape), 0, 1), None


@pytest.mark.parametrize(
    ("world", "count", "top"),
    [(normal, 8, None), (normal, 62, None), (skewed, 62, None), (skewed, 200, None), (half_right, 62, 1.0),
     (half_right, 200, 1.0), (rarely_right, 62, 1.0), (rarely_right, 200, 1.0),
     (means_of_eight, 20, 1.0), (means_of_eight, 62, 1.0), (means_of_eight, 200, 1.0), (scores, 62, 10.0)],
)  # fmt: skip
def test_intervals_cover_the_mean(world, count, top):
    rng = np.random.default_rng(3)
    items, truth = world(rng, (SETS, count))
    truth = world(rng, 400_000)[0].mean() if truth is None else truth
    covered = 0
    for row in items:
        figure = build_figure({0: [float(row.mean())]}, row, top=top)
        covered += figure["ci_low"] <= truth <= figure["ci_high"]
    assert 0.93 <= covered / SETS <= 0.97


def test_a_share_of_none_or_all_has_a_width():
    """Wilson's interval; of a figure without bounds all values may truly be equal."""
    count, z = 61, student_quantile(0.95, 60)
    assert mean_interval(np.zeros(count), top=1.0) == pytest.approx((0.0, z**2 / (count + z**2)))
    assert mean_interval(np.full(count, 10.0), top=10.0) == pytest.approx((10 * count / (count + z**2), 10.0))
    assert mean_interval(np.full(count, 0.25)) == (0.25, 0.25) == mean_interval(np.full(count, 0.25), top=1.0)
    assert mean_interval(np.array([1.0])) == (None, None) == mean_interval(np.array([np.nan, 2.0]))
    share = np.array([1.0] * 20 + [0.0] * 41)  # Wilson, 1927, for 20 of 61
    centre = (20 + z**2 / 2) / (count + z**2)
    half = z * math.sqrt(20 * 41 / count + z**2 / 4) / (count + z**2)
    assert mean_interval(share, top=1.0) == (pytest.approx(centre - half), pytest.approx(centre + half))


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 7, 30, 199])
def test_student_quantiles_hold_their_share(degrees):
    """The density integrated between them; printed tables: 12.706, 4.303, 3.182, 2.776 for .95."""
    scale = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(degrees * math.pi)
    for level in (0.5, 0.9, 0.95, 0.99):
        x = np.linspace(0, student_quantile(level, degrees), 200_001)
        inside = 2 * np.trapezoid(scale * (1 + x**2 / degrees) ** (-(degrees + 1) / 2), x)
        assert inside == pytest.approx(level, abs=1e-5)
    tables = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 30: 2.042}
    assert student_quantile(0.95, degrees) == pytest.approx(
        tables.get(degrees, student_quantile(0.95, degrees)), abs=6e-4
    )


def collected_of(rng, items, runs, gain, *, seed=0):
    """Two forward models on the same items, by the noise of their seeds: model B is right where the noise is below the
    item's chance plus ``gain``."""
    chance_B = rng.beta(2, 2, items) * 0.8
    names = [f"t{row}" for row in range(items)]
    collected = Collected(subsets=["x"] * items, ks=[1])
    for run in range(runs):
        noise_BK = np.stack([uniform_noise(one, run, 2) for one in row_seeds(seed, names)])
        for label, extra in (("A", 0.0), ("B", gain)):
            right_BK = (noise_BK < chance_B[:, None] + extra).astype(float)
            metrics = {"right": right_BK, "l1": 1 - right_BK, "unchanged_tokens": right_BK}
            collected.banks[label, run, 0] = Bank(np.zeros((items, 2, 1), np.int64), metrics, None)
    return collected


def test_paired_differences_cover_and_are_narrow(monkeypatch):
    # Student's intervals: the bootstrap and the test beside them are not asked here.
    monkeypatch.setattr("wm.evaluation.metrics.paired.NUM_RESAMPLES", 2)
    monkeypatch.setattr("wm.evaluation.metrics.paired.signed_rank_p", lambda _: 1.0)
    rng, gain, covered, widths = np.random.default_rng(4), 0.1, 0, []
    for number in range(500):
        (row,) = [
            row for row in difference_rows(collected_of(rng, 62, 1, gain, seed=number))
            if row["metric"] == "right" and row["first"] == ["A", "idm", 1]
        ]  # fmt: skip
        covered += row["ci_low"] <= -gain <= row["ci_high"]
        widths.append(row["ci_high"] - row["ci_low"])
    assert 0.93 <= covered / 500 <= 0.97
    tables = build_tables(collected_of(rng, 62, 1, gain))
    alone = {row["label"]: row["metrics"]["right"] for row in tables["fdm"]}
    apart = compare_figures(alone["A"], alone["B"]).spread
    assert np.mean(widths) / 2 < 0.75 * apart  # shared noise cancels


def test_differences_name_what_they_are_of():
    rng = np.random.default_rng(5)
    collected = collected_of(rng, 30, 3, 0.1)
    collected.idm["IDM", 0] = ({"rouge1": 1.0}, {"state_equivalent": np.ones(30)})
    collected.probes["idm", "IDM", 0] = {"copy": Preference(1.0, 1.0, None, 30, 0)}
    rows = {(row["metric"], tuple(row["first"]), tuple(row["second"])): row for row in difference_rows(collected)}
    row = rows["right", ("A", "idm", 1), ("B", "idm", 1)]
    means = [[collected.banks[label, run, 0].metrics["right"].mean() for run in range(3)] for label in "AB"]
    assert row["mean"] == pytest.approx(np.mean(means[0]) - np.mean(means[1]))
    assert (row["items"], row["runs"]) == (30, [[0, 1, 2], [0, 1, 2]])
    by_run = [first.mean() - second.mean() for first, second in zip(*_runs_of(collected), strict=True)]
    assert row["std"] == pytest.approx(np.std(by_run, ddof=1))
    gaps = np.mean([first - second for first, second in zip(*_runs_of(collected), strict=True)], axis=0)
    (bounds,) = bootstrap_intervals([gaps[:, None]])
    assert (row["bootstrap_low"], row["bootstrap_high"]) == pytest.approx(bounds)
    assert row["p"] == signed_rank_p(gaps) and row["bootstrap_low"] < row["mean"] < row["bootstrap_high"]
    asymmetry = rows["right", ("A", "idm", 1), ("IDM", "propose", 1)]
    assert asymmetry["std"] is None
    assert asymmetry["mean"] == pytest.approx(np.mean(means[0]) - 1) and asymmetry["runs"] == [[0, 1, 2], [0]]
    assert ("unchanged_tokens", ("A", "idm", 1), ("B", "idm", 1)) not in rows


def _runs_of(collected):
    """Each run's mean over candidates, (B,): of A, and of B."""
    return [[collected.banks[label, run, 0].metrics["right"].mean(axis=1) for run in range(3)] for label in "AB"]


def test_half_intervals_over_seeds_cover():
    rng = np.random.default_rng(6)
    for seeds in (2, 3, 5):
        gaps = rng.normal(0.3, 0.1, (3000, seeds))
        inside = [abs(float(row.mean()) - 0.3) <= half_interval(row.tolist()) for row in gaps]
        assert 0.93 <= np.mean(inside) <= 0.97
    assert half_interval([1.0]) is None
