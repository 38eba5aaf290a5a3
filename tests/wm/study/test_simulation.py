"""The model of choice: its probabilities by brute force, its utilities by its means, its votes by both."""

import itertools
import math

import numpy as np
import pytest

from tests.helpers.study_files import make_study
from wm.errors import InputError
from wm.study.simulation import expected_votes, find_utilities, pair_probabilities, simulate_votes

PAPER = {"GoT": -0.09, "SE": -0.23, "C-FT": 0.13, "C-FDM": 0.19}
"""Table 5, all subsets."""


def test_probabilities_are_those_of_pairs():
    utilities = [0.3, -1.0, 0.5]
    weights = {(b, w): math.exp(utilities[b] - utilities[w]) for b, w in itertools.permutations(range(3), 2)}
    total = sum(weights.values())
    probabilities = pair_probabilities(np.array(utilities))
    for (best, worst), weight in weights.items():
        assert probabilities[best, worst] == pytest.approx(weight / total, rel=1e-12)
    assert np.diag(probabilities).tolist() == [0, 0, 0]
    # Large utilities overflow nothing.
    assert expected_votes(np.array([900.0, 0.0, -900.0])) == pytest.approx([1, 0, -1])


def test_a_pair_is_the_largest_with_gumbel_noise():
    utilities = np.array([0.8, 0.0, -0.4])
    rng = np.random.default_rng(0)
    pairs = [*itertools.permutations(range(3), 2)]
    values = np.array([utilities[b] - utilities[w] for b, w in pairs])
    chosen = (values + rng.gumbel(size=(40_000, len(pairs)))).argmax(axis=1)
    shares = np.bincount(chosen, minlength=len(pairs)) / len(chosen)
    assert shares == pytest.approx([pair_probabilities(utilities)[pair] for pair in pairs], abs=0.01)


@pytest.mark.parametrize(
    "means",
    [
        PAPER,
        {"a": 0.0, "b": 0.0},
        {"a": 0.9, "b": -0.9},
        {"a": 0.98, "b": -0.5, "c": -0.48},
        {"a": 0.5, "b": -0.25, "c": -0.25},
    ],
)
def test_utilities_give_the_means(means):
    utilities = find_utilities(means)
    assert list(utilities) == list(means) and sum(utilities.values()) == pytest.approx(0, abs=1e-9)
    assert expected_votes(np.array([*utilities.values()])) == pytest.approx([*means.values()], abs=1e-6)


def test_a_rounded_sum_is_shared_out():
    rounded = {"a": 0.06, "b": 0.29, "c": -0.32, "d": -0.04}
    votes = expected_votes(np.array([*find_utilities(rounded).values()]))
    assert votes == pytest.approx([value + 0.0025 for value in rounded.values()], abs=1e-6)


@pytest.mark.parametrize(
    ("means", "message"),
    [
        ({"a": 0.5, "b": -0.4}, "their sum is 0.1; expected 0"),
        ({"a": 1.0, "b": -1.0}, "add up to 1 or more"),
        ({"a": 0.6, "b": 0.6, "c": -0.6, "d": -0.6}, "add up to 1 or more"),
        ({"a": math.nan, "b": 0.0}, "their sum is nan"),
    ],
)
def test_means_of_no_choice_are_refused(means, message):
    with pytest.raises(InputError, match=message):
        find_utilities(means)


def test_votes_come_back_to_the_means():
    study = make_study(4, 25, num_checks=2)
    utilities = dict(zip(study.systems, find_utilities(PAPER).values(), strict=True))
    of_items = {item.item_id: utilities for item in study.items if not item.is_check}
    codes = [f"code {number}" for number in range(200)]
    votes = simulate_votes(study, of_items, codes, seed=3)
    counted = [vote for vote in votes if not vote.is_check]
    assert len(counted) == 200 * 25 and len(votes) == 200 * 27
    for system, mean in zip(study.systems, PAPER.values(), strict=True):
        # 5,000 votes of standard deviation below 0.72: three standard errors.
        assert sum(vote.score(system) for vote in counted) / len(counted) == pytest.approx(mean, abs=0.031)
    assert all(vote.origin == "simulated" and vote.best != vote.worst for vote in votes)
    assert {vote.passed_check for vote in counted} == {None}
    assert {(vote.best, vote.worst, vote.passed_check) for vote in votes if vote.is_check} == {
        ("check 0", "check 3", True)
    }
    assert 30 < np.median([vote.seconds for vote in votes]) < 60


def test_votes_depend_on_the_seed_alone():
    study = make_study(3, 4)
    utilities = {item.item_id: {"S0": 1.0, "S1": 0.0, "S2": -1.0} for item in study.items}
    first, again, other = (simulate_votes(study, utilities, ["a", "b"], seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    # In the order in which a person sees them.
    assert [vote.participant for vote in first] == ["a"] * 4 + ["b"] * 4
    assert first[0].systems != tuple(sorted(first[0].systems)) or first[1].systems != tuple(sorted(first[1].systems))


def test_inattentive_participants_choose_at_random():
    study = make_study(3, 60)
    utilities = {item.item_id: {"S0": 9.0, "S1": 0.0, "S2": -9.0} for item in study.items}
    votes = simulate_votes(study, utilities, ["lazy", "keen"], seed=0, num_inattentive=1)
    shares = {
        code: sum(vote.best == "S0" for vote in votes if vote.participant == code) / 60 for code in ("lazy", "keen")
    }
    assert shares["keen"] == 1 and 0.15 < shares["lazy"] < 0.55
