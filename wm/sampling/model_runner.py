"""Run a decoder on caches of our own: prefixes once, then new tokens of every candidate.

Knows shapes, weights and positions; what tokens mean, and which are sampled, is decided elsewhere.

Shape suffixes of :mod:`wm.sampling.cache`, and: X = R x S token rows, S new tokens a row, A heads, H hidden width.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from wm.models.vlm import UnifiedVLM
from wm.sampling.adapted import LowRank, Matrix
from wm.sampling.cache import Prefix, Rows, new_rows
from wm.sampling.kernels.attention import attend_causal, attend_shared, attend_step, attend_tails, can_flash
from wm.sampling.kernels.linear import Linear, Linears, Packs, linear, linears, plain_linear
from wm.sampling.weights_view import DecoderView, LayerView, decoder_view

_LAYER_NORM_EPS = 1e-5
Attend: TypeAlias = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, queries (X, A, D), keys (X, G, D), values (X, G, D)) to what they mix, (X, A x D)."""


Stepping: TypeAlias = Literal["auto", "plain", "static", "graph", "compiled"]
"""How images are decoded, see :mod:`wm.sampling.kernels.cuda_graphs`; ``auto``: ``graph`` on CUDA, ``plain``
elsewhere."""


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
    """The two halves of a layer around its attention: :meth:`Decoder.before` and :meth:`Decoder.after`, or those
    compiled."""

    before: Callable[[Layer, Tensor, tuple[Tensor, Tensor]], tuple[Tensor, Tensor, Tensor]]
    after: Callable[[Layer, Tensor, Tensor], Tensor]


class Group(NamedTuple):
    """Rows at one position: the token of each (R,), what they follow, where their keys and values go."""

    ids: Tensor
    prefix: Prefix
    rows: Rows
    position: int


