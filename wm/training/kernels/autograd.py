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

from wm.training.kernels.autocast import as_given, lowered_to
from wm.training.kernels.lora_linear import EACH, Products, Projection, linear, linear_backward, products_of, tensors_of


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
    call = products_of(layers, _compute_dtype(x), one_mask=one_mask, training=training)
    with as_given(x.device):
        weight = norm.weight_I if norm is not None else None
        return _Project.apply(call, norm, x, weight, *tensors_of(layers))  # type: ignore[no-untyped-call]


def gated_down(gate: Tensor, up: Tensor, activation: str, layer: Projection, *, training: bool) -> Tensor:
    """``layer`` of ``activation(gate) * up``: (…, M) and (…, M) to (…, O)."""
    call = products_of([layer], _compute_dtype(gate), one_mask=True, training=training)
    with as_given(gate.device):
        given = (call, activation, gate, up, *tensors_of([layer]))
        result: Tensor = _GatedDown.apply(*given)  # type: ignore[no-untyped-call]
    return result


def rms_norm(x: Tensor, norm: Norm) -> Tensor:
    """Apply the norm by itself, keeping its input."""
    with as_given(x.device):
        result: Tensor = _RmsNorm.apply(norm, x, norm.weight_I)  # type: ignore[no-untyped-call]
    return result


def _compute_dtype(x: Tensor) -> torch.dtype:
    return lowered_to(x.device) or x.dtype


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    """1 / root mean square, (…, 1), in float32 or float64."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    mean: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide).square() / x.shape[-1]
    return (mean + eps).rsqrt()


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
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, inverse, weight = ctx.saved_tensors
        return None, *_norm_backward(grad, x, inverse, weight, ctx.norm, needs=ctx.needs_input_grad[1:])


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, call: Products, norm: Norm | None, x: Tensor, norm_weight: Tensor | None, *tensors: Tensor | None
    ) -> Any:
        inverse = None
        given = x
        if norm is not None and norm_weight is not None:
            inverse = _inverse_rms(x, norm.eps)
            given = _normalise(x, inverse, norm_weight, norm)
        given_XI = given.to(call.dtype).flatten(0, -2)
        results, ranked = linear(given_XI, call, tensors)
        ctx.call, ctx.norm = call, norm
        ctx.save_for_backward(x, inverse, norm_weight, *tensors, *ranked)
        return tuple(result.view(*x.shape[:-1], -1) for result in results)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        call: Products = ctx.call
        norm: Norm = ctx.norm
        x, inverse, norm_weight, *rest = ctx.saved_tensors
        count = EACH * len(call.layers)
        tensors, ranked = rest[:count], rest[count:]
        needs_x, needs_norm, *needs = ctx.needs_input_grad[2:]
        given = x
        if inverse is not None:
            given = _normalise(x, inverse, norm_weight, norm)
        given_XI = given.to(call.dtype).flatten(0, -2)
        flat = [grad.to(call.dtype).flatten(0, -2) for grad in grads]
        grad_XI, found = linear_backward(
            flat, given_XI, call, tensors, ranked, needs=needs, needs_given=needs_x or needs_norm
        )
        if grad_XI is None:
            return None, None, None, None, *found
        grad_x: Any = grad_XI.view(x.shape)
        grad_norm = None
        if inverse is not None:
            needs_both = (needs_x, needs_norm)
            grad_x, grad_norm = _norm_backward(grad_x, x, inverse, norm_weight, norm, needs=needs_both)
        return None, None, grad_x.to(x.dtype) if grad_x is not None else None, grad_norm, *found


class _GatedDown(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: Products, activation: str, gate: Tensor, up: Tensor, *tensors: Tensor | None) -> Tensor:
        given_XI = ACTIVATIONS[activation][0](gate).mul_(up).to(call.dtype).flatten(0, -2)
        (result,), ranked = linear(given_XI, call, tensors)
        ctx.call, ctx.activation = call, activation
        ctx.save_for_backward(gate, up, *tensors, *ranked)
        return result.view(*gate.shape[:-1], -1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        call: Products = ctx.call
        gate, up, *rest = ctx.saved_tensors
        tensors, ranked = rest[:EACH], rest[EACH:]
        needs_gate, needs_up, *needs = ctx.needs_input_grad[2:]
        function, derivative = ACTIVATIONS[ctx.activation]
        active = function(gate)
        given_XI = (active * up).to(call.dtype).flatten(0, -2)
        flat = [grad.to(call.dtype).flatten(0, -2)]
        grad_XI, found = linear_backward(
            flat, given_XI, call, tensors, ranked, needs=needs, needs_given=needs_gate or needs_up
        )
        del given_XI
        if grad_XI is None:
            return None, None, None, None, *found
        inner = grad_XI.view(gate.shape)
        grad_up = active.mul_(inner) if needs_up else None
        grad_gate = derivative(inner.mul_(up), gate) if needs_gate else None
        return None, None, grad_gate, grad_up, *found
