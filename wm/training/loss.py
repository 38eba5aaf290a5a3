"""Compute the completion-only loss and its recognition weights (paper section 3.2, equation 2).

Not known here: where rows come from, optimisers, workers.
"""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from wm.config import Recipe
from wm.models.vlm import UnifiedVLM
from wm.training.kernels.chunked_loss import weighted_nll


class RecognitionWeights(Recipe):
    """Recognition weights of the target's image tokens; an inverse model completes no image and has none."""

    LATER_KEYS: ClassVar[frozenset[str]] = frozenset({"normalise"})

    enabled: bool = True
    """Weight each target token by how much the image changed there (the paper's C-FDM); off: the plain loss
    (C-FT)."""
    normalise: bool = True
    """Divide an image's weights by their mean, so that every image weighs as much as without weights. False: the
    squared distances as they are, equation 2 of the paper to the letter: images that change more count more, those
    that do not change count nothing, and the loss, its gradients and what optim.max_grad_norm clips have another
    scale."""
    floor: float = Field(default=0.0, ge=0.0, le=1.0)
    """Weight of a token that did not change at all: floor + (1 - floor) * w; w has mean 1 over the image if
    normalised."""
    clip: float = Field(default=0.0, ge=0.0)
    """Largest weight after the floor; 0: no limit. Clipping lowers the mean below 1."""


def recognition_weights(change_RN: Tensor, settings: RecognitionWeights) -> Tensor:
    """Compute recognition weights.

    w = change / mean(change) over the image, so an image weighs as much as without weights and a video's overall
    contrast does not matter; then ``floor + (1 - floor) * w``; then the clip. Two equal images (change all 0) get ones:
    there is nothing to emphasise. Without ``normalise`` w = change, as in equation 2; two equal images then get zeros.

    Args:
        change_RN: Squared L2 distances of features, each 0 or more.
        settings: Scale, floor and clip.

    Returns:
        (R, N) float32.
    """
    change_RN = change_RN.float()
    relative_RN = change_RN
    if settings.normalise:
        mean_R1 = change_RN.mean(dim=1, keepdim=True)
        # An image without change has no mean to divide by: plain weights.
        relative_RN = torch.where(mean_R1 > 0, change_RN / mean_R1.clamp_min(torch.finfo(torch.float32).tiny), 1.0)
    weights_RN = settings.floor + (1 - settings.floor) * relative_RN
    return weights_RN.clamp_max(settings.clip) if settings.clip > 0 else weights_RN


def completion_loss(
    vlm: UnifiedVLM, ids_BT: Tensor, is_completion_BT: Tensor, weight_BT: Tensor, num_tokens: float
) -> Tensor:
    """Return the loss of :func:`completion_losses` alone.

    Args:
        vlm: The model.
        ids_BT: int64.
        is_completion_BT: bool, false at position 0.
        weight_BT: float32.
        num_tokens: Divides the sum.
    """
    return completion_losses(vlm, ids_BT, is_completion_BT, weight_BT, num_tokens)[0]


def completion_losses(
    vlm: UnifiedVLM, ids_BT: Tensor, is_completion_BT: Tensor, weight_BT: Tensor, num_tokens: float
) -> tuple[Tensor, Tensor]:
    """Compute the loss. Equation 2 divides by the tokens of an image, which is the same number for every row.

    Logits are computed only at positions that predict a completion token, over the complete vocabulary, a chunk of
    positions at a time, and are not kept (:mod:`wm.training.kernels.chunked_loss`).

    Args:
        vlm: The model.
        ids_BT: int64.
        is_completion_BT: bool, false at position 0.
        weight_BT: float32.
        num_tokens: Count of completion tokens, not a sum of weights: with the global batch's count every token of it
            counts equally, however rows are spread over workers and micro-batches, as in one pass over the batch.

    Returns:
        The weighted negative log-likelihood of the completion tokens in nats, summed and divided by ``num_tokens``; and
        each token's own, unweighted (M,), without gradient, in the order of ``is_completion_BT[:, 1:].nonzero()``.
    """
    predicted_BT = is_completion_BT[:, 1:]
    # The head is applied at predicted positions alone: most of a prompt is not learned.
    hidden_MH = vlm.body(ids_BT[:, :-1])[predicted_BT]
    return weighted_nll(vlm, hidden_MH, ids_BT[:, 1:][predicted_BT], weight_BT[:, 1:][predicted_BT] / num_tokens)