class Decoder:
    """A model's weights made ready for many passes, as they are now: make a new one after they have changed.

    On a CPU in float32 or bfloat16 all matrices are copied into a quicker layout.

    Args:
        vlm: The model.
        rows: How many token rows a pass usually has (a hint).
        merge: Merge adapters into copies of the weights that they change; without, low-rank ones are applied beside
            the weights, and nothing else is copied.
        beside: A decoder whose packed copies are used where the weights are the very same tensors, as those of models
            over one base are.
        stepping: How images are decoded; what fails is replaced by the next simpler way, with a warning in the log.
        kernels: Whether Triton's kernels may be used on a GPU.
    """

    def __init__(
        self,
        vlm: UnifiedVLM,
        *,
        rows: int = 8,
        merge: bool = True,
        beside: "Decoder | None" = None,
        stepping: Stepping = "auto",
        kernels: bool = True,
    ) -> None:
        self.view: DecoderView = decoder_view(vlm, merge=merge)
        self._packs: Packs = Packs(None if beside is None else beside._packs)
        self.image_rows, self.device = vlm.image_rows, vlm.device
        self._scale = self.view.head_width**-0.5
        self._layers = [self._prepare(layer, rows) for layer in self.view.layers]
        # A family with an image head of its own brings it; else the head's rows of the codes are one, packed.
        own = self.view.image_head
        self._vocabulary = plain_linear(self.view.head)
        self._head = None
        if own is None:
            self._head = linear(_select_rows(self.view.head, vlm.image_rows, self._packs), rows, self._packs)
        self._image_head: Callable[[Tensor], Tensor] = self._head or own or self.logits
        # Empty: the table grows to the longest sequence that is decoded.
        self._rotation = self._tables(0)
        self._eps = torch.tensor(self.view.eps, dtype=self.dtype, device=self.device)
        self._embedding_scale = torch.tensor(self.view.embedding_scale, dtype=self.dtype, device=self.device)
        automatic: Stepping = "graph" if self.device.type == "cuda" else "plain"
        self.stepping: Stepping = automatic if stepping == "auto" else stepping
        self.kernels = kernels
        self.held: Any = None
        """The last images' :class:`~wm.sampling.kernels.cuda_graphs.StaticSteps`, for others of the same shape."""
        self.is_logged = False
        """Whether it has been logged how images are decoded."""

    def _prepare(self, layer: LayerView, rows: int) -> Layer:
        # The scale of queries is folded into their norm, so that a step need not multiply by it.
        head_norm = None
        if layer.query_norm is not None and layer.key_norm is not None:
            pairs = zip(layer.query_norm, layer.key_norm, strict=True)
            weight, bias = (torch.cat((query * self._scale, key)) for query, key in pairs)
            head_norm = (weight, bias)
        return Layer(
            norm_attention=layer.norm_attention,
            project=linears((layer.query, layer.key, layer.value), rows, self._packs),
            head_norm=head_norm,
            out=linear(layer.out, rows, self._packs),
            norm_mlp=layer.norm_mlp,
            gate=linear(layer.gate, rows, self._packs),
            up=linear(layer.up, rows, self._packs),
            down=linear(layer.down, rows, self._packs),
        )

    def matrices(self) -> Iterator[tuple[str, Linear | Linears]]:
        """Iterate over (name, matrix) of a step's products: project, out, gate, up, down or head."""
        for layer in self._layers:
            yield from (("project", layer.project), ("out", layer.out))
            yield from (("gate", layer.gate), ("up", layer.up), ("down", layer.down))
        if self._head is not None:
            yield "head", self._head

    def weights(self) -> Iterator[Tensor]:
        """Iterate over the tensors of weights, the model's own among them; some come more than once."""
        return _iterate_tensors((self.view, self._layers, self._head, self._vocabulary))

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.view.embedding.dtype

    @property
    def exact(self) -> torch.dtype:
        """Type in which probabilities are computed: float32 at least."""
        return torch.float64 if self.dtype is torch.float64 else torch.float32

    def prefill(self, prefixes: Sequence[Sequence[int]]) -> tuple[Prefix, Tensor]:
        """Read prefixes (vocabulary ids, at least one each).

        Returns:
            Their keys and values, and the hidden states (P, H) of their last tokens.
        """
        lengths = tuple(map(len, prefixes))
        longest = max(lengths)
        # Padded on the right with the last token: attention is causal, so that padding changes nothing before it.
        ids_PT = torch.tensor([[*ids, *[ids[-1]] * (longest - len(ids))] for ids in prefixes], device=self.device)
        keys: list[Tensor] = []
        values: list[Tensor] = []

        def keep(key_PTGD: Tensor, value_PTGD: Tensor) -> None:
            # Positions side by side in memory: a product of queries with all keys reads them twice as fast that way.
            keys.append(key_PTGD.permute(0, 2, 3, 1).contiguous().transpose(2, 3))
            values.append(value_PTGD.transpose(1, 2).contiguous())

        hidden_PTH = self._causal(ids_PT, keep)
        last_P = torch.tensor([length - 1 for length in lengths], device=self.device)
        each_P = torch.arange(len(lengths), device=self.device)
        return Prefix(tuple(keys), tuple(values), lengths), hidden_PTH[each_P, last_P]

    def hidden(self, ids_BT: Tensor) -> Tensor:
        """Compute the hidden states (B, T, H) of complete sequences; nothing is cached."""
        return self._causal(ids_BT, lambda key, value: None)

    def _causal(self, ids_PT: Tensor, keep: Callable[[Tensor, Tensor], None]) -> Tensor:
        """Compute hidden states (P, T, H) and pass each layer's keys and values (P, T, G, D) to ``keep``."""

        def attend(_: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            query, key, value = (new.view(*ids_PT.shape, *new.shape[1:]) for new in (query, key, value))
            keep(key, value)
            return attend_causal(query, key, value).reshape(ids_PT.numel(), -1)

        num_rows, length = ids_PT.shape
        positions_X = torch.arange(length, device=self.device).repeat(num_rows)
        return self.run(ids_PT.flatten(), self.rotations(positions_X, length), attend).view(num_rows, length, -1)

    def reserve(self, num_rows: int, capacity: int) -> Rows:
        """Reserve empty caches for ``capacity`` tokens of each of ``num_rows`` candidates."""
        return new_rows(self.view, num_rows, capacity)

    def extend(self, ids_RS: Tensor, prefix: Prefix, rows: Rows, positions: int | Tensor, filled: int) -> Tensor:
        """Compute the hidden states (R, S, H) of the next S tokens of every row, and store their keys and values.

        Args:
            ids_RS: Vocabulary ids.
            prefix: What the rows follow; R is a multiple of P, a prefix's rows being neighbours.
            rows: Caches, written in position.
            positions: Position of the first new token in its row, the same for all or int64 (R,).
            filled: Length of the longest row after this, at most ``rows.capacity``.
        """
        if isinstance(positions, int) and ids_RS.shape[1] == 1:
            return self._step(ids_RS[:, 0], prefix, rows, positions)[:, None]
        return self._block(ids_RS, prefix, rows, positions, filled)

    def _step(self, ids_R: Tensor, prefix: Prefix, rows: Rows, position: int) -> Tensor:
        """Compute hidden states (R, H) of one token at the same position of every row: no mask, and few calls."""
        attend = self._attend_step(prefix, rows, position)
        return self.run(ids_R, self._step_rotation(prefix, len(ids_R), position), attend)

    def step_together(self, groups: Sequence["Group"]) -> Tensor:
        """Compute hidden states (X, H) of one token of every row of several groups, in their order.

        Weights are read once for all of them; attention goes group by group, so that each may have a position, prefixes
        and rows of its own.
        """
        if len(groups) == 1:
            return self._step(*groups[0])
        counts = [len(group.ids) for group in groups]
        rotations = [self._step_rotation(group.prefix, len(group.ids), group.position) for group in groups]
        attends = [self._attend_step(group.prefix, group.rows, group.position) for group in groups]
        # A group without padding has one rotation for all its rows: expanded, so that rows can be joined.
        shape = (-1, *rotations[0][0].shape[1:])
        cosine, sine = (
            torch.cat([part[side].expand(count, *shape[1:]) for part, count in zip(rotations, counts, strict=True)])
            for side in (0, 1)
        )

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            parts = zip(
                attends, *(torch.split_with_sizes(tensor, counts) for tensor in (query, key, value)), strict=True
            )
            return torch.cat([attend_group(layer, *tensors) for attend_group, *tensors in parts])

        return self.run(torch.cat([group.ids for group in groups]), (cosine, sine), attend)

    def _attend_step(self, prefix: Prefix, rows: Rows, position: int) -> Attend:
        """Build the attention of one new token a row, which also stores its keys and values."""
        padding_PT = prefix.padding()
        is_one_prefix = prefix.count == 1 and self.view.num_heads == self.view.num_groups

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            own_keys, own_values = rows.keys[layer], rows.values[layer]
            # Stored before attention: a token looks at itself too.
            own_keys[:, :, position], own_values[:, :, position] = key, value
            own = own_keys[:, :, : position + 1], own_values[:, :, : position + 1]
            if is_one_prefix:
                return attend_step(query, prefix.keys[layer][0], prefix.values[layer][0], *own)
            shared = prefix.keys[layer], prefix.values[layer]
            mixed = attend_shared(query[:, None], *shared, *own, prefix_hidden_PT=padding_PT, own_hidden=None)
            return mixed.reshape(len(query), -1)

        return attend

    def _step_rotation(self, prefix: Prefix, num_rows: int, position: int) -> tuple[Tensor, Tensor]:
        """Return cosine and sine (R, 1, D) at each row's position, or (1, 1, D) where all have the same."""
        # One angle for all rows broadcasts, which spares a gather in every layer.
        if not prefix.is_padded:
            position = prefix.lengths[0] + position
            return self.rotations(slice(position, position + 1), position + 1)
        starts_R = torch.tensor(prefix.lengths, device=self.device).repeat_interleave(num_rows // prefix.count)
        return self.rotations(starts_R + position, max(prefix.lengths) + position + 1)

    def _block(self, ids_RS: Tensor, prefix: Prefix, rows: Rows, positions: int | Tensor, filled: int) -> Tensor:
        """Do as :meth:`extend`, for any number of tokens and any positions."""
        num_rows, num_new = ids_RS.shape
        steps_S = torch.arange(num_new, device=self.device)
        first_R = torch.as_tensor(positions, device=self.device).expand(num_rows)
        positions_RS = first_R[:, None] + steps_S
        # Rows may be at different positions (speculative decoding), so each has a mask of its own.
        own_hidden_RSF = torch.arange(filled, device=self.device) > positions_RS[..., None]
        padding_PT = prefix.padding()
        row_R1 = torch.arange(num_rows, device=self.device)[:, None]
        one_group_a_head = self.view.num_heads == self.view.num_groups
        # Rows that begin right after their prefixes need no mask of their own: fused kernels then take them.
        are_tails = (
            isinstance(positions, int)
            and (positions, filled) == (0, num_new)
            and padding_PT is None
            and one_group_a_head
        )

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            query, key, value = (new.view(num_rows, num_new, *new.shape[1:]) for new in (query, key, value))
            own_keys, own_values = rows.keys[layer], rows.values[layer]
            own_keys.transpose(1, 2)[row_R1, positions_RS] = key
            own_values.transpose(1, 2)[row_R1, positions_RS] = value
            shared = prefix.keys[layer], prefix.values[layer]
            if are_tails and can_flash(query):
                return attend_tails(query, key, value, *shared).reshape(num_rows * num_new, -1)
            own = own_keys[:, :, :filled], own_values[:, :, :filled]
            mixed = attend_shared(query, *shared, *own, prefix_hidden_PT=padding_PT, own_hidden=own_hidden_RSF)
            return mixed.reshape(num_rows * num_new, -1)

        starts_R = torch.tensor(prefix.lengths, device=self.device).repeat_interleave(num_rows // prefix.count)
        positions_X = (positions_RS + starts_R[:, None]).flatten()
        rotation = self.rotations(positions_X, max(prefix.lengths) + filled)
        return self.run(ids_RS.flatten(), rotation, attend).view(num_rows, num_new, -1)

    def image_logits(self, hidden_XH: Tensor) -> Tensor:
        """Compute the logits (X, codes) of the image codes alone."""
        return self._image_head(hidden_XH)

    def logits(self, hidden_XH: Tensor) -> Tensor:
        """Compute the logits (X, vocabulary) of all tokens."""
        return self._vocabulary(hidden_XH)

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
        for index, layer in enumerate(self._layers):
            mixed = attend(index, *parts.before(layer, hidden_XH, rotation))
            hidden_XH = parts.after(layer, hidden_XH, mixed)
        return self._norm(hidden_XH, view.norm)

    def before(self, layer: Layer, hidden_XH: Tensor, rotation: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Compute a layer up to its attention: queries, keys and values of :meth:`_heads`."""
        normed_XH = hidden_XH if self.view.norm_after else self._norm(hidden_XH, layer.norm_attention)
        return self._heads(layer, normed_XH, rotation)

    def after(self, layer: Layer, hidden_XH: Tensor, mixed: Tensor) -> Tensor:
        """Compute a layer from its attention's output (X, A x D) on: (X, H)."""
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
        """Return cosine and signed sine (X, 1, D) at positions below ``furthest``."""
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


def _rotate(heads_XAD: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate each pair (i, i + D/2) by its position's angle."""
    cosine, sine = rotation
    # The sign is in the sine, so that halves are swapped and nothing is negated.
    half = heads_XAD.shape[-1] // 2
    swapped = torch.cat((heads_XAD[..., half:], heads_XAD[..., :half]), dim=-1)
    return torch.addcmul(heads_XAD * cosine, swapped, sine)


def _iterate_tensors(value: object) -> Iterator[Tensor]:
    """Iterate over the tensors in dataclasses, tuples and lists."""
    if isinstance(value, Tensor):
        yield value
    elif is_dataclass(value):
        yield from _iterate_tensors([getattr(value, field.name) for field in fields(value)])
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _iterate_tensors(part)


def _select_rows(head: Matrix, rows: Tensor, packs: Packs) -> Matrix:
    """Select rows of the head."""
    bias, low_rank = head.bias, head.low_rank
    return Matrix(
        packs.rows_of(head.weight, rows),
        None if bias is None else bias[rows],
        None if low_rank is None else LowRank(low_rank.down, low_rank.up[:, rows]),
    )
