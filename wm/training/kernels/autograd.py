"""Compute the parts of a decoder layer as autograd functions that keep little: what is cheap is computed twice.

Kept are the inputs of norms and of the gate, and low-rank activations; normalised states, activations, dropout masks
(from their seeds) and whatever has another precision are computed again in the backward pass. As in Liger-Kernel
(arXiv 2410.10989) and Unsloth, in plain torch. Adapters work in the precision of the activations: their matrices are
cast, which are small, never the activations.

Suffixes: X rows (tokens), I inputs, O outputs of a linear layer, R rank.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from wm.training.kernels.autocast import as_given, lowered_to
from wm.training.kernels.lora_linear import (
    TENSORS_PER_LAYER,
    LinearSpec,
    Projection,
    build_spec,
    linear,
    linear_backward,
    tensors_of,
)


@dataclass(frozen=True)
class Norm:
    """An RMS norm; ``of_gemma``: multiplies by 1 + weight, and in float32 (the others in the input's precision)."""

    weight_I: Tensor  # noqa: N815
    eps: float
    of_gemma: bool = False


class Context(Protocol):
    """torch's context of an autograd function: what its forward pass leaves for the backward pass."""

    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]
    spec: LinearSpec
    of_gemma: bool
    activation: str

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        """Keep tensors until the backward pass."""
        ...

    def mark_non_differentiable(self, *tensors: Tensor) -> None:
        """Declare results that have no gradient."""
        ...


ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "silu": (torch.nn.functional.silu, torch.ops.aten.silu_backward),
    "gelu": (torch.nn.functional.gelu, torch.ops.aten.gelu_backward),
    "gelu_tanh": (
        lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
        lambda grad, x: torch.ops.aten.gelu_backward(grad, x, approximate="tanh"),
    ),
}
"""Name → the function, and its gradient from the gradient of its result and its input."""


def project(
    x: Tensor, norm: Norm | None, layers: Sequence[Projection], *, one_mask: bool, training: bool
) -> tuple[Tensor, ...]:
    """Apply linear layers, adapters included, to the same input. Under autocast products are of its precision.

    Args:
        x: (…, I).
        norm: Normalises the input first.
        layers: Their adapters with dropout each sample a mask of their own, as PEFT's do, unless
        one_mask: they share one mask of the input.
        training: Whether there is dropout.

    Returns:
        (…, O) of each layer.
    """
    spec = build_spec(layers, _compute_dtype(x), one_mask=one_mask, training=training)
    # Autocast is off inside: precisions are given by the call itself.
    with as_given(x.device):
        weight = norm.weight_I if norm is not None else None
        arguments = (spec, norm, x, weight, *tensors_of(layers))
        results: tuple[Tensor, ...] = _Project.apply(*arguments)  # type: ignore[no-untyped-call]
    return results


def gated_down(gate: Tensor, up: Tensor, activation: str, layer: Projection, *, training: bool) -> Tensor:
    """Apply ``layer`` to ``activation(gate) * up``.

    Args:
        gate: (…, M).
        up: (…, M).
        activation: Its name in transformers.
        layer: M to O features.
        training: Whether the adapter has dropout.

    Returns:
        (…, O).
    """
    spec = build_spec([layer], _compute_dtype(gate), one_mask=True, training=training)
    with as_given(gate.device):
        arguments = (spec, activation, gate, up, *tensors_of([layer]))
        result: Tensor = _GatedDown.apply(*arguments)  # type: ignore[no-untyped-call]
    return result


def rms_norm(x: Tensor, norm: Norm) -> Tensor:
    """Apply a norm by itself.

    Args:
        x: (…, I), kept for the backward pass.
        norm: Weight and epsilon.
    """
    with as_given(x.device):
        result: Tensor = _RmsNorm.apply(norm, x, norm.weight_I)  # type: ignore[no-untyped-call]
    return result


