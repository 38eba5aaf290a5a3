"""Build the scorers of the preference probe: a model's log-likelihoods of an action or of an image."""

from collections.abc import Sequence

import numpy as np
import torch

from wm.dynamics import ScoredAction
from wm.dynamics.fdm import score_observations
from wm.dynamics.idm import score_actions
from wm.dynamics.observation import Observation
from wm.dynamics.protocols import InverseModel
from wm.evaluation.heldout import HeldOut
from wm.evaluation.probe import Likelihoods, Scorer
from wm.models import UnifiedVLM
from wm.sampling import ModelRunner


def idm_scorer(idm: UnifiedVLM, *, batch_size: int | None = None, runner: ModelRunner | None = None) -> Scorer:
    """Build the scorer of an inverse model: log p(action | source, target) and the action's tokens.

    Args:
        idm: The model.
        batch_size: Rows of a pass; None: as the memory allows.
        runner: That of ``idm`` as it is now; built in each call without it.

    Returns:
        The scorer.
    """

    def score(source_BN: torch.Tensor, target_BN: torch.Tensor, actions: Sequence[str]) -> Likelihoods:
        # Normalised over the complete vocabulary: an action may be any text.
        with torch.inference_mode():
            return _to_likelihoods(
                score_actions(idm, source_BN, target_BN, actions, batch_size=batch_size, runner=runner)
            )

    return score


def fdm_scorer(fdm: UnifiedVLM, *, batch_size: int | None = None, runner: ModelRunner | None = None) -> Scorer:
    """Build the scorer of a forward model: log p(target | source, action) and the image's tokens.

    Args:
        fdm: The model.
        batch_size: Rows of a pass; None: as the memory allows.
        runner: That of ``fdm`` as it is now; built in each call without it.

    Returns:
        The scorer.
    """

    def score(source_BN: torch.Tensor, target_BN: torch.Tensor, actions: Sequence[str]) -> Likelihoods:
        # An image's number of tokens is the codec's, whatever the action.
        with torch.inference_mode():
            sums = score_observations(fdm, source_BN, actions, target_BN, batch_size=batch_size, runner=runner)
        return Likelihoods(np.array(sums), np.full(len(actions), float(target_BN.shape[1])))

    return score


def pixel_scorer(idm: InverseModel, held_out: HeldOut, *, batch_size: int = 8) -> Scorer:
    """Build a scorer as :func:`idm_scorer` of a model that reads true images.

    Args:
        idm: The model.
        held_out: Where the images are. The probe distinguishes them by their codes; of images with equal codes the
            first of the set is read for all.
        batch_size: Rows of a pass.

    Returns:
        The scorer.
    """
    # The probe hands out codes: each finds its image.
    images: dict[tuple[int, ...], Observation] = {}
    for codes_BN, observations in (
        (held_out.source_codes, held_out.observe("source", None)),
        (held_out.target_codes, held_out.observe("target", None)),
    ):
        for codes, observation in zip(codes_BN.tolist(), observations, strict=True):
            images.setdefault(tuple(codes), observation)

    def score(source_BN: torch.Tensor, target_BN: torch.Tensor, actions: Sequence[str]) -> Likelihoods:
        sources, targets = ([images[tuple(row)] for row in side.tolist()] for side in (source_BN, target_BN))
        # What the model keeps with an observation serves all negatives of it.
        return _to_likelihoods(idm.score(sources, targets, actions, batch_size=batch_size))

    return score


def _to_likelihoods(scored: Sequence[ScoredAction]) -> Likelihoods:
    return Likelihoods(
        np.array([action.logprob for action in scored]), np.array([float(action.num_tokens) for action in scored])
    )
