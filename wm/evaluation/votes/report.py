"""Gather all figures of a study. Knows no file and no layout."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import cast

import numpy as np

from wm.errors import InputError
from wm.evaluation.metrics.stats import Floats
from wm.evaluation.votes.agreement import compute_agreement
from wm.evaluation.votes.arrays import VoteArray, VotedItem, build_array, mean_without_nan
from wm.evaluation.votes.behaviour import count_positions, measure_times
from wm.evaluation.votes.figures import (
    FORMAT,
    AgreementFigures,
    CorrelationFigure,
    JudgeFigures,
    ParticipantFigures,
    PositionFigures,
    SameBestFigure,
    StudyFigures,
    TimeFigures,
    VoteFigure,
    WinFigures,
)
from wm.evaluation.votes.judged import JudgeScores
from wm.evaluation.votes.means import ALL, NUM_RESAMPLES, compute_means
from wm.evaluation.votes.preferences import (
    WinRates,
    arrange_judge,
    compare_best,
    compute_win_rates,
    correlate_items,
    correlate_votes,
    count_votes,
)
from wm.evaluation.votes.selection import CountedVotes, Rule
from wm.evaluation.votes.significance import compute_signed_rank
from wm.names import hint_nearest, quote_names

METHOD = (
    "A vote gives +1 to the best, -1 to the worst, 0 to the others, so that a row sums to 0. All: the unweighted mean "
    "of the subsets' means, absent where a subset has no vote.",
    "†: differs from the reference by Wilcoxon's signed-rank test over pairs of participant and item: two-sided, zero "
    "differences dropped, normal approximation with correction for ties, p < .05, not corrected for several tests. "
    "Votes on one item are not independent; the test over items, votes averaged first, does not need them to be.",
    "Intervals (95 %): the pigeonhole bootstrap, which resamples participants and, within each subset, items; its "
    "percentiles are expanded for few units.",
    "Win rates: share of items on which the mean vote of the row's system is the higher one; by votes: share of single "
    "votes. Ties are for neither and are given apart.",
)
"""How the figures are made, as every report says."""


@dataclass(frozen=True)
class StudyFacts:
    """What a report needs to know of a study.

    Attributes:
        study_id: Its name.
        title: Its headline.
        systems: In the order of the tables.
        items: Those that count, without attention checks.
        num_planned: Participants that were planned; 0: any number.
        num_withdrawn: Participants who have withdrawn, of whom nothing is known any more.
        shows_all: Whether every participant is asked about all items; False: each about items of their own.
    """

    study_id: str
    title: str
    systems: tuple[str, ...]
    items: tuple[VotedItem, ...]
    num_planned: int = 0
    num_withdrawn: int = 0
    shows_all: bool = True


def build_figures(
    facts: StudyFacts,
    counted: CountedVotes,
    *,
    reference: str,
    judge: JudgeScores | None = None,
    fast_s: float = 0.0,
    failed_checks: Rule = "keep",
    incomplete: Rule = "keep",
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> StudyFigures:
    """Compute all figures of a study.

    Args:
        facts: The study.
        counted: Its votes.
        reference: System that the others are tested against.
        judge: Scores of a judge to be held against the votes.
        fast_s: Time below which a vote is too fast, s.
        failed_checks: What was done with participants who failed a check.
        incomplete: What was done with incomplete ones.
        seed: Of the bootstrap.
        num_resamples: Of the bootstrap.

    Returns:
        The content of ``table.json``.

    Raises:
        InputError: The reference is no system, a vote is on an unknown item, or the judge scored no system.
    """
    _check_reference(reference, facts.systems)
    votes = build_array(counted.votes, facts.systems, facts.items)
    table = _build_table(votes, reference, seed, num_resamples, shows_all=facts.shows_all)
    return StudyFigures(
        format=FORMAT,
        title=facts.title,
        study_id=facts.study_id,
        kind=counted.kind,
        systems=list(facts.systems),
        reference=reference,
        rows=list(table),
        num_votes=len(counted.votes),
        items=dict(Counter(item.subset for item in facts.items)),
        table=table,
        wins_by_item=_to_wins(compute_win_rates(votes.item_scores), facts.systems),
        wins_by_vote=_to_wins(compute_win_rates(count_votes(votes)), facts.systems),
        judge=None if judge is None else _compare_judge(votes, judge),
        agreement=cast(AgreementFigures, asdict(compute_agreement(votes))),
        best_positions=_to_positions(counted, "best"),
        worst_positions=_to_positions(counted, "worst"),
        times=cast(TimeFigures, asdict(measure_times(counted.votes, fast_s))),
        participants=[cast(ParticipantFigures, asdict(person)) for person in counted.participants],
        num_planned=facts.num_planned,
        num_withdrawn=facts.num_withdrawn,
        failed_checks=failed_checks,
        incomplete=incomplete,
        left_out=dict(counted.left_out),
        method=list(METHOD),
    )


def _check_reference(reference: str, systems: Sequence[str]) -> None:
    if reference not in systems:
        raise InputError(
            f"reference = {reference!r:.60}; systems of the study: {quote_names(systems)}"
            f"{hint_nearest(reference, systems)}"
        )


def _build_table(
    votes: VoteArray, reference: str, seed: int, num_resamples: int, *, shows_all: bool
) -> dict[str, dict[str, VoteFigure]]:
    """Compute means, intervals and tests of every row and system."""
    reference_index = votes.systems.index(reference)
    differences_PIS = votes.scores - votes.scores[:, :, reference_index, None]
    # Both in one, so that they share their resamples.
    num_systems = len(votes.systems)
    both_PIT = np.concatenate([votes.scores, differences_PIS], axis=2)
    means = compute_means(votes, both_PIT, seed=seed, num_resamples=num_resamples)
    # Rows are the subsets, and then all of them.
    table: dict[str, dict[str, VoteFigure]] = {}
    for row, name in enumerate(means.rows):
        items = list(range(len(votes.items))) if name == ALL else votes.items_of(name)
        table[name] = {}
        for column, system in enumerate(votes.systems):
            # Differences come behind the scores.
            other = num_systems + column
            # Pairs of participant and item, and then items alone.
            own_PI = differences_PIS[:, items, column]
            # The reference differs from itself in nothing, which is no result of a test.
            over_votes = compute_signed_rank(own_PI.ravel() if column != reference_index else np.empty(0))
            over_items = compute_signed_rank(mean_without_nan(own_PI) if column != reference_index else np.empty(0))
            table[name][system] = VoteFigure(
                mean=_or_none(means.means[row, column]),
                ci_low=_or_none(means.low[row, column]),
                ci_high=_or_none(means.high[row, column]),
                votes=int(means.counts[row, column]),
                # Nobody is expected to vote on what only others were shown.
                expected=len(votes.participants) * len(items) if shows_all else int(means.counts[row, column]),
                difference=None if column == reference_index else _or_none(means.means[row, other]),
                difference_low=None if column == reference_index else _or_none(means.low[row, other]),
                difference_high=None if column == reference_index else _or_none(means.high[row, other]),
                p=over_votes.p,
                p_exact=over_votes.p_exact,
                p_pratt=over_votes.p_pratt,
                n=over_votes.n,
                zeros=over_votes.zeros,
                # A row whose mean is absent has no mark either.
                is_different=over_votes.is_different and not np.isnan(means.means[row, column]),
                item_p=over_items.p,
                item_p_exact=over_items.p_exact,
                item_p_pratt=over_items.p_pratt,
                item_n=over_items.n,
                item_zeros=over_items.zeros,
            )
    return table


def _compare_judge(votes: VoteArray, judge: JudgeScores) -> JudgeFigures:
    # A judging of other systems, or of another bench, is no judging of this study.
    judge_IS = arrange_judge(votes, judge.finals)
    if np.isnan(judge_IS).all():
        raise InputError(
            f"the judge {judge.model} scored no system of the study on any of its items; it scored "
            f"{quote_names(judge.finals)}, the study has {quote_names(votes.systems)}"
        )
    # Items that were not judged, or whose judgements all failed, count for nothing and are counted.
    missing_S = np.isnan(judge_IS).sum(axis=0)
    return JudgeFigures(
        model=judge.model,
        missing={system: int(count) for system, count in zip(votes.systems, missing_S, strict=True) if count},
        wins=_to_wins(compute_win_rates(judge_IS), votes.systems),
        correlation_items=cast(CorrelationFigure, asdict(correlate_items(votes, judge_IS))),
        correlation_votes=cast(CorrelationFigure, asdict(correlate_votes(votes, judge_IS))),
        same_best=cast(SameBestFigure, asdict(compare_best(votes, judge_IS))),
    )


def _to_wins(rates: WinRates, systems: Sequence[str]) -> WinFigures:
    return WinFigures(
        wins=_to_nested(rates.wins, systems),
        ties=_to_nested(rates.ties, systems),
        counts={
            row: {column: int(rates.counts[i, j]) for j, column in enumerate(systems)} for i, row in enumerate(systems)
        },
    )


def _to_nested(values_SS: Floats, systems: Sequence[str]) -> dict[str, dict[str, float | None]]:
    return {
        row: {column: _or_none(values_SS[i, j]) for j, column in enumerate(systems)} for i, row in enumerate(systems)
    }


def _to_positions(counted: CountedVotes, choice: str) -> PositionFigures:
    # Spelled out: a text is not known to be one of two.
    positions = count_positions(counted.votes, "best" if choice == "best" else "worst")
    return PositionFigures(counts=list(positions.counts), p=positions.p, other=positions.other)


def _or_none(value: float) -> float | None:
    # JSON has no NaN.
    return None if np.isnan(value) else float(value)