def _compute_dtype(x: Tensor) -> torch.dtype:
    return lowered_to(x.device) or x.dtype


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    """Compute 1 / root mean square, (…, 1), in float32 or float64."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    mean: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide).square() / x.shape[-1]
    return (mean + eps).rsqrt()


def _normalise(x: Tensor, inverse: Tensor, weight: Tensor, of_gemma: bool) -> Tensor:
    wide = x * inverse
    if of_gemma:
        return wide.mul_(1.0 + weight.to(wide.dtype)).to(x.dtype)
    # Llama's norm multiplies in the precision of the input, Gemma's in float32.
    narrow = wide.to(x.dtype)
    return narrow.mul_(weight) if weight.dtype == narrow.dtype else weight * narrow


def _norm_backward(
    grad: Tensor, x: Tensor, inverse: Tensor, weight: Tensor, of_gemma: bool, *, needs: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Compute the gradients of the input and the weight."""
    factor = 1.0 + weight.to(inverse.dtype) if of_gemma else weight.to(inverse.dtype)
    # The input with root mean square 1.
    unit = x * inverse
    weight_grad = (grad * unit).flatten(0, -2).sum(0).to(weight.dtype) if needs[1] else None
    # Under LoRA norms are frozen, and in the first layer the input is too.
    if not needs[0]:
        return None, weight_grad
    inner = grad * factor
    # What is parallel to the input would change its length alone, which the norm takes out.
    mean = (inner * unit).mean(-1, keepdim=True)
    return inner.sub_(unit.mul_(mean)).mul_(inverse).to(x.dtype), weight_grad


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, norm: Norm, x: Tensor, weight: Tensor) -> Tensor:
        inverse = _inverse_rms(x, norm.eps)
        ctx.of_gemma = norm.of_gemma
        ctx.save_for_backward(x, inverse, weight)
        return _normalise(x, inverse, weight, norm.of_gemma)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, inverse, weight = ctx.saved_tensors
        return None, *_norm_backward(grad, x, inverse, weight, ctx.of_gemma, needs=ctx.needs_input_grad[1:])


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Context,
        spec: LinearSpec,
        norm: Norm | None,
        x: Tensor,
        norm_weight: Tensor | None,
        *tensors: Tensor | None,
    ) -> tuple[Tensor, ...]:
        inverse, normed = None, x
        if norm is not None and norm_weight is not None:
            inverse = _inverse_rms(x, norm.eps)
            normed = _normalise(x, inverse, norm_weight, norm.of_gemma)
        input_XI = normed.to(spec.dtype).flatten(0, -2)
        results, lowranks = linear(input_XI, spec, tensors)
        # The normalised input is computed again in the backward pass, from what is kept here.
        ctx.spec, ctx.of_gemma = spec, norm is not None and norm.of_gemma
        ctx.save_for_backward(x, inverse, norm_weight, *tensors, *lowranks)
        return tuple(result.view(*x.shape[:-1], -1) for result in results)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        spec = ctx.spec
        x, inverse, norm_weight, *rest = ctx.saved_tensors
        count = TENSORS_PER_LAYER * len(spec.layers)
        tensors, lowranks = rest[:count], rest[count:]
        needs_x, needs_norm, *needs = ctx.needs_input_grad[2:]
        # Normalised states are computed again: keeping them would cost as much as the input.
        normed = x
        if inverse is not None:
            normed = _normalise(x, inverse, norm_weight, ctx.of_gemma)
        input_XI = normed.to(spec.dtype).flatten(0, -2)
        # Rows and positions alike: every product is of two matrices.
        flat = [grad.to(spec.dtype).flatten(0, -2) for grad in grads]
        grad_XI, tensor_grads = linear_backward(
            flat, input_XI, spec, tensors, lowranks, needs=needs, needs_input=needs_x or needs_norm
        )
        if grad_XI is None:
            return None, None, None, None, *tensor_grads
        grad_x: Tensor | None
        grad_x, grad_norm = grad_XI.view(x.shape), None
        if inverse is not None:
            needs_both = (needs_x, needs_norm)
            grad_x, grad_norm = _norm_backward(grad_x, x, inverse, norm_weight, ctx.of_gemma, needs=needs_both)
        return None, None, grad_x.to(x.dtype) if grad_x is not None else None, grad_norm, *tensor_grads


class _GatedDown(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Context, spec: LinearSpec, activation: str, gate: Tensor, up: Tensor, *tensors: Tensor | None
    ) -> Tensor:
        # In place: the product of gate and up is the largest tensor of the layer.
        input_XI = ACTIVATIONS[activation][0](gate).mul_(up).to(spec.dtype).flatten(0, -2)
        (result,), lowranks = linear(input_XI, spec, tensors)
        ctx.spec, ctx.activation = spec, activation
        ctx.save_for_backward(gate, up, *tensors, *lowranks)
        return result.view(*gate.shape[:-1], -1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        spec = ctx.spec
        gate, up, *rest = ctx.saved_tensors
        tensors, lowranks = rest[:TENSORS_PER_LAYER], rest[TENSORS_PER_LAYER:]
        needs_gate, needs_up, *needs = ctx.needs_input_grad[2:]
        # Computed again: kept were gate and up alone, which the derivative needs anyway.
        function, derivative = ACTIVATIONS[ctx.activation]
        active = function(gate)
        input_XI = (active * up).to(spec.dtype).flatten(0, -2)
        flat = [grad.to(spec.dtype).flatten(0, -2)]
        grad_XI, tensor_grads = linear_backward(
            flat, input_XI, spec, tensors, lowranks, needs=needs, needs_input=needs_gate or needs_up
        )
        # The largest tensor of the backward pass is freed before the next ones are allocated.
        del input_XI
        if grad_XI is None:
            return None, None, None, None, *tensor_grads
        inner = grad_XI.view(gate.shape)
        grad_up = active.mul_(inner) if needs_up else None
        grad_gate = derivative(inner.mul_(up), gate) if needs_gate else None
        return None, None, grad_gate, grad_up, *tensor_grads
