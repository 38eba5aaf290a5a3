"""Rollouts against every sequence written out, step by step, with calls of one row each."""

import hashlib

import numpy as np
import pytest

from tests.helpers.code_calls import predict_observations, roll_out, verify
from tests.helpers.models_reference import lively
from wm.dynamics import Observation, Sampling, Search, sample_observations
from wm.dynamics.rollout import step_seed
from wm.errors import InputError
from wm.models import load_model

ACTIONS = [["put", "take the block up", "down"], ["move the red cup"], ["up", "down"]]
SHARP = Sampling(temperature=0.4)


@pytest.fixture(scope="module")
def vlm(tiny_base):
    return lively(load_model(tiny_base))


@pytest.fixture(scope="module")
def sources():
    return np.random.default_rng(2).integers(0, 16, (3, 4))


def seed_of(seed, step, codes):
    text = ",".join(str(int(number)) for number in (seed, step, *codes))
    return seed if step == 0 else int(hashlib.sha256(text.encode()).hexdigest()[:12], 16)


def all_sequences(vlm, source, actions, *, num_candidates, seed, beam):
    """(codes of each step, sum) of what a beam keeps; without a beam of everything there is."""
    beams = [([], 0.0)]
    for step, action in enumerate(actions):
        grown = {}
        for codes, total in beams:
            present = codes[-1] if codes else tuple(int(code) for code in source)
            samples = sample_observations(
                vlm,
                [present],
                [action],
                num_candidates=num_candidates,
                sampling=SHARP,
                seed=seed_of(seed, step, present),
            )[0]
            for item in verify(vlm, present, action, samples):
                key, value = item.codes, total + item.score.logprob
                if key not in grown or value > grown[key][1]:
                    grown[key] = ([*codes, item.codes], value)
        beams = sorted(grown.values(), key=lambda item: -item[1])[:beam]
    return beams


@pytest.mark.parametrize("beam", [1, 2, 3, 1000])
def test_a_beam_keeps_what_the_reference_keeps(vlm, sources, beam):
    search = Search(num_candidates=4, num_beams=beam)
    results = roll_out(vlm, vlm, sources, ACTIONS, search=search, sampling=SHARP, seed=[7, 8, 9])
    for row, rollout in enumerate(results):
        expected = all_sequences(vlm, sources[row], ACTIONS[row], num_candidates=4, seed=7 + row, beam=beam)
        assert [[item.codes for item in entry.candidates] for entry in rollout.trajectories] == [
            codes for codes, _ in expected
        ]
        assert [entry.logprob for entry in rollout.trajectories] == pytest.approx(
            [total for _, total in expected], abs=1e-3
        )
        assert len(rollout.steps) == len(ACTIONS[row])
        for before, after in zip([None, *rollout.steps[:-1]], rollout.steps, strict=True):
            assert len(after.predictions) == (len(before.beam) if before else 1)
            for entry, parent in zip(after.beam, after.parents, strict=True):
                assert entry.candidates[:-1] == (before.beam[parent].candidates if before else ())
                assert entry.candidates[-1] in after.predictions[parent].candidates
    assert max(len(rollout.trajectories) for rollout in results) > 1 or beam == 1


def test_an_unbounded_beam_holds_the_best_of_all_sequences(vlm, sources):
    """Every sequence of candidates, nothing merged: the best has the largest sum of all."""
    search = Search(num_candidates=3, num_beams=1000)
    results = roll_out(vlm, vlm, sources[:1], ACTIONS[:1], search=search, sampling=SHARP, seed=3)[0]
    sums = {(): 0.0}
    for step, action in enumerate(ACTIONS[0]):
        longer = {}
        for past, total in sums.items():
            present = past[-1] if past else tuple(sources[0].tolist())
            samples = sample_observations(
                vlm, [present], [action], num_candidates=3, sampling=SHARP, seed=seed_of(3, step, present)
            )[0]
            for item in verify(vlm, present, action, samples):
                longer[*past, item.codes] = total + item.score.logprob
        sums = longer
    best = max(sums, key=lambda past: sums[past])
    assert tuple(item.codes for item in results.best.candidates) == best
    assert results.best.logprob == pytest.approx(sums[best], abs=1e-3)
    tokens = sum(item.score.num_tokens for item in results.best.candidates)
    assert results.best.mean_logprob == results.best.logprob / tokens


