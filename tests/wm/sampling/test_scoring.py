"""Scores of candidates that share a source, against each sequence alone, written out in float64."""

import numpy as np
import pytest
import torch

from tests.helpers.models_reference import lively, reference_logprob
from wm.dynamics import score_actions, score_observations
from wm.dynamics.scoring import completion_logprobs
from wm.models import flatten, load_model
from wm.sampling import build_model_runner
from wm.sampling.llama_layers import LlamaLayers


@pytest.fixture(scope="module")
def vlm(tiny_base):
    vlm = lively(load_model(tiny_base))
    vlm.module.double()
    return vlm


def cases():
    """Sources with 5, 5, 2 and 1 candidates, in mixed order; actions of several lengths."""
    generator = np.random.default_rng(0)
    sources = generator.integers(0, 16, (4, 4))
    owners = generator.permutation(np.repeat([0, 1, 2, 3], [5, 5, 2, 1]))
    targets = generator.integers(0, 16, (len(owners), 4))
    words = ["put", "move the red cup to the left of the blue bowl", "take the block up", "down"]
    return sources[owners], targets, [words[k % 4] for k in range(len(owners))]


def test_action_scores_in_float64(vlm):
    source_BN, target_BN, actions = cases()
    expected = [
        reference_logprob(
            vlm,
            flatten(vlm.layout("idm", source=source, target=target)),
            [*vlm.tokenize_action(action), vlm.eos_id],
        )
        for source, target, action in zip(source_BN, target_BN, actions, strict=True)
    ]
    for batch_size in (None, 3, 1):
        scores = score_actions(vlm, source_BN, target_BN, actions, batch_size=batch_size)
        assert [score.logprob for score in scores] == pytest.approx(expected, abs=1e-10)
        assert [score.num_tokens for score in scores] == [len(action.split()) + 1 for action in actions]


def test_observation_scores_in_float64(vlm):
    source_BN, target_BN, _ = cases()
    actions = ["put the cup"] * 12 + ["take"]
    rows = vlm.image_rows.tolist()
    expected = [
        reference_logprob(
            vlm,
            flatten(vlm.layout("fdm", source=source, action=action)),
            vlm.image_rows[torch.as_tensor(target)].tolist(),
            rows,
        )
        for source, target, action in zip(source_BN, target_BN, actions, strict=True)
    ]
    runner = build_model_runner(vlm)
    assert score_observations(vlm, source_BN, actions, target_BN) == pytest.approx(expected, abs=1e-10)
    assert score_observations(vlm, source_BN, actions, target_BN, runner=runner) == pytest.approx(expected, abs=1e-10)


def test_a_shared_source_is_read_once(vlm, monkeypatch):
    tokens = []
    run = LlamaLayers.run

    def counting(self, ids_X, *rest):
        tokens.append(len(ids_X))
        return run(self, ids_X, *rest)

    monkeypatch.setattr(LlamaLayers, "run", counting)
    target_BN = np.random.default_rng(1).integers(0, 16, (8, 4))
    score_actions(vlm, [[1, 2, 3, 4]] * 8, target_BN, ["put the cup"] * 8)
    # bos boi SOURCE eoi boi once, then TARGET eoi, three words and the end of each.
    assert tokens == [2 + 4 + 2, 8 * (4 + 1 + 3 + 1)]


def test_any_rows_of_the_vocabulary(vlm):
    segments = vlm.layout("fdm", source=[1, 2, 3, 4], action="put", target=[4, 3, 2, 1])
    rows = torch.cat((vlm.image_rows, torch.tensor([vlm.eos_id])))
    ((logprob, count),) = completion_logprobs(vlm, [segments], rows=rows)
    prefix = flatten(vlm.layout("fdm", source=[1, 2, 3, 4], action="put"))
    completion = vlm.image_rows[torch.tensor([4, 3, 2, 1])].tolist()
    assert logprob == pytest.approx(reference_logprob(vlm, prefix, completion, rows.tolist()), abs=1e-10)
    assert count == 4
