"""Forward passes of a decoder on caches of our own: prefixes once, then new tokens of every candidate.

Shape suffixes of :mod:`wm.sampling.cache`, and: X = R x S token rows, S new tokens a row, A heads, H hidden width.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from wm.models.protocol import UnifiedVLM
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
    """One layer's weights, ready."""

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
    """Rows that stand at one place: the token of each (R,), what they follow, where their keys and values go."""

    ids: Tensor
    prefix: Prefix
    rows: Rows
    place: int


class Decoder:
    """A model's weights made ready for many passes, as they are now: make a new one after they have changed.

    ``rows``: how many token rows a pass usually has (a hint). On a CPU in float32 or bfloat16 all matrices are copied
    into a quicker layout. Adapters are merged into copies of the weights that they change; without ``merge`` low-rank
    ones are applied beside them, and nothing else is copied. ``beside``: a decoder whose packed copies are used where
    the weights are the very same tensors, as those of models over one base are. ``stepping`` is how images are decoded,
    ``kernels`` whether Triton's may be used on a GPU; what fails is replaced by the next simpler way, with a warning in
    the log.
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
        self._layers = [self._ready(layer, rows) for layer in self.view.layers]
        own = self.view.image_head
        self._vocabulary = plain_linear(self.view.head)
        self._head = None
        if own is None:
            self._head = linear(_rows_of(self.view.head, vlm.image_rows, self._packs), rows, self._packs)
        self._image_head: Callable[[Tensor], Tensor] = self._head or own or self.logits
        self._rotation = self._tables(0)
        self._eps = torch.tensor(self.view.eps, dtype=self.dtype, device=self.device)
        self._embedding_scale = torch.tensor(self.view.embedding_scale, dtype=self.dtype, device=self.device)
        automatic: Stepping = "graph" if self.device.type == "cuda" else "plain"
        self.stepping: Stepping = automatic if stepping == "auto" else stepping
        self.kernels = kernels
        self.held: Any = None
        """The last images' :class:`~wm.sampling.kernels.cuda_graphs.StaticSteps`, for others of the same shape."""
        self.told = False
        """Whether it has been logged how images are decoded."""

    def _ready(self, layer: LayerView, rows: int) -> Layer:
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
        """Every matrix that a step multiplies by, with what it is: project, out, gate, up, down or head."""
        for layer in self._layers:
            yield from (("project", layer.project), ("out", layer.out))
            yield from (("gate", layer.gate), ("up", layer.up), ("down", layer.down))
        if self._head is not None:
            yield "head", self._head

    def weights(self) -> Iterator[Tensor]:
        """Every tensor of weights that this holds, the model's own among them; some more than once."""
        return _tensors((self.view, self._layers, self._head, self._vocabulary))

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.view.embedding.dtype

    @property
    def exact(self) -> torch.dtype:
        """In which probabilities are taken: float32 at least."""
        return torch.float64 if self.dtype is torch.float64 else torch.float32

    def prefill(self, prefixes: Sequence[Sequence[int]]) -> tuple[Prefix, Tensor]:
        """Keys and values of prefixes (vocabulary ids, at least one each), and the hidden states (P, H) of their
        last tokens."""
        lengths = tuple(map(len, prefixes))
        longest = max(lengths)
        ids_PT = torch.tensor([[*ids, *[ids[-1]] * (longest - len(ids))] for ids in prefixes], device=self.device)
        keys: list[Tensor] = []
        values: list[Tensor] = []

        def keep(key_PTGD: Tensor, value_PTGD: Tensor) -> None:
            # Places side by side in memory: a product of queries with all keys reads them twice as fast that way.
            keys.append(key_PTGD.permute(0, 2, 3, 1).contiguous().transpose(2, 3))
            values.append(value_PTGD.transpose(1, 2).contiguous())

        hidden_PTH = self._causal(ids_PT, keep)
        last_P = torch.tensor([length - 1 for length in lengths], device=self.device)
        each_P = torch.arange(len(lengths), device=self.device)
        return Prefix(tuple(keys), tuple(values), lengths), hidden_PTH[each_P, last_P]

    def hidden(self, ids_BT: Tensor) -> Tensor:
        """Hidden states (B, T, H) of whole sequences; nothing is kept."""
        return self._causal(ids_BT, lambda key, value: None)

    def _causal(self, ids_PT: Tensor, keep: Callable[[Tensor, Tensor], None]) -> Tensor:
        """Hidden states (P, T, H); ``keep`` is given each layer's keys and values (P, T, G, D)."""

        def attend(_: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            query, key, value = (new.view(*ids_PT.shape, *new.shape[1:]) for new in (query, key, value))
            keep(key, value)
            return attend_causal(query, key, value).reshape(ids_PT.numel(), -1)

        num_rows, length = ids_PT.shape
        positions_X = torch.arange(length, device=self.device).repeat(num_rows)
        return self.run(ids_PT.flatten(), self.rotations(positions_X, length), attend).view(num_rows, length, -1)

    def reserve(self, num_rows: int, room: int) -> Rows:
        """Empty caches of ``num_rows`` candidates for ``room`` tokens each."""
        return new_rows(self.view, num_rows, room)

    def extend(self, ids_RS: Tensor, prefix: Prefix, rows: Rows, places: int | Tensor, filled: int) -> Tensor:
        """Hidden states (R, S, H) of the next S tokens of every row, whose keys and values are stored.

        ``places``: where in its row the first new token belongs, the same for all or int64 (R,). ``filled``: the
        furthest place in any row after this, at most ``rows.room``.
        """
        if isinstance(places, int) and ids_RS.shape[1] == 1:
            return self._step(ids_RS[:, 0], prefix, rows, places)[:, None]
        return self._block(ids_RS, prefix, rows, places, filled)

    def _step(self, ids_R: Tensor, prefix: Prefix, rows: Rows, place: int) -> Tensor:
        """Hidden states (R, H) of one token at the same place of every row: no mask, and few calls."""
        attend = self._attend_step(prefix, rows, place)
        return self.run(ids_R, self._step_rotation(prefix, len(ids_R), place), attend)

    def step_together(self, groups: Sequence["Group"]) -> Tensor:
        """Hidden states (X, H) of one token of every row of several groups, in their order: weights are read once for
        all of them, attention goes group by group, so that each may have a place, prefixes and rows of its own."""
        if len(groups) == 1:
            return self._step(*groups[0])
        counts = [len(group.ids) for group in groups]
        rotations = [self._step_rotation(group.prefix, len(group.ids), group.place) for group in groups]
        attends = [self._attend_step(group.prefix, group.rows, group.place) for group in groups]
        shape = (-1, *rotations[0][0].shape[1:])
        cosine, sine = (
            torch.cat([part[side].expand(count, *shape[1:]) for part, count in zip(rotations, counts, strict=True)])
            for side in (0, 1)
        )

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            parts = zip(
                attends, *(torch.split_with_sizes(tensor, counts) for tensor in (query, key, value)), strict=True
            )
            return torch.cat([one(layer, *tensors) for one, *tensors in parts])

        return self.run(torch.cat([group.ids for group in groups]), (cosine, sine), attend)

    def _attend_step(self, prefix: Prefix, rows: Rows, place: int) -> Attend:
        padding_PT = prefix.padding()
        one_prefix = prefix.count == 1 and self.view.num_heads == self.view.num_groups

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            own_keys, own_values = rows.keys[layer], rows.values[layer]
            own_keys[:, :, place], own_values[:, :, place] = key, value
            own = own_keys[:, :, : place + 1], own_values[:, :, : place + 1]
            if one_prefix:
                return attend_step(query, prefix.keys[layer][0], prefix.values[layer][0], *own)
            shared = prefix.keys[layer], prefix.values[layer]
            mixed = attend_shared(query[:, None], *shared, *own, prefix_hidden_PT=padding_PT, own_hidden=None)
            return mixed.reshape(len(query), -1)

        return attend

    def _step_rotation(self, prefix: Prefix, num_rows: int, place: int) -> tuple[Tensor, Tensor]:
        """(R, 1, D) at each row's position, or (1, 1, D) where that is the same of all."""
        if not prefix.is_padded:
            position = prefix.lengths[0] + place
            return self.rotations(slice(position, position + 1), position + 1)
        starts_R = torch.tensor(prefix.lengths, device=self.device).repeat_interleave(num_rows // prefix.count)
        return self.rotations(starts_R + place, max(prefix.lengths) + place + 1)

    def _block(self, ids_RS: Tensor, prefix: Prefix, rows: Rows, places: int | Tensor, filled: int) -> Tensor:
        num_rows, num_new = ids_RS.shape
        steps_S = torch.arange(num_new, device=self.device)
        first_R = torch.as_tensor(places, device=self.device).expand(num_rows)
        places_RS = first_R[:, None] + steps_S
        own_hidden_RSF = torch.arange(filled, device=self.device) > places_RS[..., None]
        padding_PT = prefix.padding()
        row_R1 = torch.arange(num_rows, device=self.device)[:, None]
        one_group_a_head = self.view.num_heads == self.view.num_groups
        tails = isinstance(places, int) and (places, filled) == (0, num_new) and padding_PT is None and one_group_a_head

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            query, key, value = (new.view(num_rows, num_new, *new.shape[1:]) for new in (query, key, value))
            own_keys, own_values = rows.keys[layer], rows.values[layer]
            own_keys.transpose(1, 2)[row_R1, places_RS] = key
            own_values.transpose(1, 2)[row_R1, places_RS] = value
            shared = prefix.keys[layer], prefix.values[layer]
            if tails and can_flash(query):
                return attend_tails(query, key, value, *shared).reshape(num_rows * num_new, -1)
            own = own_keys[:, :, :filled], own_values[:, :, :filled]
            mixed = attend_shared(query, *shared, *own, prefix_hidden_PT=padding_PT, own_hidden=own_hidden_RSF)
            return mixed.reshape(num_rows * num_new, -1)

        starts_R = torch.tensor(prefix.lengths, device=self.device).repeat_interleave(num_rows // prefix.count)
        positions_X = (places_RS + starts_R[:, None]).flatten()
        rotation = self.rotations(positions_X, max(prefix.lengths) + filled)
        return self.run(ids_RS.flatten(), rotation, attend).view(num_rows, num_new, -1)

    def image_logits(self, hidden_XH: Tensor) -> Tensor:
        """Logits (X, codes) of the image codes alone."""
        return self._image_head(hidden_XH)

    def logits(self, hidden_XH: Tensor) -> Tensor:
        """Logits (X, vocabulary) of everything."""
        return self._vocabulary(hidden_XH)

    def run(self, ids_X: Tensor, rotation: tuple[Tensor, Tensor], attend: Attend, parts: Parts | None = None) -> Tensor:
        """Hidden states (X, H) after the last norm; ``rotation``: cosine and sine (X, 1, D) of :meth:`rotations`."""
        view, parts = self.view, parts or Parts(self.before, self.after)
        hidden_XH = view.embedding[ids_X]
        if view.embedding_scale != 1.0:
            hidden_XH = hidden_XH * self._embedding_scale
        for index, layer in enumerate(self._layers):
            mixed = attend(index, *parts.before(layer, hidden_XH, rotation))
            hidden_XH = parts.after(layer, hidden_XH, mixed)
        return self._norm(hidden_XH, view.norm)

    def before(self, layer: Layer, hidden_XH: Tensor, rotation: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """A layer up to its attention: what :meth:`_heads` gives."""
        normed_XH = hidden_XH if self.view.norm_after else self._norm(hidden_XH, layer.norm_attention)
        return self._heads(layer, normed_XH, rotation)

    def after(self, layer: Layer, hidden_XH: Tensor, mixed: Tensor) -> Tensor:
        """A layer from what its attention has mixed, (X, A x D), on: (X, H)."""
        if self.view.norm_after:
            hidden_XH = hidden_XH + self._norm(layer.out(mixed), layer.norm_attention)
            return hidden_XH + self._norm(layer.down(self._gated(layer, hidden_XH)), layer.norm_mlp)
        hidden_XH = layer.out.plus(mixed, hidden_XH)
        return layer.down.plus(self._gated(layer, self._norm(hidden_XH, layer.norm_mlp)), hidden_XH)

    def _gated(self, layer: Layer, hidden_XH: Tensor) -> Tensor:
        return layer.up.times(hidden_XH, layer.gate.activated(hidden_XH, self.view.activation))

    def _heads(self, layer: Layer, hidden_XH: Tensor, rotation: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (X, A, D), scaled, and keys (X, G, D), both rotated, and values (X, G, D)."""
        heads, groups, width = self.view.num_heads, self.view.num_groups, self.view.head_width
        projected = layer.project(hidden_XH).view(len(hidden_XH), heads + 2 * groups, width)
        both, value = projected[:, : heads + groups], projected[:, heads + groups :]
        if layer.head_norm is not None:
            weight, bias = layer.head_norm
            both = torch.addcmul(bias, F.layer_norm(both, (width,), eps=_LAYER_NORM_EPS), weight)
        both = _rotate(both, rotation)
        query, key = both[:, :heads], both[:, heads:]
        return query if layer.head_norm is not None else query * self._scale, key, value

    def _norm(self, hidden_XH: Tensor, weight_H: Tensor) -> Tensor:
        if hidden_XH.dtype not in (torch.float32, torch.float64):
            return F.rms_norm(hidden_XH, weight_H.shape, weight_H, self.view.eps)
        # The same in five calls instead of eight.
        length_X1 = torch.linalg.vector_norm(hidden_XH, dim=-1, keepdim=True)
        squared_X1 = torch.addcmul(self._eps, length_X1, length_X1, value=1 / len(weight_H))
        return (hidden_XH * squared_X1.rsqrt_()).mul_(weight_H)

    def rotations(self, positions_X: Tensor | slice, furthest: int) -> tuple[Tensor, Tensor]:
        """Cosine and signed sine (X, 1, D) at positions below ``furthest``."""
        cosine, sine = self._rotation
        if len(cosine) < furthest:
            cosine, sine = self._rotation = self._tables(2 * furthest)
        return cosine[positions_X], sine[positions_X]

    def _tables(self, length: int) -> tuple[Tensor, Tensor]:
        """(length, 1, D); the sine's first half is negative, see :func:`_rotate`."""
        inverse = self.view.inverse_frequencies.to(self.device)
        angles = torch.arange(length, dtype=inverse.dtype, device=self.device)[:, None] * inverse
        cosine, sine = angles.cos() * self.view.rotary_scale, angles.sin() * self.view.rotary_scale
        tables = torch.cat((cosine, cosine), -1), torch.cat((-sine, sine), -1)
        cosine, sine = (table[:, None].to(self.dtype) for table in tables)
        return cosine, sine


def _rotate(heads_XAD: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Each pair (i, i + D/2) turned by its position's angle."""
    cosine, sine = rotation
    half = heads_XAD.shape[-1] // 2
    swapped = torch.cat((heads_XAD[..., half:], heads_XAD[..., :half]), dim=-1)
    return torch.addcmul(heads_XAD * cosine, swapped, sine)


def _tensors(held: object) -> Iterator[Tensor]:
    """Those in dataclasses, tuples and lists."""
    if isinstance(held, Tensor):
        yield held
    elif is_dataclass(held):
        yield from _tensors([getattr(held, field.name) for field in fields(held)])
    elif isinstance(held, tuple | list):
        for part in held:
            yield from _tensors(part)


def _rows_of(head: Matrix, rows: Tensor, packs: Packs) -> Matrix:
    """The head's given rows."""
    bias, low_rank = head.bias, head.low_rank
    return Matrix(
        packs.rows_of(head.weight, rows),
        None if bias is None else bias[rows],
        None if low_rank is None else LowRank(low_rank.down, low_rank.up[:, rows]),
    )
