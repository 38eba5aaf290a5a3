"""Evaluate verification at several K from one bank of candidates (paper section 3.3, figure 4).

Max K candidates an item are sampled once. For each K the bank is cut into consecutive groups of K; in each
group the verifier's best is chosen, and the figure of an item is the mean over its groups. So K = 1
averages all candidates, K = max chooses once among all, groups of 2K are unions of groups of K, and every K
uses the same samples. The oracle best-of-N chooses in the same groups by the true score: no choice can do
better.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from wm.errors import InputError
from wm.evaluation.metrics.stats import Floats

EVALUATED_K: Final = (
    "K = 1: mean over all candidates sampled; K above 1: mean over the groups of K, of the candidate that the inverse "
    "model chooses in each."
)
"""What K is in the figures of ``wm evaluate`` and ``wm score``, for readers."""
JUDGED_K: Final = (
    "K: of the first K candidates of an item the one that the inverse model chooses; K = 1 is the first candidate."
)
"""What K is in those of ``wm judge``, which pays for every question. Both estimate the same."""


def best_in_groups(score_BK: Floats, k: int) -> npt.NDArray[np.int64]:
    """Find the best candidate of each group of ``k``.

    Args:
        score_BK: What the choice maximises. Of equal scores the lower index is chosen.
        k: Candidates of a group; those beyond the last complete group are not used.

    Returns:
        Indices into the bank, (B, K // k).

    Raises:
        InputError: Unless 1 ≤ k ≤ K.
    """
    items, total = score_BK.shape
    if not 1 <= k <= total:
        raise InputError(f"k = {k}, expected 1 to {total}, the number of candidates sampled")
    # argmax takes the first of equal scores, which is the lower index.
    groups = total // k
    inside = score_BK[:, : groups * k].reshape(items, groups, k).argmax(axis=2)
    index_BG: npt.NDArray[np.int64] = inside + np.arange(groups, dtype=np.int64)[None, :] * k
    return index_BG


def chosen_values(metric_BK: Floats, score_BK: Floats, k: int) -> Floats:
    """Return the metric of the chosen candidates.

    Args:
        metric_BK: Metric of each candidate.
        score_BK: What the choice maximises.
        k: Candidates of a group.

    Returns:
        The mean over the groups, (B,).
    """
    index_BG = best_in_groups(score_BK, k)
    values: Floats = np.take_along_axis(metric_BK, index_BG, axis=1).mean(axis=1)
    return values


def verification_curve(
    metrics: Mapping[str, Floats], verifier_BK: Floats | None, best_BK: Floats, ks: Sequence[int]
) -> dict[tuple[str, int], dict[str, Floats]]:
    """Compute the metrics of the chosen candidates at several k.

    Args:
        metrics: Name → (B, K).
        verifier_BK: What the choice ``idm`` maximises; without it that choice is left out, except at k = 1, where
            there is nothing to choose.
        best_BK: What the choice ``oracle`` maximises, which is given for each k above 1.
        ks: Numbers of candidates to choose among.

    Returns:
        (choice, k) → metric → value of each item, (B,).
    """
    curve = {}
    for k in ks:
        if k == 1 or verifier_BK is not None:
            score_BK = best_BK if verifier_BK is None else verifier_BK
            curve["idm", k] = {name: chosen_values(value, score_BK, k) for name, value in metrics.items()}
        if k > 1:
            curve["oracle", k] = {name: chosen_values(value, best_BK, k) for name, value in metrics.items()}
    return curve
