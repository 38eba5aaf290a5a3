"""Compute linear layers of one input and their low-rank adapters, forward and backward, as plain functions.

Adapters that see the same input are one product with all their A. Dropout's masks are not kept: they are sampled
again from their seeds. Suffixes: X rows (tokens), I inputs, O outputs of a linear layer, R rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Projection:
    """A linear layer ``x W^T + b + scale * mask(x) A^T B^T`` and perhaps its adapter."""

    weight_OI: Tensor  # noqa: N815
    bias_O: Tensor | None = None  # noqa: N815
    down_RI: Tensor | None = None  # noqa: N815
    """A; none: no adapter."""
    up_OR: Tensor | None = None  # noqa: N815
    scale: float = 1.0
    dropout: float = 0.0


@dataclass(frozen=True)
class Group:
    """Layers whose adapters see the same input: one product with all their A."""

    numbers: tuple[int, ...]
    ranks: list[int]
    dropout: float
    seed: int
    """Of the mask, if there is one."""

    @property
    def dropped_per_65536(self) -> int:
        """Return the share that is dropped, as fine as the numbers that a mask is sampled from."""
        return round(self.dropout * 65536)

    def scale(self, layer: Projection) -> float:
        """Return the adapter's scale; what dropout leaves is scaled up, so that its expectation stays."""
        return layer.scale / (1 - self.dropped_per_65536 / 65536)

    def mask(self, like_XI: Tensor) -> Tensor | None:
        """Sample dropout's mask, bool, the same at every call; None without dropout."""
        if not self.dropped_per_65536:
            return None
        # The meta device has no generator.
        generator = None if like_XI.is_meta else torch.Generator(like_XI.device).manual_seed(self.seed)
        # Four elements of one random number: on a CPU a fifth of the time of torch's ``bernoulli_``.
        numbers = torch.empty(-(-like_XI.numel() // 4), dtype=torch.int64, device=like_XI.device)
        random_X = numbers.random_(-(1 << 63), None, generator=generator).view(torch.int16)[: like_XI.numel()]
        return (random_X >= self.dropped_per_65536 - 32768).view(like_XI.shape)


@dataclass(frozen=True)
class LinearSpec:
    """Describes what :func:`linear` computes, without its tensors: of ``layers`` only numbers are read."""

    layers: tuple[Projection, ...]
    dtype: torch.dtype
    groups: list[Group]


TENSORS_PER_LAYER = 4
"""Tensors of a projection in the arguments: weight, bias, A, B."""
_DOWN, _UP = 2, 3


def tensors_of(layers: Sequence[Projection]) -> list[Tensor | None]:
    """List the tensors of all layers, as :func:`linear` takes them."""
    return [tensor for layer in layers for tensor in (layer.weight_OI, layer.bias_O, layer.down_RI, layer.up_OR)]


def build_spec(layers: Sequence[Projection], dtype: torch.dtype, *, one_mask: bool, training: bool) -> LinearSpec:
    """Group the layers' adapters and sample the seeds of their masks.

    Args:
        layers: Of one input.
        dtype: Of the products.
        one_mask: Adapters share a dropout mask.
        training: Whether adapters have dropout.
    """
    members: dict[tuple[float, int], list[int]] = {}
    for number, layer in enumerate(layers):
        if layer.down_RI is not None:
            dropout = layer.dropout if training else 0.0
            members.setdefault((dropout, 0 if one_mask or not dropout else number), []).append(number)
    groups = []
    for (dropout, _), numbers in members.items():
        # Adapters may differ in rank; their products are joined along it.
        ranks = [len(_present(layers[number].down_RI)) for number in numbers]
        # Of the generator that the seed of the step sets and that checkpointing sets back.
        seed = int(torch.randint(1 << 62, (), device="cpu")) if dropout else 0
        groups.append(Group(tuple(numbers), ranks, dropout, seed))
    return LinearSpec(tuple(layers), dtype, groups)


def linear(input_XI: Tensor, spec: LinearSpec, tensors: Sequence[Tensor | None]) -> tuple[list[Tensor], list[Tensor]]:
    """Compute linear layers of one input.

    Args:
        input_XI: The input, in the precision of ``spec``.
        spec: The layers.
        tensors: Of all layers (:func:`tensors_of`).

    Returns:
        The result of every layer; and of every group its masked input times its A^T, side by side, which the backward
        pass needs.
    """
    parts = _by_layer(tensors)
    results = []
    for weight, bias, *_ in parts:
        matrix = _present(weight).to(spec.dtype).T
        # addmm adds the bias within the product.
        results.append(input_XI @ matrix if bias is None else torch.addmm(bias.to(spec.dtype), input_XI, matrix))
    lowranks = []
    # Their adapters: added in place, without a tensor of the output's size.
    for group in spec.groups:
        mask_XI = group.mask(input_XI)
        masked_XI = input_XI if mask_XI is None else input_XI * mask_XI
        lowrank_XR = masked_XI @ _stacked(parts, group, spec.dtype).T
        for number, own_XR in zip(group.numbers, torch.split(lowrank_XR, group.ranks, dim=1), strict=True):
            up_RO = _present(parts[number][_UP]).to(spec.dtype).T
            results[number].addmm_(own_XR, up_RO, alpha=group.scale(spec.layers[number]))
        lowranks.append(lowrank_XR)
    return results, lowranks


def linear_backward(
    grads: Sequence[Tensor],
    input_XI: Tensor,
    spec: LinearSpec,
    tensors: Sequence[Tensor | None],
    lowranks: Sequence[Tensor],
    *,
    needs: Sequence[bool],
    needs_input: bool,
) -> tuple[Tensor | None, list[Tensor | None]]:
    """Compute the gradients of :func:`linear`.

    Args:
        grads: Of every layer's result.
        input_XI: The input of the forward pass.
        spec: That of the forward pass.
        tensors: Those of the forward pass.
        lowranks: Its second result.
        needs: Of each tensor, whether its gradient is needed.
        needs_input: Whether that of the input is.

    Returns:
        Gradients of the input and of every tensor; None where none is needed.
    """
    parts = _by_layer(tensors)
    tensor_grads: list[Tensor | None] = [None] * len(tensors)
    total_XI: Tensor | None = None
    # 1. The layers themselves.
    for number, (weight, bias, *_) in enumerate(parts):
        first, grad_XO = number * TENSORS_PER_LAYER, grads[number]
        if needs_input:
            matrix = _present(weight).to(spec.dtype)
            # One sum over all layers: a tensor for each would be as large as the input.
            total_XI = grad_XO @ matrix if total_XI is None else total_XI.addmm_(grad_XO, matrix)
        if needs[first]:
            tensor_grads[first] = (grad_XO.T @ input_XI).to(_present(weight).dtype)
        if bias is not None and needs[first + 1]:
            tensor_grads[first + 1] = grad_XO.sum(0).to(bias.dtype)
    # 2. Their adapters, a group at a time: one product with all its A.
    for group, lowrank_XR in zip(spec.groups, lowranks, strict=True):
        scales = {number: group.scale(spec.layers[number]) for number in group.numbers}
        ups = {number: _present(parts[number][_UP]).to(spec.dtype) for number in group.numbers}
        grad_XR = torch.cat([grads[number] @ up * scales[number] for number, up in ups.items()], dim=1)
        down_RI = _stacked(parts, group, spec.dtype)
        mask_XI = group.mask(input_XI)
        if total_XI is not None and mask_XI is not None:
            total_XI.add_((grad_XR @ down_RI).mul_(mask_XI))
        elif total_XI is not None:
            total_XI.addmm_(grad_XR, down_RI)
        masked_XI = input_XI if mask_XI is None else input_XI * mask_XI
        downs = torch.split(grad_XR.T @ masked_XI, group.ranks)
        own_lowranks = torch.split(lowrank_XR, group.ranks, dim=1)
        for number, own_XR, grad_RI in zip(group.numbers, own_lowranks, downs, strict=True):
            first = number * TENSORS_PER_LAYER
            if needs[first + _DOWN]:
                tensor_grads[first + _DOWN] = grad_RI.to(_present(parts[number][_DOWN]).dtype)
            if needs[first + _UP]:
                grad_OR = (grads[number].T @ own_XR).mul_(scales[number])
                tensor_grads[first + _UP] = grad_OR.to(_present(parts[number][_UP]).dtype)
    return total_XI, tensor_grads


def _by_layer(tensors: Sequence[Tensor | None]) -> list[Sequence[Tensor | None]]:
    return [tensors[start : start + TENSORS_PER_LAYER] for start in range(0, len(tensors), TENSORS_PER_LAYER)]


def _present(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor


def _stacked(parts: Sequence[Sequence[Tensor | None]], group: Group, dtype: torch.dtype) -> Tensor:
    """Stack the A of a group's adapters."""
    downs = [_present(parts[number][_DOWN]).to(dtype) for number in group.numbers]
    return downs[0] if len(downs) == 1 else torch.cat(downs)
