"""Compute how far participants agree: Krippendorff's alpha, and the share of pairs that name the same best system."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal, TypeAlias

import numpy as np

from wm.evaluation.metrics.stats import Floats
from wm.evaluation.votes.arrays import VoteArray

Level: TypeAlias = Literal["nominal", "ordinal", "interval"]


@dataclass(frozen=True)
class Alpha:
    """Krippendorff's alpha: 1 for perfect agreement, 0 for that of chance; None with the reason."""

    value: float | None
    absent: str = ""


@dataclass(frozen=True)
class Agreement:
    """How far participants agree.

    Attributes:
        best_nominal: Alpha of the system named best, an item being a unit.
        score_ordinal: Alpha of the scores -1, 0, +1 in their order, an item's system being a unit.
        score_interval: The same with squared distances.
        same_best: Share of pairs of participants on one item who named the same best; None without a pair.
        num_pairs: Those pairs.
        chance: What the share is where everybody chooses by chance: 1 over the number of systems.
    """

    best_nominal: Alpha
    score_ordinal: Alpha
    score_interval: Alpha
    same_best: float | None
    num_pairs: int
    chance: float


def compute_agreement(votes: VoteArray) -> Agreement:
    """Compute all figures of agreement.

    Args:
        votes: The votes.

    Returns:
        The figures.
    """
    num_systems = len(votes.systems)
    scores_PU = votes.scores.reshape(len(votes.participants), -1)
    # Pairs of votes on one item, and those among them that name one system.
    counts_IV = np.stack([(votes.best == value).sum(axis=0) for value in range(num_systems + 1)], axis=1)
    sizes_I = counts_IV.sum(axis=1)
    num_pairs = int((sizes_I * (sizes_I - 1) // 2).sum())
    same = int((counts_IV * (counts_IV - 1) // 2).sum())
    return Agreement(
        best_nominal=compute_alpha(votes.best, "nominal"),
        score_ordinal=compute_alpha(scores_PU, "ordinal"),
        score_interval=compute_alpha(scores_PU, "interval"),
        same_best=same / num_pairs if num_pairs else None,
        num_pairs=num_pairs,
        chance=1 / num_systems,
    )


def compute_alpha(values_PU: Floats, level: Level) -> Alpha:
    """Compute Krippendorff's alpha by the package ``krippendorff``.

    Krippendorff, Content Analysis: An Introduction to Its Methodology, 2004, chapter 11.

    Args:
        values_PU: Value that each participant gave to each unit; NaN: none.
        level: How values differ: as names, in their order, or by their squared distance.

    Returns:
        Alpha; absent where it is not defined, or the package is not installed.
    """
    # A package under the GPL, which this one is not: whoever wants it installs it.
    if find_spec("krippendorff") is None:
        return Alpha(None, "needs the package krippendorff: pip install 'wm[agreement]'")
    # Units with a single value say nothing of agreement.
    paired_PU = values_PU[:, (~np.isnan(values_PU)).sum(axis=0) > 1]
    if not paired_PU.size:
        return Alpha(None, "no two participants voted on one item")
    if len(np.unique(paired_PU[~np.isnan(paired_PU)])) < 2:
        return Alpha(None, "all votes are alike: alpha is 0 / 0")
    import krippendorff

    # Values that occur are its domain: scores are -1, 0 and 1, systems are their indices.
    return Alpha(float(krippendorff.alpha(reliability_data=paired_PU, level_of_measurement=level)))
