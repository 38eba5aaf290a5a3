"""Compare systems by the votes of people and by a judge's scores: win rates, rank correlation, the same best."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from wm.evaluation.metrics.stats import Floats
from wm.evaluation.votes.arrays import VoteArray

_DIGITS = 10
"""After the point. Means that are equal but for rounding are ties."""


@dataclass(frozen=True)
class WinRates:
    """On which share of units the system of a row is preferred to that of a column.

    Attributes:
        wins: Shares, (S, S); NaN on the diagonal, and where no unit has both.
        ties: Shares of units on which neither is preferred, the same for a pair in both orders.
        counts: Units that have both.
    """

    wins: Floats
    ties: Floats
    counts: Floats


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation with its two-sided p; None where it is not defined."""

    rho: float | None
    p: float | None
    n: int


@dataclass(frozen=True)
class SameBest:
    """On how many items people and judge name the same best system.

    Attributes:
        share: Of the items on which both name a single one; None without any.
        n: Those items.
        ties: Items on which one of them names several.
        chance: Share by chance.
    """

    share: float | None
    n: int
    ties: int
    chance: float


def compute_win_rates(values_US: Floats) -> WinRates:
    """Compute win rates of all pairs of systems.

    Args:
        values_US: Value of each system in each unit, a vote or an item; NaN where it has none.

    Returns:
        The rates.
    """
    # 1. All pairs in both orders, as ties make the two no complements.
    num_systems = values_US.shape[1]
    wins_SS = np.full((num_systems, num_systems), np.nan)
    ties_SS, counts_SS = wins_SS.copy(), np.zeros((num_systems, num_systems))
    for row in range(num_systems):
        for column in range(num_systems):
            differences = np.round(values_US[:, row] - values_US[:, column], _DIGITS)
            differences = differences[~np.isnan(differences)]
            # No system is compared with itself.
            if row == column or not len(differences):
                continue
            # 2. A tie is a win of neither.
            wins_SS[row, column] = (differences > 0).mean()
            ties_SS[row, column] = (differences == 0).mean()
            counts_SS[row, column] = len(differences)
    return WinRates(wins_SS, ties_SS, counts_SS)


def count_votes(votes: VoteArray) -> Floats:
    """Return the scores of each vote: (votes, S)."""
    return votes.scores[~np.isnan(votes.best)]


def arrange_judge(votes: VoteArray, finals: Mapping[str, Mapping[str, float]]) -> Floats:
    """Arrange a judge's scores as the items of a study.

    Args:
        votes: Gives items and systems.
        finals: System → triplet → final score.

    Returns:
        Scores (I, S); NaN where the judge gave none.
    """
    return np.array(
        [[finals.get(system, {}).get(item.triplet_id, np.nan) for system in votes.systems] for item in votes.items],
        dtype=np.float64,
    ).reshape(len(votes.items), len(votes.systems))


def correlate_items(votes: VoteArray, judge_IS: Floats) -> Correlation:
    """Correlate the mean vote of each item and system with the judge's score.

    Args:
        votes: The votes.
        judge_IS: The judge's scores.

    Returns:
        The correlation over all items and systems that both have.
    """
    return _correlate(votes.item_scores.ravel(), judge_IS.ravel())


def correlate_votes(votes: VoteArray, judge_IS: Floats) -> Correlation:
    """Correlate every single vote's +1, 0, -1 with the judge's score of that item and system, as arXiv v3 has it.

    Its p takes the votes on one item for independent of each other, which they are not.

    Args:
        votes: The votes.
        judge_IS: The judge's scores.

    Returns:
        The correlation over all votes and systems.
    """
    # The judge's score of an item is held against each of its votes.
    judge_PIS = np.broadcast_to(judge_IS, votes.scores.shape)
    return _correlate(votes.scores.ravel(), judge_PIS.ravel())


def _correlate(first: Floats, second: Floats) -> Correlation:
    from scipy.stats import spearmanr

    both = ~np.isnan(first) & ~np.isnan(second)
    first, second = first[both], second[both]
    # Two points are always in line, and a constant has no ranks.
    if len(first) < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return Correlation(None, None, len(first))
    result = spearmanr(first, second)
    return Correlation(float(result.statistic), float(result.pvalue), len(first))


def compare_best(votes: VoteArray, judge_IS: Floats) -> SameBest:
    """Count the items on which people and judge name the same best system.

    Args:
        votes: The best by people is the system of the highest mean vote.
        judge_IS: The judge's best is that of the highest score, of items on which it scored all systems shown.

    Returns:
        The count.
    """
    # Rounded, so that means of equal votes in another order are equal.
    people_IS = np.round(votes.item_scores, _DIGITS)
    same = single = ties = 0
    for people_S, judge_S in zip(people_IS, np.round(judge_IS, _DIGITS), strict=True):
        is_shown = ~np.isnan(people_S)
        # Without one of the scores the judge's best is not known.
        if not is_shown.any() or np.isnan(judge_S[is_shown]).any():
            continue
        best = [set(np.flatnonzero(is_shown & (values == values[is_shown].max()))) for values in (people_S, judge_S)]
        if max(map(len, best)) > 1:
            ties += 1
            continue
        single += 1
        same += best[0] == best[1]
    return SameBest(same / single if single else None, single, ties, 1 / len(votes.systems))
