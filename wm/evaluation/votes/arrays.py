"""Arrange votes as an array: participants by items by systems. Knows no figure.

Axes of arrays are named by their last letters: P participants, I items, S systems, G subsets, R resamples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wm.errors import InputError
from wm.evaluation.aurora_bench import order_subsets
from wm.evaluation.metrics.stats import Floats
from wm.evaluation.votes.records import Vote


@dataclass(frozen=True)
class VotedItem:
    """An item that was voted on: its name, its triplet and its subset, each of the latter empty where it has none."""

    item_id: str
    triplet_id: str
    subset: str


@dataclass(frozen=True)
class VoteArray:
    """Scores of all votes.

    Attributes:
        systems: In the order of the tables.
        participants: Names, in the order of their first vote.
        items: In the order of the study, those without a vote too.
        subsets: The subsets, those of the paper in its order.
        scores: Of shape (P, I, S): +1 for the best, -1 for the worst, 0 for the others; NaN where there is no vote, or
            the system was not shown.
        best: Of shape (P, I): index of the best system; the number of systems where the person saw no difference; NaN
            without a vote.
    """

    systems: tuple[str, ...]
    participants: tuple[str, ...]
    items: tuple[VotedItem, ...]
    subsets: tuple[str, ...]
    scores: Floats
    best: Floats

    def items_of(self, subset: str) -> list[int]:
        """List the indices of a subset's items."""
        return [index for index, item in enumerate(self.items) if item.subset == subset]

    @property
    def item_scores(self) -> Floats:
        """Mean score of each item and system over its votes, (I, S); NaN where the system was not shown."""
        return mean_without_nan(self.scores)


def build_array(votes: Sequence[Vote], systems: Sequence[str], items: Sequence[VotedItem]) -> VoteArray:
    """Arrange votes.

    Args:
        votes: One a participant and item.
        systems: In the order of the tables.
        items: All items that votes may be on.

    Returns:
        The array.

    Raises:
        InputError: A participant has two votes on an item, or a vote is on another item or names another system.
    """
    # Indices of each axis.
    participants = list(dict.fromkeys(vote.participant for vote in votes))
    rows = {name: index for index, name in enumerate(participants)}
    columns = {item.item_id: index for index, item in enumerate(items)}
    positions = {system: index for index, system in enumerate(systems)}
    scores_PIS = np.full((len(rows), len(columns), len(positions)), np.nan)
    best_PI = np.full((len(rows), len(columns)), np.nan)
    for vote in votes:
        if vote.item_id not in columns:
            raise InputError(f"a vote is on item {vote.item_id!r:.40}, which the study does not have")
        row, column = rows[vote.participant], columns[vote.item_id]
        # A second vote would silently replace the first.
        if not np.isnan(best_PI[row, column]):
            raise InputError(f"{vote.participant} has two votes on item {vote.item_id}")
        # Systems that the item does not show stay without a score.
        for system in vote.systems:
            if system not in positions:
                raise InputError(f"a vote on item {vote.item_id} names {system!r:.60}, which the study does not have")
            scores_PIS[row, column, positions[system]] = vote.score(system)
        best_PI[row, column] = len(positions) if vote.best is None else positions[vote.best]
    # Subsets without a vote keep their row.
    return VoteArray(
        systems=tuple(systems),
        participants=tuple(participants),
        items=tuple(items),
        subsets=tuple(order_subsets(item.subset for item in items)),
        scores=scores_PIS,
        best=best_PI,
    )


def mean_without_nan(values: Floats) -> Floats:
    """Compute means over the first axis, NaN left out; NaN where nothing is left.

    Args:
        values: Of any shape.

    Returns:
        The same without its first axis.
    """
    # numpy's own nanmean warns where a column is empty, which here is no mistake.
    counts = (~np.isnan(values)).sum(axis=0)
    sums = np.nansum(values, axis=0)
    means: Floats = np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
    return means
