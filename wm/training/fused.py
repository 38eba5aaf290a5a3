"""The parts of a decoder layer as autograd functions that keep little: what is cheap is computed twice.

Kept are the inputs of norms and of the gate, and what has the adapter's rank; normalised states, activations, dropout
masks (from their seeds) and whatever has another precision are made again in the backward pass. As in Liger-Kernel
(arXiv 2410.10989) and Unsloth, in plain torch. Adapters work in the precision of the activations: their matrices are
cast, which are small, never the activations.

Suffixes: X rows (tokens), I inputs, O outputs of a linear layer, R rank.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

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
class Norm:
    """An RMS norm; ``of_gemma``: multiplies by 1 + weight, and in float32 (the others in the input's precision)."""

    weight_I: Tensor  # noqa: N815
    eps: float
    of_gemma: bool = False


ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "silu": (torch.nn.functional.silu, torch.ops.aten.silu_backward),
    "gelu": (torch.nn.functional.gelu, torch.ops.aten.gelu_backward),
    "gelu_tanh": (
        lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
        lambda grad, x: torch.ops.aten.gelu_backward(grad, x, approximate="tanh"),
    ),
}
"""Name → the function, and its gradient from the gradient of its result and its input."""


def project(x: Tensor, norm: Norm | None, layers: Sequence[Projection], *, one_mask: bool, training: bool) -> Any:
    """Linear layers, adapters included, of the same input ``x`` (…, I), normalised before if ``norm``; a tuple of
    (…, O).

    ``one_mask``: adapters with dropout share one mask of the input; else each draws its own, as PEFT does. Under
    autocast the products are of its precision.
    """
    call = _call(norm, layers, _compute_dtype(x), one_mask, training)
    with torch.autocast(x.device.type, enabled=False):
        weight = norm.weight_I if norm is not None else None
        return _Project.apply(call, x, weight, *_tensors(layers))  # type: ignore[no-untyped-call]


def gated_down(gate: Tensor, up: Tensor, activation: str, layer: Projection, *, training: bool) -> Tensor:
    """``layer`` of ``activation(gate) * up``: (…, M) and (…, M) to (…, O)."""
    call = _call(None, [layer], _compute_dtype(gate), True, training)
    with torch.autocast(gate.device.type, enabled=False):
        given = (call, activation, gate, up, *_tensors([layer]))
        result: Tensor = _GatedDown.apply(*given)  # type: ignore[no-untyped-call]
    return result


def rms_norm(x: Tensor, norm: Norm) -> Tensor:
    """The norm by itself, keeping its input."""
    with torch.autocast(x.device.type, enabled=False):
        result: Tensor = _RmsNorm.apply(norm, x, norm.weight_I)  # type: ignore[no-untyped-call]
    return result


@dataclass(frozen=True)
class _Group:
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
        generator = torch.Generator(like_XI.device).manual_seed(self.seed)
        numbers = torch.empty(-(-like_XI.numel() // 4), dtype=torch.int64, device=like_XI.device)
        drawn = numbers.random_(-(1 << 63), None, generator=generator).view(torch.int16)[: like_XI.numel()]
        return (drawn >= self.dropped_of_65536 - 32768).view(like_XI.shape)


@dataclass(frozen=True)
class _Call:
    """What is no tensor. Of ``norm`` and ``layers`` only what is no tensor is read."""

    norm: Norm | None
    layers: tuple[Projection, ...]
    dtype: torch.dtype
    groups: list[_Group]


_EACH = 4
"""Tensors of a projection in the arguments: weight, bias, A, B."""
_DOWN, _UP = 2, 3


def _tensors(layers: Sequence[Projection]) -> list[Tensor | None]:
    return [tensor for layer in layers for tensor in (layer.weight_OI, layer.bias_O, layer.down_RI, layer.up_OR)]


def _call(norm: Norm | None, layers: Sequence[Projection], dtype: torch.dtype, one_mask: bool, training: bool) -> _Call:
    members: dict[tuple[float, int], list[int]] = {}
    for number, layer in enumerate(layers):
        if layer.down_RI is not None:
            dropout = layer.dropout if training else 0.0
            members.setdefault((dropout, 0 if one_mask or not dropout else number), []).append(number)
    groups = []
    for (dropout, _), numbers in members.items():
        ranks = [len(_need(layers[number].down_RI)) for number in numbers]
        # Of the generator that the seed of the step sets and that checkpointing sets back.
        seed = int(torch.randint(1 << 62, ())) if dropout else 0
        groups.append(_Group(tuple(numbers), ranks, dropout, seed))
    return _Call(norm, tuple(layers), dtype, groups)


def _compute_dtype(x: Tensor) -> torch.dtype:
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    """1 / root mean square, (…, 1), in float32 or float64."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    return (torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide).square() / x.shape[-1] + eps).rsqrt()


def _normalise(x: Tensor, inverse: Tensor, weight: Tensor, norm: Norm) -> Tensor:
    wide = x * inverse
    if norm.of_gemma:
        return wide.mul_(1.0 + weight.to(wide.dtype)).to(x.dtype)
    narrow = wide.to(x.dtype)
    return narrow.mul_(weight) if weight.dtype == narrow.dtype else weight * narrow


def _norm_backward(
    grad: Tensor, x: Tensor, inverse: Tensor, weight: Tensor, norm: Norm, *, needs: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of the input and the weight."""
    factor = 1.0 + weight.to(inverse.dtype) if norm.of_gemma else weight.to(inverse.dtype)
    unit = x * inverse
    weight_grad = (grad * unit).flatten(0, -2).sum(0).to(weight.dtype) if needs[1] else None
    if not needs[0]:
        return None, weight_grad
    inner = grad * factor
    mean = (inner * unit).mean(-1, keepdim=True)
    return inner.sub_(unit.mul_(mean)).mul_(inverse).to(x.dtype), weight_grad


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, norm: Norm, x: Tensor, weight: Tensor) -> Tensor:
        inverse = _inverse_rms(x, norm.eps)
        ctx.norm = norm
        ctx.save_for_backward(x, inverse, weight)
        return _normalise(x, inverse, weight, norm)

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, inverse, weight = ctx.saved_tensors
        return None, *_norm_backward(grad, x, inverse, weight, ctx.norm, needs=ctx.needs_input_grad[1:])


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: _Call, x: Tensor, norm_weight: Tensor | None, *tensors: Tensor | None) -> Any:
        inverse = None
        given = x
        if call.norm is not None and norm_weight is not None:
            inverse = _inverse_rms(x, call.norm.eps)
            given = _normalise(x, inverse, norm_weight, call.norm)
        given_XI = given.to(call.dtype).flatten(0, -2)
        results, ranked = _linear(given_XI, call, tensors)
        ctx.call = call
        ctx.save_for_backward(x, inverse, norm_weight, *tensors, *ranked)
        return tuple(result.unflatten(0, x.shape[:-1]) for result in results)

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        call: _Call = ctx.call
        x, inverse, norm_weight, *rest = ctx.saved_tensors
        count = _EACH * len(call.layers)
        tensors, ranked = rest[:count], rest[count:]
        needs_x, needs_norm, *needs = ctx.needs_input_grad[1:]
        given = x
        if inverse is not None:
            given = _normalise(x, inverse, norm_weight, call.norm)  # type: ignore[arg-type]
        given_XI = given.to(call.dtype).flatten(0, -2)
        flat = [grad.to(call.dtype).flatten(0, -2) for grad in grads]
        grad_XI, found = _linear_backward(
            flat, given_XI, call, tensors, ranked, needs=needs, needs_given=needs_x or needs_norm
        )
        if grad_XI is None:
            return None, None, None, *found
        grad_x: Tensor | None = grad_XI.view(x.shape)
        grad_norm = None
        if inverse is not None:
            grad_x, grad_norm = _norm_backward(
                grad_x,  # type: ignore[arg-type]
                x,
                inverse,
                norm_weight,
                call.norm,  # type: ignore[arg-type]
                needs=(needs_x, needs_norm),
            )
        return None, grad_x.to(x.dtype) if grad_x is not None else None, grad_norm, *found


