"""Agreement against its definition, and against Krippendorff's own examples."""

from itertools import combinations

import numpy as np
import pytest

from tests.helpers.study_votes import SYSTEMS, items_of, make_study, vote_all, vote_on
from wm.evaluation.votes.agreement import compute_agreement, compute_alpha
from wm.evaluation.votes.arrays import build_array

N = np.nan
EXAMPLE = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, N, N, N],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, N, 3],
        [N, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, N],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, N],
    ]
)
"""Krippendorff, "Computing Krippendorff's Alpha-Reliability", 2011, section E: four observers, twelve units."""


def alpha_by_definition(values_PU: np.ndarray, level: str) -> float:
    """1 - observed over expected disagreement, summed over all pairs of values one by one."""
    units = [[value for value in unit if not np.isnan(value)] for unit in values_PU.T]
    units = [unit for unit in units if len(unit) > 1]
    pooled = [value for unit in units for value in unit]

    def distance(first: float, second: float) -> float:
        if level == "nominal":
            return float(first != second)
        if level == "interval":
            return (first - second) ** 2
        low, high = min(first, second), max(first, second)
        between = sum(low <= value <= high for value in pooled)
        return (between - (pooled.count(low) + pooled.count(high)) / 2) ** 2 if low != high else 0.0

    observed = sum(2 * sum(distance(a, b) for a, b in combinations(unit, 2)) / (len(unit) - 1) for unit in units) / len(
        pooled
    )
    expected = 2 * sum(distance(a, b) for a, b in combinations(pooled, 2)) / (len(pooled) * (len(pooled) - 1))
    return 1 - observed / expected


@pytest.mark.parametrize(("level", "published"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_of_krippendorff_s_example(level, published):
    alpha = compute_alpha(EXAMPLE, level).value
    assert alpha == pytest.approx(published, abs=5e-4)
    assert alpha == pytest.approx(alpha_by_definition(EXAMPLE, level), abs=1e-12)


def test_agreement_of_votes_is_that_of_all_pairs():
    study = make_study(per_subset=2)
    votes = vote_all(study, 5, (-1.0, 0.0, 0.5, 2.0))[:-3]
    array = build_array(votes, SYSTEMS, items_of(study))
    figures = compute_agreement(array)
    assert figures.best_nominal.value == pytest.approx(alpha_by_definition(array.best, "nominal"))
    scores_PU = array.scores.reshape(5, -1)
    assert figures.score_ordinal.value == pytest.approx(alpha_by_definition(scores_PU, "ordinal"))
    assert figures.score_interval.value == pytest.approx(alpha_by_definition(scores_PU, "interval"))
    pairs = [(a.best, b.best) for a, b in combinations(votes, 2) if a.item_id == b.item_id]
    assert figures.num_pairs == len(pairs) and figures.chance == 0.25
    assert figures.same_best == pytest.approx(sum(a == b for a, b in pairs) / len(pairs))


def test_alpha_is_absent_where_it_is_not_defined(monkeypatch):
    study = make_study()
    alone = build_array(vote_all(study, 1, (0, 0, 0, 0)), SYSTEMS, items_of(study))
    figures = compute_agreement(alone)
    assert figures.best_nominal.value is None and figures.best_nominal.absent == "no two participants voted on one item"
    assert figures.same_best is None and figures.num_pairs == 0
    alike = [vote_on(study, item, number, "GoT", "SE") for item in study.items for number in (0, 1)]
    figures = compute_agreement(build_array(alike, SYSTEMS, items_of(study)))
    # Everybody agrees on the best, which never varies; the scores do.
    assert figures.best_nominal.absent == "all votes are alike: alpha is 0 / 0" and figures.score_ordinal.value == 1
    monkeypatch.setattr("wm.evaluation.votes.agreement.find_spec", lambda name: None)
    assert compute_alpha(EXAMPLE, "nominal").absent.endswith("pip install 'wm[agreement]'")
