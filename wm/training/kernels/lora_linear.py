"""Linear layers of one input and their low-rank adapters, forward and backward, as plain functions of tensors.

Adapters that see the same input are one product with all their A. Dropout's masks are kept nowhere: they are drawn
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
    def dropped_of_65536(self) -> int:
        """The share that is dropped, as fine as the numbers that a mask is drawn from."""
        return round(self.dropout * 65536)

    def scale(self, layer: Projection) -> float:
        """Of the adapter; what dropout leaves is scaled up, so that its expectation stays."""
        return layer.scale / (1 - self.dropped_of_65536 / 65536)

    def mask(self, like_XI: Tensor) -> Tensor | None:
        """bool, the same whenever it is drawn: it is kept nowhere. None without dropout.

        Four elements come of one random number: on a CPU a fifth of the time of torch's ``bernoulli_``.
        """
        if not self.dropped_of_65536:
            return None
        is_meta = like_XI.is_meta  # it has no numbers, and no generator of them
        generator = None if is_meta else torch.Generator(like_XI.device).manual_seed(self.seed)
        numbers = torch.empty(-(-like_XI.numel() // 4), dtype=torch.int64, device=like_XI.device)
        drawn = numbers.random_(-(1 << 63), None, generator=generator).view(torch.int16)[: like_XI.numel()]
        return (drawn >= self.dropped_of_65536 - 32768).view(like_XI.shape)


@dataclass(frozen=True)
class Products:
    """What :func:`linear` computes, but for its tensors: of ``layers`` only numbers are read."""

    layers: tuple[Projection, ...]
    dtype: torch.dtype
    groups: list[Group]


EACH = 4
"""Tensors of a projection in the arguments: weight, bias, A, B."""
_DOWN, _UP = 2, 3


def tensors_of(layers: Sequence[Projection]) -> list[Tensor | None]:
    """List the tensors of all layers, as :func:`linear` takes them."""
    return [tensor for layer in layers for tensor in (layer.weight_OI, layer.bias_O, layer.down_RI, layer.up_OR)]


def products_of(layers: Sequence[Projection], dtype: torch.dtype, *, one_mask: bool, training: bool) -> Products:
    """Return what :func:`linear` needs beside tensors; seeds of masks are sampled here."""
    members: dict[tuple[float, int], list[int]] = {}
    for number, layer in enumerate(layers):
        if layer.down_RI is not None:
            dropout = layer.dropout if training else 0.0
            members.setdefault((dropout, 0 if one_mask or not dropout else number), []).append(number)
    groups = []
    for (dropout, _), numbers in members.items():
        ranks = [len(_need(layers[number].down_RI)) for number in numbers]
        # Of the generator that the seed of the step sets and that checkpointing sets back.
        seed = int(torch.randint(1 << 62, (), device="cpu")) if dropout else 0
        groups.append(Group(tuple(numbers), ranks, dropout, seed))
    return Products(tuple(layers), dtype, groups)


def linear(given_XI: Tensor, call: Products, tensors: Sequence[Tensor | None]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the results of every layer; and of every group its masked input times its A^T, side by side."""
    parts = _by_layer(tensors)
    results = []
    for weight, bias, *_ in parts:
        matrix = _need(weight).to(call.dtype).T
        results.append(given_XI @ matrix if bias is None else torch.addmm(bias.to(call.dtype), given_XI, matrix))
    ranked = []
    for group in call.groups:
        mask_XI = group.mask(given_XI)
        seen_XI = given_XI if mask_XI is None else given_XI * mask_XI
        ranked_XR = seen_XI @ _stacked(parts, group, call.dtype).T
        for number, own_XR in zip(group.numbers, torch.split(ranked_XR, group.ranks, dim=1), strict=True):
            up_RO = _need(parts[number][_UP]).to(call.dtype).T
            results[number].addmm_(own_XR, up_RO, alpha=group.scale(call.layers[number]))
        ranked.append(ranked_XR)
    return results, ranked


def linear_backward(
    grads: Sequence[Tensor],
    given_XI: Tensor,
    call: Products,
    tensors: Sequence[Tensor | None],
    ranked: Sequence[Tensor],
    *,
    needs: Sequence[bool],
    needs_given: bool,
) -> tuple[Tensor | None, list[Tensor | None]]:
    """Gradients of the input and of every tensor of every layer."""
    parts = _by_layer(tensors)
    found: list[Tensor | None] = [None] * len(tensors)
    total_XI: Tensor | None = None
    for number, (weight, bias, *_) in enumerate(parts):
        first, grad_XO = number * EACH, grads[number]
        if needs_given:
            matrix = _need(weight).to(call.dtype)
            total_XI = grad_XO @ matrix if total_XI is None else total_XI.addmm_(grad_XO, matrix)
        if needs[first]:
            found[first] = (grad_XO.T @ given_XI).to(_need(weight).dtype)
        if bias is not None and needs[first + 1]:
            found[first + 1] = grad_XO.sum(0).to(bias.dtype)
    for group, ranked_XR in zip(call.groups, ranked, strict=True):
        scales = {number: group.scale(call.layers[number]) for number in group.numbers}
        grad_XR = torch.cat(
            [grads[number] @ _need(parts[number][_UP]).to(call.dtype) * scales[number] for number in group.numbers],
            dim=1,
        )
        down_RI = _stacked(parts, group, call.dtype)
        mask_XI = group.mask(given_XI)
        if total_XI is not None and mask_XI is not None:
            total_XI.add_((grad_XR @ down_RI).mul_(mask_XI))
        elif total_XI is not None:
            total_XI.addmm_(grad_XR, down_RI)
        seen_XI = given_XI if mask_XI is None else given_XI * mask_XI
        downs = torch.split(grad_XR.T @ seen_XI, group.ranks)
        for number, own_XR, grad_RI in zip(
            group.numbers, torch.split(ranked_XR, group.ranks, dim=1), downs, strict=True
        ):
            first = number * EACH
            if needs[first + _DOWN]:
                found[first + _DOWN] = grad_RI.to(_need(parts[number][_DOWN]).dtype)
            if needs[first + _UP]:
                grad_OR = (grads[number].T @ own_XR).mul_(scales[number])
                found[first + _UP] = grad_OR.to(_need(parts[number][_UP]).dtype)
    return total_XI, found


def _by_layer(tensors: Sequence[Tensor | None]) -> list[Sequence[Tensor | None]]:
    return [tensors[start : start + EACH] for start in range(0, len(tensors), EACH)]


def _need(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor


def _stacked(parts: Sequence[Sequence[Tensor | None]], group: Group, dtype: torch.dtype) -> Tensor:
    """Stack the A of a group's adapters."""
    downs = [_need(parts[number][_DOWN]).to(dtype) for number in group.numbers]
    return downs[0] if len(downs) == 1 else torch.cat(downs)
