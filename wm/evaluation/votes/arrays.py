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
class VoteArray:
    """Scores of all votes.

    Attributes:
        systems: In the order of the tables.
        participants: Names, in the order of their first vote.
        item_ids: Items with a vote, in the order of the study.
        triplet_ids: Triplet of each item; empty where it has none.
        item_subsets: Subset of each item.
        subsets: The subsets, those of the paper in its order.
        scores_PIS: +1 for the best, -1 for the worst, 0 for the others; NaN where there is no vote, or the system was not
            shown.
        best_PI: Index of the best system; the number of systems where the person saw no difference; NaN without a vote.
    """

    systems: tuple[str, ...]
    participants: tuple[str, ...]
    item_ids: tuple[str, ...]
    triplet_ids: tuple[str, ...]
    item_subsets: tuple[str, ...]
    subsets: tuple[str, ...]
    scores_PIS: Floats
    best_PI: Floats

    def items_of(self, subset: str) -> list[int]:
        """List the indices of a subset's items."""
        return [index for index, name in enumerate(self.item_subsets) if name == subset]

    @property
    def item_scores_IS(self) -> Floats:
        """Mean score of each item and system over its votes; NaN where the system was not shown."""
        return mean_without_nan(self.scores_PIS)


def build_array(votes: Sequence[Vote], systems: Sequence[str], item_ids: Sequence[str] = ()) -> VoteArray:
    """Arrange votes.

    Args:
        votes: One a participant and item.
        systems: In the order of the tables.
        item_ids: Order of the items; those without a vote are left out, others come last.

    Returns:
        The array.

    Raises:
        InputError: A participant has two votes on an item, or a vote names a system that is not among them.
    """
    facts = {vote.item_id: (vote.triplet_id, vote.subset) for vote in votes}
    order = [item_id for item_id in dict.fromkeys([*item_ids, *facts]) if item_id in facts]
    participants = list(dict.fromkeys(vote.participant for vote in votes))
    rows = {name: index for index, name in enumerate(participants)}
    columns = {item_id: index for index, item_id in enumerate(order)}
    places = {system: index for index, system in enumerate(systems)}
    scores_PIS = np.full((len(rows), len(columns), len(places)), np.nan)
    best_PI = np.full((len(rows), len(columns)), np.nan)
    for vote in votes:
        row, column = rows[vote.participant], columns[vote.item_id]
        # A second vote would silently replace the first.
        if not np.isnan(best_PI[row, column]):
            raise InputError(f"{vote.participant} has two votes on item {vote.item_id}")
        for system in vote.systems:
            if system not in places:
                raise InputError(f"a vote on item {vote.item_id} names {system!r:.60}, which the study does not have")
            scores_PIS[row, column, places[system]] = vote.score(system)
        best_PI[row, column] = len(places) if vote.best is None else places[vote.best]
    triplet_ids, item_subsets = zip(*(facts[item_id] for item_id in order), strict=True)
    return VoteArray(
        systems=tuple(systems),
        participants=tuple(participants),
        item_ids=tuple(order),
        triplet_ids=triplet_ids,
        item_subsets=item_subsets,
        subsets=tuple(order_subsets(item_subsets)),
        scores_PIS=scores_PIS,
        best_PI=best_PI,
    )


def mean_without_nan(values: Floats) -> Floats:
    """Compute means over the first axis, NaN left out; NaN where nothing is left.

    Args:
        values: Of any shape.

    Returns:
        The same without its first axis.
    """
    counts = (~np.isnan(values)).sum(axis=0)
    sums = np.nansum(values, axis=0)
    # No warning where nothing is to be averaged.
    means: Floats = np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
    return means
