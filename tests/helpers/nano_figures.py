"""Measure models of the nano world on fresh pairs: how often each role is right by the oracle."""

import numpy as np
import torch

from tests.helpers.code_calls import predict_observations
from wm.dynamics import Sampling, Search, load_role, propose_actions
from wm.models import load_codec
from wm.nano.world.oracle import action_is_right, judge_states, read_states
from wm.nano.world.triplets import sample_triplet


def fresh_pairs(count: int, seed: int):
    """Sources, actions, targets that no split of ``jobs.tabletop`` holds (its streams are 11 to 13)."""
    rng = np.random.default_rng([seed, 31])
    rows = [sample_triplet(rng) for _ in range(count)]
    return np.stack([row[0] for row in rows]), [row[1] for row in rows], np.stack([row[2] for row in rows])


def inverse_share(idm: str, count: int, seed: int = 0) -> float:
    """The share of pairs whose greedy action gives the target's state."""
    sources, _, targets = fresh_pairs(count, seed)
    codec, role = load_codec(idm), load_role(idm)
    with torch.inference_mode():
        proposals = propose_actions(
            role.model, codec.encode(sources), codec.encode(targets), max_new_tokens=12, runner=role.runner
        )
    right = [action_is_right(*row) for row in zip(sources, targets, [row.text for row in proposals], strict=True)]
    return float(np.mean(right))


def forward_shares(fdm: str, idm: str, count: int, num_candidates: int, seed: int = 0) -> tuple[float, float]:
    """The share of right predictions: of a single sample (mean over the candidates), and of the verified best."""
    sources, actions, targets = fresh_pairs(count, seed)
    codec, forward, inverse = load_codec(fdm), load_role(fdm), load_role(idm)
    with torch.inference_mode():
        predictions = predict_observations(
            forward.model, inverse.model, codec.encode(sources), actions,
            search=Search(num_candidates=num_candidates), sampling=Sampling(top_p=0.95), seed=seed,
            fdm_runner=forward.runner, idm_runner=inverse.runner,
        )  # fmt: skip
        images = codec.decode(torch.tensor([entry.codes for row in predictions for entry in row.candidates]))
    before, after, states = read_states(sources), read_states(targets), read_states(images)
    right = np.array(
        [
            judge_states(before[n // num_candidates], after[n // num_candidates], state).right
            for n, state in enumerate(states)
        ]
    ).reshape(count, num_candidates)
    return float(right.mean()), float(right[:, 0].mean())
