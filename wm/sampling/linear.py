"""Matrix products of few rows with weights that stay: packed for oneDNN on a CPU, plain elsewhere.

A product of 1 to 32 rows reads the weights once and does little else. oneDNN's packed layout does that two to four
times as fast as the plain one here (float32, 8 rows), and adds what follows (residual, gate) while the result is in
registers. Packing costs a copy of the weights, made once a model and call.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from wm.sampling.view import Matrix


@dataclass(frozen=True)
class Linear:
    """``x @ weight.T + bias``; either ``weight`` (outputs, inputs) or oneDNN's copy of it, ``packed``."""

    weight: Any
    bias: Tensor | None
    packed: Any

    def __call__(self, x_RI: Tensor) -> Tensor:
        """(R, outputs) of (R, inputs)."""
        if self.packed is None:
            return F.linear(x_RI, self.weight, self.bias)
        return _pointwise(x_RI, self.packed, self.bias, "none", [], "")  # type: ignore[no-any-return]

    def plus(self, x_RI: Tensor, other_RO: Tensor) -> Tensor:
        """The product plus ``other_RO``."""
        if self.packed is None:
            return F.linear(x_RI, self.weight, self.bias).add_(other_RO)
        return _pointwise_binary(x_RI, other_RO, self.packed, self.bias, "add")  # type: ignore[no-any-return]

    def times(self, x_RI: Tensor, other_RO: Tensor) -> Tensor:
        """The product times ``other_RO``, element by element."""
        if self.packed is None:
            return F.linear(x_RI, self.weight, self.bias).mul_(other_RO)
        return _pointwise_binary(x_RI, other_RO, self.packed, self.bias, "mul")  # type: ignore[no-any-return]

    def activated(self, x_RI: Tensor, activation: str) -> Tensor:
        """The activation (``silu``, ``gelu`` or ``gelu_tanh``) of the product."""
        if self.packed is not None and activation == "silu":
            return _pointwise(x_RI, self.packed, self.bias, "swish", [], "")  # type: ignore[no-any-return]
        if activation == "silu":
            return F.silu(self(x_RI), inplace=True)
        return F.gelu(self(x_RI), approximate="tanh" if activation == "gelu_tanh" else "none")


@dataclass(frozen=True)
class Linears:
    """Several products of the same rows, one after another in the result: one product where weights are packed."""

    parts: tuple[Linear, ...]

    def __call__(self, x_RI: Tensor) -> Tensor:
        """(R, sum of outputs)."""
        if len(self.parts) == 1:
            return self.parts[0](x_RI)
        return torch.cat([part(x_RI) for part in self.parts], dim=-1)


def can_pack(weight: Tensor) -> bool:
    """Whether oneDNN takes it: float32 or bfloat16 on a CPU."""
    return (
        weight.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.bfloat16)
        and bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
    )


def linear(matrix: Matrix, rows: int) -> Linear:
    """A matrix, packed where that is possible. ``rows``: how many are usual; a hint to oneDNN, never a bound."""
    if not can_pack(matrix.weight):
        return Linear(matrix.weight, matrix.bias, None)
    packed = torch.ops.mkldnn._reorder_linear_weight(matrix.weight.contiguous(), rows)
    return Linear(None, matrix.bias, packed)


def linears(matrices: Sequence[Matrix], rows: int) -> Linears:
    """Several matrices of the same inputs: stacked if packed, as packing copies anyway, else left where they are."""
    if not can_pack(matrices[0].weight):
        return Linears(tuple(linear(matrix, rows) for matrix in matrices))
    biases = [
        matrix.weight.new_zeros(len(matrix.weight)) if matrix.bias is None else matrix.bias for matrix in matrices
    ]
    bias = torch.cat(biases) if any(matrix.bias is not None for matrix in matrices) else None
    return Linears((linear(Matrix(torch.cat([matrix.weight for matrix in matrices]), bias), rows),))


_pointwise = torch.ops.mkldnn._linear_pointwise.default
_pointwise_binary = torch.ops.mkldnn._linear_pointwise.binary
