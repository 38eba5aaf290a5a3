"""Run the layers of a decoder of the Llama kind, whatever its attention looks at.

Shape suffixes of :mod:`wm.sampling.cache`, and: X token rows, A heads, H hidden width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from wm.sampling.kernels.linear import Linear, Linears, Packs, linear, linears
from wm.sampling.weights_view import DecoderView, LayerView

_LAYER_NORM_EPS = 1e-5
Attend: TypeAlias = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, queries (X, A, D), keys (X, G, D), values (X, G, D)) to what they mix, (X, A x D)."""


@dataclass(frozen=True)
class Layer:
    """One layer's weights, ready for passes."""

    norm_attention: Tensor
    project: Linears
    head_norm: tuple[Tensor, Tensor] | None
    out: Linear
    norm_mlp: Tensor
    gate: Linear
    up: Linear
    down: Linear


class Parts(NamedTuple):
    """The halves of a layer around its attention, :meth:`LlamaLayers.before` and :meth:`LlamaLayers.after`, or those
    compiled."""

    before: Callable[[Layer, Tensor, tuple[Tensor, Tensor]], tuple[Tensor, Tensor, Tensor]]
    after: Callable[[Layer, Tensor, Tensor], Tensor]


class LlamaLayers:
    """The layers of a decoder, their weights in the layouts that are quickest for few rows.

    Args:
        view: The decoder's weights.
        rows: How many token rows a pass usually has (a hint).
        packs: Copies of weights that exist; new ones are added.
    """

    def __init__(self, view: DecoderView, rows: int, packs: Packs) -> None:
        self.view = view
        self.dtype, self.device = view.embedding.dtype, view.embedding.device
        self._scale = view.head_width**-0.5
        self.layers = [self._prepare(layer, rows, packs) for layer in view.layers]
        # Empty: the table grows to the longest sequence that is decoded.
        self._rotation = self._tables(0)
        self._eps = torch.tensor(view.eps, dtype=self.dtype, device=self.device)
        self._embedding_scale = torch.tensor(view.embedding_scale, dtype=self.dtype, device=self.device)

    def _prepare(self, layer: LayerView, rows: int, packs: Packs) -> Layer:
        # The scale of queries is folded into their norm, so that a step need not multiply by it.
        head_norm = None
        if layer.query_norm is not None and layer.key_norm is not None:
            pairs = zip(layer.query_norm, layer.key_norm, strict=True)
            weight, bias = (torch.cat((query * self._scale, key)) for query, key in pairs)
            head_norm = (weight, bias)
        return Layer(
            norm_attention=layer.norm_attention,
            project=linears((layer.query, layer.key, layer.value), rows, packs),
            head_norm=head_norm,
            out=linear(layer.out, rows, packs),
            norm_mlp=layer.norm_mlp,
            gate=linear(layer.gate, rows, packs),
            up=linear(layer.up, rows, packs),
            down=linear(layer.down, rows, packs),
        )

    def run(self, ids_X: Tensor, rotation: tuple[Tensor, Tensor], attend: Attend, parts: Parts | None = None) -> Tensor:
        """Run all layers and the last norm.

        Args:
            ids_X: Vocabulary ids.
            rotation: Cosine and sine (X, 1, D) of :meth:`rotations`.
            attend: Attention of a layer, which also stores keys and values.
            parts: The halves of a layer, compiled; its own methods without.

        Returns:
            Hidden states (X, H).
        """
        view, parts = self.view, parts or Parts(self.before, self.after)
        hidden_XH = view.embedding[ids_X]
        # Gemma scales its embeddings; for all others the product is spared.
        if view.embedding_scale != 1.0:
            hidden_XH = hidden_XH * self._embedding_scale
        for index, layer in enumerate(self.layers):
            mixed = attend(index, *parts.before(layer, hidden_XH, rotation))
            hidden_XH = parts.after(layer, hidden_XH, mixed)
        return self._norm(hidden_XH, view.norm)

    def before(self, layer: Layer, hidden_XH: Tensor, rotation: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Compute a layer up to its attention: queries, keys and values of :meth:`_heads`.

        Args:
            layer: The layer's weights.
            hidden_XH: Hidden states.
            rotation: Cosine and sine (X, 1, D) of :meth:`rotations`.
        """
        normed_XH = hidden_XH if self.view.norm_after else self._norm(hidden_XH, layer.norm_attention)
        return self._heads(layer, normed_XH, rotation)

    def after(self, layer: Layer, hidden_XH: Tensor, mixed: Tensor) -> Tensor:
        """Compute a layer from its attention's output (X, A x D) on: (X, H).

        Args:
            layer: The layer's weights.
            hidden_XH: Hidden states before the layer.
            mixed: Attention's output (X, A x D).
        """
        # Swin norm: what is added to the residual is normalised, not what is read from it.
        if self.view.norm_after:
            hidden_XH = hidden_XH + self._norm(layer.out(mixed), layer.norm_attention)
            return hidden_XH + self._norm(layer.down(self._gated(layer, hidden_XH)), layer.norm_mlp)
        hidden_XH = layer.out.plus(mixed, hidden_XH)
        return layer.down.plus(self._gated(layer, self._norm(hidden_XH, layer.norm_mlp)), hidden_XH)

    def _gated(self, layer: Layer, hidden_XH: Tensor) -> Tensor:
        return layer.up.times(hidden_XH, layer.gate.activated(hidden_XH, self.view.activation))

    def _heads(self, layer: Layer, hidden_XH: Tensor, rotation: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Compute queries (X, A, D), scaled, and keys (X, G, D), both rotated, and values (X, G, D)."""
        heads, groups, width = self.view.num_heads, self.view.num_groups, self.view.head_width
        projected = layer.project(hidden_XH).view(len(hidden_XH), heads + 2 * groups, width)
        # Queries and keys are normalised and rotated in one call each.
        both, value = projected[:, : heads + groups], projected[:, heads + groups :]
        if layer.head_norm is not None:
            weight, bias = layer.head_norm
            both = torch.addcmul(bias, F.layer_norm(both, (width,), eps=_LAYER_NORM_EPS), weight)
        both = _rotate(both, rotation)
        query, key = both[:, :heads], both[:, heads:]
        return query if layer.head_norm is not None else query * self._scale, key, value

    def _norm(self, hidden_XH: Tensor, weight_H: Tensor) -> Tensor:
        # In half precision the squares must be summed in float32, which the fused kernel does.
        if hidden_XH.dtype not in (torch.float32, torch.float64):
            return F.rms_norm(hidden_XH, weight_H.shape, weight_H, self.view.eps)
        # The same in five calls instead of eight.
        length_X1 = torch.linalg.vector_norm(hidden_XH, dim=-1, keepdim=True)
        squared_X1 = torch.addcmul(self._eps, length_X1, length_X1, value=1 / len(weight_H))
        return (hidden_XH * squared_X1.rsqrt_()).mul_(weight_H)

    def rotations(self, positions_X: Tensor | slice, furthest: int) -> tuple[Tensor, Tensor]:
        """Return cosine and signed sine (X, 1, D) at positions below ``furthest``.

        Args:
            positions_X: int64, or a slice.
            furthest: Bound on the positions.
        """
        cosine, sine = self._rotation
        # Doubled, so that a growing sequence rebuilds the table a few times only.
        if len(cosine) < furthest:
            cosine, sine = self._rotation = self._tables(2 * furthest)
        return cosine[positions_X], sine[positions_X]

    def _tables(self, length: int) -> tuple[Tensor, Tensor]:
        """Build tables (length, 1, D); the sine's first half is negative, see :func:`_rotate`."""
        inverse = self.view.inverse_frequencies.to(self.device)
        angles = torch.arange(length, dtype=inverse.dtype, device=self.device)[:, None] * inverse
        cosine, sine = angles.cos() * self.view.rotary_scale, angles.sin() * self.view.rotary_scale
        tables = torch.cat((cosine, cosine), -1), torch.cat((-sine, sine), -1)
        cosine, sine = (table[:, None].to(self.dtype) for table in tables)
        return cosine, sine


def compile_parts(layers: LlamaLayers, backend: str | Callable[..., object] = "inductor") -> Parts:
    """Compile the halves of a layer around attention, each once for all layers.

    Args:
        layers: The decoder's layers.
        backend: Of torch.compile.
    """
    before = torch.compile(layers.before, backend=backend, fullgraph=True, dynamic=False)
    after = torch.compile(layers.after, backend=backend, fullgraph=True, dynamic=False)
    return Parts(before, after)


def _rotate(heads_XAD: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate each pair (i, i + D/2) by its position's angle."""
    cosine, sine = rotation
    # The sign is in the sine, so that halves are swapped and nothing is negated.
    half = heads_XAD.shape[-1] // 2
    swapped = torch.cat((heads_XAD[..., half:], heads_XAD[..., :half]), dim=-1)
    return torch.addcmul(heads_XAD * cosine, swapped, sine)
