"""Adaptive N and speculation inside a search, against all candidates drawn at once and a rule written out by hand."""

import itertools

import numpy as np
import pytest
import torch

from tests.helpers.code_calls import predict_observations, verify
from tests.helpers.models_reference import lively
from wm.dynamics import Sampling, Search, sample_observations, speculate_observations
from wm.dynamics.stopping import expected_gain, is_enough, rounds
from wm.errors import InputError
from wm.models import load_model

ACTIONS = ["put", "move the red cup to the left of the blue bowl", "take the block up", "down", "up"]
SHARP = Sampling(temperature=0.35)
"""So sharp that candidates repeat."""


@pytest.fixture(scope="module")
def vlm(tiny_base):
    return lively(load_model(tiny_base))


@pytest.fixture(scope="module")
def idm(tiny_base):
    """So tame that some actions are likely and some are not."""
    return load_model(tiny_base)


@pytest.fixture(scope="module")
def sources():
    return np.random.default_rng(0).integers(0, 16, (5, 4))


def everything(models, sources, num_candidates, seeds):
    """Each row's candidates in their order with mean log-likelihoods, all sampled at once."""
    vlm, idm = models
    codes_BKN = sample_observations(vlm, sources, ACTIONS, num_candidates=num_candidates, sampling=SHARP, seed=seeds)
    results = []
    for source, action, codes_KN in zip(sources, ACTIONS, codes_BKN, strict=True):
        results.append(sorted(verify(idm, source, action, codes_KN), key=lambda item: item.index))
    return results


def stops_at(samples, source, margin, sizes, max_unchanged):
    """How many draws are made: the rule in plain loops."""
    for size in sizes:
        fine = [item for item in samples[:size] if np.mean(np.array(item.codes) == source) <= max_unchanged]
        if fine and max(item.score.logprob / item.score.num_tokens for item in fine) >= -margin * (size + 1):
            return size
    return sizes[-1]


@pytest.mark.parametrize("block", [0, 2])
@pytest.mark.parametrize("rounds_made", [(1, [1, 2, 4, 8, 12]), (3, [3, 6, 12]), (12, [12])])
def test_rows_stop_where_the_rule_says(vlm, idm, sources, rounds_made, block):
    at_least, sizes = rounds_made
    stops = set()
    seeds = [5, 6, 5, 7, 8]
    samples = everything((vlm, idm), sources, 12, seeds)
    for margin, max_unchanged in itertools.product((0.0, 0.25, 0.5, 0.75, 1.0, 1.3, 9.0), (1.0, 0.2)):
        search = Search(
            num_candidates=12,
            min_gain_nats=margin,
            min_candidates=at_least,
            num_draft_tokens=block,
            max_unchanged=max_unchanged,
        )
        results = predict_observations(vlm, idm, sources, ACTIONS, search=search, sampling=SHARP, seed=seeds)
        for row, prediction in enumerate(results):
            size = stops_at(samples[row], sources[row], margin, sizes, max_unchanged)
            stops.add(size)
            assert len(prediction.candidates) == size
            assert prediction.rounds == sizes.index(size) + 1
            shares = [float(np.mean(np.array(item.codes) == sources[row])) for item in samples[row]]
            order = sorted(
                range(size), key=lambda k: (shares[k] > max_unchanged, -round(samples[row][k].score.logprob, 4), k)
            )
            assert [item.index for item in prediction.candidates] == order
            assert [item.codes for item in prediction.candidates] == [samples[row][k].codes for k in order]
            assert [item.unchanged_share for item in prediction.candidates] == [shares[k] for k in order]
            assert prediction.best.seed == seeds[row]
            distinct = list(dict.fromkeys(item.codes for item in prediction.candidates))
            assert [item.codes for item in prediction.top(3)] == distinct[:3]
            assert (prediction.passes is None) == (block == 0)
    assert len(stops) == len(sizes), f"every round ends some row, got {stops}"


def test_rounds_give_the_samples_of_one_round(vlm, sources):
    expected = sample_observations(vlm, sources, ACTIONS, num_candidates=7, seed=3)
    parts = [
        sample_observations(vlm, sources, ACTIONS, num_candidates=stop - start, first_candidate=start, seed=3)
        for start, stop in ((0, 2), (2, 3), (3, 7))
    ]
    assert torch.equal(torch.cat(parts, dim=1), expected)
    drafted = speculate_observations(
        vlm, sources, ACTIONS, num_candidates=3, first_candidate=4, num_draft_tokens=2, seed=3
    )
    assert torch.equal(drafted.codes, expected[:, 4:])
    reports = []
    sample_observations(vlm, sources, ACTIONS, num_candidates=2, first_candidate=5, seed=3, on_progress=reports.append)
    assert {item.candidates for item in reports} == {range(5, 7)}
    assert torch.equal(reports[-1].codes, expected[list(reports[-1].sources), 5:])
    with pytest.raises(InputError, match="first_candidate must not be negative, got -1"):
        sample_observations(vlm, sources, ACTIONS, num_candidates=2, first_candidate=-1)
    with pytest.raises(InputError, match="first_candidate must not be negative, got -1"):
        speculate_observations(vlm, sources, ACTIONS, num_candidates=2, first_candidate=-1, num_draft_tokens=2)


