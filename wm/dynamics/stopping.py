"""When further candidates are not worth their cost: adaptive N, as search with recall.

Candidates of one (source, action) are independent draws, each is scored as soon as it is there, and the best so far may
always be taken: the search with recall of Weitzman (Optimal Search for the Best Alternative, Econometrica 1979), where
one goes on as long as another draw is expected to gain more than it costs. Nothing is known of the scores but that a
log-likelihood is at most 0. So the gain of one more draw is bounded by

    (probability that it differs from all draws so far) x (0 - best score so far),

the first estimated by Good and Turing's formula (Good, Biometrika 1953): the share of draws that occurred once. Where
images are so long that none is drawn twice that factor is 1, and the rule is Weitzman's reservation price: stop at the
first candidate whose score is within the margin of certainty.
"""

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence

from wm.dynamics.settings import Search


def expected_gain(drawn: Sequence[Hashable], best: float) -> float:
    """Bound on what one more draw is expected to add to the best score, in the score's unit; at least 0.

    ``drawn``: what the draws were, at least one. ``best``: the best of their scores, at most 0 (a mean
    log-likelihood a token).
    """
    counts = Counter(drawn)
    new = sum(count == 1 for count in counts.values()) / len(drawn)
    return new * -best


def is_enough(drawn: Sequence[Hashable], best: float | None, margin: float | None) -> bool:
    """Whether to stop. ``best``: of the candidates that the copy guard lets pass, None if there is none.
    ``margin`` None: never."""
    return margin is not None and best is not None and expected_gain(drawn, best) <= margin


def rounds(search: Search) -> Iterator[range]:
    """The candidates of each round: the first ``at_least``, then each time as many as were drawn so far, at most
    ``best_of`` in all. Without a margin one round."""
    done, size = 0, search.best_of if search.margin is None else search.at_least
    while done < search.best_of:
        stop = min(search.best_of, done + size)
        yield range(done, stop)
        done = size = stop
