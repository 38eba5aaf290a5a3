"""Read the matrices of a model that may carry PEFT adapters: merged into a copy of the weight, or kept beside it.

A LoRA layer computes ``W x + b + scale * up (down x)`` (Hu et al., arXiv 2106.09685). Kept apart, ``W`` stays the
base's own tensor, so that several models over one base hold it once; that costs two thin products more a matrix. What
has no such form (DoRA, embeddings, other kinds of adapters) is merged into a copy of that one matrix, by PEFT's own
code. This module does not know what a matrix is for.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from wm.errors import InputError
from wm.models.adapters import MERGE_ERRORS
from wm.models.folder_checks import one_line


@dataclass(frozen=True)
class LowRank:
    """What adapters add to a product: ``x @ down @ up``, in the type of the matrix' weight, scales multiplied in."""

    down: Tensor
    """(inputs, rank)."""
    up: Tensor
    """(rank, outputs)."""


@dataclass(frozen=True)
class Matrix:
    """A linear map: ``weight`` (outputs, inputs), ``bias`` (outputs,) or None, and what is added to the weight."""

    weight: Tensor
    bias: Tensor | None = None
    low_rank: LowRank | None = None


def matrix_of(module: nn.Module, *, merge: bool = True) -> Matrix:
    """Read weight and bias of a linear or embedding layer with its active adapters.

    Args:
        module: A layer, wrapped by PEFT or not.
        merge: Merge adapters into a copy of the weight; without, low-rank ones are kept beside the base's own tensor.

    Returns:
        The matrix; its tensors are detached.

    Raises:
        InputError: For an adapter that PEFT cannot merge.
    """
    module = chosen(module)
    # 1. Active adapters: apart where that is wanted and possible, else merged into a copy.
    names = _active(module)
    if names:
        apart = None if merge else _apart(module, names)
        if apart is not None:
            return apart
        module = _merged_copy(module)
    # 2. Trained rows.
    elif hasattr(module, "token_adapter") and not module.disable_adapters:
        # Trained rows of an embedding or head: the wrapper's weight is a copy with these rows in it.
        weight: Any = module.weight
        return Matrix(weight.detach(), _bias_of(bare(module)))
    inner: Any = bare(module)
    return Matrix(inner.weight.detach(), _bias_of(inner))


def plain(module: nn.Module) -> Any:
    """Return a layer that is no matrix (a norm) with its active adapters merged."""
    module = chosen(module)
    return bare(_merged_copy(module) if _active(module) else module)


def chosen(module: nn.Module) -> nn.Module:
    """Return the module that computes: the given one, or an adapter's own complete copy of it (``modules_to_save``)."""
    saved: Any = getattr(module, "modules_to_save", None)
    if saved is None:
        return module
    name = next(iter(_names(module)), None)
    # An adapter that is switched off leaves the base's own module.
    use_saved = name in saved and not getattr(module, "disable_adapters", False)
    return chosen(saved[name] if use_saved else bare(module))


def bare(module: nn.Module) -> Any:
    """Return the layer under PEFT's wrappers."""
    for name in ("base_layer", "original_module"):
        inner = getattr(module, name, None)
        if inner is not None:
            return bare(inner)
    return module


def _names(module: Any) -> list[str]:
    active = module.active_adapter
    return [active] if isinstance(active, str) else list(active)


def _active(module: Any) -> list[str]:
    """List the adapters that change what the layer computes now."""
    # Merged adapters are in the weight already: added again they would count twice.
    if not hasattr(module, "base_layer") or module.disable_adapters or module.merged:
        return []
    # An active adapter need not have a part in every layer.
    present = module._get_available_adapters()
    return [name for name in module.active_adapters if name in present]


def _apart(module: Any, names: list[str]) -> Matrix | None:
    """Keep weight and adapters side by side; None for what is not a sum of a linear layer and low-rank ones."""
    from peft.tuners.lora.layer import Linear as LoraLinear

    base = module.base_layer
    plain = type(module) is LoraLinear and type(base) is nn.Linear and not module.fan_in_fan_out
    if not plain or any(name in module.lora_variant for name in names):
        return None
    weight, bias = base.weight.detach(), _bias_of(base)
    downs, ups = [], []
    for name in names:
        scale, down, up = module.scaling[name], module.lora_A[name], module.lora_B[name]
        # Transposed once here, so that a step multiplies without transposing; the scale is folded into ``up``.
        downs.append(down.weight.detach().to(weight).T)
        ups.append((up.weight.detach() * scale).to(weight).T.contiguous())
        if up.bias is not None:
            added = (up.bias.detach() * scale).to(weight)
            bias = added if bias is None else bias + added
    # Several adapters add up, so their ranks side by side are one adapter: two thin products, not two each.
    if len(names) == 1:
        return Matrix(weight, bias, LowRank(downs[0], ups[0]))
    return Matrix(weight, bias, LowRank(torch.cat(downs, dim=1), torch.cat(ups)))


def _merged_copy(module: Any) -> nn.Module:
    # PEFT merges in place, and the model must stay as it is.
    own: Any = copy.deepcopy(module)
    try:
        own.merge()
    except MERGE_ERRORS as error:
        kind = type(module).__name__
        raise InputError(f"an adapter of the kind {kind} cannot be merged by PEFT: {one_line(error)}") from error
    return own  # type: ignore[no-any-return]


def _bias_of(module: Any) -> Tensor | None:
    bias = getattr(module, "bias", None)
    return None if bias is None else bias.detach()