def test_order_and_batch_change_nothing(vlm, idm, sources):
    search = Search(num_candidates=8, min_gain_nats=1.2, max_unchanged=0.6)
    expected = predict_observations(vlm, idm, sources, ACTIONS, search=search, seed=[1, 2, 3, 4, 5])
    order = [3, 0, 4, 1]
    some = predict_observations(
        vlm, idm, sources[order], [ACTIONS[row] for row in order], search=search,
        seed=[row + 1 for row in order], batch_size=3,
    )  # fmt: skip
    for results, row in zip(some, order, strict=True):
        assert [item.codes for item in results.candidates] == [item.codes for item in expected[row].candidates]
        assert [item.score.logprob for item in results.candidates] == pytest.approx(
            [item.score.logprob for item in expected[row].candidates], abs=1e-4
        )


def test_no_margin_is_best_of_n_and_speculation_changes_nothing(vlm, idm, sources):
    plain = predict_observations(vlm, idm, sources, ACTIONS, search=Search(num_candidates=6), seed=4)
    drafted = predict_observations(
        vlm, idm, sources, ACTIONS, search=Search(num_candidates=6, num_draft_tokens=3), seed=4
    )
    codes_BKN = sample_observations(vlm, sources, ACTIONS, num_candidates=6, seed=4)
    drafting = speculate_observations(vlm, sources, ACTIONS, num_candidates=6, num_draft_tokens=3, seed=4)
    counts = drafting.passes.sum(dim=1)
    for row, (prediction, other) in enumerate(zip(plain, drafted, strict=True)):
        expected = verify(idm, sources[row], ACTIONS[row], codes_BKN[row], seed=4)
        assert [item.index for item in prediction.candidates] == [item.index for item in expected]
        assert [item.codes for item in other.candidates] == [item.codes for item in expected]
        assert other.passes == int(counts[row])
    assert predict_observations(vlm, idm, sources[:0], [], search=Search()) == []


def test_greedy_candidates_are_sampled_once(vlm, idm, sources):
    reports = []
    search = Search(num_candidates=5, min_gain_nats=0.0)
    results = predict_observations(
        vlm, idm, sources, ACTIONS, search=search, sampling=Sampling(greedy=True), on_round=reports.append
    )
    assert [item.candidates for item in reports] == [range(5)]
    assert all(len(item.distinct) == 1 and len(item.candidates) == 5 for item in results)


def test_rounds_are_reported(vlm, idm, sources):
    reports = []
    search = Search(num_candidates=6, min_gain_nats=1.2)
    results = predict_observations(vlm, idm, sources, ACTIONS, search=search, seed=4, on_round=reports.append)
    assert reports[0].rows == 5 and reports[0].candidates == range(1)
    assert all(item.rows - item.settled == other.rows for item, other in itertools.pairwise(reports))
    assert sum(len(item.candidates) * item.rows for item in reports) == sum(len(item.candidates) for item in results)


def test_expected_gain_by_hand():
    assert expected_gain(1, -0.5) == 0.25
    assert expected_gain(3, -0.5) == 0.125
    assert not is_enough(3, -0.5, 0.12) and is_enough(3, -0.5, 0.125)
    assert not is_enough(3, None, 9.0), "no candidate passes the guard"
    assert not is_enough(3, 0.0, None), "without a minimum gain nothing is enough"


def test_a_record_is_as_rare_as_the_rule_says():
    """Of independent draws from whatever distribution, the one after n is the best so far in 1 of n + 1 cases."""
    scores = -np.random.default_rng(0).gamma(0.3, size=(40_000, 8))
    for count in range(1, 8):
        records = (scores[:, count] > scores[:, :count].max(axis=1)).mean()
        assert records == pytest.approx(1 / (count + 1), abs=0.01)


def test_rounds_double():
    assert list(rounds(Search(num_candidates=11, min_gain_nats=0.1, min_candidates=2))) == [
        range(2), range(2, 4), range(4, 8), range(8, 11)
    ]  # fmt: skip
    assert list(rounds(Search(num_candidates=11))) == [range(11)]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_candidates": 0}, "num_candidates = 0: input should be greater than or equal to 1"),
        ({"num_beams": 0}, "num_beams = 0: "),
        ({"min_gain_nats": -1.0}, "min_gain_nats = -1.0: "),
        ({"min_candidates": 9, "min_gain_nats": 0.1}, "min_candidates = 9 is more than num_candidates = 8"),
        ({"min_candidates": 3}, "min_candidates = 3 is the first round's size; give min_gain_nats too"),
        ({"num_return": 9}, "num_return = 9 is more than num_candidates = 8"),
        ({"max_unchanged": 1.5}, "max_unchanged = 1.5: "),
        ({"gamma": 3}, "unknown key 'gamma'"),
    ],
)
def test_bad_settings_are_named(values, message):
    with pytest.raises(InputError, match=message):
        Search.parse(values, "test")


def test_draft_longer_than_image_is_refused_before_work(vlm, idm, sources):
    with pytest.raises(InputError, match=r"num_draft_tokens = 4: expected 0 \(off\) to 3, an image has 4 tokens"):
        predict_observations(vlm, idm, sources, ACTIONS, search=Search(num_draft_tokens=4))
    with pytest.raises(InputError, match="5 sources, 1 actions"):
        predict_observations(vlm, idm, sources, ["put"], search=Search())
