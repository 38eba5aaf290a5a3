"""Decide when further candidates are not worth their cost: adaptive N, as search with recall.

Candidates of one (source, action) are independent samples, each is scored as soon as it is there, and the best so far
may always be taken: the search with recall of Weitzman (Optimal Search for the Best Alternative, Econometrica 1979),
where one continues as long as another sample is expected to gain more than it costs. The distribution of the scores is
not known, but two things are. Of n + 1 exchangeable samples the last is the best with probability 1 / (n + 1) at most,
whatever their distribution is (record statistics: Rényi 1962; Glick, Breaking Records and Breaking Boards, 1978); and a
log-likelihood is at most 0, so that it gains at most 0 - best. Hence

    expected gain of sample n + 1  ≈  - best / (n + 1)        nats an action token,

which is also what Rothschild's search from an unknown distribution (Journal of Political Economy 1974) gives for a
Dirichlet prior of the weight of one sample, all of it at certainty. A sample that convinces the verifier ends the
search at once, one that nearly does soon, and where nothing convinces it continues, but not forever.
"""

from collections.abc import Iterator

from wm.dynamics.settings import Search


def expected_gain(count: int, best: float) -> float:
    """Bound the expected gain of one more candidate over the best score.

    Args:
        count: Candidates so far.
        best: Largest mean log-likelihood of the action so far, nats a token, at most 0.

    Returns:
        Nats a token, at least 0.
    """
    return -best / (count + 1)


def is_enough(count: int, best: float | None, min_gain_nats: float | None) -> bool:
    """Return whether to stop after ``count`` candidates.

    Args:
        count: Candidates so far.
        best: Best score among those that the copy guard lets pass; None if there is none.
        min_gain_nats: Gain, nats a token, that is not worth another candidate; None: never stop.
    """
    return min_gain_nats is not None and best is not None and expected_gain(count, best) <= min_gain_nats


def rounds(search: Search) -> Iterator[range]:
    """Iterate over the candidates of each round: the first ``min_candidates``, then each time as many as there are
    so far, at most ``num_candidates`` in all. Without a minimum gain one round."""
    # Doubling: few rounds where many candidates are needed, few candidates where one convinces.
    count, size = 0, search.num_candidates if search.min_gain_nats is None else search.min_candidates
    # The last round may be shorter: the bound is never exceeded.
    while count < search.num_candidates:
        stop = min(search.num_candidates, count + size)
        yield range(count, stop)
        count = size = stop