class _GatedDown(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: _Call, activation: str, gate: Tensor, up: Tensor, *tensors: Tensor | None) -> Tensor:
        given_XI = ACTIVATIONS[activation][0](gate).mul_(up).to(call.dtype).flatten(0, -2)
        (result,), ranked = _linear(given_XI, call, tensors)
        ctx.call, ctx.activation = call, activation
        ctx.save_for_backward(gate, up, *tensors, *ranked)
        return result.unflatten(0, gate.shape[:-1])

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        call: _Call = ctx.call
        gate, up, *rest = ctx.saved_tensors
        tensors, ranked = rest[:_EACH], rest[_EACH:]
        needs_gate, needs_up, *needs = ctx.needs_input_grad[2:]
        function, derivative = ACTIVATIONS[ctx.activation]
        active = function(gate)
        given_XI = (active * up).to(call.dtype).flatten(0, -2)
        flat = [grad.to(call.dtype).flatten(0, -2)]
        grad_XI, found = _linear_backward(
            flat, given_XI, call, tensors, ranked, needs=needs, needs_given=needs_gate or needs_up
        )
        del given_XI
        if grad_XI is None:
            return None, None, None, None, *found
        inner = grad_XI.view(gate.shape)
        grad_up = active.mul_(inner) if needs_up else None
        grad_gate = derivative(inner.mul_(up), gate) if needs_gate else None
        return None, None, grad_gate, grad_up, *found


def _linear(given_XI: Tensor, call: _Call, tensors: Sequence[Tensor | None]) -> tuple[list[Tensor], list[Tensor]]:
    """The results of every layer; and of every group its masked input times its A^T, side by side."""
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
        for number, own_XR in zip(group.numbers, ranked_XR.split(group.ranks, dim=1), strict=True):
            up_RO = _need(parts[number][_UP]).to(call.dtype).T
            results[number].addmm_(own_XR, up_RO, alpha=group.scale(call.layers[number]))
        ranked.append(ranked_XR)
    return results, ranked


def _linear_backward(
    grads: Sequence[Tensor],
    given_XI: Tensor,
    call: _Call,
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
        first, grad_XO = number * _EACH, grads[number]
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
        downs = (grad_XR.T @ seen_XI).split(group.ranks)
        for number, own_XR, grad_RI in zip(group.numbers, ranked_XR.split(group.ranks, dim=1), downs, strict=True):
            first = number * _EACH
            if needs[first + _DOWN]:
                found[first + _DOWN] = grad_RI.to(_need(parts[number][_DOWN]).dtype)
            if needs[first + _UP]:
                grad_OR = (grads[number].T @ own_XR).mul_(scales[number])
                found[first + _UP] = grad_OR.to(_need(parts[number][_UP]).dtype)
    return total_XI, found


def _by_layer(tensors: Sequence[Tensor | None]) -> list[Sequence[Tensor | None]]:
    return [tensors[start : start + _EACH] for start in range(0, len(tensors), _EACH)]


def _need(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor


def _stacked(parts: Sequence[Sequence[Tensor | None]], group: _Group, dtype: torch.dtype) -> Tensor:
    """The A of a group's adapters on top of each other."""
    downs = [_need(parts[number][_DOWN]).to(dtype) for number in group.numbers]
    return downs[0] if len(downs) == 1 else torch.cat(downs)