def test_a_beam_of_one_is_best_of_n_again_and_again(vlm, sources):
    search = Search(num_candidates=5, min_gain_nats=1.0, num_draft_tokens=2)
    results = roll_out(vlm, vlm, sources[:1], ACTIONS[:1], search=search, seed=11)[0]
    present = tuple(sources[0].tolist())
    for step, action in enumerate(ACTIONS[0]):
        seed = seed_of(11, step, present)
        expected = predict_observations(vlm, vlm, [present], [action], search=search, seed=seed)[0]
        assert results.steps[step].predictions[0].best.codes == expected.best.codes
        assert results.best.candidates[step].seed == seed
        present = expected.best.codes
        assert results.best.candidates[step].codes == present


def test_order_and_batch_change_nothing(vlm, sources):
    search = Search(num_candidates=4, num_beams=3)
    expected = roll_out(vlm, vlm, sources, ACTIONS, search=search, seed=[1, 2, 3])
    order = [2, 0]
    some = roll_out(vlm, vlm, sources[order], [ACTIONS[row] for row in order], search=search, seed=[3, 1], batch_size=3)
    for results, row in zip(some, order, strict=True):
        for entry, other in zip(results.trajectories, expected[row].trajectories, strict=True):
            assert [item.codes for item in entry.candidates] == [item.codes for item in other.candidates]
            assert entry.logprob == pytest.approx(other.logprob, abs=1e-4)


def test_guarded_candidates_continue_only_where_no_other_does(vlm, sources):
    """With everything above the guard nothing changes; else sequences with fewer guarded steps come first."""
    free = roll_out(vlm, vlm, sources, ACTIONS, search=Search(num_candidates=6, num_beams=4), sampling=SHARP, seed=1)
    search = Search(num_candidates=6, num_beams=4, max_unchanged=0.2)
    guarded = roll_out(vlm, vlm, sources, ACTIONS, search=search, sampling=SHARP, seed=1)
    counts = []
    for rollout in guarded:
        for entry in rollout.trajectories:
            sources = [rollout.source.codes, *(item.codes for item in entry.candidates[:-1])]
            shares = [np.mean(np.array(a) == np.array(b.codes)) for a, b in zip(sources, entry.candidates, strict=True)]
            assert [item.unchanged_share for item in entry.candidates] == shares
            assert entry.guarded == sum(share > 0.2 for share in shares)
        counts.append([entry.guarded for entry in rollout.trajectories])
    assert all(row == sorted(row) for row in counts)
    best = [[item.codes for item in rollout.best.candidates] for rollout in guarded]
    assert best != [[item.codes for item in rollout.best.candidates] for rollout in free]


def test_steps_are_reported(vlm, sources):
    reports = []
    results = roll_out(
        vlm, vlm, sources, ACTIONS, search=Search(num_candidates=2, num_beams=2), seed=1, on_step=reports.append
    )
    assert [(item.step, item.rollouts) for item in reports] == [(0, (0, 1, 2)), (1, (0, 2)), (2, (0,))]
    samples = [
        sum(len(p.candidates) for r in results if len(r.steps) > k for p in r.steps[k].predictions) for k in range(3)
    ]
    assert [item.num_candidates for item in reports] == samples


def test_seeds_of_steps():
    assert step_seed(9, 0, Observation.from_codes((1, 2), "codec")) == 9
    seeds = {
        step_seed(seed, step, Observation.from_codes(codes, "codec"))
        for seed in (1, 2)
        for step in (1, 2)
        for codes in ((1, 2), (2, 1), (12,))
    }
    assert len(seeds) == 12 and max(seeds) < 2**48
    assert step_seed(9, 1, Observation.from_codes((1, 2), "codec")) == seed_of(9, 1, (1, 2))


def test_bad_input_is_named(vlm, sources):
    with pytest.raises(InputError, match=r"actions of rollout 1 = \[\]: expected a list of one action or more"):
        roll_out(vlm, vlm, sources[:2], [["put"], []], search=Search())
    with pytest.raises(InputError, match="actions of rollout 0 = 'put'"):
        roll_out(vlm, vlm, sources[:1], ["put"], search=Search())
    with pytest.raises(InputError, match="3 sources, 1 rollouts"):
        roll_out(vlm, vlm, sources, [["put"]], search=Search())
    with pytest.raises(InputError, match="action '' is empty"):
        roll_out(vlm, vlm, sources[:1], [["put", ""]], search=Search(num_candidates=1))
    assert roll_out(vlm, vlm, sources[:0], [], search=Search()) == []
