"""ProposalStream, scoring, sampling and verifying, against sums of log-probabilities written out by hand."""

import sys

import numpy as np
import pytest
import torch

from tests.helpers.code_calls import verify, verify_batch
from tests.helpers.models_reference import lively, reference_logprob
from wm.dynamics import Sampling, ScoredAction, propose_actions, sample_observations, score_actions, score_observations
from wm.errors import InputError
from wm.models import flatten, load_model
from wm.sampling import sample_images

ACTIONS = ["put", "move the red cup to the left of the blue bowl", "take the block up", "down"]


@pytest.fixture(scope="module")
def vlm(tiny_base):
    return lively(load_model(tiny_base))


@pytest.fixture(scope="module")
def images():
    generator = np.random.default_rng(0)
    return generator.integers(0, 16, (4, 4)), generator.integers(0, 16, (4, 4))


def test_action_scores_are_sums_over_action_and_end(vlm, images):
    source_BN, target_BN = images
    scores = score_actions(vlm, source_BN, target_BN, ACTIONS, batch_size=3)
    for row, action in enumerate(ACTIONS):
        prefix = flatten(vlm.layout("idm", source=source_BN[row], target=target_BN[row]))
        completion = [*vlm.tokenize_action(action), vlm.eos_id]
        assert scores[row].logprob == pytest.approx(reference_logprob(vlm, prefix, completion), abs=1e-3)
        assert scores[row].num_tokens == len(action.split()) + 1
        assert scores[row].mean_logprob == scores[row].logprob / scores[row].num_tokens
        assert scores[row].text == action


def test_observation_scores_are_sums_over_image_codes(vlm, images):
    source_BN, target_BN = images
    scores = score_observations(vlm, source_BN, ACTIONS, target_BN)
    for row, action in enumerate(ACTIONS):
        prefix = flatten(vlm.layout("fdm", source=source_BN[row], action=action))
        completion = vlm.image_rows[torch.as_tensor(target_BN[row])].tolist()
        expected = reference_logprob(vlm, prefix, completion, vlm.image_rows.tolist())
        assert scores[row] == pytest.approx(expected, abs=1e-3)


def test_all_observations_together_have_probability_one(vlm, images):
    """Two free tokens after two fixed ones: 256 images share the probability of their common beginning."""
    source_N, target_N = images[0][0], images[1][0]
    ends = [[*target_N[:2], first, second] for first in range(16) for second in range(16)]
    scores = score_observations(vlm, [source_N] * 256, ["put"] * 256, ends, batch_size=64)
    prefix = flatten(vlm.layout("fdm", source=source_N, action="put"))
    beginning = vlm.image_rows[torch.as_tensor(target_N[:2])].tolist()
    expected = reference_logprob(vlm, prefix, beginning, vlm.image_rows.tolist())
    assert float(torch.logsumexp(torch.tensor(scores), 0)) == pytest.approx(expected, abs=1e-3)


def test_a_proposal_scores_what_it_claims(vlm, images):
    source_BN, target_BN = np.random.default_rng(4).integers(0, 16, (2, 12, 4))
    proposals = propose_actions(vlm, source_BN, target_BN, max_new_tokens=4, batch_size=5)
    spoken = [row for row, proposal in enumerate(proposals) if proposal.text]
    assert len(spoken) > 3
    texts = [proposals[row].text for row in spoken]
    scores = score_actions(vlm, source_BN[spoken], target_BN[spoken], texts)
    for row, score in zip(spoken, scores, strict=True):
        assert score.text == proposals[row].text
        assert score.num_tokens == proposals[row].num_tokens
        assert score.logprob == pytest.approx(proposals[row].logprob, abs=1e-4)


def test_order_and_batch_size_change_no_score(vlm, images):
    source_BN, target_BN = images
    scores = [score.logprob for score in score_actions(vlm, source_BN, target_BN, ACTIONS)]
    order = [2, 0, 3, 1]
    shuffled = score_actions(vlm, source_BN[order], target_BN[order], [ACTIONS[k] for k in order], batch_size=2)
    assert [score.logprob for score in shuffled] == pytest.approx([scores[k] for k in order], abs=1e-5)


def test_observations_are_sampled_after_the_forward_prompt(vlm, images):
    source_BN, _ = images
    sampling = Sampling(temperature=0.8)
    codes_BKN = sample_observations(vlm, source_BN, ACTIONS, num_candidates=3, sampling=sampling, seed=2)
    prefixes = [
        flatten(vlm.layout("fdm", source=source, action=action))
        for source, action in zip(source_BN, ACTIONS, strict=True)
    ]
    assert torch.equal(codes_BKN, sample_images(vlm, prefixes, num_candidates=3, sampling=sampling, seed=2))
    assert codes_BKN.shape == (4, 3, 4)
    assert codes_BKN.dtype == torch.int64


