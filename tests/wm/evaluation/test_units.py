"""What a unit refuses to write."""

import numpy as np
import pytest

from wm.errors import InputError
from wm.evaluation.probe import Likelihoods, Pairs, ProbeScores
from wm.evaluation.probe_arrays import check_finite


def test_a_likelihood_that_is_no_number_is_refused_by_name() -> None:
    """Counted, it would be a silent preference for the negative."""
    ones = np.ones(3)
    negative = Pairs(np.array([0, 2]), Likelihoods(np.array([-1.0, np.nan]), np.ones(2)))
    good = Likelihoods(-ones, ones)
    check_finite(ProbeScores(good, {"copy": negative._replace(negative=Likelihoods(-ones[:2], ones[:2]))}), "abc", "m")
    with pytest.raises(InputError, match=r"^m gives triplet c and 0 others no finite likelihood"):
        check_finite(ProbeScores(good, {"copy": negative}), "abc", "m")
    with pytest.raises(InputError, match=r"^m gives triplet a and 1 others no finite"):
        check_finite(ProbeScores(Likelihoods(np.array([-np.inf, 0, np.nan]), ones), {}), "abc", "m")
