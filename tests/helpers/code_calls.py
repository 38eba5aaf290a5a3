"""Call verification, search and rollouts with unified models and arrays of codes, as most tests have them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from wm import dynamics
from wm.dynamics import (
    Branch,
    Candidate,
    CodeForward,
    CodeInverse,
    Observation,
    Prediction,
    Role,
    Rollout,
    observe_codes,
)
from wm.dynamics.scoring import as_codes, code_lists
from wm.evaluation import bank
from wm.evaluation.bank import Bank
from wm.evaluation.heldout import HeldOut
from wm.models import ImageCodec, UnifiedVLM
from wm.sampling import ModelRunner, build_model_runner


def forward(fdm: UnifiedVLM, runner: ModelRunner | None = None) -> CodeForward:
    """Make a forward model of a unified one."""
    return CodeForward(Role(fdm, runner or build_model_runner(fdm)))


def inverse(idm: UnifiedVLM, runner: ModelRunner | None = None) -> CodeInverse:
    """Make an inverse model of a unified one."""
    return CodeInverse(Role(idm, runner or build_model_runner(idm)))


def observe(codes_BN: Any, model: UnifiedVLM) -> list[Observation]:
    """Make observations of a model's codes, given in any form."""
    return observe_codes(code_lists("source", codes_BN), model.codec_id)


def verify(
    idm: UnifiedVLM,
    source_N: Any,
    action: str,
    candidates_KN: Any,
    *,
    runner: ModelRunner | None = None,
    **options: Any,
) -> list[Candidate]:
    """Verify candidates of one source."""
    (source,) = observe(as_codes(source_N, "source")[None], idm)
    candidates = as_codes(candidates_KN, "candidates").tolist()
    return dynamics.verify(inverse(idm, runner), source, action, observe_codes(candidates, idm.codec_id), **options)


def verify_batch(
    idm: UnifiedVLM, source_BN: Any, actions: Sequence[str], candidates_BKN: Any, **options: Any
) -> list[list[Candidate]]:
    """Verify candidates of several sources."""
    candidates = [observe_codes(row, idm.codec_id) for row in as_codes(candidates_BKN, "candidates").tolist()]
    return dynamics.verify_batch(inverse(idm), observe(source_BN, idm), actions, candidates, **options)


def predict_observations(
    fdm: UnifiedVLM,
    idm: UnifiedVLM,
    source_BN: Any,
    actions: Sequence[str],
    *,
    fdm_runner: ModelRunner | None = None,
    idm_runner: ModelRunner | None = None,
    **options: Any,
) -> list[Prediction]:
    """Predict after each (source, action)."""
    return dynamics.predict_observations(
        forward(fdm, fdm_runner), inverse(idm, idm_runner), observe(source_BN, fdm), actions, **options
    )


def roll_out(
    fdm: UnifiedVLM, idm: UnifiedVLM, source_BN: Any, actions_BT: Sequence[Sequence[str]], **options: Any
) -> list[Rollout]:
    """Roll out from each source."""
    return dynamics.roll_out(forward(fdm), inverse(idm), observe(source_BN, fdm), actions_BT, **options)


def grow_tree(
    fdm: UnifiedVLM, idm: UnifiedVLM, source_1N: Any, levels: Sequence[Sequence[str]], **options: Any
) -> list[list[Branch]]:
    """Grow a tree from a source."""
    (source,) = observe(np.asarray(source_1N), fdm)
    return dynamics.grow_tree(forward(fdm), inverse(idm), source, levels, **options)


def sample_bank(
    fdm: Role, verifier: Role | None, held_out: HeldOut, codec: ImageCodec, *more: Any, **options: Any
) -> Bank:
    """Sample the bank of a forward model of codes."""
    idm = CodeInverse(verifier, codec) if verifier is not None else None
    return bank.sample_bank(CodeForward(fdm, codec), idm, held_out, codec, *more, **options)