def test_verification_orders_by_score_then_index(vlm, images):
    source_N = images[0][0]
    candidates = np.random.default_rng(5).integers(0, 16, (6, 4))
    candidates[4] = candidates[1]
    candidates[5] = candidates[1]
    ranking = verify(vlm, source_N, ACTIONS[1], candidates, seed=9)
    scores = [
        reference_logprob(
            vlm,
            flatten(vlm.layout("idm", source=source_N, target=codes)),
            [*vlm.tokenize_action(ACTIONS[1]), vlm.eos_id],
        )
        for codes in candidates
    ]
    assert [item.index for item in ranking] == sorted(range(6), key=lambda k: (-round(scores[k], 3), k))
    assert [item.rank for item in ranking] == list(range(6))
    assert [item.score.logprob for item in ranking] == pytest.approx(sorted(scores, reverse=True), abs=1e-3)
    assert {item.seed for item in ranking} == {9}
    assert all(item.codes == tuple(candidates[item.index]) for item in ranking)
    by_index = {item.index: item for item in ranking}
    assert [by_index[k].duplicate_of for k in range(6)] == [None, None, None, None, 1, 1]
    assert by_index[4].score is by_index[1].score


def test_equal_candidates_are_scored_once(vlm, images, monkeypatch):
    rows = []

    def counting(idm, source_BN, target_BN, actions, **settings):
        rows.extend(zip(map(tuple, source_BN), target_BN, actions, strict=True))
        return [ScoredAction(action, -1.0, 2) for action in actions]

    monkeypatch.setattr(sys.modules["wm.dynamics.code_models"], "score_actions", counting)
    candidates_BKN = np.array([[[1, 2, 3, 4]] * 3, [[1, 2, 3, 4], [4, 3, 2, 1], [1, 2, 3, 4]]])
    rankings = verify_batch(vlm, images[0][:2], ["put", "take"], candidates_BKN, seeds=[3, 4])
    assert len(rows) == len(set(rows)) == 3
    assert [[item.index for item in ranking] for ranking in rankings] == [[0, 1, 2], [0, 1, 2]], "ties: lower index"
    assert [{item.seed for item in ranking} for ranking in rankings] == [{3}, {4}]


def test_bad_input_is_named(vlm, images):
    source_BN, target_BN = images
    with pytest.raises(InputError, match="4 sources, 4 targets, 1 actions"):
        score_actions(vlm, source_BN, target_BN, ["put"])
    with pytest.raises(InputError, match=r"target: expected codebook ids, whole numbers, got torch.float64 \(4, 4\)"):
        score_actions(vlm, source_BN, target_BN + 0.5, ACTIONS)
    with pytest.raises(InputError, match=r"candidates: expected codebook ids, whole numbers, got torch.float32"):
        verify(vlm, source_BN[0], ACTIONS[0], torch.rand(2, 4))
    with pytest.raises(InputError, match=r"source: expected codes \(B, N\), got shape \(4,\)"):
        sample_observations(vlm, source_BN[0], ["put"], num_candidates=1)
    with pytest.raises(InputError, match="num_candidates must be at least 1, got 0"):
        sample_observations(vlm, source_BN[:1], ["put"], num_candidates=0)
    with pytest.raises(InputError, match="action '' is empty"):
        sample_observations(vlm, source_BN[:1], [""], num_candidates=1)
    with pytest.raises(InputError, match="row 0 has no candidates"):
        verify(vlm, source_BN[0], "put", np.zeros((0, 4), np.int64))
    with pytest.raises(InputError, match="code 99 is outside"):
        verify(vlm, source_BN[0], "put", np.full((1, 4), 99))
    assert score_actions(vlm, np.zeros((0, 4), np.int64), np.zeros((0, 4), np.int64), []) == []


@pytest.mark.parametrize("words", [5000, 96 - 12 + 1])
def test_an_action_for_which_there_are_no_positions_is_refused(vlm, images, words):
    """bos, twice boi, eoi and two images of 4 tokens are 12 of the tiny model's 96 positions in a forward prompt."""
    source_BN, target_BN = images
    action = " ".join(["left"] * words)
    message = (
        rf"action 'left left .* has {words:,} tokens: with both images the sequence has {words + 12:,}, the model 96"
    )
    with pytest.raises(InputError, match=message):
        sample_observations(vlm, source_BN[:1], [action], num_candidates=1)
    with pytest.raises(InputError, match=f"has {words:,} tokens"):
        verify(vlm, source_BN[0], action, target_BN[:2])
    shorter = " ".join(["left"] * (96 - 12))
    assert sample_observations(vlm, source_BN[:1], [shorter], num_candidates=1).shape == (1, 1, 4)
