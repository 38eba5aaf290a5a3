"""Simulate the votes of a study by a model of choice whose mean votes are known.

A person chooses the best and the worst of K images as a pair: the pair (b, w) has probability proportional to
exp(u_b - u_w), u being utilities (the maxdiff model: Marley and Louviere, Some probabilistic models of best, worst, and
best-worst choices, Journal of Mathematical Psychology 49, 2005). That is the pair of the largest u_b - u_w with Gumbel
noise added to it. Not known here: stores of votes, scores of judges.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from wm.errors import InputError
from wm.evaluation.votes.records import Vote
from wm.study.order import digest_key, order_items, order_systems
from wm.study.study import Study, StudyItem

Floats = npt.NDArray[np.float64]

_ROUNDING = 0.005
"""Published means have two digits."""
_MEDIAN_S, _SPREAD = 43.0, 0.5
"""Time of a choice: the paper's participants took 15 to 20 minutes for 25 items (its appendix I), 36 to 48 s each; the
spread of the logarithm is a guess."""


def pair_probabilities(utilities_K: Floats) -> Floats:
    """Compute the probability of each best and worst.

    Args:
        utilities_K: Of K systems.

    Returns:
        Best in rows, worst in columns, shape (K, K); the diagonal is 0.
    """
    differences_KK = utilities_K[:, None] - utilities_K[None, :]
    # Subtracting the largest changes nothing but keeps exp() finite.
    weights_KK = np.exp(differences_KK - differences_KK.max())
    np.fill_diagonal(weights_KK, 0.0)
    probabilities_KK: Floats = weights_KK / weights_KK.sum()
    return probabilities_KK


def expected_votes(utilities_K: Floats) -> Floats:
    """Compute each system's mean vote, +1 for the best and -1 for the worst.

    Args:
        utilities_K: Of K systems.

    Returns:
        Shape (K,); the sum is 0.
    """
    probabilities_KK = pair_probabilities(utilities_K)
    means_K: Floats = probabilities_KK.sum(axis=1) - probabilities_KK.sum(axis=0)
    return means_K


def find_utilities(means: Mapping[str, float]) -> dict[str, float]:
    """Find the utilities under which systems have given mean votes.

    The mean votes are the gradient of log sum exp(u_b - u_w), which is convex: its difference to the votes times u has
    one minimum, up to a constant added to all utilities.

    Args:
        means: System → mean vote, of two digits or more. Their sum is 0 but for rounding, which is shared out.

    Returns:
        System → utility; their sum is 0.

    Raises:
        InputError: No choices have these means: their sum is not 0, or those above 0 add up to 1 or more.
    """
    from scipy.optimize import minimize

    means_K = np.array(list(means.values()), np.float64)
    text = f"means = {dict(means)}"
    # Each vote adds +1 and -1.
    if not np.isfinite(means_K).all() or abs(means_K.sum()) > _ROUNDING * len(means_K) + 1e-9:
        raise InputError(f"{text}: their sum is {means_K.sum():.4g}; expected 0, as a vote has a best and a worst")
    means_K = means_K - means_K.mean()
    if means_K[means_K > 0].sum() >= 1:
        raise InputError(f"{text}: those above 0 add up to 1 or more; expected less, as a vote has one best")

    def distance(utilities_K: Floats) -> tuple[float, Floats]:
        differences_KK = utilities_K[:, None] - utilities_K[None, :]
        off_diagonal = differences_KK[~np.eye(len(utilities_K), dtype=bool)]
        value = float(np.logaddexp.reduce(off_diagonal) - means_K @ utilities_K)
        return value, expected_votes(utilities_K) - means_K

    # Convex and smooth, with its gradient at hand: few steps are enough.
    result = minimize(distance, np.zeros(len(means_K)), jac=True, method="BFGS", options={"gtol": 1e-10})
    utilities_K = result.x - result.x.mean()
    return dict(zip(means, utilities_K.tolist(), strict=True))


def simulate_votes(
    study: Study,
    utilities: Mapping[str, Mapping[str, float]],
    codes: Sequence[str],
    *,
    seed: int,
    num_inattentive: int = 0,
) -> list[Vote]:
    """Let simulated participants vote on all items, each in the order that a person would see.

    Args:
        study: The study.
        utilities: Item → system → utility, for all items but attention checks.
        codes: Codes of the participants, in the order of joining.
        seed: Of their choices.
        num_inattentive: So many of them, the first ones, choose at random, on attention checks too; the others give
            their known answer.

    Returns:
        The votes, in the order in which they would come from one participant after the other.
    """
    votes = []
    # A participant's number is that of joining: it decides the orders.
    for number, code in enumerate(codes):
        is_attentive = number >= num_inattentive
        for item in order_items(study, number):
            best, worst = _choose(item, utilities, f"{seed}\n{number}\n{study.items.index(item)}", is_attentive)
            # As the server marks it.
            passed = (best, worst) == (item.best, item.worst) if item.is_check else None
            votes.append(
                Vote(
                    study_id=study.study_id,
                    participant=code,
                    item_id=item.item_id,
                    triplet_id=item.triplet_id,
                    subset=item.subset,
                    systems=tuple(order_systems(study, item, number)),
                    best=best,
                    worst=worst,
                    seconds=_sample_seconds(f"seconds\n{seed}\n{number}\n{study.items.index(item)}"),
                    stored_at="",
                    origin="simulated",
                    is_check=item.is_check,
                    passed_check=passed,
                )
            )
    return votes


def _choose(
    item: StudyItem, utilities: Mapping[str, Mapping[str, float]], key: str, is_attentive: bool
) -> tuple[str, str]:
    if item.is_check and is_attentive:
        return item.best, item.worst
    # Not in the order of the page: positions have no influence.
    names = sorted(item.candidates)
    own = utilities[item.item_id] if is_attentive else dict.fromkeys(names, 0.0)
    probabilities = pair_probabilities(np.array([own[name] for name in names])).ravel()
    # The first pair at which the sum of probabilities exceeds a uniform number.
    index = int(np.searchsorted(np.cumsum(probabilities), _uniform(f"choice\n{key}") * probabilities.sum(), "right"))
    best, worst = divmod(min(index, len(probabilities) - 2), len(names))
    return names[best], names[worst]


def _uniform(key: str) -> float:
    """Return a number from 0 to below 1 that is the same on every machine."""
    return int.from_bytes(digest_key(key)[:6], "big") / 2**48


def _sample_seconds(key: str) -> float:
    # Box and Muller's normal number of two uniform ones.
    radius = math.sqrt(-2 * math.log(1 - _uniform(f"{key}\nradius")))
    normal = radius * math.cos(2 * math.pi * _uniform(f"{key}\nangle"))
    return round(_MEDIAN_S * math.exp(_SPREAD * normal), 1)
