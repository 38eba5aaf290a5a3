"""Compute what votes say about how they were given: which positions were chosen, and in what time."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from wm.evaluation.votes.records import Vote


@dataclass(frozen=True)
class PositionBias:
    """How often each position was chosen.

    Attributes:
        counts: Votes for Model 1, 2, …; those that chose none are not among them.
        p: Of the chi-square test that all are equally likely; None without a vote.
        other: Votes on items with another number of systems, which have other positions.
    """

    counts: tuple[int, ...]
    p: float | None
    other: int


@dataclass(frozen=True)
class Times:
    """Time of a vote: quartiles, s, and how many were given in less than ``fast_s``."""

    lower_s: float
    median_s: float
    upper_s: float
    fast_s: float
    num_fast: int


def count_positions(votes: Sequence[Vote], choice: Literal["best", "worst"]) -> PositionBias:
    """Count how often each position was chosen.

    Orders are balanced over participants, so that without a preference for positions all are chosen alike, however
    good the systems are.

    Args:
        votes: With the order in which each participant saw the systems.
        choice: Which of both choices.

    Returns:
        The counts of the most frequent number of systems.
    """
    from scipy.stats import chisquare

    # Position 3 of three systems is another thing than position 3 of five.
    sizes = Counter(len(vote.systems) for vote in votes)
    size = max(sizes, key=lambda number: (sizes[number], number))
    # Votes that saw no difference chose no position.
    positions = [
        vote.systems.index(system)
        for vote in votes
        if len(vote.systems) == size and (system := getattr(vote, choice)) is not None
    ]
    counts = np.bincount(positions, minlength=size)
    p = float(chisquare(counts).pvalue) if positions else None
    return PositionBias(tuple(map(int, counts)), p, len(votes) - sizes[size])


def measure_times(votes: Sequence[Vote], fast_s: float) -> Times:
    """Compute quartiles of the time of a vote.

    Args:
        votes: At least one.
        fast_s: Time below which a vote is too fast, s.

    Returns:
        The times.
    """
    # Quartiles and no mean: some participants leave a page open over lunch.
    seconds = np.array([vote.seconds for vote in votes])
    lower_s, median_s, upper_s = map(float, np.quantile(seconds, [0.25, 0.5, 0.75]))
    return Times(lower_s, median_s, upper_s, fast_s, int((seconds < fast_s).sum()))
