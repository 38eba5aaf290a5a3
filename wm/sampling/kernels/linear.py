"""Multiply few rows by weights that stay: copied into a quicker layout on a CPU, plain elsewhere.

A product of 1 to 32 rows reads the weights once and does little else. Large matrices are packed for oneDNN, which reads
them up to a third faster (float32, 8 rows, 1,536 x 512: 453 us for 610), and adds what follows (residual, gate) while
the result is in registers. Small ones are transposed, so that an input's weights are side by side: torch's plain
product of those takes from a fifth (48 x 48) of oneDNN's time, whose every call costs 10 us and more, to about all of
it. Where the two meet depends on the CPU, since oneDNN's kernels use AVX-512 to the full (8 rows, 704 x 256 read from
memory: 58 us for 74 of the transposed; held to AVX2, 79 for 72). Either costs a copy of the weights, made once a model
and call.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from wm.models.vocabulary import span_of
from wm.sampling.adapted import LowRank, Matrix

TRANSPOSED_UP_TO = 2**17 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 2**19
"""Numbers of a float32 matrix up to which the transposed copy is the quicker one: measured at 8 rows with either."""


class Packs:
    """Copies of weights by the tensors that they were made of, so that runners over one base have each only once.

    The weights must not change while this lives: their address in memory is their key, and both are referred to.
    ``beside``: another's copies, used where there are some; new copies are stored here alone.
    """

    def __init__(self, beside: "Packs | None" = None) -> None:
        self._beside = beside
        self._made: dict[tuple[object, ...], tuple[Tensor, list[Tensor]]] = {}
        self._rows: dict[tuple[object, ...], tuple[Tensor, list[Tensor]]] = {}

    def packed(self, weights: Sequence[Tensor], rows: int) -> Tensor:
        """Return the copy of matrices stacked one on another: oneDNN's (``is_mkldnn``), or transposed, (inputs,
        outputs).

        Args:
            weights: Matrices (outputs, inputs) of the same inputs and type, on a CPU.
            rows: Usual number of rows of a product; a hint to oneDNN, never a bound.
        """
        key = tuple(_identify(weight) for weight in weights)
        # The other runner's copies first: they exist already, and over one base they are most.
        if self._beside is not None and key in self._beside._made:
            return self._beside._made[key][0]
        if key not in self._made:
            stacked = weights[0].contiguous() if len(weights) == 1 else torch.cat(list(weights))
            # Small matrices: a call of oneDNN costs more than its layout saves.
            if stacked.dtype is torch.float32 and stacked.numel() <= TRANSPOSED_UP_TO:
                copy = stacked.t().contiguous()
            else:
                copy = torch.ops.mkldnn._reorder_linear_weight(stacked, rows)
            # The originals are referred to as well: their addresses must not be given to other tensors.
            self._made[key] = copy, list(weights)
        return self._made[key][0]

    def rows_of(self, weight: Tensor, rows: Tensor) -> Tensor:
        """Return rows of a matrix: a slice, hence no copy, where they are consecutive.

        Args:
            weight: (rows, columns).
            rows: int64, indices of rows.
        """
        span = span_of(rows)
        if span is not None:
            return weight[span]
        key = (_identify(weight), tuple(rows.tolist()))
        if self._beside is not None and key in self._beside._rows:
            return self._beside._rows[key][0]
        if key not in self._rows:
            self._rows[key] = weight[rows], [weight]
        return self._rows[key][0]


def _identify(weight: Tensor) -> tuple[object, ...]:
    return weight.data_ptr(), weight.shape, weight.stride(), weight.dtype


@dataclass(frozen=True)
class Linear:
    """``x @ weight.T + bias``; either ``weight`` (outputs, inputs) or a copy of it: ``transposed`` (inputs, outputs),
    or oneDNN's, ``packed``.

    ``low_rank``: what is added to the weight without being made; two thin products more.
    """

    weight: Any
    bias: Tensor | None
    packed: Any
    low_rank: LowRank | None = None
    transposed: Any = None

    def __call__(self, x_RI: Tensor) -> Tensor:
        """Multiply (R, inputs) to (R, outputs)."""
        if self.transposed is not None:
            product = x_RI @ self.transposed if self.bias is None else torch.addmm(self.bias, x_RI, self.transposed)
        elif self.packed is None:
            product = F.linear(x_RI, self.weight, self.bias)
        else:
            product = _pointwise(x_RI, self.packed, self.bias, "none", [], "")
        # Added in place: the adapter's part makes no copy of the product.
        if self.low_rank is not None:
            product.addmm_(x_RI @ self.low_rank.down, self.low_rank.up)
        return product

    def plus(self, x_RI: Tensor, other_RO: Tensor) -> Tensor:
        """Return the product plus ``other_RO``.

        Args:
            x_RI: The product's input.
            other_RO: Added; not changed.
        """
        if self.packed is None and self.transposed is None:
            return self(x_RI).add_(other_RO)
        if self.low_rank is not None:
            other_RO = torch.addmm(other_RO, x_RI @ self.low_rank.down, self.low_rank.up)
        if self.transposed is not None:
            added = torch.addmm(other_RO, x_RI, self.transposed)
            return added if self.bias is None else added.add_(self.bias)
        return _pointwise_binary(x_RI, other_RO, self.packed, self.bias, "add")  # type: ignore[no-any-return]

    def times(self, x_RI: Tensor, other_RO: Tensor) -> Tensor:
        """Return the product times ``other_RO``, element by element.

        Args:
            x_RI: The product's input.
            other_RO: The other factor; not changed.
        """
        # oneDNN multiplies in its epilogue, before an adapter could be added: then the product comes first.
        if self.packed is None or self.low_rank is not None:
            return self(x_RI).mul_(other_RO)
        return _pointwise_binary(x_RI, other_RO, self.packed, self.bias, "mul")  # type: ignore[no-any-return]

    def activated(self, x_RI: Tensor, activation: str) -> Tensor:
        """Return the activation (``silu``, ``gelu`` or ``gelu_tanh``) of the product.

        Args:
            x_RI: The product's input.
            activation: ``silu``, ``gelu`` or ``gelu_tanh``.
        """
        if self.packed is not None and self.low_rank is None and activation == "silu":
            return _pointwise(x_RI, self.packed, self.bias, "swish", [], "")  # type: ignore[no-any-return]
        if activation == "silu":
            return F.silu(self(x_RI), inplace=True)
        return F.gelu(self(x_RI), approximate="tanh" if activation == "gelu_tanh" else "none")


@dataclass(frozen=True)
class Linears:
    """Several products of the same rows, one after another in the result: one product where weights are packed."""

    parts: tuple[Linear, ...]

    def __call__(self, x_RI: Tensor) -> Tensor:
        """Multiply (R, inputs) to (R, sum of outputs)."""
        if len(self.parts) == 1:
            return self.parts[0](x_RI)
        return torch.cat([part(x_RI) for part in self.parts], dim=-1)


def can_pack(weight: Tensor) -> bool:
    """Return whether oneDNN takes a weight: float32 on a CPU, or bfloat16 on one that can multiply it."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if weight.dtype is torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype is torch.float32


