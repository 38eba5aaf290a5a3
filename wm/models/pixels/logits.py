"""Compute the logits of a pixel-reading model where they are needed: those of all positions would be larger than it."""

from collections.abc import Iterable
from inspect import signature
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from wm.errors import InputError


def logits_at(model: Any, inputs: dict[str, Any], position_P: Tensor) -> Tensor:
    """Compute logits (B, P, V) at these positions of every row.

    Args:
        model: Of transformers, or PEFT's around one.
        inputs: What its processor made of B rows.
        position_P: int64, on the model's device.
    """
    # Logits of all positions would be larger than the model; older classes have no choice.
    if keeps_logits(model):
        return model(**inputs, use_cache=False, logits_to_keep=position_P).logits  # type: ignore[no-any-return]
    return model(**inputs, use_cache=False).logits[:, position_P]  # type: ignore[no-any-return]


def keeps_logits(model: Any) -> bool:
    """Return whether a model computes logits of chosen positions alone.

    Args:
        model: Of transformers, or PEFT's around one.
    """
    # PEFT's own forward takes anything: what it wraps is asked.
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "logits_to_keep" in signature(inner.forward).parameters


def log_softmax(logits: Tensor) -> Tensor:
    """Normalise logits over their last dimension, in float32 or in their own type if that is wider.

    Args:
        logits: (…, V).
    """
    return torch.log_softmax(logits if logits.dtype == torch.float64 else logits.float(), -1)


def check_logprobs(model: Any, logprobs: Iterable[float]) -> None:
    """Raise :class:`InputError` if a model gives non-finite log-probabilities, which no ranking would show.

    Args:
        model: Of transformers, named in the message.
        logprobs: In nats.
    """
    if not all(map(isfinite, logprobs)):
        name = model.config.name_or_path or type(model).__name__
        raise InputError(
            f"model {name}: log-probabilities are nan or infinite; expected numbers. Its weights are damaged, or "
            f"{model.dtype} does not reach as far as they do (bfloat16 and float32 do)"
        )
