"""Compute the completion-only loss of a model that reads pixels: the mean over the answer's tokens and the end.

Shape suffixes: B rows, T tokens, P positions, V vocabulary, M learned tokens.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from wm.models.pixels.chats import move_inputs
from wm.models.pixels.logits import logits_at
from wm.models.pixels.model import PixelModel


def pair_losses(
    model: PixelModel,
    ids_BT: Tensor,
    is_completion_BT: Tensor,
    weight_BT: Tensor,
    *,
    num_tokens: float,
    inputs: Mapping[str, Any],
) -> tuple[Tensor, Tensor]:
    """Compute the loss as :func:`wm.training.loss.completion_losses` does.

    Logits are those of the model's own forward pass, as in scoring, at the positions alone that predict a learned token
    in some row: answers are short, so that these are few.

    Args:
        model: The model.
        ids_BT: int64.
        is_completion_BT: bool, false at position 0.
        weight_BT: float32.
        num_tokens: Count of completion tokens of the global batch.
        inputs: What else the processor gave.

    Returns:
        The negative log-likelihood of the completion tokens in nats, summed and divided by ``num_tokens``; and each
        token's own (M,), without gradient, in the order of ``is_completion_BT[:, 1:].nonzero()``.
    """
    # The union over the rows: with padding on the right most rows share theirs.
    position_P = is_completion_BT[:, 1:].any(dim=0).nonzero()[:, 0]
    # Pixels in the model's type, as scoring gives them.
    others = move_inputs(inputs, ids_BT.device, model.inner.dtype)
    logits_BPV = logits_at(model.module, {"input_ids": ids_BT, **others}, position_P)
    mask_BP = is_completion_BT[:, position_P + 1]
    logits_MV = logits_BPV[mask_BP]
    # Normalised in float32 at least: a sum over a large vocabulary.
    wide_MV = logits_MV if logits_MV.dtype == torch.float64 else logits_MV.float()
    nll_M = F.cross_entropy(wide_MV, ids_BT[:, position_P + 1][mask_BP], reduction="none")
    weight_M = weight_BT[:, position_P + 1][mask_BP]
    return (nll_M * weight_M).sum() / num_tokens, nll_M.detach()