def plain_linear(matrix: Matrix) -> Linear:
    """Use a matrix as it is; no copy of its weight."""
    return Linear(matrix.weight, matrix.bias, None, matrix.low_rank)


def linear(matrix: Matrix, rows: int, packs: Packs | None = None) -> Linear:
    """Pack a matrix where that is possible.

    Args:
        matrix: Weight, bias and low-rank part.
        rows: Usual number of rows of a product; a hint to oneDNN, never a bound.
        packs: Copies that exist; a new one is added.
    """
    if not can_pack(matrix.weight):
        return plain_linear(matrix)
    return _copied(matrix.bias, (packs or Packs()).packed([matrix.weight], rows), matrix.low_rank)


def linears(matrices: Sequence[Matrix], rows: int, packs: Packs | None = None) -> Linears:
    """Join matrices of the same inputs: stacked if packed, as packing copies anyway, else left where they are.

    Args:
        matrices: Matrices of the same inputs.
        rows: Usual number of rows of a product; a hint to oneDNN, never a bound.
        packs: Copies that exist; a new one is added.
    """
    if not can_pack(matrices[0].weight):
        return Linears(tuple(linear(matrix, rows) for matrix in matrices))
    # Where only some have a bias, the others' are zeros.
    biases = [
        matrix.weight.new_zeros(len(matrix.weight)) if matrix.bias is None else matrix.bias for matrix in matrices
    ]
    bias = torch.cat(biases) if any(matrix.bias is not None for matrix in matrices) else None
    # One copy of all: queries, keys and values then are one product.
    copy = (packs or Packs()).packed([matrix.weight for matrix in matrices], rows)
    return Linears((_copied(bias, copy, _stacked(matrices)),))


def _copied(bias: Tensor | None, copy: Tensor, low_rank: LowRank | None) -> Linear:
    transposed = None if copy.is_mkldnn else copy
    return Linear(None, bias, copy if copy.is_mkldnn else None, low_rank, transposed)


def _stacked(matrices: Sequence[Matrix]) -> LowRank | None:
    """Join low-rank parts of stacked matrices: each has its own columns of ``down`` and its own block of ``up``."""
    parts = [matrix.low_rank for matrix in matrices]
    downs = [low_rank.down for low_rank in parts if low_rank is not None]
    if not downs:
        return None
    # A matrix without adapter has a block of no rows, as wide as its outputs.
    ups = [matrix.weight.new_zeros(0, len(matrix.weight)) for matrix in matrices]
    blocks = [up if low_rank is None else low_rank.up for up, low_rank in zip(ups, parts, strict=True)]
    return LowRank(torch.cat(downs, dim=1), torch.block_diag(*blocks))  # type: ignore[no-untyped-call]


_pointwise = torch.ops.mkldnn._linear_pointwise.default
_pointwise_binary = torch.ops.mkldnn._linear_pointwise.binary
